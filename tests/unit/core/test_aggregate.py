"""Windows of values: the functions against plain Python, and what a policy may ask for."""

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.aggregate import (
    Accumulator,
    Aggregate,
    Function,
    parse_aggregate,
    reason_impossible,
    result_of,
)
from agent.core.model import NS_PER_S, Value
from agent.core.transform import Drop, compile_snap
from agent.errors import PolicyRejected

AS_IT_IS = compile_snap(grid_deg=None, quantum=None)


def filled(values: list[Any], snap: Any = AS_IT_IS) -> Accumulator:
    window = Accumulator(60, snap)
    for number, value in enumerate(values):
        window.enter(number, value)
    return window


def results(values: list[Any]) -> dict[str, Value | Drop]:
    return {name: filled(values).result(name) for name in Function}


@given(st.lists(st.integers(-(2**63), 2**64), min_size=1))
def test_integers_are_reduced_exactly(values: list[int]) -> None:
    found = results(values)

    assert found["mean"] == float(Fraction(sum(values), len(values)))
    assert isinstance(found["mean"], float)
    del found["mean"]
    assert found == {
        "min": min(values),
        "max": max(values),
        "count": len(values),
        "last": values[-1],
    }


@given(st.lists(st.floats(-1e300, 1e300), min_size=1))
def test_floats_are_reduced_as_python_does(values: list[float]) -> None:
    found = results(values)

    assert (found["min"], found["max"]) == (min(values), max(values))
    assert (found["count"], found["last"]) == (len(values), values[-1])
    exact = float(sum(map(Fraction, values)) / len(values))
    largest = max(map(abs, values))
    assert isinstance(found["mean"], float)
    assert math.isclose(found["mean"], exact, rel_tol=1e-15, abs_tol=largest * 1e-30)
    assert min(values) <= found["mean"] <= max(values)


@given(st.floats(-1e300, 1e300), st.integers(1, 1000))
def test_the_mean_of_equal_values_is_that_value(value: float, count: int) -> None:
    assert filled([value] * count).result("mean") == value


def test_a_mean_that_no_double_holds_is_dropped() -> None:
    assert filled([1.7e308, 1.7e308]).result("mean") is Drop.RANGE


@pytest.mark.parametrize("values", [["PARK", "DRIVE", "PARK"], [True, False, True]])
def test_texts_and_booleans_are_counted_and_the_last_is_kept(values: list[Any]) -> None:
    window = filled(values)

    assert (window.result("count"), window.result("last")) == (3, values[-1])


def test_a_mean_is_back_on_quantum_and_grid() -> None:
    fives = compile_snap(grid_deg=None, quantum=5)
    cells = compile_snap(grid_deg=0.01, quantum=None)

    assert filled([10, 15, 15, 15], fives).result("mean") == 15
    assert filled([10, 15], fives).result("mean") == 10  # 12.5: ties go to even.
    assert filled([52.515, 52.515, 52.525], cells).result("mean") == 52.515
    assert isinstance(filled([10, 15], fives).result("mean"), float)


@pytest.mark.parametrize(
    ("t_s", "start_s"), [(0, 0), (59.9, 0), (60, 60), (61, 60), (-1, -60), (-60, -60)]
)
def test_windows_are_aligned_to_the_epoch(t_s: float, start_s: int) -> None:
    window = Accumulator(60, AS_IT_IS)

    window.enter(round(t_s * NS_PER_S), 1)

    assert (window.is_open, window.start_ns, window.end_ns) == (
        True,
        start_s * NS_PER_S,
        (start_s + 60) * NS_PER_S,
    )


def test_a_cleared_window_holds_nothing() -> None:
    window = filled([7, 8])

    window.clear()

    assert not window.is_open
    assert all(getattr(window, name) in (None, 0) for name in ("_sum", "_last", "_most"))
    window.enter(0, 1)
    assert window.result("count") == 1


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("min", ("uint8", "percent")),
        ("max", ("uint8", "percent")),
        ("last", ("uint8", "percent")),
        ("mean", ("double", "percent")),
        ("count", ("uint64", None)),
        (None, ("uint8", "percent")),
    ],
)
def test_a_mean_is_a_double_and_a_count_has_no_unit(
    function: str | None, expected: tuple[str, str | None]
) -> None:
    assert result_of(function, "uint8", "percent") == expected


@pytest.mark.parametrize("datatype", ["boolean", "string"])
def test_only_numbers_have_an_order_and_a_mean(datatype: str) -> None:
    impossible = {fn for fn in Function if reason_impossible(fn, datatype)}

    assert impossible == {"min", "max", "mean"}
    assert not any(reason_impossible(fn, "uint8") for fn in Function)
    assert reason_impossible(Function.MEAN, datatype) == f"there is no mean of a {datatype}"


def refusal(raw: Any) -> PolicyRejected:
    with pytest.raises(PolicyRejected) as info:
        parse_aggregate(raw, "grant gr_1, scope read_x")
    assert "grant gr_1, scope read_x" in info.value.message
    return info.value


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ([], "type"),
        ({}, "missing-member"),
        ({"window_s": 60}, "missing-member"),
        ({"fn": ["max"]}, "missing-member"),
        ({"window_s": 60, "fn": ["max"], "align": 0}, "unknown-member"),
        ({"window_s": "60", "fn": ["max"]}, "type"),
        ({"window_s": True, "fn": ["max"]}, "type"),
        ({"window_s": 0, "fn": ["max"]}, "range"),
        ({"window_s": -60, "fn": ["max"]}, "range"),
        ({"window_s": 0.0004, "fn": ["max"]}, "range"),
        ({"window_s": 0.0015, "fn": ["max"]}, "range"),
        ({"window_s": 1.0000004, "fn": ["max"]}, "range"),
        ({"window_s": 1e300, "fn": ["max"]}, "range"),
        ({"window_s": 10**10, "fn": ["max"]}, "range"),
        ({"window_s": float("nan"), "fn": ["max"]}, "range"),
        ({"window_s": float("inf"), "fn": ["max"]}, "range"),
        ({"window_s": 60, "fn": "max"}, "type"),
        ({"window_s": 60, "fn": [1]}, "type"),
        ({"window_s": 60, "fn": []}, "range"),
        ({"window_s": 60, "fn": ["max", "max"]}, "duplicate"),
        ({"window_s": 60, "fn": ["max", "median"]}, "unknown-constraint"),
        ({"window_s": 60, "fn": ["MAX"]}, "unknown-constraint"),
    ],
)
def test_what_is_no_aggregate_is_refused(raw: Any, reason: str) -> None:
    assert refusal(raw).reason == reason


@pytest.mark.parametrize(
    ("window_s", "window_ms", "told_s"),
    [(60, 60_000, 60), (60.0, 60_000, 60), (0.1, 100, 0.1), (1.5, 1500, 1.5), (0.001, 1, 0.001)],
)
def test_a_window_is_whole_milliseconds(window_s: float, window_ms: int, told_s: float) -> None:
    found = parse_aggregate({"window_s": window_s, "fn": ["last", "min"]}, "p")

    assert found == Aggregate(window_ms, (Function.LAST, Function.MIN))
    assert (found.window_s, type(found.window_s)) == (told_s, type(told_s))


def test_a_mean_keeps_what_a_large_value_hides() -> None:
    """Whichever of the two is larger, the sum so far or what comes."""
    assert filled([1.0, 1e20, -1e20]).result("mean") == pytest.approx(1 / 3, rel=1e-15)
    assert filled([1e20, 1.0, -1e20]).result("mean") == pytest.approx(1 / 3, rel=1e-15)


def test_a_window_may_be_as_long_as_time_is_counted() -> None:
    longest = parse_aggregate({"window_s": 9_223_372_036.854, "fn": ["last"]}, "here")

    assert longest.window_ms == (2**63 - 1) // 10**6
    assert refusal({"window_s": 9_223_372_036.855, "fn": ["last"]}).reason == "range"
