"""A whole vehicle for tests: the daemon's own wiring on a virtual bus and a real broker."""

import queue
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import can
import paho.mqtt.client as mqtt

from agent.config import Config, parse_config
from agent.core.bushealth import BusState
from agent.core.clock import Reading
from agent.core.model import CAN_EFF_FLAG, CAN_EFF_MASK, NS_PER_S, Frame
from agent.daemon import Daemon
from agent.demo.broker import Broker
from agent.demo.judge import Auditor
from agent.parts import load_parts
from tests import car
from tests.cloud import VEHICLE, Cloud

WAIT_S = 20.0
BOOT = f"{0:032x}"


class TestClock:
    """A clock that stands until it is set."""

    __test__ = False  # Not a test class, whatever its name says.

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns

    def __call__(self) -> Reading:
        return Reading(self.now_ns, self.now_ns, BOOT, is_synchronised=True)


class Rig:
    """One vehicle: its files, its bus, its daemon in a thread."""

    def __init__(self, folder: Path, broker: Broker, cloud: Cloud) -> None:
        folder.mkdir()
        self.folder = folder
        # Not in the folder: the path of a socket is 107 bytes at most.
        self.socket = Path(tempfile.gettempdir()) / f"rig-{uuid.uuid4()}"
        self.cloud = cloud
        self.broker = broker
        self.clock = TestClock(cloud.now_s * NS_PER_S)
        self.channel = f"rig-{id(self)}"
        self.dbcs: list[Path] = [folder / "car.dbc"]
        self.mapping = folder / "car.vspec"
        self.max_age_s = 60.0
        self.more_buses: list[dict[str, Any]] = []
        self.obd: dict[str, Any] = {}
        self.switch: dict[str, Any] = {}
        self.rights: dict[str, list[str]] = {}  # Who may do what over the control socket.
        self._daemon: Daemon | None = None
        self._asks: queue.SimpleQueue[tuple[Callable[[], None], Future[None]]] = queue.SimpleQueue()
        (folder / "car.dbc").write_bytes(car.DBC)
        self.mapping.write_bytes(car.MAPPING)
        cloud.write_files(folder)
        broker.write_client(VEHICLE, folder)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def config(self, **uplink: Any) -> Config:
        return parse_config(
            {
                "vehicle": {"id": VEHICLE, "trust": "trust.json"},
                "state": {"directory": "state"},
                "keys": {"device": "device.jwk"},
                "control": {"socket": str(self.socket), **self.rights},
                "switch": self.switch,
                "batch": {"max_age_s": self.max_age_s},
                "obd": self.obd,
                "bus": [
                    {
                        "name": "can0",
                        "interface": "virtual",
                        "channel": self.channel,
                        "dbc": [str(path) for path in self.dbcs],
                        "mapping": str(self.mapping),
                        "options": {"preserve_timestamps": True},
                    },
                    *self.more_buses,
                ],
                "uplink": {
                    "host": "localhost",
                    "port": self.broker.port,
                    "ca": "ca.pem",
                    "certificate": "client.pem",
                    "private_key": "client.key",
                    "min_backoff_s": 0.05,
                    "max_backoff_s": 0.2,
                    **uplink,
                },
            },
            self.folder,
        )

    @contextmanager
    def running(self, **uplink: Any) -> Iterator[Daemon]:
        """Run the daemon in a thread of its own, as its store demands, until the block ends."""
        stop, ready = threading.Event(), threading.Event()
        found: list[Daemon] = []
        failures: list[BaseException] = []

        def run() -> None:
            try:
                config = self.config(**uplink)
                with Daemon(config, load_parts(config), clock=self.clock) as daemon:
                    daemon.start()
                    self._daemon = daemon
                    found.append(daemon)
                    ready.set()
                    while not stop.is_set():
                        daemon.turn()
                        self._answer()
            except BaseException as exc:  # noqa: BLE001 - raised again below
                failures.append(exc)
            finally:
                ready.set()

        thread = threading.Thread(target=run)
        thread.start()
        ready.wait(WAIT_S)
        try:
            if failures:
                raise failures[0]
            yield found[0]
        finally:
            stop.set()
            if found:
                found[0].wake()
            thread.join(WAIT_S)
        if failures:
            raise failures[0]

    def reload(self, daemon: Daemon, **changes: Any) -> None:
        """Let the daemon take up the files as they are now, in its own thread."""
        config = self.config().model_copy(update=changes)
        self.inside(daemon, lambda: daemon.reload(config, load_parts(config)))

    def inside(self, daemon: Daemon, step: Callable[[], object]) -> None:
        """Do something in the daemon's own thread; raise what it raises."""
        done: Future[None] = Future()
        self._asks.put((lambda: step() and None, done))
        daemon.wake()
        done.result(WAIT_S)

    def _answer(self) -> None:
        while not self._asks.empty():
            ask, done = self._asks.get()
            try:
                ask()
            except BaseException as exc:  # noqa: BLE001 - raised where it was asked
                done.set_exception(exc)
            else:
                done.set_result(None)

    def play(self, frames: Iterable[Frame]) -> int:
        """Send frames on the bus with their own times; return how many."""
        count = 0
        if self._daemon is not None and self._daemon.plan.takes:
            wait_for("the bus", self._daemon_listens)  # It is opened when something is granted.
        with can.Bus(interface="virtual", channel=self.channel, preserve_timestamps=True) as bus:
            for t_ns, _, can_id, data in frames:
                bus.send(
                    can.Message(
                        timestamp=t_ns / NS_PER_S,
                        arbitration_id=can_id & CAN_EFF_MASK,
                        is_extended_id=bool(can_id & CAN_EFF_FLAG),
                        is_fd=len(data) > 8,
                        data=data,
                        check=False,
                    )
                )
                count += 1
        return count

    def _daemon_listens(self) -> bool:
        assert self._daemon is not None, "it runs"
        return all(
            bus.state in (BusState.ACTIVE, BusState.SILENT) for bus in self._daemon.buses.health()
        )

    def push(self, token: str | bytes) -> None:
        """Put a policy on the vehicle's topic, retained."""
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        client.tls_set_context(self.broker.tls("platform"))
        client.connect("localhost", self.broker.port)
        client.loop_start()
        client.publish(
            f"consentry/v1/{VEHICLE}/policy", token, qos=1, retain=True
        ).wait_for_publish(WAIT_S)
        client.disconnect()
        client.loop_stop()


def data_of(auditor: Auditor, recipient: str | None = None) -> list[bytes]:
    """Return the distinct envelopes that the auditor saw, in order."""
    part = "/data/" if recipient is None else f"/data/{recipient}/"
    return list(dict.fromkeys(item.payload for item in auditor.seen() if part in item.topic))


def wait_for(what: str, condition: Any) -> None:
    """Wait until a condition holds; fail with its name when it never does."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"waited {WAIT_S:.0f} s in vain for: {what}")
