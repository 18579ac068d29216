"""Conversions against the definitions of the units."""

import pytest

from agent.core.units import conversion, same_unit


@pytest.mark.parametrize(
    ("value", "source", "target", "expected"),
    [
        (1, "km", "m", 1000),
        (1, "mile", "m", 1609.344),
        (36, "km/h", "m/s", 10),
        (10, "m/s", "km/h", 36),
        (60, "mph", "km/h", 96.56064),
        (0, "K", "Celsius", -273.15),
        (212, "Fahrenheit", "Celsius", 100),
        (-40, "Fahrenheit", "Celsius", -40),
        (21.5, "celsius", "Celsius", 21.5),
        (1, "bar", "kPa", 100),
        (1, "psi", "kPa", 6.894757293168361),
        (1, "kW", "W", 1000),
        (3.6, "MJ", "kWh", 1),
        (2, "h", "s", 7200),
        (0.5, "ratio", "percent", 50),
        (1, "rad", "degrees", 57.29577951308232),
        (1, "Hz", "rpm", 60),
    ],
)
def test_a_value_converts_by_the_units_definition(
    value: float, source: str, target: str, expected: float
) -> None:
    found = conversion(source, target)

    assert found is not None
    assert value * found.factor + found.offset == pytest.approx(expected, rel=1e-12, abs=1e-9)


@pytest.mark.parametrize(("source", "target"), [("km", "s"), ("km/h", "m"), ("x", "m"), ("", "m")])
def test_nothing_converts_between_quantities_or_unknown_units(source: str, target: str) -> None:
    assert conversion(source, target) is None


def test_an_unknown_unit_is_itself() -> None:
    found = conversion("iso8601", "iso8601")

    assert found is not None
    assert found.is_identity


def test_whole_factors_are_integers_so_that_integers_stay_integers() -> None:
    found = conversion("km", "m")

    assert found is not None
    assert type(found.factor) is int
    assert type(found.offset) is int


@pytest.mark.parametrize(
    ("one", "other"),
    [("kw", "kW"), ("Km/h", "km/h"), ("MPH", "mph"), ("L", "l"), ("Degrees", "degrees")],
)
def test_case_does_not_matter_where_it_tells_no_units_apart(one: str, other: str) -> None:
    assert same_unit(one, other)
    assert not same_unit("mW", "MW")
    assert conversion("mw", "W") is None


@pytest.mark.parametrize(("one", "other"), [("km/h", "KPH"), ("°C", "Celsius"), ("%", "percent")])
def test_dbc_spellings_are_recognised(one: str, other: str) -> None:
    assert same_unit(one, other)


def test_different_units_are_not_the_same() -> None:
    assert not same_unit("km/h", "mph")
    assert not same_unit("foo", "bar2")
