"""PEAK TRC text, versions 1.0 to 2.1 → frames.

    ;$FILEVERSION=2.1
    ;$STARTTIME=43008.920986006946
    ;$COLUMNS=N,O,T,B,I,d,R,L,D
          1      1059.900 DT 1      0300 Rx -  7    00 00 00 00 04 00 00
         12)      2001.3  Rx         00000300  8  00 00 00 00 00 00 00 00          (version 1.1)

Rules:
 * The channel is the bus number where the version has one (1.2, 1.3, 2.1), else "1".
 * Time is `$STARTTIME` (days since 1899-12-30, read as UTC) plus the line's offset in ms. Without
   it, as in version 1.0, the log counts from 0.
 * Four digits are a standard identifier, more an extended one.
 * Bus states, warnings, error counters and user events are skipped; error frames are frames.
"""

from collections.abc import Iterator

from agent.core.model import (
    CAN_EFF_FLAG,
    CAN_EFF_MASK,
    CAN_ERR_FLAG,
    CAN_RTR_FLAG,
    CAN_SFF_MASK,
    NS_PER_S,
    Frame,
)
from agent.edge.logfile.instant import decimal_ns, scaled_ns, whole_us
from agent.edge.logfile.lines import read_lines
from agent.edge.logfile.report import LogReport, UnreadableLine
from agent.edge.logfile.source import Source
from agent.errors import LogError

_DAY_NS = 86_400 * NS_PER_S
_START_OF_DAYS_NS = -25_569 * _DAY_NS  # 1899-12-30, the zero of OLE automation dates.
_MAX_CLASSIC = 8
_MAX_FD = 64
_FD_LENGTHS = (12, 16, 20, 24, 32, 48, 64)  # ISO 11898-1: length codes 9 to 15.
# PEAK CAN TRC File Format, one letter a column: N number, O offset in ms, T type, B bus, I
# identifier, d direction, R reserved, L length code, l length in bytes, D data.
_COLUMNS = {
    "1.0": "N,O,I,L,D",
    "1.1": "N,O,T,I,L,D",
    "1.2": "N,O,B,T,I,L,D",
    "1.3": "N,O,B,T,I,R,L,D",
}
_BUS_STATE_ID = "FFFFFFFF"  # Version 1.0 has no types: this identifier is a change of bus state.
_FD_TYPES = frozenset({"FD", "FB", "FE", "BI"})
_FRAME_TYPES = frozenset({"DT", "RR", "Rx", "Tx"}) | _FD_TYPES
_ERROR_TYPES = frozenset({"ER", "Error"})
_OTHER_TYPES = frozenset({"ST", "EC", "EV", "Warng", "Warn", "Event", "Status"})


def is_trc(line: str) -> bool:
    """Return whether a line can only be the beginning of a TRC file."""
    return line.startswith((";$FILEVERSION", ";$STARTTIME", ";$COLUMNS", ";####"))


def read_trc(source: Source, report: LogReport) -> Iterator[list[Frame]]:
    """Yield the frames of a TRC log in blocks, in file order.

    Raises:
        LogError: The version is unknown and the file does not name its columns.
    """
    return read_lines(source, report, _Parser(report).parse)


class _Parser:
    """The columns, by the header."""

    def __init__(self, report: LogReport) -> None:
        self._report = report
        self._start_ns = 0
        self._version = "1.0"
        self._places: dict[str, int] | None = None

    def parse(self, line: str) -> Frame | None:
        """Return the frame of one line; None for a header line and for other events.

        Raises:
            UnreadableLine: The line should have been a frame.
            ValueError, IndexError: So, too: a field is missing or is no number.
        """
        if line.startswith(";"):
            self._read_header(line)
            return None
        places = self._places or self._known_columns()
        fields = line.split()
        kind = fields[places["T"]] if "T" in places else ""
        identifier = fields[places["I"]] if "I" in places else ""
        if kind in _OTHER_TYPES or (not kind and identifier == _BUS_STATE_ID):
            self._report.skipped += 1
            return None
        t_ns = whole_us(self._start_ns + decimal_ns(fields[places["O"]], digits=6))
        channel = fields[places["B"]] if "B" in places else "1"
        if not channel.isdecimal():
            raise UnreadableLine("the bus is not a number")
        if kind in _ERROR_TYPES:
            self._report.errors += 1
            return (t_ns, channel, CAN_ERR_FLAG, b"")
        if kind and kind not in _FRAME_TYPES:
            raise UnreadableLine("an unknown type of line")
        can_id = _canid(identifier)
        first = places["D"]
        if kind == "RR" or fields[first : first + 1] == ["RTR"]:
            self._report.remote += 1
            return (t_ns, channel, can_id | CAN_RTR_FLAG, b"")
        if kind == "DT" and "l" in places and int(fields[places["l"]]) > _MAX_CLASSIC:
            # A J1939 message of several packets, put together; its packets are no part of the log.
            self._report.skipped += 1
            return None
        length = _length(fields, places, is_fd=kind in _FD_TYPES)
        data = fields[first : first + length]
        if len(data) < length:
            raise UnreadableLine(f"{len(data)} bytes of data where {length} were announced")
        if any(len(pair) != 2 for pair in data):
            raise UnreadableLine("the data are not pairs of hexadecimal digits")
        return (t_ns, channel, can_id, bytes.fromhex("".join(data)))

    def _read_header(self, line: str) -> None:
        key, _, value = line.partition("=")
        value = value.strip()
        if key == ";$FILEVERSION":
            self._version = value
        elif key == ";$STARTTIME":
            days_ns = scaled_ns(value.replace(",", "."), factor=_DAY_NS)
            self._start_ns = _START_OF_DAYS_NS + days_ns
            self._report.absolute_time = True
        elif key == ";$COLUMNS":
            self._places = _numbered(value)

    def _known_columns(self) -> dict[str, int]:
        if self._version not in _COLUMNS:
            raise LogError(
                "its TRC version is none of 1.0 to 2.1 and no $COLUMNS line names its columns",
                file=self._report.file,
                hint="save it in version 2.1 with PCAN-View",
            )
        self._places = _numbered(_COLUMNS[self._version])
        return self._places


def _numbered(columns: str) -> dict[str, int]:
    return {name.strip(): place for place, name in enumerate(columns.split(","))}


def _canid(text: str) -> int:
    value = int(text, 16)
    is_extended = len(text) > 4
    if value > (CAN_EFF_MASK if is_extended else CAN_SFF_MASK):
        raise UnreadableLine("an identifier of too many bits")
    return value | CAN_EFF_FLAG if is_extended else value


def _length(fields: list[str], places: dict[str, int], *, is_fd: bool) -> int:
    """Return the number of bytes of data, from column l (bytes) or L (length code)."""
    most = _MAX_FD if is_fd else _MAX_CLASSIC
    if "l" in places:
        length = int(fields[places["l"]])
    else:
        length = int(fields[places["L"]])
        if length > _MAX_CLASSIC:
            length = _FD_LENGTHS[length - 9] if is_fd else _MAX_CLASSIC
    if not 0 <= length <= most:
        raise UnreadableLine(f"{length} bytes of data; at most {most} are possible")
    return length
