"""What a person should look at before they sign: how two policies differ, and what is odd in one.

Rules:
 * More and less are those of core/expansion.py, on which the vehicle insists.
 * A warning is about a policy that a vehicle takes; what it refuses is an error, not a warning.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from agent.core.catalogue import Catalogue
from agent.core.expansion import Expansion, expands
from agent.core.model import NS_PER_S
from agent.core.policy import Detail, Grant, GrantState, Policy
from agent.core.timewindow import TimeWindows

_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Difference:
    """What became of one grant.

    Attributes:
        change: `new`, `gone`, `active`, `paused` or `revoked` where its state changed, else
            `changed`.
        rev: Before and after; None where it is not there.
        more: Scopes of which the grant gives more.
        less: Scopes of which it gives less.
        other: Members that changed and are neither.
    """

    grant_id: str
    change: str
    rev: tuple[int | None, int | None]
    more: tuple[Expansion, ...] = ()
    less: tuple[Expansion, ...] = ()
    other: tuple[str, ...] = ()


def differences(before: Policy, after: Policy, catalogue: Catalogue) -> tuple[Difference, ...]:
    """Return what changed, grant by grant: those of `after` first, then what is gone."""
    old = {grant.grant_id: grant for grant in before.grants}
    new = {grant.grant_id: grant for grant in after.grants}
    more = expands(before, after, catalogue)
    less = expands(after, before, catalogue)
    found = []
    for grant_id in dict.fromkeys([*new, *old]):
        was, now = old.get(grant_id), new.get(grant_id)
        one = Difference(
            grant_id,
            _change(was, now),
            (was.rev if was else None, now.rev if now else None),
            tuple(item for item in more if item.grant_id == grant_id),
            tuple(item for item in less if item.grant_id == grant_id),
            _other(was, now),
        )
        if one.change != "changed" or one.more or one.less or one.other:
            found.append(one)
    return tuple(found)


def value_of(policy: Policy, grant_id: str, scope: str, member: str) -> str:
    """Return what a policy says in one member, for a person; "-" where it says nothing."""
    grant = next((g for g in policy.grants if g.grant_id == grant_id), None)
    detail = next((d for d in grant.details if d.scope == scope), None) if grant else None
    if grant is None or detail is None:
        return "-"
    return _values(policy, grant, detail).get(member, "-")


def warnings(policy: Policy, catalogue: Catalogue, *, now_ns: int) -> tuple[str, ...]:
    """Return a sentence for everything that may not be meant, in the policy's order.

    Args:
        policy: A vehicle would take it.
        catalogue: Says how sensitive a scope is.
        now_ns: ns since the epoch.
    """
    return tuple(_warnings(policy, catalogue, now_ns))


def _warnings(policy: Policy, catalogue: Catalogue, now_ns: int) -> Iterator[str]:
    if policy.exp_s is not None and policy.exp_s * NS_PER_S <= now_ns:
        yield "the policy has expired, it grants nothing"
    elif not policy.is_valid(now_ns):
        yield "the policy is not valid yet"
    if policy.nbf_s is not None and policy.exp_s is not None and policy.exp_s <= policy.nbf_s:
        yield "the policy is never valid: exp is not after nbf"
    for grant in policy.grants:
        if grant.state is GrantState.REVOKED:
            continue
        yield from (f"grant {grant.grant_id}: {said}" for said in _of_grant(grant, now_ns))
        yield from (
            f"grant {grant.grant_id}, scope {detail.scope}: positions without a grid"
            for detail in grant.details
            if detail.constraints.precise
            and "grid_deg" in catalogue.classes[catalogue.scopes[detail.scope].scope_class].defaults
        )
    granted = {g.recipient_id for g in policy.grants if g.state is not GrantState.REVOKED}
    for recipient_id in policy.recipients.keys() - granted:
        yield f"recipient {recipient_id} has no grant"


def _of_grant(grant: Grant, now_ns: int) -> Iterator[str]:
    if grant.exp_s is None:
        yield "no exp of its own, it ends with the policy and each renewal prolongs it"
    elif grant.nbf_s is not None and grant.exp_s <= grant.nbf_s:
        yield "never live: exp is not after nbf"
    elif grant.exp_s * NS_PER_S <= now_ns:
        yield "expired; nothing leads back from that, not even a later exp"
    if grant.offline_s is None:
        yield "no offline_s, a vehicle without a link goes on until exp"
    elif grant.offline_s < _DAY_S // 24:
        yield f"offline_s is {grant.offline_s} s, an hour in a tunnel or garage pauses it"
    if not grant.purposes:
        yield "no purposes"


def _change(was: Grant | None, now: Grant | None) -> str:
    if now is None:
        return "gone"
    if was is None:
        return "new"
    return "changed" if was.state is now.state else str(now.state)


def _other(was: Grant | None, now: Grant | None) -> tuple[str, ...]:
    if was is None or now is None:
        return ()
    return ("record",) if was.record != now.record else ()


def _values(policy: Policy, grant: Grant, detail: Detail) -> Mapping[str, str]:
    recipient = policy.recipients.get(grant.recipient_id or "")
    told: dict[str, Any] = {
        "state": grant.state,
        "scope": detail.scope,
        "grant": ", ".join(d.scope for d in grant.details),
        "recipient": recipient and f"{recipient.recipient_id} ({recipient.name})",
        "keys": recipient and ", ".join(key.kid for key in recipient.keys),
        "nbf": _date(grant.nbf_s if grant.nbf_s is not None else policy.nbf_s),
        "exp": _date(grant.exp_s if grant.exp_s is not None else policy.exp_s),
        "offline_s": grant.offline_s,
        "retention": grant.retention_s and f"{grant.retention_s} s",
        "purposes": ", ".join(grant.purposes),
        "combine": "; ".join(" + ".join(names) for names in grant.combine),
        "min_interval_s": detail.constraints.min_interval_ns / NS_PER_S,
    }
    limits = {f.name: getattr(detail.constraints, f.name) for f in fields(detail.constraints)}
    return {name: _text(value) for name, value in (limits | told).items()}


def _text(value: Any) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, TimeWindows):
        return "; ".join(
            f"{','.join(map(str, window.days))} {_clock(window.from_min)}-{_clock(window.to_min)} "
            f"{window.zone}"
            for window in value.windows
        )
    return str(value)


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _date(t_s: int | None) -> str | None:
    if t_s is None:
        return None
    return datetime.fromtimestamp(t_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
