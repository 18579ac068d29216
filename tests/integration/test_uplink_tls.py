"""TLS: each wrong certificate is refused with its reason, and not a byte of payload is sent."""

import datetime as dt
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from agent.edge.keys import certificate_end_s, client_tls
from agent.edge.uplink import Connected, Delivered, Disconnected, TlsSource, UplinkConfig, lane
from tests.broker import Broker, free_ports
from tests.driven import Driven, tls_config
from tests.peer import WAIT_S, wait_until
from tests.pki import Files, Pki
from tests.relay import Relay

pytestmark = pytest.mark.broker

DAY = dt.timedelta(days=1)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def broker(tmp_path: Path, pki: Pki) -> Iterator[Broker]:
    with Broker(tmp_path / "broker", pki) as running:
        yield running


class Listening:
    """A TLS server that keeps what it gets in the clear. A context manager."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.got: list[bytes] = []
        self.faults: list[str] = []
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(WAIT_S)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                sock.settimeout(2)
                try:
                    with self._context.wrap_socket(sock, server_side=True) as tls:
                        self.got.append(tls.recv(1000))
                except OSError as exc:
                    self.faults.append(str(exc))
                    sock.close()


def server(files: Files) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.private_key)
    return context


NOW = dt.datetime.now(dt.UTC)
WRONG = {
    "wrong CA": (
        {"ca": "stranger"},
        "unable to get local issuer certificate",
        "unknown-authority",
    ),
    "wrong name": ({"names": ("elsewhere.example",)}, "IP address mismatch", "wrong-name"),
    "expired": (
        {"not_before": NOW - 9 * DAY, "not_after": NOW - DAY},
        "certificate has expired",
        "expired",
    ),
    "not yet valid": (
        {"not_before": NOW + DAY, "not_after": NOW + 9 * DAY},
        "certificate is not yet valid",
        "not-yet-valid",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_broker_with_a_wrong_certificate_gets_not_a_byte(pki: Pki, case: str) -> None:
    """It is told which fault it was; the handshake ends before anything of MQTT is sent."""
    about, told, word = WRONG[case]
    about = dict(about)
    ca = getattr(pki, str(about.pop("ca", "server")))
    names = about.pop("names", ("127.0.0.1",))
    leaf = ca.issue_cert(*names, **about)
    mine = pki.vehicle("veh-1")
    with (
        Listening(server(pki._write(leaf, ca))) as listening,
        Driven(tls_config(listening.port, "veh-1", mine)) as driven,
    ):
        ended = driven.wait(Disconnected)
        wait_until(lambda: listening.faults)

    assert "was not accepted" in ended.reason
    assert told in ended.reason
    assert ended.tls == word
    assert listening.got == []


def test_a_man_in_the_middle_is_left(broker: Broker, pki: Pki) -> None:
    """He has a certificate for the right name, of another CA; or he changes bytes on the way."""
    forged = pki.broker(ca=pki.stranger)
    mine = pki.vehicle("veh-1")
    with (
        Listening(server(forged)) as listening,
        Driven(tls_config(listening.port, "veh-1", mine)) as driven,
    ):
        assert driven.wait(Disconnected).tls
    assert listening.got == []

    class Flipping(Relay):
        count = 0

        def _pump(self, source: Any, sink: Any, *, is_up: bool = False) -> None:
            if is_up:
                super()._pump(source, sink, is_up=True)
                return
            with suppress(OSError):
                while data := source.recv(65_536):
                    self.count += len(data)
                    # Behind the handshake: in what the broker sends encrypted.
                    flipped = data[:-1] + bytes([data[-1] ^ 1]) if self.count > 2500 else data
                    sink.sendall(flipped)

    with Flipping(broker.port) as relay, Driven(tls_config(relay.port, "veh-1", mine)) as driven:
        ended = driven.wait(Disconnected)

    assert "TLS" in ended.reason
    assert ended.tls
    assert "Received PUBLISH" not in broker.log


@pytest.mark.parametrize("version", ["tls1", "tls1_1"])
def test_tls_below_1_2_is_never_spoken(pki: Pki, version: str) -> None:
    """Also not where 1.2 is allowed."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    files = pki.broker()
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [
            *(openssl, "s_server", f"-{version}", "-cipher", "DEFAULT@SECLEVEL=0", "-quiet"),
            *("-accept", f"127.0.0.1:{port}", "-cert", files.certificate),
            *("-key", files.private_key),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        wait_until(lambda: _listens(port))
        mine = pki.vehicle("veh-1")
        tls = client_tls(
            ca=mine.ca,
            certificate=mine.certificate,
            private_key=mine.private_key,
            allow_tls_1_2=True,
        )
        with Driven(UplinkConfig("127.0.0.1", port, "veh-1", "veh-1", tls=tls)) as driven:
            ended = driven.wait(Disconnected)
    finally:
        process.kill()
        out, _ = process.communicate()

    assert "TLS with" in ended.reason
    assert "PROTOCOL_VERSION" in ended.reason.upper().replace(" ", "_")
    assert ended.tls == "alert-protocol-version"
    assert b"MQTT" not in out


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _client(pki: Pki, ca: trustme.CA, **dates: Any) -> Files:
    leaf = ca.issue_cert("client.invalid", common_name="veh-1", **dates)
    return pki._write(leaf, pki.server)


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("stranger", "unknown ca"),
        ("expired", "certificate expired"),
        ("not yet valid", "bad certificate"),
        ("none", "certificate required"),
        ("revoked", "certificate revoked"),
    ],
)
def test_a_vehicle_with_a_wrong_certificate_is_refused_and_told_why(
    tmp_path: Path, pki: Pki, case: str, told: str
) -> None:
    """Real mosquitto; with TLS 1.3 its alert comes after the handshake, with the first read."""
    revoked = pki.vehicle("veh-1")
    broker = Broker(tmp_path / "broker", pki, crl=crl(pki, revoked, tmp_path))
    with broker:
        match case:
            case "stranger":
                files = pki.client("veh-1", pki.stranger)
            case "expired":
                files = _client(pki, pki.vehicles, not_before=NOW - 9 * DAY, not_after=NOW - DAY)
            case "not yet valid":
                files = _client(pki, pki.vehicles, not_before=NOW + DAY, not_after=NOW + 9 * DAY)
            case _:
                files = revoked
        if case == "none":
            tls = ssl.create_default_context(cafile=files.ca)
            tls.minimum_version = ssl.TLSVersion.TLSv1_3
            config = UplinkConfig(
                "127.0.0.1", broker.port, "veh-1", "veh-1", tls=tls, min_backoff_s=0.05
            )
        else:
            config = tls_config(broker.port, "veh-1", files)
        with Driven(config) as driven:
            # The alert is lost when our CONNECT meets a socket that the broker has closed already.
            while told not in (ended := driven.wait(Disconnected)).reason:
                assert ended.reason == "the connection was lost"
            assert not driven.send(1)

    assert told in ended.reason
    assert ended.tls == "alert-" + told.replace(" ", "-")
    assert "New client connected" not in broker.log
    assert "Received PUBLISH" not in broker.log


def test_a_vehicle_that_is_not_revoked_still_comes_in(tmp_path: Path, pki: Pki) -> None:
    """The list names one certificate, not all."""
    struck = crl(pki, pki.vehicle("veh-1"), tmp_path)
    with (
        Broker(tmp_path / "b", pki, crl=struck) as broker,
        Driven(tls_config(broker.port, "veh-1", pki.vehicle("veh-1"))) as driven,
    ):
        driven.wait(Connected)


def crl(pki: Pki, files: Files, folder: Path) -> Path:
    """Write the list of the vehicles' CA that revokes one certificate."""
    ca = x509.load_pem_x509_certificate(pki.vehicles.cert_pem.bytes())
    key = load_pem_private_key(pki.vehicles.private_key_pem.bytes(), None)
    leaf = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    entry = (
        x509.RevokedCertificateBuilder()
        .serial_number(leaf.serial_number)
        .revocation_date(NOW - DAY)
        .build()
    )
    made = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.subject)
        .last_update(NOW - DAY)
        .next_update(NOW + DAY)
        .add_revoked_certificate(entry)
        .sign(key, hashes.SHA256())  # type: ignore[arg-type] # trustme's keys are elliptic
    )
    path = folder / "crl.pem"
    path.write_bytes(made.public_bytes(Encoding.PEM))
    return path


class Rotating:
    """The three files of a vehicle, in one place, replaced as an enrolment client does it."""

    def __init__(self, folder: Path, pki: Pki) -> None:
        folder.mkdir()
        self.pki = pki
        self.ca, self.certificate, self.key = (folder / n for n in ("ca.pem", "c.pem", "k.key"))
        self.put()

    def put(self, **dates: Any) -> int:
        """Put a new pair in place; return its serial number."""
        files = _client(self.pki, self.pki.vehicles, **dates)
        for new, old in (
            (files.ca, self.ca),
            (files.certificate, self.certificate),
            (files.private_key, self.key),
        ):
            beside = old.with_suffix(".new")
            shutil.copy(new, beside)
            beside.replace(old)
        return x509.load_pem_x509_certificate(self.certificate.read_bytes()).serial_number

    def source(self) -> TlsSource:
        def make() -> tuple[ssl.SSLContext, int]:
            context = client_tls(ca=self.ca, certificate=self.certificate, private_key=self.key)
            return context, certificate_end_s(self.certificate)

        return TlsSource(make, files=(self.ca, self.certificate, self.key))


class Serials(Listening):
    """Writes down which certificate each client shows."""

    def __init__(self, pki: Pki) -> None:
        context = server(pki.broker())
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(pki.ca_file(pki.vehicles))
        super().__init__(context)
        self.serials: list[int] = []

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                with self._context.wrap_socket(sock, server_side=True) as tls:
                    shown = x509.load_der_x509_certificate(tls.getpeercert(True) or b"")
                    self.serials.append(shown.serial_number)


def test_a_new_certificate_is_used_without_a_restart(tmp_path: Path, pki: Pki) -> None:
    """From the next connection on; half of a new pair changes nothing."""
    files = Rotating(tmp_path / "tls", pki)
    first = x509.load_pem_x509_certificate(files.certificate.read_bytes()).serial_number
    source = files.source()
    ended = source.ends_s
    with Serials(pki) as seen:
        config = tls_config(seen.port, "veh-1", pki.vehicle("veh-1"))
        about = {n: getattr(config, n) for n in UplinkConfig.__dataclass_fields__}
        with Driven(UplinkConfig(**(about | {"tls": source}))) as driven:
            wait_until(lambda: first in seen.serials)
            whole = files.key.read_bytes()
            files.key.write_bytes(b"half of")
            files.key.chmod(0o600)
            wait_until(lambda: source.fault)
            count = len(seen.serials)
            wait_until(lambda: len(seen.serials) > count)
            assert seen.serials[-1] == first
            files.key.write_bytes(whole)
            second = files.put(not_after=NOW + 3 * DAY)
            wait_until(lambda: second in seen.serials)
            assert source.fault is None
            assert driven.uplink.certificate_ends_s == source.ends_s != ended


@pytest.mark.parametrize("when", ["later", "at once"])
def test_a_connection_is_made_anew_for_a_certificate_only_when_asked_for(
    tmp_path: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch, broker: Broker, when: str
) -> None:
    """Where the broker holds a connection for weeks the old certificate may end under it."""
    monkeypatch.setattr(lane, "MOVE_S", 0.05)
    files = Rotating(tmp_path / "tls", pki)
    config = tls_config(broker.port, "veh-1", pki.vehicle("veh-1"))
    about = {name: getattr(config, name) for name in UplinkConfig.__dataclass_fields__}
    about |= {"tls": files.source(), "reconnect_for_new_certificate": when == "at once"}
    with Driven(UplinkConfig(**about)) as driven:
        driven.wait(Connected)
        files.put()
        if when == "at once":
            assert driven.wait(Disconnected).reason == "closed by us"
            driven.wait(Connected)
        else:
            driven.send(1)
            driven.wait(Delivered)
            assert not any(isinstance(event, Disconnected) for event in driven.seen)


@pytest.mark.parametrize("days", [29, 31])
def test_the_end_of_our_certificate_is_told_a_month_ahead(
    tmp_path: Path,
    pki: Pki,
    broker: Broker,
    caplog: pytest.LogCaptureFixture,
    days: int,
) -> None:
    """Once a day in the log, and for `health` at any time."""
    files = Rotating(tmp_path / "tls", pki)
    files.put(not_after=NOW + days * DAY)
    config = tls_config(broker.port, "veh-1", pki.vehicle("veh-1"))
    about = {name: getattr(config, name) for name in UplinkConfig.__dataclass_fields__}
    with Driven(UplinkConfig(**(about | {"tls": files.source(), "keepalive_s": 1}))) as driven:
        driven.wait(Connected)
        first = caplog.text.count("certificate ends soon")
        driven.uplink._lane._server._warned_s = 0.0  # The next day; the connection holds.
        time.sleep(1.5)
        on_the_same_connection = caplog.text.count("certificate ends soon")
        broker.stop()
        driven.wait(Disconnected)
        ends_s = driven.uplink.certificate_ends_s

    assert first == (1 if days < 30 else 0)
    assert (on_the_same_connection > first) == (days < 30)
    assert ends_s == int((NOW + days * DAY).timestamp())
