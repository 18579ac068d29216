"""The scopes that an owner can grant, and how loosely each class of them may be asked for.

Rules:
 * A VSS path belongs to exactly one scope, a scope to exactly one class.
 * A class has *defaults*, used where a grant names nothing, and *ceilings*, the loosest that any
   policy may ask for: `min_interval_s` not below it, `once: true` always once, `precise: true`
   as the only way to do without the default grid.
 * The SHA-256 of the file's exact bytes, classes included, stands in every signed policy: consent
   is bound to the meaning that the owner saw.
 * An unknown member or a default looser than its ceiling is an error, never ignored.
"""

import hashlib
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NoReturn

from agent.core import strictjson
from agent.core.strictjson import shown
from agent.errors import CatalogueError

MAX_CATALOGUE_BYTES = 1 << 20
DATATYPES = frozenset(
    f"{base}{suffix}"
    for base in (
        *("boolean", "string", "float", "double"),
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    )
    for suffix in ("", "[]")
)  # COVESA VSS, chapter "Data types"

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_PATH = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)+", re.ASCII)
_FLAGS = frozenset({"once", "precise"})
_DEFAULTS = frozenset({"min_interval_s", "grid_deg", "once"})
_CEILINGS = frozenset({"min_interval_s", "precise", "once"})

Limit = bool | int | float


@dataclass(frozen=True, slots=True)
class Signal:
    """One VSS leaf that can be granted.

    Attributes:
        path: VSS path, as in `Vehicle.Speed`.
        datatype: VSS datatype, as in `float`; printed and sealed verbatim.
        unit: VSS unit, as in `km/h`, or None.
    """

    path: str
    datatype: str
    unit: str | None


@dataclass(frozen=True, slots=True)
class Scope:
    """What an owner grants by one name."""

    name: str
    scope_class: str
    signals: tuple[Signal, ...]


@dataclass(frozen=True, slots=True)
class ScopeClass:
    """How sensitive a scope is.

    Attributes:
        grantable: False where no policy may grant it at all.
        defaults: Constraint → value where the grant names none.
        ceilings: Constraint → loosest value that a policy may ask for.
    """

    name: str
    grantable: bool
    defaults: Mapping[str, Limit]
    ceilings: Mapping[str, Limit]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All scopes, with the hash that binds a policy to them.

    Attributes:
        sha256: Of the file's exact bytes, 64 lower-case hexadecimal digits.
    """

    id: str
    version: int
    sha256: str
    scopes: Mapping[str, Scope]
    classes: Mapping[str, ScopeClass]
    _by_path: Mapping[str, tuple[Scope, Signal]] = field(repr=False)

    def signal(self, path: str) -> tuple[Scope, Signal] | None:
        """Return the scope that grants a VSS path, and the leaf; None outside the catalogue."""
        return self._by_path.get(path)


def parse_catalogue(data: bytes) -> Catalogue:
    """Return the catalogue of a file's bytes.

    Raises:
        CatalogueError: The bytes are no catalogue; says where and what is expected.
    """
    try:
        raw = strictjson.parse(data, max_bytes=MAX_CATALOGUE_BYTES)
    except strictjson.StrictJsonError as exc:
        raise CatalogueError(f"the catalogue is not strict JSON: {exc}") from exc
    root = _members(raw, "the catalogue", {"catalogue", "version", "vss", "classes", "scopes"})
    version = root["version"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        _fail("version", "a positive integer")
    _text(root["vss"], "vss")
    classes = {
        name: _scope_class(name, value)
        for name, value in _named(root["classes"], "classes", "class").items()
    }
    scopes = {
        name: _scope(name, value, classes)
        for name, value in _named(root["scopes"], "scopes", "scope").items()
    }
    by_path: dict[str, tuple[Scope, Signal]] = {}
    for scope in scopes.values():
        for signal in scope.signals:
            if signal.path in by_path:
                first = by_path[signal.path][0].name
                raise CatalogueError(f"{signal.path} is in two scopes, {first} and {scope.name}")
            by_path[signal.path] = (scope, signal)
    return Catalogue(
        id=_text(root["catalogue"], "catalogue"),
        version=version,
        sha256=hashlib.sha256(data).hexdigest(),
        scopes=MappingProxyType(scopes),
        classes=MappingProxyType(classes),
        _by_path=MappingProxyType(by_path),
    )


def _scope_class(name: str, raw: Any) -> ScopeClass:
    place = f"class {name}"
    members = _members(raw, place, {"grantable", "defaults", "ceilings"})
    if not isinstance(members["grantable"], bool):
        _fail(f"{place}: grantable", "true or false")
    defaults = _limits(members["defaults"], f"{place}: defaults", _DEFAULTS)
    ceilings = _limits(members["ceilings"], f"{place}: ceilings", _CEILINGS)
    if defaults.get("min_interval_s", 0) < ceilings.get("min_interval_s", 0):
        raise CatalogueError(f"{place}: the default min_interval_s is looser than its ceiling")
    if ceilings.get("once", False) and not defaults.get("once", False):
        raise CatalogueError(f"{place}: the default for once is looser than its ceiling")
    return ScopeClass(name, members["grantable"], defaults, ceilings)


def _limits(raw: Any, place: str, allowed: frozenset[str]) -> Mapping[str, Limit]:
    members = _members(raw, place, allowed, needed=frozenset())
    for name, value in members.items():
        if name in _FLAGS:
            if not isinstance(value, bool):
                _fail(f"{place}: {name}", "true or false")
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            _fail(f"{place}: {name}", "a number that is not negative")
        elif name == "grid_deg" and value == 0:
            _fail(f"{place}: {name}", "a positive number")
    return MappingProxyType(members)


def _scope(name: str, raw: Any, classes: Mapping[str, ScopeClass]) -> Scope:
    place = f"scope {name}"
    members = _members(raw, place, {"class", "signals"})
    if not isinstance(members["class"], str) or members["class"] not in classes:
        _fail(f"{place}: class", f"one of {', '.join(classes)}")
    if not isinstance(members["signals"], list) or not members["signals"]:
        _fail(f"{place}: signals", "a list that is not empty")
    signals = tuple(_signal(entry, place) for entry in members["signals"])
    return Scope(name, members["class"], signals)


def _signal(raw: Any, place: str) -> Signal:
    members = _members(raw, f"{place}: a signal", {"path", "datatype", "unit"})
    path = members["path"]
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        _fail(f"{place}: path", "a VSS path such as Vehicle.Speed")
    if not isinstance(members["datatype"], str) or members["datatype"] not in DATATYPES:
        _fail(f"{path}: datatype", "a VSS datatype such as float or uint8")
    if members["unit"] is not None:
        _text(members["unit"], f"{path}: unit")
    return Signal(path, members["datatype"], members["unit"])


def _named(raw: Any, place: str, noun: str) -> dict[str, Any]:
    if not isinstance(raw, dict) or not raw:
        _fail(place, "an object that is not empty")
    for name in raw:
        if not _NAME.fullmatch(name):
            raise CatalogueError(f"{noun} {shown(name)}: names match {_NAME.pattern}")
    return dict(raw)


def _members(
    raw: Any, place: str, allowed: AbstractSet[str], *, needed: AbstractSet[str] | None = None
) -> dict[str, Any]:
    if not isinstance(raw, dict):
        _fail(place, "an object")
    hint = f"the members are {', '.join(sorted(allowed))}"
    for name in raw:
        if name not in allowed:
            raise CatalogueError(f"{place}: unknown member {shown(name)}", hint=hint)
    for name in sorted(allowed if needed is None else needed):
        if name not in raw:
            raise CatalogueError(f"{place}: {name} is missing", hint=hint)
    return dict(raw)


def _text(raw: Any, place: str) -> str:
    if not isinstance(raw, str) or not raw or not raw.isprintable():
        _fail(place, "printable text")
    return str(raw)


def _fail(place: str, expected: str) -> NoReturn:
    raise CatalogueError(f"{place}: expected {expected}")
