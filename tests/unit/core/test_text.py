"""Bytes that are characters: what fills them up is no text, and what is odd is none either."""

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.core.text import NoText, TextKind, text_reader

VIN = "1M8GDM9AXKP042788"  # A published example; no vehicle has it.
ISO_3779 = sorted({*string.ascii_uppercase, *string.digits} - {"I", "O", "Q"})
FILL = st.binary(max_size=5).map(lambda data: bytes(b"\x00\xff "[byte % 3] for byte in data))
vins = st.text(ISO_3779, min_size=17, max_size=17).filter(lambda text: len(set(text)) > 1)


def read(raw: bytes, kind: TextKind = TextKind.VIN, *, is_j1939: bool = False) -> str | NoText:
    return text_reader(kind, is_j1939=is_j1939)(raw)


@given(vins, FILL, FILL)
def test_a_vin_is_read_whatever_fills_up_its_field(vin: str, before: bytes, behind: bytes) -> None:
    assert read(before + vin.encode() + behind) == vin


@given(vins, st.binary(max_size=20))
def test_a_j1939_text_ends_at_its_delimiter(vin: str, behind: bytes) -> None:
    assert read(vin.encode() + b"*" + behind, is_j1939=True) == vin
    assert read(vin.encode() + b"*" + behind) is NoText.ODD


@pytest.mark.parametrize(
    "raw",
    [b"", bytes(17), b"\xff" * 17, b" " * 17, b"\x00\xff \x00", b"0" * 17, b"Z" * 17],
    ids=repr,
)
def test_what_only_fills_is_not_available(raw: bytes) -> None:
    """Also 17 times one character: what a control unit says that was never told the number."""
    assert read(raw) is NoText.NOT_AVAILABLE


def test_a_text_that_j1939_ends_at_once_is_not_available() -> None:
    assert read(b"*", is_j1939=True) is NoText.NOT_AVAILABLE
    assert read(b"*", TextKind.ASCII, is_j1939=True) is NoText.NOT_AVAILABLE


@pytest.mark.parametrize(
    "raw",
    [
        VIN[:-1].encode(),
        VIN.encode() + b"1",
        VIN.lower().encode(),
        VIN.replace("M", "I", 1).encode(),
        VIN.replace("M", "O", 1).encode(),
        VIN.replace("M", "Q", 1).encode(),
        VIN.replace("M", "-", 1).encode(),
        VIN.replace("M", "\0", 1).encode(),
        VIN[:8].encode() + b" " + VIN[9:].encode(),
        VIN[:16].encode() + b"\xb2",
        VIN[:16].encode() + b"\n",
        VIN.encode("utf-16-le"),
    ],
    ids=repr,
)
def test_what_is_no_vin_is_not_mended(raw: bytes) -> None:
    assert read(raw) is NoText.ODD


@given(st.one_of(st.binary(max_size=40), st.text(ISO_3779, max_size=20).map(str.encode)))
@example(VIN.encode())
def test_of_any_bytes_only_a_vin_is_a_vin_and_never_another_text(raw: bytes) -> None:
    as_vin, as_ascii = read(raw), read(raw, TextKind.ASCII)

    if not isinstance(as_vin, NoText):
        assert len(as_vin) == 17
        assert set(as_vin) <= set(ISO_3779)
        assert as_vin.encode() in raw
        assert as_ascii is NoText.ODD
    if not isinstance(as_ascii, NoText):
        assert as_ascii == as_ascii.strip()
        assert all(32 <= ord(letter) < 127 for letter in as_ascii)
        assert as_ascii.encode() in raw


@pytest.mark.parametrize(
    ("raw", "text"),
    [(b"MAN TGX\0\0\0", "MAN TGX"), (b"  a*b", "a*b"), (b"\xff\xffx", "x")],
)
def test_any_other_text_is_printable_ascii(raw: bytes, text: str) -> None:
    assert read(raw, TextKind.ASCII) == text


@pytest.mark.parametrize("raw", [b"a\nb", b"a\0b", b"M\xfcnchen", b"\x7f"], ids=repr)
def test_what_is_not_printable_ascii_is_no_text(raw: bytes) -> None:
    assert read(raw, TextKind.ASCII) is NoText.ODD
