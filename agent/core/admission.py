"""May this verified policy follow the one in force?

Rules:
 * It is for this vehicle; the topic it came by proves nothing.
 * (epoch, ver) only ever rises, epoch first.
 * The same version with the same payload is a repetition: acknowledge again, change nothing.
   The same version with another payload means that the platform, or who holds its key, tells two
   stories: the first stays.
 * A policy from the future of a synchronised clock is refused, so that one wrong date does not
   lift the floor of time for good.
 * A grant that says something else than before has a higher `rev`.
 * Expiry is not checked: an expired policy grants nothing, but still guards against rollback.
"""

from dataclasses import dataclass, fields
from enum import Enum, auto
from types import MappingProxyType

from agent.core.model import NS_PER_S
from agent.core.policy import Grant, GrantState, Policy
from agent.errors import PolicyRejected, Rollback, WrongVehicle

# All that a grant says, but for its name, revision and state; and the policy's words for it.
_TERMS = tuple(f.name for f in fields(Grant) if f.name not in {"grant_id", "rev", "state"})
_MEMBERS = MappingProxyType(
    {"recipient_id": "recipient", "nbf_s": "nbf", "exp_s": "exp", "retention_s": "retention"}
)
MAX_IAT_AHEAD_NS = 86_400 * NS_PER_S


@dataclass(frozen=True, slots=True)
class InForce:
    """The version that is on disk. `payload_sha256` in hexadecimal, of the decoded payload."""

    epoch: int
    ver: int
    payload_sha256: str


class Admission(Enum):
    """What to do with a policy that is not refused."""

    APPLY = auto()
    REPEAT = auto()


def admit(
    policy: Policy, *, vehicle: str, in_force: InForce | None, now_ns: int | None
) -> Admission:
    """Return whether the policy takes effect or repeats what is in force.

    Args:
        policy: Parsed from a verified payload.
        vehicle: This vehicle's pseudonym.
        in_force: What was applied last, expired or not; None before the first policy.
        now_ns: A synchronised clock, ns since the epoch; None while there is none.

    Raises:
        WrongVehicle: `aud` is another vehicle.
        Rollback: The version is lower than the one in force.
        PolicyRejected: With reason `equivocation` or `future`.
    """
    if policy.aud != vehicle:
        raise WrongVehicle(
            f"the policy is for vehicle {policy.aud}, this is {vehicle}", reason="vehicle"
        )
    if in_force is not None:
        offered, applied = (policy.epoch, policy.ver), (in_force.epoch, in_force.ver)
        if offered < applied:
            raise Rollback(
                f"policy version {_version(offered)} is older than {_version(applied)}, "
                "which is in force",
                reason="rollback",
                hint="raise ver above the one in force and sign again",
            )
        if offered == applied:
            if policy.payload_sha256 != in_force.payload_sha256:
                raise PolicyRejected(
                    f"policy version {_version(offered)} is in force with another content",
                    reason="equivocation",
                    hint="raise ver for every change; if you did not change it, find out who "
                    "signed the other one",
                )
            return Admission.REPEAT
    if now_ns is not None and policy.iat_s * NS_PER_S > now_ns + MAX_IAT_AHEAD_NS:
        raise PolicyRejected(
            "the policy's iat is more than a day ahead of this vehicle's clock",
            reason="future",
            hint="compare the clocks of platform and vehicle",
        )
    return Admission.APPLY


def check_revisions(policy: Policy, *, before: Policy | None) -> None:
    """Raise where a grant says something else than before under the same revision.

    What lies in the spool was collected and sealed under (grant, revision): one that is used again
    would send it under a consent that it was not collected under. That holds for everything that a
    grant says, its consent record included, but for its `state`: a pause keeps what is stored.

    Raises:
        PolicyRejected: With reason `rev`; names what changed.
    """
    known = {grant.grant_id: grant for grant in (before.grants if before is not None else ())}
    for grant in policy.grants:
        old = known.get(grant.grant_id)
        if old is None or GrantState.REVOKED in (grant.state, old.state):
            continue
        changed = [
            _MEMBERS.get(term, term)
            for term in _TERMS
            if getattr(grant, term) != getattr(old, term)
        ]
        if grant.rev < old.rev or (grant.rev == old.rev and changed):
            raise PolicyRejected(
                f"grant {grant.grant_id} changed ({', '.join(changed) or 'rev'}), but its rev is "
                f"{grant.rev} after {old.rev}",
                reason="rev",
                hint="raise rev with every change of a grant but that of its state",
            )


def _version(pair: tuple[int, int]) -> str:
    return f"{pair[0]}.{pair[1]}"
