"""Each mapping entry bound to exactly one DBC signal on a bus, or set aside with the reason.

Rules:
 * Never a guess: a name that no DBC of the bus knows, or that means several signals, disables its
   entry, and the warning names the candidates. So does a unit that does not convert to the
   catalogue's.
 * A path that is made of what stands for one of a stricter class is set aside, see `lineage`.
 * Paths outside the catalogue cannot be granted: they are counted, not bound.
 * The same signal with the same layout from two DBC files is one signal.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from agent.core.bound import Bound
from agent.core.catalogue import Catalogue, Scope
from agent.core.catalogue import Signal as VssSignal
from agent.core.dbc import DbcFile
from agent.core.decode import Field, field_of
from agent.core.lineage import laxer
from agent.core.mapping import Entry, VehicleMapping
from agent.core.model import CAN_EFF_FLAG
from agent.core.text import TextKind
from agent.core.transform import is_numeric
from agent.core.units import IDENTITY, Conversion, conversion, same_unit

MAX_CANDIDATES = 5  # Named in a warning.
_ELSEWHERE = "the mapping takes it only from the bus "
MAX_COMPARED = 500  # Names that a wrong one is compared with; each costs some 20 us.
_FD_BYTES = 64
_BEGIN = 3  # Characters that a misspelled name has in common with the right one, as in length.


@dataclass(frozen=True, slots=True)
class Binding:
    """What a vehicle can give.

    Attributes:
        bound: Every usable (path, bus).
        disabled: Path -> why it is not usable.
        outside: Mapped paths that are not in the catalogue.
        warnings: Sentences for the user, each once.
    """

    bound: tuple[Bound, ...]
    disabled: dict[str, str]
    outside: tuple[str, ...]
    warnings: tuple[str, ...]


class _Unusable(Exception):  # noqa: N818 - leaves this module as a sentence, never as an exception
    """Why an entry is set aside."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    message: str
    can_id: int
    is_j1939: bool
    length: int
    field: Field
    siblings: dict[str, Field]


def bind(
    mapping: VehicleMapping,
    dbcs: Sequence[DbcFile],
    catalogue: Catalogue,
    *,
    bus: str | None,
    any_bus: bool = False,
) -> Binding:
    """Bind the entries of one mapping to the DBC files of one bus.

    Args:
        mapping: The mapping file.
        dbcs: The DBC files that describe this bus.
        catalogue: What can be granted.
        bus: The bus's name; None stands for every bus without a name of its own.
        any_bus: Ignore the `bus` key of entries (no bus was named at all).
    """
    index = _index(dbcs)
    bound: list[Bound] = []
    disabled: dict[str, str] = {}
    outside: list[str] = []
    warnings: list[str] = [f"{mapping.name}: {warning}" for warning in mapping.warnings]
    for entry in mapping.entries:
        found = catalogue.signal(entry.path)
        if found is None:
            outside.append(entry.path)
        elif not any_bus and entry.bus is not None and entry.bus != bus:
            disabled[entry.path] = f"{_ELSEWHERE}{entry.bus}"
        else:
            try:
                made, notes = _bind_entry(entry, found[0], found[1], index, bus)
                bound.append(made)
                warnings += notes
            except _Unusable as exc:
                disabled[entry.path] = str(exc)
                warnings.append(f"{entry.path} is not taken: {exc}")
    for path, why in laxer(bound, catalogue).items():
        disabled[path] = why
        warnings.append(f"{path} is not taken: {why}")
    bound = [item for item in bound if item.vss.path not in disabled]
    return Binding(tuple(bound), disabled, tuple(outside), tuple(dict.fromkeys(warnings)))


def merge(bindings: Iterable[Binding]) -> Binding:
    """Return the binding of a vehicle with several buses."""
    parts = list(bindings)
    bound = tuple(item for part in parts for item in part.bound)
    taken = {item.vss.path for item in bound}
    disabled: dict[str, str] = {}
    for path, why in (item for part in parts for item in part.disabled.items()):
        if path not in taken and disabled.get(path, _ELSEWHERE).startswith(_ELSEWHERE):
            disabled[path] = why
    outside = tuple(dict.fromkeys(path for part in parts for path in part.outside))
    warnings = dict.fromkeys(
        warning
        for part in parts
        for warning in part.warnings
        # What one bus lacks and another has is no fault.
        if not any(warning.startswith(f"{path} is not taken") for path in taken)
    )
    for path, why in disabled.items():
        if why.startswith(_ELSEWHERE):
            warnings[f"{path} is not taken: {why}, and no bus has this name"] = None
    return Binding(bound, disabled, outside, tuple(warnings))


def _index(dbcs: Sequence[DbcFile]) -> dict[str, list[_Candidate]]:
    """Index every signal under its bare name and under `Message.Signal`."""
    index: dict[str, list[_Candidate]] = {}
    for dbc in dbcs:
        for message in dbc.messages:
            can_id = message.frame_id | (CAN_EFF_FLAG if message.is_extended_frame else 0)
            j1939 = dbc.is_j1939(message)
            fields = {
                signal.name: field_of(message, signal.name, is_j1939=j1939)
                for signal in message.signals
            }
            reach = max((field.last_byte + 1 for field in fields.values()), default=0)
            length = max(message.length, reach)
            for name, field in fields.items():
                candidate = _Candidate(message.name, can_id, j1939, length, field, fields)
                for key in (name, f"{message.name}.{name}"):
                    known = index.setdefault(key, [])
                    if not any(
                        (other.can_id, other.field) == (can_id, field)
                        and other.message == message.name
                        for other in known
                    ):
                        known.append(candidate)
    return index


def _bind_entry(
    entry: Entry,
    scope: Scope,
    vss: VssSignal,
    index: dict[str, list[_Candidate]],
    bus: str | None,
) -> tuple[Bound, list[str]]:
    candidate = _resolve(entry.signal, index)
    notes: list[str] = []
    _check_datatype(entry, vss, candidate.field)
    field = candidate.field if entry.text is None else replace(candidate.field, is_text=True)
    made = Bound(
        entry=entry,
        scope=scope,
        vss=vss,
        bus=bus,
        message=candidate.message,
        can_id=candidate.can_id,
        is_j1939=candidate.is_j1939,
        length=candidate.length,
        field=field,
        conditions=tuple((_sibling(name, candidate), value) for name, value in entry.multiplexer),
        conversion=_conversion(entry, vss),
    )
    if entry.source is not None and not candidate.is_j1939:
        raise _Unusable(f"source is given, but {candidate.message} is not a J1939 message")
    if entry.isotp is not None and candidate.is_j1939:
        raise _Unusable(f"transport is given, but {candidate.message} is a J1939 message")
    if candidate.length > _FD_BYTES and not made.is_transported:
        notes.append(
            f"{entry.path}: {candidate.message} has {candidate.length} bytes, more than any frame; "
            "where it comes by ISO-TP the mapping says transport: isotp"
        )
    unit, dbc_unit = entry.unit or vss.unit, candidate.field.unit
    if (
        is_numeric(vss.datatype)
        and dbc_unit
        and unit
        and entry.math is None
        and entry.choices is None
        and not same_unit(unit, dbc_unit)
    ):
        notes.append(
            f"{entry.path}: the DBC says {dbc_unit} for {entry.signal}, the mapping {unit}; "
            "the mapping is followed"
        )
    return made, notes


def _resolve(name: str, index: dict[str, list[_Candidate]]) -> _Candidate:
    found = index.get(name, [])
    if len(found) == 1:
        return found[0]
    if found:
        names = sorted({f"{item.message}.{item.field.name}" for item in found})
        several = ", ".join(names[:MAX_CANDIDATES]) + (" …" if len(names) > MAX_CANDIDATES else "")
        raise _Unusable(f"{name} is ambiguous, there are {len(found)}: {several}")
    close = _close_names(name, index)
    hint = f"; close are {', '.join(close)}" if close else ""
    raise _Unusable(f"no DBC has a signal {name}{hint}")


def _close_names(name: str, index: Iterable[str]) -> list[str]:
    """Return up to 3 names that may have been meant; bounded work, for many names may be wrong."""
    known = list(index)
    if len(known) > MAX_COMPARED:
        begin = name[:_BEGIN].casefold()
        known = [
            other
            for other in known
            if abs(len(other) - len(name)) <= _BEGIN and other[:_BEGIN].casefold() == begin
        ][:MAX_COMPARED]
    return difflib.get_close_matches(name, known, n=3)


def _sibling(name: str, candidate: _Candidate) -> Field:
    field = candidate.siblings.get(name.removeprefix(f"{candidate.message}."))
    if field is None:
        raise _Unusable(f"multiplexer {name} is not a signal of {candidate.message}")
    return field


def _conversion(entry: Entry, vss: VssSignal) -> Conversion:
    if entry.unit is None or not is_numeric(vss.datatype):
        return IDENTITY
    if vss.unit is None:
        raise _Unusable(f"unit {entry.unit} is given, the catalogue has none for this path")
    found = conversion(entry.unit, vss.unit)
    if found is None:
        raise _Unusable(f"unit {entry.unit} does not convert to {vss.unit}")
    return found


def _is_moment(vss: VssSignal, field: Field) -> bool:
    """Tell whether a path is a moment in text, and the signal the seconds since the epoch."""
    return vss.unit == "iso8601" and field.unit == "s"


def _kind_of(vss: VssSignal) -> TextKind:
    """Return what characters a path has; leaves named VIN have those of ISO 3779."""
    return TextKind.VIN if vss.path.rpartition(".")[2] == "VIN" else TextKind.ASCII


def _check_text(kind: TextKind, vss: VssSignal, field: Field) -> None:
    """Raise where a signal's bytes cannot be the characters of a path."""
    if vss.datatype != "string":
        raise _Unusable(f"text is given, but the path is {vss.datatype}")
    if kind is not _kind_of(vss):
        raise _Unusable(f"the mapping says text: {kind}, but this path is text: {_kind_of(vss)}")
    if not field.is_whole or field.is_signed or field.is_float or field.choices:
        raise _Unusable(f"{field.name} is no text: it is unsigned, of whole bytes, without names")


def _check_datatype(entry: Entry, vss: VssSignal, field: Field) -> None:
    """Raise where no value of the signal could ever be one of the path."""
    if entry.text is not None:
        _check_text(entry.text, vss, field)
        return
    if vss.datatype == "string":
        if entry.math is not None:
            raise _Unusable("the path is text, math gives numbers")
        if entry.choices is None and not field.choices and not _is_moment(vss, field):
            raise _Unusable(
                f"the path is text, {entry.signal} has no named values; "
                f"where its bytes are characters the mapping says text: {_kind_of(vss)}"
            )
        wanted: tuple[type, ...] = (str,)
    elif vss.datatype == "boolean":
        wanted = (bool,)
    elif is_numeric(vss.datatype):
        wanted = (int, float)
    else:
        raise _Unusable(f"a CAN signal cannot give a {vss.datatype}")
    for choice in entry.choices or ():
        fits = isinstance(choice.target, wanted) and (
            bool in wanted or not isinstance(choice.target, bool)
        )
        if not fits:
            raise _Unusable(f"mapping to {choice.target!r}, but the path is {vss.datatype}")
