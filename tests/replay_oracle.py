"""A second, naive replay, written from the design alone (design.md 4 and 9).

It decodes whole messages with cantools, parses candump and mapping files itself, and keeps no plan:
every frame is held against every grant. Nothing of `agent` is imported, so that where the two
differ, one of them is wrong.
"""

import gzip
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import cantools
import yaml

Row = dict[str, Any]
Document = dict[str, Any]

_LINE = re.compile(
    r"\((?P<t>\d+\.\d+)\)\s+(?P<bus>\S+)\s+(?P<id>[0-9A-Fa-f]+)#(?P<data>#[0-9A-F]|)(?P<hex>\S*)"
)
_EXTENDED_DIGITS = 8
_YEAR_1990_US = 631_152_000 * 10**6
_ERROR_FLAG = 0x2000_0000
_INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_NUMBERS = _INTEGERS | {"float", "double"}
_NOTHING = object()
_MATH: Document = {"__builtins__": {}, "floor": math.floor, "abs": abs, "min": min, "max": max}

# unit -> (quantity, how much of the quantity's first unit, and from where)
_UNITS = {
    "km": ("length", 1000.0, 0.0),
    "m": ("length", 1.0, 0.0),
    "m/s": ("speed", 3.6, 0.0),
    "km/h": ("speed", 1.0, 0.0),
    "rad": ("angle", 180 / math.pi, 0.0),
    "degrees": ("angle", 1.0, 0.0),
    "rad/s": ("turn", 180 / math.pi, 0.0),
    "degrees/s": ("turn", 1.0, 0.0),
    "s": ("time", 1.0, 0.0),
    "day": ("time", 86_400.0, 0.0),
    "celsius": ("temperature", 1.0, 0.0),
    "Celsius": ("temperature", 1.0, 0.0),
    "degF": ("temperature", 5 / 9, -160 / 9),
}


@dataclass
class Source:
    """One DBC message's signal under its VSS path."""

    path: str
    wanted: Document
    unit: str | None
    leaf: Document
    message: Any = None
    signal: Any = None
    is_j1939: bool = False


@dataclass(eq=False)
class _Stream:
    """What one grant has of one path: limits, and the state of the time rule."""

    grant: Document
    scope: str
    path: str
    limits: Document
    source: Source
    order: int
    interval_us: int
    on_change: bool
    last_us: int | None = None
    last: Any = _NOTHING
    held: list[Any] = field(default_factory=list)
    window: list[Any] = field(default_factory=list)  # What entered the open window, and
    window_us: int = 0  # its start.

    @property
    def length_us(self) -> int:
        """Length of an aggregate's windows."""
        return int(Decimal(str(self.limits["aggregate"]["window_s"])) * 1_000_000)


def replay(
    logs: Sequence[Path],
    dbcs: Sequence[Path],
    mapping: Path,
    catalogue: Path,
    policies: Sequence[Document],
    *,
    buses: dict[str, str] | None = None,
) -> list[list[Row]]:
    """Return what each policy lets out, in the order in which it is to be printed.

    Args:
        logs: candump files, one recording.
        dbcs: DBC files that cantools can load.
        mapping: Mapping file, YAML or a JSON tree.
        catalogue: Catalogue file.
        policies: Unsigned policies, decoded.
        buses: Channel -> bus, as in `--channel`.
    """
    scopes = json.loads(catalogue.read_text("utf-8"))
    sources = _sources(mapping, dbcs, scopes)
    runs = [_Run(policy, scopes, sources) for policy in policies]
    decoder = _Decoder()
    by_id: dict[Any, list[Source]] = {}
    for source in sources.values():
        by_id.setdefault(_key_of(source), []).append(source)
    last_us = None
    for t_us, channel, can_id, extended, data in _merged(logs):
        last_us = t_us if last_us is None else max(last_us, t_us)
        found = by_id.get((can_id, extended), [])
        if extended:
            found = found + by_id.get(_pgn(can_id), [])
        bus = buses.get(channel, channel) if buses else None
        values = {
            source.path: _physical(source, decoder.signals(source.message, data), decoder)
            for source in found
            if _is_heard(source, bus, can_id)
        }
        values = {path: value for path, value in values.items() if value is not None}
        for run in runs:
            run.frame(t_us, values)
    for run in runs:
        if last_us is not None:
            run.finish(last_us)
    return [run.printed() for run in runs]


class _Run:
    """One policy."""

    def __init__(self, policy: Document, scopes: Document, sources: dict[str, Source]) -> None:
        self._policy = policy
        self._streams: list[_Stream] = []
        self._taken: list[tuple[int, _Stream, Any, str | None]] = []
        self._second: int | None = None
        self._next_us = math.inf  # Nothing is due before.
        self._holding: list[_Stream] = []
        self._is_dated: bool | None = None  # A recorder that counts from 0 knows no day.
        for grant in policy["grants"]:
            if grant.get("state", "active") != "active":
                continue
            for detail in grant["details"]:
                scope = scopes["scopes"][detail["scope"]]
                limits = _limits(detail, scopes["classes"][scope["class"]])
                for leaf in scope["signals"]:
                    source = sources.get(leaf["path"])
                    name = leaf["path"].rpartition(".")[2]
                    if source and not (name == "Altitude" and limits.get("grid_deg")):
                        self._add(grant, detail["scope"], limits, source)

    def _add(self, grant: Document, scope: str, limits: Document, source: Source) -> None:
        on_change = bool(source.wanted.get("on_change"))
        mapped_ms = source.wanted.get("interval_ms", 0 if on_change else 1000)
        granted = Decimal(str(limits.get("min_interval_s", 0)))
        if "aggregate" in limits:
            on_change, granted = False, Decimal(0)
        self._streams.append(
            _Stream(
                grant=grant,
                scope=scope,
                path=source.path,
                limits=limits,
                source=source,
                order=len(self._streams),
                interval_us=max(int(mapped_ms) * 1000, int(granted * 1_000_000)),
                on_change=on_change,
            )
        )

    def frame(self, t_us: int, values: dict[str, Any]) -> None:
        """Hold one frame against every grant: first what is due by now, then its own values."""
        if self._is_dated is None:
            self._is_dated = t_us >= _YEAR_1990_US
        self._pass(t_us // 1_000_000)
        self.release(t_us)
        if not values:
            return
        for stream in self._streams:
            if stream.path in values and self._is_live(stream, t_us):
                value = _limited(values[stream.path], stream)
                if value is not None:
                    self._offer(stream, t_us, value)

    def _pass(self, second: int) -> None:
        """Go on to a second: grants and hours begin and end at whole ones.

        What waits meanwhile sees every second on the way; a log may hold none of them.
        """
        is_ahead = self._second is not None and second > self._second
        waits = any(stream.held or stream.window for stream in self._streams)
        first = second if self._second is None or not (is_ahead and waits) else self._second + 1
        if second != self._second:
            for passed in range(first, second + 1):
                self.release(passed * 1_000_000 - 1)
                self._end(passed * 1_000_000)
        self._second = second

    def _end(self, t_us: int) -> None:
        """Let go of what a grant may not have any more; what a window holds is sent."""
        for stream in self._streams:
            if not self._is_granted(stream, t_us):
                stream.last, stream.held, stream.window = _NOTHING, [], []
            elif "windows" in stream.limits and not self._is_live(stream, t_us):
                stream.held = []
                self._reduce(stream)

    def finish(self, t_us: int) -> None:
        """Send what is due at the end, and what windows hold by then."""
        self._pass(t_us // 1_000_000)
        self.release(t_us)
        for stream in self._streams:
            self._reduce(stream)

    def _offer(self, stream: _Stream, t_us: int, value: Any) -> None:
        if "aggregate" in stream.limits:
            if stream.last_us is None or t_us - stream.last_us >= stream.interval_us:
                stream.last_us = t_us
                stream.window_us = t_us // stream.length_us * stream.length_us
                stream.window.append(value)
                self._next_us = min(self._next_us, stream.window_us + stream.length_us)
            return
        if stream.limits.get("once"):
            if stream.last_us is None:
                self._take(stream, t_us, value)
            return
        if stream.last_us is None:
            self._take(stream, t_us, value)
            return
        if stream.on_change and value == stream.last:
            stream.held = []
        elif t_us - stream.last_us >= stream.interval_us:
            self._take(stream, t_us, value)
        elif stream.on_change:
            stream.held = [value]
            self._next_us = min(self._next_us, stream.last_us + stream.interval_us)
            if stream not in self._holding:
                self._holding.append(stream)

    def release(self, t_us: int) -> None:
        """Send the held changes and the windows whose time has come by now."""
        if t_us < self._next_us:
            return
        due = [
            (stream.last_us + stream.interval_us, stream.order, stream)
            for stream in self._holding
            if stream.held and stream.last_us is not None
        ]
        self._holding = [stream for *_, stream in due]
        due += [
            (stream.window_us + stream.length_us, stream.order, stream)
            for stream in self._streams
            if stream.window
        ]
        self._next_us = min((item[0] for item in due if item[0] > t_us), default=math.inf)
        for due_us, _, stream in sorted(due, key=lambda item: item[:2]):
            if due_us <= t_us and stream.window:
                if self._is_granted(stream, due_us):
                    self._reduce(stream)
                stream.window = []
            elif due_us <= t_us:
                value, stream.held = stream.held[0], []
                if self._is_live(stream, due_us):
                    self._take(stream, due_us, value)

    def _take(self, stream: _Stream, t_us: int, value: Any) -> None:
        stream.last_us, stream.last, stream.held = t_us, value, []
        self._taken.append((t_us // 1000, stream, value, None))

    def _reduce(self, stream: _Stream) -> None:
        """Send what the functions make of the open window, if anything entered."""
        values, stream.window = stream.window, []
        for fn in stream.limits["aggregate"]["fn"] if values else ():
            value = _reduced(fn, values, stream)
            if value is not None:
                self._taken.append((stream.window_us // 1000, stream, value, fn))

    def _is_live(self, stream: _Stream, t_us: int) -> bool:
        if not self._is_granted(stream, t_us):
            return False
        windows = stream.limits.get("windows")
        if windows is None:
            return True
        return bool(self._is_dated) and any(shows(window, t_us) for window in windows)

    def _is_granted(self, stream: _Stream, t_us: int) -> bool:
        for limits in (self._policy, stream.grant):
            if not limits.get("nbf", -math.inf) * 10**6 <= t_us:
                return False
            if not t_us < limits.get("exp", math.inf) * 10**6:
                return False
        return True

    def printed(self) -> list[Row]:
        """Return the rows in the order of (t, as taken)."""
        return [
            {
                "t": t_ms * 1_000_000,
                "recipient": stream.grant["recipient"],
                "grant": stream.grant["grant_id"],
                "scope": stream.scope,
                "path": stream.path,
                "value": value,
                "unit": None if fn == "count" else stream.source.leaf["unit"],
                **({"fn": fn, "window_s": stream.limits["aggregate"]["window_s"]} if fn else {}),
            }
            for t_ms, stream, value, fn in sorted(self._taken, key=lambda item: item[0])
        ]


def shows(window: Document, t_us: int) -> bool:
    """Tell whether a wall clock in the window's zone shows a time in it."""
    wall = datetime.fromtimestamp(t_us // 1_000_000, ZoneInfo(window["tz"]))
    days: set[int] = set()
    for part in window["days"].split(","):
        low, _, high = part.partition("-")
        days |= set(range(int(low), int(high or low) + 1))
    clock, begin, end = f"{wall:%H:%M}", window["from"], window["to"]
    today, yesterday = wall.isoweekday(), (wall - timedelta(days=1)).isoweekday()
    if begin < end:
        return today in days and begin <= clock < end
    return (today in days and clock >= begin) or (yesterday in days and clock < end)


def _reduced(fn: str, values: list[Any], stream: _Stream) -> Any:
    """Return what a function gives; None where a path of this datatype has no such thing."""
    match fn:
        case "count":
            return len(values)
        case "last":
            return values[-1]
    if stream.source.leaf["datatype"] not in _NUMBERS:
        return None
    match fn:
        case "min":
            return min(values)
        case "max":
            return max(values)
    return _snapped(math.fsum(values) / len(values), stream)


def _limits(detail: Document, scope_class: Document) -> Document:
    """Return the constraints in force: those named, and the class's default for each other."""
    named = detail.get("constraints", {})
    limits = {**scope_class["defaults"], **named}
    if named.get("precise"):
        limits.pop("grid_deg", None)
    return limits


def _limited(value: Any, stream: _Stream) -> Any:
    """Take a value in the catalogue's unit through valid, grid, quantum, rounding and range."""
    datatype = stream.source.leaf["datatype"]
    if datatype not in _NUMBERS:
        return value
    low, high = stream.source.wanted.get("valid", (-math.inf, math.inf))
    if not low <= value <= high:
        return None
    value = _snapped(value, stream)
    if datatype not in _INTEGERS:
        return value
    value = round(value)
    bits = int(datatype.partition("int")[2])
    least, most = (0, 2**bits) if datatype[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    return value if least <= value < most else None


def _snapped(value: Any, stream: _Stream) -> Any:
    """Put a number on the grant's grid and quantum."""
    grid = stream.limits.get("grid_deg")
    if grid and stream.path.rpartition(".")[2] in ("Latitude", "Longitude"):
        value = round((math.floor(value / grid) + 0.5) * grid, 7)
    quantum = stream.limits.get("quantum")
    if quantum:
        value = round(value / quantum) * quantum
    return value


def _is_heard(source: Source, bus: str | None, can_id: int) -> bool:
    """Tell whether the entry takes frames of this bus (None: any) and this J1939 source."""
    wanted = source.wanted
    if bus is not None and wanted.get("bus", bus) != bus:
        return False
    return bool(wanted.get("source", can_id & 0xFF) == can_id & 0xFF)


def _physical(source: Source, signals: dict[str, Any], decoder: "_Decoder") -> Any:
    """Return a frame's value of one path in the catalogue's unit, or None where it has none."""
    raw = signals.get(source.signal.name)
    if raw is None or _is_not_available(source, raw) or not _conditions_hold(source, signals):
        return None
    datatype = source.leaf["datatype"]
    label = (source.signal.choices or {}).get(raw)
    name = None if label is None else str(label)
    transform = source.wanted.get("transform", {})
    value = decoder.scaled(source.signal, raw)
    if "mapping" in transform:
        fitting = [line["to"] for line in transform["mapping"] if line["from"] in (name, value)]
        value = fitting[0] if fitting else None
    elif datatype == "string":
        value = name
    elif datatype == "boolean":
        value = {0: False, 1: True}.get(value)
    elif name is not None:
        value = None
    elif "math" in transform:
        value = _calculated(transform["math"], value)
    if value is None or datatype not in _NUMBERS:
        return value
    return _converted(value, source.unit, source.leaf["unit"])


def _is_not_available(source: Source, raw: Any) -> bool:
    """Tell whether J1939-71 calls this value of an SPN an error, not available or reserved."""
    signal = source.signal
    if not source.is_j1939 or signal.is_signed or signal.is_float or signal.length < 8:
        return False
    return bool(raw >> (signal.length - 8) >= 0xFB)


def _calculated(math_text: str, x: Any) -> Any:
    try:
        # Our own mapping files and KUKSA's, in a test.
        return eval(math_text.replace("^", "**"), _MATH, {"x": x})
    except ZeroDivisionError:
        return None


def _conditions_hold(source: Source, signals: dict[str, Any]) -> bool:
    for condition in source.wanted.get("multiplexer", ()):
        name = condition["signal"].rpartition(".")[2]
        sibling = source.message.get_signal_by_name(name)
        if name not in signals or _Decoder.scaled(sibling, signals[name]) != condition["value"]:
            return False
    return True


def _converted(value: Any, unit: str | None, wanted: str | None) -> Any:
    if unit == wanted or unit is None or wanted is None:
        return value
    (_, here, here_from), (_, there, there_from) = _UNITS[unit], _UNITS[wanted]
    if (here, here_from) == (there, there_from):
        return value
    return (value * here + here_from - there_from) / there


class _Decoder:
    """cantools, with the last payloads' results kept."""

    def __init__(self) -> None:
        self._kept: dict[Any, dict[str, Any]] = {}
        self._alone: dict[Any, list[Any]] = {}

    @staticmethod
    def scaled(signal: Any, raw: Any) -> Any:
        return raw * signal.conversion.scale + signal.conversion.offset

    def signals(self, message: Any, data: bytes) -> dict[str, Any]:
        """Return the raw values of the signals that a frame carries."""
        key = (id(message), data)
        if key not in self._kept:
            if len(self._kept) > 100_000:
                self._kept.clear()
            self._kept[key] = self._decoded(message, data)
        return self._kept[key]

    def _decoded(self, message: Any, data: bytes) -> dict[str, Any]:
        try:
            return _decode(message, data)
        except (cantools.database.DecodeError, ValueError):
            # A multiplexer whose value the DBC does not know: what does not depend on it is there.
            found: dict[str, Any] = {}
            for alone in self._each_signal(message):
                try:
                    found |= _decode(alone, data)
                except (cantools.database.DecodeError, ValueError):
                    continue
            return found

    def _each_signal(self, message: Any) -> list[Any]:
        if id(message) not in self._alone:
            self._alone[id(message)] = [
                cantools.database.Message(
                    message.frame_id,
                    message.name,
                    message.length,
                    [*_multiplexers(message, signal), signal],
                    is_extended_frame=message.is_extended_frame,
                    strict=False,
                )
                for signal in message.signals
            ]
        return self._alone[id(message)]


def _multiplexers(message: Any, signal: Any) -> list[Any]:
    found = []
    while signal.multiplexer_signal:
        signal = message.get_signal_by_name(signal.multiplexer_signal)
        found.insert(0, signal)
    return found


def _decode(message: Any, data: bytes) -> dict[str, Any]:
    decoded = message.decode(data, decode_choices=False, scaling=False, allow_truncated=True)
    return dict(decoded)


def _sources(mapping: Path, dbcs: Sequence[Path], scopes: Document) -> dict[str, Source]:
    """Return path -> source, for entries of the catalogue whose signal is one and only one."""
    leaves = {
        leaf["path"]: leaf for scope in scopes["scopes"].values() for leaf in scope["signals"]
    }
    databases = [cantools.database.load_file(path, strict=False) for path in dbcs]
    found = {}
    for path, node in _nodes(mapping):
        wanted = node.get("dbc2vss", node.get("dbc"))
        if wanted is None or path not in leaves:
            continue
        leaf = leaves[path]
        source = Source(path, wanted, node.get("unit", leaf["unit"]), leaf)
        message_name, _, signal_name = wanted["signal"].rpartition(".")
        candidates = [
            (database, message)
            for database in databases
            for message in database.messages
            if message_name in ("", message.name)
            and any(signal.name == signal_name for signal in message.signals)
        ]
        if len(candidates) != 1 or not _convertible(source):
            continue
        database, source.message = candidates[0]
        source.signal = source.message.get_signal_by_name(signal_name)
        source.is_j1939 = _is_j1939(database, source.message)
        found[path] = source
    return found


def _nodes(mapping: Path) -> Iterator[tuple[str, Document]]:
    text = mapping.read_text("utf-8")
    if not text.lstrip().startswith("{"):
        yield from yaml.safe_load(text).items()
        return
    waiting = list(json.loads(text).items())
    while waiting:
        path, node = waiting.pop(0)
        yield path, node
        waiting += [(f"{path}.{name}", child) for name, child in node.get("children", {}).items()]


def _convertible(source: Source) -> bool:
    unit, wanted = source.unit, source.leaf["unit"]
    if source.leaf["datatype"] not in _NUMBERS or unit == wanted or None in (unit, wanted):
        return True
    return unit in _UNITS and wanted in _UNITS and _UNITS[unit][0] == _UNITS[wanted][0]


def _is_j1939(database: Any, message: Any) -> bool:
    if message.protocol == "j1939":
        return True
    protocol = database.dbc.attributes.get("ProtocolType") if database.dbc else None
    return bool(protocol and protocol.value == "J1939" and message.is_extended_frame)


def _key_of(source: Source) -> Any:
    if source.is_j1939:
        return _pgn(source.message.frame_id)
    return source.message.frame_id, source.message.is_extended_frame


def _pgn(can_id: int) -> int:
    pgn = can_id >> 8 & 0x3FFFF
    return pgn if pgn >> 8 & 0xFF >= 240 else pgn & 0x3FF00


def _merged(logs: Sequence[Path]) -> Iterator[tuple[int, str, int, bool, bytes]]:
    """Yield the frames of all logs: always the earliest of those that are next in their log."""
    readers = [_frames(log) for log in logs]
    heads = [next(reader, None) for reader in readers]
    while any(heads):
        index = min(
            (i for i, head in enumerate(heads) if head), key=lambda i: (heads[i] or (0,))[0]
        )
        head = heads[index]
        assert head is not None
        yield head
        heads[index] = next(readers[index], None)


def _frames(log: Path) -> Iterator[tuple[int, str, int, bool, bytes]]:
    """Yield (µs, channel, id, extended, payload) of the data frames of a candump file."""
    opener = gzip.open if log.suffix == ".gz" else open
    with opener(log, "rt", encoding="ascii") as lines:
        for line in lines:
            match = _LINE.match(line)
            if match is None or match["hex"].startswith("R"):
                continue
            extended = len(match["id"]) == _EXTENDED_DIGITS
            can_id = int(match["id"], 16)
            if extended and can_id & _ERROR_FLAG:
                continue
            t_us = int((Decimal(match["t"]) * 1_000_000).to_integral_value())
            yield t_us, match["bus"], can_id, extended, bytes.fromhex(match["hex"])
