"""What a GNSS receiver says about one moment, as one frame of `dbc/gnss.dbc`.

    byte 0   fix        4   latitude, 1e-7 degrees       16  speed, 0.01 km/h    24  UTC, ms since
    byte 1   valid      8   longitude, 1e-7 degrees      18  course, 0.01 deg        the epoch,
    byte 2   satellites 12  altitude, 0.01 m             20  HDOP, 0.01              48 bits
                                                         22  accuracy, 0.01 m    30  0

    valid    bit 0 position, 1 altitude, 2 speed, 3 course, 4 HDOP, 5 accuracy, 6 time

Rules:
 * The sentences of one moment (a round) have the same time of day; they make one frame. A sentence
   with another time begins the next round.
 * What the receiver does not vouch for is marked as not valid, and the DBC makes it absent: there
   is no position where any sentence of the round says that there is no fix.
 * The frame's time is when the round's first sentence came, by the board's clock. The receiver's
   own time is data, and sets nothing.
"""

import struct
from dataclasses import dataclass, fields

from agent.core.model import Frame

GNSS_ID = 1  # BO_ 1 GnssFix of dbc/gnss.dbc
_LAYOUT = struct.Struct("<BBBxiiiHHHH6sxx")
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Sentence:
    """What one NMEA sentence says; None: nothing about it.

    Attributes:
        time_ms: UTC time of day, ms.
        day: Days since the epoch.
        fix: Quality as in GGA; 0, or a number below, which no receiver may send: no fix.
        latitude: Degrees, north positive.
        longitude: Degrees, east positive.
        altitude_m: Above mean sea level.
        course_deg: Over ground, against true north.
        accuracy_m: Radius of the horizontal error, one standard deviation.
    """

    time_ms: int | None = None
    day: int | None = None
    fix: int | None = None
    latitude: float | None = None
    longitude: float | None = None
    altitude_m: float | None = None
    speed_kmh: float | None = None
    course_deg: float | None = None
    hdop: float | None = None
    accuracy_m: float | None = None
    satellites: int | None = None


_PLACE = {"latitude", "longitude"}
_NAMES = tuple(field.name for field in fields(Sentence))


class Rounds:
    """Sentences in, frames out."""

    def __init__(self, bus: str) -> None:
        self._bus = bus
        self._said: dict[str, float] = {}
        self._fixes: list[int] = []
        self._t_ns = 0
        self._given: int | None = None  # Time of day of the round that was given last.
        self.without_fix = 0

    @property
    def is_open(self) -> bool:
        """Whether a round waits for more sentences."""
        return bool(self._said)

    def add(self, t_ns: int, sentence: Sentence) -> Frame | None:
        """Take a sentence; return the frame of the round that it ends, or None.

        Args:
            t_ns: When it came.
            sentence: What it says.
        """
        time_ms = sentence.time_ms
        ended = None
        if time_ms is not None and time_ms != self._said.get("time_ms", time_ms):
            ended = self.close()
        begins = not self._said
        if begins and time_ms in (None, self._given):
            return ended  # It belongs to no round, or to one that was closed already.
        if begins:
            self._t_ns = t_ns
        has_place = sentence.latitude is not None and sentence.longitude is not None
        for name in _NAMES:
            value = getattr(sentence, name)
            # Half a place, with the other half of another sentence, is one that nobody told.
            if value is not None and (has_place or name not in _PLACE):
                # What was said first counts: a sentence without a time may be the next round's.
                self._said.setdefault(name, value)
        if sentence.fix is not None:
            self._fixes.append(sentence.fix)
        return ended

    def close(self) -> Frame | None:
        """End the round, for the line is quiet; return its frame, or None where none is open."""
        if not self._said:
            return None
        said, fixes = self._said, self._fixes
        self._said, self._fixes = {}, []
        time_ms = said.get("time_ms")
        self._given = None if time_ms is None else int(time_ms)
        has_fix = bool(fixes) and min(fixes) > 0
        if not has_fix:
            self.without_fix += 1
            said = {name: said[name] for name in ("satellites",) if name in said}
        fix = max(fixes) if has_fix else 0
        return self._t_ns, self._bus, GNSS_ID, _payload(said, fix)


def _payload(said: dict[str, float], fix: int) -> bytes:
    latitude = _scaled(said.get("latitude"), 1e7, -90, 90)
    longitude = _scaled(said.get("longitude"), 1e7, -180, 180)
    if latitude is None or longitude is None:
        latitude = longitude = None
    values = (
        latitude,
        longitude,
        _scaled(said.get("altitude_m"), 100, -1000, 100_000),
        _scaled(said.get("speed_kmh"), 100, 0, 655.35),
        _scaled(said.get("course_deg"), 100, 0, 360),
        _scaled(said.get("hdop"), 100, 0, 655.35),
        _scaled(said.get("accuracy_m"), 100, 0, 655.35),
    )
    utc_ms = _utc_ms(said)
    valid = sum(1 << bit for bit, value in enumerate((*values[1:], utc_ms)) if value is not None)
    return _LAYOUT.pack(
        min(fix, 255),
        valid,
        min(max(int(said.get("satellites", 0)), 0), 255),
        *(value or 0 for value in values[:4]),
        (values[4] or 0) % 36_000,
        *(value or 0 for value in values[5:]),
        (utc_ms or 0).to_bytes(6, "little"),
    )


def _scaled(value: float | None, scale: float, low: float, high: float) -> int | None:
    """Return a value in the frame's steps, or None where it is outside of what can be true."""
    if value is None or not low <= value <= high:
        return None
    return round(value * scale)


def _utc_ms(said: dict[str, float]) -> int | None:
    if "day" not in said or "time_ms" not in said or said["day"] < 0:
        return None
    return int(said["day"]) * _DAY_MS + int(said["time_ms"])
