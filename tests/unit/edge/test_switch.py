"""The privacy switch: a file, and a CAN signal in the capture lane's own thread."""

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.config import Config, parse_config
from agent.core.model import NS_PER_S, Batch, Frame
from agent.core.pipeline import Pipeline
from agent.core.plan import Plan, compile_plan
from agent.core.switch import SignalSwitch, find_switch
from agent.edge.capture import Capture
from agent.edge.switch import FileSwitch
from agent.errors import ConfigError
from tests import car

START_NS = 1_800_000_000 * NS_PER_S
START_MS = START_NS / 1e6


@contextmanager
def watching(path: Path, *, on_fault: bool = True) -> Iterator["queue.SimpleQueue[bool]"]:
    said: queue.SimpleQueue[bool] = queue.SimpleQueue()
    switch = FileSwitch(
        path,
        active="1",
        inactive="0",
        private_on_fault=on_fault,
        poll_s=0.005,
        on_switch=said.put,
    )
    switch.start()
    try:
        yield said
        assert switch.is_alive
    finally:
        switch.close()
        switch.close()
    assert not switch.is_alive
    assert switch.failure is None


def test_a_file_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "value"
    path.write_text("0\n")
    with watching(path) as said:
        assert said.get_nowait() is False, "known before `start` returns"
        path.write_text("1\n")
        assert said.get(timeout=5) is True
        path.write_text("0\n")
        assert said.get(timeout=5) is False
        time.sleep(0.03)
        assert said.empty(), "told only when it changes"


@pytest.mark.parametrize("content", [b"", b"2\n", b"10\n", b"\xff\xfe", b"1" * 100, None])
@pytest.mark.parametrize("on_fault", [True, False])
def test_what_cannot_be_read_says_what_holds_for_a_fault(
    tmp_path: Path,
    content: bytes | None,
    on_fault: bool,  # noqa: FBT001
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "value"
    if content is not None:
        path.write_bytes(content)
    with watching(path, on_fault=on_fault) as said:
        assert said.get_nowait() is on_fault
        time.sleep(0.03)

    assert [record.message for record in caplog.records] == ["switch fault"], "told once"


def test_a_pipe_or_a_folder_in_its_place_does_not_hold_us_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with watching(path) as said:
            assert said.get_nowait() is True


def test_a_file_that_goes_closes_and_opens_again_when_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "value"
    path.write_text("0")
    with watching(path) as said:
        assert said.get_nowait() is False
        path.unlink()
        assert said.get(timeout=5) is True
        path.write_text("0")
        assert said.get(timeout=5) is False


class Lane:
    """A capture lane whose switch is the counter in the speed's frame; 1 means private."""

    def __init__(self, **more: bool) -> None:
        self.batches: list[Batch] = []
        self.said: list[bool] = []
        self.plan = plan()
        pipeline = Pipeline(max_samples=1)
        self.capture = Capture(
            pipeline,
            on_batches=lambda got, _: self.batches.extend(got),
            clock=lambda: START_NS,
            switch=SignalSwitch(
                find_switch([car.dbc()], bus="can0", signal="SPEED.Counter", private=[1]),
                private_on_fault=more.get("on_fault", True),
                max_age_ns=10 * NS_PER_S,
            ),
            on_switch=self.said.append,
        )
        self.capture.swap(self.plan)

    def take(self, *chunks: list[Frame], before: Callable[[], None] = lambda: None) -> list[int]:
        """Return the times of all samples, s from the start."""
        before()
        for chunk in chunks:
            self.capture.put(chunk)
        self.capture.start()
        self.capture.close()
        assert self.capture.failure is None
        return times_s(self.batches)


def plan() -> Plan:
    scopes = {"read_speedometer": {"min_interval_s": 0.1}, "read_odometer": {"min_interval_s": 0}}
    return compile_plan(car.policy({"g": scopes}), car.catalogue(), car.binding(), now_ns=START_NS)


def speed(t_s: int, private: int) -> Frame:
    t_ns, bus, can_id, data = car.speed(START_MS + t_s * 1000, 50 + t_s)
    return t_ns, bus, can_id, data[:2] + bytes([private, 0])


def odometer(t_s: int) -> Frame:
    return car.odometer(START_MS + t_s * 1000, t_s)


def times_s(batches: list[Batch]) -> list[int]:
    """Return the times of all samples, s from the start."""
    times_ms = [t for batch in batches for column in batch.columns for t in column.times_ms]
    return sorted((t_ms - round(START_MS)) // 1000 for t_ms in times_ms)


DRIVE = [
    odometer(0),  # Not known yet.
    speed(1, 0),
    odometer(2),
    speed(3, 1),  # Private from here on, this frame included.
    odometer(4),
    speed(5, 1),
    odometer(6),
    speed(7, 0),
    odometer(8),
]
# What is open when the switch turns is dropped with the open batch, as with any stop: 2 goes.
PERMITTED = [1, 7, 8]


@pytest.mark.parametrize(
    ("size", "permitted"), [(1, [1, 2, 7, 8]), (2, PERMITTED), (4, PERMITTED), (9, PERMITTED)]
)
def test_nothing_is_taken_from_the_frame_that_says_private_until_one_says_otherwise(
    size: int, permitted: list[int]
) -> None:
    """In chunks of one frame 2 fills a batch, and with that all close."""
    lane = Lane()

    taken = lane.take(*(DRIVE[i : i + size] for i in range(0, len(DRIVE), size)))

    assert taken == permitted
    assert lane.said == [True, False, True, False]


def test_before_it_was_heard_nothing_is_taken() -> None:
    assert Lane().take([odometer(t) for t in range(10)]) == []


def test_ignoring_faults_takes_until_it_says_private() -> None:
    lane = Lane(on_fault=False)

    assert lane.take([odometer(0), odometer(1), odometer(2)]) == [0, 1, 2]
    assert lane.said == [False]


def test_a_new_plan_does_not_open_what_the_switch_has_closed() -> None:
    lane = Lane()
    lane.capture.start()
    lane.capture.put([speed(0, 1), odometer(1)])
    lane.capture.swap(plan())
    lane.capture.put([odometer(2)])
    lane.capture.put([speed(3, 0), odometer(4), odometer(5)])
    lane.capture.close()

    assert times_s(lane.batches) == [3, 4, 5]


def test_a_plan_that_takes_nothing_stays_when_the_switch_opens() -> None:
    """A local stop that came while the switch was closed holds on."""
    lane = Lane()

    taken = lane.take(
        [speed(0, 1)],
        [speed(1, 0), odometer(2)],
        before=lambda: lane.capture.swap(
            compile_plan(None, car.catalogue(), car.binding(), now_ns=0)
        ),
    )

    assert taken == []


def test_without_a_switch_nothing_changes() -> None:
    batches: list[Batch] = []
    capture = Capture(
        Pipeline(plan()), on_batches=lambda got, _: batches.extend(got), clock=lambda: START_NS
    )
    capture.put(DRIVE)
    capture.start()
    capture.close()

    assert sum(batch.count for batch in batches) == len(DRIVE)


def test_silence_closes_it_without_frames() -> None:
    clock = [START_NS]
    lane = Lane()
    lane.capture._clock = lambda: clock[0]
    turned = threading.Event()
    lane.capture._on_switch = lambda private: turned.set() if private else None
    lane.capture.start()
    lane.capture.put([speed(0, 0)])
    deadline = time.monotonic() + 5
    while lane.capture._is_private and time.monotonic() < deadline:
        time.sleep(0.005)
    turned.clear()
    clock[0] += 11 * NS_PER_S
    lane.capture._chunks.put(None)  # It looks at the clock with each chunk, and each second.

    assert turned.wait(5)
    lane.capture.close()


def config(folder: Path, **switch: object) -> Config:
    return parse_config(
        {
            "vehicle": {"id": "v", "trust": "t"},
            "bus": [{"name": "can0", "channel": "c", "dbc": ["d"], "mapping": "m"}],
            "uplink": {"host": "h"},
            "switch": switch,
        },
        folder,
    )


def test_by_default_there_is_no_switch(tmp_path: Path) -> None:
    found = config(tmp_path).switch

    assert (found.file, found.signal, found.on_fault) == (None, None, "stop")


@pytest.mark.parametrize(
    ("switch", "fault"),
    [
        ({"file": "f", "signal": "A.B", "bus": "can0", "private": [1]}, "not both"),
        ({"signal": "A.B", "private": [1]}, "needs its bus"),
        ({"signal": "A.B", "bus": "can0"}, "values that mean private"),
        ({"signal": "A.B", "bus": "can9", "private": [1]}, "expected one of can0"),
        ({"signal": "AB", "bus": "can0", "private": [1]}, "switch.signal"),
        ({"file": "f", "active": "0"}, "must differ"),
        ({"file": "f", "on_fault": "open"}, "switch.on_fault"),
        ({"file": "f", "poll_s": 0}, "switch.poll_s"),
        ({"file": "f", "poll_s": 5}, "switch.poll_s"),
    ],
)
def test_half_a_switch_is_an_error(tmp_path: Path, switch: dict[str, object], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        config(tmp_path, **switch)
