import cbor2
import pytest
from cbor2 import CBORTag
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.core import cbor
from agent.errors import EnvelopeRejected

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=30),
    st.binary(max_size=30),
)
_KEYS = st.one_of(st.integers(0, 23), st.text(max_size=30))
VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(st.integers(0, 2**70).filter(lambda key: key < 2**64), inner, max_size=5),
        st.dictionaries(st.text(max_size=30), inner, max_size=5),
        st.builds(CBORTag, st.sampled_from([18, 96, 0, 35]), inner),
    ),
    max_leaves=12,
)


def _depth(value: object) -> int:
    if isinstance(value, CBORTag):
        return 1 + _depth(value.value)
    inner = value.values() if isinstance(value, dict) else value
    if isinstance(value, (dict, list)):
        return 1 + max(map(_depth, inner), default=0)  # type: ignore[arg-type]
    return 0


@given(VALUES.filter(lambda value: _depth(value) <= cbor.MAX_DEPTH))
@settings(max_examples=150)
def test_what_is_written_is_read_back_and_has_one_spelling(value: object) -> None:
    data = cbor.encode(value)

    assert repr(cbor.decode(data)) == repr(_sorted(value))
    assert cbor.encode(cbor.decode(data)) == data


def _sorted(value: object) -> object:
    if isinstance(value, CBORTag):
        return CBORTag(value.tag, _sorted(value.value))
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    if isinstance(value, dict):
        ordered = sorted(value, key=cbor2.dumps)
        return {key: _sorted(value[key]) for key in ordered}
    return value


@given(st.binary(max_size=40))
@example(bytes.fromhex("c4821b7fffffffffffffff01"))  # cbor2: decimal.InvalidOperation
@example(b"\x81" * 100_000)
@settings(max_examples=500)
def test_any_bytes_are_refused_in_our_words_or_are_the_one_spelling(data: bytes) -> None:
    try:
        value = cbor.decode(data)
    except EnvelopeRejected:
        return
    assert cbor.encode(value) == data


@given(VALUES.filter(lambda value: _depth(value) <= cbor.MAX_DEPTH), st.data())
@settings(max_examples=150)
def test_a_flipped_bit_never_leaves_the_same_value(value: object, data: st.DataObject) -> None:
    spelling = bytearray(cbor.encode(value))
    bit = data.draw(st.integers(0, 8 * len(spelling) - 1))
    spelling[bit // 8] ^= 1 << bit % 8

    try:
        other = cbor.decode(bytes(spelling))
    except EnvelopeRejected:
        return
    assert cbor.encode(other) == bytes(spelling) != cbor.encode(value)


@pytest.mark.parametrize(
    ("fault", "data"),
    [
        ("nothing", ""),
        ("two values", "0101"),
        ("integer in two bytes", "1817"),
        ("integer in three bytes", "1900ff"),
        ("integer in five bytes", "1a0000ffff"),
        ("integer in nine bytes", "1b00000000ffffffff"),
        ("negative in two bytes", "3817"),
        ("cut-off integer", "19ff"),
        ("reserved head", "1c"),
        ("indefinite bytes", "5f4101ff"),
        ("indefinite text", "7f6161ff"),
        ("indefinite array", "9f01ff"),
        ("indefinite map", "bf0101ff"),
        ("break alone", "ff"),
        ("cut-off bytes", "4101"[:2]),
        ("cut-off text", "6261"),
        ("text that is not UTF-8", "61ff"),
        ("cut-off array", "8201"),
        ("array of 2^32 items", "9b00000001000000000000"),
        ("array of 2^63 items", "9b8000000000000000"),
        ("map of 2^63 entries", "bb8000000000000000"),
        ("map without value", "a101"),
        ("map with a key twice", "a201010102"),
        ("map out of order", "a202010101"),
        ("map with a byte key", "a1410101"),
        ("map with a boolean key", "a1f501"),
        ("map with a float key", "a1f93c0001"),
        ("map with an array key", "a18001"),
        ("undefined", "f7"),
        ("simple value", "e0"),
        ("simple value in two bytes", "f8ff"),
        ("double that fits single", "fb3ff8000000000000"),
        ("single that fits half", "fa3fc00000"),
        ("NaN with other bits", "f97e01"),
        ("NaN as double", "fb7ff8000000000000"),
        ("bignum that fits", "c24101"),
        ("bignum with leading zero", "c2490000000000000000ff"),
        ("bignum of 8 bytes", "c248ffffffffffffffff"),
        ("bignum of text", "c269616161616161616161"),
        ("negative bignum that fits", "c34101"),
        ("tag without content", "d812"),
        ("9 levels", "81818181818181818100"),
    ],
)
def test_another_spelling_is_refused(fault: str, data: str) -> None:
    with pytest.raises(EnvelopeRejected) as caught:
        cbor.decode(bytes.fromhex(data))

    assert caught.value.reason == "malformed", fault


def test_a_tag_is_returned_and_not_acted_on() -> None:
    date = cbor.decode(bytes.fromhex("c100"))

    assert date == CBORTag(1, 0)


def test_eight_levels_are_read() -> None:
    assert cbor.decode(b"\x81" * 8 + b"\x00") == [[[[[[[[0]]]]]]]]
