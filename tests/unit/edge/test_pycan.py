"""A bus through python-can: adapters that are not there, fail, or are without their library."""

import logging
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import can
import pytest

from agent.core.bushealth import BusState
from agent.core.canfilter import exact_filter
from agent.core.model import Frame
from agent.edge import pycan
from agent.edge.pycan import PyCanReader, open_bus
from agent.errors import BusError
from tests.adapter import Script, plug_in
from tests.rig import wait_for

CHANNEL = "script"


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, "pcan")
    plug_in(monkeypatch, "gs_usb")
    monkeypatch.setattr(pycan, "MIN_PAUSE_S", 0.01)
    monkeypatch.setattr(pycan, "POLL_S", 0.005)


class Listening:
    """A reader on a scripted adapter, and what it gave."""

    def __init__(self, interface: str) -> None:
        self.frames: list[Frame] = []
        self.reader = PyCanReader(
            "body", interface=interface, channel=CHANNEL, options={}, sink=self.frames.extend
        )

    def wait_for(self, what: str, condition: Callable[[], object]) -> None:
        wait_for(what, lambda: self.reader.failure or condition())
        assert self.reader.failure is None


@contextmanager
def listening(interface: str = "pcan") -> Iterator[Listening]:
    made = Listening(interface)
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
