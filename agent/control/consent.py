"""The consent in force: which policy, what restricts beside it, which grants are live, which plan.

Rules:
 * What is true is on disk: the policy, restrictions, local stops, tombstones, and what is known
   about time. Where a grant stands, and the plan, follow from these and from now.
 * A policy is verified and compiled before anything changes; it is on disk, and what it ends is
   erased from the spool, before it takes effect. A crash anywhere leaves the old one or the new
   one, and what is left to do is done at the next start.
 * Nothing leads back from revoked or expired: a grant with a tombstone stays ended whatever a
   policy says.
 * An expired policy is zero grants. It still guards against going back.
 * A grant that had no fresh signed contact for its `offline_s` is suspended: its envelopes stay,
   but nothing is collected or published until a newer policy has come (`agent.control.contact`).
 * No document lifts what was stopped at the vehicle (`agent.control.stops`).
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from agent.control import contact
from agent.control.change import Change, Received
from agent.control.livegrant import live_grants, live_state, moved, tombstones
from agent.control.restrictions import Restrictions
from agent.control.signers import Signers
from agent.control.stops import Stops
from agent.core.admission import Admission, InForce, admit, check_revisions
from agent.core.binding import Binding
from agent.core.catalogue import Catalogue
from agent.core.clock import FloorClock, Moment, Reading
from agent.core.expansion import check_owner_signature
from agent.core.explanation import TakeFacts, View
from agent.core.jws import RESTRICT_TYP, TRUST_TYP, Verified, verify_document, verify_policy_jws
from agent.core.model import NS_PER_S
from agent.core.plan import Plan, compile_plan, empty_plan
from agent.core.policy import Grant, Policy, parse_policy
from agent.core.standing import Overlays, Standing, standings
from agent.core.trust import Trust
from agent.edge.store import (
    FLOOR_NS,
    Floor,
    LiveGrant,
    Purged,
    Store,
    StoredPolicy,
)
from agent.errors import PolicyRejected

KEEP_TIME_NS = 60 * NS_PER_S  # How often what is known about time goes to disk.


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
        self._signers = Signers(store, trust)
        self._binding = binding
        self._named_buses = named_buses
        self._clock = FloorClock(store.number(FLOOR_NS))
        self._kept_ns = 0
        self._contact: Moment | None = None
        self._restrictions = Restrictions(store, vehicle)
        self._overlays = Overlays()
        self._known = True  # Whether time was known when the plan was made.
        self._stands: dict[str, Standing] = {}
        self._fell_ns = 0
        self.stops = Stops(store)
        self.policy: Policy | None = None
        self.plan: Plan = empty_plan()

    def moment(self, reading: Reading) -> Moment:
        """Return now as the rules take it."""
        return self._clock.moment(reading)

    def take_step_ns(self) -> int:
        """Return how far the wall clock has jumped since this was asked last, ns."""
        return self._clock.take_step_ns()

    def take_fall_ns(self) -> int:
        """Return how far policies of a higher epoch have lowered the floor since asked last, ns."""
        fell_ns, self._fell_ns = self._fell_ns, 0
        return fell_ns

    @property
    def trust(self) -> Trust:
        """Who may sign, as the trust file or the last trust document says."""
        return self._signers.trust

    @property
    def catalogue(self) -> Catalogue:
        """What scopes mean here."""
        return self._catalogue

    @property
    def standings(self) -> dict[str, Standing]:
        """Where each grant of the policy in force stands, an end included."""
        return dict(self._stands)

    @property
    def overlays(self) -> Overlays:
        """What restricts beside the policy."""
        return self._overlays

    def restore(self, reading: Reading) -> Change:
        """Take up the policy that is on disk.

        Raises:
            PolicyRejected: It cannot be verified any more, because trust file or catalogue changed.
                No grant is live then; what lies in the spool waits for the next policy.
        """
        now = self.moment(reading)
        self.stops.restore(now)
        self._signers.restore()
        self._take_up_policy(now)
        return self.refresh(reading)

    def receive(self, token: bytes, reading: Reading) -> Received:
        """Apply a signed document, all of it or nothing.

        Args:
            token: As it arrived: a policy, a restrict document or a trust document.
            reading: What the clocks say.

        Raises:
            PolicyRejected: It must not be applied; nothing changed.
            StoreError: It could not be written; nothing changed.
        """
        verified = verify_document(token, self.trust)
        if verified.typ == RESTRICT_TYP:
            return self._restrict(verified, reading)
        if verified.typ == TRUST_TYP:
            return self._renew_trust(token, verified, reading)
        return self._follow(token, verified, reading)

    def _follow(self, token: bytes, verified: Verified, reading: Reading) -> Received:
        """Apply a policy."""
        policy, before = parse_policy(verified.payload, self._catalogue), self.policy
        now = self.moment(reading)
        admission = admit(
            policy,
            vehicle=self._vehicle,
            in_force=self._in_force(),
            now_ns=now.now_ns if now.is_known else None,
        )
        if admission is Admission.REPEAT and before is not None:
            return Received(verified.typ, None, before)
        check_revisions(policy, before=before)
        floor_ns = self._clock.floor_ns
        try:
            fell_ns = 0
            if before is not None and policy.epoch > before.epoch:
                fell_ns = self._clock.lower_to(policy.iat_s)
            self._clock.raise_to(policy.iat_s)
            now = self.moment(reading)
            self._check_owner(policy, verified, now)
            fresh = before is None or policy.iat_s > before.iat_s
            change = self._put_in_force(token, policy, now, is_fresh=fresh)
        except BaseException:
            self._clock.floor_ns = floor_ns
            raise
        self._fell_ns += fell_ns
        return Received(verified.typ, change, before)

    def _check_owner(self, policy: Policy, verified: Verified, now: Moment) -> None:
        # A local stop, or want of contact, is nothing that the platform took away and gives back.
        check_owner_signature(
            policy,
            before=self.policy,
            roles=verified.roles,
            trust=self.trust,
            catalogue=self._catalogue,
            now_ns=now.now_ns,
            overlays_before=self._restrictions.in_force(),
            overlays_after=self._restrictions.under(policy),
            ended=frozenset(
                grant.grant_id
                for grant in policy.grants
                if self._store.tombstoned(grant.grant_id) is not None
            ),
        )

    def _restrict(self, verified: Verified, reading: Reading) -> Received:
        """Apply a restrict document."""
        document, admission = self._restrictions.receive(verified.payload, self.moment(reading))
        # Once this is on disk the rest follows, now or at the next start.
        change = self.refresh(reading) if admission is Admission.APPLY else None
        return Received(verified.typ, change, self.policy, document)

    def _renew_trust(self, token: bytes, verified: Verified, reading: Reading) -> Received:
        """Replace the platform's keys; the policy in force must hold under the new ones."""
        before = self.policy
        if not self._signers.renew(token, verified.payload):
            return Received(verified.typ, None, before)
        with suppress(PolicyRejected):  # Nothing is granted then until a policy comes that holds.
            self._take_up_policy(self.moment(reading))
        return Received(verified.typ, self.refresh(reading), before)

    def view(self, reading: Reading, *, facts: Mapping[tuple[str, str], TakeFacts]) -> View:
        """Return the vehicle as `explain` looks at it."""
        now = self.moment(reading)
        grants = self.policy.grants if self.policy is not None else ()
        return View(
            catalogue=self._catalogue,
            binding=self._binding,
            policy=self.policy,
            plan=self.plan,
            now_ns=now.now_ns,
            is_time_known=now.is_known,
            overlays=self._overlays,
            stops=self.stops.status(now),
            ended=frozenset(
                g.grant_id for g in grants if self._store.tombstoned(g.grant_id) is not None
            ),
            facts=facts,
        )

    def is_due(self, now: Moment) -> bool:
        """Whether a grant has begun, ended or lapsed since the plan was made."""
        return (
            not self.plan.from_ns <= now.now_ns < self.plan.until_ns
            or now.is_known != self._known
            or self.stops.is_due(now)
            or contact.lapsed_grants(self.policy, self._contact, now) != self._overlays.lapsed
        )

    def refresh(self, reading: Reading) -> Change:
        """Put in force what time, restrictions and local stops have changed.

        Raises:
            StoreError: The disk refused; the plan stays as it was, and it takes nothing any more.
        """
        now = self.moment(reading)
        lifted = self.stops.end(now)
        overlays = self._current_overlays(
            self._restrictions.in_force(), self.policy, self._contact, now
        )
        stands = dict(standings(self.policy, overlays, now.now_ns)) if self.policy else {}
        before = self._store.live_grants()
        is_valid = self.policy is None or self.policy.is_valid(now.now_ns)
        purged = Purged() if is_valid else self._store.suspend(now.now_ns)
        ended = tombstones(stands, overlays)
        if any(self._store.tombstoned(grave.grant_id) is None for grave in ended):
            # Also under an expired policy, or a clock set back would revive them. There the spool
            # is empty by now, so what `suspend` erased is all that there was.
            over = self._store.end_grants(ended, now.now_ns)
            purged = over if is_valid else purged
        for grant in self._store.live_grants():
            state = live_state(stands.get(grant.grant_id, Standing.PENDING))
            if grant.state != state:
                self._store.set_grant_state(grant.grant_id, state)
        plan = self._compiled(self.policy, stands, now)
        change = self._changed(plan, stands, overlays, now, before, purged)
        return replace(change, lifted=lifted)

    def keep_time(self, now: Moment, *, force: bool = False) -> None:
        """Write what is known about time to disk, once a minute.

        Raises:
            StoreError: The disk refused.
        """
        if not force and abs(now.boot_ns - self._kept_ns) < KEEP_TIME_NS:
            return
        self._kept_ns = now.boot_ns
        if now.is_known:
            self._store.keep_numbers({FLOOR_NS: self._clock.floor_ns})
        self.stops.keep(now)

    def grant(self, grant_id: str) -> Grant | None:
        """Return a grant of the policy in force."""
        grants = self.policy.grants if self.policy is not None else ()
        return next((grant for grant in grants if grant.grant_id == grant_id), None)

    def _take_up_policy(self, now: Moment) -> None:
        """Make the policy on disk the one in force.

        Raises:
            PolicyRejected: It does not hold under the trust and catalogue of now; none is in force.
        """
        stored = self._store.in_force()
        if stored is None or _is_below(stored, self._store.floor()):
            return
        try:
            self.policy = parse_policy(verify_policy_jws(stored.jws, self.trust), self._catalogue)
        except PolicyRejected:
            self.policy = None
            for grant in self._store.live_grants():
                self._store.set_grant_state(grant.grant_id, "pending")
            raise
        self._clock.raise_to(self.policy.iat_s)
        self._contact = contact.kept(self._store, now)

    def _put_in_force(self, token: bytes, policy: Policy, now: Moment, *, is_fresh: bool) -> Change:
        touched = now if is_fresh else self._contact
        overlays = self._current_overlays(self._restrictions.under(policy), policy, touched, now)
        stands = dict(standings(policy, overlays, now.now_ns))
        plan = self._compiled(policy, stands, now)
        before = self._store.live_grants()
        numbers = {FLOOR_NS: self._clock.floor_ns}
        if is_fresh:
            numbers |= contact.numbers(now)
        purged = self._store.apply_policy(
            StoredPolicy(
                jws=token,
                epoch=policy.epoch,
                ver=policy.ver,
                payload_sha256=bytes.fromhex(policy.payload_sha256),
                catalogue_sha256=bytes.fromhex(policy.catalogue_sha256),
                applied_ns=now.now_ns,
            ),
            live_grants(policy, stands, self._catalogue),
            tombstones(stands, overlays),
            now.now_ns,
            taken_over=policy.taken_over,
            numbers=numbers,
        )
        self.policy, self._contact = policy, touched
        return self._changed(plan, stands, overlays, now, before, purged)

    def _changed(  # noqa: PLR0913, PLR0917 - what was, and what is
        self,
        plan: Plan,
        stands: dict[str, Standing],
        overlays: Overlays,
        now: Moment,
        before: tuple[LiveGrant, ...],
        purged: Purged,
    ) -> Change:
        """Make the new standings the ones in force, and say what that changed."""
        after = {grant.grant_id: grant.state for grant in self._store.live_grants()}
        old = self._stands or {grant.grant_id: Standing(grant.state) for grant in before}
        for grant_id in {grant.grant_id for grant in before} - set(after) - set(stands):
            stands[grant_id] = Standing.REVOKED  # The policy does not name it any more.
        self.plan, self._stands, self._overlays, self._known = plan, stands, overlays, now.is_known
        return Change(
            plan=plan,
            ended=tuple(g.grant_id for g in before if g.grant_id not in after),
            halted=tuple(
                g.grant_id
                for g in before
                if g.state == "active" and after.get(g.grant_id) != "active"
            ),
            moved=moved(old, stands, before, self.policy),
            purged=purged,
        )

    def _in_force(self) -> InForce | None:
        stored, floor = self._store.in_force(), self._store.floor()
        if stored is not None and not _is_below(stored, floor):
            return InForce(stored.epoch, stored.ver, stored.payload_sha256.hex())
        if floor is None:
            return None
        return InForce(floor.epoch, floor.ver, floor.payload_sha256)

    def _current_overlays(
        self, restricted: Overlays, policy: Policy | None, touched: Moment | None, now: Moment
    ) -> Overlays:
        return replace(
            restricted,
            stopped=self.stops.grants,
            lapsed=contact.lapsed_grants(policy, touched, now),
        )

    def _compiled(self, policy: Policy | None, stands: dict[str, Standing], now: Moment) -> Plan:
        # A grant with a tombstone is not live, whatever the policy says of it.
        closed = {
            grant_id
            for grant_id, stand in stands.items()
            if stand is not Standing.ACTIVE or self._store.tombstoned(grant_id) is not None
        }
        return compile_plan(
            policy,
            self._catalogue,
            self._binding,
            now_ns=now.now_ns,
            named_buses=self._named_buses,
            suspended=closed,
            time_known=now.is_known,
        )


def _is_below(stored: StoredPolicy, floor: Floor | None) -> bool:
    """Whether a later policy than the stored one was in force, which was lost with its file."""
    return floor is not None and (stored.epoch, stored.ver) < (floor.epoch, floor.ver)
