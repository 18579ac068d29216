"""Which bits of which frames the live grants cover: worked out with cantools, nothing of ours.

A bit is numbered 8 * byte + bit, bit 0 the least significant of its byte; a frame's covered bits
are an integer with these bits set. Rules:
 * Covered is a signal of a path that a live grant names, where the frame carries it.
 * What decides whether it is carried is covered too: its multiplexers, the signals of the
   mapping's `multiplexer` conditions, and the length of the payload.
 * A signal that is not carried (another multiplexer value, a payload too short) is not covered.
 * Of what comes in several frames all frames are covered that can be a part of it, with every bit,
   their bus and their addresses: of J1939's transport each one, whatever it carries (and one of the
   group itself); of ISO-TP first and consecutive frames of the identifier, and of each other frame
   its first three bytes (it may end a message, and is one).
 * Altitude is not covered while a grid is in force.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from itertools import islice
from operator import or_
from pathlib import Path
from typing import Any

import cantools
import yaml

from agent.core.binding import Binding, bind
from agent.core.dbc import parse_dbc
from agent.core.mapping import parse_mapping
from agent.core.model import (
    CAN_EFF_FLAG,
    CAN_EFF_MASK,
    CAN_ERR_FLAG,
    CAN_RTR_FLAG,
    NS_PER_S,
    Frame,
)
from agent.edge.logfile import read_logs
from tests import car
from tests.replay_oracle import shows

Grants = Mapping[str, Mapping[str, Mapping[str, Any]]]  # As in `tests.car.policy`.

_LATER_NS = 1 << 100
_FRAME = 8


class Bits:
    """Where one DBC signal lies, and when it is there.

    Attributes:
        mask: Its bits.
        most: The raw values that it can have.
        names: Those of them that bear a name in the DBC.
    """

    def __init__(self, message: Any, signal: Any) -> None:
        self.places = tuple(_places(signal))  # The least significant first.
        self.mask = reduce(or_, (1 << place for place in self.places))
        self.last_byte = max(self.places) // 8
        self.scale, self.offset = signal.scale, signal.offset
        self.is_float = signal.is_float
        self.names = frozenset(signal.choices or ())
        count = 1 << signal.length
        self.most = range(-count // 2, count // 2) if signal.is_signed else range(count)
        self._ids = frozenset(signal.multiplexer_ids or ())
        parent = signal.multiplexer_signal
        self._selector = Bits(message, message.get_signal_by_name(parent)) if parent else None

    def raw(self, word: int) -> int:
        """The signal's raw value in a payload, read as a little-endian integer."""
        raw = sum((word >> place & 1) << index for index, place in enumerate(self.places))
        return raw if raw in self.most else raw - len(self.most)

    def with_raw(self, word: int, raw: int) -> int:
        """The same payload with another raw value."""
        return word & ~self.mask | sum(
            (raw >> index & 1) << place for index, place in enumerate(self.places)
        )

    def physical(self, word: int) -> float:
        value: float = self.raw(word) * self.scale + self.offset
        return value

    def look(self, word: int, length: int) -> tuple[bool, int]:
        """Tell whether a payload carries the signal, and the bits that decided it."""
        decided = 0
        if self._selector is not None:
            there, decided = self._selector.look(word, length)
            if there:
                decided |= self._selector.mask
            if not there or self._selector.raw(word) not in self._ids:
                return False, decided
        return length > self.last_byte, decided


@dataclass(frozen=True, slots=True)
class Reach:
    """What a mapping takes for one path: from which frames, and from which of their bits.

    Attributes:
        keys: The canid, or the parameter group of a J1939 message; of what comes in several frames
            those of the frames.
        source: The only J1939 source address.
        is_carried: It comes in several frames.
    """

    path: str
    keys: tuple[tuple[str, int], ...]
    source: int | None
    bits: Bits
    conditions: tuple[tuple[Bits, int], ...]
    is_carried: bool = False

    def covers(self, word: int, length: int) -> int:
        """Return the bits of a payload that a grant of the path covers."""
        if self.is_carried:
            is_part = self.keys[0][0] == "pgn" or word >> 4 & 15 in (1, 2)
            return (1 << 8 * (length if is_part else min(length, 3))) - 1
        carried, mask = self.bits.look(word, length)
        for condition, wanted in self.conditions:
            there, decided = condition.look(word, length)
            mask |= decided | (condition.mask if there else 0)
            carried = carried and there and condition.physical(word) == wanted
        return mask | self.bits.mask if carried else mask


@dataclass(frozen=True, slots=True)
class Grant:
    """A live grant of one path.

    Attributes:
        until_ns: It covers nothing from then on.
        windows: It covers something only while a wall clock shows a time in one of them; none is
            always. As the items of each window.
    """

    reach: Reach
    until_ns: int = _LATER_NS
    windows: tuple[tuple[tuple[str, str], ...], ...] = ()

    def is_live(self, t_ns: int) -> bool:
        """Tell whether it covers anything at a moment."""
        if t_ns >= self.until_ns:
            return False
        return not self.windows or _is_open(self.windows, t_ns // NS_PER_S)


@cache
def _is_open(windows: tuple[tuple[tuple[str, str], ...], ...], t_s: int) -> bool:
    return any(shows(dict(window), t_s * 1_000_000) for window in windows)


class Cover:
    """The bits that some live grants cover."""

    def __init__(self, grants: Iterable[Grant]) -> None:
        self._by_key: dict[tuple[str, int], list[Grant]] = {}
        for grant in grants:
            for key in grant.reach.keys:
                self._by_key.setdefault(key, []).append(grant)

    def of(self, frame: Frame) -> int | None:
        """Return a frame's covered bits; None: no grant has to do with its id."""
        t_ns, _, can_id, data = frame
        near = [grant for key in keys_of(can_id) for grant in self._by_key.get(key, ())]
        live = [
            grant.reach
            for grant in near
            if grant.reach.source in (None, can_id & 0xFF) and grant.is_live(t_ns)
        ]
        if not live:
            return None
        word = int.from_bytes(data, "little")
        return reduce(or_, (reach.covers(word, len(data)) for reach in live))

    def named_sources(self, can_id: int) -> set[int]:
        """The source addresses that a granted path of this parameter group insists on."""
        near = [grant for key in keys_of(can_id) for grant in self._by_key.get(key, ())]
        return {grant.reach.source for grant in near if grant.reach.source is not None}

    def is_carrier(self, can_id: int) -> bool:
        """Tell whether this id may bring a part of what comes in several frames."""
        near = [grant for key in keys_of(can_id) for grant in self._by_key.get(key, ())]
        return any(grant.reach.is_carried for grant in near)

    def is_pgn(self, can_id: int) -> bool:
        """Tell whether this id counts by its parameter group alone."""
        keys = [key for key in keys_of(can_id) if key in self._by_key]
        return bool(keys) and all(kind == "pgn" for kind, _ in keys)


@dataclass(frozen=True, slots=True)
class Vehicle:
    """A vehicle, once as the agent sees it and once as cantools does.

    Attributes:
        reaches: Path -> where it comes from, for every usable path of the catalogue.
    """

    binding: Binding
    reaches: Mapping[str, Reach]
    frames: Sequence[Frame]

    @property
    def scopes(self) -> list[str]:
        """The grantable scopes of which this vehicle has something to give."""
        return [
            name
            for name, scope in catalogue()["scopes"].items()
            if catalogue()["classes"][scope["class"]]["grantable"]
            and any(signal["path"] in self.reaches for signal in scope["signals"])
        ]

    def cover(self, grants: Grants, *, ended: Mapping[str, int] | None = None) -> Cover:
        """Return what these grants cover.

        Args:
            grants: The live ones, grant id -> scope -> constraints.
            ended: Grant id -> s since the epoch at which it is over.
        """
        live: list[Grant] = []
        for grant_id, scopes in grants.items():
            until_ns = (ended or {}).get(grant_id, _LATER_NS // NS_PER_S) * NS_PER_S
            for name, constraints in scopes.items():
                paths = granted_paths(name, constraints)
                windows = tuple(tuple(w.items()) for w in constraints.get("windows", ()))
                live += [
                    Grant(self.reaches[p], until_ns, windows) for p in paths if p in self.reaches
                ]
        return Cover(live)


def keys_of(can_id: int) -> Iterator[tuple[str, int]]:
    """The keys under which a frame with this id can be granted."""
    yield "id", can_id
    if can_id & (CAN_EFF_FLAG | CAN_RTR_FLAG | CAN_ERR_FLAG) == CAN_EFF_FLAG:
        yield "pgn", _pgn(can_id & CAN_EFF_MASK)


@cache
def catalogue() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((car.ROOT / "config" / "catalogue.json").read_text())
    return document


def granted_paths(scope: str, constraints: Mapping[str, Any]) -> list[str]:
    """Return the paths that a grant of a scope covers, whatever the vehicle has."""
    defaults = catalogue()["classes"][catalogue()["scopes"][scope]["class"]]["defaults"]
    gridded = "grid_deg" in constraints or (
        "grid_deg" in defaults and not constraints.get("precise", False)
    )
    paths = [signal["path"] for signal in catalogue()["scopes"][scope]["signals"]]
    return [path for path in paths if not (gridded and path.endswith(".Altitude"))]


def loosest(scope: str) -> dict[str, Any]:
    """Return the loosest constraints that the scope's class allows."""
    ceilings = catalogue()["classes"][catalogue()["scopes"][scope]["class"]]["ceilings"]
    if "once" in ceilings:
        return {"once": True}
    return {"min_interval_s": 0, **ceilings}


def load(dbcs: Mapping[str, bytes], mapping: bytes, frames: Sequence[Frame] = ()) -> Vehicle:
    """Return a vehicle from the bytes of its DBC files and its mapping."""
    messages = [
        message
        for data in dbcs.values()
        for message in cantools.database.load_string(data.decode("latin-1"), strict=False).messages
    ]
    reaches = {}
    for path, leaf in yaml.safe_load(mapping).items():
        wanted = leaf.get("dbc2vss") or leaf.get("dbc") if isinstance(leaf, dict) else None
        found = _messages(wanted["signal"], messages) if wanted else []
        if len(found) == 1:  # An ambiguous or missing name is never guessed.
            reaches[path] = _reach(path, wanted, found[0])
    return Vehicle(
        bind(
            parse_mapping(mapping, name="mapping"),
            [parse_dbc(data, name=name) for name, data in dbcs.items()],
            car.catalogue(),
            bus=None,
            any_bus=True,
        ),
        reaches,
        frames,
    )


@cache
def captured(log: Path, dbcs: tuple[Path, ...], mapping: Path, most_frames: int) -> Vehicle:
    """Return a vehicle with the first frames of a recorded drive."""
    with read_logs([log]) as recording:
        frames = list(islice(recording, most_frames))
    return load({path.name: path.read_bytes() for path in dbcs}, mapping.read_bytes(), frames)


def _messages(name: str, messages: Sequence[Any]) -> list[Any]:
    message, _, signal = name.rpartition(".")
    found = {
        item.name: item
        for item in messages
        if message in ("", item.name) and any(signal == other.name for other in item.signals)
    }
    return list(found.values())


def _reach(path: str, wanted: Mapping[str, Any], message: Any) -> Reach:
    def bits(name: str) -> Bits:
        return Bits(message, message.get_signal_by_name(name.rpartition(".")[2]))

    is_j1939 = message.protocol == "j1939"
    is_carried = "transport" in wanted or (is_j1939 and message.length > _FRAME)
    keys: tuple[tuple[str, int], ...]
    keys = (("id", message.frame_id | (CAN_EFF_FLAG if message.is_extended_frame else 0)),)
    if is_j1939:
        pgns = (0xEC00, 0xEB00, _pgn(message.frame_id))
        keys = tuple(("pgn", pgn) for pgn in (pgns if is_carried else pgns[-1:]))
    conditions = [(bits(item["signal"]), item["value"]) for item in wanted.get("multiplexer", ())]
    signal = bits(wanted["signal"])
    return Reach(path, keys, wanted.get("source"), signal, tuple(conditions), is_carried)


def _pgn(identifier: int) -> int:
    pgn = identifier >> 8 & 0x3FFFF
    return pgn if pgn & 0xFF00 >= 0xF000 else pgn & 0x3FF00


def _places(signal: Any) -> Iterator[int]:
    """Yield the numbers of a signal's bits, the least significant first."""
    if signal.byte_order == "little_endian":
        yield from range(signal.start, signal.start + signal.length)
        return
    # A big-endian start is the most significant bit; behind a byte's bit 0 comes the next's bit 7.
    places = [signal.start]
    while len(places) < signal.length:
        last = places[-1]
        places.append(last - 1 if last % 8 else last + 15)
    yield from reversed(places)
