"""A vehicle in the guest as docs/install.md sets it up: program, unit, broker; and its bus."""

import itertools
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any, Self

import tests.broker
from agent.core.model import Sample
from agent.demo.broker import Broker
from agent.demo.judge import Auditor
from tests import car, docs
from tests.cloud import VEHICLE, Cloud
from tests.pki import Pki, context
from tests.wire import THERE, Link

WAIT_S = 30.0
MAX_AGE_S = 1.0
SETTINGS = Path("/etc/consentry")
SOURCE = Path("/src")
PATH = "Vehicle.TraveledDistance"

TOML = """
[vehicle]
id = "{vehicle}"
trust = "trust.json"
[keys]
device = "/etc/consentry/device.jwk"
[[bus]]
name = "body"
interface = "socketcan"
channel = "vcan0"
dbc = ["vehicle.dbc"]
mapping = "vehicle.vspec"
[batch]
max_age_s = {max_age_s}
[uplink]
host = "localhost"
port = {port}
ca = "broker-ca.pem"
certificate = "vehicle.pem"
private_key = "vehicle.key"
max_backoff_s = 2.0
[time]
synchronised = "always"
"""


def sh(command: str, *, check: bool = True) -> str:
    """Run a command as root; return what it wrote."""
    done = subprocess.run(
        ["bash", "-c", command], check=False, capture_output=True, text=True, timeout=120
    )
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return (done.stdout + done.stderr).strip()


def documented(heading: str) -> str:
    """Return the commands that docs/install.md gives under a heading."""
    text = (SOURCE / "docs" / "install.md").read_text()
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return "\n".join(docs.blocks(section))


@cache
def install() -> None:
    """Install offline from a folder of wheels, as the document says; once for all tests."""
    reinstall()


def reinstall() -> None:
    """Install, also over what is there already."""
    checkout = Path("/run/checkout")
    wheels = checkout / "wheels"
    sh(f"cp -r /src {checkout}; cp -r /opt/wheels {wheels}; cp /src/wheel/*.whl {wheels}")
    sh(f"cd {checkout}; {documented('Install')}")
    shutil.rmtree(checkout)


class FarBroker:
    """A broker at the other end of a wire, with a door for vehicles and one for the platform."""

    host = THERE

    def __init__(self, folder: Path, link: Link) -> None:
        self._pki = Pki(folder / "pki")
        self._broker = tests.broker.Broker(
            folder / "broker",
            self._pki,
            certificate=self._pki.broker(THERE),
            host=THERE,
            prefix=link.inside,
        )
        self.port, self.backend_port = self._broker.port, self._broker.backend_port
        self.start, self.stop = self._broker.start, self._broker.stop

    def tls(self, name: str) -> ssl.SSLContext:
        return context(self._pki.client(name, self._pki.backend))

    def write_client(self, name: str, folder: Path) -> None:
        files = self._pki.vehicle(name)
        shutil.copyfile(files.ca, folder / "ca.pem")
        shutil.copyfile(files.certificate, folder / "client.pem")
        shutil.copyfile(files.private_key, folder / "client.key")


class Vehicle:
    """One vehicle: settings, broker, unit. What goes out is opened with the recipient's key."""

    def __init__(self, folder: Path, *, more: str = "", broker: FarBroker | None = None) -> None:
        """Set it up.

        Args:
            folder: For its files.
            more: Lines at the end of agent.toml.
            broker: None: one on loopback.
        """
        self.started = ""
        self.more = more
        self.millions = itertools.count(1)
        self._opened: dict[bytes, list[Sample]] = {}
        self.cloud = Cloud()
        self.cloud.now_s = int(time.time())
        self.broker = broker or Broker(folder / "broker")
        self.broker.start()
        self.port = self.broker.port  # By which the unit reaches it.
        host, port = door(self.broker)
        self.auditor = Auditor(host=host, port=port, tls=self.broker.tls("auditor"))
        self.auditor.__enter__()
        settings = folder / "settings"
        settings.mkdir()
        self.cloud.write_files(settings)
        self.broker.write_client(VEHICLE, settings)
        (settings / "ca.pem").rename(settings / "broker-ca.pem")
        (settings / "client.pem").rename(settings / "vehicle.pem")
        (settings / "client.key").rename(settings / "vehicle.key")
        (settings / "vehicle.dbc").write_bytes(car.DBC)
        (settings / "vehicle.vspec").write_bytes(car.MAPPING)
        self.configure()
        install_files, check = documented("Settings").split("\n\n")
        sh(f"cd {settings}; {install_files}")
        self.found = sh(check)

    def configure(self) -> None:
        text = TOML.format(vehicle=VEHICLE, port=self.port, max_age_s=MAX_AGE_S)
        text = text.replace('"localhost"', f'"{door(self.broker)[0]}"')
        (SETTINGS / "agent.toml").write_text(text + self.more)

    def close(self) -> None:
        # The next one has other keys: it must not find this one's policy.
        sh("systemctl stop consentry; rm -rf /var/lib/consentry/*", check=False)
        self.auditor.__exit__(None, None, None)
        self.broker.stop()

    def consent(self, **members: Any) -> None:
        """Grant the number on the bus to a recipient, every frame of it."""
        token = self.cloud.policy(
            self.cloud.grant({"read_odometer": {"min_interval_s": 0}}, **members)
        )
        self.put(token)

    def put(self, token: str) -> None:
        """Push a document, and wait for the answer."""
        before = self.answers()
        push(self.broker, token)
        wait_for("the answer", lambda: self.answers() > before)

    def revoke(self) -> None:
        """Withdraw the grant."""
        push(self.broker, self.cloud.revoke("g1"))

    def is_quiet(self, for_s: float) -> bool:
        """Whether no message comes for so long."""
        before = len(self.auditor.seen())
        time.sleep(for_s)
        return len(self.auditor.seen()) == before

    def answers(self) -> int:
        return sum(item.topic.endswith("/policy/ack") for item in self.auditor.seen())

    def samples(self) -> list[Sample]:
        """Return what reached the recipient, without repeated envelopes, by time."""
        for item in self.auditor.seen():
            if "/data/" in item.topic and item.payload not in self._opened:
                self._opened[item.payload] = list(self.cloud.open(item.payload).samples("fleet"))
        found = [sample for samples in self._opened.values() for sample in samples]
        return sorted(found, key=lambda sample: sample.t_ns)

    def numbers(self, since: int = 0) -> list[int]:
        """Return the numbers that reached the recipient, from one on, in order of time."""
        return [int(s.value) for s in self.samples() if s.path == PATH and s.value >= since]

    def await_last(self, numbers: "Numbers") -> list[int]:
        """Wait until the last number has come; return all that came of them."""
        wait_for("the last number", lambda: self.numbers(numbers.first)[-1:] == [numbers.next - 1])
        return self.numbers(numbers.first)

    @property
    def pid(self) -> int:
        return int(self.show("MainPID"))

    def show(self, name: str) -> str:
        return sh(f"systemctl show consentry -p {name} --value")

    def started_in_s(self) -> float:
        """Return how long the last start took until READY."""
        begun, ready = (
            int(self.show(f"{name}TimestampMonotonic")) for name in ("ExecMainStart", "ActiveEnter")
        )
        return (ready - begun) / 1e6

    def log(self) -> str:
        return sh("journalctl -u consentry -o cat --no-pager")


def door(broker: Broker | FarBroker) -> tuple[str, int]:
    """Return where platform and auditor connect."""
    if isinstance(broker, FarBroker):
        return broker.host, broker.backend_port
    return "localhost", broker.port


def push(broker: Broker | FarBroker, token: str) -> None:
    import paho.mqtt.client as mqtt  # noqa: PLC0415 - as tests/rig.py does

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.tls_set_context(broker.tls("platform"))
    client.connect(*door(broker))
    client.loop_start()
    client.publish(f"consentry/v1/{VEHICLE}/policy", token, qos=1, retain=True).wait_for_publish(
        WAIT_S
    )
    client.disconnect()
    client.loop_stop()


class Numbers:
    """Sends numbered frames at a rate until the block ends, from a thread."""

    def __init__(self, first: int, *, per_s: int = 2000, bus: str = "vcan0") -> None:
        self.first = first
        self.next = first
        self._per_s = per_s
        self._sock = socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW)
        self._sock.setsockopt(socket.SOL_CAN_RAW, socket.CAN_RAW_FILTER, b"")  # It reads nothing.
        self._sock.bind((bus,))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._sock.close()

    def _run(self) -> None:
        begun = time.monotonic()
        while not self._done.is_set():
            due = self.first + int((time.monotonic() - begun) * self._per_s)
            while self.next < due:
                self._sock.send(struct.pack("=IB3xI4x", car.ODOMETER_ID, 4, self.next))
                self.next += 1
            time.sleep(0.005)


def wait_for(what: str, condition: Any) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(
        f"waited {WAIT_S:.0f} s in vain for: {what}\n"
        + sh("journalctl -u consentry -o cat --no-pager -n 40", check=False)
    )
