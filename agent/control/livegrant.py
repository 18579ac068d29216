"""Where grants stand, in the store's words: which are live, which have ended, which have moved.

Rules:
 * A grant is live in the store until it has ended; only an active one may have new envelopes.
 * An end is told of every grant that a restriction names, also of one that is not known here yet.
"""

from collections.abc import Iterable, Mapping

from agent.core.catalogue import Catalogue
from agent.core.policy import Grant, Policy
from agent.core.standing import EVERY_GRANT, Overlays, Standing
from agent.edge.store import GrantState, LiveGrant, Tombstone


def live_grants(
    policy: Policy, stands: Mapping[str, Standing], catalogue: Catalogue
) -> list[LiveGrant]:
    """Return the grants of a policy that have not ended."""
    return [
        LiveGrant(
            grant.grant_id,
            grant.rev,
            live_state(stands[grant.grant_id]),
            _classes(grant, catalogue),
        )
        for grant in policy.grants
        if not stands[grant.grant_id].is_end
    ]


def live_state(stand: Standing) -> GrantState:
    """Return the store's word for a grant that has not ended."""
    if stand is Standing.ACTIVE:
        return "active"
    return "paused" if stand is Standing.PAUSED else "pending"


def tombstones(stands: Mapping[str, Standing], overlays: Overlays) -> list[Tombstone]:
    """Return an end for every grant that has come to one, also for those not known here yet."""
    ends = {
        grant_id: Tombstone(grant_id, "expired" if stand is Standing.EXPIRED else "revoked")
        for grant_id, stand in stands.items()
        if stand.is_end
    }
    for grant_id in overlays.revoked - {EVERY_GRANT}:
        ends.setdefault(grant_id, Tombstone(grant_id, "revoked"))
    return list(ends.values())


def moved(
    old: Mapping[str, Standing],
    stands: Mapping[str, Standing],
    before: Iterable[LiveGrant],
    policy: Policy | None,
) -> tuple[tuple[str, int, Standing], ...]:
    """Return every grant whose standing changed: its id, its rev, and where it stands now.

    Args:
        old: Where each stood. A grant that came with an end has not moved.
        stands: Where each stands.
        before: The grants that were live: revs of those that the policy does not name.
        policy: In force, or None.
    """
    revs = {grant.grant_id: grant.rev for grant in before}
    if policy is not None:
        revs |= {grant.grant_id: grant.rev for grant in policy.grants}
    return tuple(
        (grant_id, revs.get(grant_id, 0), stand)
        for grant_id, stand in stands.items()
        if old.get(grant_id) is not stand and (grant_id in old or not stand.is_end)
    )


def _classes(grant: Grant, catalogue: Catalogue) -> tuple[str, ...]:
    return tuple(sorted({catalogue.scopes[detail.scope].scope_class for detail in grant.details}))
