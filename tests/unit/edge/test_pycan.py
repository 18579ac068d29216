"""A bus through python-can: adapters that are not there, fail, or are without their library."""

import logging
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import can
import pytest

from agent import adapter, condition
from agent.core.bushealth import BusState
from agent.core.canfilter import exact_filter
from agent.core.model import NS_PER_S, NS_PER_US, Frame
from agent.edge.pycan import CHUNK, PyCanReader, Times, open_bus
from agent.errors import BusError
from tests.adapter import Script, plug_in
from tests.rig import wait_for

CHANNEL = "script"


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, "pcan")
    plug_in(monkeypatch, "gs_usb")
    monkeypatch.setattr(adapter, "MIN_PAUSE_S", 0.01)
    monkeypatch.setattr(adapter, "POLL_S", 0.005)


class Listening:
    """A reader on a scripted adapter, and what it gave."""

    def __init__(self, interface: str, **how: Any) -> None:
        self.frames: list[Frame] = []
        self.reader = PyCanReader(
            "body",
            interface=interface,
            channel=CHANNEL,
            sink=self.frames.extend,
            **{"options": {}, **how},
        )

    def wait_for(self, what: str, condition: Callable[[], object]) -> None:
        wait_for(what, lambda: self.reader.failure or condition())
        assert self.reader.failure is None


@contextmanager
def listening(interface: str = "pcan", **how: Any) -> Iterator[Listening]:
    made = Listening(interface, **how)
    made.reader.set_filters([exact_filter(1)])
    made.reader.start()
    try:
        yield made
    finally:
        made.reader.close()


def message(can_id: int, **more: object) -> can.Message:
    return can.Message(arbitration_id=can_id, is_extended_id=False, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("interface", ["kvaser", "ixxat", "nonsense"])
def test_an_adapter_without_its_library_is_a_bus_error(interface: str) -> None:
    """python-can raises NameError for the first of them."""
    with pytest.raises(BusError, match=f"the bus 0 .{interface}. cannot be opened: ."):
        open_bus(interface, "0", {})


def test_an_adapter_is_opened_as_it_was_told_whatever_stands_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """python-can reads can.conf in several folders, and its environment."""
    (tmp_path / "can.conf").write_text("[default]\nfd = True\n")
    monkeypatch.setenv("CAN_CONFIG", '{"bitrate": 125000}')
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(can.util, "CONFIG_FILES", [str(tmp_path / "can.conf")])
    script = Script(CHANNEL)

    open_bus("pcan", CHANNEL, {"bitrate": 500_000}).shutdown()
    open_bus("pcan", CHANNEL, {}).shutdown()

    assert script.options == [{"bitrate": 500_000}, {}]


@pytest.mark.parametrize(("options", "listens_only"), [({}, True), ({"listen_only": False}, False)])
def test_a_serial_adapter_takes_no_part_in_the_bus_unless_somebody_says_so(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], listens_only: object
) -> None:
    plug_in(monkeypatch, "slcan")
    script = Script(CHANNEL)

    open_bus("slcan", CHANNEL, options).shutdown()

    assert script.options == [{"listen_only": listens_only}]


@pytest.mark.parametrize(
    "fault", [NameError("canOpenChannel"), AttributeError(), termios.error(5, "gone")]
)
def test_whatever_opening_raises_the_adapter_is_tried_again(fault: Exception) -> None:
    Script(CHANNEL, fault, fault, [message(1)])

    with listening() as made:
        made.wait_for("the frame", lambda: made.frames)

        assert made.reader.health().reconnects == 2
        assert made.reader.health().state is BusState.ACTIVE


def test_a_serial_adapter_that_is_unplugged_while_it_is_read_is_tried_again() -> None:
    Script(CHANNEL, [message(1), termios.error(5, "gone")], [message(2)])

    with listening() as made:
        made.wait_for("the frames", lambda: len(made.frames) == 2)

        assert made.reader.health().reconnects == 1


def test_an_adapter_that_opens_but_cannot_be_read_is_tried_with_growing_pauses_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    script = Script(CHANNEL, *[[can.CanOperationError("no")] for _ in range(6)])

    with listening() as made:
        made.wait_for("six losses", lambda: made.reader.health().reconnects == 6)

    gaps_s = [after - before for before, after in pairwise(script.opened_s)]
    assert all(gap_s >= 0.01 * 2**n for n, gap_s in enumerate(gaps_s))
    told = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == ["bus trouble"]


def test_an_adapter_that_gave_a_frame_is_tried_again_soon() -> None:
    lost = can.CanOperationError("no")
    script = Script(CHANNEL, [lost], [lost], [lost], [lost], [message(1), lost], [message(2)])

    with listening() as made:
        made.wait_for("the frames", lambda: len(made.frames) == 2)

    pauses_s = [after - before for before, after in pairwise(script.opened_s)]
    assert pauses_s[4] < pauses_s[3]


NOW_NS = 1_800_000_000 * NS_PER_S


class Clock:
    def __init__(self) -> None:
        self.now_ns = NOW_NS

    def __call__(self) -> int:
        return self.now_ns


@pytest.mark.parametrize("start_s", [0.25, 86_400.0, 4_000_000_000.0])
def test_times_of_a_clock_of_the_adapters_own_are_moved_to_ours(start_s: float) -> None:
    """Pcan counts from the board's start, gs_usb from the device's."""
    Script(CHANNEL, [message(n, timestamp=start_s + n / 4) for n in range(3)])

    with listening(clock=Clock()) as made:
        made.wait_for("the frames", lambda: len(made.frames) == 3)

    assert [t_ns for t_ns, *_ in made.frames] == [NOW_NS + n * NS_PER_S // 4 for n in range(3)]


def test_times_of_the_epoch_stay_as_they_are_also_when_a_frame_waited_long() -> None:
    epoch_s = NOW_NS / NS_PER_S
    Script(CHANNEL, [message(1, timestamp=epoch_s - 2), message(1, timestamp=epoch_s + 3600)])

    with listening(clock=Clock()) as made:
        made.wait_for("the frames", lambda: len(made.frames) == 2)

    assert [t_ns for t_ns, *_ in made.frames] == [NOW_NS - 2 * NS_PER_S, NOW_NS + 3600 * NS_PER_S]


def test_an_adapter_that_is_opened_again_with_its_clock_at_the_start_is_set_anew() -> None:
    lost = can.CanOperationError("no")
    Script(CHANNEL, [message(1, timestamp=100.0), lost], [message(1, timestamp=1.0)])

    with listening(clock=Clock()) as made:
        made.wait_for("the frames", lambda: len(made.frames) == 2)

    assert [t_ns for t_ns, *_ in made.frames] == [NOW_NS, NOW_NS]


def test_a_clock_of_32_bits_may_begin_again_and_ours_may_be_set() -> None:
    clock, wrap_us = Clock(), 1 << 32
    times = Times(clock)

    assert times.ours((wrap_us - 500_000) * NS_PER_US) == NOW_NS
    clock.now_ns += NS_PER_S
    assert times.ours(500_000 * NS_PER_US) == NOW_NS + NS_PER_S
    clock.now_ns += 3600 * NS_PER_S  # Somebody who knows has set it.
    assert times.ours(600_000 * NS_PER_US) == NOW_NS + 3601 * NS_PER_S


def test_a_frame_without_a_time_has_that_of_its_arrival() -> None:
    Script(CHANNEL, [message(1, timestamp=0.0)])

    with listening(clock=Clock()) as made:
        made.wait_for("the frame", lambda: made.frames)

    assert made.frames[0][0] == NOW_NS


def test_times_that_were_sent_along_are_kept_where_the_configuration_says_so() -> None:
    Script(CHANNEL, [message(1, timestamp=5.0)])

    with listening(clock=Clock(), options={"preserve_timestamps": True}) as made:
        made.wait_for("the frame", lambda: made.frames)

    assert made.frames[0][0] == 5 * NS_PER_S


def error(classes: int, data: bytes) -> can.Message:
    return can.Message(arbitration_id=classes, is_error_frame=True, data=data)


PASSIVE = error(0x04, b"\x00\x30" + bytes(6))
OVERFLOW = error(0x04, b"\x00\x01" + bytes(6))
BUS_OFF = error(0x40, bytes(8))


@pytest.mark.parametrize(
    ("frames", "state"),
    [
        ([PASSIVE], BusState.PASSIVE),
        ([OVERFLOW, BUS_OFF], BusState.BUS_OFF),
        ([BUS_OFF, error(0x100, bytes(8))], BusState.ACTIVE),
    ],
)
def test_error_frames_of_gs_usb_say_how_the_controller_does(
    frames: list[can.Message], state: BusState
) -> None:
    Script(CHANNEL, frames)

    with listening("gs_usb") as made:
        made.wait_for("them", lambda: sum(made.reader.health().errors.values()) == len(frames))
        health = made.reader.health()

    assert health.state is state
    assert health.overruns == (OVERFLOW in frames)
    assert not made.frames


def test_error_frames_of_other_adapters_are_counted_and_not_read() -> None:
    """Pcan's number for a bit error is Linux's for a transmission that took too long."""
    Script(CHANNEL, [BUS_OFF, message(1)])

    with listening("pcan") as made:
        made.wait_for("the frame", lambda: made.frames)
        health = made.reader.health()

    assert (health.state, health.errors) == (BusState.ACTIVE, {"reported": 1})


@pytest.mark.parametrize("interface", ["gs_usb", "pcan"])
def test_error_frames_without_end_do_not_hold_up_the_reader(interface: str) -> None:
    """A wrong bit rate; a reader that does not move is ended by the watchdog."""
    Script(CHANNEL, [BUS_OFF] * (10 * CHUNK))

    with listening(interface) as made:
        made.wait_for("them", lambda: sum(made.reader.health().errors.values()) == 10 * CHUNK)
        turns = made.reader.turns

    assert turns >= 10


def test_frames_that_come_in_a_row_come_in_chunks_and_none_is_lost_between_them() -> None:
    Script(CHANNEL, [message(n % 0x700) for n in range(3 * CHUNK + 1)])

    with listening() as made:
        made.wait_for("them", lambda: len(made.frames) == 3 * CHUNK + 1)

    assert [can_id for _, _, can_id, _ in made.frames] == [n % 0x700 for n in range(3 * CHUNK + 1)]


def test_an_adapter_that_gives_nothing_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(condition, "SILENT_S", 0.01)
    Script(CHANNEL)

    with listening() as made:
        made.wait_for("the silence", lambda: made.reader.health().state is BusState.SILENT)
