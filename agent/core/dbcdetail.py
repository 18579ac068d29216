"""What a DBC file says about its messages and signals after it has declared them.

Rules:
 * An entry about a message or signal that the file does not declare is an orphan: it is named and
   has no effect.
 * The last of several entries about one thing counts, as in cantools; a difference is named.
 * Ids are compared after the repair of bit 31: an entry may write it where the message does not.
"""

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

from agent.core.dbctext import PAIR, Repair, Statement, unescape
from agent.core.model import CAN_EFF_FLAG, CAN_EFF_MASK, CAN_SFF_MASK

_T = TypeVar("_T")

Ranges = tuple[tuple[int, int], ...]

# CANdb++'s numbering, for files that use the attribute without listing its names.
_FRAME_FORMATS = ("StandardCAN", "ExtendedCAN", "reserved", "J1939PG")
_INTEGER = re.compile(r"[-+]?\d{1,40}")
_RANGE = re.compile(r"(\d+)\s*-\s*(\d+)")


@dataclass(frozen=True, slots=True)
class Details:
    """What was said, by message key (see `message_key`) or by (message key, signal name).

    Attributes:
        choices: `VAL_`: raw value to its name.
        value_types: `SIG_VALTYPE_`: 0 integer, 1 float, 2 double.
        multiplexing: `SG_MUL_VAL_`: name of the multiplexer, and those of its raw values at which
            the signal is there: (lowest, highest), ascending, apart from each other.
        selectors: Names of the multiplexers in `multiplexing`, by message key.
        senders: `BO_TX_BU_`: further nodes that send the message.
        signal_names: Long names.
        message_names: Long names.
        frame_formats: `VFrameFormat` of messages that state it.
        frame_format: That of all others.
        protocol: `ProtocolType` of the file.
    """

    choices: dict[tuple[int, str], Mapping[int, str]] = field(default_factory=dict)
    value_types: dict[tuple[int, str], int] = field(default_factory=dict)
    multiplexing: dict[tuple[int, str], tuple[str, Ranges]] = field(default_factory=dict)
    selectors: dict[int, set[str]] = field(default_factory=dict)
    senders: dict[int, tuple[str, ...]] = field(default_factory=dict)
    signal_names: dict[tuple[int, str], str] = field(default_factory=dict)
    message_names: dict[int, str] = field(default_factory=dict)
    frame_formats: dict[int, str] = field(default_factory=dict)
    frame_format: str = ""
    protocol: str = ""

    def is_j1939(self, key: int) -> bool:
        """Tell whether a message is a J1939 parameter group; only extended ids can be."""
        stated = self.frame_formats.get(key, self.frame_format)
        return bool(key & CAN_EFF_FLAG) and (stated == "J1939PG" or self.protocol == "J1939")


def message_key(dbc_id: int) -> int:
    """Return the id of a DBC file as Linux canid_t, with bit 31 where it needs more than 11 bits.

    An id that no frame can have is returned as it is.
    """
    if CAN_SFF_MASK < dbc_id <= CAN_EFF_MASK:
        return dbc_id | CAN_EFF_FLAG
    return dbc_id


def merge_ranges(ranges: Sequence[tuple[int, int]]) -> Ranges:
    """Return the same numbers as ascending ranges that do not touch."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        elif low <= high:
            merged.append((low, high))
    return tuple(merged)


def read_details(
    statements: Sequence[Statement], declared: Mapping[int, AbstractSet[str]]
) -> tuple[Details, list[Repair]]:
    """Return what a file's statements say about what it declares, and what had to be repaired.

    Args:
        statements: All statements of the file; those that declare or cannot be read are passed by.
        declared: Message key -> names of its signals.
    """
    reader = _Reader(declared)
    for statement in statements:
        if statement.parts is not None:
            reader.read(statement, statement.parts)
    return reader.details(), reader.repairs


class _Reader:
    """Collects details statement by statement."""

    def __init__(self, declared: Mapping[int, AbstractSet[str]]) -> None:
        self.repairs: list[Repair] = []
        self._declared = declared
        self._said = Details()
        self._formats: Sequence[str] = _FRAME_FORMATS
        self._format_values: dict[int, str] = {}
        self._defaults: dict[str, str] = {}
        self._of_file: dict[str, str] = {}

    def details(self) -> Details:
        # Formats are looked up at the end: a file may define the list after its use.
        formats = {key: self._format(value) for key, value in self._format_values.items()}
        return replace(
            self._said,
            frame_formats=formats,
            frame_format=self._format(self._defaults.get("VFrameFormat", "")),
            protocol=self._of_file.get("ProtocolType", self._defaults.get("ProtocolType", "")),
        )

    def read(self, statement: Statement, parts: tuple[str | None, ...]) -> None:
        match statement.keyword, parts:
            case "VAL_", (str(dbc_id), str(signal), str(pairs)) if dbc_id:
                self._read_choices(statement, dbc_id, signal, pairs)
            case "SIG_VALTYPE_", (str(dbc_id), str(signal), str(code)):
                if self._concerns(statement, dbc_id, signal):
                    key = message_key(int(dbc_id)), signal
                    self._set(statement, self._said.value_types, key, int(code))
            case "SG_MUL_VAL_", (str(dbc_id), str(signal), str(multiplexer), str(ranges)):
                self._read_multiplexing(statement, dbc_id, signal, multiplexer, ranges)
            case "BO_TX_BU_", (str(dbc_id), str(names)):
                if self._concerns(statement, dbc_id, None):
                    senders = tuple(names.replace(",", " ").split())
                    self._said.senders[message_key(int(dbc_id))] = senders
            case "CM_", (str(), str(dbc_id), signal):
                self._concerns(statement, dbc_id, signal)
            case _:
                self._read_attributes(statement, parts)

    def _read_choices(self, statement: Statement, dbc_id: str, signal: str, pairs: str) -> None:
        if not self._concerns(statement, dbc_id, signal):
            return
        choices: dict[int, str] = {}
        for number, text in PAIR.findall(pairs):
            value = float(number)
            if not value.is_integer():
                what = f"VAL_ of {signal} names {number}, which no raw value can be; left out"
                self._repair(statement, "odd-choice", what)
                continue
            # A double cannot hold every 64-bit value; beyond that it does not matter.
            raw = int(number) if _INTEGER.fullmatch(number) else int(value)
            if choices.get(raw, text) != text:
                what = f"VAL_ of {signal} gives {raw} two names; the last one counts"
                self._repair(statement, "double-choice", what)
            choices[raw] = unescape(f'"{text}"')
        if choices:
            key = message_key(int(dbc_id)), signal
            self._set(statement, self._said.choices, key, MappingProxyType(choices))

    def _read_multiplexing(
        self, statement: Statement, dbc_id: str, signal: str, multiplexer: str, ranges: str
    ) -> None:
        if not self._concerns(statement, dbc_id, signal):
            return
        merged = merge_ranges([(int(low), int(high)) for low, high in _RANGE.findall(ranges)])
        key = message_key(int(dbc_id)), signal
        self._set(statement, self._said.multiplexing, key, (multiplexer, merged))
        self._said.selectors.setdefault(key[0], set()).add(multiplexer)

    def _read_attributes(self, statement: Statement, parts: tuple[str | None, ...]) -> None:
        match statement.keyword, parts:
            case "BA_DEF_", ("VFrameFormat", "ENUM", str(names)):
                self._formats = tuple(names.replace('"', " ").replace(",", " ").split())
            case "BA_DEF_DEF_", (str(attribute), str(value)):
                self._defaults[attribute] = unescape(value)
            case "BA_", (str(attribute), *about, str(value)):
                self._read_attribute(statement, attribute, about, unescape(value))
            case _:
                pass

    def _read_attribute(
        self, statement: Statement, attribute: str, about: Sequence[str | None], value: str
    ) -> None:
        kind, dbc_id, signal = about
        if not kind:
            self._of_file[attribute] = value
            return
        if dbc_id is None or not self._concerns(statement, dbc_id, signal):
            return
        key = message_key(int(dbc_id))
        if attribute == "VFrameFormat":
            self._format_values[key] = value
        elif attribute == "SystemMessageLongSymbol" and value:
            self._said.message_names[key] = value
        elif attribute == "SystemSignalLongSymbol" and value and signal is not None:
            self._said.signal_names[key, signal] = value

    def _concerns(self, statement: Statement, dbc_id: str, signal: str | None) -> bool:
        """Tell whether what the entry is about exists; name an orphan."""
        signals = self._declared.get(message_key(int(dbc_id)))
        if signals is not None and (signal is None or signal in signals):
            return True
        subject = f"message {dbc_id}" if signals is None else f"signal {signal} of message {dbc_id}"
        kind = f"orphan-{statement.keyword.strip('_').lower().replace('_', '-')}"
        what = f"{statement.keyword} for {subject}, which the file does not declare; left out"
        self._repair(statement, kind, what)
        return False

    def _set(
        self,
        statement: Statement,
        known: dict[tuple[int, str], _T],
        key: tuple[int, str],
        value: _T,
    ) -> None:
        if known.get(key, value) != value:
            what = f"a second {statement.keyword} for {key[1]} says something else; it counts"
            self._repair(statement, "double-entry", what)
        known[key] = value

    def _repair(self, statement: Statement, kind: str, what: str) -> None:
        self.repairs.append(Repair(statement.line, kind, what))

    def _format(self, value: str) -> str:
        """Return the name of a frame format that is given by name or by number."""
        if value.isdecimal():
            return self._formats[int(value)] if int(value) < len(self._formats) else ""
        return value
