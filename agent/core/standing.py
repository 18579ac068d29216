"""Where each grant stands: what the policy, restrictions, local stops and time leave of it.

    pending → active ⇄ paused → revoked | expired

Rules:
 * The strictest word wins: an end over a pause, a pause over whatever allows.
 * A restriction and a local stop can only take away. Nothing here turns an end back; that a grant
   which has ended once stays ended is the store's part (tombstones).
 * An expired policy is zero grants: what has not ended is pending.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum

from agent.core.model import NS_PER_S
from agent.core.policy import Grant, GrantState, Policy

EVERY_GRANT = "*"


class Standing(StrEnum):
    """Where a grant stands."""

    PENDING = "pending"
    ACTIVE = "active"
    PAUSED = "paused"
    REVOKED = "revoked"
    EXPIRED = "expired"

    @property
    def is_end(self) -> bool:
        """Whether nothing leads back from here."""
        return self in (Standing.REVOKED, Standing.EXPIRED)


@dataclass(frozen=True, slots=True)
class Overlays:
    """What restricts beside the policy; grant ids, EVERY_GRANT for all of them.

    Attributes:
        revoked: By a restrict document that no policy has taken over.
        paused: By such a document.
        stopped: At the vehicle.
        lapsed: No fresh signed contact for the grant's `offline_s`.
    """

    revoked: AbstractSet[str] = frozenset()
    paused: AbstractSet[str] = frozenset()
    stopped: AbstractSet[str] = frozenset()
    lapsed: AbstractSet[str] = frozenset()

    def revokes(self, grant_id: str) -> bool:
        """Whether the grant is revoked beside the policy."""
        return _names(self.revoked, grant_id)

    def holds(self, grant_id: str) -> bool:
        """Whether the grant must pause."""
        return any(_names(which, grant_id) for which in (self.paused, self.stopped, self.lapsed))


NO_OVERLAYS = Overlays()


def standing(grant: Grant, policy: Policy, overlays: Overlays, now_ns: int) -> Standing:
    """Return where a grant of a policy stands now.

    Args:
        grant: One of the policy's.
        policy: In force.
        overlays: What restricts beside it.
        now_ns: ns since the epoch.
    """
    if grant.state is GrantState.REVOKED or overlays.revokes(grant.grant_id):
        return Standing.REVOKED
    if grant.exp_s is not None and grant.exp_s * NS_PER_S <= now_ns:
        return Standing.EXPIRED
    if grant.state is GrantState.PAUSED or overlays.holds(grant.grant_id):
        return Standing.PAUSED
    if policy.is_valid(now_ns) and grant.is_live(now_ns):
        return Standing.ACTIVE
    return Standing.PENDING


def standings(policy: Policy, overlays: Overlays, now_ns: int) -> Mapping[str, Standing]:
    """Return grant id → where it stands, in the policy's order."""
    return {g.grant_id: standing(g, policy, overlays, now_ns) for g in policy.grants}


def lapsed(grants: Iterable[Grant], elapsed_ns: int | None) -> frozenset[str]:
    """Return the grants that must pause for want of fresh signed contact.

    Args:
        grants: Of the policy in force.
        elapsed_ns: Since the last contact; None where nobody knows, which is too long for any.
    """
    return frozenset(
        grant.grant_id
        for grant in grants
        if grant.offline_s is not None
        and (elapsed_ns is None or elapsed_ns >= grant.offline_s * NS_PER_S)
    )


def _names(which: AbstractSet[str], grant_id: str) -> bool:
    return grant_id in which or EVERY_GRANT in which
