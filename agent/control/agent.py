"""The agent lane: one thread takes events from one queue and owns everything durable.

    a closed batch      encode, seal, append to the spool
    a policy            verify, compile, persist and purge, swap the plan, cancel what is in flight,
                        acknowledge
    a delivery          remove the row
    a tick              what has begun, ended, lapsed or outlived its retention

Rules:
 * Because one thread owns the store, a revocation and an append cannot race: a batch that was
   closed under an older consent comes after the policy and is refused by the store.
 * On a new connection the policy comes first: nothing is published until the broker's retained
   policy was looked at, or has not come for a moment.
 * A policy message is acknowledged to the broker only when its outcome is on disk. If the disk
   refuses it the process ends: it may have been a revocation, and the broker brings it again.
 * A grant begins and ends at its second, not at the next tick.
 * The disk refusing a batch loses that batch, counted and logged, never the consent.
"""

import hashlib
import logging
import math
import queue
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from agent.control.consent import Change, Consent
from agent.core.ack import Ack, sign_ack
from agent.core.admission import Admission
from agent.core.clock import Moment, Reading
from agent.core.codec import CODEC_ID, encode
from agent.core.cose import DeviceKey
from agent.core.jws import unsafe_unverified_payload
from agent.core.model import NS_PER_MS, NS_PER_S, Batch
from agent.core.plan import Plan
from agent.core.seal import Header, header_times, recipient_key, seal
from agent.edge.store import Purged, Store
from agent.edge.uplink import (
    Connected,
    Delivered,
    Disconnected,
    PolicyArrived,
    Refused,
    Uplink,
    UplinkEvent,
)
from agent.errors import PolicyRejected, StoreError

TICK_S = 1.0
LEAST_WAIT_S = 0.01  # Before a moment at which a grant begins or ends.
POLICY_FIRST_S = 2.0  # How long a new connection waits for the retained policy before it publishes.
POLICY_NEXT_S = 0.2  # And behind a policy for another: a session brings all that it missed.
DEFAULT_RETENTION_S = 30 * 86_400  # Where a grant names none.
EMPTY_LEDGER = (0, hashlib.sha256(b"").digest())  # RFC 9162 2.1.1: the hash of an empty tree.

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batches:
    """Closed batches from the capture lane."""

    batches: list[Batch]


Event = Batches | UplinkEvent


class Agent:
    """The agent lane. `post` may be called from any thread, everything else from its own."""

    def __init__(  # noqa: PLR0913 - the lane's parts, by keyword
        self,
        *,
        vehicle: str,
        device: DeviceKey,
        store: Store,
        consent: Consent,
        uplink: Uplink,
        swap: Callable[[Plan], None],
        clock: Callable[[], Reading],
    ) -> None:
        """Put the lane together.

        Args:
            vehicle: The vehicle's pseudonym.
            device: Signs envelopes and acknowledgements.
            store: Open; owned by this lane's thread.
            consent: Over the same store.
            uplink: Its events are to be posted here.
            swap: Puts a plan in force in the capture lane.
            clock: What the machine's clocks say.
        """
        self._vehicle = vehicle
        self._device = device
        self._store = store
        self._consent = consent
        self._uplink = uplink
        self._swap = swap
        self._clock = clock
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._publish_after_s = math.inf  # Until there is a connection.
        self._saw_policy = False  # On this connection.
        self._last_ack: bytes | None = None
        self._ticked_ns = 0
        self.counts: Counter[str] = Counter()
        self.turns = 0

    def post(self, event: Event | None) -> None:
        """Hand an event to the lane; None only wakes it."""
        self._events.put(event)

    def restore(self) -> None:
        """Take up the policy on disk; without a usable one nothing is taken."""
        try:
            change = self._consent.restore(self._clock())
        except PolicyRejected as exc:
            _log.error(
                "policy on disk unusable", extra={"reason": exc.reason, "error": exc.message}
            )
            return
        self._enact(change)

    def turn(self, timeout_s: float = TICK_S) -> None:
        """Handle the events that lie in the queue, waiting for one at most `timeout_s`.

        Raises:
            StoreError: The disk refused what consent needs; the process must not go on.
        """
        events = self._take(min(timeout_s, self._until_due_s()))
        delivered = [event.row_id for event in events if isinstance(event, Delivered)]
        if delivered:
            self._store.delivered(delivered)
            self.counts["delivered"] += len(delivered)
        for event in events:
            self._handle(event)
        now = self._now()
        if abs(now.boot_ns - self._ticked_ns) >= TICK_S * NS_PER_S or self._consent.is_due(now):
            self._tick(now)
        self._publish(now.now_ns)
        self.turns += 1

    def install(self, token: bytes) -> Admission:
        """Apply a policy that did not come over MQTT.

        Raises:
            PolicyRejected: Nothing changed.
            StoreError: It could not be written; nothing changed.
        """
        admission, change = self._consent.receive(token, self._clock())
        if change is not None:
            self._enact(change)
        return admission

    def stop(self, grant_id: str, who: str, for_ns: int | None) -> None:
        """Stop a grant, or every one (`*`), at the vehicle; see `Consent.stop`."""
        self._enact(self._consent.stop(grant_id, who, for_ns, self._clock()))

    def resume(self, grant_id: str) -> None:
        """Lift the local stop of a grant, or the one of every grant."""
        self._enact(self._consent.resume(grant_id, self._clock()))

    def finish(self) -> None:
        """Seal and store the batches that still lie in the queue; nothing else is done."""
        for event in self._take(0.0):
            if isinstance(event, Batches):
                for batch in event.batches:
                    self._keep(batch)

    def _handle(self, event: Event) -> None:
        match event:
            case Batches(batches):
                for batch in batches:
                    self._keep(batch)
            case PolicyArrived(data, token):
                self._policy(data)
                # A session brings it before we hear of the connection.
                self._saw_policy = True
                if self._publish_after_s < math.inf:
                    self._publish_after_s = time.monotonic() + POLICY_NEXT_S
                self._uplink.acknowledge(token)
            case Connected():
                self._connected()
            case Disconnected(reason):
                # Not only at the next `Connected`: the connection may be up before we hear.
                self._publish_after_s, self._saw_policy = math.inf, False
                _log.info("uplink down", extra={"reason": reason})
            case Refused(row_id, reason_code):
                self.counts["refused"] += 1
                _log.warning(
                    "broker refused an envelope",
                    extra={"row": row_id, "reason_code": reason_code},
                )

    def _until_due_s(self) -> float:
        """Return how long nothing is due, but no shorter than a wait that costs nothing."""
        left_s = (self._consent.plan.until_ns - self._now().now_ns) / NS_PER_S
        publish_in_s = self._publish_after_s - time.monotonic()
        if publish_in_s > 0:
            left_s = min(left_s, publish_in_s)
        return max(LEAST_WAIT_S, left_s)

    def _take(self, timeout_s: float) -> list[Event]:
        events: list[Event] = []
        try:
            event = self._events.get(block=timeout_s > 0, timeout=timeout_s)
            while True:
                if event is not None:
                    events.append(event)
                event = self._events.get_nowait()
        except queue.Empty:
            return events

    def _keep(self, batch: Batch) -> None:
        """Seal a batch to its recipient and append it to the spool."""
        policy, grant = self._consent.policy, self._consent.grant(batch.grant_id)
        if (
            policy is None
            or grant is None
            or (grant.rev, grant.recipient_id) != (batch.rev, batch.recipient)
        ):
            self.counts["dropped_ended"] += 1
            return
        recipient = policy.recipients[batch.recipient].keys[0]
        plaintext = encode(batch)
        from_s, to_s = header_times(batch)
        now_ns = self._now().now_ns

        def sealed(n: int) -> bytes:
            header = Header(
                vehicle=self._vehicle,
                device_kid=self._device.kid,
                grant_id=batch.grant_id,
                rev=batch.rev,
                n=n,
                epoch=policy.epoch,
                ver=policy.ver,
                from_s=from_s,
                to_s=to_s,
                codec=CODEC_ID,
                ledger_size=EMPTY_LEDGER[0],
                ledger_root=EMPTY_LEDGER[1],
            )
            return seal(plaintext, header, recipient=recipient_key(recipient), device=self._device)

        try:
            self._store.append(
                batch.grant_id,
                batch.rev,
                recipient=batch.recipient,
                created_ns=now_ns,
                expires_ns=now_ns + (grant.retention_s or DEFAULT_RETENTION_S) * NS_PER_S,
                seal=sealed,
                once=self._once_paths(batch),
            )
        except StoreError as exc:
            self.counts["dropped_store"] += 1
            _log.warning("batch dropped", extra={"grant": batch.grant_id, "error": exc.message})
            return
        self.counts["sealed"] += 1
        self.counts["samples"] += batch.count

    def _once_paths(self, batch: Batch) -> tuple[str, ...]:
        once = {
            take.path
            for take in self._consent.plan.takes
            if take.once and take.grant_id == batch.grant_id
        }
        return tuple(column.path for column in batch.columns if column.path in once)

    def _policy(self, data: bytes) -> None:
        """Apply a policy that arrived, and answer."""
        reading = self._clock()
        before = self._policy_version()
        change: Change | None = None
        try:
            _, change = self._consent.receive(data, reading)
            outcome, reason = ("applied" if change else "repeated"), ""
        except PolicyRejected as exc:
            outcome, reason = "refused", exc.reason
            _log.warning("policy refused", extra={"reason": exc.reason, "error": exc.message})
        if change is not None:
            self._enact(change)
            _log.info(
                "policy applied",
                extra={
                    "epoch": self._policy_version()[0],
                    "version": self._policy_version()[1],
                    "live": len(change.plan.live),
                    "ended": len(change.ended),
                    "purged": sum(t.envelopes for t in change.purged.erased.values()),
                },
            )
        self._answer(payload_digest(data), outcome, reason, before, change, reading)

    def _answer(  # noqa: PLR0913, PLR0917 - the members of the answer
        self,
        digest: bytes,
        outcome: str,
        reason: str,
        before: tuple[int, int],
        change: Change | None,
        arrived: Reading,
    ) -> None:
        epoch, ver = self._policy_version()
        skipped = self._consent.plan.skipped if outcome != "refused" else ()
        purged = change.purged if change is not None else Purged()
        now = self._clock()
        ack = Ack(
            vehicle=self._vehicle,
            payload_sha256=digest,
            epoch=epoch,
            ver=ver,
            before=before,
            outcome=outcome,
            reason=reason,
            time_s=self._consent.moment(now).now_ns // NS_PER_S,
            counter=self._store.next_counter("ack"),
            ledger_size=EMPTY_LEDGER[0],
            ledger_root=EMPTY_LEDGER[1],
            skipped=tuple(sorted({item.path for item in skipped})),
            erased={g: (t.envelopes, t.size_bytes) for g, t in purged.erased.items()},
            scrubbed=purged.scrubbed,
            latency_ms=max(0, now.boot_ns - arrived.boot_ns) // NS_PER_MS,
        )
        self._last_ack = sign_ack(ack, self._device)
        self._uplink.publish_ack(self._last_ack)

    def _policy_version(self) -> tuple[int, int]:
        stored = self._store.in_force()
        return (0, 0) if stored is None else (stored.epoch, stored.ver)

    def _enact(self, change: Change) -> None:
        """Swap the plan, then settle what is in flight of grants that may not publish any more."""
        self._swap(change.plan)
        for grant_id in change.halted:
            self._uplink.cancel(grant_id)

    def _connected(self) -> None:
        _log.info("uplink up")
        wait_s = POLICY_NEXT_S if self._saw_policy else POLICY_FIRST_S
        self._publish_after_s = time.monotonic() + wait_s
        self._uplink.publish_status("online")

    def _now(self) -> Moment:
        return self._consent.moment(self._clock())

    def _tick(self, now: Moment) -> None:
        self._ticked_ns = now.boot_ns
        if self._consent.is_due(now):
            self._refresh()
        if stepped_ns := self._consent.take_step_ns():
            _log.warning("clock stepped", extra={"by_s": stepped_ns // NS_PER_S})
        self._consent.keep_time(now)
        expired = self._store.expire(now.now_ns)
        self.counts["expired"] += sum(tally.envelopes for tally in expired.values())

    def _refresh(self) -> None:
        """Put in force what time has changed, and give a receipt for what that ended."""
        reading = self._clock()
        version = self._policy_version()
        change = self._consent.refresh(reading)
        self._enact(change)
        for grant_id in change.ended:
            _log.info("grant expired", extra={"grant": grant_id})
        if change.ended or change.purged.erased:
            digest = (
                bytes.fromhex(self._consent.policy.payload_sha256)
                if self._consent.policy
                else bytes(32)
            )
            self._answer(digest, "ended", "", version, change, reading)

    def _publish(self, now_ns: int) -> None:
        if time.monotonic() < self._publish_after_s:
            return
        room = self._uplink.room()
        if room <= 0:
            return
        for row in self._store.pending(room, exclude=self._uplink.in_flight()):
            self._uplink.publish(
                row.row_id,
                recipient=row.recipient,
                grant_id=row.grant_id,
                n=row.n,
                envelope=row.envelope,
                expiry_s=max(1, (row.expires_ns - now_ns) // NS_PER_S),
            )


def payload_digest(token: bytes) -> bytes:
    """Return the SHA-256 that names a policy in its answer: of its payload.

    Of what is no token, and so has no payload, it is that of the bytes as they came.
    """
    try:
        return hashlib.sha256(unsafe_unverified_payload(token)).digest()
    except PolicyRejected:
        return hashlib.sha256(token).digest()
