import copy
import json
import tracemalloc
import zlib
from dataclasses import replace
from itertools import accumulate
from typing import Any

import cbor2
import pytest
from backports import zstd
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.core import cbor
from agent.core.codec import CODEC_ID, CODEC_ZLIB, CODEC_ZSTD, decode, encode
from agent.core.model import Batch, Column, Value
from agent.errors import EnvelopeRejected
from tests.columns import GEAR, SPEED, T0_MS, batch, batches, column, content, exact

NAN = float("nan")
INF = float("inf")


def packed(made: Batch) -> Any:
    """Return the CBOR value inside a plaintext, read by other libraries than the codec's."""
    return cbor2.loads(zstd.decompress(encode(made)))


def form(values: tuple[Value, ...], **members: Any) -> str:
    entry = packed(batch(column(values, **members)))["c"][0]
    return "".join(sorted(entry.keys() - {"p", "s", "d", "i", "u"}))


def naive(value: Any) -> list[tuple[Any, ...]]:
    """Read a batch as docs/envelope.md says, the slow way."""
    columns = []
    for entry in value["c"]:
        times = tuple(accumulate(value["t"][entry["i"]]))
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
        exactly = tuple(map(exact, values))
        columns.append((entry["s"], entry["p"], entry["d"], entry.get("u"), times, exactly))
    return columns


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
    assert list(map(content, decode(encode(made, codec=CODEC_ZLIB), codec=CODEC_ZLIB))) == list(
        map(content, made.columns)
    )


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
    assert held["c"][0].keys() == {"p", "s", "d", "u", "i", "n", "m"}


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

    assert packed(batch(SPEED, GEAR))["t"] == [[T0_MS, 100, 105]]
    assert [c["i"] for c in packed(batch(SPEED, later, GEAR))["c"]] == [0, 1, 0]


def test_scale_and_offset_come_back_where_they_were_used() -> None:
    warm = column((-39.5, -38.0), scale=0.5, offset=-40)
    tenths = column((0.1, 0.3), scale=7)

    columns = decode(encode(batch(warm, tenths, GEAR)))

    assert [(c.scale, c.offset) for c in columns] == [(0.5, -40.0), (0.1, 0), (1, 0)]


def test_the_default_is_zstd_where_there_is_a_wheel() -> None:
    assert CODEC_ID == CODEC_ZSTD
    assert encode(batch(SPEED)).startswith(bytes.fromhex("28b52ffd"))  # RFC 8878 section 3.1.1


def refused(data: bytes, **limits: int) -> str:
    with pytest.raises(EnvelopeRejected) as caught:
        decode(data, **limits)
    return caught.value.reason


def test_an_unknown_codec_is_refused() -> None:
    assert refused(encode(batch(SPEED)), codec=9) == "codec"


@pytest.mark.parametrize("codec", [CODEC_ZSTD, CODEC_ZLIB])
def test_not_exactly_one_compressed_piece_is_refused(codec: int) -> None:
    whole = encode(batch(SPEED), codec=codec)

    for data in (b"", whole[:-1], whole + b"\0", whole + whole, whole[:4], b"\0" * 40):
        assert refused(data, codec=codec) == "malformed"


@pytest.mark.parametrize(
    ("codec", "compress"), [(CODEC_ZSTD, zstd.compress), (CODEC_ZLIB, zlib.compress)]
)
def test_a_bomb_is_refused_before_it_unfolds(codec: int, compress: Any) -> None:
    bomb = compress(bytes(200_000_000))

    tracemalloc.start()
    reason = refused(bomb, codec=codec, max_bytes=1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert reason == "too-large"
    assert peak < 8_000_000


def test_a_frame_that_asks_for_a_huge_window_is_refused() -> None:
    held = zstd.decompress(encode(batch(SPEED)))

    def framed(window_log: int) -> bytes:
        packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: window_log})
        return packer.compress(held) + packer.flush()

    assert decode(framed(23))
    assert refused(framed(24)) == "malformed"


def test_columns_that_multiply_one_time_column_are_counted_before_they_are_built() -> None:
    entry = {"p": "P", "s": "S", "d": "float", "i": 0, "c": 1.5}
    held = cbor.encode({"t": [[0] * 10_000], "c": [entry] * 1_000})

    assert refused(zstd.compress(held), max_bytes=1_000_000) == "too-large"
    assert len(decode(zstd.compress(held), max_bytes=10_000_000)) == 1_000


def test_the_limit_itself_is_allowed() -> None:
    made = batch(SPEED)
    size = len(zstd.decompress(encode(made)))

    assert decode(encode(made), max_bytes=size)
    assert refused(encode(made), max_bytes=size - 1) == "too-large"


@given(st.binary(max_size=200))
@settings(max_examples=100)
def test_any_bytes_are_refused_in_our_words(data: bytes) -> None:
    for codec in (CODEC_ZSTD, CODEC_ZLIB):
        assert refused(data, codec=codec) in {"malformed", "too-large"}


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
        entry[data.draw(st.sampled_from("psduincmekvx"))] = forged
        entry.pop(data.draw(st.sampled_from("psduincmekvx")), None)
    else:
        held[place] = data.draw(st.one_of(st.just(forged), st.just([*held[place], forged])))

    try:
        columns = decode(zstd.compress(cbor.encode(held)))
    except EnvelopeRejected:
        return
    assert all(isinstance(c, Column) for c in columns)
    assert list(map(content, columns)) == naive(cbor2.loads(cbor.encode(held)))


def test_no_message_tells_a_value() -> None:
    held = packed(batch(column((1.5, 7777.25), scale=0.25)))
    held["c"][0]["n"].append(98765)

    with pytest.raises(EnvelopeRejected) as caught:
        decode(zstd.compress(cbor.encode(held)))

    assert "98765" not in json.dumps([caught.value.message, caught.value.hint])
