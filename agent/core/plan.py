"""Which signals may leave the vehicle, compiled once per policy.

Rules:
 * A signal that no live grant names is not in the plan, so it is never decoded; an id that is not
   in it costs one dictionary miss.
 * A plan is immutable and holds for a span of time in which no grant begins or ends and no window
   of a live grant opens or closes; outside of it nothing is taken. A new policy, or a new moment,
   makes a new plan; nobody edits one.
 * While the time is not known, windows are closed.
 * Compiling needs no I/O and no clock: equal inputs give equal plans.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from agent.core.binding import Binding
from agent.core.bound import Bound
from agent.core.catalogue import Catalogue
from agent.core.gate import Pick, Tap, Taps, compile_gate
from agent.core.model import NS_PER_S
from agent.core.pgn import SOURCE_MASK, is_j1939_id, is_pdu1, pgn_of
from agent.core.policy import Detail, Grant, GrantState, Policy
from agent.core.take import GRIDDED, Skipped, Take, takes_of

__all__ = [
    "GRIDDED",
    "Pick",
    "Plan",
    "Skipped",
    "Take",
    "Tap",
    "compile_plan",
    "empty_plan",
    "is_j1939_id",
    "is_pdu1",
    "pgn_of",
]

_ALTITUDE = "Altitude"


@dataclass(frozen=True, slots=True)
class Plan:
    """What may be taken from which frames, and when.

    Attributes:
        from_ns: First moment it holds for, ns since the epoch.
        until_ns: First moment it does not hold for any more.
        live: The live grants.
        takes: Every take, in the order of the policy; the functions of a path stand together.
        exact: bus -> canid_t -> taps; bus None stands for every bus that is not named.
        pgns: bus -> PGN -> source address -> taps; address None stands for all that are not named.
        skipped: What is granted but cannot be given.
        closed: What is granted and could be given, but not in this span: its windows are closed.
        lasting: Ids of the grants that are not revoked, so that they may be live again; None: any.
    """

    from_ns: int
    until_ns: int
    live: tuple[Grant, ...]
    takes: tuple[Take, ...]
    exact: Mapping[str | None, Mapping[int, Taps]]
    pgns: Mapping[str | None, Mapping[int, Mapping[int | None, Taps]]]
    skipped: tuple[Skipped, ...]
    closed: tuple[Skipped, ...] = ()
    lasting: frozenset[str] | None = None

    def taps(self, bus: str, can_id: int) -> Taps:
        """Return what may be taken from this frame; () for most of them."""
        known: str | None = bus if bus in self.exact else None
        taps = self.exact.get(known, {}).get(can_id, ())
        pgns = self.pgns.get(known)
        if pgns and is_j1939_id(can_id):
            by_source = pgns.get(pgn_of(can_id))
            if by_source:
                taps += by_source.get(can_id & SOURCE_MASK, by_source.get(None, ()))
        return taps


_ALWAYS = (-(1 << 100), 1 << 100)


def empty_plan() -> Plan:
    """Return the plan that takes nothing, whenever."""
    return Plan(*_ALWAYS, live=(), takes=(), exact={}, pgns={}, skipped=())


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
    wanted: list[tuple[Take, Bound]] = []
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
                made, impossible = takes_of(grant, detail, by_path[path])
                takes += made
                skipped += impossible
                wanted += [(take, bound) for take in made[:1] for bound in by_path[path]]
    exact, pgns = compile_gate(wanted, named_buses)
    return Plan(
        from_ns,
        until_ns,
        live,
        tuple(takes),
        exact,
        pgns,
        tuple(skipped),
        tuple(closed),
        frozenset(g.grant_id for g in policy.grants if g.state is not GrantState.REVOKED),
    )


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
