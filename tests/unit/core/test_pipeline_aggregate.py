"""Windows in the pipeline: when they close, what of them leaves, and what is forgotten."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.model import NS_PER_MS, NS_PER_S, Batch, Frame
from agent.core.pipeline import Pipeline
from agent.core.plan import Plan, compile_plan, empty_plan
from agent.core.policy import Policy
from tests import car

PATH = "Vehicle.TraveledDistance"
NOW_NS = 1_800_000_000 * NS_PER_S  # A whole minute.
T0_MS = NOW_NS // NS_PER_MS
ALL = ["min", "max", "mean", "count", "last"]
MAPPED_1S = car.MAPPING.replace(
    b"{signal: ODO.Odometer, interval_ms: 0}", b"{signal: ODO.Odometer}"
)
ON_CHANGE = car.MAPPING.replace(
    b"{signal: ODO.Odometer, interval_ms: 0}", b"{signal: ODO.Odometer, on_change: true}"
)


def minutes(*functions: str, window_s: float = 60, **more: Any) -> dict[str, Any]:
    return {"aggregate": {"window_s": window_s, "fn": list(functions)}, **more}


def plan(policy: Policy | None, now_ns: int = NOW_NS, mapping: bytes = car.MAPPING) -> Plan:
    return compile_plan(policy, car.catalogue(), car.binding(mapping), now_ns=now_ns)


def grant(*functions: str, **more: Any) -> Policy:
    return car.policy({"g": {"read_odometer": minutes(*functions)}}, **more)


def rows(batches: list[Batch]) -> list[tuple[str | None, float, Any]]:
    """Flatten batches: (function, s since the start, value)."""
    return [
        (column.fn, (t_ms - T0_MS) / 1000, value)
        for batch in batches
        for column in batch.columns
        for t_ms, value in zip(column.times_ms, column.values, strict=True)
    ]


def odometer(t_s: float, metres: int) -> Frame:
    return car.odometer(T0_MS + t_s * 1000, metres)


def at(t_s: float) -> int:
    return NOW_NS + round(t_s * NS_PER_S)


def test_only_what_the_functions_make_of_a_window_leaves() -> None:
    pipeline = Pipeline(plan(grant(*ALL)))
    pipeline.feed([odometer(t_s, metres) for t_s, metres in [(1, 30), (20, 10), (59.9, 21)]])
    assert pipeline.drain() == []

    pipeline.feed([odometer(60, 99)])
    pipeline.tick(at(400))

    batches = pipeline.drain()
    assert [(c.fn, c.window_s, c.datatype, c.unit, c.values) for c in batches[0].columns] == [
        ("min", 60, "uint32", "m", (10,)),
        ("max", 60, "uint32", "m", (30,)),
        ("mean", 60, "double", "m", (61 / 3,)),
        ("count", 60, "uint64", None, (3,)),
        ("last", 60, "uint32", "m", (21,)),
    ]
    assert {(t_s, value) for _, t_s, value in rows(batches)[5:]} == {(60, 99), (60, 1)}
    assert {t_s for _, t_s, _ in rows(batches)} == {0, 60}


def test_a_window_closes_by_tick_without_frames() -> None:
    pipeline = Pipeline(plan(grant("max")))
    pipeline.feed([odometer(10, 5)])

    pipeline.tick(at(60) - 1)
    assert pipeline.drain() == []
    pipeline.tick(at(60))
    pipeline.close()

    assert rows(pipeline.drain()) == [("max", 0, 5)]
    pipeline.tick(at(1000))
    assert pipeline.drain() == []  # Nothing entered, so there is nothing to tell.


def test_another_granted_frame_closes_a_window_and_a_foreign_one_does_not() -> None:
    policy = car.policy({"g": {"read_odometer": minutes("max"), "read_security": {}}})
    taken: list[tuple[str, int]] = []
    pipeline = Pipeline(
        plan(policy), on_sample=lambda take, t_ns, _: taken.append((take.path, t_ns))
    )
    pipeline.feed([odometer(10, 5), car.foreign(T0_MS + 70_000)])
    assert taken == []

    pipeline.feed([car.door(T0_MS + 61_000, 1)])

    assert taken[0] == (PATH, NOW_NS)


def test_a_window_that_is_open_at_stop_is_sent() -> None:
    pipeline = Pipeline(plan(grant("max", "count")))
    pipeline.feed([odometer(10, 5)])

    pipeline.stop()
    assert rows(pipeline.drain()) == [("max", 0, 5), ("count", 0, 1)]
    pipeline.stop()

    assert pipeline.drain() == []


@pytest.mark.parametrize("after", ["revoked", "paused", "absent", "rev", "expired", "nothing"])
def test_an_open_window_of_a_grant_that_ended_or_changed_is_dropped(after: str) -> None:
    pipeline = Pipeline(plan(grant("max")))
    pipeline.feed([odometer(10, 5)])

    policies = {
        "revoked": grant("max", g={"state": "revoked"}),
        "paused": grant("max", g={"state": "paused"}),
        "absent": car.policy({}),
        "rev": grant("max", g={"rev": 2}),
        "expired": grant("max", g={"exp": NOW_NS // NS_PER_S}),
        "nothing": None,
    }
    pipeline.swap(plan(policies[after]))
    pipeline.tick(at(1000))
    pipeline.stop()

    assert pipeline.drain() == []


def test_an_open_window_goes_on_over_a_swap_that_leaves_its_grant_as_it_is() -> None:
    other = car.policy({"g": {"read_odometer": minutes("max")}, "h": {"read_security": {}}})
    pipeline = Pipeline(plan(grant("max")))
    pipeline.feed([odometer(10, 5)])

    pipeline.swap(plan(other))
    pipeline.feed([odometer(20, 4)])
    pipeline.tick(at(60))
    pipeline.stop()

    assert rows(pipeline.drain()) == [("max", 0, 5)]


def test_what_a_window_holds_when_the_scopes_hours_end_is_sent() -> None:
    """It was permitted when it was taken, and the grant is as live as before."""
    hours = {"days": "1-7", "from": "08:00", "to": "08:01", "tz": "UTC"}
    policy = car.policy({"g": {"read_odometer": minutes("max", window_s=3600, windows=[hours])}})
    pipeline = Pipeline(plan(policy))
    pipeline.feed([odometer(10, 5), odometer(59.9, 7), odometer(60, 9)])

    pipeline.tick(at(60))
    pipeline.swap(plan(policy, at(60)))

    assert rows(pipeline.drain()) == [("max", 0, 7)]
    pipeline.tick(at(4000))
    pipeline.stop()
    assert pipeline.drain() == []


@pytest.mark.parametrize(
    ("mapping", "expected"), [(car.MAPPING, 30), (MAPPED_1S, 3), (ON_CHANGE, 30)]
)
def test_every_value_enters_that_the_mappings_interval_lets_through(
    mapping: bytes, expected: int
) -> None:
    """Also one that did not change, or a mean would lean to what changes often."""
    pipeline = Pipeline(plan(grant("count"), mapping=mapping))

    pipeline.feed([odometer(n / 10, 5) for n in range(30)])
    pipeline.stop()

    assert rows(pipeline.drain()) == [("count", 0, expected)]


def test_a_mapping_cannot_make_a_window_shorter() -> None:
    pipeline = Pipeline(plan(grant("max")))

    pipeline.feed([odometer(n, n) for n in range(600)])
    pipeline.stop()

    assert [t_s for _, t_s, _ in rows(pipeline.drain())] == [n * 60 for n in range(10)]


def test_positions_and_quanta_snap_before_they_are_compared() -> None:
    policy = car.policy(
        {
            "g": {
                "read_location": minutes("min", "mean", "last", grid_deg=0.5),
                "read_odometer": minutes("max", "mean", quantum=10),
            }
        }
    )
    pipeline = Pipeline(plan(policy))

    pipeline.feed([odometer(1, 14), odometer(2, 15), odometer(3, 16)])
    pipeline.feed([car.position(T0_MS + n, lat, 20.1) for n, lat in enumerate((10.3, 10.4, 10.6))])
    pipeline.stop()

    found = {(c.path.rpartition(".")[2], c.fn): c.values for c in pipeline.drain()[0].columns}
    assert found == {
        ("TraveledDistance", "max"): (20,),
        ("TraveledDistance", "mean"): (20.0,),
        ("Latitude", "min"): (10.25,),
        ("Latitude", "mean"): (10.25,),
        ("Latitude", "last"): (10.75,),
        ("Longitude", "min"): (20.25,),
        ("Longitude", "mean"): (20.25,),
        ("Longitude", "last"): (20.25,),
    }


def test_a_function_that_a_path_cannot_have_is_skipped_with_the_reason() -> None:
    policy = car.policy({"g": {"read_security": minutes("max", "last", "count", window_s=1)}})

    made = plan(policy)

    door = "Vehicle.Cabin.Door.Row1.DriverSide.IsOpen"
    assert [take.fn for take in made.takes] == ["last", "count"]
    skipped = [item for item in made.skipped if item.path == door]
    assert [(item.fn, item.reason) for item in skipped] == [("max", "there is no max of a boolean")]
    pipeline = Pipeline(made)
    pipeline.feed([car.door(T0_MS, 1), car.door(T0_MS + 10, 0)])
    pipeline.stop()
    assert rows(pipeline.drain()) == [("last", 0, False), ("count", 0, 2)]


def test_a_path_without_any_possible_function_is_not_decoded() -> None:
    made = plan(car.policy({"g": {"read_security": minutes("mean", window_s=1)}}))

    assert (made.takes, dict(made.exact)) == ((), {})


def test_dropped_values_do_not_enter() -> None:
    pipeline = Pipeline(plan(car.policy({"g": {"read_security": minutes("count", window_s=1)}})))

    pipeline.feed([car.door(T0_MS + n, state) for n, state in enumerate((0, 3, 1, 3))])
    pipeline.stop()

    assert rows(pipeline.drain()) == [("count", 0, 2)]
    counts = pipeline.counts()["g", "Vehicle.Cabin.Door.Row1.DriverSide.IsOpen"]
    assert (counts.taken, counts.thinned, sum(counts.drops.values())) == (1, 2, 2)


def test_where_time_runs_backwards_nothing_enters_until_it_passes_the_last_value() -> None:
    pipeline = Pipeline(plan(grant("count", "max")))

    pipeline.feed([odometer(t_s, m) for t_s, m in [(100, 1), (10, 9), (99, 9), (100, 2), (130, 3)]])
    pipeline.tick(at(20))
    pipeline.stop()

    assert rows(pipeline.drain()) == [
        ("count", 60, 2),
        ("count", 120, 1),
        ("max", 60, 2),
        ("max", 120, 3),
    ]


def naive(frames: list[tuple[int, int]], interval_ms: int) -> dict[int, list[int]]:
    """Window -> the values that the mapping's interval lets through."""
    windows: dict[int, list[int]] = {}
    last: int | None = None
    for t_ms, metres in frames:
        if last is None or t_ms - last >= interval_ms:
            last = t_ms
            windows.setdefault(t_ms // 60_000 * 60_000, []).append(metres)
    return windows


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(-20_000, 90_000), st.integers(0, 2**32 - 1)), max_size=40),
    ticks=st.booleans(),
    swaps=st.booleans(),
    mapping=st.sampled_from([(car.MAPPING, 0), (MAPPED_1S, 1000)]),
)
def test_windows_are_what_a_naive_grouping_gives(
    *, steps: list[tuple[int, int]], ticks: bool, swaps: bool, mapping: tuple[bytes, int]
) -> None:
    text, interval_ms = mapping
    frames, t_ms = [], T0_MS
    for step_ms, metres in steps:
        t_ms += step_ms
        frames.append((t_ms, metres))
    pipeline = Pipeline(plan(grant(*ALL), mapping=text))

    for number, (t_ms, metres) in enumerate(frames):
        pipeline.feed([car.odometer(t_ms, metres)])
        if ticks:
            pipeline.tick(t_ms * NS_PER_MS)
        if swaps and number % 3 == 0:
            pipeline.swap(plan(grant(*ALL), mapping=text))
    pipeline.stop()

    expected = {
        (fn, (start_ms - T0_MS) / 1000): value
        for start_ms, values in naive(frames, interval_ms).items()
        for fn, value in {
            "min": min(values),
            "max": max(values),
            "mean": sum(values) / len(values),
            "count": len(values),
            "last": values[-1],
        }.items()
    }
    found = rows(pipeline.drain())
    assert len(found) == len(expected)
    assert {(fn, t_s): value for fn, t_s, value in found} == expected


VALUES = (1_000_003, 1_000_033, 1_000_037)


def _reachable(root: object) -> Iterator[object]:
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, type):
            continue
        seen.add(id(thing))
        yield thing
        waiting += gc.get_referents(thing)


def _values_in(pipeline: Pipeline) -> set[float]:
    return {x for x in _reachable(vars(pipeline)) if type(x) is int and x in VALUES}


@pytest.mark.parametrize("mapping", [car.MAPPING, ON_CHANGE], ids=["every value", "on change"])
@pytest.mark.parametrize(
    "constraints",
    [
        {"min_interval_s": 0},
        {"min_interval_s": 10},
        {"once": True},
        minutes(*ALL),
        {"min_interval_s": 10, "quantum": 1},
    ],
    ids=["all", "interval", "once", "aggregate", "quantum"],
)
@pytest.mark.parametrize("after", ["revoked", "paused", "absent", "none"])
def test_no_value_of_a_grant_that_is_not_live_stays_in_memory(
    mapping: bytes, constraints: dict[str, Any], after: str
) -> None:
    """Neither what was sampled, nor what was held, nor what a window or the time rule remembers."""
    policy = car.policy({"g": {"read_odometer": constraints}})
    pipeline = Pipeline(plan(policy, mapping=mapping))
    pipeline.feed([odometer(n, metres) for n, metres in enumerate(VALUES)])
    assert _values_in(pipeline), "the look into memory sees what is there"

    policies = {
        "revoked": car.policy({"g": {"read_odometer": constraints}}, g={"state": "revoked"}),
        "paused": car.policy({"g": {"read_odometer": constraints}}, g={"state": "paused"}),
        "absent": car.policy({}),
        "none": None,
    }
    pipeline.swap(plan(policies[after], mapping=mapping))

    assert _values_in(pipeline) == set()
    key = ("g", PATH)
    assert (key in pipeline.counts()) == (after in ("paused", "none"))


def test_the_time_rule_goes_on_after_a_pause_without_the_value() -> None:
    policy = car.policy({"g": {"read_odometer": {"min_interval_s": 10}}})
    paused = car.policy({"g": {"read_odometer": {"min_interval_s": 10}}}, g={"state": "paused"})
    pipeline = Pipeline(plan(policy, mapping=ON_CHANGE))
    pipeline.feed([odometer(0, 7)])
    for between in (plan(paused), empty_plan(), plan(policy, mapping=ON_CHANGE)):
        pipeline.swap(between)

    pipeline.feed([odometer(5, 8), odometer(9, 7), odometer(12, 7)])
    pipeline.stop()

    assert [t_s for _, t_s, _ in rows(pipeline.drain())] == [10]


def test_counts_tell_when_and_why_and_never_what() -> None:
    policy = car.policy({"g": {"read_security": {"min_interval_s": 10}, "read_odometer": {}}})
    pipeline = Pipeline(plan(policy))

    pipeline.feed([odometer(0, 1), odometer(4, 2), car.door(T0_MS + 1000, 3)])

    door = pipeline.counts()["g", "Vehicle.Cabin.Door.Row1.DriverSide.IsOpen"]
    assert (door.sampled_ns, door.dropped_ns) == (None, at(1))
    assert door.dropped_for is not None
    assert door.dropped_for.name == "NAMED"
    metres = pipeline.counts()["g", PATH]
    assert (metres.sampled_ns, metres.thinned_ns, metres.dropped_ns) == (at(0), at(4), None)
