"""Vector ASC text → frames.

    date Tue May 27 04:09:35.000 pm 2014
    base hex  timestamps absolute
       2.501010 1  ErrorFrame  ECC: 10100010
       2.520002 3  200             Tx   r 8 Length = 1704000 BitCount = 145
       3.098426 1  18FEF100x       Rx   d 8 2F 0E 1F 6B 63 02 04 01  Length = 233910
      30.005021 CANFD   1 Rx  300  Name  1 0 8 8 01 02 03 04 05 06 07 08  102203 133 303000 ...

Rules:
 * The channel is the number in the line ("1").
 * Time is the `date` header, read as UTC, plus the line's time; without that header it counts
   from 0. The dates of trigger blocks are not used: times count from the measurement's start.
   With `timestamps relative` a line's time counts from the line before, frame or not.
 * Month names may be English or German, the hour 24 h or with am and pm.
 * `base dec` makes identifiers and data decimal. The length of a CAN FD frame is always decimal.
 * Where a symbolic name stands for the identifier, `ID = 419361024x` at the end of the line names
   it.
 * TxRq is a wish to send, not a frame on the bus: the Tx that follows is the frame.
"""

import datetime as dt
import re
from collections.abc import Iterator

from agent.core.model import (
    CAN_EFF_FLAG,
    CAN_EFF_MASK,
    CAN_ERR_FLAG,
    CAN_RTR_FLAG,
    CAN_SFF_MASK,
    Frame,
)
from agent.edge.logfile.instant import decimal_ns, utc_ns, whole_us
from agent.edge.logfile.lines import read_lines
from agent.edge.logfile.report import LogReport, UnreadableLine
from agent.edge.logfile.source import Source

_MAX_CLASSIC = 8
_MAX_FD = 64
_FLAG_RTR = 0x10  # Flags of a CANFD event, bit 4.
_HEADER_WORDS = ("date", "base", "internal", "no", "begin", "end", "//", "previous")
_DATE = re.compile(
    r"date\s+(?:\S+\s+)?(?P<month>\S+)\s+(?P<day>\d{1,2})\.?\s+"
    r"(?P<hour>\d{1,2}):(?P<minute>\d\d):(?P<second>\d\d)(?:[.,](?P<part>\d{1,9}))?"
    r"\s*(?P<half>[ap]\.?m\.?)?\s+(?P<year>\d{4})",
    re.ASCII | re.IGNORECASE,
)
_BASE = re.compile(r"base\s+(hex|dec)\b(?:\s+timestamps\s+(absolute|relative)\b)?", re.IGNORECASE)
_EVENT = re.compile(r"(\d+(?:\.\d+)?)\s+(\S+)\s*(.*)", re.ASCII)
_NUMERIC_ID = re.compile(r"\bID = (\d+x?)", re.ASCII)
# Letters of a month's name that are ASCII, the first three: an umlaut is lost, in any encoding.
_MONTHS = {
    name: month
    for month, names in enumerate(
        (
            ("jan", "jn"),
            ("feb",),
            ("mar", "mr", "mrz"),
            ("apr",),
            ("may", "mai"),
            ("jun",),
            ("jul",),
            ("aug",),
            ("sep",),
            ("oct", "okt"),
            ("nov",),
            ("dec", "dez"),
        ),
        1,
    )
    for name in names
}


def is_asc(line: str) -> bool:
    """Return whether a line can only be a header line of ASC."""
    return bool(
        _DATE.match(line)
        or _BASE.match(line)
        or re.match(
            r"(?:no\s+)?internal\s+events\s+logged|begin\s+triggerblock", line, re.IGNORECASE
        )
    )


def read_asc(source: Source, report: LogReport) -> Iterator[list[Frame]]:
    """Yield the frames of an ASC log in blocks, in file order."""
    return read_lines(source, report, _Parser(report).parse)


class _Parser:
    """What the header said, and the time of the last event."""

    def __init__(self, report: LogReport) -> None:
        self._report = report
        self._base = 16
        self._is_relative = False
        self._start_ns = 0
        self._last_ns = 0

    def parse(self, line: str) -> Frame | None:
        """Return the frame of one line; None for a header line and for other events.

        Raises:
            UnreadableLine: The line should have been a frame.
            ValueError, IndexError: So, too: a field is missing or is no number.
        """
        event = _EVENT.match(line)
        if not event:
            self._read_header(line)
            return None
        t_ns = decimal_ns(event[1])
        if self._is_relative:
            t_ns += self._last_ns
        self._last_ns = t_ns
        if event[2].isdecimal():
            channel, payload = event[2], self._classic(event[3])
        elif event[2].upper() == "CANFD":
            channel, payload = self._flexible(event[3])
        else:
            payload = None
        if payload is None:
            self._report.skipped += 1
            return None
        can_id, data = payload
        if can_id & CAN_ERR_FLAG:
            self._report.errors += 1
        elif can_id & CAN_RTR_FLAG:
            self._report.remote += 1
        return (whole_us(self._start_ns + t_ns), channel, can_id, data)

    def _read_header(self, line: str) -> None:
        if not line.lower().startswith(_HEADER_WORDS):
            raise UnreadableLine("neither a header line nor an event with a time")
        base = _BASE.match(line)
        if base:
            self._base = 10 if base[1].lower() == "dec" else 16
            self._is_relative = (base[2] or "").lower() == "relative"
        elif re.match(r"date\s", line, re.IGNORECASE):
            start_ns = _date_ns(line)
            if start_ns is None:
                self._report.notes.append(
                    "the date in its header is not understood; it counts from 0"
                )
            else:
                self._start_ns = start_ns
                self._report.absolute_time = True

    def _classic(self, rest: str) -> tuple[int, bytes] | None:
        """Return canid_t and payload from what follows the channel, or None for another event."""
        fields = rest.split()
        if not fields:
            raise UnreadableLine("it ends after the channel")
        if fields[0].lower() == "errorframe":
            return CAN_ERR_FLAG, b""
        can_id = self._canid(fields[0])
        direction = fields[1].lower() if len(fields) > 1 else ""
        if direction not in ("rx", "tx"):
            if can_id is None or direction == "txrq":
                return None
            raise UnreadableLine("expected Rx or Tx after the identifier")
        if can_id is None:
            can_id = _named_id(rest)
        kind = fields[2].lower()
        if kind == "r":
            return can_id | CAN_RTR_FLAG, b""
        if kind != "d":
            raise UnreadableLine("expected d or r after Rx or Tx")
        length = min(int(fields[3], self._base), _MAX_CLASSIC)
        return can_id, self._data(fields[4 : 4 + length], length)

    def _flexible(self, rest: str) -> tuple[str, tuple[int, bytes] | None]:
        """Return channel, and canid_t and payload, from what follows CANFD."""
        fields = rest.split()
        channel, direction = fields[0], fields[1].lower()
        if not channel.isdecimal():
            raise UnreadableLine("expected a channel number after CANFD")
        if direction == "txrq":
            return channel, None
        if direction not in ("rx", "tx"):
            raise UnreadableLine("expected Rx or Tx after the channel")
        if fields[2].lower() == "errorframe":
            return channel, (CAN_ERR_FLAG, b"")
        can_id = self._canid(fields[2])
        if can_id is None:
            can_id = _named_id(rest)
        # A symbolic name may stand before the bits BRS and ESI.
        at = 3 if fields[3] in ("0", "1") and fields[4] in ("0", "1") else 4
        length_code, length = int(fields[at + 2], 16), int(fields[at + 3])
        tail = fields[at + 4 + length :]
        if length == 0 and self._is_remote(tail, length_code):
            return channel, (can_id | CAN_RTR_FLAG, b"")
        if length > _MAX_FD:
            raise UnreadableLine(f"{length} bytes of data; at most {_MAX_FD} are possible")
        return channel, (can_id, self._data(fields[at + 4 : at + 4 + length], length))

    @staticmethod
    def _is_remote(tail: list[str], length_code: int) -> bool:
        """Return whether a CANFD event without data is a remote frame, by its flags."""
        if len(tail) < 3:
            return length_code > 0
        return bool(int(tail[2], 16) & _FLAG_RTR)

    def _canid(self, text: str) -> int | None:
        """Return canid_t, or None where the text is no number in the log's base."""
        is_extended = text[-1] in "xX"
        digits = text[:-1] if is_extended else text
        if not digits.isalnum():
            return None
        try:
            value = int(digits, self._base)
        except ValueError:
            return None
        return _checked_id(value, is_extended=is_extended)

    def _data(self, fields: list[str], length: int) -> bytes:
        if len(fields) < length:
            raise UnreadableLine(f"{len(fields)} bytes of data where {length} were announced")
        return bytes([int(byte, self._base) for byte in fields])


def _named_id(rest: str) -> int:
    found = _NUMERIC_ID.search(rest)
    if not found:
        raise UnreadableLine("a symbolic name without its identifier; log in numeric mode")
    return _checked_id(int(found[1].rstrip("x")), is_extended=found[1].endswith("x"))


def _checked_id(value: int, *, is_extended: bool) -> int:
    if value > (CAN_EFF_MASK if is_extended else CAN_SFF_MASK):
        raise UnreadableLine("an identifier of too many bits")
    return value | CAN_EFF_FLAG if is_extended else value


def _date_ns(line: str) -> int | None:
    found = _DATE.match(line)
    if not found:
        return None
    month = _MONTHS.get(re.sub(r"[^a-z]", "", found["month"].lower())[:3])
    if month is None:
        return None
    hour = int(found["hour"])
    if found["half"] and hour <= 12:
        hour = hour % 12 + (12 if found["half"].lower().startswith("p") else 0)
    try:
        second = dt.datetime(  # noqa: DTZ001 - utc_ns gives the zone
            int(found["year"]),
            month,
            int(found["day"]),
            hour,
            int(found["minute"]),
            int(found["second"]),
        )
    except ValueError:
        return None
    return utc_ns(second) + decimal_ns(f"0.{found['part'] or 0}")
