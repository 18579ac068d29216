"""The daemon: wires the three lanes, takes up changed files, ends the lanes in order.

    readers -> capture lane -> agent lane <-> network lane -> broker

Rules:
 * `agent.parts` has read every file before anything is opened; it is what `check` runs.
 * If a lane dies the process ends with a failure, and systemd starts it again under the policy on
   disk.
 * Closing seals and stores the open batches within `STOP_S`, however full the bus is and whatever
   the broker does; nothing waits for the broker, the spool does.
 * Changed files are held against the policy in force before anything changes. Then what is made of
   them is new (consent, agent lane, readers of changed buses), and what carries something over
   stays: the store, the capture lane with its open batches, the connection to the broker.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Self

from agent.buses import Buses, source_of
from agent.config import Bus, Config
from agent.control import Agent, Batches, Consent, Journal, Surroundings, Switched
from agent.control.agent import Event, Swapped
from agent.control.recovery import BY_DAMAGE, recover
from agent.control.signers import trust_in_force
from agent.core.admission import Admission
from agent.core.binding import Binding
from agent.core.canfilter import CanFilter, message_filter
from agent.core.clock import FloorClock, Reading
from agent.core.explanation import facts_of
from agent.core.jws import verify_policy_jws
from agent.core.model import NS_PER_S, Batch, Place
from agent.core.obd import questions
from agent.core.pipeline import Pipeline, phase_ns
from agent.core.plan import Plan
from agent.core.policy import parse_policy
from agent.core.standing import EVERY_GRANT, Standing
from agent.core.status import CaptureStatus, LaneStatus
from agent.core.switch import SignalSwitch
from agent.edge.capture import Capture
from agent.edge.clock import SystemClock
from agent.edge.control_socket import ControlSocket
from agent.edge.ledger import Ledger, read_entries
from agent.edge.socketcan import RING_FRAMES
from agent.edge.store import FLOOR_NS, Store
from agent.edge.switch import FileSwitch
from agent.edge.systemd import Unit
from agent.edge.uplink import Connected, Uplink
from agent.errors import AgentError, ConfigError
from agent.parts import Parts
from agent.settings import spool_limits
from agent.watch import Lane, Movement

if TYPE_CHECKING:
    from agent.edge.obd import ObdPoller

STOP_S = 5.0
UPLINK_STOP_S = 1.0  # Its share: to say goodbye. What is on its way stays in the spool.
STORE_STOP_S = 1.0  # Left for what is sealed and stored at last.
# Sections that only a restart takes up.
_FIXED = ("state", "batch", "spool", "uplink", "time", "obd", "control", "switch")

Clock = Callable[[], Reading]

_log = logging.getLogger(__name__)


class Daemon:
    """The three lanes of one vehicle. A context manager: leaving it ends them in order."""

    def __init__(
        self,
        config: Config,
        parts: Parts,
        *,
        clock: Clock | None = None,
        unit: Unit | None = None,
    ) -> None:
        """Open the store and build the lanes; `start` begins.

        Args:
            config: The configuration.
            parts: Its files, from `agent.parts`.
            clock: What the clocks say, the frames' times being on its wall clock; None: the
                machine's.
            unit: Keeps the CAN sockets over a restart; None: nobody does.

        Raises:
            StoreError: The state directory cannot be used.
        """
        self._config = config
        self._store = Store.open(
            config.state.directory,
            limits=spool_limits(config),
            newest_first=config.uplink.order == "newest",
        )
        self._clock = clock = clock or SystemClock(config.time.synchronised_file)
        self._is_open = True
        now = clock()
        self._started_s = now.wall_ns // NS_PER_S
        self._ledger = self._open_ledger(now)
        max_age_ns = int(config.batch.max_age_s * NS_PER_S)
        pipeline = Pipeline(
            max_age_ns=max_age_ns,
            phase_ns=phase_ns(config.vehicle.id, max_age_ns),
            max_samples=config.batch.max_samples,
            once_taken=self._store.once_taken(),
        )
        self.capture = Capture(
            pipeline,
            on_batches=self._on_batches,
            clock=lambda: clock().wall_ns,
            on_swap=lambda plan: self._post(Swapped(plan)),
            max_open_frames=RING_FRAMES * 3 // 4,
            switch=_signal_switch(config, parts),
            on_switch=self._on_switch,
        )
        self.uplink = Uplink(parts.uplink, on_event=self._post)
        self._journal = Journal(self._ledger, publish=self.uplink.publish_ledger_head)
        self._movement = Movement()  # Of the other lanes; the control lane has one of this one.
        self._door = threading.Lock()  # Guards which agent lane gets an event.
        self._held: list[Event] | None = None  # What comes while the agent lane is made anew.
        self._obd = self._poller()
        self.buses = Buses(
            config.bus,
            capture=self.capture,
            last_row=self._store.last_row,
            clock=lambda: clock().wall_ns,
            unit=unit or Unit(None),
        )
        self._recover(now)  # Before anything is made of what the store says, such as the time.
        self._wire(parts)
        self._control = ControlSocket(
            config.control.socket,
            permissions=parts.permissions,
            on_ask=self._post,
            group_id=parts.control_group,
            on_turn=partial(self._look_at_agent, Movement()),
        )
        self._switch = _file_switch(config, self._on_switch)
        self._note_start(now, config, parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close("asked" if kind is None or kind is KeyboardInterrupt else "failed")

    @property
    def plan(self) -> Plan:
        """The plan in force."""
        return self._consent.plan

    @property
    def binding(self) -> Binding:
        """What the vehicle can give."""
        return self._binding

    def install(self, token: bytes) -> Admission:
        """Apply a signed policy from a file before the lanes start."""
        return self.agent.install(token)

    @property
    def status(self) -> str:
        """How it is in a few words, for people."""
        policy = self._consent.policy
        version = f"policy {policy.epoch}.{policy.ver}" if policy is not None else "no policy"
        return f"{version}, {len(self.plan.live)} grants live, {len(self.buses)} buses"

    def start(self) -> None:
        """Take up the policy on disk, then start network, capture and readers."""
        self._control.start()  # Whoever wants to stop it can, before anything is taken.
        if self._switch is not None:
            self._switch.start()
        self.agent.restore()
        self._tell_keys()
        self.agent.turn(0.0)  # What the switch says counts before the first frame.
        self._let_in(self.plan)
        self.uplink.start()
        self.capture.start()
        self.buses.start()
        if self._obd is not None:
            self._obd.start()

    def run(self, stop: threading.Event) -> None:
        """Be the agent lane until `stop` is set.

        Raises:
            AgentError: Another lane died; its traceback is in the log.
        """
        while not stop.is_set():
            self.turn()

    def turn(self) -> None:
        """Go once round the agent lane.

        Raises:
            AgentError: Another lane died; its traceback is in the log.
        """
        self.agent.turn()
        lanes = self.lanes()
        self._movement.look(lanes, now_s=time.monotonic())
        dead = [lane.name for lane in lanes if not lane.is_alive]
        if dead:
            raise AgentError(
                f"lane {', '.join(dead)} died",
                hint="the log above says why; systemd starts the agent again",
            )

    def wake(self) -> None:
        """Let `turn` end now."""
        self.agent.post(None)

    def lanes(self) -> list[Lane]:
        """Return how each lane but the agent's own is."""
        return [
            Lane("capture", self.capture.is_alive, self.capture.turns),
            Lane("network", self.uplink.is_alive, self.uplink.last_moved_ns),
            Lane("control", self._control.is_alive, self._control.turns),
            *([Lane("switch", self._switch.is_alive, self._switch.turns)] if self._switch else []),
            *self.buses.lanes(),
            *(Lane("obd", o.is_alive, o.turns) for o in (self._obd,) if o is not None),
        ]

    def reload(self, config: Config, parts: Parts) -> None:
        """Take up changed files between two turns; no frame, sample or policy is lost.

        Args:
            config: As it stands on disk now.
            parts: Its files, from `agent.parts`.

        Raises:
            ConfigError: A setting changed that only a restart can take up; nothing changed.
            PolicyRejected: The policy in force does not hold under the new trust file or catalogue;
                nothing changed.
        """
        _check_fixed(self._config, config)
        stored = self._store.in_force()
        if stored is not None:
            trust = trust_in_force(self._store, parts.trust)
            parse_policy(verify_policy_jws(stored.jws, trust), parts.catalogue)
        self._config = config
        self._renew(parts)
        self._journal.note(
            self._consent.moment(self._clock()).now_ns,
            "reloaded",
            **_digests(config, parts),
        )
        self._tell_keys()
        self.buses.follow(config.bus)

    def close(self, reason: str = "asked") -> None:
        """End readers, capture, network; seal and store what was open. Twice is harmless.

        Args:
            reason: A word for the ledger.
        """
        if not self._is_open:
            return
        self._is_open = False
        until_s = time.monotonic() + STOP_S - UPLINK_STOP_S - STORE_STOP_S
        self._control.close()
        if self._switch is not None:
            self._switch.close()
        if self._obd is not None:
            self._obd.close()
        self.buses.close()
        self.capture.close(max(STORE_STOP_S, until_s - time.monotonic()))
        if self.capture.is_alive:
            _log.error("capture did not end")
        self.agent.finish()
        now_ns = self._consent.moment(self._clock()).now_ns
        self._journal.note(now_ns, "stopped", reason=reason)
        self._journal.checkpoint(now_ns, self._device)
        self.uplink.close(UPLINK_STOP_S)
        self._ledger.close()
        self._store.close()

    def _wire(self, parts: Parts) -> None:
        """Make of the files what is made anew when they change."""
        self._binding = parts.binding
        self._device = parts.device
        switch = parts.switch
        self._extra: dict[str, tuple[CanFilter, ...]] = (
            {}
            if switch is None
            else {switch.bus: (message_filter(switch.can_id, is_j1939=switch.is_j1939),)}
        )
        self._consent = Consent(
            self._store,
            vehicle=self._config.vehicle.id,
            catalogue=parts.catalogue,
            trust=parts.trust,
            binding=parts.binding,
            named_buses=parts.named_buses,
        )
        self.agent = Agent(
            vehicle=self._config.vehicle.id,
            device=parts.device,
            store=self._store,
            consent=self._consent,
            uplink=self.uplink,
            journal=self._journal,
            swap=self._swap,
            clock=self._clock,
            look=self._look,
            announce=self.buses.announce,
            settle=self.buses.settle,
            taken_under=self.buses.taken_under,
        )

    def _open_ledger(self, now: Reading) -> Ledger:
        try:
            return Ledger.open(
                self._config.state.directory / "ledger",
                vehicle=self._config.vehicle.id,
                boot_id=now.boot_id,
                now_ns=now.wall_ns,
            )
        except BaseException:
            self._store.close()
            raise

    def _recover(self, now: Reading) -> None:
        """Give a consent that was begun anew what the ledger knows of the one before."""
        moment = FloorClock(self._store.number(FLOOR_NS)).moment(now)
        entries = (entry for _, entry in read_entries(self._config.state.directory / "ledger"))
        if recover(self._store, entries, moment):
            self._journal.stopped(moment.now_ns, EVERY_GRANT, by=BY_DAMAGE, for_ns=None)

    def _note_start(self, now: Reading, config: Config, parts: Parts) -> None:
        """Write into log and ledger how this start finds things."""
        now_ns = self._consent.moment(now).now_ns
        if not self._ledger.ended_cleanly:
            self._journal.note(now_ns, "crash-noticed", reason="no-stop-before-start")
        if self._store.set_aside is not None:
            _log.error("state was corrupt", extra={"set_aside": self._store.set_aside.name})
        if self._ledger.set_aside is not None:
            _log.error("ledger was damaged", extra={"set_aside": self._ledger.set_aside.name})
        self._journal.damaged(now_ns, self._store.take_damage())
        self._journal.note(
            now_ns,
            "started",
            version=version("consentry"),
            **_digests(config, parts),
            boot=now.boot_id,
        )

    def _tell_keys(self) -> None:
        self.agent.tell_keys()
        self._journal.checkpoint(self._consent.moment(self._clock()).now_ns, self._device)

    def _look(self) -> Surroundings:
        """Return how the other lanes are."""
        return Surroundings(
            version=version("consentry"),
            started_s=self._started_s,
            lanes=tuple(self._lane_status(lane) for lane in self.lanes()),
            buses=self.buses.status(),
            facts=lambda: facts_of(self.capture.counts()),
            capture=CaptureStatus(self.capture.frames, self.capture.overrun, self.capture.given_up),
        )

    def _lane_status(self, lane: Lane) -> LaneStatus:
        still_s = self._movement.still_s(lane.name, now_s=time.monotonic())
        now_s = self._clock().wall_ns / NS_PER_S
        return LaneStatus(
            lane.name, lane.is_alive, None if still_s is None else int(now_s - still_s)
        )

    def _look_at_agent(self, movement: Movement) -> None:
        movement.look([Lane("agent", True, self.agent.turns)], now_s=time.monotonic())

    def _on_switch(self, is_private: bool) -> None:  # noqa: FBT001 - the switches' callback
        self._post(Switched(is_private))

    def _renew(self, parts: Parts) -> None:
        """Make the agent lane anew; what comes meanwhile is held for the new one."""
        with self._door:
            self._held = []
        before = self.agent
        before.turn(0.0)  # What came before is handled under the old files.
        before.finish()
        stops = self._consent.stops
        self._wire(parts)
        self.agent.counts.update(before.counts)
        self._consent.stops.take_over(stops)  # Before a plan is in force again.
        self.agent.restore()
        if self.uplink.publish_status("online"):
            self.agent.post(Connected())  # The new lane has not heard of it.
        with self._door:
            for event in self._held:
                self.agent.post(event)
            self._held = None

    def _swap(self, plan: Plan) -> None:
        """Put a plan in force: in what is asked, the capture lane, the filters of the buses."""
        if self._obd is not None:
            self._obd.ask(questions(plan, self._binding, self._obd.name), plan.until_ns)
        self.capture.swap(plan)
        self._let_in(plan)

    def _let_in(self, plan: Plan) -> None:
        """Set the filters; the privacy switch is heard while it holds a grant, or may come to."""
        is_held = self._consent.stops.is_private and (
            Standing.PAUSED in self._consent.standings.values()
        )
        self.buses.let_in(plan, self._extra if plan.live or is_held else {})

    def _poller(self) -> "ObdPoller | None":
        """Return what asks on a bus; what can send is not even loaded without `obd.poll`."""
        if not self._config.obd.poll:
            return None
        from agent.edge.obd import ObdPoller  # noqa: PLC0415 - as above

        bus = _asked_bus(self._config)
        assert bus is not None, "the configuration was checked"
        return ObdPoller(
            bus.name,
            interface=bus.interface,
            channel=bus.channel,
            options=bus.options,
            max_per_s=self._config.obd.max_per_s,
            given=self._store.once_taken(),
            clock=lambda: self._clock().wall_ns,
        )

    def _on_batches(self, batches: list[Batch], places: tuple[Place, ...]) -> None:
        if self._obd is not None:
            self._obd.give(batches)
        self._post(Batches(batches, places))

    def _post(self, event: Event) -> None:
        with self._door:
            if self._held is None:
                self.agent.post(event)
            else:
                self._held.append(event)


def _digests(config: Config, parts: Parts) -> dict[str, str]:
    """Return what the ledger tells of the files."""
    return {
        "config": hashlib.sha256(repr(config).encode()).hexdigest(),
        "catalogue": parts.catalogue.sha256,
        "sources": parts.sources,
    }


def _signal_switch(config: Config, parts: Parts) -> SignalSwitch | None:
    if parts.switch is None:
        return None
    return SignalSwitch(
        parts.switch,
        private_on_fault=config.switch.on_fault == "stop",
        max_age_ns=int(config.switch.max_age_s * NS_PER_S),
    )


def _file_switch(config: Config, on_switch: Callable[[bool], None]) -> FileSwitch | None:
    switch = config.switch
    if switch.file is None:
        return None
    return FileSwitch(
        switch.file,
        active=switch.active,
        inactive=switch.inactive,
        private_on_fault=switch.on_fault == "stop",
        poll_s=switch.poll_s,
        on_switch=on_switch,
    )


def _asked_bus(config: Config) -> Bus | None:
    return next((bus for bus in config.bus if config.obd.poll and bus.name == config.obd.bus), None)


def _check_fixed(before: Config, after: Config) -> None:
    """Raise ConfigError where a setting changed that only a restart can take up."""
    changed = [name for name in _FIXED if getattr(before, name) != getattr(after, name)]
    asked = [bus and source_of(bus) for bus in (_asked_bus(before), _asked_bus(after))]
    if "obd" not in changed and asked[0] != asked[1]:
        changed.append("the bus of obd")
    if before.vehicle.id != after.vehicle.id:
        changed.append("vehicle.id")
    if changed:
        raise ConfigError(
            f"{', '.join(changed)} changed, which a reload does not take up",
            hint="systemctl restart consentry: frames wait in the kernel meanwhile",
        )
