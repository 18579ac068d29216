import queue
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from agent.edge.keys import client_tls
from agent.edge.store import Tombstone
from agent.edge.uplink import (
    Connected,
    Delivered,
    Disconnected,
    PolicyArrived,
    Refused,
    Uplink,
    UplinkConfig,
    UplinkEvent,
    exchange,
    lane,
)
from tests.broker import Broker
from tests.driven import Driven, Spooled, plain_config, spool, tls_config
from tests.peer import GARBAGE, WAIT_S, FakeBroker, Peer, wait_until
from tests.pki import Pki, context

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def broker(tmp_path: Path, pki: Pki) -> Iterator[Broker]:
    with Broker(tmp_path / "broker", pki) as running:
        yield running


@contextmanager
def vehicle(broker: Broker, pki: Pki, **other: Any) -> Iterator[Driven]:
    with Driven(tls_config(broker.port, "veh-1", pki.vehicle("veh-1"), **other)) as driven:
        yield driven


def backend(broker: Broker, pki: Pki, name: str, **other: Any) -> Peer:
    return Peer(broker.backend_port, context(pki.client(name, pki.backend)), **other)


def recipient(broker: Broker, pki: Pki, name: str, **other: Any) -> Peer:
    return Peer(broker.recipient_port, context(pki.client(name, pki.recipients)), **other)


def test_an_envelope_reaches_its_recipient_with_its_properties(broker: Broker, pki: Pki) -> None:
    """Topic, payload, content type, expiry and number, seen by an independent subscriber."""
    with recipient(broker, pki, "fleet-x").subscribe("consentry/v1/#") as peer:
        with vehicle(broker, pki) as driven:
            driven.wait(Connected)
            assert driven.uplink.room() == 20
            assert driven.send(7, b"\x00sealed\xff", n=41, expiry_s=3600)
            assert driven.wait(Delivered) == Delivered(7, heard=True)
            assert driven.uplink.room() == 20
        (message,) = wait_until(lambda: list(peer.messages))

    assert message.topic == "consentry/v1/veh-1/data/fleet-x/gr_a"
    assert message.payload == b"\x00sealed\xff"
    assert message.qos == 1
    assert not message.retain
    assert message.properties.ContentType == 'application/cose; cose-type="cose-sign1"'
    assert 3590 <= message.properties.MessageExpiryInterval <= 3600
    assert message.properties.UserProperty == [("n", "41")]


def test_a_delivery_that_nobody_heard_is_told_apart(broker: Broker, pki: Pki) -> None:
    """PUBACK 0x10 is a success, but nobody subscribed."""
    with vehicle(broker, pki) as driven:
        driven.wait(Connected)
        driven.send(1)

        assert driven.wait(Delivered) == Delivered(1, heard=False)


def test_nothing_is_taken_while_there_is_no_connection(pki: Pki, tmp_path: Path) -> None:
    """The spool is the only queue: paho's would send later what was revoked meanwhile."""
    broker = Broker(tmp_path / "broker", pki)
    with vehicle(broker, pki) as driven:
        driven.wait(Disconnected)
        assert driven.uplink.room() == 0
        assert not driven.send(1)
        assert not driven.uplink.publish_status("online")
        assert not driven.uplink.publish_health(b"{}")
        with broker, recipient(broker, pki, "fleet-x").subscribe("consentry/v1/#") as peer:
            driven.wait(Connected)
            driven.send(2, b"second")
            driven.wait(Delivered)

            assert wait_until(peer.payloads) == [b"second"]


def test_a_policy_comes_again_until_it_is_acknowledged(broker: Broker, pki: Pki) -> None:
    """It is acknowledged only when its outcome is on disk."""
    topic = "consentry/v1/veh-1/policy"
    with backend(broker, pki, "platform") as platform, vehicle(broker, pki) as driven:
        driven.wait(Connected)
        assert platform.publish(topic, b"policy 1", retain=True) == 0
        first = driven.wait(PolicyArrived)
        broker.stop()
        broker.start()
        second = driven.wait(PolicyArrived)
        driven.uplink.acknowledge(first.token)  # Of a connection that is gone: no effect.
        broker.stop()
        broker.start()
        third = driven.wait(PolicyArrived)
        driven.uplink.acknowledge(third.token)
        driven.wait(Connected)
        driven.send(1)
        driven.wait(Delivered)
        broker.stop()
        broker.start()
        driven.wait(Connected)
        driven.send(2)
        driven.wait(Delivered)

    assert first.data == second.data == third.data == b"policy 1"
    assert len({first.token, second.token, third.token}) == 3
    assert sum(isinstance(event, PolicyArrived) for event in driven.seen) == 3


def test_a_new_process_gets_the_retained_policy_although_it_was_acknowledged(
    broker: Broker, pki: Pki
) -> None:
    """It may have lost its state since; the session alone would not bring it again."""
    with backend(broker, pki, "platform") as platform:
        platform.publish("consentry/v1/veh-1/policy", b"policy 1", retain=True)
        for _ in range(2):
            with vehicle(broker, pki) as driven:
                arrived = driven.wait(PolicyArrived)
                driven.uplink.acknowledge(arrived.token)

                assert arrived.data == b"policy 1"


def test_a_policy_waits_for_a_vehicle_that_was_away(broker: Broker, pki: Pki) -> None:
    """Also one that is not retained: the session keeps it."""
    with backend(broker, pki, "platform") as platform:
        with vehicle(broker, pki) as driven:
            driven.wait(Connected)
        platform.publish("consentry/v1/veh-1/policy", b"meanwhile")
        with vehicle(broker, pki) as driven:
            assert driven.wait(PolicyArrived).data == b"meanwhile"


def test_a_removed_policy_is_nobodys_word(broker: Broker, pki: Pki) -> None:
    """An empty retained message says nothing; consent does not change by it."""
    topic = "consentry/v1/veh-1/policy"
    with backend(broker, pki, "platform") as platform, vehicle(broker, pki) as driven:
        driven.wait(Connected)
        platform.publish(topic, b"", retain=True)
        platform.publish(topic, b"real", retain=True)

        assert driven.wait(PolicyArrived).data == b"real"


def test_a_broker_that_is_killed_takes_every_envelope_in_the_end(
    broker: Broker, pki: Pki, tmp_path: Path
) -> None:
    """A row goes only with its PUBACK."""
    files = pki.vehicle("veh-1")
    config = tls_config(broker.port, "veh-1", files, max_rate_per_s=10_000.0)
    with spool(tmp_path, 400, "gr_a") as store, Spooled(config, store) as driven:
        for share in (50, 200, 300):
            driven.pump(lambda share=share: driven.delivered >= share)  # type: ignore[misc]
            broker.kill()
            driven.pump(lambda: driven.uplink.room() == 0 and driven.events.empty())
            assert sum(t.envelopes for t in store.counts().values()) == 400 - driven.delivered
            broker.start()
        driven.pump(lambda: not store.counts())

        assert driven.delivered == 400
        assert driven.disconnects >= 3


def test_a_broker_that_is_restarted_loses_nothing_for_the_recipient(
    broker: Broker, pki: Pki, tmp_path: Path
) -> None:
    """Each envelope arrives, some of them twice, in the order of the spool."""
    config = tls_config(broker.port, "veh-1", pki.vehicle("veh-1"), max_rate_per_s=10_000.0)
    with (
        recipient(broker, pki, "fleet-x", client_id="r", session_s=600) as peer,
        spool(tmp_path, 300, "gr_a") as store,
        Spooled(config, store) as driven,
    ):
        peer.subscribe("consentry/v1/+/data/fleet-x/#")
        for share in (60, 200):
            driven.pump(lambda share=share: driven.delivered >= share)  # type: ignore[misc]
            broker.stop()
            broker.start()
        driven.pump(lambda: not store.counts())
        wait_until(lambda: len(set(peer.payloads())) == 300)

        first_times = list(dict.fromkeys(int(payload) for payload in peer.payloads()))
        assert sorted(first_times) == list(range(300))


def test_after_a_cancel_nothing_of_that_grant_is_sent_on_any_connection() -> None:
    """What has no answer yet is not retransmitted; the other grant goes on."""
    with FakeBroker(answers=False) as fake, Driven(plain_config(fake.port)) as driven:
        driven.wait(Connected)
        for row_id in range(1, 5):
            assert driven.send(row_id, grant_id="gr_a" if row_id % 2 else "gr_b")
        wait_until(lambda: len(fake.received) == 4)

        driven.uplink.cancel("gr_a")

        assert driven.uplink.in_flight() == frozenset()
        assert driven.uplink.room() == 0
        driven.wait(Disconnected)
        driven.wait(Connected)
        for row_id in (2, 4):
            assert driven.send(row_id, grant_id="gr_b")
        wait_until(lambda: len(fake.received) == 6)
        later = [message for message in fake.received if message.connection == 2]
        assert [message.topic.rpartition("/")[2] for message in later] == ["gr_b", "gr_b"]


def test_a_cancel_of_what_only_waits_leaves_the_connection_alone() -> None:
    """Withdrawn before it was handed over: nothing to cut, and nothing is sent."""
    receive_maximum = b"\x21\x00\x01"
    with (
        FakeBroker(answers=False, connack=receive_maximum) as fake,
        Driven(plain_config(fake.port)) as driven,
    ):
        driven.wait(Connected)
        driven.uplink.publish_status("online")  # Takes the only place.
        wait_until(lambda: len(fake.received) == 1)
        assert driven.send(1, grant_id="gr_a")
        time.sleep(0.05)

        driven.uplink.cancel("gr_a")

        fake.puback(fake.received[0].mid)
        assert wait_until(lambda: driven.send(2, grant_id="gr_b"))
        wait_until(lambda: len(fake.received) == 2)
        assert fake.received[1].topic.endswith("gr_b")
        assert fake.connects == 1


@pytest.mark.parametrize("seed", range(3))
def test_a_cancel_in_the_middle_of_a_stream_is_the_end_of_that_grant(
    broker: Broker, pki: Pki, tmp_path: Path, seed: int
) -> None:
    """Real mosquitto, real store: from the moment that the purge is done nothing more arrives."""
    config = tls_config(broker.port, "veh-1", pki.vehicle("veh-1"), max_rate_per_s=10_000.0)
    share = random.Random(seed).randrange(5, 150)
    with (
        backend(broker, pki, "auditor", client_id="a", session_s=600) as auditor,
        spool(tmp_path, 300, "gr_a", "gr_b") as store,
        Spooled(config, store) as driven,
    ):
        auditor.subscribe("consentry/v1/+/data/#")
        driven.pump(lambda: driven.delivered >= share)

        purged = store.end_grants([Tombstone("gr_b", "revoked")], 0)
        driven.uplink.cancel("gr_b")

        # A sentinel through the broker: what the kernel had taken before is behind us then.
        with backend(broker, pki, "platform") as platform:
            auditor.subscribe("consentry/v1/+/policy")
            wait_until(lambda: driven.uplink.room() > 0)
            platform.publish("consentry/v1/veh-1/policy", b"sentinel")
            wait_until(lambda: b"sentinel" in auditor.payloads())
        before = auditor.payloads("consentry/v1/veh-1/data/fleet-x/gr_b")
        driven.pump(lambda: not store.counts())
        wait_until(
            lambda: len(set(auditor.payloads("consentry/v1/veh-1/data/fleet-x/gr_a"))) == 150
        )

        assert purged.erased["gr_b"].envelopes > 0
        assert auditor.payloads("consentry/v1/veh-1/data/fleet-x/gr_b") == before
        assert len(set(before)) < 150


def test_a_broker_without_our_ca_or_name_gets_not_a_byte(pki: Pki) -> None:
    """The TLS handshake ends before anything of MQTT is sent."""
    wrong = {
        "stranger": pki.broker(ca=pki.stranger),
        "name": pki.broker("elsewhere.example"),
        "other name of this machine": pki.broker("localhost"),
    }
    for files in wrong.values():
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(files.certificate, files.private_key)
        got: list[bytes | str] = []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = int(listener.getsockname()[1])
            serving = threading.Thread(target=_serve_once, args=(listener, server, got))
            serving.start()
            with Driven(tls_config(port, "veh-1", pki.vehicle("veh-1"))) as driven:
                reason = driven.wait(Disconnected).reason
                serving.join(WAIT_S)

        assert "was not accepted" in reason
        assert len(got) == 1
        assert isinstance(got[0], str), "the handshake must fail on the broker's side too"


def _serve_once(listener: socket.socket, context: ssl.SSLContext, got: list[bytes | str]) -> None:
    sock, _ = listener.accept()
    try:
        with context.wrap_socket(sock, server_side=True) as tls:
            got.append(tls.recv(1000))
    except OSError as exc:
        got.append(str(exc))
        sock.close()


def test_a_vehicle_without_a_right_certificate_is_refused(broker: Broker, pki: Pki) -> None:
    """Of another CA, also of the backend's: it never comes up and publishes nothing."""
    for ca in (pki.stranger, pki.backend):
        files = pki.client("veh-1", ca)
        with Driven(tls_config(broker.port, "veh-1", files)) as driven:
            for _ in range(3):
                driven.wait(Disconnected)
                assert not driven.send(1)

        assert not any(isinstance(event, Connected) for event in driven.seen)
    assert "Received PUBLISH" not in broker.log


def test_a_vehicle_without_any_certificate_is_refused(broker: Broker, pki: Pki) -> None:
    """The broker demands one."""
    tls = ssl.create_default_context(cafile=pki.vehicle("veh-1").ca)
    tls.minimum_version = ssl.TLSVersion.TLSv1_3  # Debian's Python gives none by default.
    config = UplinkConfig("127.0.0.1", broker.port, "veh-1", "veh-1", tls=tls, max_backoff_s=1.0)
    with Driven(config) as driven:
        driven.wait(Disconnected)

    assert not any(isinstance(event, Connected) for event in driven.seen)
    assert "New client connected" not in broker.log


def test_tls_1_2_is_spoken_only_when_asked_for(pki: Pki) -> None:
    """No downgrade."""
    files = pki.broker()
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_cert_chain(files.certificate, files.private_key)
    mine = pki.vehicle("veh-1")
    got: list[bytes | str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
        for allowed in (False, True):
            serving = threading.Thread(target=_serve_once, args=(listener, old, got))
            serving.start()
            tls = client_tls(
                ca=mine.ca,
                certificate=mine.certificate,
                private_key=mine.private_key,
                allow_tls_1_2=allowed,
            )
            config = UplinkConfig("127.0.0.1", port, "veh-1", "veh-1", tls=tls)
            with Driven(config) as driven:
                serving.join(WAIT_S)
                driven.wait(Disconnected)

    assert isinstance(got[0], str)
    assert isinstance(got[1], bytes)
    assert got[1][0] == 0x10  # CONNECT


def test_another_vehicles_topics_are_refused_and_the_grant_is_held_back(
    broker: Broker, pki: Pki
) -> None:
    """A refused envelope stays in the spool; it takes no place from other grants."""
    config = tls_config(broker.port, "veh-2", pki.vehicle("veh-1"), window=3)
    with Driven(config) as driven:
        driven.wait(Connected)
        driven.send(5)

        assert driven.wait(Refused) == Refused(5, 0x87)
        # mosquitto 2.0.11 ends the connection over it; the grant stays held back on the next one.
        assert wait_until(driven.uplink.room) == 3
        assert driven.uplink.held_grants() == {"gr_a"}
        assert not driven.send(5)
        assert not driven.send(6)
        assert driven.send(7, grant_id="gr_b")


def test_the_status_says_online_and_the_broker_says_offline_for_us(
    broker: Broker, pki: Pki
) -> None:
    """Retained; by will when the vehicle is gone without a word, at once when it says goodbye."""
    topic = "consentry/v1/veh-1/status"
    with backend(broker, pki, "platform").subscribe(topic) as platform:
        for goodbye in (True, False):
            platform.messages.clear()
            with vehicle(broker, pki) as driven:
                driven.wait(Connected)
                assert driven.uplink.publish_status("online")
                wait_until(lambda: b'{"state":"online"}' in platform.payloads(topic))
                if not goodbye:
                    assert driven.uplink._exchange._connection is not None
                    driven.uplink._exchange._connection.cut()  # As if the modem lost the link.
                    driven.wait(Disconnected)
                    wait_until(lambda: b'{"state":"offline"}' in platform.payloads(topic))
            wait_until(lambda: platform.payloads(topic)[-1] == b'{"state":"offline"}')
        with backend(broker, pki, "platform").subscribe(topic) as late:
            assert wait_until(late.payloads) == [b'{"state":"offline"}']


def test_an_acknowledgement_waits_for_the_broker_and_then_is_not_repeated() -> None:
    """The platform must learn the outcome of a policy, whenever the link comes back."""
    with FakeBroker(answers=False) as fake, Driven(plain_config(fake.port)) as driven:
        for number in range(10):
            driven.uplink.publish_ack(b"ack %d" % number)
        driven.wait(Connected)
        wait_until(lambda: driven.send(1, b"row"))
        wait_until(lambda: len(fake.received) == 9)
        for message in fake.received[7:]:
            fake.puback(message.mid)
        driven.wait(Delivered)
        driven.uplink.publish_ack(b"later")
        wait_until(lambda: len(fake.received) == 10)
        fake.drop()
        wait_until(lambda: len(fake.received) == 18)

    first = [message.payload for message in fake.received[:10]]
    again = [message.payload for message in fake.received[10:]]
    assert first == [b"ack %d" % number for number in range(2, 10)] + [b"row", b"later"]
    assert again == [b"ack %d" % number for number in range(2, 9)] + [b"later"]
    assert fake.received[0].topic == "consentry/v1/veh-1/policy/ack"


def test_health_is_published_without_an_answer(broker: Broker, pki: Pki) -> None:
    """Counters are worth no retransmission."""
    topic = "consentry/v1/veh-1/health"
    with (
        backend(broker, pki, "platform").subscribe(topic) as platform,
        vehicle(broker, pki) as driven,
    ):
        driven.wait(Connected)
        assert driven.uplink.publish_health(b'{"sealed":3}')
        assert wait_until(platform.payloads) == [b'{"sealed":3}']
    assert platform.messages[0].qos == 0


def test_the_brokers_receive_maximum_is_honoured() -> None:
    """Without it a strict broker would send us away; paho ignores it."""
    with (
        FakeBroker(answers=False, connack=b"\x21\x00\x03") as fake,
        Driven(plain_config(fake.port, window=50)) as driven,
    ):
        driven.wait(Connected)
        assert driven.uplink.room() == 3
        for row_id in range(1, 4):
            assert driven.send(row_id)
        driven.uplink.publish_ack(b"ack")
        wait_until(lambda: len(fake.received) >= 3)
        time.sleep(0.1)
        first = len(fake.received)
        for message in list(fake.received):
            fake.unanswered -= 1
            fake.puback(message.mid)
        wait_until(lambda: len(fake.received) == 4)

    assert first == 3
    assert fake.most_unanswered <= 3
    assert {message.topic.rpartition("/")[2] for message in fake.received} == {"gr_a", "ack"}


def test_the_next_envelopes_wait_beside_the_window_and_go_with_the_answers() -> None:
    """The line is not idle while the agent lane writes; nothing exceeds the window."""
    with FakeBroker(answers=False) as fake, Driven(plain_config(fake.port, window=2)) as driven:
        driven.wait(Connected)
        for row_id in (1, 2):
            assert driven.send(row_id)
        wait_until(lambda: len(fake.received) == 2)
        taken = [driven.send(row_id) for row_id in (3, 4, 5)]
        time.sleep(0.1)
        first = len(fake.received)
        for message in fake.received[:2]:
            fake.unanswered -= 1
            fake.puback(message.mid)
        wait_until(lambda: len(fake.received) == 4)

    assert taken == [True, True, False]
    assert first == 2
    assert fake.most_unanswered <= 2


def test_an_envelope_that_waits_beside_the_window_is_forgotten_when_its_grant_ends() -> None:
    """It was handed to nobody, so the connection stays."""
    with FakeBroker(answers=False) as fake, Driven(plain_config(fake.port, window=1)) as driven:
        driven.wait(Connected)
        assert driven.send(1)
        wait_until(lambda: len(fake.received) == 1)
        assert driven.send(2, grant_id="gr_b")
        driven.uplink.cancel("gr_b")
        fake.puback(fake.received[0].mid)
        driven.wait(Delivered)
        assert driven.send(3)
        wait_until(lambda: len(fake.received) == 2)

    assert [message.topic.rpartition("/")[2] for message in fake.received] == ["gr_a", "gr_a"]
    assert fake.connects == 1


def test_an_envelope_longer_than_the_broker_takes_is_refused_before_it_is_sent() -> None:
    """A broker would end the connection over it, again and again."""
    with (
        FakeBroker(connack=b"\x27\x00\x00\x04\x00") as fake,
        Driven(plain_config(fake.port)) as driven,
    ):
        driven.wait(Connected)
        driven.send(1, bytes(1024))
        assert driven.wait(Refused) == Refused(1, 0x95)
        driven.send(2, bytes(700))
        assert driven.wait(Delivered).row_id == 2

    assert [len(message.payload) for message in fake.received] == [700]


def test_the_connect_asks_for_a_lasting_session_and_short_packets() -> None:
    """From the first connection on, or some brokers keep no session."""
    with FakeBroker() as fake, Driven(plain_config(fake.port, keepalive_s=77)) as driven:
        driven.wait(Connected)
        packet = fake.connect_packet
        first_subscription = fake.subscribe_packet
        fake.drop()
        driven.wait(Connected)

    assert packet[:7] == b"\x00\x04MQTT\x05"
    assert packet[7] & 0x02 == 0  # Clean Start
    assert packet[7] & 0x3C == 0x2C  # Will, QoS 1, retained
    assert packet[8:10] == struct.pack("!H", 77)
    properties = packet[11 : 11 + packet[10]]
    assert b"\x11" + struct.pack("!I", 7 * 86_400) in properties
    assert b"\x27" + struct.pack("!I", 68 * 1024) in properties
    # Retain Handling: always at first, later only if the session is gone.
    assert (first_subscription[-1], fake.subscribe_packet[-1]) == (0x01, 0x11)


def test_a_broker_that_refuses_the_subscription_gets_no_envelope() -> None:
    """Who cannot tell us of a revocation gets nothing."""
    with FakeBroker(suback=0x87) as fake, Driven(plain_config(fake.port)) as driven:
        ended = driven.wait(Disconnected)
        assert not driven.send(1)

    assert "refuses the subscription to the policy" in ended.reason
    assert ended.auth == "not-authorized"
    assert fake.received == []


def test_a_broker_that_refuses_us_is_asked_again_later() -> None:
    """With its reason in the log."""
    with FakeBroker(connack_code=0x87) as fake, Driven(plain_config(fake.port)) as driven:
        assert driven.wait(Disconnected) == Disconnected(
            "the broker refuses us: Not authorized", auth="not-authorized"
        )
        wait_until(lambda: fake.connects >= 3)
        assert driven.uplink.is_alive


def _has(driven: Driven, kind: type[UplinkEvent]) -> bool:
    with suppress(queue.Empty):
        driven.wait(kind, timeout_s=0.05)
        return True
    return False


@pytest.mark.parametrize("what", GARBAGE)
def test_a_broker_that_talks_nonsense_cannot_kill_the_lane(what: str) -> None:
    """It makes paho raise all kinds of things over it, in a thread that would die unseen."""
    with (
        FakeBroker(greeting=GARBAGE[what]) as fake,
        Driven(plain_config(fake.port)) as driven,
    ):
        wait_until(lambda: fake.connects >= 1)
        time.sleep(0.1)
        fake.greeting = b""
        with suppress(OSError):
            fake.drop()
        # On the first connections the envelope may be lost with the connection.
        wait_until(lambda: not driven.send(1) and _has(driven, Delivered))

        assert driven.uplink.is_alive


def test_a_packet_of_a_hundred_megabytes_is_not_taken_into_memory() -> None:
    """The broker was told our Maximum Packet Size; paho does not hold it to it."""
    header = b"\x32" + bytes([0x80 | 0x7F, 0x80 | 0x7F, 0x80 | 0x7F, 0x30])
    with (
        FakeBroker(greeting=header + bytes(50_000)) as fake,
        Driven(plain_config(fake.port)) as driven,
    ):
        while "the broker sends" not in (found := driven.wait(Disconnected).reason):
            pass

    assert "expected at most 69632" in found


def test_more_policies_than_we_asked_for_end_the_connection() -> None:
    """Unacknowledged policies are held in memory, so their number is bounded."""
    policy = b"".join(
        b"\x32\x20\x00\x19consentry/v1/veh-1/policy" + struct.pack("!HB", mid, 0) + b"pp"
        for mid in range(1, 9)
    )
    with FakeBroker(greeting=policy) as fake, Driven(plain_config(fake.port)) as driven:
        while "more than 4 policies" not in driven.wait(Disconnected).reason:
            pass

    first = driven.seen[: [isinstance(e, Disconnected) for e in driven.seen].index(True)]
    assert sum(isinstance(event, PolicyArrived) for event in first) <= 4


def test_a_message_on_another_topic_or_with_another_qos_is_no_policy() -> None:
    """A hostile broker may send what nobody subscribed to."""
    greeting = b"\x32\x0d\x00\x07x/polic" + b"\x00\x09\x00p" + b"\x30\x1d\x00\x19"
    greeting += b"consentry/v1/veh-1/policy" + b"\x00p"
    with FakeBroker(greeting=greeting) as fake, Driven(plain_config(fake.port)) as driven:
        driven.wait(Connected)
        driven.send(1)
        driven.wait(Delivered)

        assert wait_until(lambda: fake.acked) == [9]
    assert not any(isinstance(event, PolicyArrived) for event in driven.seen)


def test_an_exception_in_the_callback_ends_the_lane_and_shows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No dead thread in a living process that thinks all is well."""
    told: list[UplinkEvent] = []

    def fails(event: UplinkEvent) -> None:
        told.append(event)
        if event == Connected():
            raise RuntimeError("a defect")

    with FakeBroker() as fake:
        uplink = Uplink(plain_config(fake.port), on_event=fails)
        uplink.start()
        wait_until(lambda: not uplink.is_alive)
        wait_until(lambda: len(told) == 2)

        assert told[1] == Disconnected("the network thread died: RuntimeError")
        assert uplink.room() == 0
        assert "network lane died" in caplog.text
        uplink.close()


def test_a_broker_that_gives_no_answer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead session in a living connection would hold the window for good."""
    monkeypatch.setattr(exchange, "ANSWER_S", 0.2)
    with (
        FakeBroker(answers=False) as fake,
        Driven(plain_config(fake.port, keepalive_s=1)) as driven,
    ):
        driven.wait(Connected)
        driven.send(1)

        assert "gave no answer" in driven.wait(Disconnected).reason
        driven.wait(Connected)
        assert driven.uplink.in_flight() == frozenset()


def test_the_wait_grows_with_each_failure_and_begins_anew_after_a_connection_that_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lane, "STABLE_S", 0.3)
    attempts: list[int] = []

    def noted(attempt: int, *_: object) -> float:
        attempts.append(attempt)
        return 0.01

    monkeypatch.setattr(lane, "backoff_s", noted)
    with FakeBroker() as fake, Driven(plain_config(fake.port)) as driven:
        for held_s in (0.0, 0.0, 0.0, 0.5):
            driven.wait(Connected)
            time.sleep(held_s)
            fake.drop()
            driven.wait(Disconnected)
        driven.wait(Connected)

    assert attempts == [0, 1, 2, 0]


def test_a_listener_that_is_no_broker_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """TCP accepts, nothing speaks."""
    monkeypatch.setattr(lane, "CONNACK_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = plain_config(int(silent.getsockname()[1]), keepalive_s=1)
        with Driven(config) as driven:
            assert "did not take us within" in driven.wait(Disconnected).reason


def test_a_backlog_leaves_at_a_limited_rate() -> None:
    """A burst of one window, then so many a second."""
    with (
        FakeBroker() as fake,
        Driven(plain_config(fake.port, window=5, max_rate_per_s=50.0)) as driven,
    ):
        driven.wait(Connected)
        begun = time.monotonic()
        sent = 0
        while sent < 20:
            sent += driven.send(sent + 1)
        wait_until(lambda: len(fake.received) == 20)

    assert time.monotonic() - begun >= 15 / 50 * 0.95


def test_closing_does_not_wait_for_the_backoff_and_may_be_repeated() -> None:
    """A stop takes no five minutes, and a fleet's backoff is that long."""
    (port,) = (free_port(),)
    driven = Driven(plain_config(port, min_backoff_s=300.0, max_backoff_s=300.0))
    with driven:
        driven.wait(Disconnected)
        assert driven.uplink.is_alive
        begun = time.monotonic()
    driven.uplink.close()

    assert time.monotonic() - begun < 2.0
    assert not driven.send(1)
    driven.uplink.cancel("gr_a")


def test_closing_does_not_wait_for_a_broker_that_is_silent_in_the_handshake(pki: Pki) -> None:
    """TCP is there, TLS is not: ten seconds for each attempt."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = int(silent.getsockname()[1])
        with Driven(tls_config(port, "veh-1", pki.vehicle("veh-1"))) as driven:
            sock, _ = silent.accept()
            time.sleep(0.1)
            begun = time.monotonic()
        sock.close()
        driven.uplink.close()

    assert time.monotonic() - begun < 2.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def test_the_watchdog_sees_the_thread_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while nothing happens."""
    monkeypatch.setattr(lane, "MOVE_S", 0.05)
    with FakeBroker() as fake, Driven(plain_config(fake.port)) as driven:
        driven.wait(Connected)
        before = driven.uplink.last_moved_ns

        assert wait_until(lambda: driven.uplink.last_moved_ns > before + 100_000_000)
