"""Does a policy give more than the one before it, and what of?

Rules:
 * Pure comparison, grant by grant, of what may be collected, for whom, when and how precisely.
 * What is not provably equal or less counts as more; so does a member that this module does not
   know. Coarser is less by its size: a larger quantum, grid or interval.
 * Only what is given counts: an active grant that has not ended and that no restriction holds. So a
   grant that comes back from a pause is more, and one under a restriction is nothing.
 * A grant goes by its `grant_id`: the same scopes under another id are more.
 * A policy's own `nbf` and `exp` are a lease that its platform renews. They are those of a grant
   only where it names none.
"""

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from agent.core.aggregate import Aggregate
from agent.core.catalogue import Catalogue
from agent.core.constraint import Constraints
from agent.core.policy import DEFAULT_RETENTION_S, Detail, Grant, GrantState, Policy
from agent.core.standing import NO_OVERLAYS, Overlays
from agent.core.timewindow import TimeWindows
from agent.core.trust import Role, Trust
from agent.errors import PolicyRejected

# Members that say when and not what: less of them leaves what was collected before as it is.
_SPAN = frozenset({"nbf", "exp", "offline_s"})
# What of a grant is judged here, or gives nothing: a record only says where the declaration lies.
_KNOWN = frozenset(
    {
        *("grant_id", "rev", "state", "recipient_id", "nbf_s", "exp_s", "offline_s", "purposes"),
        *("retention_s", "record", "details", "combine"),
    }
)


@dataclass(frozen=True, slots=True)
class Expansion:
    """One scope of one grant of which a policy gives more.

    Attributes:
        grew: Names of the policy's members that give more; `grant` or `scope` alone where the whole
            of it is new, `state` where it was paused.
    """

    grant_id: str
    scope: str
    scope_class: str
    grew: tuple[str, ...]


def expands(  # noqa: PLR0913 - two states of consent, each a policy and what restricts beside it
    before: Policy | None,
    after: Policy,
    catalogue: Catalogue,
    *,
    overlays_before: Overlays = NO_OVERLAYS,
    overlays_after: Overlays = NO_OVERLAYS,
    ended: AbstractSet[str] = frozenset(),
) -> tuple[Expansion, ...]:
    """Return of which scopes `after` gives more than `before`, in its order; none if of nothing.

    Args:
        before: What is in force; None where nothing is: no policy yet, or an expired one.
        after: What is to follow it.
        catalogue: Says of which class a scope is.
        overlays_before: Restrictions beside `before`; only `revoked` and `paused` are looked at,
            for a local stop and a lapse are no terms of consent.
        overlays_after: Those that `after` does not take over.
        ended: Ids of grants with a tombstone.
    """
    old = _given(before, overlays_before, ended)
    new = _given(after, overlays_after, ended)
    grown = []
    for grant_id, grant in new.items():
        was = old.get(grant_id)
        for detail in grant.details:
            grew: tuple[str, ...]
            if was is None or before is None:
                grew = ("state",) if _was_held(before, grant_id) else ("grant",)
            else:
                grew = _grew(detail, (was, before), (grant, after))
            if grew:
                scope_class = catalogue.scopes[detail.scope].scope_class
                grown.append(Expansion(grant_id, detail.scope, scope_class, grew))
    return tuple(grown)


def narrowed(before: Policy | None, after: Policy, catalogue: Catalogue) -> tuple[str, ...]:
    """Return the ids of grants that both give, but `after` with less of what is collected.

    What was collected under the wider one is not covered any more. A grant that ended or pauses is
    not among them, nor one of which only the time is shorter (`nbf`, `exp`, `offline_s`).
    """
    if before is None:
        return ()
    both = _given(before, NO_OVERLAYS, frozenset()).keys() & _given(after, NO_OVERLAYS, frozenset())
    lost = (loss for loss in expands(after, before, catalogue) if set(loss.grew) - _SPAN)
    return tuple(dict.fromkeys(loss.grant_id for loss in lost if loss.grant_id in both))


def check_owner_signature(  # noqa: PLR0913 - what `expands` needs, who signed, and whose word counts
    after: Policy,
    *,
    before: Policy | None,
    roles: AbstractSet[Role],
    trust: Trust,
    catalogue: Catalogue,
    now_ns: int,
    overlays_before: Overlays = NO_OVERLAYS,
    overlays_after: Overlays = NO_OVERLAYS,
    ended: AbstractSet[str] = frozenset(),
) -> None:
    """Raise where a policy gives more of what needs the owner, without the owner's signature.

    Args:
        after: The policy that would be applied.
        before: The one applied last; it counts for nothing where it is not valid now.
        roles: Of those who signed `after` (`Verified.roles`).
        trust: Says for which classes the owner is needed.
        catalogue: Says of which class a scope is.
        now_ns: ns since the epoch.
        overlays_before: As for `expands`.
        overlays_after: As for `expands`.
        ended: As for `expands`.

    Raises:
        PolicyRejected: With reason `owner-signature`; names grant, scope and what grew.
    """
    if not trust.owner_needed_for or Role.OWNER in roles:
        return
    grown = expands(
        before if before is not None and before.is_valid(now_ns) else None,
        after,
        catalogue,
        overlays_before=overlays_before,
        overlays_after=overlays_after,
        ended=ended,
    )
    for more in grown:
        if more.scope_class in trust.owner_needed_for:
            raise PolicyRejected(
                f"grant {more.grant_id}, scope {more.scope}: it gives more than before "
                f"({', '.join(more.grew)}), and for class {more.scope_class} that needs the "
                "owner's signature",
                reason="owner-signature",
                hint="have the owner add it: consentry policy countersign",
            )


def _given(
    policy: Policy | None, overlays: Overlays, ended: AbstractSet[str]
) -> Mapping[str, Grant]:
    if policy is None:
        return {}
    words = Overlays(revoked=overlays.revoked, paused=overlays.paused)
    return {
        grant.grant_id: grant
        for grant in policy.grants
        if grant.state is GrantState.ACTIVE
        and grant.grant_id not in ended
        and not words.revokes(grant.grant_id)
        and not words.holds(grant.grant_id)
    }


def _was_held(before: Policy | None, grant_id: str) -> bool:
    grants = before.grants if before is not None else ()
    return any(g.grant_id == grant_id and g.state is not GrantState.REVOKED for g in grants)


def _grew(detail: Detail, old: tuple[Grant, Policy], new: tuple[Grant, Policy]) -> tuple[str, ...]:
    """Return the members by which a grant gives more of one of its scopes."""
    (was, before), (now, after) = old, new
    same = next((d for d in was.details if d.scope == detail.scope), None)
    if same is None:
        return ("scope",)
    grew = [
        name
        for name, is_more in (
            ("catalogue", before.catalogue_sha256 != after.catalogue_sha256),
            ("recipient", _recipient_changed(old, new)),
            ("keys", _has_more_keys(old, new)),
            ("nbf", _start_s(now, after) < _start_s(was, before)),
            ("exp", _is_longer(_end_s(now, after), _end_s(was, before))),
            ("offline_s", _is_longer(now.offline_s, was.offline_s)),
            ("retention", _retention_s(now) > _retention_s(was)),
            ("purposes", not _are_fewer(now.purposes, was.purposes)),
            ("combine", not _are_joined(detail.scope, now.combine, was.combine)),
        )
        if is_more
    ]
    unknown = (
        field.name
        for field in fields(Grant)
        if field.name not in _KNOWN and getattr(now, field.name) != getattr(was, field.name)
    )
    return (*grew, *unknown, *_looser(detail.constraints, same.constraints))


def _recipient_changed(old: tuple[Grant, Policy], new: tuple[Grant, Policy]) -> bool:
    """Whether it goes to somebody else, or under another name than the owner was shown."""
    (was, before), (now, after) = old, new
    if was.recipient_id is None or was.recipient_id != now.recipient_id:
        return True
    return before.recipients[was.recipient_id].name != after.recipients[was.recipient_id].name


def _has_more_keys(old: tuple[Grant, Policy], new: tuple[Grant, Policy]) -> bool:
    keys = [
        {(key.kid, key.alg, *sorted(key.jwk.items())) for key in policy.recipients[name].keys}
        if (name := grant.recipient_id) is not None and name in policy.recipients
        else set()
        for grant, policy in (old, new)
    ]
    return not keys[1] <= keys[0]


def _start_s(grant: Grant, policy: Policy) -> int:
    return (policy.nbf_s if grant.nbf_s is None else grant.nbf_s) or 0


def _end_s(grant: Grant, policy: Policy) -> int | None:
    return policy.exp_s if grant.exp_s is None else grant.exp_s


def _is_longer(now: int | None, was: int | None) -> bool:
    """Whether a limit allows more; None is no limit."""
    return was is not None and (now is None or now > was)


def _retention_s(grant: Grant) -> int:
    return DEFAULT_RETENTION_S if grant.retention_s is None else grant.retention_s


def _are_fewer(now: Iterable[str], was: Iterable[str]) -> bool:
    """Whether the purposes are among those before. None named is no bound, so it is not fewer."""
    named, before = set(now), set(was)
    return named == before or bool(named and before and named <= before)


def _are_joined(scope: str, now: Iterable[tuple[str, ...]], was: Iterable[tuple[str, ...]]) -> bool:
    """Whether the scope may be joined with nothing but what it might be joined with before."""
    allowed = [set(names) for names in was]
    return all(any(set(names) <= old for old in allowed) for names in now if scope in names)


def _looser(now: Constraints, was: Constraints) -> tuple[str, ...]:
    """Return the names of the constraints that allow more."""
    # Between two aggregates the interval is that of their windows, and says nothing by itself.
    known = {"min_interval_ns"} if now.aggregate is not None and was.aggregate is not None else ()
    return tuple(
        _NAMES.get(field.name, field.name)
        for field in fields(Constraints)
        if field.name not in known
        and (after := getattr(now, field.name)) != (before := getattr(was, field.name))
        and _IS_LOOSER.get(field.name, _is_different)(after, before)
    )


def _is_finer(now: float | None, was: float | None) -> bool:
    """Whether a step is smaller; None is no step at all."""
    return was is not None and (now is None or now < was)


def _are_wider(now: TimeWindows | None, was: TimeWindows | None) -> bool:
    """Whether windows are open at other times; None is always."""
    return was is not None and (now is None or not now.are_within(was))


def _tells_more(now: Aggregate | None, was: Aggregate | None) -> bool:
    """Whether an aggregate, or samples in its place, tell more.

    Windows begin at multiples of their length, so each of n times the length is made of whole ones.
    """
    if now is None or was is None:
        return now is not was
    return not set(now.functions) <= set(was.functions) or now.window_ms % was.window_ms != 0


def _is_different(now: object, was: object) -> bool:
    return now != was


_NAMES = MappingProxyType({"min_interval_ns": "min_interval_s"})
_IS_LOOSER: Mapping[str, Callable[[Any, Any], bool]] = MappingProxyType(
    {
        "min_interval_ns": lambda now, was: now < was,
        "quantum": _is_finer,
        "grid_deg": _is_finer,
        "precise": lambda now, was: now and not was,
        "once": lambda now, was: was and not now,
        "windows": _are_wider,
        "aggregate": _tells_more,
    }
)
