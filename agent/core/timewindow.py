"""When a granted scope may be taken: days and hours on a wall clock of a named zone.

Rules:
 * A window is open while a wall clock in its zone shows one of its days and from <= time < to.
   A `to` that is not after `from` runs past midnight and belongs to the day it starts on.
 * The wall clock decides, also on the nights when it is put forward or back: what it skips is no
   time, so a window that begins in the gap opens with the jump; an hour that it shows twice is open
   twice, or closed twice.
 * Of several windows one that is open is enough.
 * Before 1970 and from the year 9998 on every window is closed.

Zones are read here when a policy is parsed, and nowhere else in core: `zoneinfo` takes the table of
a zone from the system, else from the package `tzdata`. A table is data as the catalogue is: no
clock and no setting of the machine enters with it. Only names as the IANA database has them are
looked up; `localtime`, `right/UTC` and paths are none.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from agent.core.member import Members, wrong_type
from agent.core.model import NS_PER_S
from agent.core.strictjson import shown
from agent.errors import PolicyRejected

MAX_WINDOWS = 32  # Of one scope; each costs some ms of a plan at worst.
MAX_REACH_S = 8 * 86_400  # How far `span` looks: in a week everything comes round.

_DAYS = re.compile(r"[1-7](-[1-7])?(,[1-7](-[1-7])?)*", re.ASCII)
_TIME = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])", re.ASCII)
_ZONE = re.compile(r"[A-Z][A-Za-z0-9_+-]*(/[A-Z0-9][A-Za-z0-9_+-]*)*", re.ASCII)
_DAY_MIN = 24 * 60
_WEEK_MIN = 7 * _DAY_MIN
_FIRST_S = 0
_LAST_S = 253_370_764_800  # 9998-12-31; a day's arithmetic later there is still a year 9999.
_BEYOND_NS = 1 << 100
_STEP_S = 6 * 3600  # No zone has changed its clocks twice in so short a time.


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """One window, as the policy writes it.

    Attributes:
        days: ISO weekdays, 1 is Monday; ascending.
        from_min: First minute of the day.
        to_min: First minute that is not in it any more; not above `from_min`: of the next day.
        zone: IANA name.
    """

    days: tuple[int, ...]
    from_min: int
    to_min: int
    zone: str


@dataclass(frozen=True, slots=True)
class _Week:
    """The windows of one zone, as stretches of the week.

    Attributes:
        stretches: (first minute, first minute after) since Monday 0:00, ascending, apart.
    """

    zone: ZoneInfo
    stretches: tuple[tuple[int, int], ...]

    def is_open(self, t_s: int) -> bool:
        wall = datetime.fromtimestamp(t_s, self.zone)
        minute = wall.weekday() * _DAY_MIN + wall.hour * 60 + wall.minute
        return any(first <= minute < end for first, end in self.stretches)

    def turns(self, t_s: int) -> Iterator[int]:
        """Yield every moment near `t_s` at which `is_open` may change, and some others."""
        reach = timedelta(seconds=MAX_REACH_S, days=2)  # Zones are up to a day apart.
        around = datetime.fromtimestamp(t_s, self.zone).date()
        first = around - reach
        turning = {minute % _WEEK_MIN for stretch in self.stretches for minute in stretch}
        for days in range(2 * reach.days + 1):
            day = first + timedelta(days=days)
            for minute in turning:
                if minute // _DAY_MIN == day.weekday():
                    yield from _instants(day, minute % _DAY_MIN, self.zone)
        moments = range(t_s - MAX_REACH_S - _STEP_S, t_s + MAX_REACH_S + _STEP_S, _STEP_S)
        for before_s, after_s in pairwise(moments):
            if _offset(before_s, self.zone) != _offset(after_s, self.zone):
                yield _jump(before_s, after_s, self.zone)


@dataclass(frozen=True, slots=True)
class TimeWindows:
    """When one granted scope may be taken."""

    windows: tuple[TimeWindow, ...]
    _weeks: tuple[_Week, ...] = field(compare=False, repr=False)

    def is_open(self, t_ns: int) -> bool:
        """Whether something may be taken at a moment, ns since the epoch."""
        t_s = t_ns // NS_PER_S
        return _FIRST_S <= t_s < _LAST_S and any(week.is_open(t_s) for week in self._weeks)

    def span(self, t_ns: int) -> tuple[int, int]:
        """Return a span from <= t < until, ns since the epoch, in which `is_open` does not change.

        It ends at the next change, or where none is near, some days away.
        """
        t_s = t_ns // NS_PER_S
        if t_s < _FIRST_S:
            return -_BEYOND_NS, _FIRST_S * NS_PER_S
        if t_s >= _LAST_S:
            return _LAST_S * NS_PER_S, _BEYOND_NS
        turns = sorted({turn for week in self._weeks for turn in week.turns(t_s)})
        before = (turn for turn in reversed(turns) if turn <= t_s and self._changes(turn))
        after = (turn for turn in turns if turn > t_s and self._changes(turn))
        from_s = max(_FIRST_S, t_s - MAX_REACH_S, next(before, _FIRST_S))
        until_s = min(_LAST_S, t_s + MAX_REACH_S, next(after, _LAST_S))
        return from_s * NS_PER_S, until_s * NS_PER_S

    def are_within(self, others: "TimeWindows") -> bool:
        """Whether these are open only while others are, as each zone by itself can show."""
        open_in = {week.zone.key: week.stretches for week in others._weeks}  # noqa: SLF001 - ours
        return all(
            any(from_ <= first and end <= to for from_, to in open_in.get(week.zone.key, ()))
            for week in self._weeks
            for first, end in week.stretches
        )

    def _changes(self, t_s: int) -> bool:
        return self.is_open(t_s * NS_PER_S) != self.is_open((t_s - 1) * NS_PER_S)


def parse_time_windows(raw: Any, place: str) -> TimeWindows:
    """Return the windows of one granted scope.

    Args:
        raw: The constraint `windows`, decoded: a list of `{days, from, to, tz}`.
        place: Grant and scope, for messages.

    Raises:
        PolicyRejected: With reason `type`, `range`, `missing-member`, `unknown-member` or
            `unknown-zone`.
    """
    if not isinstance(raw, list):
        raise wrong_type(f"{place}: windows", "a list", raw)
    if not 1 <= len(raw) <= MAX_WINDOWS:
        raise PolicyRejected(
            f"{place}: windows has {len(raw)} elements, expected 1 to {MAX_WINDOWS}",
            reason="range",
            hint="leave windows out where every time will do",
        )
    windows = tuple(_window(item, f"{place}: windows[{n}]") for n, item in enumerate(raw))
    zones = dict.fromkeys(window.zone for window in windows)
    weeks = tuple(
        _Week(_zone(name, place), _stretches([w for w in windows if w.zone == name]))
        for name in zones
    )
    return TimeWindows(windows, weeks)


def _window(raw: Any, place: str) -> TimeWindow:
    members = Members(raw, place, ("days", "from", "to", "tz"))
    return TimeWindow(
        days=_days(members.text("days"), place),
        from_min=_minute(members.text("from"), f"{place}: from"),
        to_min=_minute(members.text("to"), f"{place}: to"),
        zone=members.text("tz"),
    )


def _days(text: str, place: str) -> tuple[int, ...]:
    days: list[int] = []
    for part in text.split(",") if _DAYS.fullmatch(text) else ():
        first, _, last = part.partition("-")
        found = range(int(first), int(last or first) + 1)
        if not found or (days and found[0] <= days[-1]):
            days = []
            break
        days += found
    if not days:
        raise PolicyRejected(
            f"{place}: days {shown(text)} are no ISO weekdays in ascending order",
            reason="range",
            hint="1 is Monday, 7 is Sunday, as in 1-5 or 1,3 or 1-4,6",
        )
    return tuple(days)


def _minute(text: str, place: str) -> int:
    match = _TIME.fullmatch(text)
    if match is None:
        raise PolicyRejected(
            f"{place} {shown(text)} is no time from 00:00 to 23:59",
            reason="range",
            hint="write HH:MM; a window to 00:00 ends with its day",
        )
    return int(match[1]) * 60 + int(match[2])


def _zone(name: str, place: str) -> ZoneInfo:
    if _ZONE.fullmatch(name):
        try:
            return ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            pass  # Not there, no table of a zone, or a folder of zones: said below.
    raise PolicyRejected(
        f"{place}: there is no time zone {shown(name)} here",
        reason="unknown-zone",
        hint="write the name of the IANA database, such as Europe/Berlin",
    )


def _stretches(windows: Sequence[TimeWindow]) -> tuple[tuple[int, int], ...]:
    """Return the windows as stretches of the week; what runs past Sunday goes on on Monday."""
    found: list[tuple[int, int]] = []
    for window in windows:
        length = (window.to_min - window.from_min) % _DAY_MIN or _DAY_MIN
        for day in window.days:
            first = (day - 1) * _DAY_MIN + window.from_min
            found.append((first, min(first + length, _WEEK_MIN)))
            if first + length > _WEEK_MIN:
                found.append((0, first + length - _WEEK_MIN))
    merged: list[tuple[int, int]] = []
    for first, end in sorted(found):
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((first, end))
    return tuple(merged)


def _instants(day: date, minute: int, zone: ZoneInfo) -> Iterator[int]:
    """Yield the moments at which a wall clock shows this time: PEP 495, both folds."""
    wall = datetime.combine(day, time(*divmod(minute, 60)), tzinfo=zone)
    for fold in (0, 1):
        yield int(wall.replace(fold=fold).timestamp())


def _offset(t_s: int, zone: ZoneInfo) -> timedelta | None:
    return datetime.fromtimestamp(t_s, zone).utcoffset()


def _jump(before_s: int, after_s: int, zone: ZoneInfo) -> int:
    """Return the first second of the offset that holds at `after_s`."""
    while after_s - before_s > 1:
        middle_s = (before_s + after_s) // 2
        if _offset(middle_s, zone) == _offset(after_s, zone):
            after_s = middle_s
        else:
            before_s = middle_s
    return after_s
