"""A broker on loopback with TLS: mosquitto where it is installed, else the one in the wheel.

Certificates are made on the spot. mosquitto enforces client certificates and the access list of
config/mosquitto/acl; the wheel's broker (rumqttd) asks for no client certificate.
"""

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.edge.keys import client_tls
from agent.errors import AgentError
from agent.resources import shipped

_START_S = 10.0
_SBIN = ("/usr/sbin", "/usr/local/sbin")  # Where Debian puts it, not on every user's PATH.

_MOSQUITTO = """\
per_listener_settings true
persistence false
# The default of 1000 loses messages that a broker has acknowledged, when a backlog comes in.
max_queued_messages 0
listener {port} 127.0.0.1
cafile {folder}/ca.pem
certfile {folder}/server.pem
keyfile {folder}/server.key
tls_version tlsv1.3
require_certificate true
use_identity_as_username true
allow_anonymous false
acl_file {folder}/acl
"""

_RUMQTTD = """\
id = 0
[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10
[v5.1]
name = "tls"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
[v5.1.tls]
capath = "{folder}/ca.pem"
certpath = "{folder}/server.pem"
keypath = "{folder}/server.key"
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 1048576
max_inflight_count = 100
dynamic_filters = true
"""


class Broker:
    """A broker for one demo or test. A context manager.

    Attributes:
        port: Where it listens on loopback.
        name: What it is, for people.
    """

    def __init__(self, folder: Path, *, settings: str = "") -> None:
        """Make certificates and settings; entering starts it.

        Args:
            folder: A new folder for its files.
            settings: More lines for mosquitto's configuration.

        Raises:
            AgentError: Neither mosquitto nor iotcore, or no trustme.
        """
        folder.mkdir(mode=0o700, parents=True)
        self._folder = folder
        self._stack = ExitStack()
        self._settings = settings
        self._binary = find_mosquitto()
        self.port = _free_port()
        self.name = "mosquitto" if self._binary else "iotcore"
        self._ca = _make_ca()
        self._ca.cert_pem.write_to_path(folder / "ca.pem")
        self._issue("localhost", "127.0.0.1", stem="server")

    @property
    def asks_for_certificates(self) -> bool:
        """Whether a client without a certificate is refused; rumqttd does not ask for one."""
        return self._binary is not None

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

    def start(self) -> None:
        """Start it and wait until it listens.

        Raises:
            AgentError: It does not come up.
        """
        if self._binary:
            self._stack.enter_context(self._mosquitto(self._binary))
        else:
            self._start_iotcore()

    def stop(self) -> None:
        """End it; `start` brings it back on the same port with the same certificates."""
        self._stack.close()

    def tls(self, name: str) -> ssl.SSLContext:
        """Return the TLS settings of a client called `name`."""
        if not (self._folder / f"{name}.pem").exists():
            self._issue(stem=name)
        return client_tls(
            ca=self._folder / "ca.pem",
            certificate=self._folder / f"{name}.pem",
            private_key=self._folder / f"{name}.key",
        )

    def write_client(self, name: str, folder: Path) -> None:
        """Write ca.pem, client.pem and client.key of a client called `name` into a folder."""
        self.tls(name)
        shutil.copyfile(self._folder / "ca.pem", folder / "ca.pem")
        shutil.copyfile(self._folder / f"{name}.pem", folder / "client.pem")
        shutil.copyfile(self._folder / f"{name}.key", folder / "client.key")
        (folder / "client.key").chmod(0o600)

    def _issue(self, *identities: str, stem: str) -> None:
        leaf = self._ca.issue_cert(*identities, common_name=stem)
        key = self._folder / f"{stem}.key"
        key.touch(mode=0o600)
        leaf.private_key_pem.write_to_path(key)
        leaf.cert_chain_pems[0].write_to_path(self._folder / f"{stem}.pem")

    @contextlib.contextmanager
    def _mosquitto(self, binary: str) -> Iterator[None]:
        shutil.copyfile(shipped("config/mosquitto/acl"), self._folder / "acl")
        # mosquitto refuses an access list that others can write, and reads it as its own user.
        (self._folder / "acl").chmod(0o600)
        config = self._folder / "mosquitto.conf"
        text = _MOSQUITTO.format(port=self.port, folder=self._folder)
        if os.geteuid() == 0:
            text = "user root\n" + text
        config.write_text(text + self._settings)
        with (self._folder / "mosquitto.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own binary and file
                [binary, "-c", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self._await(process)
            yield
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _await(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and process.poll() is None:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), 1),
            ):
                return
            time.sleep(0.02)
        last = (self._folder / "mosquitto.log").read_text(errors="replace").splitlines()[-1:]
        raise AgentError(f"mosquitto did not start: {''.join(last)}")

    def _start_iotcore(self) -> None:
        try:
            import iotcore  # noqa: PLC0415 - an extra
        except ImportError as exc:
            raise AgentError(
                "there is no broker: neither mosquitto nor the package iotcore",
                hint="apt-get install mosquitto, or pip install 'consentry[demo]'",
            ) from exc
        config = self._folder / "rumqttd.toml"
        config.write_text(_RUMQTTD.format(port=self.port, folder=self._folder))
        broker = iotcore.Broker(config_path=str(config))
        broker.start()
        self._stack.callback(broker.stop)


def find_mosquitto() -> str | None:
    """Return the path of mosquitto, or None."""
    path = os.pathsep.join((os.environ.get("PATH", ""), *_SBIN))
    return shutil.which("mosquitto", path=path)


def _make_ca() -> "trustme.CA":  # type: ignore[name-defined] # noqa: F821 - an extra
    try:
        import trustme  # noqa: PLC0415 - an extra
    except ImportError as exc:
        raise AgentError(
            "the demo makes certificates with the package trustme, which is not installed",
            hint="pip install 'consentry[demo]'",
        ) from exc
    return trustme.CA()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
