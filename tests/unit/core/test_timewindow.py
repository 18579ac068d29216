"""Time windows against a naive oracle that walks a wall clock minute by minute."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.core.model import NS_PER_S
from agent.core.timewindow import MAX_REACH_S, TimeWindows, parse_time_windows
from agent.errors import PolicyRejected

OFFICE = {"days": "1-5", "from": "07:00", "to": "19:00", "tz": "Europe/Berlin"}
ZONES = (
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",  # Half an hour of summer time.
    "America/St_Johns",
    "Asia/Kathmandu",
    "Africa/Cairo",  # Springs forward at midnight: a day without its first hour.
    "Pacific/Apia",  # Left out the whole of 2011-12-30.
    "Pacific/Kiritimati",  # UTC+14.
    "Etc/GMT+12",
    "UTC",
)
# Days around which the clocks of these zones are changed, and one where none is.
NIGHTS = ("2026-03-29", "2026-10-25", "2026-03-08", "2026-11-01", "2026-04-24", "2026-10-30")
NIGHTS += ("2026-04-05", "2026-10-04", "2011-12-30", "2026-06-15", "2026-12-31")


def windows(*raw: dict[str, Any]) -> TimeWindows:
    return parse_time_windows(list(raw), "grant g, scope s")


def at(text: str, zone: str = "Europe/Berlin", fold: int = 0) -> int:
    wall = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return int(wall.timestamp()) * NS_PER_S


def naive(raw: list[dict[str, Any]], t_s: int) -> bool:
    """Look at the wall clock of each zone, as the owner would."""
    for window in raw:
        wall = datetime.fromtimestamp(t_s, UTC).astimezone(ZoneInfo(window["tz"]))
        days = set()
        for part in window["days"].split(","):
            low, _, high = part.partition("-")
            days |= {str(day) for day in range(int(low), int(high or low) + 1)}
        clock = f"{wall:%H:%M}"
        today = str(wall.isoweekday())
        yesterday = str((wall.isoweekday() + 5) % 7 + 1)
        if window["from"] < window["to"]:
            inside = today in days and window["from"] <= clock < window["to"]
        else:
            inside = (today in days and window["from"] <= clock) or (
                yesterday in days and clock < window["to"]
            )
        if inside:
            return True
    return False


@st.composite
def _days(draw: st.DrawFn) -> str:
    days = draw(st.lists(st.integers(1, 7), min_size=1, max_size=7, unique=True).map(sorted))
    if draw(st.booleans()):
        low, high = min(days), max(days)
        return f"{low}-{high}"
    return ",".join(map(str, days))


_CLOCK = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.integers(0, 59))
_NIGHTLY = st.builds("{:02}:{:02}".format, st.integers(0, 3), st.sampled_from([0, 15, 30, 59]))
_WINDOW = st.fixed_dictionaries(
    {
        "days": _days(),
        "from": _CLOCK | _NIGHTLY,
        "to": _CLOCK | _NIGHTLY,
        "tz": st.sampled_from(ZONES),
    }
)
_MOMENT = st.builds(
    lambda day, s: int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) + s,
    st.sampled_from(NIGHTS),
    st.integers(-2 * 86_400, 2 * 86_400),
)


@settings(max_examples=100, deadline=None)
@given(raw=st.lists(_WINDOW, min_size=1, max_size=3), t_s=_MOMENT)
def test_a_window_is_open_when_a_wall_clock_says_so(raw: list[dict[str, Any]], t_s: int) -> None:
    found = windows(*raw)

    for moment in (*range(t_s, t_s + 3 * 3600, 300), t_s + 86_400):
        assert found.is_open(moment * NS_PER_S) == naive(raw, moment)


@settings(max_examples=60, deadline=None)
@given(raw=st.lists(_WINDOW, min_size=1, max_size=3), t_s=_MOMENT)
def test_a_span_ends_where_the_wall_clock_opens_or_closes_and_nowhere_before(
    raw: list[dict[str, Any]], t_s: int
) -> None:
    from_s, until_s = (end // NS_PER_S for end in windows(*raw).span(t_s * NS_PER_S))
    state = naive(raw, t_s)

    assert from_s <= t_s < until_s
    edges = (end - end % 60 for end in (from_s, until_s))
    for moment in {*range(from_s + 59, until_s, 1800), *edges, from_s, until_s - 1}:
        if from_s <= moment < until_s:
            assert naive(raw, moment) == state
    if until_s < t_s + MAX_REACH_S:
        assert naive(raw, until_s) != state
    if from_s > t_s - MAX_REACH_S:
        assert naive(raw, from_s - 1) != state


@pytest.mark.parametrize(
    ("zone", "night"),
    [
        ("Europe/Berlin", "2026-03-29"),
        ("Europe/Berlin", "2026-10-25"),
        ("America/St_Johns", "2026-11-01"),
        ("Africa/Cairo", "2026-04-24"),
        ("Africa/Cairo", "2026-10-30"),
        ("Australia/Lord_Howe", "2026-04-05"),
        ("Australia/Lord_Howe", "2026-10-04"),
        ("Pacific/Apia", "2011-12-30"),
    ],
)
def test_no_minute_of_a_night_on_which_clocks_change_is_missed(night: str, zone: str) -> None:
    raw = [
        {"days": "1-7", "from": "02:30", "to": "02:50", "tz": zone},
        {"days": "7", "from": "23:40", "to": "00:20", "tz": zone},
    ]
    found = windows(*raw)
    first = int(datetime.fromisoformat(night).replace(tzinfo=UTC).timestamp()) - 20 * 3600
    walked, t_s = [], first
    while t_s < first + 44 * 3600:
        t_s = found.span(t_s * NS_PER_S)[1] // NS_PER_S
        walked.append(t_s)

    minutes = range(first + 60, walked[-1] + 60, 60)
    turns = [t for t in minutes if naive(raw, t) != naive(raw, t - 60)]

    assert [turn for turn in turns if turn <= walked[-1]] == walked


def test_from_belongs_to_the_window_and_to_does_not() -> None:
    found = windows(OFFICE)

    assert [
        found.is_open(at(f"2026-11-24T{clock}"))
        for clock in ("06:59:59", "07:00:00", "18:59:59", "19:00:00")
    ] == [False, True, True, False]
    assert found.span(at("2026-11-24T12:00")) == (at("2026-11-24T07:00"), at("2026-11-24T19:00"))
    assert found.span(at("2026-11-24T19:00")) == (at("2026-11-24T19:00"), at("2026-11-25T07:00"))


def test_the_weekend_is_one_span() -> None:
    assert windows(OFFICE).span(at("2026-11-28T12:00")) == (
        at("2026-11-27T19:00"),
        at("2026-11-30T07:00"),
    )


def test_a_window_past_midnight_belongs_to_the_day_it_starts_on() -> None:
    found = windows({**OFFICE, "days": "5", "from": "22:00", "to": "06:00"})

    assert found.is_open(at("2026-11-27T23:00"))  # Friday.
    assert found.is_open(at("2026-11-28T05:59:59"))
    assert not found.is_open(at("2026-11-28T06:00"))
    assert not found.is_open(at("2026-11-27T05:00"))
    assert found.span(at("2026-11-28T00:00")) == (at("2026-11-27T22:00"), at("2026-11-28T06:00"))


def test_a_window_past_sunday_goes_on_on_monday() -> None:
    found = windows({**OFFICE, "days": "7", "from": "23:00", "to": "01:00"})

    assert found.is_open(at("2026-11-30T00:59"))
    assert found.span(at("2026-11-30T00:30")) == (at("2026-11-29T23:00"), at("2026-11-30T01:00"))


def test_from_midnight_to_midnight_is_the_whole_day() -> None:
    found = windows({**OFFICE, "days": "2", "from": "00:00", "to": "00:00"})

    assert found.span(at("2026-11-24T12:00")) == (at("2026-11-24T00:00"), at("2026-11-25T00:00"))


def test_what_begins_in_the_hour_that_is_skipped_opens_with_the_jump() -> None:
    found = windows({**OFFICE, "days": "7", "from": "02:30", "to": "04:00"})
    jump = at("2026-03-29T03:00")

    assert found.span(jump) == (jump, at("2026-03-29T04:00"))
    assert not found.is_open(jump - 1)


def test_the_hour_that_comes_twice_is_open_twice() -> None:
    found = windows({**OFFICE, "days": "7", "from": "02:15", "to": "02:45"})
    first, second = (at("2026-10-25T02:15", fold=fold) for fold in (0, 1))

    assert second - first == 3600 * NS_PER_S
    for begin in (first, second):
        assert found.span(begin) == (begin, begin + 1800 * NS_PER_S)


def test_windows_that_touch_are_one_and_those_of_two_zones_are_united() -> None:
    found = windows(
        {"days": "2", "from": "08:00", "to": "10:00", "tz": "UTC"},
        {"days": "2", "from": "10:00", "to": "12:00", "tz": "UTC"},
        {"days": "2", "from": "12:30", "to": "14:00", "tz": "Europe/Berlin"},
    )

    assert found.span(at("2026-11-24T09:00", "UTC")) == (
        at("2026-11-24T08:00", "UTC"),
        at("2026-11-24T13:00", "UTC"),
    )


def test_what_is_always_open_has_a_span_of_some_days() -> None:
    always = windows({"days": "1-7", "from": "00:00", "to": "00:00", "tz": "UTC"})

    from_ns, until_ns = always.span(at("2026-11-24T09:00", "UTC"))

    assert (until_ns - from_ns) // NS_PER_S == 2 * MAX_REACH_S


@pytest.mark.parametrize("t_s", [-1, -(10**12), 253_400_000_000, 10**15])
def test_beyond_the_calendar_windows_are_closed(t_s: int) -> None:
    always = windows({"days": "1-7", "from": "00:00", "to": "00:00", "tz": "UTC"})

    assert not always.is_open(t_s * NS_PER_S)
    from_ns, until_ns = always.span(t_s * NS_PER_S)
    assert from_ns <= t_s * NS_PER_S < until_ns
    assert not always.is_open(from_ns)
    assert not always.is_open(until_ns - 1)


@pytest.mark.parametrize("t_s", [0, 59, 253_370_764_799])
def test_at_the_ends_of_the_calendar_windows_work(t_s: int) -> None:
    always = windows({"days": "1-7", "from": "00:00", "to": "00:00", "tz": "Etc/GMT-14"})

    assert always.is_open(t_s * NS_PER_S)
    from_ns, until_ns = always.span(t_s * NS_PER_S)
    assert from_ns <= t_s * NS_PER_S < until_ns


def test_equal_windows_are_equal() -> None:
    """Whether a grant has changed is asked of its values."""
    assert windows(OFFICE) == windows(dict(OFFICE))
    assert windows(OFFICE) != windows({**OFFICE, "tz": "Europe/Paris"})


def refusal(raw: Any) -> PolicyRejected:
    with pytest.raises(PolicyRejected) as info:
        parse_time_windows(raw, "grant gr_1, scope read_x")
    assert "grant gr_1, scope read_x" in info.value.message
    return info.value


@pytest.mark.parametrize("days", ["", "0", "8", "1-", "-5", "5-1", "1,1", "1-3,2", "1-3,3", "2,1"])
def test_days_are_iso_weekdays_in_ascending_order(days: str) -> None:
    assert refusal([{**OFFICE, "days": days}]).reason == "range"


@pytest.mark.parametrize(
    ("days", "expected"),
    [("1", (1,)), ("1-5", (1, 2, 3, 4, 5)), ("6,7", (6, 7)), ("1-5,7", (1, 2, 3, 4, 5, 7))],
)
def test_days_are_single_ones_and_ranges(days: str, expected: tuple[int, ...]) -> None:
    assert windows({**OFFICE, "days": days}).windows[0].days == expected


@pytest.mark.parametrize("name", ["from", "to"])
@pytest.mark.parametrize(
    "text", ["7:00", "24:00", "07:60", "0700", "07:00:00", " 07:00", "\u0660\u0667:00"]
)
def test_times_are_hours_and_minutes(name: str, text: str) -> None:
    assert refusal([{**OFFICE, name: text}]).reason == "range"


@pytest.mark.parametrize(
    "zone",
    [
        *("Europe/Nowhere", "europe/berlin", "Europe", "localtime", "right/UTC", "posix/UTC"),
        *("../UTC", "/etc/localtime", "Europe/../UTC", "UTC/", "CET-1CEST", "Europe/Berlin\u200b"),
        *("tzdata.zi", "zone.tab", "SECURITY", "+VERSION", "posixrules"),
    ],
)
def test_a_zone_is_one_of_the_iana_database(zone: str) -> None:
    assert refusal([{**OFFICE, "tz": zone}]).reason in {"unknown-zone", "range"}


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (OFFICE, "type"),
        ([], "range"),
        ([OFFICE] * 33, "range"),
        (["07:00-19:00"], "type"),
        ([{**OFFICE, "day": "1"}], "unknown-member"),
        ([{name: text for name, text in OFFICE.items() if name != "tz"}], "missing-member"),
        ([{**OFFICE, "days": 1}], "type"),
        ([{**OFFICE, "from": 7}], "type"),
        ([{**OFFICE, "tz": None}], "type"),
    ],
)
def test_what_is_no_list_of_windows_is_refused(raw: Any, reason: str) -> None:
    assert refusal(raw).reason == reason


def test_as_many_windows_as_are_allowed_are_planned_fast_enough() -> None:
    """Not a timed test: so many are still a list, and their spans are right."""
    many = windows(
        *(
            {"days": "1-7", "from": f"{n // 2:02}:{n % 2 * 30:02}", "to": "23:59", "tz": "UTC"}
            for n in range(32)
        )
    )

    assert many.span(at("2026-11-24T12:00", "UTC"))[1] == at("2026-11-24T23:59", "UTC")


@example(t_s=0)
@given(t_s=st.integers(-(10**11), 3 * 10**11))
def test_a_span_surrounds_its_moment(t_s: int) -> None:
    found = windows(OFFICE)

    from_ns, until_ns = found.span(t_s * NS_PER_S)

    assert from_ns <= t_s * NS_PER_S < until_ns
    assert found.is_open(from_ns) == found.is_open(until_ns - 1) == found.is_open(t_s * NS_PER_S)


def test_the_naive_oracle_itself_knows_a_week() -> None:
    monday = datetime(2026, 11, 23, 12, tzinfo=UTC)
    week = [monday + timedelta(days=n) for n in range(7)]

    assert [naive([OFFICE], int(day.timestamp())) for day in week] == [True] * 5 + [False] * 2


def test_days_that_run_backwards_are_refused() -> None:
    window = {"days": "5-1", "from": "07:00", "to": "19:00", "tz": "Europe/Berlin"}

    assert refusal([window]).reason == "range"
    assert refusal({"0": window}).reason == "type"
    assert refusal("windows").reason == "type"


def test_windows_are_within_others_where_each_stretch_is_and_in_the_same_zone() -> None:
    def one(days: str, from_: str, to: str, tz: str = "Europe/Berlin") -> dict[str, str]:
        return {"days": days, "from": from_, "to": to, "tz": tz}

    outer = windows(one("1-5", "07:00", "19:00"))

    assert windows(one("1-5", "07:00", "19:00")).are_within(outer)
    assert windows(one("2,4", "08:00", "18:00")).are_within(outer)
    for other in (
        one("1-5", "06:59", "19:00"),
        one("1-5", "07:00", "19:01"),
        one("1-6", "08:00", "18:00"),
        one("1-5", "20:00", "21:00"),
        one("1-5", "08:00", "18:00", "Europe/Paris"),
    ):
        assert not windows(other).are_within(outer)
    assert not windows(one("1", "08:00", "09:00"), one("7", "08:00", "09:00")).are_within(outer)


@pytest.mark.parametrize("days", ["1,5-4", "3,1,4", "1-3,2,6"])
def test_days_that_turn_back_later_in_the_list_are_refused_too(days: str) -> None:
    assert refusal([{**OFFICE, "days": days}]).reason == "range"


def test_the_jump_is_found_to_the_second_from_whatever_moment() -> None:
    found = windows({**OFFICE, "days": "7", "from": "02:30", "to": "04:00"})
    jump = at("2026-03-29T03:00")

    for before_s in (1, 59, 1234, 9_876, 86_400, 5 * 86_400 + 7):
        assert found.span(jump - before_s * NS_PER_S)[1] == jump


def test_windows_that_touch_hold_what_lies_over_their_border() -> None:
    touching = windows({**OFFICE, "to": "12:00"}, {**OFFICE, "from": "12:00"})

    assert windows({**OFFICE, "from": "11:00", "to": "13:00"}).are_within(touching)


def test_the_calendar_ends_with_its_last_second() -> None:
    always = windows({"days": "1-7", "from": "00:00", "to": "00:00", "tz": "UTC"})
    end = 253_370_764_800 * NS_PER_S

    assert always.span(end - 1)[1] == end
    assert always.span(end)[0] == end
    assert always.is_open(end - 1)
    assert not always.is_open(end)
