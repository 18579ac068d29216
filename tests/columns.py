"""Columns for tests of codec and envelope, and what it means that two are the same."""

import struct
from typing import Any

from hypothesis import strategies as st

from agent.core.model import Batch, Column, Value

T0_MS = 1_795_468_800_000

SPEED = Column(
    scope="read_speedometer",
    path="Vehicle.Speed",
    datatype="float",
    unit="km/h",
    scale=0.01,
    offset=0,
    times_ms=(T0_MS, T0_MS + 100, T0_MS + 205),
    values=(7130 * 0.01, 7135 * 0.01, 0.0),
)
GEAR = Column(
    scope="read_gear",
    path="Vehicle.Powertrain.Transmission.CurrentGear",
    datatype="int8",
    unit=None,
    scale=1,
    offset=0,
    times_ms=(T0_MS, T0_MS + 100, T0_MS + 205),
    values=(3, 4, 3),
)


def column(values: tuple[Value, ...], **members: Any) -> Column:
    """Return a column with these values, a second apart."""
    names = {
        "scope": "read_x",
        "path": "Vehicle.X",
        "datatype": "double",
        "unit": None,
        "scale": 1,
        "offset": 0,
        "times_ms": tuple(range(T0_MS, T0_MS + 1000 * len(values), 1000)),
    }
    return Column(values=values, **{**names, **members})


def batch(*columns: Column, grant_id: str = "gr_1", recipient: str = "fleet-x") -> Batch:
    """Return a batch of these columns."""
    return Batch(grant_id=grant_id, rev=1, recipient=recipient, columns=columns)


def exact(value: Value) -> tuple[str, Any]:
    """Return a value such that equal means the same type and the same bits; all NaN are one."""
    if isinstance(value, float):
        return "float", "nan" if value != value else struct.pack(">d", value)  # noqa: PLR0124
    return type(value).__name__, value


def content(column: Column) -> tuple[Any, ...]:
    """Return what must survive encoding: all but the hints."""
    return (
        column.scope,
        column.path,
        column.datatype,
        column.unit,
        column.times_ms,
        tuple(map(exact, column.values)),
        column.fn,
        column.window_s,
    )


_ANY_VALUE = st.one_of(
    st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from([0.0, -0.0])
)
_SCALES = st.sampled_from([0.1, 0.01, 0.0078125, 1e-7, 0.05, 5, -0.5, 1.0 / 3, 1, 0, 1e300])
_OFFSETS = st.sampled_from([0, -40, 0.5, -0.0, -1e3, 1e308])


@st.composite
def columns(draw: st.DrawFn) -> Column:
    """Draw a column of one of the kinds that a pipeline makes, or of anything at all."""
    count = draw(st.integers(1, 40))
    scale, offset = draw(_SCALES), draw(_OFFSETS)
    raw = st.integers(-(2**17), 2**17)
    element = draw(
        st.sampled_from(
            [
                st.booleans(),
                st.integers(),
                raw,
                st.floats(),
                st.sampled_from(["PARK", "DRIVE", ""]),
                st.text(max_size=8),
                st.sampled_from([1.5, -0.0, 0.0, 2 / 3]),
                raw.map(lambda n: float(n * scale + offset)),
                raw.map(lambda n: n / 100),
                raw.map(lambda n: (n * 0.01) * 1.609344),
                st.just(draw(_ANY_VALUE)),
                _ANY_VALUE,
            ]
        )
    )
    first = draw(st.integers(-(10**12), 10**13))
    steps = draw(st.lists(st.integers(-200, 1000), min_size=count - 1, max_size=count - 1))
    times = [first]
    for step in steps:
        times.append(times[-1] + step)
    fn = draw(st.sampled_from([None, None, "min", "max", "mean", "count", "last"]))
    return Column(
        scope=draw(st.sampled_from(["read_speedometer", "read_odometer"])),
        path=draw(st.text(max_size=10)),
        datatype=draw(st.sampled_from(["float", "int8", "string"])),
        unit=draw(st.one_of(st.none(), st.text(max_size=4))),
        scale=scale,
        offset=offset,
        times_ms=tuple(times),
        values=tuple(draw(st.lists(element, min_size=count, max_size=count))),
        fn=fn,
        window_s=None if fn is None else draw(st.sampled_from([60, 3600, 1, 0.1, 2.5])),
    )


def batches() -> st.SearchStrategy[Batch]:
    """Draw batches of a few columns, some of which share their times."""
    return st.lists(columns(), min_size=1, max_size=5).map(lambda drawn: batch(*drawn))
