"""The capture lane: closed batches come out, and how far it lags behind decides nothing."""

import logging
import time
from typing import Any

import pytest

from agent.core.model import NS_PER_MS, NS_PER_S, Batch, Place
from agent.core.pipeline import Pipeline
from agent.core.plan import compile_plan, empty_plan
from agent.edge import capture as lane
from agent.edge.capture import Capture
from tests import car

START_NS = 1_800_000_000 * NS_PER_S
START_MS = START_NS / 1e6
NO_INTERVAL = {"min_interval_s": 0}


def test_a_lane_that_lags_behind_takes_the_same_samples() -> None:
    """Foreign traffic makes it lag; by the clock, the change of the first chunk would be due."""
    policy = car.policy({"g": {"read_security": {"min_interval_s": 10}}})
    plan = compile_plan(policy, car.catalogue(), car.binding(), now_ns=START_NS)
    batches: list[Batch] = []
    capture = Capture(
        Pipeline(plan),
        on_batches=lambda got, _: batches.extend(got),
        clock=lambda: START_NS + 11 * NS_PER_S,
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
        Pipeline(plan),
        on_batches=lambda got, _: batches.extend(got),
        clock=lambda: START_NS + 10 * NS_PER_S + 500,
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


def test_the_clock_decides_nothing_while_frames_of_long_ago_are_still_to_come() -> None:
    """A killed process had read them; its successor's queue may run empty while it gets them."""
    policy = car.policy({"g": {"read_security": {"min_interval_s": 10}}})
    plan = compile_plan(policy, car.catalogue(), car.binding(), now_ns=START_NS)
    batches: list[Batch] = []
    clock_ns = [START_NS + 20 * NS_PER_S]
    capture = Capture(
        Pipeline(plan), on_batches=lambda got, _: batches.extend(got), clock=lambda: clock_ns[0]
    )
    capture.expect("can0")
    capture.start()
    for frames in (
        [car.door(START_MS, 0), car.door(START_MS + 5000, 1)],
        [car.door(START_MS + 9999, 0)],
    ):
        clock_ns[0] += 2 * NS_PER_S
        capture.put(frames)
        turns, until = capture.turns, time.monotonic() + 5
        while capture.turns < turns + 5 and time.monotonic() < until:
            clock_ns[0] += 2 * NS_PER_S
            capture.swap(plan)  # It turns, and finds nothing in the queue.
            time.sleep(0.001)
    capture.caught_up("can0")
    capture.close()

    values: list[Any] = [v for b in batches for column in b.columns for v in column.values]
    assert values == [False]


def test_frames_that_a_full_queue_has_no_room_for_are_counted_and_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Chunks of one frame count as such: a bound in chunks would be memory without one."""
    monkeypatch.setattr(lane, "MAX_FRAMES", 1000)
    capture = Capture(Pipeline(empty_plan()), on_batches=lambda *_: None, clock=lambda: START_NS)
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
    capture = Capture(Pipeline(empty_plan()), on_batches=lambda *_: None, clock=lambda: START_NS)
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


@pytest.mark.parametrize("size", [1, 9, 40, 100])
def test_every_frame_before_a_place_is_in_what_was_handed_over_with_it(size: int) -> None:
    """Two grants, two buses, chunks that reach over moments at which batches close."""
    policy = car.policy({"a": {"read_odometer": NO_INTERVAL}, "b": {"read_odometer": NO_INTERVAL}})
    plan = compile_plan(policy, car.catalogue(), car.binding(), now_ns=START_NS)
    handed: list[tuple[list[Batch], tuple[Place, ...]]] = []
    capture = Capture(
        Pipeline(plan, max_age_ns=10 * NS_PER_S),
        on_batches=lambda *got: handed.append(got),
        clock=lambda: START_NS,
    )
    frames = [car.odometer(START_MS + 700 * n, n) for n in range(100)]
    for start in range(0, 100, size):
        chunk = frames[start : start + size]
        capture.put(chunk, Place("can0", 1, start + len(chunk)))
        capture.put([car.foreign(START_MS + 700 * start)], Place("other", 2, start + 1))

    capture.start()
    capture.close()

    assert capture.failure is None
    assert [places[0].position for _, places in handed] == [15, 29, 43, 58, 72, 86, 100]
    before = 0
    for batches, places in handed:
        position = {place.bus: place.position for place in places}["can0"]
        times_ms = tuple(t_ns // NS_PER_MS for t_ns, *_ in frames[before:position])
        assert {batch.grant_id: batch.columns[0].times_ms for batch in batches} == {
            "a": times_ms,
            "b": times_ms,
        }
        before = position
    last = range(0, 100, size)[-1]
    assert handed[-1][1] == (Place("can0", 1, 100), Place("other", 2, last + 1))


def test_a_swap_tells_how_far_frames_came_though_nothing_was_closed() -> None:
    """What an ended grant had open is dropped, and must not come back after a kill."""
    policy = car.policy({"g": {"read_odometer": NO_INTERVAL}})
    plan = compile_plan(policy, car.catalogue(), car.binding(), now_ns=START_NS)
    handed: list[tuple[list[Batch], tuple[Place, ...]]] = []
    capture = Capture(
        Pipeline(plan), on_batches=lambda *got: handed.append(got), clock=lambda: START_NS
    )
    capture.put([car.odometer(START_MS, 1)], Place("can0", 1, 1))
    capture.start()
    until = time.monotonic() + 5
    while not capture.frames and time.monotonic() < until:
        time.sleep(0.001)

    capture.swap(empty_plan())
    capture.close()

    assert handed == [([], (Place("can0", 1, 1),))]


def test_a_plan_is_told_once_what_was_open_before_it_has_been_handed_over() -> None:
    """And never before: until then a kill must find the frames under the consent of before."""
    policy = car.policy({"g": {"read_odometer": NO_INTERVAL}})
    plan = compile_plan(policy, car.catalogue(), car.binding(), now_ns=START_NS)
    told: list[object] = []
    capture = Capture(
        Pipeline(plan),
        on_batches=lambda batches, places: told.append((len(batches), places[0].position)),
        clock=lambda: START_NS,
        on_swap=told.append,
    )
    capture.put([car.odometer(START_MS, 1)], Place("can0", 1, 1))
    capture.start()
    until = time.monotonic() + 5
    while not capture.frames and time.monotonic() < until:
        time.sleep(0.001)
    other = empty_plan()

    capture.swap(plan)
    capture.swap(other)
    capture.close()

    assert told == [(1, 1), plan, other]


def test_what_gave_nothing_is_not_kept_until_something_else_is_stored() -> None:
    """A held change may still give a sample, so the frames that brought it are kept for it."""
    policy = car.policy({"g": {"read_security": {"min_interval_s": 10}}})
    plan = compile_plan(policy, car.catalogue(), car.binding(), now_ns=START_NS)
    handed: list[tuple[int, int]] = []
    clock_ns = [START_NS]
    capture = Capture(
        Pipeline(plan, max_age_ns=NS_PER_S),
        on_batches=lambda batches, places: handed.append((len(batches), places[0].position)),
        clock=lambda: clock_ns[0],
    )
    capture.start()

    for n, (t_ms, value) in enumerate([(0, 0), (3000, 0), (5000, 1), (7000, 1), (12_000, 1)], 1):
        turns = capture.turns
        clock_ns[0] = START_NS + t_ms * NS_PER_MS + 1
        capture.put([car.door(START_MS + t_ms, value)], Place("can0", 1, n))
        until = time.monotonic() + 5
        while capture.turns == turns and time.monotonic() < until:
            time.sleep(0.001)

    capture.close()

    assert handed == [(1, 1), (0, 2), (1, 5)]


def test_batches_close_before_a_reader_has_to_overwrite_what_is_not_stored() -> None:
    """Though nothing is due: the frames are of a grant that takes one of them."""
    policy = car.policy({"g": {"read_odometer": {"min_interval_s": 3600}}})
    plan = compile_plan(policy, car.catalogue(), car.binding(), now_ns=START_NS)
    handed: list[tuple[list[Batch], tuple[Place, ...]]] = []
    capture = Capture(
        Pipeline(plan),
        on_batches=lambda *got: handed.append(got),
        clock=lambda: START_NS,
        max_open_frames=10,
    )
    for n in range(25):
        capture.put([car.odometer(START_MS + n, n)], Place("can0", 1, n + 1))

    capture.start()
    capture.close()

    assert [(len(batches), places[0].position) for batches, places in handed] == [
        (1, 10),
        (0, 20),
        (0, 25),
    ]


def test_frames_that_can_wait_are_asked_to_leave_room_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lane, "MAX_WAITING", 5)
    capture = Capture(Pipeline(empty_plan()), on_batches=lambda *_: None, clock=lambda: START_NS)

    empty = capture.has_room(5), capture.has_room(6)
    capture.put([car.door(START_MS, 0)] * 4)

    assert empty == (True, False)
    assert (capture.has_room(1), capture.has_room(2)) == (True, False)
