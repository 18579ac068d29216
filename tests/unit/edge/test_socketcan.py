"""What of the SocketCAN reader can be tried without SocketCAN; the rest is in tests/vm/guest."""

import ast
import logging
import os
import time
from pathlib import Path

import pytest

from agent.core.bushealth import BusState
from agent.core.canfilter import exact_filter
from agent.core.model import CAN_ERR_FLAG, Frame
from agent.edge import socketcan
from agent.edge.socketcan import ErrorFrame, Received, SocketCanReader
from agent.edge.socketcan.condition import Condition

SOURCES = sorted(Path(socketcan.__file__).parent.glob("*.py"))
BUS_OFF, RESTARTED, PROTOCOL = (CAN_ERR_FLAG | bit for bit in (0x40, 0x100, 0x8))


def received(
    *errors: tuple[int, int], frames: tuple[int, ...] = (), drops: int | None = None
) -> Received:
    """Make what a call brings, from (time, identifier) of errors and times of frames."""
    made: list[Frame] = [(t_ns, "b", 1, b"") for t_ns in frames]
    told: list[ErrorFrame] = [(t_ns, can_id, bytes(8)) for t_ns, can_id in errors]
    return Received(len(made) + len(told), made, told, drops)


def test_there_is_no_call_that_writes_to_a_socket() -> None:
    """Whatever has send or write in its name, but for the event that wakes our own thread."""
    names = {
        node.attr
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    writing = {name for name in names if "send" in name or "write" in name}

    assert len(SOURCES) > 3
    assert writing == {"eventfd_write"}
    (libc,) = (path for path in SOURCES if "ctypes.CDLL" in path.read_text(encoding="utf-8"))
    assert libc.read_text(encoding="utf-8").count("CDLL(None, use_errno=True).recvmmsg\n") == 1


def test_a_reader_whose_interface_is_missing_lives_and_tries_again() -> None:
    reader = SocketCanReader("b", channel="none-such", sink=lambda _: None)
    reader.set_filters([exact_filter(1)])
    reader.start()
    until = time.monotonic() + 5
    while reader.health().reconnects < 3 and time.monotonic() < until:
        time.sleep(0.01)

    health = reader.health()
    reader.close()

    assert health.state is BusState.MISSING
    assert health.reconnects >= 3
    assert reader.failure is None
    assert not reader.is_alive


def test_a_kept_descriptor_that_nobody_wants_is_closed() -> None:
    kept, other = os.pipe()
    told: list[int | None] = []
    reader = SocketCanReader("b", channel="none-such", sink=lambda _: None, on_socket=told.append)
    reader.adopt(kept)

    reader.set_filters(())
    reader.close()

    with pytest.raises(BrokenPipeError):
        os.write(other, b"x")
    os.close(other)
    assert told == [None]


def test_a_bus_that_was_off_is_back_when_a_later_frame_comes() -> None:
    condition = Condition("b")
    condition.enter(BusState.ACTIVE, 0)

    condition.note(received((5, BUS_OFF), frames=(4,)))
    assert condition.state is BusState.BUS_OFF
    condition.note(received(frames=(6,)))
    assert condition.state is BusState.ACTIVE
    condition.note(received((7, BUS_OFF), (8, RESTARTED)))
    assert condition.state is BusState.ACTIVE


def test_frames_from_before_a_fault_do_not_end_it_though_it_came_twice() -> None:
    condition = Condition("b")
    for t_ns in (5, 9):
        condition.enter(BusState.DOWN, t_ns)

    condition.note(received(frames=(8,)))

    assert condition.state is BusState.DOWN


def test_a_frame_does_not_make_a_controller_well_that_says_it_is_not() -> None:
    condition = Condition("b")
    condition.enter(BusState.PASSIVE, 0)

    condition.note(received(frames=(1,)))

    assert condition.state is BusState.PASSIVE


def test_dropped_frames_are_counted_over_sockets_and_over_the_end_of_the_counter() -> None:
    condition = Condition("b")

    for drops in (None, 5, 3, 5, 9):  # A frame can bring an older count than was asked for.
        condition.note(received(frames=(1,), drops=drops))
    assert condition.health().kernel_drops == 9
    condition.begin_socket()
    for drops in (0x7FFF_FFFF, 0xFFFF_FFFE, 2):
        condition.count_drops(drops)

    assert condition.health().kernel_drops == 9 + (1 << 32) + 2


def test_a_broken_bus_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    condition = Condition("b")
    with caplog.at_level(logging.INFO):
        for t_ns in range(1000):
            condition.note(received((t_ns, PROTOCOL), (t_ns, BUS_OFF), (t_ns, RESTARTED)))

    assert [record.message for record in caplog.records] == [
        "bus trouble",
        "bus back",
        "bus errors",
    ]
    assert condition.health().errors == {"protocol": 1000, "bus-off": 1000, "restarted": 1000}
