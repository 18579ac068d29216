"""Why one VSS path leaves the vehicle, or does not: the whole chain, step by step.

    catalogue → mapping → dbc → bus → policy → grant, constraint, window, vehicle → taken, thinned,
    blocked → verdict

Rules:
 * It decides nothing: what is permitted is read off the plan that is in force. A step says what it
   found, the verdict what follows.
 * No value of a signal, only counts, times and reasons.
 * The daemon and the command line use this very function; the daemon's steps travel as JSON.
"""

import difflib
from collections.abc import Iterator
from collections.abc import Set as AbstractSet

from agent.core.binding import Binding
from agent.core.bound import Bound
from agent.core.catalogue import Catalogue, Limit, Scope
from agent.core.constraint import Constraints
from agent.core.explanation import Explanation, Finding, Step, TakeFacts, View
from agent.core.model import CAN_EFF_FLAG, CAN_EFF_MASK, NS_PER_MS, NS_PER_S
from agent.core.plan import GRIDDED, Skipped, Take, pgn_of
from agent.core.policy import Detail, Grant, GrantState, Policy
from agent.core.standing import EVERY_GRANT, Standing, standing
from agent.core.telling import moment, span

MAX_CLOSE = 3  # Names that a mistyped path may have meant.
CLOSENESS = 0.8  # Of difflib's ratio: paths share long beginnings, so less is no likeness.
_LATELY_S = 10**8  # Times before 1973 are those of a log that counts from 0.


def explain(path: str, view: View) -> Explanation:
    """Return the chain for a VSS path.

    Args:
        path: May be any text, also a mistyped one.
        view: The vehicle.
    """
    steps = tuple(_steps(path, view))
    takes = _takes(path, view)
    recipients = tuple(dict.fromkeys(take.recipient for take in takes))
    if not takes:
        # That no frame came matters only where one would have been taken.
        broken = (s.text for s in steps if s.finding is Finding.NO and s.name != "bus")
        why = next(broken, "the plan in force does not take it")
        return Explanation(path, steps, (), f"does not leave the vehicle: {why}")
    verdict = "leaves the vehicle for " + ", ".join(
        f"{take.recipient} (grant {take.grant_id})" for take in takes
    )
    missing = next((s for s in steps if s.name == "bus" and s.finding is Finding.NO), None)
    if missing is not None:
        verdict = f"may leave the vehicle for {', '.join(recipients)}, but {missing.text}"
    elif view.facts is not None and not any(_facts(view, take).taken for take in takes):
        reason = next((_facts(view, take).last_drop for take in takes), None)
        why = f": {reason}" if reason else ""
        verdict = (
            f"may leave the vehicle for {', '.join(recipients)}, "
            f"but no sample was taken {view.since}{why}"
        )
    return Explanation(path, steps, recipients, verdict)


def _steps(path: str, view: View) -> Iterator[Step]:
    found = view.catalogue.signal(path)
    bounds = [bound for bound in view.binding.bound if bound.vss.path == path]
    yield _catalogue_step(path, view.catalogue)
    yield from _vehicle_steps(path, view.binding, bounds)
    takes = _takes(path, view)
    yield _bus_step(path, view, bounds, takes)
    if found is None:
        return
    yield from _policy_steps(path, found[0], view)
    for take in takes:
        yield from _result_steps(_facts(view, take), take, view.since)


def _catalogue_step(path: str, catalogue: Catalogue) -> Step:
    found = catalogue.signal(path)
    if found is None:
        known = [s.path for scope in catalogue.scopes.values() for s in scope.signals]
        close = _close(path, known)
        hint = f"; close are {', '.join(close)}" if close else ""
        return Step("catalogue", Finding.NO, f"no scope of the catalogue has {path}{hint}")
    scope, signal = found
    scope_class = catalogue.classes[scope.scope_class]
    unit = f" in {signal.unit}" if signal.unit else ""
    text = f"{signal.datatype}{unit}, in scope {scope.name} of class {scope_class.name}"
    if not scope_class.grantable:
        return Step("catalogue", Finding.NO, f"{text}, which nobody can grant")
    ceilings = ", ".join(_ceiling(name, limit) for name, limit in scope_class.ceilings.items())
    return Step("catalogue", Finding.YES, f"{text}; ceiling: {ceilings or 'none'}")


def _ceiling(name: str, limit: Limit) -> str:
    if name == "min_interval_s":
        return f"not more often than every {limit:g} s"
    if name == "precise":
        return "no grid only where the grant asks for it in so many words"
    return "one sample for each grant"


def _vehicle_steps(path: str, binding: Binding, bounds: list[Bound]) -> Iterator[Step]:
    """Mapped? And what of the DBC files stands behind it?"""
    disabled = binding.disabled.get(path)
    for bound in bounds:
        yield Step("mapping", Finding.YES, _entry(bound))
    for bound in bounds:
        yield Step("dbc", Finding.YES, _where(bound))
    if bounds:
        return
    if disabled is not None:
        yield Step("mapping", Finding.YES, "has an entry")
        yield Step("dbc", Finding.NO, f"its mapping entry is disabled: {disabled}")
    elif path in binding.outside:
        yield Step("mapping", Finding.YES, "has an entry, which is of no use outside the catalogue")
    else:
        # A path that the catalogue has may be mistyped in the mapping; another was not mapped so.
        close = _close(path, list(binding.outside))
        hint = f"; close are {', '.join(close)}" if close else ""
        yield Step("mapping", Finding.NO, f"this vehicle's mapping has no entry for it{hint}")


def _entry(bound: Bound) -> str:
    entry = bound.entry
    parts = [f"signal {entry.signal}"]
    if entry.interval_ns:
        parts.append(f"at most every {entry.interval_ns / NS_PER_MS:g} ms")
    elif not entry.on_change:
        parts.append("every value")
    if entry.on_change:
        parts.append("when it changes")
    if entry.source is not None:
        parts.append(f"from source address {entry.source:#04x} only")
    if entry.multiplexer:
        parts.append("only from frames in which its multiplexer says so")
    if entry.text is not None:
        parts.append(f"its bytes are characters ({entry.text})")
    return ", ".join(parts)


def _where(bound: Bound) -> str:
    if bound.is_j1939:
        key = f"PGN {pgn_of(bound.can_id)} ({pgn_of(bound.can_id):#06x})"
    else:
        key = f"id {bound.can_id & CAN_EFF_MASK:#x}" + (
            ", extended" if bound.can_id & CAN_EFF_FLAG else ""
        )
    bus = f"bus {bound.bus}" if bound.bus is not None else "every bus"
    parts = ", in messages of several frames" if bound.is_transported else ""
    return f"{bound.message}.{bound.field.name}, {key}{parts}, on {bus}"


def _bus_step(path: str, view: View, bounds: list[Bound], takes: list[Take]) -> Step:
    if not bounds:
        return Step("bus", Finding.UNKNOWN, "not looked for: no signal stands for it")
    if view.frames is None:
        if not takes:
            why = "not looked at: nothing permits it, so nothing is read"
            return Step("bus", Finding.UNKNOWN, why)
        if view.facts is None:
            why = "not looked at: only the running agent, or a log, knows"
            return Step("bus", Finding.UNKNOWN, why)
        count, noun = max(_facts(view, take).seen for take in takes), "value of it"
    else:
        count, noun = view.frames.get(path, 0), "frame of its message"
    if not count:
        return Step("bus", Finding.NO, f"no {noun} came {view.since}")
    return Step("bus", Finding.YES, f"{_count(count, noun)} came {view.since}")


def _policy_steps(path: str, scope: Scope, view: View) -> Iterator[Step]:
    policy = view.policy
    if policy is None:
        yield Step("policy", Finding.NO, "there is no policy")
        return
    version = f"epoch {policy.epoch}, version {policy.ver}" if policy.aud else "unsigned"
    if policy.is_valid(view.now_ns):
        yield Step("policy", Finding.YES, f"{version}, {_until(policy.exp_s)}")
    else:
        over = policy.exp_s is not None and policy.exp_s * NS_PER_S <= view.now_ns
        when = f"expired {moment(policy.exp_s)}" if over else f"begins {moment(policy.nbf_s)}"
        yield Step("policy", Finding.NO, f"the policy ({version}) {when}")
    named = False
    for grant in policy.grants:
        for detail in grant.details:
            if detail.scope == scope.name:
                named = True
                yield from _grant_steps(path, grant, detail, policy, view)
    if not named:
        yield Step("grant", Finding.NO, f"no grant names {scope.name}")


def _grant_steps(
    path: str, grant: Grant, detail: Detail, policy: Policy, view: View
) -> Iterator[Step]:
    stands = standing(grant, policy, view.overlays, view.now_ns)
    recipient = policy.recipients.get(grant.recipient_id or "")
    whom = "nobody" if recipient is None else f"{grant.recipient_id} ({recipient.name})"
    text = f"grant {grant.grant_id} rev {grant.rev} to {whom} is {stands}"
    holds = list(_holds(grant, stands, policy, view))
    is_free = stands is Standing.ACTIVE and not holds
    if is_free:
        text += f", {_until(grant.exp_s, policy.exp_s)}"
    elif holds:
        text += f": {'; '.join(holds)}"
    yield Step("grant", Finding.YES if is_free else Finding.NO, text, grant.grant_id)
    limits = "; ".join(_limits(path, detail.constraints))
    yield Step("constraint", Finding.NOTE, limits or "none", grant.grant_id)
    if not is_free:
        return
    key = (grant.grant_id, path)
    closed = _reason(view.plan.closed, key)
    if detail.constraints.windows is not None:
        is_open = closed is None
        said = "one of its windows is open" if is_open else f"grant {grant.grant_id}: {closed}"
        yield Step("window", Finding.YES if is_open else Finding.NO, said, grant.grant_id)
    skipped = _reason(view.plan.skipped, key)
    if skipped is not None:
        said = f"grant {grant.grant_id} covers it, but {skipped}"
        yield Step("vehicle", Finding.NO, said, grant.grant_id)


def _holds(grant: Grant, stands: Standing, policy: Policy, view: View) -> Iterator[str]:
    """Say what keeps a grant from being active: the policy's word, then what is beside it."""
    if grant.state is not GrantState.ACTIVE:
        yield f"the policy says {grant.state}"
    if stands is Standing.EXPIRED:
        yield f"it ended {moment(grant.exp_s)}"
    elif grant.nbf_s is not None and view.now_ns < grant.nbf_s * NS_PER_S:
        yield f"it begins {moment(grant.nbf_s)}"
    if not policy.is_valid(view.now_ns):
        yield "the policy is not in its time"
    yield from _restrictions(grant, view)
    if grant.grant_id in view.ended and not stands.is_end:
        yield "it has ended here for good, renewed consent needs a new grant id"


def _restrictions(grant: Grant, view: View) -> Iterator[str]:
    grant_id, overlays = grant.grant_id, view.overlays
    if overlays.revokes(grant_id):
        yield "a restrict document revokes it"
    if _names(overlays.paused, grant_id):
        yield "a restrict document pauses it"
    stops = [stop for stop in view.stops if stop.grant_id in (grant_id, EVERY_GRANT)]
    for stop in stops:
        left = "" if stop.left_s is None else f", for another {span(stop.left_s)}"
        what = "every grant is stopped" if stop.grant_id == EVERY_GRANT else "stopped"
        yield f"{what} at the vehicle by {stop.who} since {moment(stop.since_s)}{left}"
    if _names(overlays.stopped, grant_id) and not stops:
        yield "stopped at the vehicle"
    if grant_id in overlays.lapsed:
        yield f"no fresh policy came for {span(grant.offline_s or 0)}"


def _until(*ends_s: int | None) -> str:
    ends = [end_s for end_s in ends_s if end_s is not None]
    return f"until {moment(min(ends))}" if ends else "without end"


def _limits(path: str, limits: Constraints) -> Iterator[str]:
    """Tell the constraints that apply to a path, after defaults."""
    if limits.aggregate is not None:
        yield f"only {limits.aggregate}"
    elif limits.once:
        yield "one sample for this grant, ever"
    elif limits.min_interval_ns:
        yield f"not more often than every {limits.min_interval_ns / NS_PER_S:g} s"
    if limits.quantum is not None:
        yield f"in steps of {limits.quantum:g}"
    if path.rpartition(".")[2] in GRIDDED:
        if limits.grid_deg is not None:
            yield f"only the centre of a cell of {limits.grid_deg:g}°"
        elif limits.precise:
            yield "the exact position"
    for window in limits.windows.windows if limits.windows is not None else ():
        days = ",".join(str(day) for day in window.days)
        hours = f"{_clock(window.from_min)} to {_clock(window.to_min)}"
        yield f"on days {days} from {hours} {window.zone}"


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _result_steps(facts: TakeFacts, take: Take, since: str) -> Iterator[Step]:
    if facts.taken:
        when = _last(facts.last_taken_ns)
        text = f"{_count(facts.taken, 'sample')} {since}{when}"
        yield Step("taken", Finding.NOTE, text, take.grant_id)
    if facts.thinned:
        text = f"{_count(facts.thinned, 'value')} {_thinned(take)}{_last(facts.last_thinned_ns)}"
        yield Step("thinned", Finding.NOTE, text, take.grant_id)
    for reason, count in (facts.drops or {}).items():
        when = _last(facts.last_dropped_ns) if reason == facts.last_drop else ""
        text = f"{_count(count, 'value')} dropped: {reason}{when}"
        yield Step("blocked", Finding.NOTE, text, take.grant_id)


def _thinned(take: Take) -> str:
    return "let go by the time rule" if take.fn is None else "entered a window or were let go"


def _last(at_ns: int | None) -> str:
    if at_ns is None:
        return ""
    at_s = at_ns // NS_PER_S
    return f", the last {moment(at_s)}" if at_s > _LATELY_S else f", the last {span(at_s)} into it"


def _facts(view: View, take: Take) -> TakeFacts:
    return (view.facts or {}).get((take.grant_id, take.path), TakeFacts())


def _takes(path: str, view: View) -> list[Take]:
    """Return one take of each grant; the functions of an aggregate share what became of it."""
    takes = (take for take in reversed(view.plan.takes) if take.path == path)
    return list({take.grant_id: take for take in takes}.values())[::-1]


def _reason(where: tuple[Skipped, ...], key: tuple[str, str]) -> str | None:
    return next((item.reason for item in where if (item.grant_id, item.path) == key), None)


def _names(which: AbstractSet[str], grant_id: str) -> bool:
    return grant_id in which or EVERY_GRANT in which


def _close(path: str, known: list[str]) -> list[str]:
    """Return the paths that may have been meant, also with another spelling of the letters."""
    by_folded = {name.casefold(): name for name in known}
    found = difflib.get_close_matches(path.casefold(), by_folded, MAX_CLOSE, CLOSENESS)
    return [by_folded[name] for name in found]


def _count(number: int, noun: str) -> str:
    """Return as in `1 value of it`, `2 values of it`."""
    first, _, rest = noun.partition(" ")
    return f"{number:,} {first}{'' if number == 1 else 's'} {rest}".rstrip()
