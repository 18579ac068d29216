"""The `SG_` entries of one message to its usable signals.

Rules:
 * What has two meanings is set aside, and named: one name for two layouts, a signal that no payload
   can hold, a multiplexer that is not there or selects itself.
 * Multiplexing is read as cantools does. With one multiplexer in the message (`M`), each `m<id>`
   hangs on it, with the ids of its `SG_MUL_VAL_` added. With several, `SG_MUL_VAL_` alone says what
   hangs on what; a marked signal that it does not mention is always there, and named.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from agent.core.dbcdetail import Details, Ranges, merge_ranges
from agent.core.dbctext import Repair, Statement, unescape
from agent.errors import DbcError

LITTLE_ENDIAN = "little_endian"
BIG_ENDIAN = "big_endian"
FLOAT_LENGTHS = (16, 32, 64)

MAX_PAYLOAD_BYTES = 4095  # ISO 15765-2, and more than SAE J1939-21's 1785: the longest reassembly.
MAX_MUX_DEPTH = 16  # Real files nest three deep.
_MAX_DIGITS = 400  # A double has 309 before its point.

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NO_CHOICES: Mapping[int, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Signal:
    """One signal as the file describes it.

    Attributes:
        name: Unique in its message.
        start: Least significant bit (little endian) or most significant bit (big endian), counted
            8 * byte + bit with bit 7 as a byte's highest.
        length: Bits.
        byte_order: LITTLE_ENDIAN or BIG_ENDIAN.
        is_signed: Two's complement.
        is_float: IEEE 754; `length` is one of FLOAT_LENGTHS.
        scale: As written: an integer where the file has no point or exponent.
        offset: As `scale`.
        choices: Raw value to its name.
        unit: None where the file has an empty text.
        multiplexer: Name of the signal that says when this one is there; None is always.
        multiplexer_ids: (lowest, highest) raw values of the multiplexer, ascending, apart.
        line: 1-based.
    """

    name: str
    start: int
    length: int
    byte_order: str
    is_signed: bool
    is_float: bool
    scale: int | float
    offset: int | float
    choices: Mapping[int, str]
    unit: str | None
    multiplexer: str | None
    multiplexer_ids: Ranges
    line: int


def name_of(declaration: Statement) -> str:
    """Return the name that an `SG_` statement declares."""
    assert declaration.parts is not None  # Checked when the statement was given to its message.
    return declaration.parts[0] or ""


def name_repair(name: str, line: int) -> Repair | None:
    """Return what is to be told of a name that other tools do not take."""
    if _IDENTIFIER.fullmatch(name):
        return None
    kind = "digit-name" if name[0].isdigit() else "odd-name"
    return Repair(line, kind, f"{name} is no identifier; it is kept, a mapping may use it as it is")


def read_signals(
    declarations: Sequence[Statement], details: Details, *, key: int, message: str, file: str
) -> tuple[tuple[Signal, ...], list[Repair]]:
    """Return the usable signals of one message, and what had to be repaired or set aside.

    Args:
        declarations: The message's `SG_` statements.
        details: What the file says about them elsewhere.
        key: The message's key in `details`.
        message: The message's name, for sentences.
        file: The file's name, for errors.

    Raises:
        DbcError: A scale or offset is no usable number.
    """
    reader = _Reader(details, key, message, file)
    signals = reader.long_names(reader.multiplexed(reader.unique(declarations)))
    return tuple(signals.values()), reader.repairs


def _number(text: str, *, file: str, line: int) -> int | float:
    """Return an integer where the text has no point or exponent, as cantools does."""
    if len(text) <= _MAX_DIGITS:
        number = int(text) if text.lstrip("+-").isdecimal() else float(text)
        if -1e300 < number < 1e300:
            return number
    raise DbcError(
        f"scale or offset of {len(text)} characters is no usable number", file=file, line=line
    )


class _Reader:
    """Reads the signals of one message; each step returns what is left."""

    def __init__(self, details: Details, key: int, message: str, file: str) -> None:
        self.repairs: list[Repair] = []
        self._details = details
        self._key = key
        self._message = message
        self._file = file
        self._markers: dict[str, str] = {}
        self._selectors = details.selectors.get(key, set())

    def unique(self, declarations: Sequence[Statement]) -> dict[str, Signal]:
        """Return the signals by name; a name with two layouts is none."""
        signals: dict[str, Signal] = {}
        ambiguous = set()
        for item in declarations:
            name = name_of(item)
            signal, marker = self._signal(item)
            known = signals.get(name)
            if known is None:
                signals[name] = signal
                self._markers[name] = marker
                repair = name_repair(name, item.line)
                if repair is not None:
                    self.repairs.append(repair)
            elif (replace(known, line=item.line), self._markers[name]) == (signal, marker):
                self._repair(item.line, "double-signal", f"{name} is declared twice alike", "once")
            else:
                ambiguous.add(name)
                what = f"{name} has another layout at line {known.line}"
                self._set_aside(item.line, "double-signal", what)
        return {
            name: signal
            for name, signal in signals.items()
            if name not in ambiguous and self._fits(signal)
        }

    def multiplexed(self, signals: dict[str, Signal]) -> dict[str, Signal]:
        """Return the signals with their multiplexers, without those whose multiplexer is lost."""
        # Names that were set aside count: a message with two multiplexers does not become one with
        # one because the other is broken.
        multiplexers = [name for name, marker in self._markers.items() if marker.endswith("M")]
        only = multiplexers[0] if len(multiplexers) == 1 else None
        for name, signal in list(signals.items()):
            marker = self._markers[name]
            if marker:
                signals[name] = self._under(signal, marker, only, bool(multiplexers))
            elif (self._key, name) in self._details.multiplexing:
                what = f"SG_MUL_VAL_ for {name}, which is not marked as multiplexed"
                self._repair(signal.line, "no-marker", what, "taken as always there")
        lost = set()
        for name, signal in signals.items():
            why = _lost(signal, signals)
            if why is not None:
                self._set_aside(signal.line, "lost-multiplexer", f"{name} {why}")
                lost.add(name)
            elif signal.multiplexer is not None:
                self._check_ids(signal, signals[signal.multiplexer])
        return {name: signal for name, signal in signals.items() if name not in lost}

    def long_names(self, signals: dict[str, Signal]) -> dict[str, Signal]:
        """Return the signals under their long names, where these are unique in the message."""
        names = {name: self._details.signal_names.get((self._key, name), name) for name in signals}
        if all(name == long for name, long in names.items()):
            return signals
        count = Counter(names.values())
        for name, long in names.items():
            if count[long] > 1 or (long != name and long in names):
                what = f'{name} has the long name "{long}" of another signal'
                self._repair(signals[name].line, "double-long-name", what, f"called {name}")
                names[name] = name
        return {
            names[name]: replace(
                item,
                name=names[name],
                multiplexer=None if item.multiplexer is None else names[item.multiplexer],
            )
            for name, item in signals.items()
        }

    def _signal(self, declaration: Statement) -> tuple[Signal, str]:
        """Return what one statement says, and its multiplexer marker."""
        assert declaration.parts is not None
        name, marker, start, length, order, sign, scale, offset, unit = (
            part or "" for part in declaration.parts
        )
        value_type = self._details.value_types.get((self._key, name), 0)
        signal = Signal(
            name=name,
            start=int(start),
            length=int(length),
            byte_order=BIG_ENDIAN if order == "0" else LITTLE_ENDIAN,
            is_signed=sign == "-",
            is_float=value_type in (1, 2),
            scale=_number(scale, file=self._file, line=declaration.line),
            offset=_number(offset, file=self._file, line=declaration.line),
            choices=self._details.choices.get((self._key, name), _NO_CHOICES),
            unit=unescape(unit) or None,
            multiplexer=None,
            multiplexer_ids=(),
            line=declaration.line,
        )
        return signal, marker

    def _fits(self, signal: Signal) -> bool:
        start, length = signal.start, signal.length
        if signal.byte_order == BIG_ENDIAN:
            start = 8 * (start // 8) + 7 - start % 8
        if length < 1 or start + length > 8 * MAX_PAYLOAD_BYTES:
            what = f"{signal.name} has {length} bits from bit {signal.start}"
            self._set_aside(signal.line, "odd-layout", f"{what}: no payload holds that")
            return False
        if signal.is_float and length not in FLOAT_LENGTHS:
            what = f"{signal.name} is a floating-point number of {length} bits"
            self._set_aside(signal.line, "odd-layout", f"{what}, there are only {FLOAT_LENGTHS}")
            return False
        return True

    def _under(self, signal: Signal, marker: str, only: str | None, has_any: bool) -> Signal:  # noqa: FBT001
        """Return a marked signal with its multiplexer, or name that it has none."""
        name, line = signal.name, signal.line
        stated, ranges = self._details.multiplexing.get((self._key, name), (None, ()))
        parent = only or stated
        if parent is not None and name != only:
            own = [(int(marker[1:]),) * 2] if only and marker[1:] else []
            ids = merge_ranges([*own, *(ranges if stated == parent else ())])
            return replace(signal, multiplexer=parent, multiplexer_ids=ids)
        if not marker.endswith("M") and name in self._selectors:
            what = f"{name} is marked {marker} and not M, but SG_MUL_VAL_ entries name it"
            self._repair(line, "odd-multiplexer", what, "taken as a multiplexer")
        elif marker != "M":
            why = (
                "no SG_MUL_VAL_ says of which multiplexer" if has_any else "there is no multiplexer"
            )
            self._repair(
                line, "no-multiplexer", f"{name} is marked {marker}, but {why}", "always there"
            )
        return signal

    def _check_ids(self, signal: Signal, selector: Signal) -> None:
        """Name a signal that no value of its multiplexer selects."""
        ids = signal.multiplexer_ids
        reach = 1 << selector.length - selector.is_signed
        if not ids or ids[0][0] >= reach:
            stated = f"at {ids[0][0]} of" if ids else "at no value of"
            what = (
                f"{signal.name} is there {stated} {selector.name}, whose values end below {reach}"
            )
            self._repair(signal.line, "unreached-id", what, "it is never there")

    def _repair(self, line: int, kind: str, what: str, outcome: str) -> None:
        self.repairs.append(Repair(line, kind, f"{what} in message {self._message}; {outcome}"))

    def _set_aside(self, line: int, kind: str, what: str) -> None:
        self._repair(line, kind, what, "the signal is not used")


def _lost(signal: Signal, signals: Mapping[str, Signal]) -> str | None:
    """Return why a signal's multiplexers cannot be followed up to one that is always there."""
    parent = signal.multiplexer
    for _ in range(MAX_MUX_DEPTH):
        if parent is None:
            return None
        if parent not in signals:
            return f"depends on the multiplexer {parent}, which cannot be used"
        parent = signals[parent].multiplexer
    return f"is nested more than {MAX_MUX_DEPTH} multiplexers deep, or in a circle"
