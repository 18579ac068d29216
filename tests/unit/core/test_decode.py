import math
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.dbc import Message, parse_dbc
from agent.core.decode import Field, Mux, compile_extract, field_of, physical
from tests import dbc_oracle

LITTLE, BIG = "little_endian", "big_endian"


def layout(
    start: int,
    length: int,
    byte_order: str = LITTLE,
    *,
    name: str = "S",
    is_signed: bool = False,
    is_float: bool = False,
    scale: float = 1,
    offset: float = 0,
    mux: Mux | None = None,
) -> Field:
    return Field(
        name=name,
        start=start,
        length=length,
        byte_order=byte_order,
        is_signed=is_signed,
        is_float=is_float,
        scale=scale,
        offset=offset,
        choices={},
        unit=None,
        mux=mux,
        is_j1939=False,
    )


def message_of(*lines: str) -> Message:
    (message,) = parse_dbc("\n".join(["BO_ 1 A: 8 X", *lines]).encode(), name="a.dbc").messages
    return message


@pytest.mark.parametrize(
    ("field", "payload", "raw"),
    [
        (layout(0, 8), "a5", 0xA5),
        (layout(4, 4), "a5", 0xA),
        (layout(2, 3), "a5", 0b001),
        (layout(0, 16), "3412", 0x1234),
        (layout(4, 12), "3412", 0x123),
        (layout(7, 16, BIG), "1234", 0x1234),
        (layout(3, 12, BIG), "1234", 0x234),
        (layout(7, 12, BIG), "1234", 0x123),
        (layout(0, 2, BIG), "0180", 0b11),
        (layout(7, 8, is_signed=True), "8000", 1),
        (layout(0, 8, is_signed=True), "80", -128),
        (layout(0, 16, is_signed=True), "feff", -2),
        (layout(1, 3, is_signed=True), "0e", -1),
        (layout(0, 64), "ff" * 8, 2**64 - 1),
        (layout(0, 64, is_signed=True), "ff" * 8, -1),
        (layout(3, 64), "f8" + "ff" * 7 + "07", 2**64 - 1),
        (layout(0, 32, is_float=True), struct.pack("<f", 1.5).hex(), 1.5),
        (layout(7, 64, BIG, is_float=True), struct.pack(">d", -0.1).hex(), -0.1),
        (layout(8, 16, is_float=True), "00003c", 1.0),
        (layout(511, 1), "00" * 63 + "80", 1),
    ],
)
def test_known_payloads_have_known_values(field: Field, payload: str, raw: float) -> None:
    """Worked out by hand from the drawing of the two bit orders."""
    assert compile_extract([field])(bytes.fromhex(payload)) == (raw,)


def test_a_signal_is_absent_until_its_last_byte_was_received() -> None:
    """Absent is not zero, and each signal is judged by itself."""
    extract = compile_extract([layout(0, 4), layout(4, 8), layout(23, 12, BIG), layout(7, 1, BIG)])

    assert extract(b"") == (None, None, None, None)
    assert extract(b"\x81") == (1, None, None, 1)
    assert extract(b"\x81\xff") == (1, 0xF8, None, 1)
    assert extract(b"\x81\xff\x12") == (1, 0xF8, None, 1)
    assert extract(b"\x81\xff\x12\x34") == (1, 0xF8, 0x123, 1)


def test_bytes_behind_the_signals_do_not_matter() -> None:
    """A frame longer than its message decodes as if it were cut."""
    extract = compile_extract([layout(0, 20), layout(20, 20), layout(40, 20)])
    payload = bytes(range(50, 58))

    assert extract(payload + b"\xff" * 56) == extract(payload)


@pytest.mark.parametrize("byte_order", [LITTLE, BIG])
def test_signals_that_share_a_word_are_as_they_are_alone(byte_order: str) -> None:
    """Several wide signals are cut from one number; one alone is not."""
    fields = [layout(start, 19, byte_order, is_signed=start > 30) for start in (3, 12, 34, 45, 96)]
    payload = bytes(range(101, 133))

    together = compile_extract(fields)(payload)

    assert together == tuple(compile_extract([field])(payload)[0] for field in fields)
    assert len(set(together)) == len(fields)


def test_nothing_wanted_gives_nothing() -> None:
    """An empty plan is a plan."""
    assert compile_extract([])(b"\x01") == ()


def test_the_same_signal_may_be_wanted_twice() -> None:
    """Two grants may share one signal."""
    assert compile_extract([layout(0, 8), layout(0, 8)])(b"\x07") == (7, 7)


SELECTOR = layout(0, 8, name="M")


def under(selector: Field, *ids: tuple[int, int], start: int = 16) -> Field:
    return layout(start, 8, mux=Mux(selector, ids))


@pytest.mark.parametrize(
    ("ids", "selected", "others"),
    [
        (((3, 3),), [3], [0, 2, 4, 255]),
        (((3, 5), (9, 9)), [3, 5, 9], [2, 6, 8, 10]),
        (((3, 1 << 20), (1 << 40, 1 << 50)), [3, 200, 255], [0, 2]),
        ((), [], [0, 1, 255]),
    ],
)
def test_a_multiplexed_signal_is_there_for_its_ids_only(
    ids: tuple[tuple[int, int], ...], selected: list[int], others: list[int]
) -> None:
    """Single ids, ranges, and ranges too large to list."""
    extract = compile_extract([under(SELECTOR, *ids)])

    for value in selected:
        assert extract(bytes([value, 0, 42])) == (42,)
        assert extract(bytes([value, 0])) == (None,)
    for value in others:
        assert extract(bytes([value, 0, 42])) == (None,)


@pytest.mark.parametrize("ids", [((1, 1),), ((1, 2), (4, 4)), ((1, 1 << 30),)])
def test_what_an_absent_multiplexer_selects_is_absent(ids: tuple[tuple[int, int], ...]) -> None:
    """Also where its multiplexer lies behind the received bytes, or is itself not selected."""
    inner = layout(24, 8, name="N", mux=Mux(SELECTOR, ((7, 7),)))
    extract = compile_extract([under(inner, *ids), inner])

    assert extract(bytes([7, 0, 42, 1])) == (42, 1)
    assert extract(bytes([6, 0, 42, 1])) == (None, None)
    assert extract(bytes([7, 0, 42])) == (None, None)


def test_the_multiplexer_counts_raw() -> None:
    """Neither its scale nor its names change what it selects."""
    message = message_of(
        ' SG_ M M : 0|8@1+ (10,5) [0|0] "" X',
        ' SG_ S m2 : 8|8@1+ (1,0) [0|0] "" X',
        'VAL_ 1 M 1 "two" 2 "two" ;',
    )

    assert compile_extract([field_of(message, "S")])(b"\x02\x09") == (9,)


def test_overlapping_and_overlong_neighbours_do_not_hide_a_signal() -> None:
    """A whole-message decoder fails on this message."""
    message = message_of(
        ' SG_ A : 0|12@1+ (1,0) [0|0] "" X',
        ' SG_ B : 8|16@1+ (1,0) [0|0] "" X',
        ' SG_ C : 56|24@1+ (1,0) [0|0] "" X',
    )
    extract = compile_extract([field_of(message, name) for name in "ABC"])

    assert extract(bytes(range(8))) == (0x100, 0x0201, None)
    assert extract(bytes(range(10))) == (0x100, 0x0201, 0x090807)


def test_names_from_the_file_never_become_code() -> None:
    """Whatever they are, the function works and nothing else happens."""
    hostile = "v0=1/0#'],import_os"
    message = message_of(
        f' SG_ {hostile} M : 0|8@1+ (1,0) [0|0] "{hostile}" X',
        f' SG_ {hostile}2 m1 : 8|8@1+ (1,0) [0|0] "" X',
    )

    fields = [field_of(message, signal.name) for signal in message.signals]

    assert compile_extract(fields)(b"\x01\x02") == (1, 2)


def test_numbers_have_the_type_that_cantools_gives() -> None:
    """Whole where scale, offset and raw value are whole, written with a point or not."""
    message = message_of(
        ' SG_ A : 0|8@1+ (2.0,1e1) [0|0] "" X',
        ' SG_ B : 0|8@1+ (0.5,0) [0|0] "" X',
        ' SG_ C : 0|8@1+ (1,0) [0|0] "" X',
        ' SG_ D : 0|32@1+ (2,0) [0|0] "" X',
        ' SG_ E : 0|8@1+ (2,0.5) [0|0] "" X',
        ' SG_ F : 0|8@1+ (1,-40) [0|0] "" X',
        "SIG_VALTYPE_ 1 D : 1;",
    )

    values = [physical(field_of(message, name), 3) for name in "ABCEF"]

    assert [repr(value) for value in values] == ["16", "1.5", "3", "6.5", "-37"]
    assert repr(physical(field_of(message, "D"), 1.5)) == "3.0"
    assert math.copysign(1, physical(layout(0, 32, is_float=True), -0.0)) == -1


def test_the_field_says_what_the_file_says() -> None:
    """Names, unit and J1939 reach the steps behind the decoder."""
    message = message_of(' SG_ A : 0|8@1+ (1,0) [0|0] "km" X', 'VAL_ 1 A 255 "Absent" ;')

    field = field_of(message, "A", is_j1939=True)

    assert (field.name, field.unit, field.is_j1939) == ("A", "km", True)
    assert field.choices == {255: "Absent"}
    with pytest.raises(KeyError):
        field_of(message, "B")


@st.composite
def declarations(draw: st.DrawFn) -> tuple[str, int]:
    """Return what stands behind a signal's name, and its SIG_VALTYPE_ code."""
    code = draw(st.sampled_from([0, 0, 1, 2]))
    length = draw(st.sampled_from([16, 32, 64]) if code else st.integers(1, 72))
    order = draw(st.sampled_from("01"))
    # In payload order, where the first bit of a big-endian byte is its highest.
    first = draw(st.integers(0, 512 - length))
    start = first if order == "1" else 8 * (first // 8) + 7 - first % 8
    sign = draw(st.sampled_from("+-"))
    numbers = st.sampled_from(["1", "0", "-3", "0.1", "2.0", "1E-7", "+40", "1."])
    conversion = f"({draw(numbers)},{draw(numbers)})"
    return f'{start}|{length}@{order}{sign} {conversion} [0|0] "" X', code


def file_of(signals: dict[str, tuple[str, int]]) -> str:
    lines = ["BO_ 1 A: 64 X"]
    lines += [f" SG_ {name} : {text}" for name, (text, _) in signals.items()]
    lines += [f"SIG_VALTYPE_ 1 {name} : {code};" for name, (_, code) in signals.items()]
    return "\n".join(lines) + "\n"


@settings(max_examples=150, deadline=None)
@given(
    st.lists(declarations(), min_size=1, max_size=5),
    st.binary(max_size=64) | st.binary(min_size=64, max_size=64),
)
def test_any_layout_decodes_as_in_cantools(signals: list[tuple[str, int]], payload: bytes) -> None:
    """Every start, length, byte order and type, alone and beside others, cut anywhere."""
    named = {f"S{index}": signal for index, signal in enumerate(signals)}
    (message,) = parse_dbc(file_of(named).encode(), name="a.dbc").messages
    fields = [field_of(message, name) for name in named]

    raws = compile_extract(fields)(payload)

    for field, raw in zip(fields, raws, strict=True):
        # By itself: cantools fails on signals that overlap.
        (oracle,) = dbc_oracle.load(file_of({field.name: named[field.name]}).encode()).messages
        expected = oracle.decode_simple(payload, scaling=False, allow_truncated=True)
        assert repr(raw) == repr(expected.get(field.name))
        if raw is not None:
            scaled = oracle.decode_simple(payload, allow_truncated=True)[field.name]
            assert repr(physical(field, raw)) == repr(scaled)


@pytest.mark.captures
@pytest.mark.parametrize(
    "name",
    [
        "aws_can_fd.dbc",
        "cantools_floating_point.dbc",
        "cantools_issue_184_extended_mux_cascaded.dbc",
        "cantools_multiplex_2.dbc",
        "cantools_signed.dbc",
        "css_tp_uds.dbc",
        "mazda_2017.dbc",
        "psa_aee2010_r3.dbc",
        "tesla_can.dbc",
    ],
)
def test_real_files_decode_as_in_cantools(captures: Path, name: str) -> None:
    """A sample; tests/integration/test_corpus.py takes all of them and all lengths."""
    data = (captures / "dbc_corpus" / name).read_bytes()
    lengths = (0, 1, 3, 7, 8, 9, 64)

    found = dbc_oracle.differences(parse_dbc(data, name=name), dbc_oracle.load(data), lengths)

    assert list(found) == []
