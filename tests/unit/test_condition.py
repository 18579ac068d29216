"""What is known of a bus: when it is back, what is counted, and what is worth a line in the log."""

import logging

import pytest

from agent.condition import SILENT_S, Condition
from agent.core.bushealth import BusState, ErrorFrame
from agent.core.model import CAN_ERR_FLAG, Frame

BUS_OFF, RESTARTED, PROTOCOL = (CAN_ERR_FLAG | bit for bit in (0x40, 0x100, 0x8))


def received(
    *errors: tuple[int, int], frames: tuple[int, ...] = ()
) -> tuple[list[Frame], list[ErrorFrame]]:
    """Make what comes at once, from (time, identifier) of errors and times of frames."""
    return (
        [(t_ns, "b", 1, b"") for t_ns in frames],
        [(t_ns, can_id, bytes(8)) for t_ns, can_id in errors],
    )


def test_a_bus_that_was_off_is_back_when_a_later_frame_comes() -> None:
    condition = Condition("b")
    condition.enter(BusState.ACTIVE, 0)

    condition.note(*received((5, BUS_OFF), frames=(4,)))
    assert condition.state is BusState.BUS_OFF
    condition.note(*received(frames=(6,)))
    assert condition.state is BusState.ACTIVE
    condition.note(*received((7, BUS_OFF), (8, RESTARTED)))
    assert condition.state is BusState.ACTIVE


def test_frames_from_before_a_fault_do_not_end_it_though_it_came_twice() -> None:
    condition = Condition("b")
    for t_ns in (5, 9):
        condition.enter(BusState.DOWN, t_ns)

    condition.note(*received(frames=(8,)))

    assert condition.state is BusState.DOWN


def test_a_frame_does_not_make_a_controller_well_that_says_it_is_not() -> None:
    condition = Condition("b")
    condition.enter(BusState.PASSIVE, 0)

    condition.note(*received(frames=(1,)))

    assert condition.state is BusState.PASSIVE


def test_dropped_frames_are_counted_over_sockets_and_over_the_end_of_the_counter() -> None:
    condition = Condition("b")

    for drops in (5, 3, 5, 9):  # A frame can bring an older count than was asked for.
        condition.count_drops(drops)
    assert condition.health().kernel_drops == 9
    condition.begin_socket()
    for drops in (0x7FFF_FFFF, 0xFFFF_FFFE, 2):
        condition.count_drops(drops)

    assert condition.health().kernel_drops == 9 + (1 << 32) + 2


def test_a_broken_bus_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    condition = Condition("b")
    with caplog.at_level(logging.INFO):
        for t_ns in range(1000):
            condition.note(*received((t_ns, PROTOCOL), (t_ns, BUS_OFF), (t_ns, RESTARTED)))

    assert [record.message for record in caplog.records] == [
        "bus trouble",
        "bus back",
        "bus errors",
    ]
    assert condition.health().errors == {"protocol": 1000, "bus-off": 1000, "restarted": 1000}


def test_a_bus_that_gives_nothing_for_a_while_is_silent_until_a_frame_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    now_s = [0.0]
    condition = Condition("b", clock_s=lambda: now_s[0])
    condition.enter(BusState.ACTIVE, 0)

    for moment_s in (SILENT_S - 1, SILENT_S):
        now_s[0] = moment_s
        condition.look(5)
    assert condition.health().state is BusState.SILENT
    condition.note(*received(frames=(6,)))
    assert condition.health().state is BusState.ACTIVE
    now_s[0] += SILENT_S - 1
    condition.look(7)
    assert condition.health().state is BusState.ACTIVE

    assert [(r.levelname, r.message) for r in caplog.records] == [
        ("INFO", "bus silent"),
        ("INFO", "bus back"),
    ]


def test_a_bus_that_is_silent_again_and_again_is_told_of_every_ten_minutes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    now_s = [0.0]
    condition = Condition("b", clock_s=lambda: now_s[0])
    condition.enter(BusState.ACTIVE, 0)

    for n in range(2 * 3600 // int(SILENT_S)):
        now_s[0] += SILENT_S
        condition.look(n)
        condition.note(*received(frames=(n,)))

    told = [r.message for r in caplog.records]
    assert told.count("bus silent") == told.count("bus back") == 12


@pytest.mark.parametrize("state", [BusState.PASSIVE, BusState.BUS_OFF, BusState.DOWN])
def test_a_bus_in_trouble_is_not_called_silent(state: BusState) -> None:
    now_s = [0.0]
    condition = Condition("b", clock_s=lambda: now_s[0])
    condition.enter(state, 0)

    now_s[0] = 10 * SILENT_S
    condition.look(0)

    assert condition.health().state is state


def test_a_bus_that_was_just_opened_has_its_time_to_speak() -> None:
    now_s = [0.0]
    condition = Condition("b", clock_s=lambda: now_s[0])
    now_s[0] = 10 * SILENT_S
    condition.enter(BusState.ACTIVE, 0)

    condition.look(0)

    assert condition.health().state is BusState.ACTIVE
