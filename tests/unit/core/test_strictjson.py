import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core import strictjson

LIMIT = 64 * 1024


def parse(data: bytes) -> object:
    return strictjson.parse(data, max_bytes=LIMIT)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"a":1,"a":1}', "stands twice"),
        (b'{"b":[{"a":1,"\\u0061":2}]}', "stands twice"),
        (b"[NaN]", "NaN"),
        (b"[Infinity]", "Infinity"),
        (b"[-Infinity]", "-Infinity"),
        (b"9007199254740992", "2**53"),
        (b"-9007199254740992", "2**53"),
        (b"1" + b"0" * 5000, "2**53"),
        (b"[1e309]", "too large"),
        (b"[-1e309]", "too large"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'"\xff"', "not UTF-8"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b'["\\ud800"]', "surrogate"),
        (b'{"\\udc00":1}', "surrogate"),
        (b"{} {}", "extra data"),
        (b"{}\x00", "extra data"),
        (b"{},", "extra data"),
        (b"", "expecting value"),
        (b" ", "expecting value"),
        (b"{", "line 1, column 2"),
        (b"[1,]", "line 1"),
        (b"{'a':1}", "line 1"),
        (b"[01]", "line 1"),
        (b"[1.]", "line 1"),
        (b"[+1]", "line 1"),
        (b'["\t"]', "control character"),
        (b"// x\n{}", "expecting value"),
        (b"[" * 9 + b"]" * 9, "deeper than 8"),
        (b'{"a":' * 9 + b"1" + b"}" * 9, "deeper than 8"),
        (b"[" * 60000, "deeper than 8"),
    ],
)
def test_bytes_with_more_than_one_reading_are_refused(data: bytes, says: str) -> None:
    with pytest.raises(strictjson.StrictJsonError, match=f"(?i){says.replace('*', '[*]')}") as e:
        parse(data)

    assert e.value.reason == "json"


def test_a_long_document_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(strictjson.StrictJsonError) as e:
        parse(b"\xff" * (LIMIT + 1))

    assert e.value.reason == "too-large"


def test_the_longest_document_is_read() -> None:
    assert parse(b'"' + b"a" * (LIMIT - 2) + b'"') == "a" * (LIMIT - 2)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"9007199254740991", 2**53 - 1),
        (b"-9007199254740991", 1 - 2**53),
        (b"[-0]", [0]),
        (b"1e300", 1e300),
        (b' {"a" : [true, null, 1.0]}\r\n', {"a": [True, None, 1.0]}),
        (b'"\\ud83d\\ude97"', "\U0001f697"),
        (b"[" * 8 + b"]" * 8, [[[[[[[[]]]]]]]]),
        (b'["[[[[[[[[[[[[{{{{{{{","\\"[[[[[[[[["]', ["[[[[[[[[[[[[{{{{{{{", '"[[[[[[[[[']),
    ],
)
def test_one_meaning_is_read(data: bytes, value: object) -> None:
    assert parse(data) == value


def test_integers_stay_integers_and_fractions_stay_fractions() -> None:
    assert [type(value) for value in parse(b"[1, 1.0, 1e0, true]")] == [int, float, float, bool]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "data", [b'"' + b'\\"' * 32000, b'"' * 64000, b"\\" * 64000, b'"\\' + b"[" * 64000]
)
def test_hostile_text_is_refused_in_linear_time(data: bytes) -> None:
    start = time.process_time()

    with pytest.raises(strictjson.StrictJsonError):
        parse(data)

    assert time.process_time() - start < 1  # Quadratic scanning takes tens of seconds.


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(1 - 2**53, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def depth(value: object) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@settings(max_examples=150, deadline=None)
@given(value=JSON, ascii_only=st.booleans())
def test_every_document_that_is_shallow_enough_comes_back_as_it_was(
    *, value: object, ascii_only: bool
) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only).encode()

    if depth(value) > 8:
        with pytest.raises(strictjson.StrictJsonError, match="deeper"):
            parse(data)
    else:
        assert repr(parse(data)) == repr(value)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=64) | st.text(alphabet='{}[]",:\\u0dDeE19-+.truefalsn \n').map(str.encode)
)
def test_arbitrary_bytes_raise_nothing_else(data: bytes) -> None:
    try:
        parse(data)
    except strictjson.StrictJsonError:
        return

    json.loads(data)  # What we take, the ordinary reader takes as well.


def test_text_from_outside_is_shown_short_and_in_ascii() -> None:
    assert strictjson.shown("a\nü") == r"'a\n\xfc'"
    assert len(strictjson.shown("x" * 1000)) < 50
