"""The ways to a broker: addresses, proxies, other brokers, older protocols, dead links."""

import base64
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.edge.keys import client_tls
from agent.edge.uplink import (
    Connected,
    Delivered,
    Disconnected,
    PolicyArrived,
    Proxy,
    Refused,
    UplinkConfig,
)
from agent.edge.uplink import outbox as outbox_module
from agent.edge.uplink import server as server_module
from tests.broker import Broker, PlainBroker
from tests.driven import Driven, plain_config, tls_config
from tests.peer import FakeBroker, Peer, wait_until
from tests.pki import Pki, context
from tests.relay import Relay

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("ways") / "broker", pki) as running:
        yield running


def config(pki: Pki, port: int, host: str = "127.0.0.1", **other: Any) -> UplinkConfig:
    made = tls_config(port, "veh-1", pki.vehicle("veh-1"), **other)
    about = {name: getattr(made, name) for name in UplinkConfig.__dataclass_fields__}
    return UplinkConfig(**(about | {"host": host}))


def delivers(driven: Driven, row_id: int = 1) -> bool:
    driven.wait(Connected)
    assert driven.send(row_id)
    return driven.wait(Delivered).row_id == row_id


@pytest.mark.parametrize("dead", ["refused", "silent TLS"])
def test_a_dead_address_of_a_name_does_not_hide_a_living_one(
    broker: Broker, pki: Pki, monkeypatch: pytest.MonkeyPatch, dead: str
) -> None:
    """A name with several addresses, and IPv6 before IPv4 as the system orders them."""
    with Relay(broker.port, host="127.0.0.1", greet=lambda _: None) as hangs_up:
        first = 1 if dead == "refused" else hangs_up.port

        def resolve(host: str, port: int, **_: Any) -> list[Any]:
            assert (host, port) == ("localhost", 8883)
            stream = (socket.SOCK_STREAM, 6, "")
            return [
                (socket.AF_INET6, *stream, ("::1", first, 0, 0)),
                (socket.AF_INET, *stream, ("127.0.0.1", first)),
                (socket.AF_INET, *stream, ("127.0.0.1", broker.port)),
            ]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        with Driven(config(pki, 8883, "localhost")) as driven:
            monkeypatch.undo()
            assert delivers(driven)
            assert not any(isinstance(event, Disconnected) for event in driven.seen)


def test_a_broker_on_ipv6_is_reached(pki: Pki, broker: Broker, tmp_path: Path) -> None:
    """And with TLS its certificate must name the address."""
    with Relay(broker.port, host="::1") as relay:
        with Driven(config(pki, relay.port, "::1")) as driven:
            unnamed = driven.wait(Disconnected)
        with PlainBroker(tmp_path) as plain, Relay(plain.port, host="::1") as other:
            made = UplinkConfig("::1", other.port, "v", "v", tls=None, plaintext_loopback=True)
            with Driven(made) as driven:
                assert delivers(driven)

    # Of the first one the certificate names 127.0.0.1 only.
    assert "certificate of [::1]:" in unnamed.reason
    assert unnamed.tls


class ConnectProxy(Relay):
    """An HTTP proxy that knows one way."""

    def __init__(self, target: int, *, password: str = "", answer: bytes = b"") -> None:
        self.requests: list[bytes] = []
        self._password = password
        self._refusal = answer
        super().__init__(target, greet=self._connect)

    def _connect(self, client: socket.socket) -> int | None:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += client.recv(1)
        self.requests.append(request)
        word = base64.b64encode(self._password.encode())
        if self._refusal:
            client.sendall(self._refusal)
            return None
        if self._password and b"Proxy-Authorization: Basic " + word not in request:
            client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            return None
        client.sendall(b"HTTP/1.1 200 Connection established\r\nVia: 1.1 x\r\n\r\n")
        return self._target


def test_an_http_proxy_leads_to_the_broker_and_sees_no_byte_in_the_clear(
    broker: Broker, pki: Pki
) -> None:
    """TLS is with the broker; the broker's name is the proxy's to look up."""
    with ConnectProxy(broker.port, password="me:secret") as proxy:
        about = Proxy("127.0.0.1", proxy.port, "me:secret")
        with Driven(config(pki, 8883, "localhost", proxy=about)) as driven:
            assert delivers(driven)

    assert proxy.requests[0].startswith(b"CONNECT localhost:8883 HTTP/1.1\r\n")
    assert b"sealed" not in proxy.upstream
    assert b"consentry" not in proxy.upstream
    assert "secret" not in repr(about)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "answers 407 to CONNECT"),
        (b"SSH-2.0-x\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200", "gave no answer to CONNECT"),
        (b"HTTP/1.1 200 OK\r\n" + b"x" * 20_000, "gave no answer to CONNECT"),
    ],
)
def test_a_proxy_that_does_not_lead_there_is_told(
    broker: Broker, pki: Pki, answer: bytes, told: str
) -> None:
    """And asked again later."""
    with ConnectProxy(broker.port, answer=answer) as proxy:
        about = Proxy("127.0.0.1", proxy.port)
        with Driven(config(pki, 8883, "localhost", proxy=about)) as driven:
            assert told in driven.wait(Disconnected).reason


def test_a_protocol_is_asked_for_where_the_port_is_shared(pki: Pki) -> None:
    """AWS IoT Core takes MQTT at port 443 for `x-amzn-mqtt-ca` only."""
    files = pki.broker()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.certificate, files.private_key)
    server.set_alpn_protocols(["x-amzn-mqtt-ca"])
    mine = pki.vehicle("veh-1")
    tls = client_tls(
        ca=mine.ca,
        certificate=mine.certificate,
        private_key=mine.private_key,
        alpn=["x-amzn-mqtt-ca"],
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
        with Driven(UplinkConfig("127.0.0.1", port, "veh-1", "veh-1", tls=tls)):
            sock, _ = listener.accept()
            with server.wrap_socket(sock, server_side=True) as wrapped:
                assert wrapped.selected_alpn_protocol() == "x-amzn-mqtt-ca"


def test_a_link_that_died_without_a_word_is_found_within_two_keepalives(
    broker: Broker, pki: Pki
) -> None:
    """28 s with the default of 14: nobody is told when a modem loses its cell."""
    with (
        Relay(broker.port) as relay,
        Driven(config(pki, relay.port, keepalive_s=2)) as driven,
    ):
        assert delivers(driven)
        time.sleep(0.7)  # Out of step with whatever looks at the clock.
        relay.silent = True
        begun = time.monotonic()
        driven.wait(Disconnected)
        found_s = time.monotonic() - begun
        relay.silent = False
        driven.wait(Connected)

    assert found_s < 4.3
    assert 2 * UplinkConfig.__dataclass_fields__["keepalive_s"].default < 30


def test_bytes_without_an_answer_end_the_connection_in_the_kernel() -> None:
    """Its own limit is a quarter of an hour."""
    with FakeBroker() as fake, Driven(plain_config(fake.port, keepalive_s=7)) as driven:
        driven.wait(Connected)
        connection = driven.uplink._exchange._connection
        assert connection is not None
        sock = connection._socket()

        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000


REFUSALS = {"MQTT 5 words": b"\x20\x03\x00\x84\x00", "3.1.1 words": b"\x20\x02\x00\x01"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainBroker]:
    with PlainBroker(tmp_path_factory.mktemp("plain")) as running:
        yield running


@pytest.mark.parametrize("words", REFUSALS)
def test_a_broker_that_does_not_speak_5_is_spoken_to_in_3_1_1(
    plain: PlainBroker, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Envelopes out, policies in, status and will; remembered for the next connections."""
    status = "consentry/v1/veh-1/status"
    levels: list[int] = []

    def refuses_5(data: bytes) -> bytes | None:
        levels.append(data[data.index(b"MQTT") + 4])
        return REFUSALS[words] if levels[-1] == 5 else None

    with plain.peer() as peer, Relay(plain.port, first=refuses_5) as relay:
        peer.subscribe("consentry/v1/#")
        with Driven(plain_config(relay.port)) as driven:
            assert delivers(driven)
            assert driven.uplink.publish_status("online")
            peer.publish("consentry/v1/veh-1/policy", b"policy")
            arrived = driven.wait(PolicyArrived)
            driven.uplink.acknowledge(arrived.token)
            wait_until(lambda: peer.payloads(status)[-1:] == [b'{"state":"online"}'])
            relay.cut()
            driven.wait(Disconnected)
            assert delivers(driven, 2)
            wait_until(lambda: peer.payloads(status)[-1:] == [b'{"state":"offline"}'])
            driven.uplink.publish_status("online")
            wait_until(lambda: peer.payloads(status)[-1:] == [b'{"state":"online"}'])
        wait_until(lambda: peer.payloads(status)[-1:] == [b'{"state":"offline"}'])

    assert levels[:2] == [5, 4]
    assert set(levels[1:]) == {4}
    assert arrived.data == b"policy"
    assert len(peer.payloads("consentry/v1/veh-1/data/fleet-x/gr_a")) == 2
    assert "broker speaks only MQTT 3.1.1" in caplog.text


def test_the_old_protocol_may_be_forbidden() -> None:
    """It cannot tell a refusal from a success."""
    with (
        FakeBroker(connack_code=0x84) as fake,
        Driven(plain_config(fake.port, allow_mqtt_3_1_1=False)) as driven,
    ):
        assert "Unsupported protocol version" in driven.wait(Disconnected).reason
        wait_until(lambda: fake.connects >= 2)
        assert fake.connect_packet[6] == 5


def moved(server: str, code: int = 0x9C) -> dict[str, Any]:
    text = server.encode()
    return {
        "connack_code": code,
        "connack": b"\x1c" + len(text).to_bytes(2) + text,
    }


@pytest.mark.parametrize("code", [0x9C, 0x9D])
def test_a_broker_may_send_us_to_one_that_the_configuration_names(code: int) -> None:
    """And when that one fails, home again."""
    with FakeBroker() as other, FakeBroker() as home:
        about = moved(f"elsewhere.example 127.0.0.1:{other.port}", code)
        home.connack_code, home.connack = about["connack_code"], about["connack"]
        allowed = (f"127.0.0.1:{other.port}",)
        with Driven(plain_config(home.port, redirects=allowed)) as driven:
            assert delivers(driven)
            assert [len(fake.received) for fake in (home, other)] == [0, 1]
            other.connack_code = 0x88  # Server unavailable
            home.connack_code, home.connack = 0, b""
            other.drop()
            driven.wait(Connected)
            driven.send(2)
            driven.wait(Delivered)

    assert [message.payload for message in home.received] == [b"sealed"]


def test_a_broker_cannot_send_us_anywhere_else(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever holds its certificate could lead the fleet to a listener."""
    with FakeBroker() as other, FakeBroker(**moved("127.0.0.1")) as home:
        home.connack = moved(f"127.0.0.1:{other.port}")["connack"]
        with Driven(plain_config(home.port)) as driven:
            assert "Use another server" in driven.wait(Disconnected).reason
            wait_until(lambda: home.connects >= 2)

    assert other.connects == 0
    assert "sends us to one that is not allowed" in caplog.text


def test_two_brokers_that_send_us_to_each_other_do_not_make_us_spin() -> None:
    """A few hops are followed at once, then the pauses grow."""
    with FakeBroker() as one, FakeBroker() as two:
        for fake, target in ((one, two), (two, one)):
            about = moved(f"127.0.0.1:{target.port}")
            fake.connack_code, fake.connack = about["connack_code"], about["connack"]
        allowed = (f"127.0.0.1:{two.port}",)
        limits = {"min_backoff_s": 5.0, "max_backoff_s": 10.0}
        with Driven(plain_config(one.port, redirects=allowed, **limits)) as driven:
            driven.wait(Disconnected)
            time.sleep(0.5)
            hops = one.connects + two.connects

    assert hops <= server_module.MAX_HOPS + 2


def test_a_grant_that_the_broker_keeps_refusing_does_not_starve_the_others() -> None:
    """It takes no place in the window, and waits longer each time."""

    class Refusing(FakeBroker):
        def _publish(self, sock: socket.socket, number: int, kind: int, body: bytes) -> None:
            self.answers = b"/gr_b" in body[:80]
            super()._publish(sock, number, kind, body)
            if not self.answers:
                self.puback(self.received[-1].mid, 0x87)

    with Refusing() as fake, Driven(plain_config(fake.port, window=4)) as driven:
        driven.wait(Connected)
        for row_id in range(1, 5):
            driven.send(row_id)
        driven.wait(Refused)
        for row_id in range(10, 60):
            wait_until(lambda: driven.uplink.room() > 0)
            assert not driven.send(5)
            assert wait_until(lambda row_id=row_id: driven.send(row_id, grant_id="gr_b"))
        wait_until(lambda: sum("gr_b" in m.topic for m in fake.received) == 50)

        assert driven.uplink.held_grants() == {"gr_a"}
        assert sum("gr_a" in m.topic for m in fake.received) <= 4


def test_an_envelope_that_is_too_long_holds_nobody_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its grant nor, for good, the window."""
    monkeypatch.setattr(outbox_module, "MANY_ROWS", 3)
    with (
        FakeBroker(connack=b"\x27\x00\x00\x04\x00") as fake,
        Driven(plain_config(fake.port, window=2)) as driven,
    ):
        driven.wait(Connected)
        for row_id in (1, 2, 3):
            assert wait_until(lambda row_id=row_id: driven.send(row_id, bytes(2000)))
            assert driven.wait(Refused) == Refused(row_id, 0x95)
            assert not driven.send(row_id, bytes(2000))
        assert driven.send(9, b"short")
        driven.wait(Delivered)
        assert driven.uplink.held_grants() == frozenset()
        driven.send(4, bytes(2000))
        driven.wait(Refused)

        assert driven.uplink.held_grants() == {"gr_a"}


def test_a_ledger_head_waits_for_the_broker_and_only_the_newest_does(
    broker: Broker, pki: Pki
) -> None:
    """An older head says nothing that the newer does not."""
    topic = "consentry/v1/veh-1/ledger/head"
    tls = context(pki.client("platform", pki.backend))
    with Peer(broker.backend_port, tls).subscribe(topic) as platform:
        driven = Driven(config(pki, broker.port))
        for number in range(3):
            driven.uplink.publish_ledger_head(b"head %d" % number)
        with driven:
            driven.wait(Connected)
            assert wait_until(platform.payloads) == [b"head 2"]
            driven.uplink.publish_ledger_head(b"head 3")
            wait_until(lambda: platform.payloads() == [b"head 2", b"head 3"])


def test_a_record_of_a_gap_goes_to_its_recipient_and_is_answered(broker: Broker, pki: Pki) -> None:
    """On a topic of its own, so that data topics carry envelopes and nothing else."""
    tls = context(pki.client("fleet-x", pki.recipients))
    with (
        Peer(broker.recipient_port, tls).subscribe("consentry/v1/+/gap/fleet-x/#") as recipient,
        Driven(config(pki, broker.port)) as driven,
    ):
        driven.wait(Connected)
        about = {"recipient": "fleet-x", "grant_id": "gr_a", "record": b"signed"}
        assert driven.uplink.publish_gap(-3, **about)
        assert not driven.uplink.publish_gap(-3, **about)
        assert driven.wait(Delivered) == Delivered(-3)
        (message,) = wait_until(lambda: list(recipient.messages))

    assert message.topic == "consentry/v1/veh-1/gap/fleet-x/gr_a"
    assert message.payload == b"signed"


def test_a_flood_of_answers_makes_no_events() -> None:
    """The queue of the agent lane holds no more than it asked for."""
    with FakeBroker(answers=False) as fake, Driven(plain_config(fake.port)) as driven:
        driven.wait(Connected)
        driven.send(1)
        wait_until(lambda: fake.received)
        for mid in range(1, 3000):
            fake.puback(mid)
        driven.wait(Delivered)
        driven.send(2)
        wait_until(lambda: len(fake.received) == 2)

        assert driven.events.qsize() == 0


def test_a_broker_that_floods_us_with_policies_waits_until_they_were_read() -> None:
    """Over connections too: what is in memory has a limit."""
    policy = b"".join(
        b"\x32\x20\x00\x19consentry/v1/veh-1/policy" + mid.to_bytes(2) + b"\x00pp"
        for mid in range(1, 5)
    )
    with FakeBroker(greeting=policy) as fake, Driven(plain_config(fake.port)) as driven:
        arrived: list[PolicyArrived] = []
        while len(arrived) < 8:
            arrived.append(driven.wait(PolicyArrived))
            if len(arrived) == 4:
                fake.drop()
        fake.drop()
        time.sleep(0.5)
        seen = fake.connects
        for event in arrived:
            driven.uplink.acknowledge(event.token)
        wait_until(lambda: fake.connects > seen)

    assert seen == 2
