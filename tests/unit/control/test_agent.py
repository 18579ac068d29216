"""The agent lane by itself: a real store, a network lane that was never started."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.cloud.keys import make_policy_key
from agent.cloud.policy import recipient
from agent.cloud.trust import sign_trust
from agent.control import Agent, Batches, Consent, Journal, Surroundings
from agent.control.agent import Swapped
from agent.control.publisher import POLICY_FIRST_S, POLICY_NEXT_S
from agent.control.report import health
from agent.core.clock import Reading
from agent.core.ledgerevent import Fact
from agent.core.model import NS_PER_S, Place
from agent.core.pipeline import Pipeline
from agent.core.plan import Plan
from agent.core.status import BusStatus, CaptureStatus, LaneStatus, StatusReport
from agent.edge.ledger import Ledger, read_entries
from agent.edge.store import SpoolLimits, Store
from agent.edge.uplink import (
    Connected,
    Disconnected,
    PolicyArrived,
    PolicyToken,
    Uplink,
    UplinkConfig,
)
from agent.errors import LedgerError, StoreError
from tests import car
from tests.cloud import VEHICLE, Cloud
from tests.unit.edge.test_ledger import no_room
from tests.unit.edge.test_store_spool import damage

BOOT = f"{0:032x}"
ODOMETER = {"read_odometer": {"min_interval_s": 0}}


class Lane:
    """An agent, its clock, and the plans that it put in force."""

    def __init__(
        self, state: Path, cloud: Cloud, *, limits: SpoolLimits | None = None, port: int = 9
    ) -> None:
        self.now_ns = cloud.now_s * NS_PER_S
        self.plans: list[Plan] = []
        self.store = Store.open(state, limits=limits)
        self.consent = Consent(
            self.store,
            vehicle=VEHICLE,
            catalogue=car.catalogue(),
            trust=cloud.trust,
            binding=car.binding(),
            named_buses=(),
        )
        self.now_reading = lambda: Reading(self.now_ns, self.now_ns, BOOT, is_synchronised=True)
        self.state = state
        self.ledger = Ledger.open(
            state / "ledger", vehicle=VEHICLE, boot_id=BOOT, now_ns=self.now_ns
        )
        nowhere = UplinkConfig(
            host="127.0.0.1",
            port=port,
            vehicle=VEHICLE,
            client_id=VEHICLE,
            tls=None,
            plaintext_loopback=True,
        )
        self.uplink = Uplink(nowhere, on_event=lambda event: self.agent.post(event))  # noqa: PLW0108 - made below
        self.heads: list[bytes] = []
        self.told: list[tuple[object, ...]] = []  # The readers.
        self.agent = Agent(
            vehicle=VEHICLE,
            device=cloud.device,
            store=self.store,
            consent=self.consent,
            uplink=self.uplink,
            journal=Journal(self.ledger, publish=self.heads.append),
            swap=self.plans.append,
            clock=self.now_reading,
            look=lambda: Surroundings("0.0.0", 0, (), ()),
            announce=lambda places, row: self.told.append(("announced", places, row)),
            settle=lambda places: self.told.append(("settled", places)),
            taken_under=lambda plan: self.told.append(("taken under", plan)),
        )

    def events(self, name: str) -> list[Mapping[str, Fact]]:
        """Return what the ledger says of one kind of event."""
        entries = [entry for _, entry in read_entries(self.state / "ledger")]
        return [e.facts for e in entries if not isinstance(e, LedgerError) and e.name == name]

    def arrive(self, token: str) -> None:
        self.agent.post(PolicyArrived(token.encode(), PolicyToken(1, 1)))
        self.agent.turn(0.0)


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


@pytest.fixture
def lane(tmp_path: Path, cloud: Cloud) -> Iterator[Lane]:
    made = Lane(tmp_path / "state", cloud)
    yield made
    made.ledger.close()
    made.store.close()


def collected(plan: Plan, now_ns: int) -> Batches:
    pipeline = Pipeline(plan)
    pipeline.feed([car.odometer(now_ns / 1e6, 7)])
    pipeline.stop()
    return Batches(pipeline.drain())


def test_a_grant_begins_at_its_second_and_not_at_the_next_tick(lane: Lane, cloud: Cloud) -> None:
    """Between the two every other grant would lose its frames too: the plan holds no longer."""
    later = cloud.grant(ODOMETER, grant_id="g2", nbf=cloud.now_s + 1)
    lane.now_ns += NS_PER_S // 2
    lane.arrive(cloud.policy(cloud.grant(ODOMETER), later))

    lane.now_ns += NS_PER_S // 2
    lane.agent.turn(0.0)

    assert [grant.grant_id for grant in lane.plans[-1].live] == ["g1", "g2"]


def test_a_policy_that_the_disk_refuses_ends_the_lane_unanswered(lane: Lane, cloud: Cloud) -> None:
    """It may be a revocation: neither may it be taken for handled, nor may we go on without it."""
    lane.arrive(cloud.policy(cloud.grant(ODOMETER)))
    lane.store.close()
    plans = len(lane.plans)

    with pytest.raises(StoreError):
        lane.arrive(cloud.revoke("g1"))

    assert len(lane.plans) == plans


def test_a_batch_for_a_recipient_who_has_the_grant_no_more_is_dropped(
    lane: Lane, cloud: Cloud
) -> None:
    lane.arrive(cloud.policy(cloud.grant(ODOMETER)))
    batches = collected(lane.plans[-1], lane.now_ns)
    only_city: dict[str, Any] = {"city": recipient("city", cloud.keys["city"])}
    lane.arrive(cloud.policy(cloud.grant(ODOMETER, recipient="city", rev=2), recipients=only_city))

    lane.agent.post(batches)
    lane.agent.turn(0.0)

    assert len(batches.batches) == 1
    assert lane.agent.counts["sealed"] == 0
    assert dict(lane.store.counts()) == {}


@pytest.mark.parametrize("session_is_quicker", [True, False])
def test_a_policy_ends_the_wait_for_the_policy_whether_it_comes_before_or_after_the_connection(
    lane: Lane,
    cloud: Cloud,
    session_is_quicker: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """A broker's session brings what it kept before we hear that the connection is up."""
    policy = PolicyArrived(cloud.policy(cloud.grant(ODOMETER)).encode(), PolicyToken(1, 1))
    lane.agent.post(Disconnected("lost"))
    for event in (policy, Connected()) if session_is_quicker else (Connected(), policy):
        lane.agent.post(event)
    lane.agent.turn(0.0)

    assert 0 < lane.agent._publisher.begins_in_s <= POLICY_NEXT_S


def test_every_connection_waits_for_its_own_policy(lane: Lane, cloud: Cloud) -> None:
    """What an earlier connection brought may have been replaced since."""
    lane.agent.post(Connected())
    lane.arrive(cloud.policy(cloud.grant(ODOMETER)))

    lane.agent.post(Disconnected("lost"))
    lane.agent.post(Connected())
    lane.agent.turn(0.0)

    assert POLICY_NEXT_S < lane.agent._publisher.begins_in_s <= POLICY_FIRST_S


def test_the_ledger_tells_who_stopped_everything_and_that_the_time_was_up(
    lane: Lane, cloud: Cloud
) -> None:
    lane.arrive(cloud.policy(cloud.grant(ODOMETER)))

    lane.agent.local.stop("*", 1000, 60 * NS_PER_S)
    stopped = [*lane.plans[-1].live]
    lane.now_ns += 60 * NS_PER_S
    lane.agent.turn(0.0)

    assert stopped == []
    assert [grant.grant_id for grant in lane.plans[-1].live] == ["g1"]
    assert [
        (facts["state"], facts["by"], facts["seconds"]) for facts in lane.events("local-stop")
    ] == [("on", 1000, 60), ("off", "timer", 0)]


def test_the_ledger_tells_by_the_minute_why_the_broker_and_we_did_not_agree(lane: Lane) -> None:
    for _ in range(3):
        lane.agent.post(Disconnected("lost", tls="alert-certificate-expired"))
    lane.agent.post(Disconnected("lost", auth="not-authorized"))
    lane.agent.post(Disconnected("lost"))
    lane.agent.turn(0.0)

    lane.now_ns += 61 * NS_PER_S
    lane.agent.turn(0.0)

    assert lane.events("tls-failed") == [{"reason": "alert-certificate-expired", "times": 3}]
    assert lane.events("auth-failed") == [{"reason": "not-authorized", "times": 1}]


def test_the_ledger_tells_which_keys_a_trust_document_brought_and_took(
    tmp_path: Path, cloud: Cloud
) -> None:
    root, new = make_policy_key("root-1", "EdDSA"), make_policy_key("platform-2", "EdDSA")
    cloud.roots = [root]
    lane = Lane(tmp_path / "renewed", cloud)
    lane.agent.tell_keys()
    lane.arrive(sign_trust([cloud.signer, new], root, ver=1, iat_s=cloud.now_s))
    lane.arrive(sign_trust([new], root, ver=2, iat_s=cloud.now_s))
    lane.agent.tell_keys()

    told = [(e["role"], e["kid"], e["change"]) for e in lane.events("key-changed")]
    assert told[:3] == [
        ("device", "device-1", "enrolled"),
        ("policy", "platform-1", "enrolled"),
        ("root", "root-1", "enrolled"),
    ]
    assert told[3:] == [("policy", "platform-2", "enrolled"), ("policy", "platform-1", "removed")]
    assert lane.events("trust-applied") == [{"ver": 1}, {"ver": 2}]
    lane.ledger.close()
    lane.store.close()


def test_the_ledger_tells_of_a_spool_that_broke_while_the_agent_ran(
    lane: Lane, cloud: Cloud
) -> None:
    lane.arrive(cloud.policy(cloud.grant(ODOMETER)))
    batches = collected(lane.plans[-1], lane.now_ns)
    for _ in range(40):
        lane.agent.post(batches)
    lane.agent.turn(0.0)
    lane.store.scrub()
    damage(lane.state)
    lane.store._spool.spool._db.rows("PRAGMA shrink_memory")  # type: ignore[union-attr] # drops its cache

    lane.agent.post(batches)
    lane.agent.turn(0.0)
    lane.now_ns += 2 * NS_PER_S
    lane.agent.turn(0.0)

    assert lane.events("state-damaged") == [{"file": "spool", "reason": "set-aside"}]


def told(lane: Lane) -> tuple[StatusReport, Any]:
    """What whoever asks at the vehicle gets, and the platform."""
    status = lane.agent._status()
    return status, json.loads(health(status))


def test_a_spool_that_the_disk_does_not_let_write_is_told_until_it_does(
    lane: Lane, cloud: Cloud
) -> None:
    lane.arrive(cloud.policy(cloud.grant(ODOMETER)))
    batches = collected(lane.plans[-1], lane.now_ns)
    lane.store._spool.spool._db.rows("PRAGMA query_only = ON")  # type: ignore[union-attr] # as read-only
    lane.agent.post(batches)
    lane.agent.turn(0.0)

    status, to_platform = told(lane)
    assert "READONLY" in status.disk.spool_fault
    assert to_platform["warnings"] == ["spool-unusable"]

    lane.store._spool.spool._db.rows("PRAGMA query_only = OFF")  # type: ignore[union-attr] # as before
    lane.agent.post(batches)
    lane.agent.turn(0.0)
    assert (told(lane)[0].disk.spool_fault, told(lane)[1]["warnings"]) == ("", [])


def test_a_grant_that_is_not_live_is_no_fault_of_the_disk(lane: Lane, cloud: Cloud) -> None:
    lane.arrive(cloud.policy(cloud.grant(ODOMETER)))
    batches = collected(lane.plans[-1], lane.now_ns)
    lane.store.set_grant_state("g1", "paused")
    lane.agent.post(batches)
    lane.agent.turn(0.0)

    assert lane.agent.counts["dropped_store"] == 1
    assert told(lane)[0].disk.spool_fault == ""


def test_a_ledger_that_the_disk_refuses_is_told_with_what_it_lost(lane: Lane) -> None:
    (segment,) = (lane.state / "ledger").glob("segment-*")
    with no_room(segment):
        lane.agent._journal.note(lane.now_ns, "clock-stepped", by=1)

        status, to_platform = told(lane)
        assert status.disk.ledger_lost >= 1
        assert status.disk.ledger_fault == "EFBIG"
        assert to_platform["ledger"]["lost"] == status.disk.ledger_lost
        assert to_platform["warnings"] == ["ledger-refused"]


def test_what_lies_set_aside_is_told_until_somebody_removes_it(lane: Lane) -> None:
    aside = lane.state / "ledger.damaged-1"
    aside.mkdir()
    (lane.state / "spool.db.corrupt-2").touch()
    (lane.state / "spool.db.corrupt-2-wal").touch()

    status, to_platform = told(lane)
    assert status.disk.set_aside == ("ledger.damaged-1", "spool.db.corrupt-2")
    assert to_platform["warnings"] == ["state-set-aside"]


def test_the_platform_hears_nothing_of_traffic_that_nobody_granted(lane: Lane) -> None:
    """The state of a bus aside."""
    status = lane.agent._status()
    quiet = replace(status, buses=(BusStatus("can0", "active", 0, 0),))
    busy = replace(
        status,
        buses=(BusStatus("can0", "active", 900, 4, 3, {"protocol": 2}, 1_800_000_000),),
        capture=CaptureStatus(900, 30, 7),
    )

    assert health(busy) == health(quiet)


def test_the_platform_hears_of_a_certificate_that_ends(lane: Lane) -> None:
    status = lane.agent._status()
    ending = json.loads(health(replace(status, certificate_ends_s=status.now_s + 86_400)))

    assert ending["warnings"] == ["certificate-ends-soon"]
    assert ending["certificate_ends_s"] == status.now_s + 86_400


def test_the_platform_hears_which_lane_stands_still_and_since_when(lane: Lane) -> None:
    status = lane.agent._status()
    lanes = (LaneStatus("capture", True), LaneStatus("bus can0", True, still_since_s=1_800_000_000))
    to_platform = json.loads(health(replace(status, lanes=lanes)))

    assert to_platform["still"] == {"bus can0": 1_800_000_000}
    assert to_platform["warnings"] == ["lane-still"]
    assert json.loads(health(status))["still"] == {}


def test_batches_that_came_in_a_row_are_one_commit(lane: Lane, cloud: Cloud) -> None:
    """But what closed before a policy is sealed before it, under its own consent."""
    lane.arrive(cloud.policy(cloud.grant(ODOMETER)))
    lane.store.scrub()

    for _ in range(3):
        lane.agent.post(collected(lane.plans[-1], lane.now_ns))
    lane.agent.turn(0.0)
    log = (lane.state / "spool.db-wal").read_bytes()
    lane.agent.post(collected(lane.plans[-1], lane.now_ns))
    lane.arrive(cloud.revoke("g1"))

    # SQLite's file format, section 4.1: the last frame of a commit tells the size of the database.
    sizes = [log[at + 4 : at + 8] for at in range(32, len(log), 1024 + 24)]
    assert sum(size != bytes(4) for size in sizes) == 1
    assert lane.agent.counts["sealed"] == 4
    assert [facts["envelopes"] for facts in lane.events("purged")] == [4]


def test_readers_hear_what_is_about_to_be_stored_that_it_is_and_under_which_plan(
    lane: Lane, cloud: Cloud
) -> None:
    """In the order of the capture lane: a plan stands for what comes behind it."""
    lane.arrive(cloud.policy(cloud.grant(ODOMETER)))
    plan = lane.plans[-1]
    first, second, third = ((Place("can0", 1, n),) for n in (5, 9, 12))
    row = lane.store.last_row + 1

    lane.agent.post(Batches(collected(plan, lane.now_ns).batches, first))
    lane.agent.post(Batches([], second))
    lane.agent.post(Swapped(plan))
    lane.agent.post(Batches([], third))
    lane.agent.turn(0.0)

    assert lane.store.last_row == row
    assert lane.told == [
        ("announced", first + second, row),
        ("settled", first + second),
        ("taken under", plan),
        ("settled", third),
    ]
