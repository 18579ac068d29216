"""What error frames mean: linux/can/error.h, byte by byte."""

import pytest

from agent.core.bushealth import BusState, read_error
from agent.core.model import CAN_ERR_FLAG

CONTROLLER = CAN_ERR_FLAG | 0x04


@pytest.mark.parametrize(
    ("can_id", "data", "kinds", "state"),
    [
        (0x040, b"", ("bus-off",), BusState.BUS_OFF),
        (0x100, b"", ("restarted",), BusState.ACTIVE),
        (0x004, b"\x00\x04", ("controller",), BusState.WARNING),
        (0x004, b"\x00\x08", ("controller",), BusState.WARNING),
        (0x004, b"\x00\x10", ("controller",), BusState.PASSIVE),
        (0x004, b"\x00\x20", ("controller",), BusState.PASSIVE),
        (0x004, b"\x00\x0c", ("controller",), BusState.WARNING),
        (0x004, b"\x00\x34", ("controller",), BusState.PASSIVE),
        (0x004, b"\x00\x40", ("controller",), BusState.ACTIVE),
        (0x004, b"", ("controller",), None),
        (0x008, b"\x00\x40", ("protocol",), None),
        (0x088, b"", ("protocol", "bus-error"), None),
        (0x001, b"", ("tx-timeout",), None),
        (0x002, b"", ("lost-arbitration",), None),
        (0x010, b"", ("transceiver",), None),
        (0x020, b"", ("no-ack",), None),
        (0x200, bytes(8), ("other",), None),
        (0x044, b"\x00\x20", ("controller", "bus-off"), BusState.BUS_OFF),
    ],
)
def test_an_error_frame_says_its_kinds_and_the_controllers_state(
    can_id: int, data: bytes, kinds: tuple[str, ...], state: BusState | None
) -> None:
    report = read_error(CAN_ERR_FLAG | can_id, data)

    assert (report.kinds, report.state, report.is_overrun) == (kinds, state, False)


@pytest.mark.parametrize(("detail", "overruns"), [(1, 1), (2, 0), (5, 1)])
def test_frames_that_the_controller_lost_are_told_and_those_it_did_not_send_are_not(
    detail: int, overruns: int
) -> None:
    assert read_error(CONTROLLER, bytes((0, detail))).is_overrun == overruns
