"""What a document, a local stop, or the passing of time did to the consent in force."""

from dataclasses import dataclass, field

from agent.core.admission import Admission
from agent.core.plan import Plan
from agent.core.policy import Policy
from agent.core.restrict import Restriction
from agent.core.standing import Standing
from agent.edge.store import Purged


@dataclass(frozen=True, slots=True)
class Change:
    """What a document, a local stop, or the passing of time did.

    Attributes:
        plan: The plan to swap in.
        ended: Ids of grants that are over.
        halted: Ids of grants that may not publish any more: ended, paused or suspended.
        moved: Every grant whose standing changed: its id, its rev, and where it stands now.
        purged: What was erased from the spool.
        lifted: What local stops had stopped that have lasted for their time.
    """

    plan: Plan
    ended: tuple[str, ...] = ()
    halted: tuple[str, ...] = ()
    moved: tuple[tuple[str, int, Standing], ...] = ()
    purged: Purged = field(default_factory=Purged)
    lifted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Received:
    """What became of a signed document that was not refused.

    Attributes:
        typ: POLICY_TYP, RESTRICT_TYP or TRUST_TYP.
        change: What it did; None where it repeats what is in force.
        before: The policy that was in force before.
        restriction: The document, where it is a restriction.
    """

    typ: str
    change: Change | None
    before: Policy | None = None
    restriction: Restriction | None = None

    @property
    def admission(self) -> Admission:
        """Whether it took effect or repeats what is in force."""
        return Admission.REPEAT if self.change is None else Admission.APPLY
