"""A batch as bytes, and back: columns, not rows; described by docs/envelope.cddl.

Rules:
 * Only times and values after every constraint are encoded, with the names that stand once beside
   them. The bytes depend on nothing else: equal columns give equal bytes.
 * Lossless: types, -0.0 and infinities come back as they went in; NaN is one value. Integers stand
   for floats only where the arithmetic below gives every single float back, bit for bit; each
   column is checked value by value, else its floats are written as they are.
 * A time column stands once and is shared only by columns with identical sample times.
 * What arrives is not trusted: the size is bounded before anything is unpacked, samples are
   counted and long integers are weighed before they are built, and whatever the CDDL does not
   describe is refused.

    codec 1 LZMA (.lzma) around CBOR
    batch   {t: [+ times], c: [+ column]}
    times   [ms] or [first ms since the epoch, period, + (change in ms - period)]
    column  {p: number of a known column, ? result, i: index into t, values}
            {p: path, s: scope, d: datatype, ? u: unit, ? result, i: index into t, values}
    result  f: function, w: length of its windows in ms; datatype and unit are then the function's
    values  {c: value}                          every value is this one
            {n: changes}                        integers: the first, then differences
            {n: changes, m: [scale, offset]}    floats:   n * scale + offset, two roundings
            {n: changes, e: digits}             floats:   n / 10^digits, one rounding
            {n: changes, k: [+ value]}          floats or texts: places in this ascending list
            {v: [+ value]}                      as they are
"""

import lzma
import math
from array import array
from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import sub
from typing import Any, Final

from agent.core import cbor
from agent.core.aggregate import MAX_WINDOW_MS, MS_PER_S, Function, result_of, seconds
from agent.core.cbor import malformed
from agent.core.knowncolumn import KNOWN_COLUMNS, NUMBERS, NUMBERS_BY_PATH, Names
from agent.core.model import Batch, Column, Value
from agent.core.strictjson import shown
from agent.errors import EnvelopeRejected

CODEC_ID: Final = 1
MAX_PLAINTEXT_BYTES: Final = 16 << 20  # A minute of all signals of a dense bus unpacks to 0.3 MB.

# No context bits: neighbouring bytes belong to small independent numbers (docs/envelope.md).
_LZMA: Final = {
    "id": lzma.FILTER_LZMA1,
    "preset": 6,
    "dict_size": 1 << 19,  # 6 MB of memory to pack, 0.5 to unpack
    "lc": 0,
    "lp": 0,
    "pb": 0,
}
_LZMA_MEMORY_BYTES = 4 << 20  # What a hostile head may ask for.
_EXACT = 2**53  # Integers below are doubles too, so every reader computes the same float.
_TIME_BITS = 55  # Of a difference between two periods of times below 2^53.
_WIDE_BITS = 128  # Integers of datatypes have 64; a list of these is no larger than one of floats.
_MAX_DIGITS = 9
_MINUS_ZERO = -(2**63)  # The bits of -0.0, read as a signed integer.
_VALUE_TYPES = {bool, int, float, str}
_NUMBERED = {"p", "i"}
_SPELLED = {"p", "s", "d", "i"}
_RESULT = {"f", "w"}
_FUNCTIONS = frozenset(map(str, Function))
_FORMS = ({"c"}, {"n"}, {"n", "m"}, {"n", "e"}, {"n", "k"}, {"v"})


def encode(batch: Batch) -> bytes:
    """Return the plaintext of an envelope: the batch's columns, compressed (codec `CODEC_ID`).

    Budget 0.4 us a sample (tests/bench/codec_bytes.py): no call of a Python function per value.
    """
    places: dict[tuple[int, ...], int] = {}
    columns = []
    for column in batch.columns:
        place = places.setdefault(column.times_ms, len(places))
        names = {**_written_names(column), **_written_result(column)}
        columns.append({"i": place, **names, **_written(column)})
    packed = cbor.encode({"t": list(map(_written_times, places)), "c": columns})
    return lzma.compress(packed, lzma.FORMAT_ALONE, filters=[_LZMA])


def decode(
    plaintext: bytes, *, codec: int = CODEC_ID, max_bytes: int = MAX_PLAINTEXT_BYTES
) -> tuple[Column, ...]:
    """Return the columns that `encode` was given.

    `scale` and `offset` of a column are those that its bytes use, else 1 and 0.

    Args:
        plaintext: What an envelope held.
        codec: The codec that its header names.
        max_bytes: Largest size after unpacking; also the largest number of samples.

    Raises:
        EnvelopeRejected: Nothing else, for any bytes (reasons `codec`, `too-large`, `malformed`).
    """
    batch = cbor.decode(_unpacked(plaintext, codec, max_bytes))
    if not isinstance(batch, dict) or batch.keys() != {"t", "c"}:
        raise malformed("a batch is a map of t and c")
    times = [_times(raw) for raw in _list(batch["t"])]
    columns: list[Column] = []
    known = samples = 0
    for entry in _list(batch["c"]):
        place = _place(entry, known, len(times))
        known = max(known, place + 1)
        samples += len(times[place])
        if samples > max_bytes:
            raise _too_large(f"the batch holds more than {max_bytes} samples")
        columns.append(_column(entry, times[place]))
    if known != len(times) or len(set(times)) != len(times):
        raise malformed("a batch holds a time column twice, or one that no column uses")
    return tuple(columns)


def _written_names(column: Column) -> dict[str, Any]:
    names = Names(column.path, column.scope, column.datatype, column.unit)
    number = NUMBERS.get(names)
    if column.fn is not None:
        # A known column is that of the path; what its function gives follows from it.
        number = NUMBERS_BY_PATH.get((column.path, column.scope))
        if number is not None and _result_names(KNOWN_COLUMNS[number], column.fn) != names:
            number = None
    if number is not None:
        return {"p": number}
    spelled = {"p": names.path, "s": names.scope, "d": names.datatype}
    return spelled if names.unit is None else {**spelled, "u": names.unit}


def _written_result(column: Column) -> dict[str, Any]:
    if column.fn is None:
        return {}
    assert column.window_s is not None, "a function has windows"
    return {"f": column.fn, "w": round(column.window_s * MS_PER_S)}


def _result_names(known: Names, fn: str) -> Names:
    return Names(known.path, known.scope, *result_of(fn, known.datatype, known.unit))


def _written_times(times: tuple[int, ...]) -> list[int]:
    """Return times as deviations from a period: small around 0, as the changes of values are."""
    if len(times) == 1:
        return [times[0]]
    steps = list(map(sub, times[1:], times))
    period = sorted(steps)[len(steps) // 2]
    return [times[0], period, *[step - period for step in steps]]


def _written(column: Column) -> dict[str, Any]:
    """Return the first form, in the order of the module's table, that gives the values back."""
    values = column.values
    kinds = set(map(type, values))
    if kinds == {float}:
        return _written_floats(column)
    if len(kinds) == 1:
        if values.count(values[0]) == len(values):
            return {"c": values[0]}
        if kinds == {int}:
            return {"n": _changes(values)}
        if kinds == {str}:
            return _listed(values, set(values))
    return {"v": values}


def _written_floats(column: Column) -> dict[str, Any]:
    values: Any = column.values
    distinct: set[float] = set(values)
    # What == cannot tell apart is written as it is; from here on, equal means identical.
    if any(map(math.isnan, distinct)):
        return {"v": values}
    bits = array("d", values).tobytes()
    if bits == bits[:8] * len(values):
        return {"c": values[0]}
    if 0.0 in distinct and array("q", bits).count(_MINUS_ZERO):
        return {"v": values}
    if all(map(math.isfinite, distinct)):
        numbers, arithmetic = _numbered(distinct, column)
        if numbers:
            return {"n": _changes(tuple(map(numbers.__getitem__, values))), **arithmetic}
    return _listed(values, distinct)


def _numbered(distinct: set[float], column: Column) -> tuple[dict[float, int], dict[str, Any]]:
    """Return the integer behind each float and the arithmetic back, or two empty maps."""
    scale, offset = float(column.scale), float(column.offset) + 0.0  # + 0.0 turns -0.0 into 0.0
    if scale and (scale, offset) != (1.0, 0.0):
        numbers = {x: _whole((x - offset) / scale) for x in distinct}
        if all(n * scale + offset == x for x, n in numbers.items()):
            return numbers, {"m": [scale, offset]}
    for digits in range(_MAX_DIGITS + 1):
        power = 10**digits
        numbers = {}
        for x in distinct:
            n = _whole(x * power)
            if n / power != x:
                break
            numbers[x] = n
        else:
            return numbers, {"e": digits}
    return {}, {}


def _whole(quotient: float) -> int:
    """Return the nearest integer, or 0, which is then found not to fit, where none is exact."""
    return round(quotient) if abs(quotient) < _EXACT else 0


def _listed(values: Sequence[Any], distinct: set[Any]) -> dict[str, Any]:
    """Return floats or texts as places in a list of them, if each stands twice on average."""
    if 2 * len(distinct) > len(values):
        return {"v": values}
    ordered = sorted(distinct)
    places = {value: place for place, value in enumerate(ordered)}
    return {"n": _changes(tuple(map(places.__getitem__, values))), "k": ordered}


def _changes(numbers: Sequence[Any]) -> list[int]:
    return [numbers[0], *map(sub, numbers[1:], numbers)]


def _unpacked(plaintext: bytes, codec: int, max_bytes: int) -> bytes:
    """Return the CBOR inside, reading no further than `max_bytes`."""
    if codec != CODEC_ID:
        raise EnvelopeRejected(
            f"codec {codec} is not known here", reason="codec", hint="update the receiver"
        )
    try:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY_BYTES)
        packed = unpacker.decompress(plaintext, max_bytes + 1)
    except lzma.LZMAError as exc:
        raise malformed("the plaintext is not compressed as its codec says") from exc
    if len(packed) > max_bytes:
        raise _too_large(f"the plaintext unpacks to more than {max_bytes} bytes")
    if not unpacker.eof or unpacker.unused_data:
        raise malformed("the plaintext is not exactly one compressed piece")
    return packed


def _too_large(fault: str) -> EnvelopeRejected:
    return EnvelopeRejected(
        fault, reason="too-large", hint="raise the limit if you trust the sender"
    )


def _text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise malformed("path, scope, datatype and unit of a column are texts")
    return raw


def _list(raw: Any) -> list[Any]:
    if not isinstance(raw, list) or not raw:
        raise malformed("a list with at least one entry was expected")
    return raw


def _integers(raw: Any) -> list[int]:
    integers = _list(raw)
    if set(map(type, integers)) != {int}:
        raise malformed("a list of integers was expected")
    return integers


def _times(raw: Any) -> tuple[int, ...]:
    numbers = _integers(raw)
    if len(numbers) == 2:
        raise malformed("a time column has a period and no deviation from it")
    beyond = malformed("a sample time lies beyond 2^53 ms")
    if _widest(numbers) > _TIME_BITS:
        raise beyond
    first, *rest = numbers
    steps = [rest[0] + deviation for deviation in rest[1:]]
    times = tuple(accumulate(steps, initial=first))
    if max(map(abs, times)) >= _EXACT:
        raise beyond
    return times


def _place(entry: Any, known: int, count: int) -> int:
    """Return the time column of a column; columns use them in ascending order of first use."""
    place = entry.get("i") if isinstance(entry, dict) else None
    if type(place) is not int or not 0 <= place <= min(known, count - 1):
        raise malformed("a column names no time column, or names them out of order")
    return place


def _column(entry: dict[str, Any], times: tuple[int, ...]) -> Column:
    fn, window_s = _result(entry)
    names = _names(entry, fn)
    values, scale, offset = _values(entry, len(times))
    if len(values) != len(times):
        raise malformed(f"a column has {len(values)} values for {len(times)} times")
    return Column(
        scope=names.scope,
        path=names.path,
        datatype=names.datatype,
        unit=names.unit,
        scale=scale,
        offset=offset,
        times_ms=times,
        values=values,
        fn=fn,
        window_s=window_s,
    )


def _result(entry: dict[str, Any]) -> tuple[str | None, int | float | None]:
    """Return function and length of window of a column of an aggregate, None and None of others."""
    if not entry.keys() & _RESULT:
        return None, None
    fn, window_ms = entry.get("f"), entry.get("w")
    if type(fn) is not str or type(window_ms) is not int or not 1 <= window_ms <= MAX_WINDOW_MS:
        raise malformed("a column of an aggregate has no function, or no length of its windows")
    if fn not in _FUNCTIONS:
        raise EnvelopeRejected(
            f"function {shown(fn)} is not known here", reason="codec", hint="update the receiver"
        )
    return fn, seconds(window_ms)


def _names(entry: dict[str, Any], fn: str | None) -> Names:
    """Return the names of a column, whose other members are then known to fit together."""
    number = entry.get("p")
    if type(number) is not int:
        if entry.keys() - _SPELLED - {"u"} - _RESULT not in _FORMS:
            raise malformed("a column has other members than the protocol describes")
        unit = _text(entry["u"]) if "u" in entry else None
        return Names(_text(number), _text(entry.get("s")), _text(entry.get("d")), unit)
    if entry.keys() - _NUMBERED - _RESULT not in _FORMS:
        raise malformed("a column has other members than the protocol describes")
    if not 0 <= number < len(KNOWN_COLUMNS):
        raise EnvelopeRejected(
            f"column {number} is not known here", reason="codec", hint="update the receiver"
        )
    known = KNOWN_COLUMNS[number]
    return known if fn is None else _result_names(known, fn)


def _values(entry: dict[str, Any], count: int) -> tuple[tuple[Value, ...], float, float]:
    """Return values, scale and offset of a column whose members are known to fit together."""
    if "c" in entry:
        return _checked([entry["c"]]) * count, 1, 0
    if "v" in entry:
        return _checked(_list(entry["v"])), 1, 0
    numbers = _sums(_integers(entry["n"]))
    if "k" in entry:
        return _looked_up(numbers, _list(entry["k"])), 1, 0
    if "m" not in entry and "e" not in entry:
        return tuple(numbers), 1, 0
    if max(map(abs, numbers)) >= _EXACT:
        raise malformed("an integer that stands for a float lies beyond 2^53")
    if "m" in entry:
        scale, offset = _scale(entry["m"])
        return tuple([n * scale + offset for n in numbers]), scale, offset
    digits = entry["e"]
    if type(digits) is not int or not 0 <= digits <= _MAX_DIGITS:
        raise malformed(f"digits of a column are not 0 to {_MAX_DIGITS}")
    power = 10**digits
    return tuple([n / power for n in numbers]), 1 / power, 0


def _sums(changes: list[int]) -> list[int]:
    """Return the running sums. A long integer and many zeros are few bytes, their sums are not."""
    bits = _widest(changes) + len(changes).bit_length()
    if bits > _WIDE_BITS and bits * len(changes) > 8 * MAX_PLAINTEXT_BYTES:
        raise _too_large(f"integers of a column take more than {MAX_PLAINTEXT_BYTES} bytes")
    return list(accumulate(changes))


def _widest(integers: list[int]) -> int:
    return max(max(integers).bit_length(), min(integers).bit_length())


def _checked(values: list[Any]) -> tuple[Value, ...]:
    if not set(map(type, values)) <= _VALUE_TYPES:
        raise malformed("a value is neither boolean, number nor text")
    return tuple(values)


def _looked_up(places: list[int], ordered: list[Any]) -> tuple[Value, ...]:
    if set(map(type, ordered)) not in ({float}, {str}):
        raise malformed("a list of values holds neither only floats nor only texts")
    if not all(low < high for low, high in pairwise(ordered)):
        raise malformed("a list of values is not ascending")
    if min(places) < 0 or max(places) >= len(ordered):
        raise malformed("a value lies outside its column's list")
    return tuple(map(ordered.__getitem__, places))


def _scale(raw: Any) -> tuple[float, float]:
    if not isinstance(raw, list) or len(raw) != 2 or set(map(type, raw)) != {float}:
        raise malformed("scale and offset of a column are not two floats")
    if not all(map(math.isfinite, raw)) or not raw[0]:
        raise malformed("scale or offset of a column is not finite, or the scale is 0")
    return raw[0], raw[1]
