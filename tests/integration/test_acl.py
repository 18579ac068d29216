import itertools
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

from tests.broker import SHIPPED, Broker
from tests.peer import WAIT_S, Peer, wait_until
from tests.pki import Pki, context

pytestmark = pytest.mark.broker

DENIED = 0x87  # MQTT 5 section 2.4: not authorized
TAKEN = (0x00, 0x10)  # Success; success, but nobody subscribed.
VEHICLE = "consentry/v1/veh-1"
OTHER = "consentry/v1/veh-2"
OWN = ("policy/ack", "status", "health", "ledger/head", "data/fleet-x/gr_a", "data/fleet-y/gr_b")
OWN += ("gap/fleet-x/gr_a",)
_numbers = itertools.count()


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("acl") / "broker", pki) as running:
        yield running


class Doors:
    """Connects everybody once, by the right door. A context manager.

    A vehicle's name is its client id too, so a second connection would end the first.
    """

    def __init__(self, broker: Broker, pki: Pki) -> None:
        self._broker = broker
        self._pki = pki
        self._peers: dict[str, Peer] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for peer in self._peers.values():
            peer.close()

    def vehicle(self, name: str) -> Peer:
        key = f"vehicle {name}"
        if key not in self._peers:
            tls = context(self._pki.vehicle(name))
            self._peers[key] = Peer(self._broker.port, tls, client_id=name)
        return self._peers[key]

    def backend(self, name: str, key: str = "") -> Peer:
        key = key or name
        if key not in self._peers:
            tls = context(self._pki.client(name, self._pki.backend))
            self._peers[key] = Peer(self._broker.backend_port, tls)
        return self._peers[key]

    def recipient(self, name: str) -> Peer:
        key = f"recipient {name}"
        if key not in self._peers:
            tls = context(self._pki.client(name, self._pki.recipients))
            self._peers[key] = Peer(self._broker.recipient_port, tls)
        return self._peers[key]

    def anybody(self, name: str) -> Peer:
        if name.startswith("veh"):
            return self.vehicle(name)
        return self.backend(name) if name in ("platform", "auditor") else self.recipient(name)


@pytest.fixture
def doors(broker: Broker, pki: Pki) -> Iterator[Doors]:
    with Doors(broker, pki) as opened:
        yield opened


@pytest.mark.parametrize("what", OWN)
def test_a_vehicle_writes_below_its_own_name(doors: Doors, what: str) -> None:
    """Answers, status, health, ledger heads and envelopes."""
    auditor = doors.backend("auditor").subscribe(f"{VEHICLE}/{what}")

    assert doors.vehicle("veh-1").publish(f"{VEHICLE}/{what}", b"mine") == 0
    assert wait_until(auditor.payloads) == [b"mine"]


WRITES = [
    *(("veh-1", f"{OTHER}/{what}") for what in OWN),
    ("veh-1", f"{VEHICLE}/policy"),
    ("veh-1", f"{OTHER}/policy"),
    ("veh-1", f"{VEHICLE}/data/fleet-x"),
    ("veh-1", f"{VEHICLE}/data/fleet-x/gr_a/more"),
    ("veh-1", f"{VEHICLE}/status/more"),
    ("veh-1", "consentry/v1/veh-1/anything"),
    ("veh-1", "consentry/v2/veh-1/status"),
    ("veh-1", "anything"),
    *(("platform", f"{VEHICLE}/{what}") for what in OWN),
    ("platform", f"{VEHICLE}/policy/more"),
    *(("fleet-x", f"{VEHICLE}/{what}") for what in OWN),
    ("fleet-x", f"{VEHICLE}/policy"),
    ("fleet-x", "consentry/v1/fleet-x/status"),
    ("fleet-x", "anything"),
    ("auditor", f"{VEHICLE}/policy"),
    ("auditor", f"{VEHICLE}/status"),
    ("auditor", "anything"),
]


@pytest.mark.parametrize(("name", "topic"), WRITES)
def test_what_is_not_allowed_is_not_written(doors: Doors, name: str, topic: str) -> None:
    """Refused with a reason, and nobody hears it."""
    # Not the auditor that is to be denied: mosquitto ends a connection after a refusal.
    auditor = doors.backend("auditor", "listening").subscribe("#")
    culprit = doors.anybody(name)

    assert culprit.publish(topic, b"forged") == DENIED

    doors.vehicle("veh-2").publish(f"{OTHER}/health", b"sentinel")
    wait_until(lambda: b"sentinel" in auditor.payloads())
    assert b"forged" not in auditor.payloads()


def test_the_platform_writes_policies_and_the_vehicle_reads_its_own(doors: Doors) -> None:
    """Retained too, for a vehicle that was away."""
    platform = doors.backend("platform")
    assert platform.publish(f"{VEHICLE}/policy", b"policy", retain=True) in TAKEN

    peer = doors.vehicle("veh-1").subscribe(f"{VEHICLE}/policy")

    assert wait_until(peer.payloads) == [b"policy"]
    platform.publish(f"{VEHICLE}/policy", b"", retain=True)


def test_a_recipient_reads_what_is_addressed_to_it_by_any_vehicle(doors: Doors) -> None:
    """One subscription for the whole fleet."""
    recipient = doors.recipient("fleet-x").subscribe("consentry/v1/+/data/fleet-x/#")
    for name in ("veh-1", "veh-2"):
        topic = f"consentry/v1/{name}/data/fleet-x/gr_a"
        assert doors.vehicle(name).publish(topic, name.encode()) == 0
    wait_until(lambda: len(recipient.messages) == 2)

    assert sorted(recipient.payloads()) == [b"veh-1", b"veh-2"]


READS = [
    ("veh-1", f"{OTHER}/policy"),
    *(("veh-1", f"{OTHER}/{what}") for what in OWN),
    *(("veh-1", f"{VEHICLE}/{what}") for what in OWN),
    ("platform", f"{VEHICLE}/data/fleet-x/gr_a"),
    ("fleet-x", f"{VEHICLE}/policy"),
    ("fleet-x", f"{VEHICLE}/policy/ack"),
    ("fleet-x", f"{VEHICLE}/status"),
    ("fleet-x", f"{VEHICLE}/health"),
    ("fleet-x", f"{VEHICLE}/ledger/head"),
    ("fleet-x", f"{VEHICLE}/data/fleet-y/gr_b"),
    ("fleet-x", f"{VEHICLE}/data/fleet-x2/gr_a"),
    ("fleet-x", f"{VEHICLE}/gap/fleet-y/gr_a"),
    ("platform", f"{VEHICLE}/gap/fleet-x/gr_a"),
    ("stranger", f"{VEHICLE}/data/fleet-x/gr_a"),
]
SENTINELS = {
    "veh-1": ("platform", f"{VEHICLE}/policy"),
    "platform": ("veh-1", f"{VEHICLE}/health"),
    "fleet-x": ("veh-1", f"{VEHICLE}/data/fleet-x/sentinel"),
    "stranger": ("veh-1", f"{VEHICLE}/data/stranger/sentinel"),
}


@pytest.mark.parametrize("filters", [("topic", "sentinel"), ("#",)], ids=["exact", "all"])
@pytest.mark.parametrize(("name", "topic"), READS)
def test_what_is_not_allowed_is_not_read(
    doors: Doors, name: str, topic: str, filters: tuple[str, ...]
) -> None:
    """Any subscription is taken by mosquitto; what counts is that nothing comes by it."""
    writer, sentinel = SENTINELS[name]
    author = doors.anybody("platform" if topic.endswith("/policy") else topic.split("/")[2])
    listener = doors.anybody(name)
    secret = b"secret %d" % next(_numbers)
    assert author.publish(topic, secret, retain=True) in TAKEN
    for item in filters:
        listener.subscribe({"topic": topic, "sentinel": sentinel}.get(item, item))
    assert author.publish(topic, secret) in TAKEN

    doors.anybody(writer).publish(sentinel, b"sentinel")

    wait_until(lambda: b"sentinel" in listener.payloads())
    assert secret not in listener.payloads()
    author.publish(topic, b"", retain=True)


@pytest.mark.parametrize("name", ["#", "+", "veh-1/x", "+/data", "$SYS"])
def test_a_name_that_is_a_wildcard_opens_nothing(doors: Doors, name: str) -> None:
    """CVE-2017-7650: a pattern must not be widened by the name that is put into it."""
    listener = doors.recipient(name).subscribe("consentry/#").subscribe("#")
    auditor = doors.backend("auditor").subscribe(f"{VEHICLE}/#")
    peer = doors.vehicle("veh-1")
    peer.publish(f"{VEHICLE}/data/fleet-x/gr_a", b"secret")
    peer.publish(f"{VEHICLE}/health", b"sentinel")
    wait_until(lambda: b"sentinel" in auditor.payloads())

    assert listener.messages == []
    assert doors.vehicle(name).publish(f"{VEHICLE}/status", b"forged") == DENIED


def test_a_vehicle_named_as_a_role_is_only_a_vehicle(doors: Doors) -> None:
    """Roles belong to the other door, and its CA."""
    listener = doors.vehicle("auditor").subscribe("#")
    doors.vehicle("veh-1").publish(f"{VEHICLE}/data/fleet-x/gr_a", b"secret")
    doors.backend("platform").publish("consentry/v1/auditor/policy", b"sentinel")
    wait_until(listener.payloads)

    assert listener.payloads() == [b"sentinel"]
    assert doors.vehicle("platform").publish(f"{VEHICLE}/policy", b"forged") == DENIED


def test_the_doors_take_no_certificate_of_the_other_and_none_of_strangers(
    broker: Broker, pki: Pki
) -> None:
    """Also none at all, and no plaintext."""
    seen = broker.log.count("New client connected")
    wrong = [
        (broker.port, context(pki.client("veh-1", pki.backend))),
        (broker.port, context(pki.client("veh-1", pki.stranger))),
        (broker.port, ssl.create_default_context(cafile=pki.vehicle("veh-1").ca)),
        (broker.backend_port, context(pki.client("platform", pki.vehicles))),
        (broker.backend_port, context(pki.client("platform", pki.stranger))),
        (broker.backend_port, context(pki.client("platform", pki.recipients))),
        (broker.backend_port, ssl.create_default_context(cafile=pki.vehicle("veh-1").ca)),
        (broker.recipient_port, context(pki.client("fleet-x", pki.vehicles))),
        (broker.recipient_port, context(pki.client("fleet-x", pki.backend))),
        (broker.recipient_port, ssl.create_default_context(cafile=pki.vehicle("veh-1").ca)),
    ]
    connect = b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x00"
    for port, tls in wrong:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as sock,
            # TLS 1.3: the refusal of our certificate comes with the first answer.
            suppress(ssl.SSLError, ConnectionError),
            tls.wrap_socket(sock, server_hostname="127.0.0.1") as wrapped,
        ):
            wrapped.sendall(connect)
            assert wrapped.recv(100) == b""
    assert broker.log.count("New client connected") == seen
    for port in (broker.port, broker.backend_port, broker.recipient_port):
        with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as sock:
            sock.sendall(connect)
            with suppress(ConnectionError):
                assert sock.recv(100)[:1] != b"\x20"
    assert broker.log.count("New client connected") == seen


def test_tls_1_2_is_not_spoken(broker: Broker, pki: Pki) -> None:
    """By no door."""
    for port in (broker.port, broker.backend_port, broker.recipient_port):
        old = context(pki.vehicle("veh-1"))
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as sock,
            pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"),
        ):
            old.wrap_socket(sock, server_hostname="127.0.0.1")


def test_a_vehicle_cannot_take_over_the_session_of_another(
    broker: Broker, pki: Pki, doors: Doors
) -> None:
    """With its client id it would get the policies that wait for it, and silence it."""
    victim = doors.vehicle("veh-1").subscribe(f"{VEHICLE}/policy")
    tls = context(pki.vehicle("veh-2"))
    for client_id in ("veh-1", "consentry-veh-1"):
        with Peer(broker.port, tls, client_id=client_id) as attacker:
            attacker.subscribe(f"{VEHICLE}/policy")
            victim.messages.clear()
            doors.backend("platform").publish(f"{VEHICLE}/policy", b"policy")

            assert wait_until(victim.payloads) == [b"policy"]
            assert victim.client.is_connected()
            assert attacker.messages == []


def test_a_recipient_cannot_take_over_the_session_of_another(
    broker: Broker, pki: Pki, doors: Doors
) -> None:
    """With its client id it would empty the session, and the other would lose what waits there."""
    topic = f"{VEHICLE}/data/fleet-x/gr_a"
    mine, other = (context(pki.client(name, pki.recipients)) for name in ("fleet-x", "fleet-y"))
    with Peer(broker.recipient_port, mine, client_id="any", session_s=600) as victim:
        victim.subscribe("consentry/v1/+/data/fleet-x/#")
    doors.vehicle("veh-1").publish(topic, b"waits")
    for client_id in ("fleet-x", "recipient-fleet-x", "any"):
        for session_s in (0, 600):
            with Peer(broker.recipient_port, other, client_id=client_id, session_s=session_s) as it:
                it.subscribe("consentry/v1/+/data/fleet-x/#")
                assert it.messages == []

    with Peer(broker.recipient_port, mine, client_id="another", session_s=600) as again:
        assert wait_until(again.payloads) == [b"waits"]


def test_the_list_for_one_door_is_the_three_lists_together() -> None:
    """The demo's broker has one door."""

    def rules(name: str) -> list[str]:
        lines = (SHIPPED / name).read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line and not line.startswith("#")]

    assert rules("acl") == rules("vehicles.acl") + rules("recipients.acl") + rules("backend.acl")


def test_no_more_files_than_these_are_shipped() -> None:
    """A stray list beside them would be installed with them."""
    assert sorted(path.name for path in Path(SHIPPED).iterdir()) == [
        "acl",
        "backend.acl",
        "mosquitto.conf",
        "recipients.acl",
        "vehicles.acl",
    ]
