"""The steps from raw to permitted value, against a plain step-by-step model."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.decode import Field
from agent.core.expression import compile_expression
from agent.core.mapping import Choice, Entry
from agent.core.transform import INTEGER_RANGES, Drop, compile_transform
from agent.core.units import IDENTITY, Conversion

PLAIN = Field(
    name="S", start=0, length=16, byte_order="little_endian", is_signed=False, is_float=False,
    scale=1, offset=0, choices={}, unit=None, mux=None, is_j1939=False,
)  # fmt: skip
ENTRY = Entry(path="A.B", signal="S", interval_ns=0, on_change=False)


def transform(
    raw: float,
    *,
    field: Field = PLAIN,
    entry: Entry = ENTRY,
    conversion: Conversion = IDENTITY,
    datatype: str = "float",
    grid_deg: float | None = None,
    quantum: float | None = None,
) -> Any:
    function = compile_transform(
        field, entry, conversion, datatype=datatype, grid_deg=grid_deg, quantum=quantum
    )
    return function(raw)


def naive(
    raw: float,
    *,
    scale: float,
    offset: float,
    conversion: Conversion,
    valid: tuple[float, float] | None,
    grid_deg: float | None,
    quantum: float | None,
    datatype: str,
) -> object:
    value: float = raw * scale + offset
    if not math.isfinite(value):
        return Drop.RANGE
    value = value * conversion.factor + conversion.offset
    if valid is not None and (value < valid[0] or value > valid[1]):
        return Drop.INVALID
    if grid_deg is not None:
        value = round((math.floor(value / grid_deg) + 0.5) * grid_deg, 7)
    if quantum is not None:
        value = round(value / quantum) * quantum
    if datatype in INTEGER_RANGES:
        low, high = INTEGER_RANGES[datatype]
        rounded = round(value)
        return rounded if low <= rounded <= high else Drop.RANGE
    return float(value)


@given(
    raw=st.integers(0, 2**16 - 1),
    scale=st.sampled_from([1, 2, 0.1, 0.01, 1e-7, -0.5]),
    offset=st.sampled_from([0, -40, 0.5]),
    conversion=st.sampled_from([IDENTITY, Conversion(1000, 0), Conversion(1, -273.15)]),
    valid=st.sampled_from([None, (0, 250), (-100, 100.5)]),
    grid_deg=st.sampled_from([None, 0.01, 0.5, 1]),
    quantum=st.sampled_from([None, 0.5, 5, 0.1]),
    datatype=st.sampled_from(["float", "double", "uint8", "int16", "uint32", "int64"]),
)
def test_the_steps_come_in_their_order(**case: Any) -> None:
    field = replace(PLAIN, scale=case["scale"], offset=case["offset"])
    entry = replace(ENTRY, valid=case["valid"])

    value = transform(
        case["raw"],
        field=field,
        entry=entry,
        conversion=case["conversion"],
        datatype=case["datatype"],
        grid_deg=case["grid_deg"],
        quantum=case["quantum"],
    )

    expected = naive(**case)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(("raw", "value"), [(1, 0), (3, 2), (5, 2), (7, 4)])
def test_ties_go_to_even(raw: int, value: int) -> None:
    assert transform(raw, field=replace(PLAIN, scale=0.5), datatype="int16") == value


def test_a_position_snaps_to_the_centre_of_its_cell() -> None:
    field = replace(PLAIN, is_signed=True, scale=0.001, length=32)

    cells = {transform(raw, field=field, datatype="double", grid_deg=0.01) for raw in range(10)}

    assert cells == {0.005}
    assert transform(-1, field=field, datatype="double", grid_deg=0.01) == -0.005
    assert transform(10, field=field, datatype="double", grid_deg=0.01) == 0.015


def test_a_coordinate_never_passes_a_grid_too_fine_to_count() -> None:
    assert transform(5, datatype="double", grid_deg=1e-300) is Drop.RANGE


@pytest.mark.parametrize(
    ("raw", "datatype", "value"),
    [
        (255, "uint8", 255), (256, "uint8", Drop.RANGE), (127, "int8", 127),
        (128, "int8", Drop.RANGE), (65535, "float", 65535.0),
    ],
)  # fmt: skip
def test_what_the_datatype_cannot_hold_is_dropped(raw: int, datatype: str, value: object) -> None:
    assert transform(raw, datatype=datatype) == value


@pytest.mark.parametrize(("raw", "value"), [(255.4, 255), (255.5, Drop.RANGE), (-0.5, 0)])
def test_the_range_is_asked_after_rounding(raw: float, value: object) -> None:
    field = replace(PLAIN, is_float=True, length=32)

    assert transform(raw, field=field, datatype="uint8") == value


@pytest.mark.parametrize("raw", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("datatype", ["float", "double", "uint8", "boolean"])
@pytest.mark.parametrize("quantum", [None, 0.5])
def test_nan_and_infinities_are_no_values(raw: float, datatype: str, quantum: float | None) -> None:
    field = replace(PLAIN, is_float=True, length=64)

    assert transform(raw, field=field, datatype=datatype, quantum=quantum) is Drop.RANGE


def test_a_named_raw_value_is_no_measurement_for_a_number() -> None:
    field = replace(PLAIN, choices={255: "Invalid"})

    assert transform(255, field=field) is Drop.NAMED
    assert transform(254, field=field) == 254


def test_a_named_raw_value_is_the_text_of_a_text_path() -> None:
    field = replace(PLAIN, choices={1: "Closed"})

    assert transform(1, field=field, datatype="string") == "Closed"
    assert transform(2, field=field, datatype="string") is Drop.UNNAMED


@pytest.mark.parametrize(
    ("raw", "value"), [(0, False), (1, True), (2, Drop.RANGE), (3, Drop.NAMED)]
)
def test_0_and_1_are_a_boolean_whatever_they_are_called(raw: int, value: object) -> None:
    field = replace(PLAIN, choices={0: "Off", 1: "On", 3: "Fault"})

    assert transform(raw, field=field, datatype="boolean") is value


def test_a_mapping_matches_names_and_numbers_and_drops_the_rest() -> None:
    field = replace(PLAIN, choices={1: "D", 2: "R"}, scale=0.5)
    entry = replace(ENTRY, choices=(Choice("D", 1), Choice(4, 7), Choice("D", 9), Choice("X", 3)))

    values = [transform(raw, field=field, entry=entry, datatype="int8") for raw in (1, 2, 8, 9)]

    assert values == [1, Drop.UNMAPPED, 7, Drop.UNMAPPED]


@pytest.mark.parametrize(
    ("datatype", "targets"), [("boolean", (True, False)), ("string", ("OPEN", "SHUT"))]
)
def test_a_mapping_gives_booleans_and_text(datatype: str, targets: tuple[Any, Any]) -> None:
    field = replace(PLAIN, choices={1: "A", 2: "B"})
    entry = replace(ENTRY, choices=(Choice("A", targets[0]), Choice("B", targets[1])))

    values = [transform(raw, field=field, entry=entry, datatype=datatype) for raw in (1, 2, 3)]

    assert values == [targets[0], targets[1], Drop.UNMAPPED]


def test_math_comes_before_the_unit() -> None:
    entry = replace(ENTRY, math=compile_expression("x+1"))

    assert transform(2, entry=entry, conversion=Conversion(1000, 0)) == 3000
    assert transform(0, entry=replace(ENTRY, math=compile_expression("1/x"))) is Drop.MATH


def test_valid_is_in_the_catalogues_unit_and_before_the_quantum() -> None:
    entry = replace(ENTRY, valid=(0, 2000))

    assert transform(2, entry=entry, conversion=Conversion(1000, 0), quantum=1500) == 1500
    assert transform(3, entry=entry, conversion=Conversion(1000, 0)) is Drop.INVALID


@pytest.mark.parametrize(
    ("length", "raw", "dropped"),
    [
        (8, 0xFA, False), (8, 0xFB, True), (8, 0xFF, True),
        (16, 0xFAFF, False), (16, 0xFB00, True), (32, 0xFAFFFFFF, False), (32, 0xFE000000, True),
        (4, 0xF, False), (2, 3, False),
    ],
)  # fmt: skip
def test_j1939_error_and_not_available_ranges_are_dropped(
    length: int,
    raw: int,
    dropped: bool,  # noqa: FBT001 - a column of the table
) -> None:
    field = replace(PLAIN, length=length, is_j1939=True)

    assert (transform(raw, field=field) is Drop.NOT_AVAILABLE) is dropped
    assert transform(raw, field=replace(field, is_j1939=False)) == raw
    assert transform(raw, field=replace(field, is_signed=True)) == raw


@given(st.integers(0, 2**64 - 1), st.sampled_from(["uint64", "double", "int64"]))
def test_whole_numbers_stay_exact(raw: int, datatype: str) -> None:
    value = transform(raw, field=replace(PLAIN, length=64), datatype=datatype)

    if datatype == "double":
        assert value == float(raw)
    elif datatype == "uint64":
        assert value == raw
    else:
        assert value == (raw if raw < 2**63 else Drop.RANGE)


@pytest.mark.parametrize("raw", [10**17 + 3, 2**64 - 1, 2**53 * 10 + 1])
def test_no_long_integer_passes_its_quantum(raw: int) -> None:
    """Beyond 2**53 steps an integer has digits that a double has not."""
    field = replace(PLAIN, length=64)

    value = transform(raw, field=field, datatype="uint64", quantum=1000.0)

    assert value is Drop.RANGE or value % 1000 == 0


@pytest.mark.parametrize("limits", [{"quantum": 0.5}, {"grid_deg": 0.01}, {}])
@pytest.mark.parametrize("conversion", [IDENTITY, Conversion(1000, 0), Conversion(0.5, 1)])
@pytest.mark.parametrize("field", [
    replace(PLAIN, length=512, scale=10**299),
    replace(PLAIN, length=512, offset=10**299),
    replace(PLAIN, length=64, scale=10**299),
])  # fmt: skip
def test_numbers_that_no_double_holds_are_dropped_and_raise_nothing(
    field: Field, conversion: Conversion, limits: dict[str, float]
) -> None:
    value = transform(2**field.length - 1, field=field, conversion=conversion, **limits)

    assert value is Drop.RANGE or isinstance(value, float)


def test_math_that_gives_a_number_too_long_for_a_double_has_no_result() -> None:
    entry = replace(ENTRY, math=compile_expression("x*1" + "0" * 400))

    assert transform(1, entry=entry, quantum=0.5) is Drop.MATH


def test_the_first_line_of_a_mapping_that_fits_wins_by_name_or_by_number() -> None:
    field = replace(PLAIN, choices={0: "Off", 1: "On"})
    entry = replace(
        ENTRY, choices=(Choice(0, 10), Choice("Off", 20), Choice("On", 30), Choice(1, 40))
    )

    assert [transform(raw, field=field, entry=entry, datatype="int8") for raw in (0, 1)] == [10, 30]


@given(st.integers(0, 253_402_300_798_999))
def test_seconds_since_the_epoch_are_a_moment_in_text(ms: int) -> None:
    """As Python reads it back."""
    field = replace(PLAIN, length=48, scale=0.001)

    got = transform(ms, field=field, datatype="string")

    told = datetime.fromisoformat(got)
    assert got.endswith("Z")
    assert round((told - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(milliseconds=1)) == ms


@pytest.mark.parametrize("raw", [-1, 253_402_300_799, 10**18, math.nan])
def test_a_moment_outside_of_four_digit_years_is_dropped(raw: float) -> None:
    assert transform(raw, datatype="string") is Drop.RANGE
