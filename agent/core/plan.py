"""Which signals may leave the vehicle, compiled once per policy.

Rules:
 * A signal that no live grant names is not in the plan, so it is never decoded; an id that is not
   in it costs one dictionary miss.
 * A plan is immutable and holds for a span of time in which no grant begins or ends and no window
   of a live grant opens or closes; outside of it nothing is taken. A new policy, or a new moment,
   makes a new plan; nobody edits one.
 * While the time is not known, windows are closed.
 * Compiling needs no I/O and no clock: equal inputs give equal plans.
 * Two grants for one signal are two takes, each under its own constraints.
 * A J1939 message is matched by its PGN (SAE J1939-21): priority and source address do not count,
   for PDU1 the destination neither. All sources feed one stream unless the mapping names one.
"""

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from agent.core.binding import Binding, Bound
from agent.core.catalogue import Catalogue
from agent.core.decode import Field, compile_extract
from agent.core.model import CAN_EFF_FLAG, CAN_EFF_MASK, CAN_ERR_FLAG, CAN_RTR_FLAG, NS_PER_S, Value
from agent.core.policy import Detail, Grant, GrantState, Policy
from agent.core.transform import INTEGER_RANGES, Drop, compile_transform

_ALTITUDE = "Altitude"
GRIDDED = ("Latitude", "Longitude")
_SOURCE_MASK = 0xFF
_PDU2_FIRST_FORMAT = 240  # SAE J1939-21 5.2.3: below it the PDU specific byte is a destination.


@dataclass(frozen=True, slots=True)
class Take:
    """What one grant may have of one path.

    Attributes:
        interval_ns: The larger of the mapping's and the grant's.
        scale: Step of the values where they are linear, a hint for the codec; else 1.
        offset: Belongs to `scale`.
    """

    grant_id: str
    rev: int
    recipient: str
    scope: str
    path: str
    datatype: str
    unit: str | None
    interval_ns: int
    on_change: bool
    once: bool
    scale: int | float
    offset: int | float


@dataclass(frozen=True, slots=True)
class Pick:
    """How a take gets its value out of one message.

    Attributes:
        index: Which of the tap's raw values.
        transform: Raw value to permitted value.
        conditions: (index of a raw value, scale, offset, physical value that it must have).
    """

    take: Take
    index: int
    transform: Callable[[int | float], Value | Drop]
    conditions: tuple[tuple[int, int | float, int | float, int], ...]


@dataclass(frozen=True, slots=True)
class Tap:
    """What may be taken from the frames of one message.

    Attributes:
        extract: Payload to raw values; None for those that are not in it.
        picks: In the order of the policy.
    """

    extract: Callable[[bytes], tuple[int | float | None, ...]]
    picks: tuple[Pick, ...]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A granted path that this vehicle cannot give under this grant, and why."""

    grant_id: str
    scope: str
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What may be taken from which frames, and when.

    Attributes:
        from_ns: First moment it holds for, ns since the epoch.
        until_ns: First moment it does not hold for any more.
        live: The live grants.
        takes: Every take, in the order of the policy.
        exact: bus -> canid_t -> taps; bus None stands for every bus that is not named.
        pgns: bus -> PGN -> source address -> taps; address None stands for all that are not named.
        skipped: What is granted but cannot be given.
        closed: What is granted and could be given, but not in this span: its windows are closed.
    """

    from_ns: int
    until_ns: int
    live: tuple[Grant, ...]
    takes: tuple[Take, ...]
    exact: Mapping[str | None, Mapping[int, tuple[Tap, ...]]]
    pgns: Mapping[str | None, Mapping[int, Mapping[int | None, tuple[Tap, ...]]]]
    skipped: tuple[Skipped, ...]
    closed: tuple[Skipped, ...] = ()

    def taps(self, bus: str, can_id: int) -> tuple[Tap, ...]:
        """Return what may be taken from this frame; () for most of them."""
        known: str | None = bus if bus in self.exact else None
        taps = self.exact.get(known, {}).get(can_id, ())
        pgns = self.pgns.get(known)
        if pgns and is_j1939_id(can_id):
            by_source = pgns.get(pgn_of(can_id))
            if by_source:
                taps += by_source.get(can_id & _SOURCE_MASK, by_source.get(None, ()))
        return taps


_ALWAYS = (-(1 << 100), 1 << 100)


def empty_plan() -> Plan:
    """Return the plan that takes nothing, whenever."""
    return Plan(*_ALWAYS, live=(), takes=(), exact={}, pgns={}, skipped=())


def is_j1939_id(can_id: int) -> bool:
    """Tell whether a frame can carry a parameter group: extended, no remote or error frame."""
    return can_id & (CAN_EFF_FLAG | CAN_RTR_FLAG | CAN_ERR_FLAG) == CAN_EFF_FLAG


def pgn_of(can_id: int) -> int:
    """Return the parameter group number of an extended identifier (SAE J1939-21 5.1.2)."""
    pgn = (can_id & CAN_EFF_MASK) >> 8 & 0x3FFFF
    return pgn & 0x3FF00 if is_pdu1(pgn) else pgn


def is_pdu1(pgn: int) -> bool:
    """Tell whether the PDU specific byte is a destination (SAE J1939-21 5.2.3)."""
    return (pgn >> 8) & 0xFF < _PDU2_FIRST_FORMAT


def compile_plan(  # noqa: PLR0913 - what is compiled, and for when
    policy: Policy | None,
    catalogue: Catalogue,
    binding: Binding,
    *,
    now_ns: int,
    named_buses: Iterable[str] = (),
    suspended: AbstractSet[str] = frozenset(),
    time_known: bool = True,
) -> Plan:
    """Return what may be taken at `now_ns`, and until when that holds.

    Args:
        policy: A verified policy, or None: nothing is taken.
        catalogue: What the policy's scopes mean.
        binding: What the vehicle can give.
        now_ns: ns since the epoch.
        named_buses: Buses with bindings of their own; frames of all others follow bus None.
        suspended: Ids of grants that are stopped for another reason than the policy.
        time_known: Whether `now_ns` can be relied on.
    """
    if policy is None:
        return empty_plan()
    from_ns, until_ns = _span(policy, now_ns)
    live = tuple(g for g in policy.live_grants(now_ns) if g.grant_id not in suspended)
    by_path: dict[str, list[Bound]] = {}
    for bound in binding.bound:
        by_path.setdefault(bound.vss.path, []).append(bound)
    skipped: list[Skipped] = []
    closed: list[Skipped] = []
    takes: list[Take] = []
    wanted: list[tuple[Take, Bound, Detail]] = []
    for grant in live:
        for detail in grant.details:
            shut = _reason_closed(detail, now_ns, time_known=time_known)
            if detail.constraints.windows is not None and time_known:
                opens_ns, turns_ns = detail.constraints.windows.span(now_ns)
                from_ns, until_ns = max(from_ns, opens_ns), min(until_ns, turns_ns)
            for signal in catalogue.scopes[detail.scope].signals:
                path = signal.path
                reason = _reason_skipped(path, detail, binding, by_path)
                if reason is not None:
                    skipped.append(Skipped(grant.grant_id, detail.scope, path, reason))
                    continue
                if shut is not None:
                    closed.append(Skipped(grant.grant_id, detail.scope, path, shut))
                    continue
                take = _take(grant, detail, by_path[path])
                takes.append(take)
                wanted += [(take, bound, detail) for bound in by_path[path]]
    exact, pgns = _gate(wanted, named_buses)
    return Plan(from_ns, until_ns, live, tuple(takes), exact, pgns, tuple(skipped), tuple(closed))


def _span(policy: Policy, now_ns: int) -> tuple[int, int]:
    """Return the span around now in which no grant begins or ends."""
    moments = [policy.nbf_s, policy.exp_s]
    for grant in policy.grants:
        if grant.state is GrantState.ACTIVE:
            moments += [grant.nbf_s, grant.exp_s]
    edges = [moment * NS_PER_S for moment in moments if moment is not None]
    return (
        max((edge for edge in edges if edge <= now_ns), default=_ALWAYS[0]),
        min((edge for edge in edges if edge > now_ns), default=_ALWAYS[1]),
    )


def _reason_skipped(
    path: str, detail: Detail, binding: Binding, by_path: Mapping[str, list[Bound]]
) -> str | None:
    """Say why the vehicle cannot give a granted path, or None where it can."""
    if path.rpartition(".")[2] == _ALTITUDE and detail.constraints.grid_deg is not None:
        return "not taken while a grid is in force"
    if path in by_path:
        return None
    return binding.disabled.get(path, "not in this vehicle's mapping")


def _reason_closed(detail: Detail, now_ns: int, *, time_known: bool) -> str | None:
    """Say why nothing of a scope may be taken at this time of day, or None where it may."""
    windows = detail.constraints.windows
    if windows is None or (time_known and windows.is_open(now_ns)):
        return None
    return "outside its windows" if time_known else "its windows are closed: the time is not known"


def _take(grant: Grant, detail: Detail, bounds: list[Bound]) -> Take:
    first = bounds[0]
    scale, offset = _step(first, detail)
    assert grant.recipient_id is not None, "a live grant has a recipient"
    mapped_ns = max(bound.entry.interval_ns for bound in bounds)
    return Take(
        grant_id=grant.grant_id,
        rev=grant.rev,
        recipient=grant.recipient_id,
        scope=detail.scope,
        path=first.vss.path,
        datatype=first.vss.datatype,
        unit=first.vss.unit,
        interval_ns=max(mapped_ns, detail.constraints.min_interval_ns),
        on_change=any(bound.entry.on_change for bound in bounds),
        once=detail.constraints.once,
        scale=scale,
        offset=offset,
    )


def _step(bound: Bound, detail: Detail) -> tuple[int | float, int | float]:
    if detail.constraints.quantum is not None:
        return detail.constraints.quantum, 0
    if (
        bound.entry.math is None
        and bound.entry.choices is None
        and bound.conversion.is_identity
        and bound.vss.datatype not in INTEGER_RANGES
    ):
        return bound.field.scale, bound.field.offset
    return 1, 0


class _TapBuilder:
    """Collects what is picked from one message, so that each signal is extracted once."""

    def __init__(self) -> None:
        self._fields: list[Field] = []
        self._picks: list[Pick] = []

    def add(self, take: Take, bound: Bound, detail: Detail) -> None:
        limits = detail.constraints
        gridded = bound.vss.path.rpartition(".")[2] in GRIDDED
        transform = compile_transform(
            bound.field,
            bound.entry,
            bound.conversion,
            datatype=bound.vss.datatype,
            grid_deg=limits.grid_deg if gridded else None,
            quantum=limits.quantum,
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


def _gate(
    wanted: list[tuple[Take, Bound, Detail]], named_buses: Iterable[str]
) -> tuple[
    dict[str | None, dict[int, tuple[Tap, ...]]],
    dict[str | None, dict[int, dict[int | None, tuple[Tap, ...]]]],
]:
    exact: dict[str | None, dict[int, tuple[Tap, ...]]] = {name: {} for name in named_buses}
    pgns: dict[str | None, dict[int, dict[int | None, tuple[Tap, ...]]]] = {}
    by_id: dict[tuple[str | None, int], _TapBuilder] = {}
    by_pgn: dict[tuple[str | None, int], list[tuple[Take, Bound, Detail]]] = {}
    for item in wanted:
        bound = item[1]
        if bound.is_j1939:
            by_pgn.setdefault((bound.bus, pgn_of(bound.can_id)), []).append(item)
        else:
            by_id.setdefault((bound.bus, bound.can_id), _TapBuilder()).add(*item)
    for (bus, can_id), builder in by_id.items():
        exact.setdefault(bus, {})[can_id] = (builder.build(),)
    for (bus, pgn), items in by_pgn.items():
        sources = {bound.entry.source for _, bound, _ in items}
        by_source: dict[int | None, tuple[Tap, ...]] = {}
        for source in sources | {None}:
            builder = _TapBuilder()
            fitting = [item for item in items if item[1].entry.source in (None, source)]
            for item in fitting:
                builder.add(*item)
            by_source[source] = (builder.build(),) if fitting else ()
        pgns.setdefault(bus, {})[pgn] = by_source
        exact.setdefault(bus, {})
    return exact, pgns
