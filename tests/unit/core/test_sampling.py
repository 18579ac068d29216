"""The time rule against a naive model and against its own sentences."""

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from agent.core.sampling import Sampler

Offers = list[tuple[int, int]]

offers = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 3)), max_size=40
)  # (step in time, value)
intervals = st.integers(0, 12)


def timeline(steps: Offers) -> Offers:
    """Turn steps into absolute times that never run backwards."""
    t, result = 0, []
    for step, value in steps:
        t += step
        result.append((t, value))
    return result


def run(values: Offers, interval: int, *, on_change: bool, once: bool = False, end: int) -> Offers:
    """Drive a sampler as the pipeline does: what is held and due comes before the next value."""
    sampler = Sampler(interval, on_change=on_change, once=once)
    taken: Offers = []
    for t, value in [*values, (end, None)]:
        while sampler.holds and sampler.due_ns <= t:
            due = sampler.due_ns
            taken.append((due, int(sampler.release())))
        if value is not None and sampler.offer(t, value):
            taken.append((t, value))
    return taken


def naive_interval(values: Offers, interval: int) -> Offers:
    """Every value that comes at least an interval after the last one taken."""
    taken: Offers = []
    for t, value in values:
        if not taken or t - taken[-1][0] >= interval:
            taken.append((t, value))
    return taken


def naive_on_change(values: Offers, interval: int, end: int) -> Offers:
    """Walk time tick by tick: at each tick first what is due, then what arrives."""
    taken: Offers = []
    latest: int | None = None  # What arrived since the last sample, where it differs from it.
    arrivals: dict[int, list[int]] = {}
    for t, value in values:
        arrivals.setdefault(t, []).append(value)
    for t in range(end + 1):
        if latest is not None and t >= taken[-1][0] + interval:
            taken.append((t, latest))
            latest = None
        for value in arrivals.get(t, []):
            if taken and value == taken[-1][1]:
                latest = None
            elif not taken or t - taken[-1][0] >= interval:
                taken.append((t, value))
                latest = None
            else:
                latest = value
    return taken


@given(offers, intervals)
def test_without_on_change_a_value_is_taken_when_the_interval_has_passed(
    steps: Offers, interval: int
) -> None:
    values = timeline(steps)

    taken = run(values, interval, on_change=False, end=2000)

    assert taken == naive_interval(values, interval)


@given(offers, intervals, st.integers(0, 50))
@example([(0, 1), (3, 2), (7, 3)], 10, 50)  # A value that arrives in the very moment of the due.
def test_on_change_holds_the_latest_change_until_its_time_has_come(
    steps: Offers, interval: int, after: int
) -> None:
    values = timeline(steps)
    end = (values[-1][0] if values else 0) + after

    taken = run(values, interval, on_change=True, end=end)

    assert taken == naive_on_change(values, interval, end)


@given(offers, intervals)
def test_samples_are_never_closer_than_the_interval_and_never_repeat(
    steps: Offers, interval: int
) -> None:
    taken = run(timeline(steps), interval, on_change=True, end=2000)

    for (t_before, before), (t_after, after) in pairwise(taken):
        assert t_after - t_before >= interval
        assert before != after


def test_back_at_the_last_value_nothing_is_held() -> None:
    taken = run([(0, 1), (2, 2), (4, 1)], 10, on_change=True, end=100)

    assert taken == [(0, 1)]


def test_where_time_runs_backwards_nothing_is_taken_until_it_passes_the_last_sample() -> None:
    sampler = Sampler(0, on_change=False, once=False)

    answers = [sampler.offer(t, 1) for t in (100, 50, 99, 100, 101)]

    assert answers == [True, False, False, True, True]


@given(offers, intervals, st.booleans())
def test_once_gives_one_sample(steps: Offers, interval: int, on_change: bool) -> None:  # noqa: FBT001 - drawn
    values = timeline(steps)

    taken = run(values, interval, on_change=on_change, once=True, end=2000)

    assert taken == values[:1]


def test_a_finished_sampler_takes_nothing() -> None:
    sampler = Sampler(0, on_change=True, once=True)
    sampler.finish()

    assert not sampler.offer(10**18, 1)
    assert not sampler.holds


def test_thinned_counts_every_value_that_was_let_go() -> None:
    sampler = Sampler(10, on_change=True, once=False)

    for t, value in [(0, 1), (1, 1), (2, 2), (3, 3), (4, 1)]:
        sampler.offer(t, value)

    assert sampler.thinned == 4  # 1 again; 2 replaced by 3; 3 replaced by 1; 1 again.


def test_a_new_plan_does_not_restart_the_interval() -> None:
    before = Sampler(10, on_change=False, once=False)
    before.offer(100, 1)
    after = Sampler(10, on_change=False, once=False)

    after.go_on_after(before, keep_last=True, keep_held=True)

    assert not after.offer(109, 1)
    assert after.offer(110, 1)


def test_a_changed_take_forgets_what_was_held_under_the_old_constraints() -> None:
    before = Sampler(10, on_change=True, once=False)
    before.offer(0, 1)
    before.offer(1, 2)
    kept, dropped = (Sampler(10, on_change=True, once=False) for _ in range(2))

    kept.go_on_after(before, keep_last=True, keep_held=True)
    dropped.go_on_after(before, keep_last=True, keep_held=False)

    assert (kept.holds, dropped.holds) == (True, False)


def test_what_was_taken_once_stays_taken_over_a_new_plan() -> None:
    before = Sampler(0, on_change=False, once=True)
    before.offer(0, 1)
    still_once, not_once = (
        Sampler(0, on_change=False, once=True),
        Sampler(0, on_change=False, once=False),
    )

    still_once.go_on_after(before, keep_last=True, keep_held=True)
    not_once.go_on_after(before, keep_last=False, keep_held=False)

    assert not still_once.offer(100, 1)
    assert not_once.offer(100, 1)


def test_an_equal_value_is_a_sample_where_changes_do_not_count() -> None:
    sampler = Sampler(10, on_change=False, once=False)

    answers = [sampler.offer(t, 1) for t in (0, 9, 10)]

    assert answers == [True, False, True]
    assert (sampler.thinned, sampler.thinned_ns) == (1, 9)


def test_it_is_known_when_a_value_was_let_go_last() -> None:
    """A change that is held was not let go yet; one that another takes the place of was."""
    sampler = Sampler(10, on_change=True, once=False)
    sampler.offer(0, 1)
    seen = []

    for t, value in [(1, 2), (2, 3), (3, 1), (4, 1)]:
        sampler.offer(t, value)
        seen.append((sampler.holds, sampler.thinned, sampler.thinned_ns))

    assert seen == [(True, 0, None), (True, 1, 2), (False, 3, 3), (False, 4, 4)]


def test_an_unchanged_grant_compares_with_its_last_sample_over_a_new_plan() -> None:
    """A changed one forgets it: what it takes first is a sample, also an equal one."""
    before = Sampler(10, on_change=True, once=False)
    before.offer(0, 1)
    before.offer(1, 1)
    same, changed = (Sampler(10, on_change=True, once=False) for _ in range(2))

    same.go_on_after(before, keep_last=True, keep_held=True)
    changed.go_on_after(before, keep_last=False, keep_held=False)

    assert (same.thinned, same.thinned_ns) == (1, 1)
    assert [sampler.offer(20, 1) for sampler in (same, changed)] == [False, True]


def test_a_value_that_is_not_compared_with_is_not_kept() -> None:
    """Minimisation: nothing in the process remembers more than the rule needs."""
    compared, counted = (Sampler(0, on_change=on, once=False) for on in (True, False))
    compared.offer(0, 1)
    counted.offer(0, 1)
    after = Sampler(0, on_change=False, once=False)
    after.go_on_after(compared, keep_last=True, keep_held=True)

    assert (compared._last, counted._last, after._last) == (1, None, None)


def test_what_was_used_up_holds_no_value_over_a_new_plan() -> None:
    before = Sampler(0, on_change=True, once=True)
    before.offer(0, 1)
    after = Sampler(0, on_change=True, once=True)

    after.go_on_after(before, keep_last=True, keep_held=True)

    assert not after.on_change
    assert not after.offer(1, 2)
    assert not after.holds
