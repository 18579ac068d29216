"""Where the records of a bus logging group hold what a frame is made of.

Rules:
 * Members are found by name: `CAN_DataFrame.ID`, or `ID` within `CAN_DataFrame` (ASAM MDF bus
   logging, chapter 4). A group without time, or of data frames without identifier or payload, is
   damaged.
 * Numbers are converted as the file says where the result is a number; a text ("Rx") is not needed.
 * Times stay integers: ticks times the factor's decimal value, exactly.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from agent.core.model import (
    CAN_EFF_FLAG,
    CAN_EFF_MASK,
    CAN_ERR_FLAG,
    CAN_RTR_FLAG,
    CAN_SFF_MASK,
    NS_PER_S,
)
from agent.edge.logfile.mdf4 import (
    CHANNEL_MASTER,
    CHANNEL_VIRTUAL,
    CHANNEL_VIRTUAL_MASTER,
    SYNC_TIME,
    Channel,
    Conversion,
    DamagedFile,
    DataGroup,
)
from agent.edge.logfile.report import LogReport

_DATA, _REMOTE, _ERROR = "CAN_DataFrame", "CAN_RemoteFrame", "CAN_ErrorFrame"
_LENGTHS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24, 32, 48, 64)  # ISO 11898-1: by length code.
_LINEAR, _TABLE_BETWEEN, _TABLE, _RANGES = 1, 4, 5, 6  # CC blocks that give numbers.
_FLOATS = {4: "<", 5: ">"}  # cn_data_type
_BIG_ENDIAN = (1, 3)

_Number = Callable[[bytes, int], int | float]  # (record, its number in its group) → value
_Integer = Callable[[bytes, int], int]


@dataclass(frozen=True, slots=True)
class Layout:
    """How to read the records of one channel group.

    Attributes:
        kind: CAN_DataFrame, CAN_RemoteFrame or CAN_ErrorFrame.
        time_ns: From the start of the log, not yet rounded to µs.
        channel: BusChannel.
        identifier: ID.
        is_extended: IDE, or None where the identifier itself tells.
        length: Bytes of payload by DataLength or DLC, or None where neither is recorded.
        payload: DataBytes, of a data frame.
    """

    kind: str
    time_ns: _Integer
    channel: _Integer
    identifier: _Integer
    is_extended: _Integer | None
    length: _Integer | None
    payload: Channel | None

    def canid(self, record: bytes, number: int) -> int:
        """Return canid_t of one record."""
        if self.kind == _ERROR:
            return CAN_ERR_FLAG
        identifier = self.identifier(record, number)
        if self.is_extended is None:
            is_extended = bool(identifier & CAN_EFF_FLAG) or identifier > CAN_SFF_MASK
        else:
            is_extended = bool(self.is_extended(record, number))
        remote = CAN_RTR_FLAG if self.kind == _REMOTE else 0
        if is_extended:
            return identifier & CAN_EFF_MASK | CAN_EFF_FLAG | remote
        return identifier & CAN_SFF_MASK | remote


def layouts_of(group: DataGroup, report: LogReport) -> Mapping[int, Layout]:
    """Return the layouts of a data group's CAN frames, by record id; damage is reported."""
    layouts: dict[int, Layout] = {}
    for member in group.groups:
        for kind in (_DATA, _REMOTE, _ERROR):
            names = {channel.name for channel in member.channels}
            if kind not in names and not any(name.startswith(f"{kind}.") for name in names):
                continue
            try:
                layouts[member.record_id] = _layout(kind, member.channels)
            except DamagedFile as exc:
                report.add_broken(None, str(exc))
    return layouts


def _layout(kind: str, channels: tuple[Channel, ...]) -> Layout:
    members = {channel.name.removeprefix(f"{kind}."): channel for channel in channels}
    masters = [
        channel
        for channel in channels
        if channel.kind in (CHANNEL_MASTER, CHANNEL_VIRTUAL_MASTER) and channel.sync == SYNC_TIME
    ]
    if not masters:
        raise DamagedFile("a group of frames without time")
    identifier, payload = members.get("ID"), members.get("DataBytes")
    if kind != _ERROR and identifier is None:
        raise DamagedFile("a group of frames without identifiers")
    if kind == _DATA and payload is None:
        raise DamagedFile("a group of data frames without data")
    length = members.get("DataLength")
    code = members.get("DLC")
    return Layout(
        kind=kind,
        time_ns=_time_ns(masters[0]),
        channel=_integer(members.get("BusChannel")),
        identifier=_integer(identifier),
        is_extended=_integer(members["IDE"]) if "IDE" in members else None,
        length=_integer(length) if length else _length_by_code(code) if code else None,
        payload=payload if kind == _DATA else None,
    )


def _integer(channel: Channel | None) -> _Integer:
    if channel is None:
        return lambda _record, _number: 0
    raw = _raw(channel)
    convert = _conversion(channel.conversion)
    if convert is None:
        return raw if channel.data_type not in _FLOATS else lambda r, n: int(raw(r, n))
    known: dict[int | float, int] = {}  # A handful of values: a bus, a flag, a length.

    def converted(record: bytes, number: int) -> int:
        value = raw(record, number)
        if value not in known:
            if len(known) > 4096:  # A converted identifier or a virtual count: keep no history.
                known.clear()
            known[value] = int(convert(value))
        return known[value]

    return converted


def _length_by_code(channel: Channel) -> _Integer:
    code = _integer(channel)
    return lambda record, number: _LENGTHS[min(code(record, number), 15)]


def _time_ns(channel: Channel) -> _Integer:
    raw = _raw(channel)
    factor, offset = 1.0, 0.0
    conversion = channel.conversion
    if conversion is not None and conversion.kind == _LINEAR:
        offset, factor = conversion.values[:2]
    elif conversion is not None and conversion.kind != 0:
        raise DamagedFile("times with a conversion that is not linear")
    if channel.data_type in _FLOATS:
        return lambda r, n: round((raw(r, n) * factor + offset) * NS_PER_S)
    try:
        # The factor 1e-06 stands for 10**-6: its shortest decimal, not its binary neighbour.
        tick_ns = Fraction(repr(factor)) * NS_PER_S
        first_ns = Fraction(repr(offset)) * NS_PER_S
    except ValueError as exc:
        raise DamagedFile("times with a factor that is no number") from exc
    if tick_ns.denominator == first_ns.denominator == 1:
        tick, first = int(tick_ns), int(first_ns)
        return lambda r, n: int(raw(r, n)) * tick + first
    return lambda r, n: round(int(raw(r, n)) * tick_ns + first_ns)


def _raw(channel: Channel) -> _Integer:
    """Return what reads a channel's raw value; floats are read as such where the type says so."""
    if channel.kind in (CHANNEL_VIRTUAL, CHANNEL_VIRTUAL_MASTER):
        return lambda _record, number: number
    first, bit, bits = channel.byte, channel.bit, channel.bits
    if channel.data_type in _FLOATS:
        layout = struct.Struct(_FLOATS[channel.data_type] + ("d" if bits == 64 else "f"))
        return lambda record, _number: layout.unpack_from(record, first)[0]
    mask = (1 << bits) - 1
    if bit + bits == 8 and bit == 0:
        return lambda record, _number: record[first]
    if bit + bits <= 8:
        return lambda record, _number: record[first] >> bit & mask
    end = first + (bit + bits + 7) // 8
    if channel.data_type in _BIG_ENDIAN:
        return lambda record, _number: int.from_bytes(record[first:end], "big") >> bit & mask
    return lambda record, _number: int.from_bytes(record[first:end], "little") >> bit & mask


def _conversion(conversion: Conversion | None) -> Callable[[float], float] | None:
    """Return what converts a raw value, or None where it stays (a text among them)."""
    if conversion is None:
        return None
    values = conversion.values
    if conversion.kind == _LINEAR and len(values) >= 2:
        return lambda raw: values[0] + values[1] * raw
    if conversion.kind in (_TABLE, _TABLE_BETWEEN) and len(values) >= 2:
        keys, results = values[0::2], values[1::2]
        return lambda raw: min(
            zip(keys, results, strict=False), key=lambda pair: abs(pair[0] - raw)
        )[1]
    if conversion.kind == _RANGES and len(values) % 3 == 1:
        rows = list(zip(values[0:-1:3], values[1:-1:3], values[2:-1:3], strict=True))
        return lambda raw: next((v for low, high, v in rows if low <= raw <= high), values[-1])
    return None
