"""How a bus does: its state, what was read and what was lost, and what error frames mean.

An error frame (linux/can/error.h) carries classes in its identifier and details in its data:

    can_id   ERR flag | classes            data[1] controller   data[2..3] protocol, place

Rules:
 * Every frame that was lost is in one counter: `kernel_drops` where the process was too slow,
   `overruns` where the controller was (each such report stands for one frame at the least),
   `abandoned` where the process was killed and they could not be stored afterwards.
 * A controller says how it does when that changes: what it said last holds. A data frame proves
   that a bus which was off, down or away is back.
 * Nothing of a frame's contents is kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from agent.core.model import CAN_ERR_FLAG

ErrorFrame = tuple[int, int, bytes]  # (t_ns, canid_t, data)


class BusState(StrEnum):
    """What a bus can be in; the last four follow ISO 11898-1 and linux/can/error.h."""

    IDLE = "idle"  # Nothing is granted, so it is not even open.
    MISSING = "missing"  # There is no such interface, or the adapter cannot be opened.
    DOWN = "down"
    SILENT = "silent"  # It is open, and nothing of what is let in has come for a while.
    ACTIVE = "active"
    WARNING = "warning"
    PASSIVE = "passive"
    BUS_OFF = "bus-off"


@dataclass(frozen=True, slots=True)
class BusHealth:
    """One bus at one moment. It stays on the board.

    Attributes:
        state: Where the bus stands.
        frames: Frames handed over.
        kernel_drops: Frames that the socket's buffer had no room for.
        overruns: Times that the controller lost frames.
        abandoned: Frames that were read before a kill and never stored.
        errors: Kind of error → frames that told of it.
        reconnects: Times that the bus was opened again or an opening failed.
        last_frame_ns: When the last frame came, ns since the epoch; None before the first.
    """

    bus: str
    state: BusState
    frames: int = 0
    kernel_drops: int = 0
    overruns: int = 0
    abandoned: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    reconnects: int = 0
    last_frame_ns: int | None = None


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """What one error frame says.

    Attributes:
        kinds: Words for its classes.
        state: The controller's state, where it tells.
        is_overrun: Whether the controller lost frames.
    """

    kinds: tuple[str, ...]
    state: BusState | None
    is_overrun: bool


# linux/can/error.h: classes in the identifier.
_CLASSES = {
    0x001: "tx-timeout",
    0x002: "lost-arbitration",
    0x004: "controller",
    0x008: "protocol",
    0x010: "transceiver",
    0x020: "no-ack",
    0x040: "bus-off",
    0x080: "bus-error",
    0x100: "restarted",
}
_CONTROLLER = 0x004
_BUS_OFF = 0x040
_RESTARTED = 0x100
# Details of the controller in data[1].
_RX_OVERFLOW = 0x01
_WARNING = 0x04 | 0x08  # Of the receiving and of the sending side.
_PASSIVE = 0x10 | 0x20
_ACTIVE = 0x40


def read_error(can_id: int, data: bytes) -> ErrorReport:
    """Return what an error frame says.

    Args:
        can_id: canid_t with the ERR flag.
        data: Its 8 bytes; what is missing counts as zero.
    """
    assert can_id & CAN_ERR_FLAG, "an error frame"
    kinds = tuple(name for bit, name in _CLASSES.items() if can_id & bit)
    detail = data[1] if can_id & _CONTROLLER and len(data) > 1 else 0
    state: BusState | None = None
    if can_id & _BUS_OFF:
        state = BusState.BUS_OFF
    elif detail & _PASSIVE:
        state = BusState.PASSIVE
    elif detail & _WARNING:
        state = BusState.WARNING
    elif detail & _ACTIVE or can_id & _RESTARTED:
        state = BusState.ACTIVE
    return ErrorReport(kinds or ("other",), state, bool(detail & _RX_OVERFLOW))
