"""What the running agent says and does when it is asked: a real agent lane, store and consent."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.core.ask import Explain, Pause, Restrict, Resume, Status, Verb
from agent.core.explanation import Finding, parse_explanation
from agent.core.model import NS_PER_S
from agent.core.permission import Peer
from agent.core.pipeline import TakeCounts
from agent.core.status import BusStatus, LaneStatus, StatusReport, parse_status
from agent.core.transform import Drop
from agent.edge.control_socket import Ask
from agent.edge.store import Tombstone
from agent.errors import PolicyRejected, StoreError
from agent.reply import Replies, Restricted, Sights
from tests import car
from tests.cloud import VEHICLE, Cloud
from tests.unit.control.test_agent import Lane, collected

ODOMETER = {"read_odometer": {"min_interval_s": 0}}
DRIVER = Peer(pid=1, uid=1000, gids=frozenset({1000}))
PATH = "Vehicle.TraveledDistance"


class Vehicle:
    """A lane with what it is asked through, and what can be seen of the rest."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.handed_over: list[bytes] = []
        self.counts: dict[tuple[str, str], TakeCounts] = {}
        self.is_private = False
        self.refusal: PolicyRejected | None = None
        agent = lane.agent
        self.replies = Replies(
            version="0.1.0",
            vehicle=VEHICLE,
            catalogue=car.catalogue(),
            binding=car.binding(),
            agent=agent,
            consent=lane.consent,
            store=lane.store,
            uplink=agent._uplink,
            clock=agent._clock,
            restrict=self._restrict,
            sights=Sights(
                lanes=lambda: [LaneStatus("capture", is_alive=True)],
                buses=lambda: [BusStatus("can0", "up", 5, 0)],
                counts=lambda: self.counts,
                is_private=lambda: self.is_private,
            ),
        )

    def _restrict(self, token: bytes) -> Restricted:
        if self.refusal is not None:
            raise self.refusal
        self.handed_over.append(token)
        return Restricted("applied", "pause", ("g1",))

    def said(self, verb: Verb) -> dict[str, Any]:
        """Return all that is replied; there is one reply."""
        replies: list[dict[str, Any]] = []
        self.replies.to(Ask(verb, DRIVER, replies.append))
        assert len(replies) == 1
        return replies[0]

    def answered(self, verb: Verb) -> dict[str, Any]:
        answer: dict[str, Any] = self.said(verb)["answer"]
        return answer

    @property
    def status(self) -> StatusReport:
        return parse_status(self.answered(Status()))

    def live(self) -> list[str]:
        return [grant.grant_id for grant in self.lane.plans[-1].live]


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


@pytest.fixture
def vehicle(tmp_path: Path, cloud: Cloud) -> Iterator[Vehicle]:
    lane = Lane(tmp_path / "state", cloud)
    two = cloud.policy(
        cloud.grant(ODOMETER), cloud.grant(ODOMETER, grant_id="g2", recipient="city")
    )
    lane.arrive(two)
    yield Vehicle(lane)
    lane.store.close()


def test_a_pause_stops_everything_and_says_so(vehicle: Vehicle) -> None:
    stops = vehicle.answered(Pause())["stops"]

    assert vehicle.live() == []
    assert [(stop["grant_id"], stop["who"], stop["left_s"]) for stop in stops] == [
        ("*", "uid 1000", None)
    ]


def test_a_pause_of_one_grant_leaves_the_other(vehicle: Vehicle) -> None:
    vehicle.answered(Pause("g1", 60))

    assert vehicle.live() == ["g2"]
    assert [(stop.grant_id, stop.left_s) for stop in vehicle.status.stops] == [("g1", 60)]


def test_a_resume_lifts_its_own_stop_and_no_other(vehicle: Vehicle) -> None:
    vehicle.answered(Pause())
    vehicle.answered(Pause("g1"))

    still = vehicle.answered(Resume())["stops"]

    assert [stop["grant_id"] for stop in still] == ["g1"]
    assert vehicle.live() == ["g2"]
    assert vehicle.answered(Resume("g1"))["stops"] == []
    assert vehicle.live() == ["g1", "g2"]


@pytest.mark.parametrize(
    ("first", "then", "left_s"),
    [
        (None, 1, None),  # For good stays for good.
        (7_200, 60, 7_200),
        (60, 7_200, 7_200),
        (60, None, None),
    ],
)
def test_a_stop_never_takes_the_place_of_a_longer_one(
    vehicle: Vehicle, first: int | None, then: int | None, left_s: int | None
) -> None:
    """Or whoever may only stop would lift what others set, by stopping for a second."""
    vehicle.answered(Pause(None, first))
    vehicle.answered(Pause(None, then))

    assert [stop.left_s for stop in vehicle.status.stops] == [left_s]
    vehicle.lane.now_ns += 61 * NS_PER_S
    vehicle.lane.agent.turn(0.0)
    assert vehicle.live() == []


def test_a_stop_of_a_grant_that_is_not_there_is_refused(vehicle: Vehicle) -> None:
    reply = vehicle.said(Pause("g3"))

    assert reply["error"] == "there is no grant g3 in the policy in force"
    assert "g1, g2" in reply["hint"]
    assert vehicle.live() == ["g1", "g2"]


@pytest.mark.parametrize("grant", [None, "g1"])
def test_lifting_what_is_not_there_is_refused(vehicle: Vehicle, grant: str | None) -> None:
    vehicle.answered(Pause("g2"))

    assert "there is no local stop" in vehicle.said(Resume(grant))["error"]
    assert vehicle.live() == ["g1"]


def test_the_status_is_that_of_the_vehicle(vehicle: Vehicle, cloud: Cloud) -> None:
    vehicle.lane.agent.post(collected(vehicle.lane.plans[-1], vehicle.lane.now_ns))
    vehicle.lane.agent.turn(0.0)
    vehicle.answered(Pause("g2"))

    status = vehicle.status

    assert (status.vehicle, status.uplink, status.in_flight) == (VEHICLE, "down", 0)
    assert status.policy is not None
    assert (status.policy.epoch, status.policy.ver) == (1, 1)
    assert [lane.name for lane in status.lanes] == ["capture"]
    assert [bus.frames for bus in status.buses] == [5]
    assert [(g.grant_id, g.recipient, g.state, g.why, g.envelopes) for g in status.grants] == [
        ("g1", "fleet", "active", "", 1),
        ("g2", "city", "paused", "stopped at the vehicle", 1),
    ]
    assert status.grants[0].size_bytes > 100
    assert status.grants[0].until_s == cloud.document["exp"]
    assert status.counts["sealed"] == 2
    assert status.is_time_known
    assert status.now_s - status.started_s < 60


def test_before_the_first_policy_there_is_nothing_to_stop_but_everything(
    tmp_path: Path, cloud: Cloud
) -> None:
    lane = Lane(tmp_path / "state", cloud)
    vehicle = Vehicle(lane)

    assert vehicle.status.policy is None
    assert vehicle.status.grants == ()
    assert "none at all" in vehicle.said(Pause("g1"))["hint"]
    vehicle.answered(Pause())
    lane.arrive(cloud.policy(cloud.grant(ODOMETER)))
    assert vehicle.live() == []
    lane.store.close()


def test_the_privacy_switch_is_told_and_cannot_be_resumed(vehicle: Vehicle) -> None:
    vehicle.is_private = True

    assert [(stop.grant_id, stop.who) for stop in vehicle.status.stops] == [("*", "switch")]
    assert "error" in vehicle.said(Resume())
    vehicle.is_private = False
    assert vehicle.status.stops == ()


def test_a_path_is_explained_with_what_became_of_its_values(vehicle: Vehicle) -> None:
    vehicle.counts = {("g1", PATH): TakeCounts(4, 2, {Drop.INVALID: 1})}

    found = parse_explanation(vehicle.answered(Explain(PATH)))

    assert found.verdict == "leaves the vehicle for fleet (grant g1), city (grant g2)"
    assert {"taken", "thinned", "blocked"} <= {step.name for step in found.steps}
    assert next(s for s in found.steps if s.name == "bus").text.startswith("7 values of it came")


def test_what_is_stopped_or_has_ended_is_explained(vehicle: Vehicle, cloud: Cloud) -> None:
    vehicle.answered(Pause("g1"))
    vehicle.lane.store.end_grants([Tombstone("g2", "revoked")], vehicle.lane.now_ns)
    vehicle.lane.agent.resume("g1")  # Takes the end up, too.
    vehicle.answered(Pause("g1"))

    found = parse_explanation(vehicle.answered(Explain(PATH)))

    texts = [s.text for s in found.steps if s.name == "grant" and s.finding is Finding.NO]
    assert "stopped at the vehicle by uid 1000" in texts[0]
    assert "has ended here for good" in texts[1]
    assert found.recipients == ()
    assert cloud.document["ver"] == 1


def test_a_restrict_document_is_handed_over(vehicle: Vehicle) -> None:
    assert vehicle.answered(Restrict("a.b.c")) == {
        "outcome": "applied",
        "mode": "pause",
        "grants": ["g1"],
    }
    assert vehicle.handed_over == [b"a.b.c"]

    vehicle.refusal = PolicyRejected("no trusted key", reason="unknown-kid", hint="see trust")
    assert vehicle.said(Restrict("a.b.c")) == {
        "error": "no trusted key",
        "hint": "see trust",
        "reason": "unknown-kid",
    }


def test_a_stop_that_the_disk_refuses_is_told_and_ends_the_lane(vehicle: Vehicle) -> None:
    vehicle.lane.store.close()
    replies: list[dict[str, Any]] = []

    with pytest.raises(StoreError):
        vehicle.replies.to(Ask(Pause(), DRIVER, replies.append))

    assert "error" in replies[0]
