"""The daemon: wires the three lanes, keeps watch over them, ends them in order.

    readers -> capture lane -> agent lane <-> network lane -> broker

Rules:
 * `agent.parts` has read every file before anything is opened; it is what `check` runs.
 * If a lane dies the process ends with a failure, and systemd starts it again under the policy on
   disk.
 * SIGTERM and SIGINT close the open batches, seal and store them, then end; nothing waits for the
   broker, the spool does.
"""

import logging
import signal
import threading
from collections.abc import Callable
from typing import Self

from agent.config import Config
from agent.control import Agent, Batches, Consent
from agent.core.admission import Admission
from agent.core.binding import Binding
from agent.core.clock import Reading
from agent.core.model import NS_PER_S, Batch
from agent.core.pipeline import Pipeline
from agent.core.plan import Plan
from agent.edge.capture import Capture
from agent.edge.clock import SystemClock
from agent.edge.pycan import PyCanReader
from agent.edge.store import Store
from agent.edge.uplink import Uplink, UplinkEvent
from agent.errors import AgentError
from agent.parts import Parts, load_parts

Clock = Callable[[], Reading]

_log = logging.getLogger(__name__)


class Daemon:
    """The three lanes of one vehicle. A context manager: leaving it ends them in order."""

    def __init__(self, config: Config, parts: Parts, *, clock: Clock | None = None) -> None:
        """Open the store and build the lanes; `start` begins.

        Args:
            config: The configuration.
            parts: Its files, from `agent.parts`.
            clock: What the clocks say, the frames' times being on its wall clock; None: the
                machine's.

        Raises:
            StoreError: The state directory cannot be used.
        """
        self._store = Store.open(config.state.directory)
        clock = clock or SystemClock(config.time.synchronised_file)
        self._binding = parts.binding
        self._consent = Consent(
            self._store,
            vehicle=config.vehicle.id,
            catalogue=parts.catalogue,
            trust=parts.trust,
            binding=parts.binding,
            named_buses=parts.named_buses,
        )
        pipeline = Pipeline(
            max_age_ns=int(config.batch.max_age_s * NS_PER_S),
            max_samples=config.batch.max_samples,
            once_taken=self._store.once_taken(),
        )
        self.capture = Capture(pipeline, on_batches=self._on_batches, clock=lambda: clock().wall_ns)
        self.uplink = Uplink(parts.uplink, on_event=self._on_event)
        self.agent = Agent(
            vehicle=config.vehicle.id,
            device=parts.device,
            store=self._store,
            consent=self._consent,
            uplink=self.uplink,
            swap=self.capture.swap,
            clock=clock,
        )
        self._readers = [
            PyCanReader(
                bus.name,
                interface=bus.interface,
                channel=bus.channel,
                options=bus.options,
                sink=self.capture.put,
            )
            for bus in config.bus
        ]
        if self._store.set_aside is not None:
            _log.error("state was corrupt", extra={"set_aside": self._store.set_aside.name})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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

    def start(self) -> None:
        """Take up the policy on disk, then start network, capture and readers."""
        self.agent.restore()
        self.uplink.start()
        self.capture.start()
        for reader in self._readers:
            reader.start()

    def run(self, stop: threading.Event) -> None:
        """Be the agent lane until `stop` is set.

        Raises:
            AgentError: Another lane died; its traceback is in the log.
        """
        while not stop.is_set():
            self.agent.turn()
            dead = [lane for lane, alive in self._lanes() if not alive]
            if dead:
                raise AgentError(
                    f"lane {', '.join(dead)} died",
                    hint="the log above says why; systemd starts the agent again",
                )

    def wake(self) -> None:
        """Let `run` look at its stop flag now."""
        self.agent.post(None)

    def close(self) -> None:
        """End readers, capture, network; seal and store what was open. Twice is harmless."""
        for reader in self._readers:
            reader.close()
        self.capture.close()
        self.agent.finish()
        self.uplink.close()
        self._store.close()

    def _lanes(self) -> list[tuple[str, bool]]:
        return [
            ("capture", self.capture.is_alive),
            ("network", self.uplink.is_alive),
            *((f"bus {reader.name}", reader.is_alive) for reader in self._readers),
        ]

    def _on_batches(self, batches: list[Batch]) -> None:
        self.agent.post(Batches(batches))

    def _on_event(self, event: UplinkEvent) -> None:
        self.agent.post(event)


def run(config: Config, *, first_policy: bytes | None = None) -> None:
    """Run the daemon until SIGTERM or SIGINT.

    Args:
        config: The configuration.
        first_policy: A signed policy to apply before anything starts, or None.

    Raises:
        AgentError: It could not start, or a lane died.
    """
    parts = load_parts(config)
    for warning in parts.warnings:
        _log.warning("check", extra={"finding": warning})
    stop = threading.Event()
    with Daemon(config, parts) as daemon:
        if first_policy is not None:
            daemon.install(first_policy)

        def end(signum: int, _: object) -> None:
            _log.info("stopping", extra={"signal": signal.Signals(signum).name})
            stop.set()
            daemon.wake()

        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, end)
        daemon.start()
        _log.info("running", extra={"vehicle": config.vehicle.id, "buses": len(config.bus)})
        daemon.run(stop)
