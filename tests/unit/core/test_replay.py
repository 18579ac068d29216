"""A recording gives the same samples in whatever portions it is fed."""

import pytest

from agent.core.model import Frame
from agent.core.replay import Replay
from tests import car

START_MS = 1_800_000_000_000


def replayed(frames: list[Frame], size: int) -> list[tuple[int, object]]:
    """Return (ms since the start, value) of every sample."""
    policy = car.policy({"g": {"read_security": {"min_interval_s": 10}}})
    replay = Replay(policy, car.catalogue(), car.binding())
    for at in range(0, len(frames), size):
        replay.feed(frames[at : at + size])
    replay.finish()
    return [(sample.t_ns // 10**6 - START_MS, sample.value) for sample in replay.samples()]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_neither_portions_nor_foreign_frames_decide_which_change_is_held(size: int) -> None:
    """Where time runs backwards, the clock of frames that nobody may have must not count."""
    granted = [(0, 0), (5000, 1), (9_999, 0), (12_000, 1)]
    frames = [car.door(START_MS + t_ms, state) for t_ms, state in granted]
    frames.insert(2, car.foreign(START_MS + 10_500))

    assert replayed(frames, size) == [(0, False), (12_000, True)]


@pytest.mark.parametrize(("last_ms", "expected"), [(9_999, 1), (10_000, 2), (70_000, 2)])
def test_a_change_that_is_held_at_the_end_is_taken_if_its_time_has_come(
    last_ms: int, expected: int
) -> None:
    frames = [car.door(START_MS, 0), car.door(START_MS + 5000, 1), car.foreign(START_MS + last_ms)]

    assert replayed(frames, 100) == [(0, False), (10_000, True)][:expected]


OPEN = {"days": "1-7", "from": "00:00", "to": "00:00", "tz": "UTC"}
NEVER_NOW = {"days": "1-7", "from": "03:00", "to": "04:00", "tz": "UTC"}  # It is 08:00.


@pytest.mark.parametrize(
    ("window", "known", "why"),
    [
        (OPEN, True, None),
        (NEVER_NOW, True, "outside its windows"),
        (OPEN, False, "its windows are closed: the time is not known"),
    ],
)
def test_the_report_says_that_windows_were_closed(
    window: dict[str, str], *, known: bool, why: str | None
) -> None:
    policy = car.policy({"g": {"read_odometer": {"windows": [window]}}})
    replay = Replay(policy, car.catalogue(), car.binding(), time_known=known)

    replay.feed([car.odometer(START_MS, 1)])
    replay.finish()

    (row,) = [row for row in replay.report() if row.path == "Vehicle.TraveledDistance"]
    assert (row.taken, row.blocked, row.why) == ((1, 0, None) if why is None else (0, 1, why))


def test_a_recording_over_the_edge_of_a_window_gives_what_lies_inside() -> None:
    policy = car.policy({"g": {"read_odometer": {"min_interval_s": 0, "windows": [NEVER_NOW]}}})
    replay = Replay(policy, car.catalogue(), car.binding())
    three_ms = START_MS - 5 * 3_600_000
    moments = [three_ms - 1, three_ms, three_ms + 3_599_999, three_ms + 3_600_000]

    replay.feed([car.odometer(t_ms, n) for n, t_ms in enumerate(moments)])
    replay.finish()

    assert [sample.value for sample in replay.samples()] == [1, 2]
    (row,) = [row for row in replay.report() if row.path == "Vehicle.TraveledDistance"]
    assert (row.taken, row.why) == (2, None)
