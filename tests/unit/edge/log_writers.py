"""One recording in every format, for round trips: python-can's writers, and text by hand.

python-can's ASC and MF4 writers put the moment of writing into the header, so the header that a
recorder would write is put in its place here; its TRC writer knows neither CAN FD, remote nor
error frames, its CSV neither channels nor CAN FD flags, SavvyCAN's CSV neither remote nor error
frames: `KEEPS` says what each format can carry.
"""

import datetime as dt
from collections.abc import Callable, Sequence
from pathlib import Path

import can

from agent.core.model import (
    CAN_EFF_FLAG,
    CAN_EFF_MASK,
    CAN_ERR_FLAG,
    CAN_RTR_FLAG,
    CAN_SFF_MASK,
    Frame,
)
from tests.unit.edge.mdf4_writer import mdf4

S = 1_000_000_000
START_NS = 1_597_243_084 * S  # 2020-08-12 14:38:04 UTC


def message(frame: Frame) -> can.Message:
    """Return a frame as python-can's message; channels count from 0 there."""
    t_ns, channel, can_id, data = frame
    is_error = bool(can_id & CAN_ERR_FLAG)
    return can.Message(
        timestamp=t_ns / S,
        channel=int(channel) - 1,
        arbitration_id=0 if is_error else can_id & CAN_EFF_MASK,
        is_extended_id=bool(can_id & CAN_EFF_FLAG),
        is_remote_frame=bool(can_id & CAN_RTR_FLAG),
        is_error_frame=is_error,
        is_fd=len(data) > 8,
        data=data,
    )


def frame(read: can.Message) -> Frame:
    """Return what python-can's reader read as a frame."""
    t_ns = round(read.timestamp * 1_000_000) * 1000
    channel = str(read.channel + 1) if isinstance(read.channel, int) else "1"
    if read.is_error_frame:
        return t_ns, channel, CAN_ERR_FLAG, b""
    can_id = read.arbitration_id
    if read.is_extended_id:
        can_id |= CAN_EFF_FLAG
    if read.is_remote_frame:
        return t_ns, channel, can_id | CAN_RTR_FLAG, b""
    return t_ns, channel, can_id, bytes(read.data)


def identifier(can_id: int) -> str:
    """Return the identifier as can-utils write it."""
    if can_id & CAN_ERR_FLAG:
        return f"{can_id & (CAN_ERR_FLAG | CAN_EFF_MASK):08X}"
    if can_id & CAN_EFF_FLAG:
        return f"{can_id & CAN_EFF_MASK:08X}"
    return f"{can_id & CAN_SFF_MASK:03X}"


def candump(frames: Sequence[Frame], *, suffix: str = "", prefix: str = "") -> str:
    """Return the text that `candump -L` writes; the channel gets a prefix."""
    lines = []
    for t_ns, channel, can_id, data in frames:
        body = f"##1{data.hex().upper()}" if len(data) > 8 else f"#{data.hex().upper()}"
        if can_id & CAN_RTR_FLAG:
            body = "#R"
        seconds = f"({t_ns // S:010d}.{t_ns % S // 1000:06d})"
        lines.append(f"{seconds} {prefix}{channel} {identifier(can_id)}{body}{suffix}\n")
    return "".join(lines)


def _with(writer: Callable[[Path], can.Listener], frames: Sequence[Frame], path: Path) -> None:
    log = writer(path)
    for one in frames:
        log.on_message_received(message(one))
    log.stop()


def _candump(frames: Sequence[Frame], path: Path) -> None:
    path.write_text(candump(frames))


def _asc(frames: Sequence[Frame], path: Path) -> None:
    _with(can.ASCWriter, frames, path)
    start = dt.datetime.fromtimestamp(frames[0][0] // S, tz=dt.UTC)
    micro = frames[0][0] % S // 1000
    header, _, rest = path.read_text().partition("\n")
    assert header.startswith("date ")
    date = start.strftime("date %a %b %d %I:%M:%S") + f".{micro:06d} "
    path.write_text(date + start.strftime("%p %Y").lower() + "\n" + rest)


def _blf(frames: Sequence[Frame], path: Path) -> None:
    _with(can.BLFWriter, frames, path)


def _trc(frames: Sequence[Frame], path: Path) -> None:
    _with(can.TRCWriter, frames, path)


def _csv(frames: Sequence[Frame], path: Path) -> None:
    _with(can.CSVWriter, frames, path)


def _savvycan(frames: Sequence[Frame], path: Path) -> None:
    lines = ["Time Stamp,ID,Extended,Dir,Bus,LEN,D1,D2,D3,D4,D5,D6,D7,D8"]
    for t_ns, channel, can_id, data in filter(_is_data, frames):
        is_extended = "true" if can_id & CAN_EFF_FLAG else "false"
        lines.append(
            f"{t_ns // 1000},{can_id & CAN_EFF_MASK:08X},{is_extended},Rx,{channel},{len(data)},"
            + "".join(f"{byte:02X}," for byte in data)
        )
    path.write_text("\n".join(lines) + "\n")


def _mf4(frames: Sequence[Frame], path: Path) -> None:
    path.write_bytes(mdf4(frames, start_ns=START_NS))


def _all(_: Frame) -> bool:
    return True


def _is_data(one: Frame) -> bool:
    return not one[2] & (CAN_RTR_FLAG | CAN_ERR_FLAG)


def _is_classic_data(one: Frame) -> bool:
    return _is_data(one) and len(one[3]) <= 8


WRITERS: dict[str, Callable[[Sequence[Frame], Path], None]] = {
    "log": _candump,
    "asc": _asc,
    "blf": _blf,
    "trc": _trc,
    "csv": _csv,
    "savvycan.csv": _savvycan,
    "mf4": _mf4,
}
KEEPS: dict[str, Callable[[Frame], bool]] = {
    "log": _all,
    "asc": _all,
    "blf": _all,
    "trc": _is_classic_data,
    "csv": _all,
    "savvycan.csv": _is_data,
    "mf4": _all,
}
HAS_CHANNELS = {name: name != "csv" for name in WRITERS}
