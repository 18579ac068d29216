from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.catalogue import ScopeClass
from agent.core.constraint import Constraints, parse_constraints
from agent.errors import PolicyRejected
from tests.policydoc import catalogue

GRANTABLE = sorted(name for name, c in catalogue().classes.items() if c.grantable)


def parse(class_name: str, **raw: Any) -> Constraints:
    return parse_constraints(raw, catalogue().classes[class_name], grant_id="gr_1", scope="read_x")


def refusal(class_name: str, **raw: Any) -> PolicyRejected:
    with pytest.raises(PolicyRejected) as info:
        parse(class_name, **raw)
    return info.value


@pytest.mark.parametrize(
    ("class_name", "expected"),
    [
        ("static", Constraints(10_000_000_000, None, None, precise=False, once=False)),
        ("condition", Constraints(10_000_000_000, None, None, precise=False, once=False)),
        ("usage", Constraints(10_000_000_000, None, None, precise=False, once=False)),
        ("cabin", Constraints(10_000_000_000, None, None, precise=False, once=False)),
        ("driver_behaviour", Constraints(10_000_000_000, None, None, precise=False, once=False)),
        ("location", Constraints(60_000_000_000, None, 0.01, precise=False, once=False)),
        ("identity", Constraints(0, None, None, precise=False, once=True)),
    ],
)
def test_a_grant_that_names_nothing_takes_the_defaults_of_its_class(
    class_name: str, expected: Constraints
) -> None:
    assert parse(class_name) == expected


@pytest.mark.parametrize(
    ("class_name", "at", "beyond"),
    [("cabin", 1, 0.999), ("driver_behaviour", 0.1, 0.09), ("location", 1, 0.5)],
)
def test_the_interval_may_reach_its_ceiling_and_not_pass_it(
    class_name: str, at: float, beyond: float
) -> None:
    assert parse(class_name, min_interval_s=at).min_interval_ns == round(at * 1e9)

    refused = refusal(class_name, min_interval_s=beyond)

    assert refused.reason == "ceiling"
    for fact in ("gr_1", "read_x", "min_interval_s", str(beyond), class_name, f", {at}"):
        assert fact in refused.message


@pytest.mark.parametrize("class_name", ["static", "condition", "usage", "identity"])
def test_a_class_without_a_ceiling_gives_every_frame(class_name: str) -> None:
    assert parse(class_name, min_interval_s=0).min_interval_ns == 0


def test_identity_is_given_once_and_never_otherwise() -> None:
    assert parse("identity", once=True).once

    refused = refusal("identity", once=False)

    assert refused.reason == "ceiling"
    assert "once" in refused.message


def test_any_class_may_be_asked_for_once() -> None:
    assert parse("usage", once=True).once
    assert not parse("usage", once=False).once


def test_precise_lifts_the_default_grid_and_leaves_the_interval() -> None:
    constraints = parse("location", precise=True)

    assert (constraints.grid_deg, constraints.precise) == (None, True)
    assert constraints.min_interval_ns == 60_000_000_000


def test_a_class_whose_ceiling_does_not_say_precise_keeps_its_grid() -> None:
    home = ScopeClass("home", grantable=True, defaults={"grid_deg": 0.1}, ceilings={})

    with pytest.raises(PolicyRejected, match="precise true is looser than the ceiling") as info:
        parse_constraints({"precise": True}, home, grant_id="g", scope="s")

    assert info.value.reason == "ceiling"


def test_not_precise_keeps_the_grid() -> None:
    assert parse("location", precise=False).grid_deg == 0.01
    assert parse("location", precise=False, grid_deg=0.5).grid_deg == 0.5


def test_precise_with_a_grid_contradicts_itself_in_every_class() -> None:
    for class_name in GRANTABLE:
        assert refusal(class_name, precise=True, grid_deg=0.1).reason == "contradiction"


def test_grid_and_precise_are_accepted_where_there_is_nothing_to_blur() -> None:
    assert parse("usage", grid_deg=0.1).min_interval_ns == 10_000_000_000
    assert parse("usage", precise=True).grid_deg is None


MAX_OF_A_MINUTE = {"window_s": 60, "fn": ["max"]}


def test_the_window_of_an_aggregate_is_its_interval_whatever_the_default() -> None:
    constraints = parse("usage", aggregate={"window_s": 0.5, "fn": ["max", "count"]})

    assert constraints.aggregate is not None
    assert constraints.aggregate.functions == ("max", "count")
    assert constraints.min_interval_ns == 500_000_000
    assert parse("usage").aggregate is None


@pytest.mark.parametrize(
    ("class_name", "at", "beyond"),
    [("cabin", 1, 0.999), ("driver_behaviour", 0.1, 0.099), ("location", 1, 0.5)],
)
def test_a_window_may_reach_the_ceiling_of_the_interval_and_not_pass_it(
    class_name: str, at: float, beyond: float
) -> None:
    assert parse(class_name, aggregate={"window_s": at, "fn": ["last"]}).aggregate is not None

    refused = refusal(class_name, aggregate={"window_s": beyond, "fn": ["last"]})

    assert refused.reason == "ceiling"
    for fact in ("gr_1", "read_x", f"aggregate.window_s {beyond}", class_name, f" {at}"):
        assert fact in refused.message


def test_identity_is_not_given_in_windows() -> None:
    for more in ({}, {"once": False}, {"once": True}):
        refused = refusal("identity", aggregate=MAX_OF_A_MINUTE, **more)
        assert (refused.reason, "once true" in refused.message) == ("ceiling", True)


@pytest.mark.parametrize("other", [{"min_interval_s": 0}, {"min_interval_s": 60}, {"once": True}])
def test_an_aggregate_contradicts_another_rule_of_when(other: dict[str, Any]) -> None:
    assert refusal("usage", aggregate=MAX_OF_A_MINUTE, **other).reason == "contradiction"


def test_an_aggregate_contradicts_a_default_of_once() -> None:
    card = ScopeClass("card", grantable=True, defaults={"once": True}, ceilings={})

    with pytest.raises(PolicyRejected) as info:
        parse_constraints({"aggregate": MAX_OF_A_MINUTE}, card, grant_id="g", scope="s")

    assert info.value.reason == "contradiction"


def test_an_aggregate_keeps_grid_quantum_and_windows() -> None:
    constraints = parse("location", aggregate=MAX_OF_A_MINUTE, quantum=2)

    assert (constraints.grid_deg, constraints.quantum) == (0.01, 2)
    assert parse("location", aggregate=MAX_OF_A_MINUTE, precise=True).grid_deg is None


def test_windows_are_read_with_grant_and_scope_named() -> None:
    office = {"days": "1-5", "from": "07:00", "to": "19:00", "tz": "Europe/Berlin"}
    found = parse("location", windows=[office]).windows

    assert found is not None
    assert found.windows[0].zone == "Europe/Berlin"
    assert parse("location").windows is None
    refused = refusal("location", windows=[{**office, "tz": "Mars/Olympus"}])
    assert refused.reason == "unknown-zone"
    assert all(fact in refused.message for fact in ("gr_1", "read_x", "Mars/Olympus"))


@pytest.mark.parametrize("name", ["min_interval_ms", "", "Once", "max_samples"])
def test_an_unknown_constraint_rejects_the_policy(name: str) -> None:
    refused = refusal("usage", **{name: 1})

    assert refused.reason == "unknown-constraint"
    assert refused.hint is not None
    assert "min_interval_s" in refused.hint


@pytest.mark.parametrize("name", ["min_interval_s", "quantum", "grid_deg"])
@pytest.mark.parametrize("value", [True, "1", None, [1], {"s": 1}])
def test_only_a_number_is_a_number(name: str, value: object) -> None:
    assert refusal("location", **{name: value}).reason == "type"


@pytest.mark.parametrize("name", ["once", "precise"])
@pytest.mark.parametrize("value", [1, 0, "true", None])
def test_only_true_and_false_are_booleans(name: str, value: object) -> None:
    assert refusal("usage", **{name: value}).reason == "type"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_interval_s", -1),
        ("min_interval_s", -1e-9),
        ("min_interval_s", float("inf")),
        ("min_interval_s", float("nan")),
        ("min_interval_s", 1e300),
        ("min_interval_s", 2**53 - 1),
        ("quantum", 0),
        ("quantum", 0.0),
        ("quantum", -0.0),
        ("quantum", -5),
        ("quantum", float("inf")),
        ("grid_deg", 0),
        ("grid_deg", -0.01),
        ("grid_deg", 9e-8),  # Finer than what is printed: no grid, without saying so.
        ("grid_deg", 180.1),
    ],
)
def test_a_number_out_of_range_rejects_the_policy(name: str, value: float) -> None:
    assert refusal("location", **{name: value}).reason == "range"


@pytest.mark.parametrize(
    ("name", "value"), [("grid_deg", 1e-7), ("grid_deg", 180), ("quantum", 1e-9), ("quantum", 1e9)]
)
def test_the_ends_of_a_range_belong_to_it(name: str, value: float) -> None:
    assert getattr(parse("location", **{name: value}), name) == value


@pytest.mark.parametrize("raw", [None, [], "once", 1])
def test_constraints_are_an_object(raw: object) -> None:
    with pytest.raises(PolicyRejected) as info:
        parse_constraints(raw, catalogue().classes["usage"], grant_id="g", scope="s")

    assert info.value.reason == "type"


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(GRANTABLE),
    st.fixed_dictionaries(
        {},
        optional={
            "min_interval_s": st.floats(0, 200) | st.integers(0, 200),
            "quantum": st.floats(0.001, 1e6),
            "grid_deg": st.floats(0.0001, 10),
            "precise": st.booleans(),
            "once": st.booleans(),
        },
    ),
)
def test_what_is_accepted_never_goes_beyond_the_table(class_name: str, raw: dict[str, Any]) -> None:
    floor_s = {"cabin": 1, "driver_behaviour": 0.1, "location": 1}.get(class_name, 0)
    try:
        constraints = parse(class_name, **raw)
    except PolicyRejected as refused:
        too_fast = raw.get("min_interval_s", 1000) < floor_s
        again = class_name == "identity" and raw.get("once") is False
        both = bool(raw.get("precise")) and "grid_deg" in raw
        assert {"ceiling": too_fast or again, "contradiction": both}[refused.reason]  # noqa: PT017
        return

    assert constraints.min_interval_ns >= round(floor_s * 1e9)
    assert constraints.once or class_name != "identity"
    if class_name == "location":
        assert (constraints.grid_deg is None) == (raw.get("precise") is True)
    if "min_interval_s" in raw:
        assert constraints.min_interval_ns == round(raw["min_interval_s"] * 1e9)


def test_an_interval_may_be_as_long_as_time_is_counted() -> None:
    assert parse("usage", min_interval_s=9_223_372_036).min_interval_ns == 9_223_372_036 * 10**9

    assert refusal("usage", min_interval_s=9_223_372_037).reason == "range"


def test_only_who_asks_for_precise_positions_needs_them_allowed() -> None:
    """A default grid that no ceiling lifts may be moved, not taken away."""
    blurred = replace(catalogue().classes["location"], defaults={"grid_deg": 0.01}, ceilings={})

    def asked(raw: dict[str, Any]) -> Constraints:
        return parse_constraints(raw, blurred, grant_id="gr_1", scope="read_x")

    assert asked({}).grid_deg == 0.01
    assert asked({"grid_deg": 0.5}).grid_deg == 0.5
    with pytest.raises(PolicyRejected, match="looser than the ceiling"):
        asked({"precise": True})
