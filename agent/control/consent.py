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
   but nothing is collected or published until a newer policy has come. Contact is a policy whose
   `iat` rose. Where nobody knows how long ago that was, it was too long ago.
 * A local stop is lifted at the vehicle only, or ends by itself after the time it was set for. That
   time is counted while the board runs, so it may last longer than asked for, never shorter.
"""

import hashlib
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field, replace

from agent.core.admission import Admission, InForce, admit, check_revisions
from agent.core.binding import Binding
from agent.core.catalogue import Catalogue
from agent.core.clock import FloorClock, Moment, Reading, elapsed_ns
from agent.core.expansion import check_owner_signature
from agent.core.explanation import TakeFacts, View
from agent.core.jws import RESTRICT_TYP, TRUST_TYP, Verified, verify_document, verify_policy_jws
from agent.core.model import NS_PER_S
from agent.core.plan import Plan, compile_plan, empty_plan
from agent.core.policy import Grant, Policy, parse_policy
from agent.core.restrict import Restriction, admit_restriction, parse_restriction
from agent.core.standing import EVERY_GRANT, Overlays, Standing, lapsed, standings
from agent.core.status import StopStatus
from agent.core.trust import Trust, parse_trust_document, renewed
from agent.edge.store import (
    GrantState,
    LiveGrant,
    LocalStop,
    Purged,
    Store,
    StoredPolicy,
    StoredRestriction,
    Tombstone,
)
from agent.errors import PolicyRejected

# Names of the numbers that say when the last fresh signed contact was.
_CONTACT = ("contact_ns", "contact_boot_ns", "contact_boot", "contact_known")
_TRUST = "trust"  # The name under which the trust document is kept.
_EARLIER_BOOT = "an earlier boot"
KEEP_TIME_NS = 60 * NS_PER_S  # How often what is known about time goes to disk.


@dataclass(frozen=True, slots=True)
class Change:
    """What a document, a local stop, or the passing of time did.

    Attributes:
        plan: The plan to swap in.
        ended: Ids of grants that are over.
        halted: Ids of grants that may not publish any more: ended, paused or suspended.
        moved: Every grant whose standing changed: its id, its rev, and where it stands now.
        purged: What was erased from the spool.
    """

    plan: Plan
    ended: tuple[str, ...] = ()
    halted: tuple[str, ...] = ()
    moved: tuple[tuple[str, int, Standing], ...] = ()
    purged: Purged = field(default_factory=Purged)


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
        self._trust_file = trust
        self._trust = trust
        self._binding = binding
        self._named_buses = named_buses
        self._clock = FloorClock(store.number("floor_ns"))
        self._kept_ns = 0
        self._contact: Moment | None = None
        self._overlays = Overlays()
        self._known = True  # Whether time was known when the plan was made.
        self._stands: dict[str, Standing] = {}
        self._stop_ends_ns: dict[str, int] = {}  # On CLOCK_BOOTTIME, of the stops that end.
        self._switched = False
        self._switched_ns = 0
        self._fell_ns = 0
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
        for stop in self._store.local_stops():
            if stop.left_ns is not None:
                self._stop_ends_ns[stop.grant_id] = now.boot_ns + stop.left_ns
        self._trust = trust_in_force(self._store, self._trust_file)
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
        verified = verify_document(token, self._trust)
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
            change = self._put_in_force(token, policy, now if fresh else self._contact, now)
        except BaseException:
            self._clock.floor_ns = floor_ns
            raise
        self._fell_ns += fell_ns
        return Received(verified.typ, change, before)

    def _check_owner(self, policy: Policy, verified: Verified, now: Moment) -> None:
        # A local stop, or want of contact, is nothing that the platform took away and gives back.
        over = self._store.taken_over()
        check_owner_signature(
            policy,
            before=self.policy,
            roles=verified.roles,
            trust=self._trust,
            catalogue=self._catalogue,
            now_ns=now.now_ns,
            overlays_before=self._restricted(over),
            overlays_after=self._restricted(over | set(policy.taken_over)),
            ended=frozenset(
                grant.grant_id
                for grant in policy.grants
                if self._store.tombstoned(grant.grant_id) is not None
            ),
        )

    def _restrict(self, verified: Verified, reading: Reading) -> Received:
        """Apply a restrict document."""
        document = parse_restriction(verified.payload)
        now = self.moment(reading)
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
        change = None
        if admission is Admission.APPLY:
            # Once this is on disk the rest follows, now or at the next start.
            self._store.keep_restriction(
                StoredRestriction(document.jti, document.iat_s, document.mode, document.grants)
            )
            change = self.refresh(reading)
        return Received(verified.typ, change, self.policy, document)

    def _renew_trust(self, token: bytes, verified: Verified, reading: Reading) -> Received:
        """Replace the platform's keys; the policy in force must hold under the new ones."""
        document = parse_trust_document(verified.payload)
        before = self.policy
        kept = self._store.document(_TRUST)
        if kept == token:
            return Received(verified.typ, None, before)
        trust = renewed(self._trust_file, document, above=self._trust.ver)
        self._store.keep_document(_TRUST, token)
        self._trust = trust
        with suppress(PolicyRejected):  # Nothing is granted then until a policy comes that holds.
            self._take_up_policy(self.moment(reading))
        return Received(verified.typ, self.refresh(reading), before)

    def stop(self, grant_id: str, who: str, for_ns: int | None, reading: Reading) -> Change:
        """Stop a grant, or EVERY_GRANT, at the vehicle; a stop that holds is never shortened.

        Args:
            grant_id: May name a grant that is not there yet.
            who: For the ledger: `uid 1000`.
            for_ns: How long, counted while the board runs; None: until `resume`.
            reading: What the clocks say.

        Raises:
            StoreError: It could not be written; it does not hold.
        """
        now = self.moment(reading)
        if any(stop.grant_id == grant_id for stop in self._store.local_stops()):
            # Who may stop must not lift, by a short stop, a longer one that others may resume.
            end_ns = self._stop_ends_ns.pop(grant_id, None)
            for_ns = None if end_ns is None or for_ns is None else max(for_ns, end_ns - now.boot_ns)
        if for_ns is not None:
            self._stop_ends_ns[grant_id] = now.boot_ns + for_ns
        self._store.keep_local_stop(LocalStop(grant_id, who, now.now_ns, for_ns))
        return self.refresh(reading)

    def resume(self, grant_id: str, reading: Reading) -> Change | None:
        """Lift the local stop of a grant, or the one of EVERY_GRANT; no other word is touched.

        Returns:
            What it did; None where there was no such stop.

        Raises:
            StoreError: It could not be written; the stop holds.
        """
        if not self._store.lift_local_stop(grant_id):
            return None
        self._stop_ends_ns.pop(grant_id, None)
        return self.refresh(reading)

    def switch(self, reading: Reading, *, is_private: bool) -> Change:
        """Follow the vehicle's privacy switch: a stop of every grant that is not kept on disk."""
        if is_private != self._switched:
            self._switched, self._switched_ns = is_private, self.moment(reading).now_ns
        return self.refresh(reading)

    def stops(self, now: Moment) -> tuple[StopStatus, ...]:
        """Return the stops that hold at the vehicle."""
        found = []
        for stop in self._store.local_stops():
            end_ns = self._stop_ends_ns.get(stop.grant_id)
            left_s = None if end_ns is None else max(0, end_ns - now.boot_ns) // NS_PER_S
            found.append(StopStatus(stop.grant_id, stop.who, stop.since_ns // NS_PER_S, left_s))
        if self._switched:
            found.append(StopStatus(EVERY_GRANT, "switch", self._switched_ns // NS_PER_S, None))
        return tuple(found)

    def view(self, now: Moment, *, facts: Mapping[tuple[str, str], TakeFacts]) -> View:
        """Return the vehicle as `explain` looks at it."""
        grants = self.policy.grants if self.policy is not None else ()
        return View(
            catalogue=self._catalogue,
            binding=self._binding,
            policy=self.policy,
            plan=self.plan,
            now_ns=now.now_ns,
            is_time_known=now.is_known,
            overlays=self._overlays,
            stops=self.stops(now),
            ended=frozenset(
                g.grant_id for g in grants if self._store.tombstoned(g.grant_id) is not None
            ),
            facts=facts,
        )

    @property
    def is_private(self) -> bool:
        """Whether the privacy switch holds everything."""
        return self._switched

    def is_due(self, now: Moment) -> bool:
        """Whether a grant has begun, ended or lapsed since the plan was made."""
        return (
            not self.plan.from_ns <= now.now_ns < self.plan.until_ns
            or now.is_known != self._known
            or any(end_ns <= now.boot_ns for end_ns in self._stop_ends_ns.values())
            or self._lapsed(self.policy, self._contact, now) != self._overlays.lapsed
        )

    def refresh(self, reading: Reading) -> Change:
        """Put in force what time, restrictions and local stops have changed.

        Raises:
            StoreError: The disk refused; the plan stays as it was, and it takes nothing any more.
        """
        now = self.moment(reading)
        for grant_id in [g for g, end in self._stop_ends_ns.items() if end <= now.boot_ns]:
            self._store.lift_local_stop(grant_id)
            del self._stop_ends_ns[grant_id]
        overlays = self._current_overlays(self.policy, self._contact, now)
        stands = dict(standings(self.policy, overlays, now.now_ns)) if self.policy else {}
        before = self._store.live_grants()
        is_valid = self.policy is None or self.policy.is_valid(now.now_ns)
        purged = Purged() if is_valid else self._store.suspend()
        ended = _ended(stands, overlays)
        if any(self._store.tombstoned(grave.grant_id) is None for grave in ended):
            # Also under an expired policy, or a clock set back would revive them. There the spool
            # is empty by now, so what `suspend` erased is all that there was.
            over = self._store.end_grants(ended, now.now_ns)
            purged = over if is_valid else purged
        for grant in self._store.live_grants():
            state = _state(stands.get(grant.grant_id, Standing.PENDING))
            if grant.state != state:
                self._store.set_grant_state(grant.grant_id, state)
        plan = self._compiled(self.policy, stands, now)
        return self._changed(plan, stands, overlays, now, before, purged)

    def keep_time(self, now: Moment, *, force: bool = False) -> None:
        """Write what is known about time to disk, once a minute.

        Raises:
            StoreError: The disk refused.
        """
        if not force and abs(now.boot_ns - self._kept_ns) < KEEP_TIME_NS:
            return
        self._kept_ns = now.boot_ns
        if now.is_known:
            self._store.keep_numbers({"floor_ns": self._clock.floor_ns})
        for stop in self._store.local_stops():
            end_ns = self._stop_ends_ns.get(stop.grant_id)
            if end_ns is not None:
                left_ns = max(0, end_ns - now.boot_ns)
                self._store.keep_local_stop(replace(stop, left_ns=left_ns))

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
        if stored is None:
            return
        try:
            self.policy = parse_policy(verify_policy_jws(stored.jws, self._trust), self._catalogue)
        except PolicyRejected:
            self.policy = None
            for grant in self._store.live_grants():
                self._store.set_grant_state(grant.grant_id, "pending")
            raise
        self._clock.raise_to(self.policy.iat_s)
        self._contact = self._kept_contact(now)

    def _put_in_force(
        self, token: bytes, policy: Policy, contact: Moment | None, now: Moment
    ) -> Change:
        over = self._store.taken_over() | set(policy.taken_over)
        overlays = self._current_overlays(policy, contact, now, over)
        stands = dict(standings(policy, overlays, now.now_ns))
        plan = self._compiled(policy, stands, now)
        before = self._store.live_grants()
        numbers = {"floor_ns": self._clock.floor_ns}
        if contact is now:
            numbers |= zip(
                _CONTACT,
                (now.now_ns, now.boot_ns, _boot_number(now.boot_id), int(now.is_known)),
                strict=True,
            )
        purged = self._store.apply_policy(
            StoredPolicy(
                jws=token,
                epoch=policy.epoch,
                ver=policy.ver,
                payload_sha256=bytes.fromhex(policy.payload_sha256),
                catalogue_sha256=bytes.fromhex(policy.catalogue_sha256),
                applied_ns=now.now_ns,
            ),
            [
                LiveGrant(
                    grant.grant_id,
                    grant.rev,
                    _state(stands[grant.grant_id]),
                    self._classes(grant),
                )
                for grant in policy.grants
                if not stands[grant.grant_id].is_end
            ],
            _ended(stands, overlays),
            now.now_ns,
            taken_over=policy.taken_over,
            numbers=numbers,
        )
        self.policy, self._contact = policy, contact
        return self._changed(plan, stands, overlays, now, before, purged)

    def _classes(self, grant: Grant) -> tuple[str, ...]:
        scopes = self._catalogue.scopes
        return tuple(sorted({scopes[detail.scope].scope_class for detail in grant.details}))

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
        revs = {grant.grant_id: grant.rev for grant in before}
        if self.policy is not None:
            revs |= {grant.grant_id: grant.rev for grant in self.policy.grants}
        moved = tuple(
            (grant_id, revs.get(grant_id, 0), stand)
            for grant_id, stand in stands.items()
            if old.get(grant_id) is not stand and (grant_id in old or not stand.is_end)
        )
        self.plan, self._stands, self._overlays, self._known = plan, stands, overlays, now.is_known
        return Change(
            plan=plan,
            ended=tuple(g.grant_id for g in before if g.grant_id not in after),
            halted=tuple(
                g.grant_id
                for g in before
                if g.state == "active" and after.get(g.grant_id) != "active"
            ),
            moved=moved,
            purged=purged,
        )

    def _in_force(self) -> InForce | None:
        stored = self._store.in_force()
        if stored is None:
            return None
        return InForce(stored.epoch, stored.ver, stored.payload_sha256.hex())

    def _current_overlays(
        self,
        policy: Policy | None,
        contact: Moment | None,
        now: Moment,
        over: AbstractSet[str] | None = None,
    ) -> Overlays:
        stopped = {stop.grant_id for stop in self._store.local_stops()}
        if self._switched:
            stopped.add(EVERY_GRANT)
        return replace(
            self._restricted(self._store.taken_over() if over is None else over),
            stopped=frozenset(stopped),
            lapsed=self._lapsed(policy, contact, now),
        )

    def _restricted(self, over: AbstractSet[str]) -> Overlays:
        """Return what restrict documents take away that are not among those taken over."""
        restrictions = [r for r in self._store.restrictions() if r.jti not in over]
        return Overlays(
            revoked=_named(restrictions, "revoke"), paused=_named(restrictions, "pause")
        )

    def _lapsed(self, policy: Policy | None, contact: Moment | None, now: Moment) -> frozenset[str]:
        if policy is None:
            return frozenset()
        age_ns = None if contact is None else elapsed_ns(contact, now)
        if age_ns is None and now.is_known:
            # It came after it was signed: the worst case that is still certain.
            age_ns = max(0, now.now_ns - policy.iat_s * NS_PER_S)
        return lapsed(policy.grants, age_ns)

    def _kept_contact(self, now: Moment) -> Moment | None:
        """Return when the last fresh contact was, from what is on disk."""
        now_ns, boot_ns, boot, is_known = (self._store.number(name) for name in _CONTACT)
        if now_ns is None or boot_ns is None:
            return None
        boot_id = now.boot_id if boot == _boot_number(now.boot_id) else _EARLIER_BOOT
        return Moment(now_ns, boot_ns, boot_id, bool(is_known))

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


def trust_in_force(store: Store, trust_file: Trust) -> Trust:
    """Return the trust of a trust file, or what the trust document on disk has made of it."""
    token = store.document(_TRUST)
    if token is None:
        return trust_file
    try:
        return renewed(trust_file, parse_trust_document(verify_document(token, trust_file).payload))
    except PolicyRejected:
        # A newer file, or one with another root, is the word of whoever stands at the vehicle.
        return trust_file


def _state(stand: Standing) -> GrantState:
    """Return the store's word for a grant that has not ended."""
    if stand is Standing.ACTIVE:
        return "active"
    return "paused" if stand is Standing.PAUSED else "pending"


def _named(restrictions: Iterable[StoredRestriction], mode: str) -> frozenset[str]:
    return frozenset(g for r in restrictions if r.mode == mode for g in r.grants)


def _ended(stands: dict[str, Standing], overlays: Overlays) -> list[Tombstone]:
    """Return an end for every grant that has come to one, also for those not known here yet."""
    ends = {
        grant_id: Tombstone(grant_id, "expired" if stand is Standing.EXPIRED else "revoked")
        for grant_id, stand in stands.items()
        if stand.is_end
    }
    for grant_id in overlays.revoked - {EVERY_GRANT}:
        ends.setdefault(grant_id, Tombstone(grant_id, "revoked"))
    return list(ends.values())


def _boot_number(boot_id: str) -> int:
    """Return a number for the name of a boot, to be kept among the store's numbers."""
    return int.from_bytes(hashlib.sha256(boot_id.encode()).digest()[:7])
