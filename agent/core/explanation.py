"""The chain of steps that explains one VSS path, and the view of a vehicle that it is made of.

Both are values without a signal's value: counts, times, names and reasons.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from agent.core.binding import Binding
from agent.core.catalogue import Catalogue
from agent.core.pipeline import TakeCounts
from agent.core.plan import Plan
from agent.core.policy import Policy
from agent.core.standing import NO_OVERLAYS, Overlays
from agent.core.status import StopStatus
from agent.errors import AgentError


class Finding(StrEnum):
    """What a step found."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Step:
    """One link of the chain.

    Attributes:
        name: Which link, as `agent.core.explain` lists them.
        text: A sentence's rest, for a person.
        grant_id: Of the steps that are about one grant.
    """

    name: str
    finding: Finding
    text: str
    grant_id: str | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """The chain for one path.

    Attributes:
        recipients: For whom something may be taken now.
        verdict: The last line.
    """

    path: str
    steps: tuple[Step, ...]
    recipients: tuple[str, ...]
    verdict: str

    def members(self) -> dict[str, Any]:
        """Return it as JSON members."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TakeFacts:
    """What became of the values of one take; no value among it.

    Attributes:
        drops: Reason → how many values.
        last_taken_ns: Time of the last sample, ns since the epoch.
        last_thinned_ns: When the time rule last let a value go.
        last_dropped_ns: Time of the last value that was dropped.
        last_drop: Why it was.
    """

    taken: int = 0
    thinned: int = 0
    drops: Mapping[str, int] | None = None
    last_taken_ns: int | None = None
    last_thinned_ns: int | None = None
    last_dropped_ns: int | None = None
    last_drop: str | None = None

    @property
    def seen(self) -> int:
        """How many values came."""
        return self.taken + self.thinned + sum((self.drops or {}).values())


@dataclass(frozen=True, slots=True)
class View:
    """A vehicle at one moment, as far as is known.

    Attributes:
        plan: In force.
        now_ns: ns since the epoch.
        is_time_known: Windows are closed while it is not.
        overlays: What restricts beside the policy.
        stops: The local stops, with who and for how long.
        ended: Grants that have ended here for good, whatever the policy says.
        facts: (grant id, path) → what became of its values.
        frames: Path → frames of its messages, where somebody counted them (a log); else None.
        since: Since when or in what was counted, for the sentences.
    """

    catalogue: Catalogue
    binding: Binding
    policy: Policy | None
    plan: Plan
    now_ns: int
    is_time_known: bool = True
    overlays: Overlays = NO_OVERLAYS
    stops: tuple[StopStatus, ...] = ()
    ended: AbstractSet[str] = frozenset()
    facts: Mapping[tuple[str, str], TakeFacts] | None = None
    frames: Mapping[str, int] | None = None
    since: str = "since the start"


def facts_of(counts: Mapping[tuple[str, str], TakeCounts]) -> dict[tuple[str, str], TakeFacts]:
    """Return what became of the values, from the pipeline's counts."""
    return {
        key: TakeFacts(
            taken=item.taken,
            thinned=item.thinned,
            drops={drop.value: count for drop, count in item.drops.items()},
            last_taken_ns=item.sampled_ns,
            last_thinned_ns=item.thinned_ns,
            last_dropped_ns=item.dropped_ns,
            last_drop=None if item.dropped_for is None else item.dropped_for.value,
        )
        for key, item in counts.items()
    }


def parse_explanation(members: Mapping[str, Any]) -> Explanation:
    """Return what the daemon told.

    Raises:
        AgentError: It is of another version than this program.
    """
    try:
        return Explanation(
            path=members["path"],
            steps=tuple(
                Step(**(step | {"finding": Finding(step["finding"])})) for step in members["steps"]
            ),
            recipients=tuple(members["recipients"]),
            verdict=members["verdict"],
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise AgentError(
            "the agent's explanation is not what this version of consentry expects",
            hint="the running agent is of another version: restart it",
        ) from exc
