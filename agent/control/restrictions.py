"""What restrict documents take away beside the policy, until a policy takes them over.

Rules:
 * A restriction is on disk before it counts, and stays known: brought again it changes nothing.
 * Only a policy takes restrictions over, also those that have not come yet.
"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from agent.core.admission import Admission
from agent.core.clock import Moment
from agent.core.policy import Policy
from agent.core.restrict import Restriction, admit_restriction, parse_restriction
from agent.core.standing import Overlays
from agent.edge.store import Store, StoredRestriction


class Restrictions:
    """The restrictions of a vehicle, on disk. Used by the agent thread only."""

    def __init__(self, store: Store, vehicle: str) -> None:
        self._store = store
        self._vehicle = vehicle

    def receive(self, payload: bytes, now: Moment) -> tuple[Restriction, Admission]:
        """Keep a restriction; return it, and whether it takes effect or was known.

        Args:
            payload: Of a restrict document, verified.
            now: When it came.

        Raises:
            PolicyRejected: It must not be applied; nothing changed.
            StoreError: It could not be written; nothing changed.
        """
        document = parse_restriction(payload)
        admission = admit_restriction(
            document,
            vehicle=self._vehicle,
            known=[
                Restriction(self._vehicle, r.jti, r.iat_s, r.mode, r.grants)
                for r in self._store.restrictions()
            ],
            taken_over=self._store.taken_over(),
            now_ns=now.now_ns if now.is_known else None,
        )
        if admission is Admission.APPLY:
            self._store.keep_restriction(
                StoredRestriction(document.jti, document.iat_s, document.mode, document.grants)
            )
        return document, admission

    def in_force(self) -> Overlays:
        """Return what restricts beside the policy in force."""
        return self._without(self._store.taken_over())

    def under(self, policy: Policy) -> Overlays:
        """Return what would restrict beside a policy that is not in force yet."""
        return self._without(self._store.taken_over() | set(policy.taken_over))

    def _without(self, taken_over: AbstractSet[str]) -> Overlays:
        left = [r for r in self._store.restrictions() if r.jti not in taken_over]
        return Overlays(revoked=_named(left, "revoke"), paused=_named(left, "pause"))


def _named(restrictions: Iterable[StoredRestriction], mode: str) -> frozenset[str]:
    return frozenset(g for r in restrictions if r.mode == mode for g in r.grants)
