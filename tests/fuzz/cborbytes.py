"""CBOR written by hand, in its one spelling or, on purpose, in another (RFC 8949)."""

import struct
from collections.abc import Iterable
from random import Random
from typing import Any

from cbor2 import CBORTag

_SIMPLE = {False: b"\xf4", True: b"\xf5", None: b"\xf6"}


def written(value: Any, rng: Random | None = None, sloppy: float = 0.0) -> bytes:
    """Return the bytes of a value.

    Args:
        value: Of what a CBOR reader makes.
        rng: Decides on sloppiness; None: none.
        sloppy: How often an item is spelled as a deterministic writer would not.
    """
    odd = rng is not None and rng.random() < sloppy
    if value is None or isinstance(value, bool):
        return _SIMPLE[value] if not odd else b"\xf8" + _SIMPLE[value][:1]
    if isinstance(value, int):
        return _integer(value, odd)
    if isinstance(value, float):
        return _number(value, odd)
    if isinstance(value, (bytes, str)):
        data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
        kind = 2 if isinstance(value, bytes) else 3
        if odd and len(data) > 1:
            parts = (data[:1], data[1:])
            chunks = b"".join(_head(kind, len(part)) + part for part in parts)
            return bytes([kind << 5 | 31]) + chunks + b"\xff"
        return _head(kind, len(data), odd) + data
    if isinstance(value, CBORTag):
        return _head(6, value.tag, odd) + written(value.value, rng, sloppy)
    if isinstance(value, dict):
        return _map(value, rng, sloppy, odd)
    return _list(4, (written(item, rng, sloppy) for item in value), len(value), odd)


def _head(kind: int, number: int, odd: bool = False) -> bytes:  # noqa: FBT001, FBT002 - local
    if number < 24 and not odd:
        return bytes([kind << 5 | number])
    for info, width in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if number < 1 << 8 * width:
            if odd and width < 8:
                odd = False
                continue
            return bytes([kind << 5 | info]) + number.to_bytes(width)
    raise ValueError("a head holds 64 bits")


def _integer(value: int, odd: bool) -> bytes:  # noqa: FBT001 - local
    kind, number = (0, value) if value >= 0 else (1, -1 - value)
    if number < 2**64:
        return _head(kind, number, odd)
    data = number.to_bytes(-(-number.bit_length() // 8))
    return bytes([0xC2 + kind]) + _head(2, len(data) + odd) + bytes(odd) + data


def _number(value: float, odd: bool) -> bytes:  # noqa: FBT001 - local
    if value != value:  # noqa: PLR0124 - NaN
        return b"\xf9\x7e\x00" if not odd else b"\xfb\x7f\xf8" + bytes(6)
    long = struct.pack(">d", value)
    for layout, head in ((">e", b"\xf9"), (">f", b"\xfa")):
        try:
            short = struct.pack(layout, value)
        except OverflowError:
            continue
        if not odd and struct.pack(">d", struct.unpack(layout, short)[0]) == long:
            return head + short
    return b"\xfb" + long


def _map(value: dict[Any, Any], rng: Random | None, sloppy: float, odd: bool) -> bytes:  # noqa: FBT001 - local
    pairs = sorted((written(key), written(member, rng, sloppy)) for key, member in value.items())
    if odd and rng is not None:
        if rng.random() < 0.5:
            pairs.reverse()
        elif pairs:
            pairs.append(rng.choice(pairs))
    flat = [part for pair in pairs for part in pair]
    return _list(5, flat, len(pairs), odd=False)


def _list(kind: int, items: Iterable[bytes], count: int, odd: bool) -> bytes:  # noqa: FBT001 - local
    if odd:
        return bytes([kind << 5 | 31]) + b"".join(items) + b"\xff"
    return _head(kind, count) + b"".join(items)
