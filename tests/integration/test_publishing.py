"""Spool → network lane → broker in the whole daemon: order, conditions, what fails on the way."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.control import publisher
from agent.core.model import NS_PER_S
from agent.demo.judge import Auditor
from agent.edge.uplink.connection import Connection
from agent.errors import AgentError
from tests import car
from tests.cloud import Cloud
from tests.peer import FakeBroker, Received
from tests.rig import Rig, data_of, wait_for
from tests.unit.control.test_agent import Lane, collected

pytestmark = pytest.mark.broker

T0_MS = 1_800_000_000_000
ODOMETER: dict[str, Any] = {"read_odometer": {"min_interval_s": 0}}
LOCATION: dict[str, Any] = {"read_location": {"min_interval_s": 1}}


def answered(auditor: Auditor) -> bool:
    return any(item.topic.endswith("/policy/ack") for item in auditor.seen())


def record(rig: Rig, daemon: Any, seconds: range) -> None:
    """Play so many seconds of odometer and position; each second is a batch of each grant."""
    times = [T0_MS + s * 1000 + i * 100 for s in seconds for i in range(10)]
    positions = [car.position(t, 1, 2) for t in times[::10]]
    due = daemon.capture.frames + rig.play(
        car.merged([car.odometer(t, 1) for t in times], positions)
    )
    wait_for("the capture lane", lambda: daemon.capture.frames >= due)


@pytest.mark.parametrize("order", ["oldest", "newest"])
def test_a_backlog_leaves_in_the_order_that_is_asked_for(
    rig: Rig, cloud: Cloud, auditor: Auditor, order: str
) -> None:
    rig.max_age_s = 1.0
    rig.push(cloud.policy(cloud.grant(ODOMETER)))
    with rig.running(order=order, window=1) as daemon:
        wait_for("the answer", lambda: answered(auditor))
        rig.broker.stop()
        record(rig, daemon, range(12))
        wait_for("the spool", lambda: daemon.agent.counts["sealed"] >= 11)
        rig.broker.start()
        with Auditor(port=rig.broker.port, tls=rig.broker.tls("auditor")) as later:
            wait_for("the backlog", lambda: len(data_of(later)) >= 11)
            numbers = [cloud.open(envelope).header.n for envelope in data_of(later)[:11]]

    assert numbers == sorted(numbers, reverse=order == "newest")


def test_a_class_waits_for_its_interface_and_holds_up_no_other(
    rig: Rig, cloud: Cloud, auditor: Auditor
) -> None:
    rig.max_age_s = 1.0
    rig.push(
        cloud.policy(cloud.grant(ODOMETER), cloud.grant(LOCATION, grant_id="g2", recipient="city"))
    )
    with rig.running(when={"location": ["nosuch*"]}) as daemon:
        wait_for("the answer", lambda: answered(auditor))
        record(rig, daemon, range(5))
        wait_for("the other class", lambda: len(data_of(auditor, "fleet")) >= 4)
        assert data_of(auditor, "city") == []
    with rig.running():
        wait_for("what had waited", lambda: len(data_of(auditor, "city")) >= 4)


def test_what_was_delivered_is_not_sent_again_while_the_disk_refuses_to_erase_it(
    rig: Rig, cloud: Cloud, auditor: Auditor
) -> None:
    """For ever, that would be, on a link that costs money."""
    rig.max_age_s = 1.0
    rig.push(cloud.policy(cloud.grant(ODOMETER)))
    with rig.running() as daemon:
        wait_for("the answer", lambda: answered(auditor))
        record(rig, daemon, range(3))
        wait_for("envelopes", lambda: len(data_of(auditor)) >= 2)
        rig.broker.stop()
        record(rig, daemon, range(3, 12))
        wait_for("the spool", lambda: daemon.agent.counts["sealed"] >= 9)
        database = daemon._store._spool.spool._db
        rig.inside(daemon, lambda: database.rows("PRAGMA query_only = ON"))
        rig.broker.start()
        with Auditor(port=rig.broker.port, tls=rig.broker.tls("auditor")) as later:
            wait_for("the backlog", lambda: len(data_of(later)) >= 8)
            time.sleep(1.5)  # In which it would be sent again, and is tried to be erased again.
            sent = [item.payload for item in later.seen() if "/data/" in item.topic]
            waiting: list[int] = []
            rig.inside(daemon, lambda: waiting.append(daemon._store.counts()["g1"].envelopes))
            rig.inside(daemon, lambda: database.rows("PRAGMA query_only = OFF"))
            wait_for("the erasure", lambda: _is_empty(rig, daemon))

    assert len(sent) == len(set(sent))
    assert waiting[0] >= 8


@pytest.mark.parametrize("ends", ["tick", "revocation", "stop"])
def test_what_was_delivered_is_erased_before_anything_else_is_done(
    tmp_path: Path, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """While others are on their way it waits for them, to be erased in one transaction."""
    monkeypatch.setattr(publisher, "POLICY_FIRST_S", 0.0)
    monkeypatch.setattr(publisher, "POLICY_NEXT_S", 0.0)
    with FakeBroker(answers=False) as fake:
        lane = Lane(tmp_path / "state", cloud, port=fake.port)
        lane.uplink.start()
        lane.arrive(cloud.policy(cloud.grant(ODOMETER)))
        for _ in range(2):
            lane.agent.post(collected(lane.plans[-1], lane.now_ns))
        _turn_until(lane, lambda: len(_envelopes(fake)) == 2)
        fake.puback(_envelopes(fake)[0].mid)
        _turn_until(lane, lambda: lane.agent.counts["delivered"] == 1)
        before = lane.store.counts()["g1"].envelopes
        if ends == "tick":
            lane.now_ns += NS_PER_S
            lane.agent.turn(0.0)
        elif ends == "stop":
            lane.agent.finish()
        else:
            lane.arrive(cloud.revoke("g1"))
        left = lane.store.counts()
        purged = [facts["envelopes"] for facts in lane.events("purged")]
        lane.uplink.close()
        lane.ledger.close()
        lane.store.close()

    assert before == 2
    assert purged == ([1] if ends == "revocation" else [])
    assert [tally.envelopes for tally in left.values()] == ([] if purged else [1])


def _envelopes(fake: FakeBroker) -> list[Received]:
    return [message for message in fake.received if "/data/" in message.topic]


def _turn_until(lane: Lane, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        lane.agent.turn(0.01)


def _is_empty(rig: Rig, daemon: Any) -> bool:
    found: list[bool] = []
    rig.inside(daemon, lambda: found.append(not daemon._store.counts()))
    return found[0]


def test_a_dead_network_lane_ends_the_process(
    rig: Rig, auditor: Auditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Systemd starts another; a process that collects and cannot send would be worse."""

    def fails(*_: object) -> None:
        raise RuntimeError("planted")

    def dies() -> None:
        with rig.running() as daemon:
            wait_for("the status", lambda: any(b"online" in i.payload for i in auditor.seen()))
            monkeypatch.setattr(Connection, "step", fails)
            wait_for("the end", lambda: not daemon.uplink.is_alive)
            time.sleep(1.5)  # The agent lane looks once a second.

    with pytest.raises(AgentError, match="lane network died"):
        dies()


def test_it_is_told_once_that_nobody_is_subscribed(
    rig: Rig, cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    """MQTT 5 section 2.4, 0x10: the broker has taken it, and nobody gets it."""
    rig.max_age_s = 1.0
    rig.push(cloud.policy(cloud.grant(ODOMETER)))
    with rig.running() as daemon:
        wait_for("the grant", lambda: daemon.plan.live)
        record(rig, daemon, range(5))
        wait_for("the broker's word", lambda: daemon.agent.counts["unheard"] >= 3)

    told = [r for r in caplog.records if r.message == "nobody is subscribed"]
    assert [record.__dict__["grant"] for record in told] == ["g1"]
