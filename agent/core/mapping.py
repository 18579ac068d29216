"""Which DBC signal stands for which VSS path, read from a mapping file.

The file is a COVESA VSS overlay: YAML (`.vspec`), where a leaf stands under its full path, or a
JSON or YAML tree with `children`. The leaf's keys are those of KUKSA's CAN provider (`dbc2vss`, or
`dbc`), so its own files load unchanged; those from `bus` on are ours:

    Vehicle.Speed:
      datatype: float
      type: sensor
      unit: km/h                  the unit after the transform; default: the catalogue's
      dbc2vss:
        signal: Message.Signal    or a bare name that is unique on its bus
        interval_ms: 100          neither this nor on_change: 1000
        on_change: true
        transform: {math: "floor(abs(x/5))"}   or {mapping: [{from: ..., to: ...}]}
        multiplexer: [{signal: Mux, value: 3}]   only from frames where these signals say so
        bus: body                 only on this bus
        source: 0x17              only from this J1939 source address
        valid: [0, 250]           in the catalogue's unit; outside is dropped
        transport: isotp          the DBC describes a message that ISO 15765-2 carries, from its
                                  first byte on; isotp-length: from the low byte of its length on
        address: 0xF1             with transport: the target address of extended addressing, or the
                                  address extension of mixed addressing
        text: vin                 the signal's bytes are the characters of a text path: ascii, vin

Rules:
 * Which DBC signal a name means is not decided here, but in `binding`.
 * A key that this module does not know makes a warning; a known key with a wrong value makes the
   file wrong, and all faults of a file are told at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.core.expression import ExpressionError, Number, compile_expression
from agent.core.mappingtree import FORMAT_HINT, read_leaves
from agent.core.model import NS_PER_MS, Value
from agent.core.text import TextKind
from agent.errors import MappingError

DEFAULT_INTERVAL_MS = 1000  # KUKSA: neither interval_ms nor on_change is given.

_BEYOND = 1e300  # As for the numbers of a DBC: what is computed with them stays a double.
_KNOWN_KEYS = frozenset(
    (
        *(
            "signal",
            "interval_ms",
            "on_change",
            "transform",
            "multiplexer",
            "bus",
            "source",
            "valid",
        ),
        *("transport", "address", "text"),
    )
)
_TRANSPORTS = {"isotp": False, "isotp-length": True}


@dataclass(frozen=True, slots=True)
class Choice:
    """One line of a `transform.mapping`: what the DBC says and what the path says for it."""

    source: Value
    target: Value


@dataclass(frozen=True, slots=True)
class IsoTp:
    """How a message that ISO 15765-2 carries is addressed, and where the DBC begins to count.

    Attributes:
        with_length: The DBC's byte 0 is the low byte of the length, as in a single frame.
        address: The target address, or address extension, that frames begin with; None: normal
            addressing.
    """

    with_length: bool
    address: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """How one VSS path is taken from CAN.

    Attributes:
        path: The VSS path.
        signal: As written: `Message.Signal` or a bare name.
        interval_ns: Shortest time between two samples, ns; 0 takes every one.
        on_change: A value equal to the last one is not taken.
        unit: The unit after the transform as the file gives it; None: the catalogue's.
        math: The compiled `transform.math`, or None.
        choices: The lines of `transform.mapping`, or None.
        multiplexer: (signal name, value) pairs that a frame must show.
        bus: The only bus it is taken from, or None for all.
        source: The only J1939 source address, or None for all.
        valid: Lowest and highest value that is believed, in the catalogue's unit, or None.
        isotp: The signal's message comes by ISO 15765-2; None: it is a frame, or J1939.
        text: The signal's bytes are these characters; None: it is a number.
    """

    path: str
    signal: str
    interval_ns: int
    on_change: bool
    unit: str | None = None
    math: Callable[[Number], Number | None] | None = None
    choices: tuple[Choice, ...] | None = None
    multiplexer: tuple[tuple[str, int], ...] = ()
    bus: str | None = None
    source: int | None = None
    valid: tuple[float, float] | None = None
    isotp: IsoTp | None = None
    text: TextKind | None = None


@dataclass(frozen=True, slots=True)
class VehicleMapping:
    """A mapping file.

    Attributes:
        name: The file's name as the user gave it.
        entries: In the order of the file.
        warnings: Sentences about what was not understood and left aside.
    """

    name: str
    entries: tuple[Entry, ...]
    warnings: tuple[str, ...]


def parse_mapping(data: bytes, *, name: str) -> VehicleMapping:
    """Return the entries of a mapping file.

    Args:
        data: The file's bytes, UTF-8.
        name: The file's name, for messages.

    Raises:
        MappingError: Not YAML or JSON, or keys with wrong values; all of them are named.
    """
    entries: dict[str, Entry] = {}
    warnings: list[str] = []
    faults: list[str] = []
    for path, node in read_leaves(data, name=name):
        wanted = node.get("dbc2vss", node.get("dbc"))
        if wanted is None:
            continue
        reader = _LeafReader(path, faults, warnings)
        if "dbc2vss" in node and "dbc" in node:
            reader.fault("dbc", "stands beside dbc2vss; one of them is enough")
        entry = reader.read(wanted, node.get("unit"))
        if path in entries:
            reader.fault("dbc2vss", "the path stands in the file twice")
        if entry is not None:
            entries[path] = entry
    if faults:
        raise MappingError("; ".join(faults), file=name, hint=FORMAT_HINT)
    return VehicleMapping(name, tuple(entries.values()), tuple(warnings))


class _LeafReader:
    """Reads the keys of one leaf and collects what is wrong with them."""

    def __init__(self, path: str, faults: list[str], warnings: list[str]) -> None:
        self._path = path
        self._faults = faults
        self._warnings = warnings

    def fault(self, key: str, reason: str) -> None:
        self._faults.append(f"{self._path}: {key}: {reason}")

    def read(self, raw: Any, unit: Any) -> Entry | None:
        if not isinstance(raw, dict) or not isinstance(raw.get("signal"), str) or not raw["signal"]:
            self.fault("signal", "must be the name of a DBC signal")
            return None
        for key in raw.keys() - _KNOWN_KEYS:
            self._warnings.append(f"{self._path}: key {key} is not known and does nothing")
        before = len(self._faults)
        on_change = self._get(raw, "on_change", False, "true or false", _is_bool)
        default_ms = 0 if on_change is True else DEFAULT_INTERVAL_MS
        interval_ms = self._get(
            raw, "interval_ms", default_ms, "a whole number of milliseconds, 0 or more", _is_count
        )
        source = self._get(raw, "source", None, "a J1939 source address, 0 to 253", _is_address)
        bus = self._get(raw, "bus", None, "the name of a bus", _is_text)
        valid = self._get(raw, "valid", None, "[lowest, highest]", _is_range)
        if unit is not None and not isinstance(unit, str):
            self.fault("unit", "must be text")
        isotp = self._isotp(raw)
        text = self._get(raw, "text", None, " or ".join(TextKind), lambda v: v in tuple(TextKind))
        if text is not None and raw.get("transform") is not None:
            self.fault("text", "stands beside transform, which is for numbers")
        math_fn, choices = self._transform(raw.get("transform"))
        multiplexer = self._multiplexer(raw.get("multiplexer"))
        if len(self._faults) > before:
            return None
        return Entry(
            path=self._path,
            signal=raw["signal"],
            interval_ns=interval_ms * NS_PER_MS,
            on_change=on_change,
            unit=unit,
            math=math_fn,
            choices=choices,
            multiplexer=multiplexer,
            bus=bus,
            source=source,
            valid=None if valid is None else (valid[0], valid[1]),
            isotp=isotp,
            text=None if text is None else TextKind(text),
        )

    def _get(
        self, raw: Mapping[str, Any], key: str, default: Any, want: str, fits: Callable[[Any], bool]
    ) -> Any:
        if raw.get(key) is None:
            return default
        if not fits(raw[key]):
            self.fault(key, f"must be {want}")
        return raw[key]

    def _isotp(self, raw: Mapping[str, Any]) -> IsoTp | None:
        want = " or ".join(_TRANSPORTS)
        transport = self._get(raw, "transport", None, want, lambda v: v in tuple(_TRANSPORTS))
        address = self._get(raw, "address", None, "a target address, 0 to 255", _is_byte)
        if transport is None and address is not None:
            self.fault("address", "stands without transport")
        if not isinstance(transport, str) or transport not in _TRANSPORTS:
            return None
        return IsoTp(with_length=_TRANSPORTS[transport], address=address)

    def _transform(
        self, raw: Any
    ) -> tuple[Callable[[Number], Number | None] | None, tuple[Choice, ...] | None]:
        if raw is None:
            return None, None
        if not isinstance(raw, dict) or len(raw) != 1 or not raw.keys() & {"math", "mapping"}:
            self.fault("transform", "must hold either math or mapping")
        elif "math" in raw:
            if isinstance(raw["math"], str):
                try:
                    return compile_expression(raw["math"]), None
                except ExpressionError as exc:
                    self.fault("transform.math", str(exc))
            else:
                self.fault("transform.math", "must be text such as 'floor(x/5)'")
        else:
            return None, self._choices(raw["mapping"])
        return None, None

    def _choices(self, raw: Any) -> tuple[Choice, ...] | None:
        lines: list[Any] = raw if isinstance(raw, list) else [None]
        if not all(
            isinstance(line, dict) and _is_value(line.get("from")) and _is_value(line.get("to"))
            for line in lines
        ):
            self.fault("transform.mapping", "must be a list of {from: value, to: value}")
            return None
        return tuple(Choice(line["from"], line["to"]) for line in lines)

    def _multiplexer(self, raw: Any) -> tuple[tuple[str, int], ...]:
        if raw is None:
            return ()
        lines: list[Any] = raw if isinstance(raw, list) else [None]
        if not all(
            isinstance(line, dict) and _is_text(line.get("signal")) and _is_int(line.get("value"))
            for line in lines
        ):
            self.fault("multiplexer", "must be a list of {signal: name, value: whole number}")
            return ()
        return tuple((line["signal"], line["value"]) for line in lines)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_int(value) and 0 <= value <= 10**12


def _is_address(value: Any) -> bool:
    return _is_int(value) and 0 <= value <= 253  # SAE J1939-81: 254 is the null address, 255 global


def _is_byte(value: Any) -> bool:
    return _is_int(value) and 0 <= value <= 0xFF


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_number(value: Any) -> bool:
    number = _is_int(value) or isinstance(value, float)
    return number and -_BEYOND < value < _BEYOND  # NaN fails both comparisons.


def _is_value(value: Any) -> bool:
    return isinstance(value, (str, bool)) or _is_number(value)


def _is_range(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(map(_is_number, value))
        and value[0] <= value[1]
    )
