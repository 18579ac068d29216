"""Which frames of a killed process the next one takes, by the consent that it finds."""

import os
import time
from collections.abc import Sequence

import pytest

from agent.buses import Buses
from agent.config import Bus
from agent.core.model import NS_PER_S, Batch
from agent.core.pipeline import Pipeline
from agent.core.plan import Plan, compile_plan
from agent.edge.capture import Capture
from agent.edge.socketcan import FrameRing
from agent.edge.systemd import Unit
from tests import car
from tests.unit.edge.test_frame_ring import add

START_NS = 1_800_000_000 * NS_PER_S
ODOMETER = {"read_odometer": {"min_interval_s": 0}}
BUS = Bus(name="can0", channel="none-such", dbc=(), mapping="none-such")


class Process:
    """Buses and capture lane of one process, which finds a ring."""

    def __init__(self, ring: FrameRing) -> None:
        self.batches: list[Batch] = []
        self.capture = Capture(
            Pipeline(), on_batches=lambda got, _: self.batches.extend(got), clock=lambda: START_NS
        )
        self.buses = Buses(
            [BUS],
            capture=self.capture,
            last_row=0,
            clock=lambda: START_NS,
            unit=Unit(None, inherited=[("frames-can0", os.dup(ring.descriptor))]),
        )

    def let_in(self, plan: Plan) -> None:
        """Put a plan in force, as the agent lane does."""
        self.capture.swap(plan)
        self.buses.let_in(plan, {})

    def samples(self) -> dict[str, int]:
        """Take the rest, end, and return how many samples each grant has."""
        self.capture.start()
        self.buses.start()
        until = time.monotonic() + 5
        while not self.buses.health()[0].reconnects > 1 and time.monotonic() < until:
            time.sleep(0.001)
        self.buses.close()
        self.capture.close()
        return {batch.grant_id: batch.count for batch in self.batches}


def test_the_capture_lane_is_told_that_frames_of_before_will_come_and_that_they_have() -> None:
    ring = FrameRing("can0", "none-such")
    Process(ring).buses.taken_under(plan("a"))
    add(ring, [car.odometer(START_NS / 1e6 + n, n) for n in range(5)])

    process = Process(ring)
    before = process.capture.is_behind
    process.let_in(plan("a"))

    assert process.samples() == {"a": 5}
    assert before
    assert not process.capture.is_behind


def plan(*grant_ids: str, rev: int = 1) -> Plan:
    revs = {grant_id: {"rev": rev} for grant_id in grant_ids}
    policy = car.policy(dict.fromkeys(grant_ids, ODOMETER), **revs)
    return compile_plan(policy, car.catalogue(), car.binding(), now_ns=START_NS)


@pytest.mark.parametrize(
    ("under", "in_force", "expected"),
    [
        ([plan("a")], plan("a"), {"a": 5}),
        ([plan("a"), plan("a", "b")], plan("a", "b"), {"a": 5, "b": 5}),
        # Killed between the policy's commit and the moment at which what was before is settled.
        ([plan("a")], plan("a", "b"), {}),
        ([plan("a")], plan("a", rev=2), {}),
        ([plan("a", "b")], plan("a"), {}),
        ([], plan("a"), {}),
    ],
)
def test_frames_that_came_under_another_consent_are_not_taken(
    under: Sequence[Plan], in_force: Plan, expected: dict[str, int]
) -> None:
    ring = FrameRing("can0", "none-such")
    killed = Process(ring)
    for each in under:
        killed.buses.taken_under(each)
    add(ring, [car.odometer(START_NS / 1e6 + n, n) for n in range(5)])

    process = Process(ring)
    process.let_in(in_force)

    assert process.samples() == expected
    killed.buses.close()


def test_frames_of_a_killed_process_are_not_taken_under_a_consent_that_comes_meanwhile() -> None:
    ring = FrameRing("can0", "none-such")
    process = Process(ring)
    process.buses.taken_under(plan("a"))
    add(ring, [car.odometer(START_NS / 1e6 + n, n) for n in range(5)])

    process = Process(ring)
    process.let_in(plan("a"))
    process.let_in(plan("a", "b"))

    assert process.samples() == {}
