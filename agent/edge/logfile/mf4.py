"""ASAM MDF 4 bus logging → frames, with asammdf (extra `mf4`).

    CAN_DataFrame     BusChannel, ID, IDE, DataLength (or DLC), DataBytes; classic and FD
    CAN_RemoteFrame   as above without data
    CAN_ErrorFrame    BusChannel

Rules:
 * The channel is the record's BusChannel ("1").
 * Time is the header's instant plus the record's; a header that gives local time without its zone
   is read as UTC. Without an instant the log counts from 0.
 * A file has a group for each bus or id; their frames are merged by time, of frames with the same
   time the earlier group's come first.
 * asammdf is imported when the first MF4 is read: it brings numpy and pandas, half a second.
 * What is damaged is reported; what was readable before it is given.
"""

import contextlib
import heapq
import io
import logging
import warnings
from collections.abc import Iterator
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from agent.core.model import (
    CAN_EFF_FLAG,
    CAN_EFF_MASK,
    CAN_ERR_FLAG,
    CAN_RTR_FLAG,
    CAN_SFF_MASK,
    NS_PER_S,
    Frame,
)
from agent.edge.logfile.instant import is_instant, whole_us
from agent.edge.logfile.report import LogReport
from agent.edge.logfile.source import Source
from agent.errors import LogError

MAGICS = (b"MDF ", b"UnFinMF ")

_BLOCK = 4096  # Frames handed over at once.
_RECORDS = 65_536  # Records of one group in memory at once.
_DATA, _REMOTE, _ERROR = "CAN_DataFrame", "CAN_RemoteFrame", "CAN_ErrorFrame"
_LENGTHS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24, 32, 48, 64)  # ISO 11898-1 table 5: DLC.


def read_mf4(source: Source, report: LogReport) -> Iterator[list[Frame]]:
    """Yield the frames of an MDF 4 log in blocks, merged over its groups by time.

    Raises:
        LogError: asammdf is not installed, or the file cannot be opened as MDF 4.
    """
    with contextlib.closing(_open(source, report)) as mdf:
        start_ns = int(mdf.header.abs_time)
        report.absolute_time = is_instant(start_ns)
        if not report.absolute_time:
            start_ns = 0
        groups = [
            _frames(mdf, index, kind, start_ns, report)
            for index, group in enumerate(mdf.groups)
            for kind in (_DATA, _REMOTE, _ERROR)
            if any(channel.name == kind for channel in group.channels)
        ]
        frames = heapq.merge(*groups, key=itemgetter(0))
        # At least one block, so that the log is known to be readable.
        yield list(islice(frames, _BLOCK))
        while block := list(islice(frames, _BLOCK)):
            yield block
    if source.damage is not None:
        report.add_broken(None, source.damage)


def _open(source: Source, report: LogReport) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # asammdf's own, about pandas and about the file
            from asammdf import MDF  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as exc:
        raise LogError(
            "MF4 is read with asammdf, which is not installed",
            file=report.file,
            hint="pip install 'consentry[mf4]'",
        ) from exc
    logging.getLogger("asammdf").setLevel(logging.CRITICAL)
    name: Path | io.BytesIO = source.path
    if source.is_packed:
        # asammdf seeks; a user's own log is unpacked into memory rather than onto the disk.
        name = io.BytesIO()
        while block := source.read():
            name.write(block)
        name.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return MDF(name, raise_on_multiple_occurrences=False)
    except Exception as exc:  # asammdf has no error tree of its own
        raise LogError(
            f"asammdf cannot open it as MDF 4: {type(exc).__name__}",
            file=report.file,
            hint="is the file complete? asammdf's own tools may repair it",
        ) from exc


def _frames(mdf: Any, index: int, kind: str, start_ns: int, report: LogReport) -> Iterator[Frame]:
    """Yield the frames of one group in the order of its records."""
    count = int(mdf.groups[index].channel_group.cycles_nr)
    for offset in range(0, count, _RECORDS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                signal = mdf.get(
                    kind,
                    group=index,
                    raw=False,  # A channel or length may be virtual: a conversion makes it.
                    record_offset=offset,
                    record_count=min(_RECORDS, count - offset),
                )
            rows = _rows(signal.samples, kind)
            times = signal.timestamps.tolist()
        except Exception as exc:  # noqa: BLE001 - asammdf has no error tree of its own
            report.add_broken(None, f"group {index} cannot be read on: {type(exc).__name__}")
            return
        for seconds, (channel, can_id, data) in zip(times, rows, strict=True):
            if can_id & CAN_ERR_FLAG:
                report.errors += 1
            elif can_id & CAN_RTR_FLAG:
                report.remote += 1
            yield whole_us(start_ns + round(seconds * NS_PER_S)), channel, can_id, data


def _rows(samples: Any, kind: str) -> Iterator[tuple[str, int, bytes]]:
    """Yield (channel, canid_t, payload) of each record."""
    names = samples.dtype.names

    def column(leaf: str) -> Any:
        name = f"{kind}.{leaf}"
        return samples[name] if name in names else None

    channels = [str(int(number)) for number in _numbers(column("BusChannel"), len(samples))]
    if kind == _ERROR:
        yield from ((channel, CAN_ERR_FLAG, b"") for channel in channels)
        return
    identifiers = _numbers(column("ID"), len(samples))
    extended = column("IDE")
    flags = [None] * len(samples) if extended is None else _numbers(extended, len(samples))
    ids = [_canid(int(i), flag) for i, flag in zip(identifiers, flags, strict=True)]
    if kind == _REMOTE:
        yield from ((c, i | CAN_RTR_FLAG, b"") for c, i in zip(channels, ids, strict=True))
        return
    payload = column("DataBytes")
    width = payload.shape[1] if payload.ndim > 1 else payload.dtype.itemsize
    raw = payload.tobytes()
    lengths = column("DataLength")
    if lengths is None:
        lengths = [_LENGTHS[min(int(code), 15)] for code in column("DLC").tolist()]
    else:
        lengths = lengths.tolist()
    for at, (channel, can_id, length) in enumerate(zip(channels, ids, lengths, strict=True)):
        start = at * width
        yield channel, can_id, raw[start : start + min(int(length), width)]


def _numbers(column: Any, count: int) -> list[Any]:
    return [0] * count if column is None else column.tolist()


def _canid(identifier: int, flag: int | None) -> int:
    """Return canid_t; without an IDE member the identifier's own top bit, or its size, tells."""
    if flag is None:
        flag = bool(identifier & CAN_EFF_FLAG) or identifier > CAN_SFF_MASK
    if flag:
        return identifier & CAN_EFF_MASK | CAN_EFF_FLAG
    return identifier & CAN_SFF_MASK
