"""consent.db is damaged beyond reading, or gone: what the ledger knows still holds.

The daemon, its store, its ledger and its broker are real.
"""

from typing import Any

import pytest

from agent.cloud.envelope import verify_ack
from agent.core.ack import Ack
from agent.core.ask import Pause
from agent.core.model import NS_PER_S
from agent.demo.judge import Auditor
from agent.edge.control_client import ask
from agent.edge.store import Store
from tests.cloud import Cloud
from tests.rig import Rig, wait_for

pytestmark = pytest.mark.broker
DAY_NS = 86_400 * NS_PER_S

FULL: dict[str, Any] = {"read_odometer": {"min_interval_s": 0}}


def acks(auditor: Auditor, cloud: Cloud) -> list[Ack]:
    devices = {cloud.device.kid: cloud.device.public_half}
    found = [item for item in auditor.seen() if item.topic.endswith("/policy/ack")]
    return [verify_ack(item.payload, devices=devices)[1] for item in found]


def pushed(rig: Rig, token: str, auditor: Auditor, cloud: Cloud) -> Ack:
    """Push a document and return the answer to it."""
    before = len(acks(auditor, cloud))
    rig.push(token)
    wait_for("the answer", lambda: len(acks(auditor, cloud)) > before)
    return acks(auditor, cloud)[before]


def lose(rig: Rig, how: str) -> None:
    for path in rig.state.glob("consent.db*"):
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes(b"\xff" * 50_000)


def damage_ledger(rig: Rig) -> None:
    """Flip a bit of a line in the middle of the ledger."""
    (segment,) = (rig.state / "ledger").glob("*.jsonl")
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_what_was_revoked_or_stopped_stays_so_and_no_older_policy_comes_in(
    rig: Rig, cloud: Cloud, auditor: Auditor, how: str
) -> None:
    first = cloud.policy(cloud.grant(FULL), cloud.grant(FULL, grant_id="g2"))
    with rig.running():
        pushed(rig, first, auditor, cloud)
        pushed(rig, cloud.revoke("g2"), auditor, cloud)
        last = pushed(rig, cloud.policy(cloud.grant(FULL)), auditor, cloud)
        ask(rig.socket, Pause("g1", None))
    lose(rig, how)

    with rig.running() as daemon:
        wait_for("the retained policy", lambda: len(acks(auditor, cloud)) > 3)
        again = acks(auditor, cloud)[3]
        old = pushed(rig, first, auditor, cloud)
        renamed = cloud.policy(cloud.grant(FULL), cloud.grant(FULL, grant_id="g2", rev=9))
        newer = pushed(rig, renamed, auditor, cloud)
        live = [grant.grant_id for grant in daemon.plan.live]

    assert (again.outcome, again.ver) == ("applied", last.ver)
    assert again.counter > last.counter, "the platform takes no answer with a lower counter"
    assert (old.outcome, old.reason) == ("refused", "rollback")
    assert newer.outcome == "applied"
    assert live == [], "g1 is stopped at the vehicle, g2 was revoked"
    with Store.open(rig.state) as store:
        assert store.tombstoned("g2") == "revoked"
        assert [stop.grant_id for stop in store.local_stops()] == ["g1"]


@pytest.mark.parametrize("ledger", ["whole", "damaged"])
def test_where_the_ledger_does_not_know_all_either_everything_is_stopped(
    rig: Rig, cloud: Cloud, auditor: Auditor, ledger: str
) -> None:
    with rig.running():
        pushed(rig, cloud.policy(cloud.grant(FULL)), auditor, cloud)
    lose(rig, "damaged")
    if ledger == "damaged":
        damage_ledger(rig)

    with rig.running():
        wait_for("the retained policy", lambda: len(acks(auditor, cloud)) > 1)

    with Store.open(rig.state) as store:
        stops = [(stop.grant_id, stop.who) for stop in store.local_stops()]
    assert stops == ([] if ledger == "whole" else [("*", "damage")])


def test_a_clock_that_was_set_back_meanwhile_is_not_believed(
    rig: Rig, cloud: Cloud, auditor: Auditor
) -> None:
    """Or what has expired would be valid again: the ledger knows how late it has been."""
    with rig.running():
        pushed(rig, cloud.policy(cloud.grant(FULL)), auditor, cloud)
        rig.clock.now_ns += 30 * DAY_NS
        ask(rig.socket, Pause("g1", None))
    latest_ns = rig.clock.now_ns
    lose(rig, "damaged")
    rig.clock.now_ns -= 60 * DAY_NS

    with rig.running() as daemon:
        believed_ns = daemon._consent.moment(rig.clock()).now_ns

    assert believed_ns >= latest_ns
