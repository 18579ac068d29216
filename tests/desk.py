"""A vehicle that is installed with our own commands, and run as a process of its own.

Its bus is a socketcand server (github.com/linux-can/socketcand) on loopback: a bus that another
process can feed, with the frames' own times.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from agent.cli.main import run
from agent.core.model import NS_PER_US, Frame
from tests import car

VEHICLE = "veh-7Q2K"
RECIPIENT = "fleet-x"
GRANT = "gr_1"
SCRIPT = Path(sys.executable).with_name("consentry")
COMMAND = (
    [str(SCRIPT)]
    if SCRIPT.exists()
    else [sys.executable, "-c", "from agent.cli.main import main; main()"]
)
WAIT_S = 20.0


class CanServer:
    """Frames for whoever connects, like socketcand in raw mode. A context manager."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._client: socket.socket | None = None
        self._connected = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(WAIT_S)
        if self._client is not None:
            self._client.close()

    def send(self, frames: Iterable[Frame]) -> None:
        """Send frames to the client that came last."""
        assert self._connected.wait(WAIT_S), "nobody opened the bus"
        assert self._client is not None
        lines = [
            f"< frame {can_id:03X} {t_ns // NS_PER_US / 1e6:.6f} {data.hex()} >"
            for t_ns, _, can_id, data in frames
        ]
        self._client.sendall("".join(lines).encode())

    def await_nobody(self) -> None:
        """Forget the client, so that `send` waits for the next one."""
        self._connected.clear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # Closed.
            client.sendall(b"< hi >")
            for _ in ("open", "rawmode"):
                client.recv(100)
                client.sendall(b"< ok >")
            if self._client is not None:
                self._client.close()
            self._client = client
            self._connected.set()


class Desk:
    """One vehicle's folder, with the keys of everybody who has to do with it."""

    def __init__(self, folder: Path) -> None:
        """Make the keys and the trust file, and write the vehicle's DBC file and mapping."""
        folder.mkdir()
        self.folder = folder
        # Not in the folder: the path of a socket is 107 bytes at most.
        self.socket = Path(tempfile.gettempdir()) / f"desk-{uuid.uuid4()}"
        for role, kid in (("policy", "platform-1"), ("device", "device-1"), ("recipient", "fx-1")):
            assert run(["keys", "new", role, kid, "--out", self.path(f"{role}.jwk")]) == 0
        trust = ["keys", "trust", self.path("policy.pub.jwk"), "--out", self.path("trust.json")]
        assert run(trust) == 0
        self.write("car.dbc", car.DBC)
        self.write("car.vspec", car.MAPPING)
        self.configure()

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def write(self, name: str, data: str | bytes) -> str:
        (self.folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        return self.path(name)

    def configure(
        self, *, port: int = 9, bus_port: int = 9, more: str = "", **replaced: str
    ) -> str:
        """Write agent.toml; `replaced` are lines that stand for others, by key."""
        values = {
            "id": f'"{VEHICLE}"',
            "trust": '"trust.json"',
            "device": '"device.jwk"',
            "dbc": '["car.dbc"]',
            "mapping": '"car.vspec"',
            "max_age_s": "60.0",
            "rights": "",
        } | replaced
        return self.write(
            "agent.toml",
            f"""
            [vehicle]
            id = {values["id"]}
            trust = {values["trust"]}
            [state]
            directory = "state"
            [control]
            socket = "{self.socket}"
            {values["rights"]}
            [keys]
            device = {values["device"]}
            [batch]
            max_age_s = {values["max_age_s"]}
            [[bus]]
            name = "can0"
            interface = "socketcand"
            channel = "can0"
            options = {{ host = "127.0.0.1", port = {bus_port}, preserve_timestamps = true }}
            dbc = {values["dbc"]}
            mapping = {values["mapping"]}
            [uplink]
            host = "localhost"
            port = {port}
            ca = "ca.pem"
            certificate = "client.pem"
            private_key = "client.key"
            min_backoff_s = 0.05
            max_backoff_s = 0.2
            {more}
            """,
        )

    def new_policy(
        self, scopes: str = "read_odometer", constraints: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write policy.json with `consentry policy new` and return it."""
        made = [
            *("policy", "new", "--vehicle", VEHICLE, "--out", self.path("policy.json")),
            *("--recipient", f"{RECIPIENT}={self.path('recipient.pub.jwk')}"),
            *("--grant", f"{GRANT}={RECIPIENT}:{scopes}"),
        ]
        assert run(made) == 0
        document: dict[str, Any] = json.loads((self.folder / "policy.json").read_bytes())
        for detail in document["grants"][0]["details"] if constraints is not None else ():
            detail["constraints"] = constraints
        self.write("policy.json", json.dumps(document))
        return document

    def sign(self, document: Mapping[str, Any] | None = None, name: str = "policy.jws") -> str:
        """Sign policy.json, or another document, with `consentry policy sign`."""
        source = self.path("policy.json")
        if document is not None:
            source = self.write("unsigned.json", json.dumps(document))
        key = ["--key", self.path("policy.jwk")]
        assert run(["policy", "sign", source, *key, "--out", self.path(name)]) == 0
        return self.path(name)

    @contextmanager
    def running(
        self, *arguments: str, on: Iterable[str] = ()
    ) -> Iterator["subprocess.Popen[bytes]"]:
        """Run `consentry run` in a process of its own; its words are in `log`.

        Args:
            arguments: Its options, beside --config.
            on: A command that puts the one behind it in its own place.
        """
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [*on, *COMMAND, "run", "--config", self.path("agent.toml"), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(WAIT_S)

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run `consentry run` where it is expected to end by itself."""
        return consentry("run", "--config", self.path("agent.toml"), *arguments)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text("utf-8")

    def stop(self, process: "subprocess.Popen[bytes]") -> float:
        """End it as systemd does; return how long that took, s."""
        started_s = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0, self.log
        return time.monotonic() - started_s

    def spooled(self, state: Path | None = None) -> int:
        """Count the places on disk that name the recipient's key, as every envelope does."""
        files = (state or self.folder / "state").glob("spool.db*")
        return sum(path.read_bytes().count(b"fx-1") for path in files)


def consentry(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run one command in a process of its own, which ends by itself."""
    return subprocess.run(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def complaint(stderr: str) -> tuple[str, str]:
    """Return the one `error:` line and the one `hint:` line; a traceback is a failure."""
    lines = stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    hints = [line for line in lines if line.startswith("hint: ")]
    assert len(errors) == len(hints) == 1, stderr
    assert "Traceback" not in stderr
    return errors[0], hints[0]


def wait_for(what: str, condition: Any, process: "subprocess.Popen[bytes] | None" = None) -> None:
    """Wait until a condition holds; fail with its name when it never does."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert process is None or process.poll() is None, f"the agent ended before {what}"
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def needs_mosquitto() -> None:
    """Skip, with a reason, where there is no broker; a failure in CI."""
    from agent.demo.broker import find_mosquitto  # noqa: PLC0415 - only tests with a broker

    if find_mosquitto() is None:
        if os.environ.get("CI"):
            pytest.fail("mosquitto must be installed in CI")
        pytest.skip("mosquitto is not installed")
