"""Vector BLF → frames.

    file header     "LOGG" · size u32 · 32 bytes of counts · start SYSTEMTIME (8 x u16) · stop · …
    object          "LOBJ" · header size u16 · header version u16 · size u32 · type u32
      version 1, 2    flags u32 · 4 bytes · time u64 (flags 1: in 10 µs, else in ns)
      type 10         a container: method u16 · 6 bytes · unpacked size u32 · 4 bytes · objects
      type 1, 86      classic frame        100, 101   CAN FD frame       2, 73, 104   error frame

Rules:
 * The channel is the number in the object ("1"; python-can counts from 0 and says 0).
 * Time is the header's start, read as UTC, plus the object's; without a start it counts from 0.
   (The header holds the recorder's local time without its zone.)
 * Objects may lie in containers or directly in the file, and go over from one container to the
   next. Where one is damaged, reading goes on at the next signature.
 * Layouts as in python-can's can/io/blf.py, for want of a public specification.
"""

import datetime as dt
import struct
import zlib
from collections.abc import Iterator

from agent.core.model import (
    CAN_EFF_FLAG,
    CAN_EFF_MASK,
    CAN_ERR_FLAG,
    CAN_RTR_FLAG,
    CAN_SFF_MASK,
    NS_PER_US,
    Frame,
)
from agent.edge.logfile.instant import is_instant, utc_ns, whole_us
from agent.edge.logfile.report import LogReport, UnreadableLine
from agent.edge.logfile.source import Source
from agent.errors import LogError

MAGIC = b"LOGG"

_OBJECT = b"LOBJ"
_MAX_OBJECT = 16 * 1024 * 1024  # Bytes; a greater size is a damaged one. Containers hold 128 KiB.
_MAX_PADDING = 7
_FILE_HEADER = struct.Struct("<4sL32x8H")
_OBJECT_HEADER = struct.Struct("<4sHHLL")
_TIMED_HEADER = struct.Struct("<L4xQ")
_CONTAINER = struct.Struct("<H6xL4x")
_CLASSIC = struct.Struct("<HBBL8s")  # channel, flags, length code, identifier, data
_FD = struct.Struct("<HBBL5xBB5x64s")  # channel, flags, code, identifier, FD flags, bytes, data
_FD_64 = struct.Struct("<BxBxL4xL19xB4x")  # see _from_fd_64
_CHANNEL_U16 = struct.Struct("<H")
_CHANNEL_U8 = struct.Struct("<B")

_TYPE_CONTAINER = 10
_TYPES_CLASSIC = (1, 86)
_TYPE_FD = 100
_TYPE_FD_64 = 101
_TYPES_ERROR = (2, 73)
_TYPE_ERROR_64 = 104

_STORED, _DEFLATED = 0, 2
_TEN_US = 1  # Flags of an object: its time is in 10 µs.
_REMOTE = 0x80  # Flags of types 1, 86 and 100.
_REMOTE_64 = 0x10  # Flags of type 101.
_MAX_CLASSIC = 8
_MAX_FD = 64


def read_blf(source: Source, report: LogReport) -> Iterator[list[Frame]]:
    """Yield the frames of a BLF log in blocks, in file order.

    Raises:
        LogError: The file ends within its header.
    """
    start_ns, rest = _read_header(source, report)
    outer = _Objects(report)
    inner = _Objects(report)
    block = rest or source.read()
    while block:
        for found in outer.feed(block):
            if found.kind == _TYPE_CONTAINER:
                yield _frames(inner.feed(_unpacked(found.body, report)), start_ns, report)
            else:
                yield _frames(iter((found,)), start_ns, report)
        block = source.read()
    if source.damage is not None:
        report.add_broken(None, source.damage)
    elif outer.rest.startswith(_OBJECT):
        # A cut container still holds what was compressed before the cut.
        report.add_broken(None, "the file ends within an object")
    if outer.rest.startswith(_OBJECT) and len(outer.rest) > _OBJECT_HEADER.size:
        _, size, _, _, kind = _OBJECT_HEADER.unpack_from(outer.rest)
        if kind == _TYPE_CONTAINER:
            yield _frames(
                inner.feed(_unpacked(outer.rest[size:], report, is_cut=True)), start_ns, report
            )


class _Found:
    """One object: its type, its time, and its bytes after the headers.

    Not frozen and without a factory: there is one for every frame.
    """

    __slots__ = ("body", "kind", "size", "t_ns")

    def __init__(self, kind: int, t_ns: int, body: bytes, size: int) -> None:
        self.kind = kind
        self.t_ns = t_ns
        self.body = body
        self.size = size  # Of the headers, which offsets inside an object count from.


class _Objects:
    """Cuts a stream of bytes into objects; what is incomplete waits for the next bytes."""

    def __init__(self, report: LogReport) -> None:
        self._report = report
        self.rest = b""

    def feed(self, block: bytes) -> Iterator[_Found]:
        stream = self.rest + block
        at = 0
        while True:
            if not stream.startswith(_OBJECT, at):
                start = stream.find(_OBJECT, at)
                gap = (start if start >= 0 else len(stream)) - at
                if gap > _MAX_PADDING:
                    self._report.add_broken(None, "bytes between two objects; one was damaged")
                if start < 0:
                    at = max(at, len(stream) - len(_OBJECT) + 1)
                    break
                at = start
            if len(stream) - at < _OBJECT_HEADER.size:
                break
            _, header_size, version, size, kind = _OBJECT_HEADER.unpack_from(stream, at)
            if not _OBJECT_HEADER.size <= header_size <= size <= _MAX_OBJECT:
                self._report.add_broken(None, "an object of an impossible size")
                at += len(_OBJECT)
                continue
            end = at + size
            if end > len(stream):
                break
            if kind == _TYPE_CONTAINER:
                yield _Found(kind, 0, stream[at + header_size : end], header_size)
            elif version in (1, 2) and size >= _OBJECT_HEADER.size + _TIMED_HEADER.size:
                flags, time = _TIMED_HEADER.unpack_from(stream, at + _OBJECT_HEADER.size)
                t_ns = time * 10 * NS_PER_US if flags == _TEN_US else time
                yield _Found(kind, t_ns, stream[at + header_size : end], header_size)
            else:
                self._report.skipped += 1
            at = end
        self.rest = stream[at:]


def _read_header(source: Source, report: LogReport) -> tuple[int, bytes]:
    """Return the start, ns since the epoch or 0, and the bytes after the header."""
    block = b""
    while len(block) < _FILE_HEADER.size:
        more = source.read()
        if not more:
            raise LogError(
                "the file ends within its header", file=report.file, hint="record the log again"
            )
        block += more
    _, size, year, month, _, day, hour, minute, second, ms = _FILE_HEADER.unpack_from(block)
    try:
        start_ns = utc_ns(dt.datetime(year, month, day, hour, minute, second, ms * 1000))  # noqa: DTZ001
    except ValueError:
        start_ns = 0
    report.absolute_time = is_instant(start_ns)
    return start_ns if report.absolute_time else 0, block[size:]


def _unpacked(body: bytes, report: LogReport, *, is_cut: bool = False) -> bytes:
    """Return the objects of a container, as many as can be unpacked."""
    if len(body) < _CONTAINER.size:
        report.add_broken(None, "a container without its header")
        return b""
    method, size = _CONTAINER.unpack_from(body)
    packed = body[_CONTAINER.size :]
    if method == _STORED:
        return packed
    if method != _DEFLATED:
        report.add_broken(None, "a container with an unknown compression")
        return b""
    unpacker = zlib.decompressobj()
    try:
        objects = unpacker.decompress(packed, _MAX_OBJECT)
    except zlib.error:
        report.add_broken(None, "a container with damaged compression")
        return b""
    if not is_cut and len(objects) < size:
        report.add_broken(None, "a container that unpacks to less than it announces")
    return objects


def _frames(objects: Iterator[_Found], start_ns: int, report: LogReport) -> list[Frame]:
    frames: list[Frame] = []
    for found in objects:
        try:
            parsed = _frame(found)
        except UnreadableLine as exc:
            report.add_broken(None, str(exc))
            continue
        except struct.error:
            report.add_broken(None, "an object too short for its type")
            continue
        if parsed is None:
            report.skipped += 1
            continue
        channel, can_id, data = parsed
        if can_id & CAN_ERR_FLAG:
            report.errors += 1
        elif can_id & CAN_RTR_FLAG:
            report.remote += 1
        frames.append((whole_us(start_ns + found.t_ns), str(channel), can_id, data))
    return frames


def _frame(found: _Found) -> tuple[int, int, bytes] | None:  # noqa: PLR0911 - one per type
    """Return channel, canid_t and payload, or None for an object that is no frame."""
    kind, body = found.kind, found.body
    if kind in _TYPES_CLASSIC:
        channel, flags, code, identifier, data = _CLASSIC.unpack_from(body)
        can_id = _canid(identifier)
        if flags & _REMOTE:
            return channel, can_id | CAN_RTR_FLAG, b""
        return channel, can_id, data[: min(code, _MAX_CLASSIC)]
    if kind == _TYPE_FD:
        channel, flags, _, identifier, _, length, data = _FD.unpack_from(body)
        can_id = _canid(identifier)
        if flags & _REMOTE:
            return channel, can_id | CAN_RTR_FLAG, b""
        return channel, can_id, data[:length]
    if kind == _TYPE_FD_64:
        return _from_fd_64(found)
    if kind in _TYPES_ERROR:
        return _CHANNEL_U16.unpack_from(body)[0], CAN_ERR_FLAG, b""
    if kind == _TYPE_ERROR_64:
        return _CHANNEL_U8.unpack_from(body)[0], CAN_ERR_FLAG, b""
    return None


def _from_fd_64(found: _Found) -> tuple[int, int, bytes]:
    """Return channel, canid_t and payload of a type-101 object.

    channel u8 · code u8 · valid bytes u8 · tx count u8 · identifier u32 · frame length u32 ·
    flags u32 · bit rates, offsets u32 x 4 · bit count u16 · direction u8 · offset of extra data u8
    · crc u32
    """
    channel, length, identifier, flags, extra = _FD_64.unpack_from(found.body)
    can_id = _canid(identifier)
    if flags & _REMOTE_64:
        return channel, can_id | CAN_RTR_FLAG, b""
    if length > _MAX_FD:
        raise UnreadableLine(f"{length} bytes of data; at most {_MAX_FD} are possible")
    end = extra - found.size if extra else len(found.body)
    # Fewer bytes may be stored than are valid; Vector's own reader fills up with zeros, so do we.
    return channel, can_id, found.body[_FD_64.size : end][:length].ljust(length, b"\0")


def _canid(identifier: int) -> int:
    if identifier & CAN_EFF_FLAG:
        return identifier & (CAN_EFF_FLAG | CAN_EFF_MASK)
    if identifier & CAN_EFF_MASK > CAN_SFF_MASK:
        raise UnreadableLine("a standard identifier above 7FF")
    return identifier & CAN_SFF_MASK
