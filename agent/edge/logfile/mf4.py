"""Bus logging in ASAM MDF 4 → frames, as CANedge, CANoe and asammdf write it.

    CAN_DataFrame     BusChannel, ID, IDE, DataLength (or DLC), DataBytes; classic and FD
    CAN_RemoteFrame   as above, without data
    CAN_ErrorFrame    BusChannel

Rules:
 * The channel is the record's BusChannel ("1"; "0" where there is none).
 * Time is the header's instant plus the record's, computed from the integers in the file. A header
   that gives local time is read as UTC: its zone is not the machine's. Without an instant the log
   counts from 0.
 * Data groups are merged by time, of frames with the same time the earlier group's first. Within a
   data group frames come in the order of the file.
 * A record that cannot be read costs that record, a damaged group the rest of that group.

Our own reader, because asammdf 8.8 refuses a file that was cut, and leaves a plain copy of an
unfinished one in the folder for temporary files when it fails (docs/adr).
"""

import contextlib
import heapq
import struct
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from mmap import ACCESS_READ, mmap
from operator import itemgetter

from agent.core.model import CAN_ERR_FLAG, CAN_RTR_FLAG, Frame
from agent.edge.logfile.instant import is_instant, whole_us
from agent.edge.logfile.mdf4 import CHANNEL_VARIABLE, ChannelGroup, DamagedFile, DataGroup, Mdf4
from agent.edge.logfile.mf4_layout import Layout, layouts_of
from agent.edge.logfile.report import LogReport
from agent.edge.logfile.source import Source
from agent.errors import LogError

MAGICS = (b"MDF ", b"UnFinMF ")

_BLOCK = 4096  # Frames handed over at once.
_MAX_FD = 64
_HINT = "MDF 4 with CAN bus logging is read; save it again with the recorder's own tool"


def read_mf4(source: Source, report: LogReport) -> Iterator[list[Frame]]:
    """Yield the frames of an MDF 4 log in blocks, merged over its data groups by time.

    Raises:
        LogError: The file is no MDF 4, or holds no CAN frames but signals.
    """
    with contextlib.ExitStack() as stack:
        raw = _loaded(source) if source.is_packed else _mapped(source, stack)
        try:
            mdf = Mdf4(raw)
            groups = mdf.data_groups()
        except DamagedFile as exc:
            raise LogError(f"it is not read: {exc}", file=report.file, hint=_HINT) from exc
        report.absolute_time = is_instant(mdf.start_ns)
        start_ns = mdf.start_ns if report.absolute_time else 0
        streams = [
            _DataGroup(mdf, group, layouts, start_ns, report).frames()
            for group in groups
            if (layouts := layouts_of(group, report))
        ]
        if not streams and not mdf.damage:
            raise LogError("it holds no frames of a CAN bus", file=report.file, hint=_HINT)
        frames = heapq.merge(*streams, key=itemgetter(0))
        while block := list(islice(frames, _BLOCK)):
            source.position = mdf.position
            yield block
    for damage in (source.damage, mdf.damage):
        if damage is not None:
            report.add_broken(None, damage)


def _mapped(source: Source, stack: contextlib.ExitStack) -> mmap:
    file = stack.enter_context(source.path.open("rb"))
    return stack.enter_context(mmap(file.fileno(), 0, access=ACCESS_READ))


def _loaded(source: Source) -> bytes:
    """Return the unpacked file: blocks are found by address, and it must not go to the disk."""
    raw = bytearray()
    while block := source.read():
        raw += block
    return bytes(raw)


class _DataGroup:
    """The frames of one data group."""

    def __init__(
        self,
        mdf: Mdf4,
        group: DataGroup,
        layouts: Mapping[int, Layout],
        start_ns: int,
        report: LogReport,
    ) -> None:
        self._mdf = mdf
        self._group = group
        self._layouts = layouts
        self._start_ns = start_ns
        self._report = report
        variable = {member.address for member in group.groups if member.is_variable}
        self._signals: dict[int, _SignalData | _SignalRecords] = {
            layout.payload.data: _SignalRecords()
            if layout.payload.data in variable
            else _SignalData(mdf, layout.payload.data)
            for layout in layouts.values()
            if layout.payload is not None and layout.payload.kind == CHANNEL_VARIABLE
        }

    def frames(self) -> Iterator[Frame]:
        """Yield the frames in the order of the file."""
        # A frame may come before the record that holds its payload; those after it wait, too.
        waiting: deque[tuple[Layout, bytes, int]] = deque()
        numbers = dict.fromkeys(self._layouts, 0)
        try:
            for member, record in self._records():
                if member.is_variable:
                    signals = self._signals.get(member.address)
                    if isinstance(signals, _SignalRecords):
                        signals.add(record)
                elif (layout := self._layouts.get(member.record_id)) is not None:
                    waiting.append((layout, record, numbers[member.record_id]))
                    numbers[member.record_id] += 1
                else:
                    self._report.skipped += 1
                while waiting and self._is_ready(*waiting[0][:2]):
                    frame = self._frame(*waiting.popleft())
                    if frame is not None:
                        yield frame
        except DamagedFile as exc:
            self._report.add_broken(None, str(exc))
        for _ in waiting:
            self._report.add_broken(None, "a frame without its payload")

    def _records(self) -> Iterator[tuple[ChannelGroup, bytes]]:
        """Yield (channel group, record without its id), at most as many as are announced."""
        if self._group.id_size:
            yield from self._records_by_id()
            return
        member, *others = self._group.groups
        size, count, at = member.size, 0, 0
        if others or size == 0:
            raise DamagedFile("records of several kinds, or of no size, without an id")
        rest = b""
        for block in self._mdf.data(self._group.data):
            rest = rest[at:] + block
            at = 0
            while at + size <= len(rest) and count != member.count:
                yield member, rest[at : at + size]
                at += size
                count += 1
        is_cut = at < len(rest) if member.count is None else count < member.count
        if is_cut and self._mdf.damage is None:
            self._mdf.damage = "fewer records than were announced, or half of one"

    def _records_by_id(self) -> Iterator[tuple[ChannelGroup, bytes]]:
        members = {member.record_id: member for member in self._group.groups}
        id_size = self._group.id_size
        rest, at = b"", 0
        for block in self._mdf.data(self._group.data):
            rest = rest[at:] + block
            at = 0
            while at + id_size <= len(rest):
                member = members.get(int.from_bytes(rest[at : at + id_size], "little"))
                if member is None:
                    raise DamagedFile("a record of an unknown kind")
                start = at + id_size
                size = member.size
                if member.is_variable:
                    size = int.from_bytes(rest[start : start + 4], "little")
                    start += 4
                if start + size > len(rest):
                    break
                yield member, rest[start : start + size]
                at = start + size
        if at < len(rest) and self._mdf.damage is None:
            self._mdf.damage = "the file ends within a record"

    def _is_ready(self, layout: Layout, record: bytes) -> bool:
        if layout.payload is None or layout.payload.kind != CHANNEL_VARIABLE:
            return True
        signals = self._signals[layout.payload.data]
        return not isinstance(signals, _SignalRecords) or signals.has(_offset(layout, record))

    def _frame(self, layout: Layout, record: bytes, number: int) -> Frame | None:
        try:
            t_ns = whole_us(self._start_ns + layout.time_ns(record, number))
            channel = str(layout.channel(record, number))
            can_id = layout.canid(record, number)
            data = b""
            if layout.payload is not None:
                data = self._payload(layout, record, number)
        except (ValueError, OverflowError, IndexError, struct.error) as exc:
            is_ours = isinstance(exc, DamagedFile)
            self._report.add_broken(None, str(exc) if is_ours else "a record with a bad field")
            return None
        if can_id & CAN_ERR_FLAG:
            self._report.errors += 1
        elif can_id & CAN_RTR_FLAG:
            self._report.remote += 1
        return t_ns, channel, can_id, data

    def _payload(self, layout: Layout, record: bytes, number: int) -> bytes:
        assert layout.payload is not None
        if layout.payload.kind == CHANNEL_VARIABLE:
            data = self._signals[layout.payload.data].at(_offset(layout, record))
        else:
            first = layout.payload.byte
            data = record[first : first + layout.payload.bits // 8]
        length = len(data) if layout.length is None else layout.length(record, number)
        return data[: min(length, _MAX_FD)]


class _SignalData:
    """Signal data in blocks of their own, read forward as records ask for it."""

    def __init__(self, mdf: Mdf4, address: int) -> None:
        self._mdf = mdf
        self._address = address
        self._rewind()

    def at(self, offset: int) -> bytes:
        """Return the value at an offset.

        Raises:
            DamagedFile: The data end before it.
        """
        if offset < self._start:
            self._rewind()
        (size,) = struct.unpack("<I", self._read(offset, 4))
        if size > _MAX_FD:
            raise DamagedFile("a payload of more than 64 bytes")
        return self._read(offset + 4, size)

    def _rewind(self) -> None:
        self._blocks = self._mdf.data(self._address)
        self._start = 0
        self._window = b""

    def _read(self, offset: int, size: int) -> bytes:
        while offset + size > self._start + len(self._window):
            block = next(self._blocks, None)
            if block is None:
                raise DamagedFile("a payload beyond the signal data")
            keep = max(0, min(offset - 4 - self._start, len(self._window)))
            self._window = self._window[keep:] + block
            self._start += keep
        return self._window[offset - self._start : offset - self._start + size]


class _SignalRecords:
    """Signal data between the records; each value is given once and forgotten."""

    def __init__(self) -> None:
        self._end = 0
        self._values: dict[int, bytes] = {}

    def add(self, value: bytes) -> None:
        self._values[self._end] = value
        self._end += 4 + len(value)  # Offsets count as if each value had its length before it.

    def has(self, offset: int) -> bool:
        return offset in self._values

    def at(self, offset: int) -> bytes:
        return self._values.pop(offset)


def _offset(layout: Layout, record: bytes) -> int:
    assert layout.payload is not None
    first = layout.payload.byte
    return int.from_bytes(record[first : first + layout.payload.bits // 8], "little")
