"""A GNSS receiver on a serial line: NMEA 0183 sentences → frames of `dbc/gnss.dbc`.

Rules:
 * The device is open only while a live grant needs what it gives.
 * A line counts only as a whole sentence with a right checksum, of a satellite receiver; everything
   else (binary protocols, a wrong baud rate, cut lines) is counted and let go.
 * A round ends when the next one begins, or when the line was quiet.
 * A device that is not there, or was unplugged, is tried again (`agent.adapter`).
 * No position is in a log line, a message or a counter. Nothing is written to the device.
"""

import re
import select
import termios
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from datetime import time as time_of_day

import serial
from pynmeagps import NMEAReader
from pynmeagps.exceptions import NMEAMessageError, NMEAParseError, NMEAStreamError, NMEATypeError

from agent import adapter
from agent.adapter import AdapterReader
from agent.core.bushealth import BusHealth
from agent.core.gnss import Rounds, Sentence
from agent.core.model import Frame
from agent.errors import BusError

BAUDRATE = 9600  # NMEA 0183's usual rate for GNSS; USB receivers take any.
QUIET_S = 0.25  # A pause that ends a round: sentences of one round follow each other at once.
MAX_LINE = 512  # NMEA 0183 says 82; some receivers write more.

_KNOTS_TO_KMH = 1.852
_FIRST_DAY = date(1970, 1, 1).toordinal()
# The talkers of satellite receivers: G*, BeiDou's and QZSS's other names.
_SENTENCE = re.compile(rb"\$(?:G[A-Z]|BD|QZ)(RMC|GGA|VTG|GST|ZDA)(,[ -~]*\*[0-9A-Fa-f]{2})\Z")
_ANY = re.compile(rb"[$!][A-Z]{2,}[A-Z0-9]*,[ -~]*\*[0-9A-Fa-f]{2}\Z")
_NO_FIX_MODES = {"N", "M", "S"}  # NMEA 0183 RMC: no fix, set by hand, simulated.
_NO_FIX_QUALITIES = {0, 7, 8}  # NMEA 0183 GGA: no fix, set by hand, simulated.


def open_device(channel: str, baudrate: int) -> serial.Serial:
    """Open a receiver's serial line.

    Raises:
        BusError: It is not there, or not ours to read.
    """
    try:
        return serial.Serial(channel, baudrate, timeout=0, exclusive=True)
    except Exception as exc:
        # Whatever it is: a device that is unplugged meanwhile raises termios.error.
        raise BusError(
            f"the GNSS receiver {channel} cannot be opened: {exc}",
            hint="check channel and options in agent.toml, and who may read the device",
        ) from exc


class GnssReader(AdapterReader[serial.Serial]):
    """Reads one receiver in a thread of its own until it is closed."""

    _losses = (BusError, OSError, termios.error)

    def __init__(
        self,
        name: str,
        *,
        channel: str,
        options: Mapping[str, str | int | float | bool],
        sink: Callable[[list[Frame]], None],
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            name: The bus's name in frames.
            channel: The device, such as /dev/ttyACM0.
            options: `baudrate`.
            sink: Gets every frame, in this reader's thread.
            clock: ns since the epoch; gives the frames their times.
        """
        super().__init__(name, clock=clock)
        self._channel = channel
        self._baudrate = int(options.get("baudrate", BAUDRATE))
        self._sink = sink
        self._lines = Lines()
        self._rounds = Rounds(name)

    def health(self) -> BusHealth:
        """Return how the receiver does; `no-fix` counts the rounds without a position."""
        errors = dict(self._lines.refused)
        if self._rounds.without_fix:
            errors["no-fix"] = self._rounds.without_fix
        return replace(super().health(), errors=errors)

    @contextmanager
    def _open(self) -> Iterator[serial.Serial]:
        self._lines.begin()
        with open_device(self._channel, self._baudrate) as port:
            yield port
        self._rounds.close()  # Not given: nothing is wanted any more.

    def _read(self, port: serial.Serial) -> None:
        wait_s = QUIET_S if self._rounds.is_open else adapter.POLL_S
        if not select.select([port], [], [], wait_s)[0]:
            self._give(self._rounds.close())
            return
        # A device that was unplugged is readable and gives an error or nothing.
        data = port.read(max(1, port.in_waiting))
        now_ns = self._clock()
        for sentence in self._lines.feed(data):
            self._give(self._rounds.add(now_ns, sentence))

    def _give(self, frame: Frame | None) -> None:
        if frame is not None:
            self._condition.note([frame])
            self._sink([frame])


class Lines:
    """Bytes of the line in, sentences out.

    Attributes:
        refused: Why something was let go -> how often.
    """

    def __init__(self) -> None:
        self._rest = b""
        self.refused: Counter[str] = Counter()

    def begin(self) -> None:
        """Forget a line that was begun: the device was opened anew."""
        self._rest = b""

    def feed(self, data: bytes) -> list[Sentence]:
        """Take the next bytes; return the sentences that they complete."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            self._rest = b""
            self.refused["garbage"] += 1
        found = (self._sentence(line) for line in lines)
        return [sentence for sentence in found if sentence is not None]

    def _sentence(self, line: bytes) -> Sentence | None:
        text = line.rstrip(b"\r")
        if not text:
            return None
        # Binary bytes before the sentence, on the same line, do not spoil it.
        text = text[max(text.rfind(b"$"), 0) :]
        known = _SENTENCE.match(text)
        if known is None:
            if not _ANY.match(text):
                self.refused["garbage"] += 1
            return None
        try:
            message = NMEAReader.parse(text + b"\r\n")
        except NMEAParseError:
            self.refused["checksum"] += 1
            return None
        except (NMEAMessageError, NMEATypeError, NMEAStreamError, ValueError, IndexError):
            message = None
        if message is None:
            self.refused["garbage"] += 1
            return None
        return _READ[known[1]](vars(message))


def _rmc(said: Mapping[str, object]) -> Sentence:
    has_fix = said.get("status") == "A" and said.get("posMode") not in _NO_FIX_MODES
    day, speed = said.get("date"), _number(said.get("spd"))
    return Sentence(
        time_ms=_time_ms(said),
        day=day.toordinal() - _FIRST_DAY if isinstance(day, date) else None,
        fix=1 if has_fix else 0,
        latitude=_number(said.get("lat")),
        longitude=_number(said.get("lon")),
        speed_kmh=None if speed is None else speed * _KNOTS_TO_KMH,
        course_deg=_number(said.get("cog")),
    )


def _gga(said: Mapping[str, object]) -> Sentence:
    quality, satellites = said.get("quality"), said.get("numSV")
    has_fix = isinstance(quality, int) and quality not in _NO_FIX_QUALITIES
    return Sentence(
        time_ms=_time_ms(said),
        fix=quality if has_fix and isinstance(quality, int) else 0,
        latitude=_number(said.get("lat")),
        longitude=_number(said.get("lon")),
        altitude_m=_number(said.get("alt")) if said.get("altUnit") == "M" else None,
        hdop=_number(said.get("HDOP")),
        satellites=satellites if isinstance(satellites, int) else None,
    )


def _vtg(said: Mapping[str, object]) -> Sentence:
    if said.get("posMode") in _NO_FIX_MODES:
        return Sentence()
    return Sentence(speed_kmh=_number(said.get("sogk")), course_deg=_number(said.get("cogt")))


def _gst(said: Mapping[str, object]) -> Sentence:
    north, east = _number(said.get("stdLat")), _number(said.get("stdLong"))
    known = north is not None and east is not None
    return Sentence(
        time_ms=_time_ms(said),
        accuracy_m=(north**2 + east**2) ** 0.5 if known and north and east else None,
    )


def _zda(said: Mapping[str, object]) -> Sentence:
    year, month, day = said.get("year"), said.get("month"), said.get("day")
    ordinal = None
    if isinstance(year, int) and isinstance(month, int) and isinstance(day, int):
        try:
            ordinal = date(year, month, day).toordinal() - _FIRST_DAY
        except (ValueError, OverflowError):  # The second: a number that C does not hold.
            ordinal = None
    return Sentence(time_ms=_time_ms(said), day=ordinal)


_READ: dict[bytes, Callable[[Mapping[str, object]], Sentence]] = {
    b"RMC": _rmc,
    b"GGA": _gga,
    b"VTG": _vtg,
    b"GST": _gst,
    b"ZDA": _zda,
}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _time_ms(said: Mapping[str, object]) -> int | None:
    moment = said.get("time")
    if not isinstance(moment, time_of_day):
        return None
    seconds = (moment.hour * 60 + moment.minute) * 60 + moment.second
    return seconds * 1000 + moment.microsecond // 1000
