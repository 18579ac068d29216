"""The floor of time, and spans that nobody can shorten by turning a clock."""

from hypothesis import given
from hypothesis import strategies as st

from agent.core.clock import BUILT_S, FloorClock, Moment, Reading, elapsed_ns
from agent.core.model import NS_PER_S

T0_S = BUILT_S + 1_000_000
YEAR_S = 365 * 86_400


def reading(wall_s: int, boot_s: int = 0, *, synced: bool = True, boot: str = "b1") -> Reading:
    return Reading(wall_s * NS_PER_S, boot_s * NS_PER_S, boot, synced)


def test_a_clock_set_back_does_not_turn_time_back_and_time_goes_on() -> None:
    clock = FloorClock()
    clock.moment(reading(T0_S))

    back = clock.moment(reading(T0_S - 10 * YEAR_S, 5, synced=False))
    later = clock.moment(reading(T0_S - 10 * YEAR_S + 60, 65, synced=False))

    assert back.now_ns == (T0_S + 5) * NS_PER_S
    assert later.now_ns == (T0_S + 65) * NS_PER_S
    assert not back.is_known


def test_a_wrong_date_that_nobody_confirmed_leaves_no_trace_in_the_floor() -> None:
    clock = FloorClock()
    clock.moment(reading(T0_S))

    ahead = clock.moment(reading(T0_S + 10 * YEAR_S, 1, synced=False))
    again = clock.moment(reading(T0_S + 2, 2))

    assert ahead.now_ns == (T0_S + 10 * YEAR_S) * NS_PER_S
    assert again.now_ns == (T0_S + 2) * NS_PER_S
    assert again.is_known


def test_before_anybody_knows_the_time_it_is_not_before_the_build_or_the_kept_floor() -> None:
    assert FloorClock().moment(reading(0, synced=False)).now_ns == BUILT_S * NS_PER_S
    kept = FloorClock(T0_S * NS_PER_S).moment(reading(0, synced=False))
    assert kept.now_ns == T0_S * NS_PER_S
    assert not kept.is_known


def test_a_policy_lifts_the_floor_and_only_a_higher_epoch_lowers_it() -> None:
    clock = FloorClock()
    clock.raise_to(T0_S + YEAR_S)
    clock.raise_to(T0_S)
    assert clock.floor_ns == (T0_S + YEAR_S) * NS_PER_S

    assert clock.lower_to(T0_S) == YEAR_S * NS_PER_S
    assert clock.moment(reading(T0_S + 1)).now_ns == (T0_S + 1) * NS_PER_S


def test_a_policy_a_little_ahead_of_us_does_not_make_time_unknown() -> None:
    clock = FloorClock()
    clock.raise_to(T0_S + 3600)
    assert clock.moment(reading(T0_S)).is_known


def test_steps_are_told_once_and_slewing_is_none() -> None:
    clock = FloorClock()
    clock.moment(reading(T0_S, 0))
    clock.moment(reading(T0_S + 61, 60))
    assert clock.take_step_ns() == 0
    clock.moment(reading(T0_S - 900, 61))
    assert clock.take_step_ns() == -962 * NS_PER_S
    assert clock.take_step_ns() == 0


def test_spans_are_counted_on_boottime_and_unknown_over_a_reboot_without_a_known_clock() -> None:
    since = Moment(T0_S * NS_PER_S, 100 * NS_PER_S, "b1", is_known=True)
    same = Moment(0, 160 * NS_PER_S, "b1", is_known=False)
    other = Moment((T0_S + 500) * NS_PER_S, 9 * NS_PER_S, "b2", is_known=True)
    lost = Moment((T0_S + 500) * NS_PER_S, 9 * NS_PER_S, "b2", is_known=False)

    assert elapsed_ns(since, same) == 60 * NS_PER_S
    assert elapsed_ns(since, other) == 500 * NS_PER_S
    assert elapsed_ns(since, lost) is None


STEPS = st.lists(
    st.tuples(
        st.integers(-10 * YEAR_S, 10 * YEAR_S),  # The wall clock is set by so much,
        st.integers(0, YEAR_S),  # so much time passes,
        st.booleans(),  # and somebody confirms the clock or not.
    ),
    max_size=20,
)


@given(STEPS)
def test_the_floor_never_falls_nor_now_below_it(
    steps: list[tuple[int, int, bool]],
) -> None:
    clock = FloorClock()
    wall_s, boot_s = T0_S, 0
    for set_by_s, passes_s, synced in steps:
        wall_s, boot_s = wall_s + set_by_s + passes_s, boot_s + passes_s
        before_ns = clock.floor_ns
        now = clock.moment(reading(wall_s, boot_s, synced=synced))
        assert now.now_ns >= clock.floor_ns >= before_ns


def test_a_step_begins_at_two_seconds() -> None:
    for jump_ns, told_ns in ((2 * NS_PER_S - 1, 0), (2 * NS_PER_S, 2 * NS_PER_S)):
        clock = FloorClock()
        clock.moment(reading(T0_S))
        clock.moment(Reading(T0_S * NS_PER_S + jump_ns, 0, "b1", is_synchronised=True))

        assert clock.take_step_ns() == told_ns


def test_a_synchronised_clock_a_day_below_the_floor_is_known_and_further_below_is_not() -> None:
    floor_ns = T0_S * NS_PER_S

    for below_ns, is_known in ((86_400 * NS_PER_S, True), (86_400 * NS_PER_S + 1, False)):
        moment = FloorClock(floor_ns).moment(
            Reading(floor_ns - below_ns, 0, "b1", is_synchronised=True)
        )

        assert (moment.is_known, moment.now_ns) == (is_known, floor_ns)


def test_no_time_passes_between_two_equal_readings() -> None:
    clock = FloorClock(T0_S * NS_PER_S)
    first = clock.moment(reading(0, 5, synced=False))

    again = clock.moment(reading(0, 5, synced=False))

    assert again == first
    assert elapsed_ns(first, again) == 0
    assert clock.take_step_ns() == 0
    assert elapsed_ns(clock.moment(reading(0, 9, synced=False)), first) == 0


def test_over_a_reboot_the_span_is_unknown_unless_time_was_known_before_and_is_now() -> None:
    known, unknown = (Moment(100, 10, "b1", is_known=known) for known in (True, False))
    after, lost = (Moment(150, 20, "b2", is_known=known) for known in (True, False))

    spans = [elapsed_ns(since, now) for since in (known, unknown) for now in (after, lost)]

    assert spans == [50, None, None, None]


def test_the_floor_falls_to_the_build_at_most_and_never_rises_by_a_higher_epoch() -> None:
    clock = FloorClock(T0_S * NS_PER_S)

    assert clock.lower_to(T0_S + 1) == 0
    assert clock.floor_ns == T0_S * NS_PER_S
    assert clock.lower_to(0) == (T0_S - BUILT_S) * NS_PER_S
    assert clock.floor_ns == BUILT_S * NS_PER_S
