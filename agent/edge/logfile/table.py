"""CSV → frames: python-can's columns and SavvyCAN's.

    timestamp,arbitration_id,extended,remote,error,dlc,data            python-can; data in base64
    1483389946.197,0x00dadada,1,0,0,6,WzQyLCA5XQ==
    Time Stamp,ID,Extended,Dir,Bus,LEN,D1,D2,D3,D4,D5,D6,D7,D8         SavvyCAN; time in µs
    166064000,0000021A,false,Rx,0,8,FE,36,12,FE,69,05,07,AD,

Rules:
 * The columns are found by the names in the header line; another header is an error, never a guess.
 * The channel is SavvyCAN's bus number ("0"); python-can's CSV has none, so it is "1".
 * Times before 1990 count from 0.
"""

import base64
from collections.abc import Callable, Iterator

from agent.core.model import (
    CAN_EFF_FLAG,
    CAN_EFF_MASK,
    CAN_ERR_FLAG,
    CAN_RTR_FLAG,
    CAN_SFF_MASK,
    NS_PER_S,
    Frame,
)
from agent.edge.logfile.instant import decimal_ns, is_instant, scaled_ns, whole_us
from agent.edge.logfile.lines import read_lines
from agent.edge.logfile.report import LogReport, UnreadableLine
from agent.edge.logfile.source import Source
from agent.errors import LogError

_MAX_FD = 64
_PYTHON_CAN = ("timestamp", "arbitration_id", "extended", "remote", "error", "dlc", "data")
_SAVVYCAN = ("time stamp", "id", "extended", "bus", "len", "d1")


def is_csv(line: str) -> bool:
    """Return whether a line is the header of one of the known tables."""
    names = _names(line)
    return names[: len(_PYTHON_CAN)] == list(_PYTHON_CAN) or set(_SAVVYCAN) <= set(names)


def read_csv(source: Source, report: LogReport) -> Iterator[list[Frame]]:
    """Yield the frames of a CSV log in blocks, in file order.

    Raises:
        LogError: The header is that of another table.
    """
    header = source.head.decode("latin-1").split("\n", 1)[0]
    names = _names(header)
    parse: Callable[[str], Frame]
    if names[: len(_PYTHON_CAN)] == list(_PYTHON_CAN):
        parse = _from_python_can
    elif set(_SAVVYCAN) <= set(names):
        parse = _SavvyCan(names).parse
    else:
        raise LogError(
            "the first line of this CSV names other columns than python-can's or SavvyCAN's",
            file=report.file,
            line=1,
            hint=f"the first line must be {','.join(_PYTHON_CAN)} or SavvyCAN's "
            "Time Stamp,ID,Extended,Dir,Bus,LEN,D1,...",
        )
    is_first = True
    for frames in read_lines(source, report, _Counted(report, parse).parse, after=1):
        if frames and is_first:
            report.absolute_time = is_instant(frames[0][0])
            is_first = False
        yield frames


class _Counted:
    """Counts what a parser returned."""

    def __init__(self, report: LogReport, parse: Callable[[str], Frame]) -> None:
        self._report = report
        self._parse = parse

    def parse(self, line: str) -> Frame:
        frame = self._parse(line)
        if frame[2] & CAN_ERR_FLAG:
            self._report.errors += 1
        elif frame[2] & CAN_RTR_FLAG:
            self._report.remote += 1
        return frame


class _SavvyCan:
    """The places of SavvyCAN's columns; older versions have no direction."""

    def __init__(self, names: list[str]) -> None:
        self._places = {name: place for place, name in enumerate(names) if name}

    def parse(self, line: str) -> Frame:
        fields = [field.strip() for field in line.split(",")]
        places = self._places
        is_extended = fields[places["extended"]].lower()
        if is_extended not in ("true", "false", "1", "0"):
            raise UnreadableLine("Extended is neither true nor false")
        channel = fields[places["bus"]]
        if not channel.isdecimal():
            raise UnreadableLine("the bus is not a number")
        length = int(fields[places["len"]])
        first = places["d1"]
        data = fields[first : first + length]
        if data and data[0].upper() == "RTR":
            raise UnreadableLine("a remote frame in a column of data")
        if len(data) < length or any(not byte for byte in data):
            raise UnreadableLine(f"fewer bytes of data than the {length} that were announced")
        if not 0 <= length <= _MAX_FD:
            raise UnreadableLine(f"{length} bytes of data; at most {_MAX_FD} are possible")
        can_id = _canid(int(fields[places["id"]], 16), is_extended=is_extended in ("true", "1"))
        t_ns = whole_us(decimal_ns(fields[places["time stamp"]], digits=3))
        return (t_ns, channel, can_id, bytes([int(byte, 16) for byte in data]))


def _from_python_can(line: str) -> Frame:
    fields = [field.strip() for field in line.split(",")]
    time, identifier, extended, remote, error, _, text = fields[:7]
    if any(flag not in ("0", "1") for flag in (extended, remote, error)):
        raise UnreadableLine("extended, remote and error are 0 or 1")
    t_ns = whole_us(scaled_ns(time, factor=NS_PER_S))  # repr() of a float: may be 1e-05.
    if error == "1":
        return (t_ns, "1", CAN_ERR_FLAG, b"")
    can_id = _canid(int(identifier, 16), is_extended=extended == "1")
    if remote == "1":
        return (t_ns, "1", can_id | CAN_RTR_FLAG, b"")
    data = base64.b64decode(text, validate=True)
    if len(data) > _MAX_FD:
        raise UnreadableLine(f"{len(data)} bytes of data; at most {_MAX_FD} are possible")
    return (t_ns, "1", can_id, data)


def _canid(value: int, *, is_extended: bool) -> int:
    if not 0 <= value <= (CAN_EFF_MASK if is_extended else CAN_SFF_MASK):
        raise UnreadableLine("an identifier of too many bits")
    return value | CAN_EFF_FLAG if is_extended else value


def _names(line: str) -> list[str]:
    return [name.strip().strip('"').lower() for name in line.strip().split(",")]
