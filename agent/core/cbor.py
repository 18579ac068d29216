"""Deterministic CBOR: one value, one spelling (RFC 8949 section 4.2.1).

Rules:
 * Only null, booleans, integers, IEEE doubles, text, bytes, arrays, maps with integer or text
   keys, and tags exist. Integers beyond 64 bits are bignums (tags 2 and 3, 64 bytes at most).
   Floats take the shortest of the three widths that keeps the value; NaN is f97e00, so one NaN
   cannot be told from another.
 * `decode` accepts a spelling only if `encode` would write it: no longer heads, no indefinite
   lengths, keys ascending and once, no trailing bytes. So no two byte strings mean the same, and
   a flipped bit cannot hide in a spelling.
 * A tag is returned as it stands and never acted on. cbor2's own reader turns tags into dates,
   patterns and decimals, whose errors escape its error tree; it reads bytes that nobody has
   authenticated yet, therefore it is used for writing only.
 * Memory is bounded by the input: nothing is set aside for items that only a head promises.
"""

import struct
from typing import Any

import cbor2
from cbor2 import CBORTag

from agent.errors import EnvelopeRejected

MAX_COUNT = 2**63 - 1  # CDDL's uint would be one bit more, which neither SQLite nor Java holds.
MAX_DEPTH = 8  # The deepest value of ours, COSE_Encrypt, nests 6.

_UINT, _NINT, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_POSITIVE_BIGNUM, _NEGATIVE_BIGNUM = 2, 3
_BIGNUM_BYTES = 9  # Shortest bignum: what fits 64 bits is written as an integer.
_MAX_BIGNUM_BYTES = 64  # No value of ours needs more than 9; Python writes no text of 2,000 bytes.
_WIDTHS = {24: 1, 25: 2, 26: 4, 27: 8}  # Additional information → bytes of the argument.
_FLOATS = {25: ">e", 26: ">f", 27: ">d"}
_SIMPLE_VALUES = {20: False, 21: True, 22: None}


def encode(value: Any) -> bytes:
    """Return the one spelling of a value.

    Args:
        value: Made of the types above. Keys of one map must sort alike by bytes and by length
            first, which holds for short text and for the labels of COSE.
    """
    return cbor2.dumps(value, canonical=True)


def decode(data: bytes) -> Any:
    """Return the value; lists for arrays, dicts for maps, `CBORTag` for tags.

    Raises:
        EnvelopeRejected: Nothing else, for any bytes (reason `malformed`).
    """
    reader = _Reader(data)
    value = reader.value(0)
    if reader.at != len(data):
        raise malformed(f"{len(data) - reader.at} bytes stand behind the CBOR value")
    return value


def is_count(value: Any) -> bool:
    """Whether a value is an integer from 0 to MAX_COUNT; booleans and bignums are none."""
    return type(value) is int and 0 <= value <= MAX_COUNT


def malformed(fault: str) -> EnvelopeRejected:
    """Return the error for bytes that are not what the protocol describes."""
    return EnvelopeRejected(fault, reason="malformed")


class _Reader:
    """A cursor over the bytes; `at` is the next byte to read."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def value(self, depth: int) -> Any:
        start = self.at
        kind, info, argument = self._head()
        if kind in (_UINT, _NINT):
            return argument if kind == _UINT else -1 - argument
        if kind == _SIMPLE:
            return self._simple(info, start)
        if kind in (_BYTES, _TEXT):
            return self._string(kind, argument)
        if depth == MAX_DEPTH:
            raise malformed(f"CBOR nests deeper than {MAX_DEPTH} levels")
        build = {_ARRAY: self._array, _MAP: self._map, _TAG: self._tag}[kind]
        return build(argument, depth + 1)

    def _head(self) -> tuple[int, int, int]:
        if self.at >= len(self.data):
            raise malformed("CBOR ends in the middle of a value")
        first = self.data[self.at]
        self.at += 1
        kind, info = first >> 5, first & 0x1F
        if info < 24:
            return kind, info, info
        width = _WIDTHS.get(info)
        if width is None:
            raise malformed(f"CBOR has indefinite length or a reserved head at byte {self.at - 1}")
        argument = int.from_bytes(self._take(width))
        # Floats carry their bits here; their own width is judged in _simple.
        if kind != _SIMPLE and argument < (24 if width == 1 else 1 << 4 * width):
            raise malformed(f"CBOR head is longer than needed at byte {self.at - 1 - width}")
        return kind, info, argument

    def _take(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        if len(taken) != count:
            raise malformed("CBOR ends in the middle of a value")
        self.at += count
        return taken

    def _simple(self, info: int, start: int) -> Any:
        if info in _SIMPLE_VALUES:
            return _SIMPLE_VALUES[info]
        layout = _FLOATS.get(info)
        if layout is None:
            raise malformed(f"CBOR simple value {info} has no meaning here")
        number: float = struct.unpack(layout, self.data[start + 1 : self.at])[0]
        if encode(number) != self.data[start : self.at]:
            raise malformed(f"CBOR float is not the shortest at byte {start}")
        return number

    def _string(self, kind: int, length: int) -> bytes | str:
        taken = self._take(length)
        if kind == _BYTES:
            return taken
        try:
            return taken.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise malformed("CBOR text is not UTF-8") from exc

    def _array(self, count: int, depth: int) -> list[Any]:
        data = self.data
        items: list[Any] = []
        append = items.append
        for _ in range(count):
            # Deltas are nearly always one byte: the short way in, measured 3 times as fast.
            first = data[self.at] if self.at < len(data) else _SIMPLE << 5
            if first < 0x18:
                self.at += 1
                append(first)
            elif 0x20 <= first < 0x38:
                self.at += 1
                append(0x1F - first)
            else:
                append(self.value(depth))
        return items

    def _map(self, count: int, depth: int) -> dict[int | str, Any]:
        entries: dict[int | str, Any] = {}
        previous = b""
        for _ in range(count):
            start = self.at
            key = self.value(depth)
            if type(key) not in (int, str):
                raise malformed("CBOR map has a key that is neither integer nor text")
            spelling = self.data[start : self.at]
            if spelling <= previous:
                raise malformed("CBOR map has keys that are not ascending")
            previous = spelling
            entries[key] = self.value(depth)
        return entries

    def _tag(self, number: int, depth: int) -> Any:
        content = self.value(depth)
        if number not in (_POSITIVE_BIGNUM, _NEGATIVE_BIGNUM):
            return CBORTag(number, content)
        if type(content) is not bytes or len(content) < _BIGNUM_BYTES or not content[0]:
            raise malformed("CBOR bignum is not the shortest")
        if len(content) > _MAX_BIGNUM_BYTES:
            raise malformed(f"CBOR bignum has more than {_MAX_BIGNUM_BYTES} bytes")
        magnitude = int.from_bytes(content)
        return magnitude if number == _POSITIVE_BIGNUM else -1 - magnitude
