"""A real mosquitto with the configuration we ship, on free ports of loopback."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.peer import Peer
from tests.pki import Files, Pki

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "config" / "mosquitto"


def mosquitto() -> str:
    """Path of the program; skipped with a reason where absent, a failure in CI."""
    # A user's PATH does not always hold the folder where Debian puts it.
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("mosquitto must be installed in CI")
        pytest.skip("mosquitto is not installed")
    return found


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on right now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(sock.getsockname()[1]) for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


class Broker:
    """One mosquitto process. Keeps its ports and its database over restarts.

    Attributes:
        port: Where vehicles connect.
        backend_port: Where the platform and the auditors connect.
        recipient_port: Where the recipients connect.
    """

    def __init__(
        self,
        folder: Path,
        pki: Pki,
        *,
        certificate: Files | None = None,
        extra: str = "",
        crl: Path | None = None,
        host: str = "127.0.0.1",
        prefix: tuple[str, ...] = (),
    ) -> None:
        folder.mkdir(parents=True)
        self._command = [*prefix, mosquitto()]
        self._host = host
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.port, self.backend_port, self.recipient_port = free_ports(3)
        files = certificate or pki.broker()
        replaced = {
            "listener 8883": f"listener {self.port} {host}",
            "listener 8884": f"listener {self.backend_port} {host}",
            "listener 8885": f"listener {self.recipient_port} {host}",
            "/var/lib/mosquitto/": f"{folder}/",
            "/etc/mosquitto/certs/vehicles-ca.pem": str(pki.ca_file(pki.vehicles)),
            "/etc/mosquitto/certs/backend-ca.pem": str(pki.ca_file(pki.backend)),
            "/etc/mosquitto/certs/recipients-ca.pem": str(pki.ca_file(pki.recipients)),
            "/etc/mosquitto/certs/broker.pem": str(files.certificate),
            "/etc/mosquitto/certs/broker.key": str(files.private_key),
            "/etc/mosquitto/consentry/": f"{SHIPPED}/",
        }
        text = (SHIPPED / "mosquitto.conf").read_text(encoding="utf-8")
        for old, new in replaced.items():
            assert old in text, f"{old} is not in the shipped mosquitto.conf any more"
            text = text.replace(old, new)
        if crl is not None:
            # At the vehicles' door: the first listener.
            text = text.replace("tls_version", f"crlfile {crl}\ntls_version", 1)
        if os.geteuid() == 0:
            text += "user root\n"  # Else it changes user and cannot read the test's folder.
        (folder / "mosquitto.conf").write_text(f"{extra}\n{text}", encoding="utf-8")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """What the broker said so far."""
        return (self._folder / "log").read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        """Start it and wait until it listens."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, "-v", "-c", str(self._folder / "mosquitto.conf")],
                stdout=log,
                stderr=log,
            )
        for port in (self.port, self.backend_port, self.recipient_port):
            self._wait_for(port)

    def stop(self) -> None:
        """End it in order: its database is written."""
        self._end(kill=False)

    def kill(self) -> None:
        """End it at once: what was not written is lost."""
        self._end(kill=True)

    def signal(self, signum: int) -> None:
        """Send it a signal, such as SIGSTOP."""
        assert self._process is not None
        self._process.send_signal(signum)

    def _end(self, *, kill: bool) -> None:
        process, self._process = self._process, None
        if process is not None:
            if kill:
                process.kill()
            else:
                process.terminate()
            process.wait(timeout=10)

    def _wait_for(self, port: int) -> None:
        assert self._process is not None
        until = time.monotonic() + 10
        while time.monotonic() < until and self._process.poll() is None:
            with socket.socket() as sock:
                if sock.connect_ex((self._host, port)) == 0:
                    return
            time.sleep(0.02)
        pytest.fail(f"mosquitto did not start:\n{self.log}")


@contextmanager
def broker(folder: Path, pki: Pki) -> Iterator[Broker]:
    """Run a broker with the shipped configuration."""
    with Broker(folder / "broker", pki) as running:
        yield running


class PlainBroker:
    """A mosquitto without TLS or access list. A context manager."""

    def __init__(self, folder: Path) -> None:
        (self.port,) = free_ports(1)
        self._config = folder / "mosquitto.conf"
        root = "user root\n" if os.geteuid() == 0 else ""
        text = f"{root}max_queued_messages 0\nlistener {self.port} 127.0.0.1\n"
        self._config.write_text(f"{text}allow_anonymous true\n", encoding="utf-8")

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [mosquitto(), "-c", str(self._config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 10
        while time.monotonic() < until:
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.02)
        pytest.fail("mosquitto did not start")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait(timeout=10)

    def peer(self) -> Peer:
        """Connect an independent client."""
        return Peer(self.port, None)
