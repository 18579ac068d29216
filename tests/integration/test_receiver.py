import hashlib
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from agent.cloud import session
from agent.cloud.envelope import Opened
from agent.cloud.receiver import (
    BrokerAddress,
    Receiver,
    Rejected,
    publish_policy,
    push_policy,
)
from agent.cloud.restrict import new_restriction, sign_restriction
from agent.core.ack import Ack, sign_ack
from agent.core.gap import Gap, sign_gap
from agent.core.jws import unsafe_unverified_payload
from agent.edge.keys import client_tls
from agent.errors import PolicyRejected, UplinkError
from tests import sealing
from tests.broker import Broker, free_ports
from tests.cloud import VEHICLE, Cloud
from tests.columns import SPEED, batch
from tests.peer import GARBAGE, WAIT_S, FakeBroker, Peer, wait_until
from tests.pki import Files, Pki, context

pytestmark = pytest.mark.broker

TOPIC = "consentry/v1/veh-1/data/fleet-x/gr_1"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def broker(tmp_path: Path, pki: Pki) -> Iterator[Broker]:
    with Broker(tmp_path / "broker", pki) as running:
        yield running


@pytest.fixture
def vehicle(broker: Broker, pki: Pki) -> Iterator[Peer]:
    with Peer(broker.port, context(pki.vehicle("veh-1")), client_id="veh-1") as peer:
        yield peer


def address(broker: Broker, files: Files, port: int | None = None) -> BrokerAddress:
    tls = client_tls(ca=files.ca, certificate=files.certificate, private_key=files.private_key)
    return BrokerAddress("127.0.0.1", port or broker.backend_port, tls)


def receiver(broker: Broker, pki: Pki, recipient: str = "fleet-x", **other: Any) -> Receiver:
    return Receiver(
        address(broker, pki.client("fleet-x", pki.recipients), broker.recipient_port),
        recipient=recipient,
        recipient_keys=sealing.recipient_keys(),
        devices=sealing.devices(),
        **other,
    )


def sealed(n: int, **members: Any) -> bytes:
    """An envelope of veh-1, grant gr_1."""
    return sealing.envelope(batch(SPEED), n=n, **({"vehicle": "veh-1"} | members))


def test_envelopes_come_out_opened_and_each_once(broker: Broker, pki: Pki, vehicle: Peer) -> None:
    """QoS 1 delivers twice now and then."""
    with receiver(broker, pki) as found:
        first, second = sealed(1), sealed(2)
        for data in (first, first, second, first):
            assert vehicle.publish(TOPIC, data) == 0
        opened = list(islice(found, 2))

    assert all(isinstance(item, Opened) for item in opened)
    assert [item.header.n for item in opened if isinstance(item, Opened)] == [1, 2]
    assert found.duplicates == 1
    assert found.conflicts == 0


def test_other_bytes_under_the_same_number_are_not_lost(
    broker: Broker, pki: Pki, vehicle: Peer
) -> None:
    """A vehicle whose disk was set back numbers anew; its new data counts."""
    with receiver(broker, pki) as found:
        vehicle.publish(TOPIC, sealed(1))
        vehicle.publish(TOPIC, sealed(1))
        opened = list(islice(found, 2))

        assert len(opened) == 2
        assert found.conflicts == 1


@pytest.mark.parametrize(
    "case",
    [
        (TOPIC, b"nonsense", "malformed"),
        (TOPIC, b"", "malformed"),
        (TOPIC, sealed(1, vehicle="veh-2"), "wrong-topic"),
        (TOPIC.replace("gr_1", "gr_2"), sealed(1), "wrong-topic"),
        (TOPIC, sealed(1)[:-1] + b"\x00", "signature"),
    ],
    ids=["nonsense", "empty", "other vehicle", "other grant", "flipped"],
)
def test_what_does_not_open_is_handed_over_as_rejected_and_does_not_come_again(
    broker: Broker, pki: Pki, vehicle: Peer, case: tuple[str, bytes, str]
) -> None:
    """It would never open, and must not block what comes behind it."""
    topic, data, reason = case
    with receiver(broker, pki) as found:
        vehicle.publish(topic, data)
        vehicle.publish(TOPIC, sealed(9))
        rejected, opened = islice(found, 2)
        assert isinstance(rejected, Rejected)
        assert rejected.topic == topic
        assert rejected.error.reason == reason
        assert isinstance(opened, Opened)
        found.settle()
    with receiver(broker, pki) as again:
        vehicle.publish(TOPIC, sealed(10))
        item = next(iter(again))

        assert isinstance(item, Opened)
        assert item.header.n == 10


def test_an_envelope_that_was_not_handled_comes_again_to_the_next_receiver(
    broker: Broker, pki: Pki, vehicle: Peer
) -> None:
    """A receiver that dies over an envelope has not lost it."""
    with receiver(broker, pki) as dies:
        for n in (1, 2, 3):
            vehicle.publish(TOPIC, sealed(n))
        numbers = [item.header.n for item in islice(dies, 2)]  # type: ignore[union-attr]
    # 1 was settled when 2 was asked for; 2 was in hand when it ended.
    with receiver(broker, pki) as again:
        vehicle.publish(TOPIC, sealed(4))
        later = [item.header.n for item in islice(again, 3)]  # type: ignore[union-attr]

    assert numbers == [1, 2]
    assert later == [2, 3, 4]


def test_envelopes_wait_for_a_receiver_that_is_away_and_it_survives_a_broken_link(
    broker: Broker, pki: Pki, vehicle: Peer
) -> None:
    """The session is the broker's to keep."""
    receiver(broker, pki).close()
    vehicle.publish(TOPIC, sealed(1))
    with receiver(broker, pki) as found:
        items = iter(found)
        assert next(items).header.n == 1  # type: ignore[union-attr]
        found.settle()
        time.sleep(0.1)
        broker.stop()
        broker.start()
        wait_until(vehicle.client.is_connected)
        vehicle.publish(TOPIC, sealed(2))

        assert next(items).header.n == 2  # type: ignore[union-attr]


def test_closing_ends_the_loop_from_another_thread(broker: Broker, pki: Pki) -> None:
    """And twice is harmless."""
    with receiver(broker, pki) as found:
        threading.Timer(0.1, found.close).start()

        assert list(found) == []
    found.close()


def test_who_is_not_let_in_is_told_so(broker: Broker, pki: Pki) -> None:
    """One line with advice instead of a silent wait."""
    stranger = address(broker, pki.client("fleet-x", pki.stranger))
    deaf = BrokerAddress("127.0.0.1", free_ports(1)[0], stranger.tls)
    for where in (stranger, deaf):
        with pytest.raises(UplinkError) as caught:
            Receiver(where, recipient="fleet-x", recipient_keys={}, devices={})
        assert caught.value.hint
    with pytest.raises(UplinkError, match="expected 1 to 64 characters"):
        receiver(broker, pki, recipient="+")


def test_a_policy_waits_on_the_topic(broker: Broker, pki: Pki, vehicle: Peer) -> None:
    """Retained, for a vehicle that comes later."""
    platform = address(broker, pki.client("platform", pki.backend))
    publish_policy("veh-1", "a.b.c", platform)

    vehicle.subscribe("consentry/v1/veh-1/policy")

    (message,) = wait_until(lambda: list(vehicle.messages))
    assert (message.payload, message.retain, message.qos) == (b"a.b.c", True, 1)


def test_a_restriction_does_not_take_the_policys_place(
    broker: Broker, pki: Pki, vehicle: Peer
) -> None:
    """Who subscribes later finds the policy; who has a session gets both."""
    cloud = Cloud()
    platform = address(broker, pki.client("platform", pki.backend))
    restriction = sign_restriction(
        new_restriction(vehicle="veh-1", mode="pause", iat_s=cloud.now_s), cloud.signer
    ).encode()
    policy = cloud.policy().encode()
    vehicle.subscribe("consentry/v1/veh-1/policy")
    for document in (policy, restriction):
        publish_policy("veh-1", document, platform)
    wait_until(lambda: len(vehicle.payloads()) == 2)

    seen = vehicle.payloads()
    with Peer(broker.port, context(pki.vehicle("veh-1"))) as late:
        late.subscribe("consentry/v1/veh-1/policy")

        assert wait_until(late.payloads) == [policy]
    assert seen == [policy, restriction]


def test_a_policy_that_the_broker_refuses_is_told(broker: Broker, pki: Pki) -> None:
    """A recipient may write none."""
    recipient = address(broker, pki.client("fleet-x", pki.recipients), broker.recipient_port)

    with pytest.raises(UplinkError, match=r"does not take a publish .*Not authorized"):
        publish_policy("veh-1", "a.b.c", recipient)


class Answering(threading.Thread):
    """A vehicle that answers policies with its device key, after some answers that do not count."""

    def __init__(self, broker: Broker, pki: Pki, cloud: Cloud, *, wrong: list[str]) -> None:
        super().__init__()
        self.peer = Peer(broker.port, context(pki.vehicle(VEHICLE)))
        self.peer.subscribe(f"consentry/v1/{VEHICLE}/policy")
        self.cloud = cloud
        self.wrong = wrong

    def run(self) -> None:
        token = wait_until(self.peer.payloads)[0]
        digest = hashlib.sha256(unsafe_unverified_payload(token)).digest()
        for what in self.wrong:
            self._answer(digest, what)
        self._answer(digest, "")
        self.peer.close()

    def _answer(self, digest: bytes, wrong: str) -> None:
        key = Cloud().device if wrong == "key" else self.cloud.device
        ack = Ack(
            vehicle="veh-2" if wrong == "vehicle" else VEHICLE,
            payload_sha256=bytes(32) if wrong == "policy" else digest,
            epoch=1,
            ver=1,
            outcome="refused" if wrong else "applied",
            reason=wrong,
            time_s=1,
            counter=1,
            ledger_size=0,
            ledger_root=bytes(32),
            skipped=(),
        )
        data = b"nonsense" if wrong == "bytes" else sign_ack(ack, key)
        self.peer.publish(f"consentry/v1/{VEHICLE}/policy/ack", data)


def test_a_pushed_policy_returns_the_vehicles_own_answer_to_it(broker: Broker, pki: Pki) -> None:
    """Not another vehicle's, not to another policy, not of another key, not nonsense."""
    cloud = Cloud()
    vehicle = Answering(broker, pki, cloud, wrong=["bytes", "key", "vehicle", "policy"])
    vehicle.start()

    ack = push_policy(
        VEHICLE,
        cloud.policy(),
        address(broker, pki.client("platform", pki.backend)),
        devices={cloud.device.kid: cloud.device.public_half},
        timeout_s=15.0,
    )

    vehicle.join()
    assert (ack.outcome, ack.reason) == ("applied", "")


def test_a_vehicle_that_does_not_answer_in_time_is_told(broker: Broker, pki: Pki) -> None:
    """The policy waits for it all the same."""
    cloud = Cloud()
    token = cloud.policy()
    platform = address(broker, pki.client("platform", pki.backend))

    with pytest.raises(UplinkError, match=r"has not answered the policy within 0\.2 s"):
        push_policy(VEHICLE, token, platform, devices={}, timeout_s=0.2)

    with Peer(broker.port, context(pki.vehicle(VEHICLE))) as late:
        late.subscribe(f"consentry/v1/{VEHICLE}/policy")
        assert wait_until(late.payloads) == [token.encode()]
    with pytest.raises(PolicyRejected):
        push_policy(VEHICLE, "no token", platform, devices={}, timeout_s=0.2)


def test_a_file_keeps_an_envelope_from_coming_twice_over_restarts(
    broker: Broker, pki: Pki, vehicle: Peer, tmp_path: Path
) -> None:
    """And a receiver that dies over one gets it again."""
    inbox = tmp_path / "inbox"
    first, second = sealed(1), sealed(2)
    with receiver(broker, pki, inbox=inbox) as found:
        vehicle.publish(TOPIC, first)
        vehicle.publish(TOPIC, second)
        assert [item.header.n for item in islice(found, 2)] == [1, 2]  # type: ignore[union-attr]
    with receiver(broker, pki, inbox=inbox) as again:
        vehicle.publish(TOPIC, first)
        vehicle.publish(TOPIC, sealed(3))
        assert [item.header.n for item in islice(again, 2)] == [2, 3]  # type: ignore[union-attr]
        assert again.duplicates == 1


def test_a_recipient_knows_what_it_misses_and_why(broker: Broker, pki: Pki, vehicle: Peer) -> None:
    """Signed records come on a topic beside the data's; what nobody explains is lost."""
    gap_topic = TOPIC.replace("/data/", "/gap/")
    record = Gap("veh-1", sealing.device().kid, "gr_1", 2, 4, "evicted", 1)
    with receiver(broker, pki) as found:
        for n in (1, 5, 7):
            vehicle.publish(TOPIC, sealed(n))
        vehicle.publish(gap_topic, sign_gap(record, sealing.device()))
        vehicle.publish(gap_topic.replace("gr_1", "gr_2"), sign_gap(record, sealing.device()))
        vehicle.publish(TOPIC, sealed(8))
        items = list(islice(found, 5))
        found.settle()
        missing = found.missing()

    rejected = [item.error.reason for item in items if isinstance(item, Rejected)]
    assert rejected == ["wrong-topic"]
    assert [(run.first_n, run.last_n, run.why) for run in missing] == [
        (2, 4, "evicted"),
        (6, 6, "lost"),
    ]


@pytest.mark.parametrize("what", GARBAGE)
def test_a_broker_that_talks_nonsense_does_not_end_the_subscription(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paho's thread would die of it unseen, and whoever waits for envelopes would wait for ever."""
    monkeypatch.setattr(session, "AGAIN_S", 0.05)
    with (
        FakeBroker() as fake,
        Receiver(
            BrokerAddress("127.0.0.1", fake.port, None),
            recipient="fleet-x",
            recipient_keys=sealing.recipient_keys(),
            devices=sealing.devices(),
        ) as found,
    ):
        fake.send(GARBAGE[what])
        time.sleep(0.2)
        with suppress(OSError):  # It may have gone by itself.
            fake.drop()
        wait_until(lambda: fake.connects > 1 and len(fake.packets) > 3)
        fake.send(published(TOPIC, sealed(1)))
        late = threading.Timer(WAIT_S, found.close)  # Or it would wait for ever.
        late.start()
        items = list(islice(found, 1))
        late.cancel()

    assert [type(item) for item in items] == [Opened]


def published(topic: str, payload: bytes) -> bytes:
    """Return a PUBLISH with QoS 1 (MQTT 5 section 3.3)."""
    body = struct.pack("!H", len(topic)) + topic.encode() + b"\x00\x07\x00" + payload
    length = bytes([len(body) & 127 | 128, len(body) >> 7])
    return b"\x32" + length + body


def test_nobody_is_spoken_to_in_the_clear_over_a_network() -> None:
    there = BrokerAddress("broker.example", 1883, None)
    with pytest.raises(UplinkError, match="without TLS"):
        push_policy(VEHICLE, Cloud().policy(), there, devices={}, timeout_s=0.2)


def test_a_device_that_was_struck_off_is_believed_no_more(
    broker: Broker, pki: Pki, vehicle: Peer
) -> None:
    """From that moment on, also what it signed before; an unknown one never was."""
    struck: set[str] = set()
    with receiver(broker, pki, revoked=struck) as found:
        items = iter(found)
        vehicle.publish(TOPIC, sealed(1))
        assert isinstance(next(items), Opened)
        struck.add(sealing.device().kid)
        vehicle.publish(TOPIC, sealed(2))
        record = Gap("veh-1", sealing.device().kid, "gr_1", 3, 4, "evicted", 1)
        vehicle.publish(TOPIC.replace("/data/", "/gap/"), sign_gap(record, sealing.device()))
        refused = [next(items), next(items)]
        unknown = Cloud().device
        other = Gap("veh-1", unknown.kid, "gr_1", 3, 4, "evicted", 1)
        vehicle.publish(TOPIC.replace("/data/", "/gap/"), sign_gap(other, unknown))
        refused.append(next(items))

    assert [item.error.reason for item in refused if isinstance(item, Rejected)] == [
        "revoked-device",
        "revoked-device",
        "unknown-device",
    ]
