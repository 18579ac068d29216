"""The capture lane: closed batches come out, and how far it lags behind decides nothing."""

import logging
import time
from typing import Any

import pytest

from agent.core.model import NS_PER_S, Batch
from agent.core.pipeline import Pipeline
from agent.core.plan import compile_plan, empty_plan
from agent.edge import capture as lane
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


def test_frames_that_a_full_queue_has_no_room_for_are_counted_and_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Chunks of one frame count as such: a bound in chunks would be memory without one."""
    monkeypatch.setattr(lane, "MAX_FRAMES", 1000)
    capture = Capture(Pipeline(empty_plan()), on_batches=lambda _: None, clock=lambda: START_NS)
    frames = [car.door(START_MS + n, 0) for n in range(256)]

    for _ in range(5):
        capture.put(frames)
    for frame in frames:
        capture.put([frame])
    capture.start()
    capture.close()

    assert (capture.frames, capture.overrun) == (1000, 6 * 256 - 1000)
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [(record.message, record.__dict__["frames"]) for record in told] == [
        ("capture overrun", 256)
    ]


def test_a_queue_that_was_full_takes_frames_again_when_it_was_emptied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lane, "MAX_FRAMES", 2)
    capture = Capture(Pipeline(empty_plan()), on_batches=lambda _: None, clock=lambda: START_NS)
    frames = [car.door(START_MS, 0)] * 2
    capture.put(frames)
    capture.put(frames)
    capture.start()
    until = time.monotonic() + 5
    while capture.frames < 2 and time.monotonic() < until:
        time.sleep(0.001)

    capture.put(frames)
    capture.close()

    assert (capture.frames, capture.overrun) == (4, 2)
