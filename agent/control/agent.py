"""The agent lane: one thread takes events from one queue and owns everything durable.

    closed batches      encode, seal, append to the spool, let the readers forget their frames
    a document          verify, compile, persist and purge, swap the plan, cancel what is in flight,
                        write it into the ledger, acknowledge
    a delivery          remove the row
    what is asked       at the vehicle: stop, resume, look, explain, hand over a document
    a tick              what has begun, ended, lapsed or outlived its retention

Rules:
 * Because one thread owns the store, a revocation and an append cannot race: a batch that was
   closed under an older consent comes after the policy and is refused by the store.
 * A policy message is acknowledged to the broker only when its outcome is on disk. If the disk
   refuses it the process ends: it may have been a revocation, and the broker brings it again.
 * A grant begins and ends at its second, not at the next tick.
 * The disk refusing a batch loses that batch, counted and logged, never the consent.
"""

import logging
import queue
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from agent.control.consent import Consent
from agent.control.documents import Documents
from agent.control.enactment import Enactment
from agent.control.journal import Journal
from agent.control.keys import tell_certificate
from agent.control.local import Local
from agent.control.publisher import ERASE_ROWS, Publisher
from agent.control.report import Surroundings, health, status_report, told_soon
from agent.control.sealer import Sealer
from agent.core.admission import Admission
from agent.core.clock import Moment, Reading
from agent.core.cose import DeviceKey
from agent.core.model import NS_PER_S, Batch, Place
from agent.core.plan import Plan
from agent.core.status import StatusReport
from agent.edge.control_socket import Ask
from agent.edge.store import Store
from agent.edge.uplink import (
    Connected,
    Delivered,
    Disconnected,
    PolicyArrived,
    Refused,
    Uplink,
    UplinkEvent,
)
from agent.errors import PolicyRejected

TICK_S = 1.0
LEAST_WAIT_S = 0.01  # Before a moment at which a grant begins or ends.
HEALTH_S = 60.0  # How often the counters go to the platform,
HEALTH_CHANGED_S = 5.0  # and how soon again at the earliest, where a bus has come or gone.

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batches:
    """Closed batches from the capture lane.

    Attributes:
        places: Up to where the frames of each bus are in them, or in nothing.
    """

    batches: list[Batch]
    places: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True)
class Swapped:
    """The capture lane has put a plan in force; what was open before it came ahead of this."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class Switched:
    """The vehicle's privacy switch has turned."""

    is_private: bool


Event = Batches | Swapped | Switched | Ask | UplinkEvent


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
        journal: Journal,
        swap: Callable[[Plan], None],
        clock: Callable[[], Reading],
        look: Callable[[], Surroundings],
        announce: Callable[[tuple[Place, ...], int], None] = lambda *_: None,
        settle: Callable[[tuple[Place, ...]], None] = lambda _: None,
        taken_under: Callable[[Plan], None] = lambda _: None,
    ) -> None:
        """Put the lane together.

        Args:
            vehicle: The vehicle's pseudonym.
            device: Signs envelopes and acknowledgements.
            store: Open; owned by this lane's thread.
            consent: Over the same store.
            uplink: Its events are to be posted here.
            journal: Over the open ledger.
            swap: Puts a plan in force in the capture lane.
            clock: What the machine's clocks say.
            look: How the other lanes are, for whoever asks at the vehicle.
            announce: Told, before batches are stored, up to where their frames came, and the row
                that the spool has when they are.
            settle: Told up to where frames are stored, or let go.
            taken_under: Told the plan under which all was taken that is not settled.
        """
        self._vehicle = vehicle
        self._device = device
        self._store = store
        self._consent = consent
        self._uplink = uplink
        self._journal = journal
        self._clock = clock
        self._look = look
        self._announce = announce
        self._settle = settle
        self._taken_under = taken_under
        self._told_ns: int | None = None  # When the counters were published last,
        self._told_standing: object = None  # and how buses and lanes were then.
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._ticked_ns = 0
        self._certificate_ends_s: int | None = None  # Of the certificate told last.
        self.counts: Counter[str] = Counter()
        self.turns = 0
        self._enactment = Enactment(
            swap=swap, uplink=uplink, journal=journal, device=device, now=self._now
        )
        self._documents = Documents(
            vehicle=vehicle,
            device=device,
            store=store,
            consent=consent,
            uplink=uplink,
            journal=journal,
            enactment=self._enactment,
            clock=clock,
        )
        self.local = Local(
            consent=consent,
            documents=self._documents,
            enactment=self._enactment,
            journal=journal,
            clock=clock,
            look=look,
            status=self._status,
        )
        self._sealer = Sealer(
            vehicle=vehicle,
            device=device,
            store=store,
            consent=consent,
            journal=journal,
            counts=self.counts,
        )
        self._publisher = Publisher(
            vehicle=vehicle,
            device=device,
            store=store,
            consent=consent,
            uplink=uplink,
            journal=journal,
            counts=self.counts,
        )

    def post(self, event: Event | None) -> None:
        """Hand an event to the lane; None only wakes it."""
        self._events.put(event)

    def restore(self) -> None:
        """Take up the policy on disk; without a usable one nothing is taken."""
        reading = self._clock()
        try:
            change = self._consent.restore(reading)
        except PolicyRejected as exc:
            _log.error(
                "policy on disk unusable", extra={"reason": exc.reason, "error": exc.message}
            )
            change = self._consent.refresh(reading)
        self._enactment.enact(change, "time")

    def turn(self, timeout_s: float = TICK_S) -> None:
        """Handle the events that lie in the queue, waiting for one at most `timeout_s`.

        Raises:
            StoreError: The disk refused what consent needs; the process must not go on.
        """
        events = self._take(min(timeout_s, self._until_due_s()))
        arrived = [event for event in events if isinstance(event, Delivered)]
        self._publisher.settle(arrived, self._now().now_ns)
        if len(arrived) < len(events):
            self._publisher.erase()
        for event in _joined(events):
            self._handle(event)
        now = self._now()
        if abs(now.boot_ns - self._ticked_ns) >= TICK_S * NS_PER_S or self._consent.is_due(now):
            self._publisher.erase()
            self._tick(now)
        self._publisher.publish(now.now_ns, self._consent.catalogue)
        # Behind it: the network sends while the disk writes.
        self._publisher.erase(at_least=ERASE_ROWS)
        self.turns += 1

    def install(self, token: bytes) -> Admission:
        """Apply a document that did not come over MQTT.

        Raises:
            PolicyRejected: Nothing changed.
            StoreError: It could not be written; nothing changed.
        """
        return self._documents.obey(token, self._clock()).admission

    def tell_keys(self) -> None:
        """Write into the ledger which keys have changed since it was told last."""
        self._documents.tell_keys(self._now().now_ns)

    def finish(self) -> None:
        """Seal and store the batches that still lie in the queue; nothing else is done."""
        for event in _joined(self._take(0.0)):
            if isinstance(event, Batches):
                self._keep(event)
        self._publisher.erase()
        now = self._now()
        self._consent.keep_time(now, force=True)
        self._journal.roll_up(now.now_ns)

    def _handle(self, event: Event) -> None:
        match event:
            case Batches():
                self._keep(event)
            case Swapped(plan):
                self._taken_under(plan)
            case Switched(is_private):
                self.local.switch(is_private=is_private)
            case Ask():
                self.local.answer(event)
            case PolicyArrived(data, token):
                self._documents.arrived(data)
                self._publisher.saw_policy()
                self._uplink.acknowledge(token)
            case Connected():
                self._publisher.connected()
                self._told_ns = None
            case Disconnected():
                self._publisher.disconnected(event, self._now().now_ns)
            case Refused():
                self._publisher.refused(event)

    def _keep(self, event: Batches) -> None:
        """Seal and store; a kill in between leaves what no row stands for with the readers."""
        if event.batches:
            self._announce(event.places, self._store.last_row + 1)
            self._sealer.keep(event.batches, self._now().now_ns)
        self._settle(event.places)

    def _until_due_s(self) -> float:
        """Return how long nothing is due, but no shorter than a wait that costs nothing."""
        left_s = (self._consent.plan.until_ns - self._now().now_ns) / NS_PER_S
        if self._publisher.begins_in_s > 0:
            left_s = min(left_s, self._publisher.begins_in_s)
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

    def _now(self) -> Moment:
        return self._consent.moment(self._clock())

    def _tick(self, now: Moment) -> None:
        self._ticked_ns = now.boot_ns
        if self._consent.is_due(now):
            self._refresh()
        if stepped_ns := self._consent.take_step_ns():
            _log.warning("clock stepped", extra={"by_s": stepped_ns // NS_PER_S})
            self._journal.note(now.now_ns, "clock-stepped", by=stepped_ns // NS_PER_S)
        self._consent.keep_time(now)
        expired = self._store.expire(now.now_ns)
        self.counts["expired"] += sum(tally.envelopes for tally in expired.values())
        for grant_id, tally in expired.items():
            self._journal.count(
                now.now_ns,
                "expired",
                grant=grant_id,
                envelopes=tally.envelopes,
                bytes=tally.size_bytes,
            )
        for grant_id, tally in self._store.take_evicted().items():
            self.counts["evicted"] += tally.envelopes
            self._journal.count(
                now.now_ns,
                "evicted",
                grant=grant_id,
                envelopes=tally.envelopes,
                bytes=tally.size_bytes,
            )
        self._tell_certificate(now)
        self._journal.damaged(now.now_ns, self._store.take_damage())
        self._journal.tick(now.now_ns, self._device)
        self.counts["ledger_lost"] = self._journal.lost
        self._tell_health(now)

    def _refresh(self) -> None:
        """Put in force what time has changed, and give a receipt for what that ended."""
        reading = self._clock()
        version = self._documents.version()
        change = self._consent.refresh(reading)
        self._enactment.enact(change, "time")
        for grant_id in change.ended:
            _log.info("grant expired", extra={"grant": grant_id})
        if change.ended or change.purged.erased:
            self._documents.answer_ended(change, version, reading)

    def _tell_certificate(self, now: Moment) -> None:
        ends_s = self._uplink.certificate_ends_s
        if ends_s is not None and ends_s != self._certificate_ends_s:
            self._certificate_ends_s = ends_s
            tell_certificate(self._store, self._journal, ends_s=ends_s, now_ns=now.now_ns)

    def _tell_health(self, now: Moment) -> None:
        """Publish the counters: when connected, once a minute, soon after a bus or lane changed."""
        if not self._publisher.is_up:
            return
        told_ns, passed_ns = self._told_ns, now.boot_ns - (self._told_ns or 0)
        if told_ns is not None and passed_ns < HEALTH_CHANGED_S * NS_PER_S:
            return
        standing = told_soon(self._look())
        is_due = (
            told_ns is None or passed_ns >= HEALTH_S * NS_PER_S or standing != self._told_standing
        )
        if is_due and self._uplink.publish_health(health(self._status())):
            self._told_ns, self._told_standing = now.boot_ns, standing

    def _status(self) -> StatusReport:
        return status_report(
            self._vehicle,
            self._consent,
            self._store,
            self._uplink,
            self._journal,
            now=self._now(),
            counts=self.counts,
            is_up=self._publisher.is_up,
            around=self._look(),
        )


def _joined(events: Iterable[Event]) -> list[Event]:
    """Return the events, those in a row that bring batches as one: they share an fsync."""
    joined: list[Event] = []
    for event in events:
        if isinstance(event, Batches) and joined and isinstance(joined[-1], Batches):
            last = joined[-1]
            joined[-1] = Batches([*last.batches, *event.batches], (*last.places, *event.places))
        else:
            joined.append(event)
    return joined
