"""The consent in force: which policy, which grants are live, and the plan that follows from them.

Rules:
 * A policy is verified and compiled before anything changes; it is on disk, and what it ends is
   erased from the spool, before it takes effect. A crash anywhere leaves the old one or the new
   one.
 * Nothing leads back from revoked or expired: a grant with a tombstone stays ended whatever a
   policy says.
 * An expired policy is zero grants. It still guards against going back.
 * A grant that had no fresh signed contact for its `offline_s` is suspended: its envelopes stay,
   but nothing is collected or published until a newer policy has come.
"""

from dataclasses import dataclass

from agent.core.admission import Admission, InForce, admit, check_revisions
from agent.core.binding import Binding
from agent.core.catalogue import Catalogue
from agent.core.jws import Trust, verify_policy_jws
from agent.core.model import NS_PER_S
from agent.core.plan import Plan, compile_plan, empty_plan
from agent.core.policy import Grant, GrantState, Policy, parse_policy
from agent.edge.store import LiveGrant, Purged, Store, StoredPolicy, Tombstone
from agent.errors import PolicyRejected


@dataclass(frozen=True, slots=True)
class Change:
    """What a new policy, or the passing of time, did.

    Attributes:
        plan: The plan to swap in.
        ended: Ids of grants that are over.
        halted: Ids of grants that may not publish any more: ended, paused or suspended.
        purged: What was erased from the spool.
    """

    plan: Plan
    ended: tuple[str, ...]
    halted: tuple[str, ...]
    purged: Purged


class Consent:
    """Keeps store and plan in step with the policy. Used by the agent thread only."""

    def __init__(  # noqa: PLR0913 - what a policy is held against, by keyword
        self,
        store: Store,
        *,
        vehicle: str,
        catalogue: Catalogue,
        trust: Trust,
        binding: Binding,
        named_buses: tuple[str, ...],
    ) -> None:
        self._store = store
        self._vehicle = vehicle
        self._catalogue = catalogue
        self._trust = trust
        self._binding = binding
        self._named_buses = named_buses
        self._applied_ns = 0
        self._suspended: frozenset[str] = frozenset()
        self.policy: Policy | None = None
        self.plan: Plan = empty_plan()

    def restore(self, now_ns: int) -> Change:
        """Take up the policy that is on disk.

        Raises:
            PolicyRejected: It cannot be verified any more, because trust file or catalogue changed.
                No grant is live then; what lies in the spool waits for the next policy.
        """
        stored = self._store.in_force()
        if stored is not None:
            try:
                payload = verify_policy_jws(stored.jws, self._trust)
                self.policy = parse_policy(payload, self._catalogue)
            except PolicyRejected:
                self._halt_all()
                raise
            self._applied_ns = stored.applied_ns
        return self.refresh(now_ns)

    def receive(self, token: bytes, now_ns: int) -> tuple[Admission, Change | None]:
        """Apply a signed policy, all of it or nothing.

        Args:
            token: The JWS as it arrived.
            now_ns: ns since the epoch.

        Returns:
            (APPLY, what it did), or (REPEAT, None) for the policy that is in force already.

        Raises:
            PolicyRejected: It must not be applied; nothing changed.
            StoreError: It could not be written; nothing changed.
        """
        policy = parse_policy(verify_policy_jws(token, self._trust), self._catalogue)
        admission = admit(policy, vehicle=self._vehicle, in_force=self._in_force(), now_ns=now_ns)
        if admission is Admission.REPEAT and self.policy is not None:
            return admission, None
        check_revisions(policy, before=self.policy)
        live, ended = self._sorted_out(policy, now_ns, applied_ns=now_ns)
        plan, suspended = self._compiled(policy, now_ns, applied_ns=now_ns)
        before = {grant.grant_id for grant in self._store.live_grants()}
        purged = self._store.apply_policy(
            StoredPolicy(
                jws=token,
                epoch=policy.epoch,
                ver=policy.ver,
                payload_sha256=bytes.fromhex(policy.payload_sha256),
                catalogue_sha256=bytes.fromhex(policy.catalogue_sha256),
                applied_ns=now_ns,
            ),
            live,
            ended,
            now_ns,
        )
        self.policy, self._applied_ns = policy, now_ns
        self.plan, self._suspended = plan, suspended
        active = {grant.grant_id for grant in live if grant.state == "active"}
        gone = before - {grant.grant_id for grant in live}
        return admission, Change(
            plan=self.plan,
            ended=tuple(sorted(gone)),
            halted=tuple(sorted(before - active)),
            purged=purged,
        )

    def is_due(self, now_ns: int) -> bool:
        """Whether a grant has begun, ended or lapsed since the plan was made."""
        return (
            not self.plan.from_ns <= now_ns < self.plan.until_ns
            or _lapsed(self.policy, now_ns, self._applied_ns) != self._suspended
        )

    def refresh(self, now_ns: int) -> Change:
        """Put in force what the passing of time has changed.

        Raises:
            StoreError: The disk refused; the plan stays as it was, and it takes nothing any more.
        """
        before = self._store.live_grants()
        purged = Purged()
        if self.policy is not None:
            live, ended = self._sorted_out(self.policy, now_ns, applied_ns=self._applied_ns)
            if not self.policy.is_valid(now_ns):
                purged = self._store.suspend()
            if {g.grant_id for g in before} & {t.grant_id for t in ended}:
                # Also under an expired policy, or a clock set back would revive them. There the
                # spool is empty by now, so what `suspend` erased is all that there was.
                over = self._store.end_grants(ended, now_ns)
                purged = over if self.policy.is_valid(now_ns) else purged
            known = {grant.grant_id: grant.state for grant in self._store.live_grants()}
            for grant in live:
                if known.get(grant.grant_id, grant.state) != grant.state:
                    self._store.set_grant_state(grant.grant_id, grant.state)
        self.plan, self._suspended = self._compiled(
            self.policy, now_ns, applied_ns=self._applied_ns
        )
        after = {grant.grant_id: grant.state for grant in self._store.live_grants()}
        return Change(
            plan=self.plan,
            ended=tuple(g.grant_id for g in before if g.grant_id not in after),
            halted=tuple(
                g.grant_id
                for g in before
                if g.state == "active" and after.get(g.grant_id) != "active"
            ),
            purged=purged,
        )

    def grant(self, grant_id: str) -> Grant | None:
        """Return a grant of the policy in force."""
        grants = self.policy.grants if self.policy is not None else ()
        return next((grant for grant in grants if grant.grant_id == grant_id), None)

    def _in_force(self) -> InForce | None:
        stored = self._store.in_force()
        if stored is None:
            return None
        return InForce(stored.epoch, stored.ver, stored.payload_sha256.hex())

    def _sorted_out(
        self, policy: Policy, now_ns: int, *, applied_ns: int
    ) -> tuple[list[LiveGrant], list[Tombstone]]:
        """Tell the grants that have not ended, with their states, from those that have."""
        live: list[LiveGrant] = []
        ended: list[Tombstone] = []
        for grant in policy.grants:
            if grant.state is GrantState.REVOKED:
                ended.append(Tombstone(grant.grant_id, "revoked"))
            elif grant.exp_s is not None and grant.exp_s * NS_PER_S <= now_ns:
                ended.append(Tombstone(grant.grant_id, "expired"))
            elif grant.state is GrantState.PAUSED or _lapses_ns(grant, applied_ns) <= now_ns:
                live.append(LiveGrant(grant.grant_id, grant.rev, "paused"))
            elif policy.is_valid(now_ns) and grant.is_live(now_ns):
                live.append(LiveGrant(grant.grant_id, grant.rev, "active"))
            else:
                live.append(LiveGrant(grant.grant_id, grant.rev, "pending"))
        return live, ended

    def _compiled(
        self, policy: Policy | None, now_ns: int, *, applied_ns: int
    ) -> tuple[Plan, frozenset[str]]:
        """Return the plan of a policy, and the ids of the grants that are suspended in it."""
        suspended = _lapsed(policy, now_ns, applied_ns)
        # A grant with a tombstone is not live, whatever the policy says of it.
        buried = {
            grant.grant_id
            for grant in (policy.grants if policy else ())
            if self._store.tombstoned(grant.grant_id) is not None
        }
        plan = compile_plan(
            policy,
            self._catalogue,
            self._binding,
            now_ns=now_ns,
            named_buses=self._named_buses,
            suspended=suspended | buried,
        )
        return plan, suspended

    def _halt_all(self) -> None:
        for grant in self._store.live_grants():
            self._store.set_grant_state(grant.grant_id, "pending")


def _lapsed(policy: Policy | None, now_ns: int, applied_ns: int) -> frozenset[str]:
    grants = policy.grants if policy is not None else ()
    return frozenset(g.grant_id for g in grants if _lapses_ns(g, applied_ns) <= now_ns)


def _lapses_ns(grant: Grant, applied_ns: int) -> int:
    """Return when a grant is suspended without newer contact, ns since the epoch."""
    if grant.offline_s is None:
        return 1 << 100
    return applied_ns + grant.offline_s * NS_PER_S
