"""Writes MDF 4.1 bus logging by the standard, byte by byte (ASAM MDF 4.1, chapters 5 and 6).

Three shapes that real recorders give:
 * sorted: a data group for each kind of frame, payloads of fixed length;
 * sorted with payloads of variable length in signal data (SD) blocks, as CANoe does;
 * unsorted and unfinished: one data group, record ids, a data block that runs to the end of the
   file and counts that were never updated, as CANedge does.
"""

import struct
from collections.abc import Sequence
from itertools import pairwise

from agent.core.model import CAN_EFF_FLAG, CAN_EFF_MASK, CAN_ERR_FLAG, CAN_RTR_FLAG, Frame

_UINT, _FLOAT, _BYTES = 0, 4, 10
_FIXED, _VLSD, _MASTER = 0, 1, 2
_BUS_EVENT = 6  # cg_flags: bus event, plain bus event
_VLSD_GROUP = 1  # cg_flags


class _File:
    def __init__(self, *, is_unfinished: bool) -> None:
        name = b"UnFinMF " if is_unfinished else b"MDF     "
        flags = 0b100101 if is_unfinished else 0
        self.bytes = bytearray(
            struct.pack("<8s8s8s4xH30xHH", name, b"4.11    ", b"test    ", 411, flags, 0)
        )

    def block(self, name: bytes, links: Sequence[int] = (), data: bytes = b"") -> int:
        self.bytes += b"\0" * (-len(self.bytes) % 8)
        address = len(self.bytes)
        size = 24 + 8 * len(links) + len(data)
        self.bytes += struct.pack("<4s4xQQ", name, size, len(links))
        self.bytes += struct.pack(f"<{len(links)}Q", *links) + data
        return address

    def link(self, address: int, number: int, target: int) -> None:
        struct.pack_into("<Q", self.bytes, address + 24 + 8 * number, target)

    def text(self, text: str) -> int:
        return self.block(b"##TX", data=text.encode() + b"\0")

    def channel(
        self,
        name: str,
        kind: int,
        data_type: int,
        byte: int,
        bits: int,
        *,
        bit: int = 0,
        conversion: int = 0,
        data: int = 0,
    ) -> int:
        sync = 1 if kind == _MASTER else 0
        return self.block(
            b"##CN",
            (0, 0, self.text(name), 0, conversion, data, 0, 0),
            struct.pack(
                "<BBBBIIIIBBH6d", kind, sync, data_type, bit, byte, bits, 0, 0, 0, 0, 0, *[0.0] * 6
            ),
        )

    def linear(self, offset: float, factor: float) -> int:
        return self.block(
            b"##CC",
            (0, 0, 0, 0),
            struct.pack("<BBHHH4d", 1, 0, 0, 0, 2, 0.0, 0.0, offset, factor),
        )


_DATA, _REMOTE, _ERROR = "CAN_DataFrame", "CAN_RemoteFrame", "CAN_ErrorFrame"
_RECORD = struct.Struct("<QBIBBB")  # time, channel, id, flags (IDE, Dir, EDL), code, length
_PAYLOAD_AT = _RECORD.size


def _kind(frame: Frame) -> str:
    if frame[2] & CAN_ERR_FLAG:
        return _ERROR
    return _REMOTE if frame[2] & CAN_RTR_FLAG else _DATA


def _channels(file: _File, kind: str, *, width: int, vlsd: int, is_float: bool, tick: float) -> int:
    """Write the channels of one group; returns the first. Times count ticks, or are seconds."""
    conversion = 0 if is_float else file.linear(0.0, tick)
    time = file.channel(
        "Timestamp", _MASTER, _FLOAT if is_float else _UINT, 0, 64, conversion=conversion
    )
    whole = file.channel(kind, _FIXED, _BYTES, 8, 8 * (_PAYLOAD_AT - 8 + width))
    parts = [
        file.channel(f"{kind}.BusChannel", _FIXED, _UINT, 8, 8),
        file.channel(f"{kind}.ID", _FIXED, _UINT, 9, 29),
        file.channel(f"{kind}.IDE", _FIXED, _UINT, 13, 1),
        file.channel(f"{kind}.Dir", _FIXED, _UINT, 13, 1, bit=1),
        file.channel(f"{kind}.EDL", _FIXED, _UINT, 13, 1, bit=2),
        file.channel(f"{kind}.DLC", _FIXED, _UINT, 14, 8),
        file.channel(f"{kind}.DataLength", _FIXED, _UINT, 15, 8),
    ]
    if kind == _DATA:
        payload = _VLSD if vlsd else _FIXED
        parts.append(
            file.channel(f"{kind}.DataBytes", payload, _BYTES, _PAYLOAD_AT, 8 * width, data=vlsd)
        )
    file.link(time, 0, whole)
    file.link(whole, 1, parts[0])
    for part, following in pairwise(parts):
        file.link(part, 0, following)
    return time


def _record(frame: Frame, start_ns: int, *, is_float: bool, tick: float, payload: bytes) -> bytes:
    t_ns, channel, can_id, data = frame
    flags = (1 if can_id & CAN_EFF_FLAG else 0) | (4 if len(data) > 8 else 0)
    code = len(data) if len(data) <= 8 else 9 + (12, 16, 20, 24, 32, 48, 64).index(len(data))
    ticks = round((t_ns - start_ns) / 1e9 / tick)
    record = _RECORD.pack(ticks, int(channel), can_id & CAN_EFF_MASK, flags, code, len(data))
    if is_float:
        record = struct.pack("<d", (t_ns - start_ns) / 1e9) + record[8:]
    return record + payload


def mdf4(
    frames: Sequence[Frame],
    *,
    start_ns: int,
    shape: str = "fixed",
    time_flags: int = 2,
    zone_min: int = 0,
    is_float: bool = False,
    tick: float = 1e-6,
) -> bytes:
    """Return an MDF4 file of these frames.

    Args:
        frames: With channels that are numbers.
        start_ns: Goes into the header as it is.
        shape: fixed, variable (SD blocks) or unsorted (unfinished, with a VLSD group).
        time_flags: 1 = local time, 2 = the offsets are valid.
        zone_min: Offset of the zone, minutes, which says nothing about the instant.
        is_float: Times as float seconds rather than ticks.
        tick: Seconds of a tick.
    """
    file = _File(is_unfinished=shape == "unsorted")
    head = file.block(
        b"##HD",
        (0,) * 6,
        struct.pack("<QhhBBBBdd", start_ns, zone_min, 0, time_flags, 0, 0, 0, 0.0, 0.0),
    )
    bus = file.block(b"##SI", (file.text("CAN"), 0, 0), struct.pack("<BBB5x", 2, 2, 0))
    kinds = [k for k in (_DATA, _REMOTE, _ERROR) if any(_kind(f) == k for f in frames)]
    if shape == "unsorted":
        _write_unsorted(file, head, bus, kinds, frames, start_ns, is_float=is_float, tick=tick)
        return bytes(file.bytes)
    before, link = head, 0
    for kind in kinds:
        chosen = [frame for frame in frames if _kind(frame) == kind]
        width = max(len(frame[3]) for frame in chosen) or 8
        vlsd = 0
        payloads = [frame[3].ljust(width, b"\0") for frame in chosen]
        if kind != _DATA:
            width, payloads = 0, [b""] * len(chosen)
        elif shape == "variable":
            stream = bytearray()
            for at, frame in enumerate(chosen):
                payloads[at] = struct.pack("<Q", len(stream))
                stream += struct.pack("<I", len(frame[3])) + frame[3]
            vlsd, width = file.block(b"##SD", data=bytes(stream)), 8
        first = _channels(file, kind, width=width, vlsd=vlsd, is_float=is_float, tick=tick)
        group = file.block(
            b"##CG",
            (0, first, file.text(kind), bus, 0, 0),
            struct.pack("<QQHH4xII", 0, len(chosen), _BUS_EVENT, 46, _PAYLOAD_AT + width, 0),
        )
        records = b"".join(
            _record(frame, start_ns, is_float=is_float, tick=tick, payload=payload)
            for frame, payload in zip(chosen, payloads, strict=True)
        )
        data = file.block(b"##DT", data=records)
        this = file.block(b"##DG", (0, group, data, 0), struct.pack("<B7x", 0))
        file.link(before, link, this)
        before, link = this, 0
    return bytes(file.bytes)


def _write_unsorted(  # noqa: PLR0917 - what mdf4() has made so far
    file: _File,
    head: int,
    bus: int,
    kinds: Sequence[str],
    frames: Sequence[Frame],
    start_ns: int,
    *,
    is_float: bool,
    tick: float,
) -> None:
    vlsd_id = 9
    payload_group = file.block(
        b"##CG", (0,) * 6, struct.pack("<QQHH4xII", vlsd_id, 0, _VLSD_GROUP, 0, 0, 0)
    )
    following = payload_group
    for number, kind in reversed(list(enumerate(kinds, 1))):
        vlsd, width = (payload_group, 8) if kind == _DATA else (0, 0)
        first = _channels(file, kind, width=width, vlsd=vlsd, is_float=is_float, tick=tick)
        following = file.block(
            b"##CG",
            (following, first, file.text(kind), bus, 0, 0),
            struct.pack("<QQHH4xII", number, 0, _BUS_EVENT, 46, _PAYLOAD_AT + width, 0),
        )
    group = file.block(b"##DG", (0, following, 0, 0), struct.pack("<B7x", 1))
    file.link(head, 0, group)
    records, offset = bytearray(), 0
    for frame in frames:
        kind = _kind(frame)
        payload = b""
        if kind == _DATA:
            payload = struct.pack("<Q", offset)
            records += struct.pack("<BI", vlsd_id, len(frame[3])) + frame[3]
            offset += 4 + len(frame[3])
        records.append(1 + kinds.index(kind))
        records += _record(frame, start_ns, is_float=is_float, tick=tick, payload=payload)
    data = file.block(b"##DT", data=bytes(records))
    struct.pack_into("<Q", file.bytes, data + 8, 24)  # Never updated: the length of an empty block.
    file.link(group, 2, data)
