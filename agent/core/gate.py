"""Which frames carry what a take wants, and how it gets out of them.

Rules:
 * A signal that no take names is in no tap, so it is never decoded; each that is wanted is
   extracted once for all takes.
 * What a transport protocol carries is taken from the message, never from the frames that bring
   it: those stand in the gate with a tap of their own, and only where a take needs the message.
 * A J1939 message is matched by its PGN (SAE J1939-21): priority and source address do not count,
   for PDU1 the destination neither. All sources feed one stream unless the mapping names one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from agent.core.bound import Bound
from agent.core.decode import Field, Raw, compile_extract
from agent.core.j1939tp import PGN_CM, PGN_DT
from agent.core.mapping import IsoTp
from agent.core.pgn import pgn_of
from agent.core.take import Take
from agent.core.transform import Transform, compile_transform


@dataclass(frozen=True, slots=True)
class Pick:
    """How a take gets its value out of one message.

    Attributes:
        take: Of an aggregate the first of its takes; the others live on the same values.
        index: Which of the tap's raw values.
        transform: Raw value to permitted value.
        conditions: (index of a raw value, scale, offset, physical value that it must have).
    """

    take: Take
    index: int
    transform: Transform
    conditions: tuple[tuple[int, int | float, int | float, int], ...]


@dataclass(frozen=True, slots=True)
class Tap:
    """What may be taken from the frames of one message.

    Attributes:
        extract: Payload to raw values; None for those that are not in it.
        picks: In the order of the policy.
    """

    extract: Callable[[bytes], tuple[Raw, ...]]
    picks: tuple[Pick, ...]


@dataclass(frozen=True, slots=True)
class IsoTpTap:
    """What may be taken from the messages that frames of one identifier carry by ISO 15765-2.

    Attributes:
        isotp: How they are addressed, and where the DBC begins to count.
        keep: Bytes that the DBC knows.
    """

    isotp: IsoTp
    keep: int
    tap: Tap


@dataclass(frozen=True, slots=True)
class J1939Tap:
    """What may be taken from the messages that J1939-21 transport carries on a bus.

    Attributes:
        groups: PGN -> source address -> taps, as in a plan, of the groups that are too long for a
            frame.
    """

    groups: Mapping[int, Mapping[int | None, "Taps"]]

    def wants(self, pgn: int, source: int) -> bool:
        """Tell whether anything may be taken from a group of this source."""
        by_source = self.groups.get(pgn, {})
        return bool(by_source.get(source, by_source.get(None, ())))


Taps = tuple[Tap | IsoTpTap | J1939Tap, ...]


def compile_gate(
    wanted: Sequence[tuple[Take, Bound]], named_buses: Iterable[str]
) -> tuple[dict[str | None, dict[int, Taps]], dict[str | None, dict[int, dict[int | None, Taps]]]]:
    """Return what may be taken from which frames: the maps `exact` and `pgns` of a plan.

    Args:
        wanted: Each take with each signal that stands for its path, in the order of the policy.
        named_buses: Buses with bindings of their own, also those of which nothing is wanted.
    """
    exact: dict[str | None, dict[int, Taps]] = {name: {} for name in named_buses}
    pgns: dict[str | None, dict[int, dict[int | None, Taps]]] = {}
    by_id: dict[tuple[str | None, int], _TapBuilder] = {}
    by_message: dict[tuple[str | None, int, IsoTp, int], _TapBuilder] = {}
    by_pgn: dict[tuple[str | None, int], list[tuple[Take, Bound]]] = {}
    for item in wanted:
        bound = item[1]
        if bound.is_j1939:
            by_pgn.setdefault((bound.bus, pgn_of(bound.can_id)), []).append(item)
        elif bound.entry.isotp is not None:
            key = (bound.bus, bound.can_id, bound.entry.isotp, bound.length)
            by_message.setdefault(key, _TapBuilder()).add(*item)
        else:
            by_id.setdefault((bound.bus, bound.can_id), _TapBuilder()).add(*item)
    for (bus, can_id), builder in by_id.items():
        exact.setdefault(bus, {})[can_id] = (builder.build(),)
    for (bus, can_id, isotp, length), builder in by_message.items():
        of_id = exact.setdefault(bus, {})
        of_id[can_id] = (*of_id.get(can_id, ()), IsoTpTap(isotp, length, builder.build()))
    for (bus, pgn), items in by_pgn.items():
        sources = {bound.entry.source for _, bound in items}
        by_source: dict[int | None, Taps] = {}
        for source in sources | {None}:
            builder = _TapBuilder()
            fitting = [item for item in items if item[1].entry.source in (None, source)]
            for item in fitting:
                builder.add(*item)
            by_source[source] = (builder.build(),) if fitting else ()
        pgns.setdefault(bus, {})[pgn] = by_source
        exact.setdefault(bus, {})
    _add_transport(wanted, pgns)
    return exact, pgns


def _add_transport(
    wanted: Sequence[tuple[Take, Bound]],
    pgns: Mapping[str | None, dict[int, dict[int | None, Taps]]],
) -> None:
    """Add the groups that carry the wanted ones that are too long for a frame."""
    long: dict[str | None, set[int]] = {}
    for _, bound in wanted:
        if bound.is_j1939 and bound.is_transported:
            long.setdefault(bound.bus, set()).add(pgn_of(bound.can_id))
    for bus, groups in long.items():
        carried = J1939Tap({pgn: pgns[bus][pgn] for pgn in groups - {PGN_CM, PGN_DT}})
        for pgn in (PGN_CM, PGN_DT):
            known = pgns[bus].get(pgn, {None: ()})
            pgns[bus][pgn] = {source: (*taps, carried) for source, taps in known.items()}


class _TapBuilder:
    """Collects what is picked from one message, so that each signal is extracted once."""

    def __init__(self) -> None:
        self._fields: list[Field] = []
        self._picks: list[Pick] = []

    def add(self, take: Take, bound: Bound) -> None:
        transform = compile_transform(
            bound.field,
            bound.entry,
            bound.conversion,
            datatype=bound.vss.datatype,
            grid_deg=take.grid_deg,
            quantum=take.quantum,
        )
        conditions = tuple(
            (self._index(field), field.scale, field.offset, value)
            for field, value in bound.conditions
        )
        self._picks.append(Pick(take, self._index(bound.field), transform, conditions))

    def build(self) -> Tap:
        return Tap(compile_extract(self._fields), tuple(self._picks))

    def _index(self, field: Field) -> int:
        if field not in self._fields:
            self._fields.append(field)
        return self._fields.index(field)
