import copy
import hashlib
import json
import lzma
import tracemalloc
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.core import cbor
from agent.core.catalogue import parse_catalogue
from agent.core.codec import decode, encode
from agent.core.knowncolumn import KNOWN_COLUMNS
from agent.core.model import Batch, Column, Value
from agent.errors import EnvelopeRejected
from tests.columns import GEAR, SPEED, T0_MS, batch, batches, column, content, exact

DOCUMENTED = Path(__file__).resolve().parents[3] / "docs" / "known-columns.json"
NAN = float("nan")
INF = float("inf")
DIGEST = "08e4930c727de670054d97632b9ff8d56542224140180dcef2a331c32d82b1cb"


def packed(made: Batch) -> Any:
    """Return the CBOR value inside a plaintext, read by other libraries than the codec's."""
    return cbor2.loads(lzma.decompress(encode(made)))


def form(values: tuple[Value, ...], **members: Any) -> str:
    entry = packed(batch(column(values, **members)))["c"][0]
    return "".join(sorted(entry.keys() - {"p", "s", "d", "i", "u", "f", "w"}))


def naive(value: Any) -> list[tuple[Any, ...]]:
    """Read a batch as docs/envelope.md says, the slow way."""
    columns = []
    for entry in value["c"]:
        first, *rest = value["t"][entry["i"]]
        times = (first,)
        for deviation in rest[1:]:
            times = (*times, times[-1] + rest[0] + deviation)
        numbers = list(accumulate(entry.get("n", [])))
        if "c" in entry:
            values = [entry["c"]] * len(times)
        elif "v" in entry:
            values = entry["v"]
        elif "m" in entry:
            values = [float(n) * entry["m"][0] + entry["m"][1] for n in numbers]
        elif "e" in entry:
            values = [float(f"{n}e-{entry['e']}") for n in numbers]
        elif "k" in entry:
            values = [entry["k"][n] for n in numbers]
        else:
            values = numbers
        path, scope, datatype, unit = naive_names(entry)
        exactly = tuple(map(exact, values))
        window_s = entry["w"] / 1000 if "w" in entry else None
        columns.append((scope, path, datatype, unit, times, exactly, entry.get("f"), window_s))
    return columns


def naive_names(entry: Any) -> list[Any]:
    """Return path, scope, datatype and unit of a column."""
    if not isinstance(entry["p"], int):
        return [entry["p"], entry["s"], entry["d"], entry.get("u")]
    path, scope, datatype, unit = json.loads(DOCUMENTED.read_bytes())[entry["p"]]
    results = {"mean": ["double", unit], "count": ["uint64", None]}
    return [path, scope, *results.get(entry.get("f"), [datatype, unit])]


@given(batches())
@example(batch(column((0.0, -0.0, 0.0, -0.0))))
@example(batch(column((0.5, -0.0, 0.5, -0.0), scale=0.5)))
@example(batch(column((0.0, 1.0), scale=-1.0, offset=-0.0)))
@example(batch(column((NAN, NAN, 1.0))))
@example(batch(column((INF, -INF, INF, INF, 1.0))))
@example(batch(column((1, True, 1.0, "1"))))
@example(batch(column((2**70, -(2**70), 0))))
@example(batch(column((1e308, -1e308, 5e-324), scale=1e-300, offset=1e308)))
@example(batch(column((1.0, 2.0), scale=INF, offset=NAN)))
@settings(max_examples=120, deadline=None)
def test_what_was_sampled_comes_back_type_by_type_and_bit_by_bit(made: Batch) -> None:
    columns = decode(encode(made))

    assert list(map(content, columns)) == list(map(content, made.columns))


@given(batches())
@settings(max_examples=100, deadline=None)
def test_a_slow_reader_written_from_the_document_reads_the_same(made: Batch) -> None:
    assert naive(packed(made)) == list(map(content, made.columns))


@given(batches())
@settings(max_examples=60, deadline=None)
def test_batches_with_equal_values_and_times_have_equal_bytes(made: Batch) -> None:
    """No object's identity, grant or recipient enters."""
    other = replace(
        made,
        grant_id="gr_other",
        rev=9,
        recipient="somebody",
        columns=tuple(
            replace(
                drawn,
                values=tuple(float(repr(v)) if type(v) is float else v for v in drawn.values),
                times_ms=tuple(int(str(t)) for t in drawn.times_ms),
            )
            for drawn in copy.deepcopy(made.columns)
        ),
    )

    assert encode(other) == encode(made)


def test_the_bytes_carry_neither_grant_nor_recipient() -> None:
    held = packed(batch(SPEED, grant_id="gr_secret", recipient="insurer"))

    assert held.keys() == {"t", "c"}
    assert held["c"][0].keys() == {"p", "i", "n", "m"}


@pytest.mark.parametrize(
    ("expected", "values", "members"),
    [
        ("c", (5,), {}),
        ("c", (5, 5, 5), {}),
        ("c", (-0.0, -0.0), {}),
        ("c", ("PARK", "PARK"), {}),
        ("c", (True, True), {}),
        ("n", (1, 2, 4), {"scale": 0.5}),
        ("n", (2**64, -(2**64)), {}),
        ("mn", (0.1, 3 * 0.1, 7 * 0.1), {"scale": 0.1}),
        ("mn", (-39.5, -39.0), {"scale": 0.5, "offset": -40}),
        ("en", (1.0, 2.0), {}),
        ("en", (0.1, 0.2, 0.3), {"scale": 0.2}),
        ("en", (48.1234567, 48.1234568), {}),
        ("kn", (1 / 3, 2 / 3, 1 / 3, 2 / 3), {"scale": 0.1}),
        ("kn", ("PARK", "DRIVE", "PARK", "PARK"), {}),
        ("kn", (INF, 1.0, INF, 1.0), {}),
        ("v", ("PARK", "DRIVE", "P"), {}),
        ("v", (1 / 3, 2 / 3, 1 / 7), {}),
        ("v", (True, False), {}),
        ("v", (1, 2.0), {}),
        ("v", (1, True), {}),
        ("v", (NAN, NAN), {}),
        ("v", (0.0, -0.0), {"scale": 0.5}),
        ("v", (2.0**53, 2.0**53 + 2), {"scale": 0.5}),
        ("v", (2.0**53, 1.0), {}),
        ("en", (2.0**53 - 1, 1.0), {}),
    ],
)
def test_integers_stand_only_where_they_give_every_value_back(
    expected: str, values: tuple[Value, ...], members: dict[str, Any]
) -> None:
    assert form(values, **members) == expected


def test_one_value_off_the_grid_keeps_a_column_out_of_integers() -> None:
    on_grid = tuple(n * 0.1 for n in range(50))

    assert form(on_grid, scale=0.1) == "mn"
    assert form((*on_grid[:-1], 4.900000000000001), scale=0.1) == "v"


def test_a_time_column_is_shared_only_by_identical_times() -> None:
    later = replace(GEAR, times_ms=(T0_MS, T0_MS + 100, T0_MS + 206))

    assert packed(batch(SPEED, GEAR))["t"] == [[T0_MS, 105, -5, 0]]
    assert [c["i"] for c in packed(batch(SPEED, later, GEAR))["c"]] == [0, 1, 0]


def test_scale_and_offset_come_back_where_they_were_used() -> None:
    warm = column((-39.5, -38.0), scale=0.5, offset=-40)
    tenths = column((0.1, 0.3), scale=7)

    columns = decode(encode(batch(warm, tenths, GEAR)))

    assert [(c.scale, c.offset) for c in columns] == [(0.5, -40.0), (0.1, 0), (1, 0)]


def test_times_are_a_period_and_deviations_from_it() -> None:
    late = column((1, 2, 3, 4), times_ms=(7, 27, 46, 66))
    alone = column((1,), times_ms=(-5,))

    assert packed(batch(late, alone))["t"] == [[7, 20, 0, -1, 0], [-5]]


def test_a_known_column_is_written_as_its_number() -> None:
    number = next(i for i, names in enumerate(KNOWN_COLUMNS) if names.path == "Vehicle.Speed")
    other_unit = replace(SPEED, unit="m/s")

    entries = packed(batch(SPEED, other_unit))["c"]

    assert entries[0].keys() == {"p", "i", "n", "m"}
    assert entries[0]["p"] == number
    assert entries[1].keys() == {"p", "s", "d", "u", "i", "n", "m"}


@pytest.mark.parametrize(
    ("fn", "datatype", "unit", "numbered"),
    [
        ("max", "float", "km/h", True),
        ("mean", "double", "km/h", True),
        ("count", "uint64", None, True),
        ("mean", "float", "km/h", False),
        ("count", "uint64", "km/h", False),
        (None, "double", "km/h", False),
    ],
)
def test_a_function_of_a_known_column_is_written_as_its_number(
    fn: str | None, datatype: str, unit: str | None, *, numbered: bool
) -> None:
    """Datatype and unit of a result follow from those of the path, unless they differ."""
    window_s = None if fn is None else 60
    made = replace(SPEED, datatype=datatype, unit=unit, fn=fn, window_s=window_s)

    (entry,) = packed(batch(made))["c"]

    assert isinstance(entry["p"], int) == numbered
    assert (entry.get("f"), entry.get("w")) == (fn, None if fn is None else 60_000)
    assert list(map(content, decode(encode(batch(made))))) == [content(made)]


def test_a_window_of_whole_seconds_comes_back_as_an_integer() -> None:
    made = [replace(SPEED, fn="max", window_s=s) for s in (60, 0.5, 1, 0.001)]

    columns = decode(encode(batch(*made)))

    assert [(c.window_s, type(c.window_s)) for c in columns] == [
        (60, int),
        (0.5, float),
        (1, int),
        (0.001, float),
    ]


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"f": "max"}, "malformed"),
        ({"w": 60_000}, "malformed"),
        ({"f": "max", "w": 0}, "malformed"),
        ({"f": "max", "w": -60_000}, "malformed"),
        ({"f": "max", "w": 60_000.0}, "malformed"),
        ({"f": "max", "w": True}, "malformed"),
        ({"f": "max", "w": 2**53}, "malformed"),
        ({"f": ["max"], "w": 60_000}, "malformed"),
        ({"f": 1, "w": 60_000}, "malformed"),
        ({"f": "median", "w": 60_000}, "codec"),
    ],
)
def test_a_function_without_its_window_or_a_later_one_is_refused(
    result: dict[str, Any], reason: str
) -> None:
    held = packed(batch(SPEED))
    held["c"][0] |= result

    assert refused(squeezed(cbor.encode(held))) == reason


def test_a_number_that_came_later_is_refused_as_such() -> None:
    held = packed(batch(SPEED))
    held["c"][0]["p"] = len(KNOWN_COLUMNS)

    assert refused(squeezed(cbor.encode(held))) == "codec"


def test_known_columns_are_documented_in_their_order() -> None:
    assert [tuple(names) for names in json.loads(DOCUMENTED.read_bytes())] == [*KNOWN_COLUMNS]
    assert len(set(KNOWN_COLUMNS)) == len(KNOWN_COLUMNS)


def test_the_known_columns_begin_as_they_always_did() -> None:
    """Numbers are on the wire: this digest of the first 117 never changes."""
    first = "\n".join(" ".join(map(str, names)) for names in KNOWN_COLUMNS[:117])

    assert hashlib.sha256(first.encode()).hexdigest() == DIGEST


def test_every_column_of_the_shipped_catalogue_has_a_number() -> None:
    """Whoever adds a path to the catalogue appends it to the known columns."""
    catalogue = parse_catalogue((DOCUMENTED.parents[1] / "config/catalogue.json").read_bytes())
    shipped = {
        (signal.path, scope.name, signal.datatype, signal.unit)
        for scope in catalogue.scopes.values()
        for signal in scope.signals
    }

    assert shipped <= {tuple(names) for names in KNOWN_COLUMNS}


def squeezed(held: bytes) -> bytes:
    """Compress with other parameters than the codec's."""
    return lzma.compress(held, lzma.FORMAT_ALONE, preset=1)


def refused(data: bytes, **limits: int) -> str:
    with pytest.raises(EnvelopeRejected) as caught:
        decode(data, **limits)
    return caught.value.reason


def test_an_unknown_codec_is_refused() -> None:
    assert refused(encode(batch(SPEED)), codec=9) == "codec"


def test_not_exactly_one_compressed_piece_is_refused() -> None:
    whole = encode(batch(SPEED))

    for data in (b"", whole[:-1], whole + b"\0", whole + whole, whole[:4], b"\0" * 40):
        assert refused(data) == "malformed"
    assert refused(lzma.compress(lzma.decompress(whole))) == "malformed", "another container"


def test_a_bomb_is_refused_before_it_unfolds() -> None:
    bomb = squeezed(bytes(50_000_000))

    tracemalloc.start()
    reason = refused(bomb, max_bytes=1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert reason == "too-large"
    assert peak < 8_000_000


def test_a_piece_that_asks_for_much_memory_is_refused() -> None:
    held = lzma.decompress(encode(batch(SPEED)))

    def asking(dict_size: int) -> bytes:
        filters = [{"id": lzma.FILTER_LZMA1, "preset": 1, "dict_size": dict_size}]
        return lzma.compress(held, lzma.FORMAT_ALONE, filters=filters)

    assert decode(asking(1 << 20))
    assert refused(asking(1 << 23)) == "malformed"


def test_columns_that_multiply_one_time_column_are_counted_before_they_are_built() -> None:
    entry = {"p": "P", "s": "S", "d": "float", "i": 0, "c": 1.5}
    held = cbor.encode({"t": [[0] * 10_001], "c": [entry] * 1_000})

    assert refused(squeezed(held), max_bytes=1_000_000) == "too-large"
    assert len(decode(squeezed(held), max_bytes=10_000_000)) == 1_000


def test_a_long_integer_and_many_zeros_are_refused_before_they_are_summed() -> None:
    """60 KB of CBOR, 136 bytes as sent, were 425 MB of sums."""
    count, names = 60_000, {"p": "P", "s": "S", "d": "int64", "i": 0}
    times = [0, 1000, *[0] * (count - 2)]
    wide = [1 << 500, *[0] * (count - 1)]
    bombs = (
        {"t": [times], "c": [{**names, "n": [*wide[:-1], -1] * 5}]},
        {"t": [wide], "c": [{**names, "c": 1}]},
        {"t": [[0, 1 << 500, *times[2:]]], "c": [{**names, "c": 1}]},
    )

    for bomb, reason in zip(bombs, ("too-large", "malformed", "malformed"), strict=True):
        data = squeezed(cbor.encode(bomb))
        tracemalloc.start()
        assert refused(data) == reason
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 16_000_000


def test_the_limit_itself_is_allowed() -> None:
    made = batch(SPEED)
    size = len(lzma.decompress(encode(made)))

    assert decode(encode(made), max_bytes=size)
    assert refused(encode(made), max_bytes=size - 1) == "too-large"


@given(st.binary(max_size=200))
@settings(max_examples=100)
def test_any_bytes_are_refused_in_our_words(data: bytes) -> None:
    assert refused(data) in {"malformed", "too-large"}


_PIECES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 3),
        st.sampled_from([2**53, 2**64, -(2**70), 10, 9]),
        st.floats(),
        st.text(max_size=2),
        st.binary(max_size=2),
    ),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(batches(), st.data())
@settings(max_examples=120, deadline=None)
def test_a_batch_with_a_forged_part_gives_columns_or_our_error(
    made: Batch, data: st.DataObject
) -> None:
    held = packed(made)
    place = data.draw(st.sampled_from(["t", "c", "entry", "entry", "entry"]))
    forged = data.draw(_PIECES)
    if place == "entry":
        entry = data.draw(st.sampled_from(held["c"]))
        entry[data.draw(st.sampled_from("psduincmekvxfw"))] = forged
        entry.pop(data.draw(st.sampled_from("psduincmekvxfw")), None)
    else:
        held[place] = data.draw(st.one_of(st.just(forged), st.just([*held[place], forged])))

    try:
        columns = decode(squeezed(cbor.encode(held)))
    except EnvelopeRejected:
        return
    assert all(isinstance(c, Column) for c in columns)
    assert list(map(content, columns)) == naive(cbor2.loads(cbor.encode(held)))


def test_no_message_tells_a_value() -> None:
    held = packed(batch(column((1.5, 7777.25), scale=0.25)))
    held["c"][0]["n"].append(98765)

    with pytest.raises(EnvelopeRejected) as caught:
        decode(squeezed(cbor.encode(held)))

    assert "98765" not in json.dumps([caught.value.message, caught.value.hint])
