"""The capture lane: closed batches come out, and how far it lags behind decides nothing."""

import time
from typing import Any

from agent.core.model import NS_PER_S, Batch
from agent.core.pipeline import Pipeline
from agent.core.plan import compile_plan
from agent.edge.capture import Capture
from tests import car

START_NS = 1_800_000_000 * NS_PER_S
START_MS = START_NS / 1e6


def test_a_lane_that_lags_behind_takes_the_same_samples() -> None:
    """Foreign traffic makes it lag; by the clock, the change of the first chunk would be due."""
    policy = car.policy({"g": {"read_security": {"min_interval_s": 10}}})
    plan = compile_plan(policy, car.catalogue(), car.binding(), now_ns=START_NS)
    batches: list[Batch] = []
    capture = Capture(
        Pipeline(plan), on_batches=batches.extend, clock=lambda: START_NS + 11 * NS_PER_S
    )
    capture.put([car.door(START_MS, 0), car.door(START_MS + 5000, 1)])
    capture.put([car.door(START_MS + 9999, 0)])

    capture.start()
    capture.close()

    values: list[Any] = [column.values for batch in batches for column in batch.columns]
    assert values == [(False,)]
    assert capture.failure is None


def test_a_frame_that_is_handed_over_late_still_counts() -> None:
    """Readers gather frames for a moment: the clock is past the time of what they still hold."""
    policy = car.policy({"g": {"read_security": {"min_interval_s": 10}}})
    plan = compile_plan(policy, car.catalogue(), car.binding(), now_ns=START_NS)
    batches: list[Batch] = []
    capture = Capture(
        Pipeline(plan), on_batches=batches.extend, clock=lambda: START_NS + 10 * NS_PER_S + 500
    )
    capture.start()
    capture.put([car.door(START_MS, 0), car.door(START_MS + 5000, 1)])
    until = time.monotonic() + 5
    while not capture.turns and time.monotonic() < until:
        time.sleep(0.001)

    capture.put([car.door(START_MS + 9999, 0)])
    capture.close()

    values: list[Any] = [v for b in batches for column in b.columns for v in column.values]
    assert values == [False]
