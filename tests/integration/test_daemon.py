"""The whole path on real parts: virtual bus, SQLite, cryptography, mosquitto with TLS."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from agent.cloud.envelope import verify_ack
from agent.cloud.inbox import verify_gap
from agent.core.ack import Ack
from agent.core.binding import bind
from agent.core.bushealth import BusState
from agent.core.dbc import parse_dbc
from agent.core.jws import unsafe_unverified_payload
from agent.core.mapping import parse_mapping
from agent.core.model import NS_PER_S, Frame, Sample
from agent.core.policy import parse_policy
from agent.core.replay import Replay
from agent.demo.judge import Auditor, find_bytes
from agent.edge.ledger import read_entries
from agent.edge.logfile import read_logs
from agent.errors import LedgerError
from tests import car
from tests.cloud import Cloud
from tests.rig import Rig, data_of, wait_for

pytestmark = pytest.mark.broker

FULL: dict[str, Any] = {"min_interval_s": 0}
T0_MS = 1_800_000_000_000


def acks(auditor: Auditor, cloud: Cloud) -> list[Ack]:
    devices = {cloud.device.kid: cloud.device.public_half}
    found = [item for item in auditor.seen() if item.topic.endswith("/policy/ack")]
    return [verify_ack(item.payload, devices=devices)[1] for item in found]


def await_ack(auditor: Auditor, cloud: Cloud, count: int) -> Ack:
    wait_for(f"answer {count}", lambda: len(acks(auditor, cloud)) >= count)
    return acks(auditor, cloud)[count - 1]


def opened(auditor: Auditor, cloud: Cloud, recipient: str) -> list[Sample]:
    samples: list[Sample] = []
    for envelope in data_of(auditor, recipient):
        samples += cloud.open(envelope).samples(recipient)
    return sorted(samples, key=lambda sample: (sample.t_ns, sample.path))


def replayed(token: str, frames: list[Frame], rig: Rig) -> list[Sample]:
    """Return what `consentry replay` says for the same frames and policy."""
    binding = bind(
        parse_mapping(rig.mapping.read_bytes(), name="m"),
        [parse_dbc(path.read_bytes(), name=path.name) for path in rig.dbcs],
        car.catalogue(),
        bus=None,
        any_bus=True,
    )
    policy = parse_policy(unsafe_unverified_payload(token.encode()), car.catalogue())
    replay = Replay(policy, car.catalogue(), binding)
    replay.feed(frames)
    replay.finish()
    return sorted(replay.samples(), key=lambda sample: (sample.t_ns, sample.path))


def play_all(rig: Rig, daemon: Any, frames: list[Frame]) -> None:
    """Play frames and wait until the capture lane has taken each."""
    first = daemon.capture.frames
    for start in range(0, len(frames), 500):
        rig.play(frames[start : start + 500])
        due = first + min(start + 500, len(frames))
        wait_for("the capture lane", lambda due=due: daemon.capture.frames >= due)
    rig.clock.now_ns = max(frame[0] for frame in frames)


def test_a_drive_reaches_its_recipient_as_replay_says(
    rig: Rig, cloud: Cloud, auditor: Auditor
) -> None:
    token = cloud.policy(
        cloud.grant({"read_odometer": FULL, "read_security": {"min_interval_s": 1}}),
        cloud.grant({"read_location": {}}, grant_id="g2", recipient="city"),
    )
    frames = car.merged(
        [car.odometer(T0_MS + i * 100, i) for i in range(1200)],
        [car.position(T0_MS + i * 1000, 1 + i / 500, 2) for i in range(120)],
        [car.door(T0_MS + i * 700, i % 4) for i in range(170)],
        [car.speed(T0_MS + i * 10, i % 200) for i in range(3000)],
    )
    rig.push(token)

    with rig.running() as daemon:
        await_ack(auditor, cloud, 1)
        play_all(rig, daemon, frames)
    with rig.running():  # What was open at the end is on disk and goes out after a restart.
        expected = {
            r: [s for s in replayed(token, frames, rig) if s.recipient == r]
            for r in ("fleet", "city")
        }
        wait_for(
            "every sample",
            lambda: all(len(opened(auditor, cloud, r)) >= len(expected[r]) for r in expected),
        )

    assert len(expected["fleet"]) > 1250
    assert opened(auditor, cloud, "fleet") == expected["fleet"]
    assert opened(auditor, cloud, "city") == expected["city"]


@pytest.mark.captures
def test_a_captured_drive_reaches_its_recipient_as_replay_says(
    rig: Rig, cloud: Cloud, auditor: Auditor, captures: Path
) -> None:
    rig.dbcs = [captures / "dbc_corpus" / "ford_lincoln_base_pt.dbc"]
    rig.mapping = car.ROOT / "config" / "vehicles" / "ford_mustang_s550.vspec"
    token = cloud.policy(
        cloud.grant({"read_odometer": FULL, "read_speedometer": {"min_interval_s": 0.1}})
    )
    with read_logs([captures / "mustang" / "mustang_s550.log.gz"]) as recording:
        recorded = list(recording)[:20_000]
    shift_ns = T0_MS * 10**6 - recorded[0][0]
    frames = [(t_ns + shift_ns, bus, can_id, data) for t_ns, bus, can_id, data in recorded]
    rig.push(token)

    with rig.running() as daemon:
        await_ack(auditor, cloud, 1)
        play_all(rig, daemon, frames)
    expected = replayed(token, frames, rig)
    with rig.running():
        wait_for("every sample", lambda: len(opened(auditor, cloud, "fleet")) >= len(expected))

    assert len(expected) > 100
    assert opened(auditor, cloud, "fleet") == expected


def test_without_a_policy_nothing_is_collected_or_sent(rig: Rig, auditor: Auditor) -> None:
    with rig.running() as daemon:
        wait_for("the status", lambda: any(b"online" in i.payload for i in auditor.seen()))
        rig.play([car.odometer(T0_MS + i, i) for i in range(500)])
        (bus,) = daemon.buses.health()

    assert (bus.state, bus.frames) == (BusState.IDLE, 0)  # It is not even open.
    assert data_of(auditor) == []
    assert find_bytes(rig.state, {"sealed": b"fleet-key"}) == {"sealed": 0}


def test_a_revocation_leaves_no_row_and_no_later_envelope(
    rig: Rig, cloud: Cloud, auditor: Auditor
) -> None:
    rig.max_age_s = 1.0
    rig.push(
        cloud.policy(
            cloud.grant({"read_odometer": FULL}),
            cloud.grant({"read_location": {"min_interval_s": 1}}, grant_id="g2", recipient="city"),
        )
    )

    def leg(start_s: int) -> list[Frame]:
        times = [T0_MS + start_s * 1000 + i * 100 for i in range(300)]
        return car.merged(
            [car.odometer(t, 1) for t in times], [car.position(t, 1, 2) for t in times[::10]]
        )

    with rig.running() as daemon:
        await_ack(auditor, cloud, 1)
        play_all(rig, daemon, leg(0))
        wait_for("envelopes of both", lambda: data_of(auditor, "city") and data_of(auditor))
        rig.broker.stop()  # The vehicle is offline and goes on recording.
        play_all(rig, daemon, leg(100))
        wait_for(
            "a spooled envelope of city",
            lambda: find_bytes(rig.state, {"city": b"city-key"})["city"] > 0,
        )
    sent_before = len(data_of(auditor, "city"))
    rig.broker.start()
    rig.push(cloud.revoke("g2"))
    with Auditor(port=rig.broker.port, tls=rig.broker.tls("auditor")) as later:
        with rig.running() as daemon:
            ack = await_ack(later, cloud, 1)
            play_all(rig, daemon, leg(200))
        with rig.running():
            wait_for("envelopes of fleet", lambda: len(data_of(later, "fleet")) >= 30)

        assert (ack.outcome, ack.ver) == ("applied", 2)
        assert sum(envelopes for envelopes, _ in ack.erased.values()) > 0
        assert sent_before > 0
        assert data_of(later, "city") == []
    assert find_bytes(rig.state, {"city": b"city-key"}) == {"city": 0}


@pytest.mark.parametrize(
    ("token", "reason"),
    [("garbage", "token"), ('{"v": 1}', "unsigned"), ("x" * 65_537, "too-large")],
)
def test_a_policy_that_is_refused_is_answered_with_its_reason(
    rig: Rig, cloud: Cloud, auditor: Auditor, token: str, reason: str
) -> None:
    rig.push(cloud.policy(cloud.grant({"read_odometer": FULL})))

    with rig.running():
        await_ack(auditor, cloud, 1)
        rig.push(token)
        ack = await_ack(auditor, cloud, 2)

    assert (ack.outcome, ack.reason, ack.ver) == ("refused", reason, 1)
    assert ack.counter > acks(auditor, cloud)[0].counter


def test_a_broker_that_is_not_there_loses_nothing(rig: Rig, cloud: Cloud, auditor: Auditor) -> None:
    rig.push(cloud.policy(cloud.grant({"read_odometer": FULL})))
    rig.max_age_s = 1.0

    with rig.running() as daemon:
        await_ack(auditor, cloud, 1)
        rig.broker.stop()
        play_all(rig, daemon, [car.odometer(T0_MS + i * 100, i) for i in range(300)])
        threading.Event().wait(0.5)
    rig.broker.start()
    with Auditor(port=rig.broker.port, tls=rig.broker.tls("auditor")) as later, rig.running():
        wait_for("every sample", lambda: len(opened(later, cloud, "fleet")) >= 300)

        samples = opened(later, cloud, "fleet")
        assert [sample.value for sample in samples] == list(range(300))
        numbers = [cloud.open(envelope).header.n for envelope in data_of(later)]
        assert numbers == list(range(1, len(numbers) + 1))


def test_headers_say_nothing_but_the_grants_minute(
    rig: Rig, cloud: Cloud, auditor: Auditor
) -> None:
    rig.push(cloud.policy(cloud.grant({"read_odometer": FULL})))

    with rig.running() as daemon:
        await_ack(auditor, cloud, 1)
        play_all(rig, daemon, [car.odometer(T0_MS + 61_500, 1), car.odometer(T0_MS + 62_000, 2)])
    with rig.running():
        wait_for("an envelope", lambda: data_of(auditor))

    header = cloud.open(data_of(auditor)[0]).header
    assert (header.from_s, header.to_s) == (T0_MS // 1000 + 60, T0_MS // 1000 + 120)
    assert (header.n, header.rev, header.ver, header.epoch) == (1, 1, 1, 1)
    assert json.dumps(header.vehicle) == '"veh-test"'
    assert header.ledger_size > 0
    assert header.ledger_root != bytes(32)


def gaps_in_ledger(rig: Rig) -> list[tuple[Any, ...]]:
    entries = [entry for _, entry in read_entries(rig.state / "ledger")]
    found = [e.facts for e in entries if not isinstance(e, LedgerError) and e.name == "gap"]
    return [(f["grant"], f["first"], f["last"], f["reason"]) for f in found]


@pytest.mark.parametrize("ends", ["the grant", "the policy"])
def test_the_recipient_is_told_when_what_waited_for_it_was_erased(
    rig: Rig, cloud: Cloud, auditor: Auditor, ends: str
) -> None:
    """The time in the record of the gap is that of the end, also where no policy said so."""
    end_s = cloud.now_s + 900
    times = {"exp": end_s, "nbf": cloud.now_s - 86_400}
    whole = times if ends == "the policy" else {}
    grant = cloud.grant({"read_odometer": FULL}, **({} if whole else times))
    rig.max_age_s = 1.0
    rig.push(cloud.policy(grant, **whole))

    with rig.running(when={"usage": ("no-such-interface",)}) as daemon:
        await_ack(auditor, cloud, 1)
        play_all(rig, daemon, [car.odometer(T0_MS + i * 100, i) for i in range(300)])
        daemon.wake()
        wait_for("envelopes that wait", lambda: daemon.agent.counts["sealed"] > 5)
        rig.clock.now_ns = end_s * NS_PER_S
        daemon.wake()
        wait_for("a gap", lambda: any("/gap/fleet/g1" in item.topic for item in auditor.seen()))
        wait_for("the ledger", lambda: gaps_in_ledger(rig))

    devices = {cloud.device.kid: cloud.device.public_half}
    found = [item.payload for item in auditor.seen() if "/gap/" in item.topic]
    gaps = [verify_gap(record, devices=devices) for record in found]
    assert {(gap.why, gap.time_s) for gap in gaps} == {("erased", end_s)}
    assert gaps_in_ledger(rig) == [("g1", gap.first_n, gap.last_n, gap.why) for gap in gaps]
    assert data_of(auditor) == []


def test_the_platform_hears_of_a_spool_that_was_damaged(rig: Rig, auditor: Auditor) -> None:
    def heard() -> list[dict[str, Any]]:
        found = [item for item in auditor.seen() if item.topic.endswith("/health")]
        return [json.loads(item.payload) for item in found]

    for count in (1, 2):
        with rig.running() as daemon:
            wait_for("the broker", lambda: daemon.uplink.publish_status("online"))
            rig.clock.now_ns += 2 * NS_PER_S
            daemon.wake()
            wait_for("health", lambda: len(heard()) == count)  # noqa: B023
        with (rig.state / "spool.db").open("r+b") as file:
            file.write(b"\xa5" * 4096)

    assert [said["warnings"] for said in heard()] == [[], ["state-set-aside"]]
    assert heard()[1]["ledger"]["size"] > heard()[0]["ledger"]["size"]
