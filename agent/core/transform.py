"""Raw DBC value to permitted value, as one generated function per granted signal.

The steps, in this order (docs/architecture.md, "Steps"); a value that fails one is dropped:

    1. named or not available   a raw value with a name is no measurement (numeric paths without
                                `mapping`); SAE J1939-71 error and not-available ranges
    2. raw * scale + offset     exactly the number that cantools gives
    3. math or mapping
    4. unit                     of the mapping's leaf to the catalogue's
    5. valid                    the range that the mapping believes
    6. grid                     positions snap to the centre of a fixed cell
    7. quantum                  the nearest multiple
    8. integer rounding         for integer datatypes
    9. range of the datatype

Of a text that stands in the payload as characters step 1 is all (`agent.core.text`).

Rules:
 * Every rounding is Python's `round`: ties go to even.
 * `float` and `double` are IEEE 754 doubles; nothing is narrowed. NaN and infinities are no values.
 * Steps that a signal does not need are not in its function: this runs once per sample.
"""

import math
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import Enum

from agent.core.decode import Field
from agent.core.expression import Number
from agent.core.mapping import Choice, Entry
from agent.core.model import Value
from agent.core.text import NoText, TextKind, text_reader
from agent.core.units import Conversion

GRID_DECIMALS = 7  # 1e-7 degrees is 11 mm at the equator, below any receiver's accuracy.
_SAFE_BITS = 900  # Of 1024: an integer of raw * scale + offset that no double is too short for.
_EXACT = float(2**53)  # Above it neighbouring doubles are further apart than one.
_LAST_MOMENT_S = 253_402_300_799  # 9999-12-31T23:59:59Z; datetime knows no later year.
_J1939_RESERVED = 0xFB  # SAE J1939-71 table 1: 0xFB.. reserved, 0xFE.. error, 0xFF.. not available.


class Drop(Enum):
    """Why a value was dropped; the text is what a person reads."""

    NAMED = "the raw value has a name instead of a measurement"
    NOT_AVAILABLE = "the sender says error or not available"
    UNMAPPED = "the mapping has no line for it"
    UNNAMED = "the raw value has no name for a text path"
    MATH = "the mapping's math has no result"
    INVALID = "outside the mapping's valid range"
    RANGE = "outside the datatype's range"
    NO_TEXT = "not the characters that the mapping expects"


Transform = Callable[[int | float | bytes], Value | Drop]


INTEGER_RANGES = {
    **{f"uint{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
    **{f"int{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
}
FLOAT_TYPES = ("float", "double")


def is_numeric(datatype: str) -> bool:
    """Tell whether values of this VSS datatype are numbers."""
    return datatype in INTEGER_RANGES or datatype in FLOAT_TYPES


def first_reserved(field: Field) -> int | None:
    """Return the raw value from which a J1939 signal is no measurement (SAE J1939-71 table 1)."""
    if field.is_j1939 and not field.is_signed and not field.is_float and field.length >= 8:
        return _J1939_RESERVED << (field.length - 8)
    return None


def moment_text(seconds: float) -> str:
    """Return a moment as ISO 8601 in UTC, to the ms.

    Args:
        seconds: Since the epoch, before the year 10000.
    """
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=round(seconds * 1000))
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def compile_transform(  # noqa: PLR0913 - the steps' parameters, each named at the call
    field: Field,
    entry: Entry,
    conversion: Conversion,
    *,
    datatype: str,
    grid_deg: float | None,
    quantum: float | None,
) -> Transform:
    """Return the function from one raw value to the permitted value, or why there is none.

    Args:
        field: The signal's conversion from the DBC.
        entry: The mapping's line for the path.
        conversion: From the entry's unit to the catalogue's.
        datatype: The catalogue's, except arrays.
        grid_deg: Edge of the cells that this position coordinate snaps to, degrees, or None.
        quantum: Step that values are rounded to, in the catalogue's unit, or None.
    """
    if entry.text is not None:
        return _text_transform(entry.text, field)
    writer = _Writer()
    writer.check_available(field)
    if entry.choices is not None:
        writer.look_up(field, entry.choices)
    elif datatype == "string" and not field.choices:
        # `binding` lets no other number stand for a text than the seconds of a moment.
        writer.physical(field)
        writer.line("if not 0 <= v < LAST_MOMENT: return RANGE", LAST_MOMENT=_LAST_MOMENT_S)
        writer.line("v = MOMENT(v)", MOMENT=moment_text)
    elif datatype == "string":
        writer.line("v = NAMES.get(raw)", NAMES=dict(field.choices))
        writer.line("if v is None: return UNNAMED")
    else:
        if field.choices:
            # 0 and 1 of a boolean path are its values, whatever the DBC calls them.
            meant = (0, 1) if datatype == "boolean" else ()
            named = frozenset(raw for raw in field.choices if raw not in meant)
            writer.line("if raw in NAMED_RAW: return NAMED", NAMED_RAW=named)
        writer.physical(field)
        if entry.math is not None:
            writer.line("v = MATH_FN(v)", MATH_FN=entry.math)
            writer.line("if v is None: return MATH")
    if datatype == "boolean":
        writer.line("if v == 0: return False")
        writer.line("if v == 1: return True")
        writer.line("return RANGE")
    elif datatype == "string":
        writer.line("return v")
    else:
        writer.convert(conversion, entry.valid)
        writer.snap(grid_deg, quantum)
        writer.finish_number(datatype)
    return writer.function()


def _text_transform(kind: TextKind, field: Field) -> Transform:
    assert field.is_text, "binding takes the bytes of what the mapping calls a text"
    read = text_reader(kind, is_j1939=field.is_j1939)

    def transform(raw: float | bytes) -> Value | Drop:
        assert isinstance(raw, bytes), "the raw value of a text is its bytes"
        text = read(raw)
        if isinstance(text, NoText):
            return Drop.NOT_AVAILABLE if text is NoText.NOT_AVAILABLE else Drop.NO_TEXT
        return text

    return transform


def compile_snap(
    *, grid_deg: float | None, quantum: float | None
) -> Callable[[int | float], Value | Drop]:
    """Return the function that puts what was computed from permitted values back on their steps.

    Args:
        grid_deg: As for `compile_transform`.
        quantum: As for `compile_transform`.

    Returns:
        A function from a number to a double after steps 6, 7 and 9.
    """
    writer = _Writer()
    writer.line("v = raw")
    writer.snap(grid_deg, quantum)
    writer.finish_number("double")
    return writer.function()


class _Writer:
    """Collects the lines of one function; constants reach it by name, never as source text."""

    def __init__(self) -> None:
        self._names: dict[str, object] = {drop.name: drop for drop in Drop}
        self._lines: list[str] = []

    def check_available(self, field: Field) -> None:
        limit = first_reserved(field)
        if limit is not None:
            self.line("if raw >= RESERVED: return NOT_AVAILABLE", RESERVED=limit)

    def line(self, text: str, **names: object) -> None:
        self._lines.append(text)
        self._names |= names

    def physical(self, field: Field) -> None:
        scale, offset = field.scale, field.offset
        if scale == 1 and offset == 0:
            self.line("v = raw")
        else:
            self.line("v = raw * SCALE + OFFSET", SCALE=scale, OFFSET=offset)
        if (
            field.is_float
            or isinstance(scale, float)
            or isinstance(offset, float)
            or field.length + scale.bit_length() > _SAFE_BITS
            or offset.bit_length() > _SAFE_BITS
        ):
            self.in_doubles()

    def in_doubles(self) -> None:
        """A longer integer would raise where it meets a float."""
        self.line("if not -BIGGEST <= v <= BIGGEST: return RANGE", BIGGEST=sys.float_info.max)

    def look_up(self, field: Field, choices: tuple[Choice, ...]) -> None:
        """A name matches as text, a number matches the physical value; the first line wins."""
        by_number: dict[Number, Value] = {}
        for choice in choices:
            if not isinstance(choice.source, str):
                by_number.setdefault(choice.source, choice.target)
        by_raw: dict[int, Value] = {}
        for raw, name in field.choices.items():
            number = raw * field.scale + field.offset
            for choice in choices:
                if choice.source in (name, number):
                    by_raw[raw] = choice.target
                    break
        self.line("v = BY_RAW.get(raw)", BY_RAW=by_raw)
        if by_number:
            self.line("if v is None:", BY_NUMBER=by_number, S=field.scale, O=field.offset)
            self.line("    v = BY_NUMBER.get(raw * S + O)")
        self.line("if v is None: return UNMAPPED")

    def convert(self, conversion: Conversion, valid: tuple[float, float] | None) -> None:
        if not conversion.is_identity:
            self.line("v = v * FACTOR + SHIFT", FACTOR=conversion.factor, SHIFT=conversion.offset)
            if isinstance(conversion.factor, int):
                self.in_doubles()
        if valid is not None:
            self.line("if not LOW <= v <= HIGH: return INVALID", LOW=valid[0], HIGH=valid[1])

    def snap(self, grid_deg: float | None, quantum: float | None) -> None:
        if grid_deg is not None:
            # The limit keeps a coordinate from passing through unsnapped where cells are too fine
            # to count.
            self.line("n = v / GRID", GRID=grid_deg)
            self.line("if not -EXACT < n < EXACT: return RANGE", EXACT=_EXACT)
            self.line("v = round((floor(n) + 0.5) * GRID, DECIMALS)", DECIMALS=GRID_DECIMALS)
        if quantum is not None:
            self.line("n = v / QUANTUM", QUANTUM=quantum)
            # Also beyond 2**53 steps: there a long integer is no multiple yet.
            self.line(
                "if -BIGGEST <= n <= BIGGEST: v = round(n) * QUANTUM", BIGGEST=sys.float_info.max
            )

    def finish_number(self, datatype: str) -> None:
        if datatype in INTEGER_RANGES:
            low, high = INTEGER_RANGES[datatype]
            # Half a step of room: what rounds into the range is in it. NaN fails both comparisons.
            self.line("if not LEAST - 1 < v < MOST + 1: return RANGE", LEAST=low, MOST=high)
            self.line("v = round(v)")
            self.line("return v if LEAST <= v <= MOST else RANGE")
        else:
            self.line(
                "return float(v) if -BIGGEST <= v <= BIGGEST else RANGE", BIGGEST=sys.float_info.max
            )

    def function(self) -> Transform:
        scope = self._names | {"floor": math.floor, "round": round, "float": float}
        scope["__builtins__"] = {}
        source = "def transform(raw):\n    " + "\n    ".join(self._lines)
        exec(compile(source, "<transform>", "exec"), scope)  # noqa: S102 - the text is ours, see line()
        made: Transform = scope["transform"]  # type: ignore[assignment]
        # exec made it
        return made
