"""Payload bytes → policy, all or nothing.

Rules:
 * Strict JSON, at most 64 KiB. An unknown member at any level, an unknown state, scope or
   constraint, an ungrantable class or a value looser than its ceiling refuses the whole policy.
 * The policy names the catalogue by id, version and hash; another one is refused.
 * Only active grants are ever live. A revoked grant needs its id alone, but what it carries is
   checked like any other.
 * A grant needs an id, a recipient and details; its `nbf` and `exp` only narrow the policy's.
 * Speed and location in one grant tell how somebody drove where: they need a set in `combine` that
   names both scopes, so that the owner was asked for the two together.
 * In an unsigned policy (replay, which lets nothing out) the members that bind it to a vehicle
   and a time may be left out: `v iss aud jti iat nbf exp epoch ver catalogue` and the
   recipients' `keys`. A missing `nbf` or `exp` does not limit.
 * Whether the policy may follow the one in force is asked in `admission`; expiry is asked of the
   values: an expired policy is a policy without live grants, not an error.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from agent.core import strictjson
from agent.core.catalogue import Catalogue
from agent.core.constraint import Constraints, parse_constraints
from agent.core.member import Members, as_id, as_text, unique, wrong_type
from agent.core.model import NS_PER_S
from agent.core.recipient import Recipient, RecipientKeyRef, parse_recipient
from agent.core.strictjson import shown
from agent.errors import PolicyRejected, WrongCatalogue

__all__ = [
    "MAX_POLICY_BYTES",
    "ConsentRecord",
    "Detail",
    "Grant",
    "GrantState",
    "Policy",
    "Recipient",
    "RecipientKeyRef",
    "parse_policy",
    "parse_unsigned_policy",
]

MAX_POLICY_BYTES = 64 * 1024
MAX_TAKEN_OVER = 256
DEFAULT_RETENTION_S = 30 * 86_400  # Where a grant names none.
FORMAT_VERSION = 1

_POLICY_MEMBERS = (
    *("v", "iss", "aud", "jti", "epoch", "ver", "iat", "nbf", "exp"),
    *("catalogue", "recipients", "grants", "taken_over"),
)
_GRANT_MEMBERS = (
    *("grant_id", "rev", "state", "recipient", "nbf", "exp", "offline_s"),
    *("purposes", "retention", "record", "details", "combine"),
)
_SPEED_PATHS = frozenset({"Vehicle.Speed", "Vehicle.AverageSpeed"})
_LOCATION_CLASS = "location"
_OPTIONAL_IN_GRANT = frozenset({"nbf", "exp", "offline_s", "purposes", "retention"})


class GrantState(StrEnum):
    """What the owner wants of a grant."""

    ACTIVE = "active"
    PAUSED = "paused"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class ConsentRecord:
    """Where the platform keeps the owner's declaration; not interpreted here."""

    record_id: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Detail:
    """One granted scope with what applies to it."""

    scope: str
    constraints: Constraints


@dataclass(frozen=True, slots=True)
class Grant:
    """What one recipient may have.

    Attributes:
        recipient_id: None only where a revoked grant names nobody.
        nbf_s: First second, since the epoch; None does not limit.
        exp_s: First second no more, since the epoch; None does not limit.
        offline_s: Longest time without fresh signed contact; None does not limit.
        purposes: What the owner agreed to, as in `dpv:ServiceProvision`.
        retention_s: How long the recipient, and the spool, may keep a sample.
        combine: Sets of scopes of this grant that the owner allowed to be joined.
    """

    grant_id: str
    rev: int
    state: GrantState
    recipient_id: str | None
    nbf_s: int | None
    exp_s: int | None
    offline_s: int | None
    purposes: tuple[str, ...]
    retention_s: int | None
    record: ConsentRecord | None
    details: tuple[Detail, ...]
    combine: tuple[tuple[str, ...], ...]

    def is_live(self, now_ns: int) -> bool:
        """Whether the grant is active and now lies in from ≤ now < until."""
        return self.state is GrantState.ACTIVE and _within(self.nbf_s, self.exp_s, now_ns)


@dataclass(frozen=True, slots=True)
class Policy:
    """All grants of one vehicle.

    In an unsigned policy what was left out is "" or 0, `nbf_s` and `exp_s` None.

    Attributes:
        aud: The vehicle's pseudonym.
        payload_sha256: Of the payload's exact bytes, 64 hexadecimal digits.
        taken_over: `jti` of restrict documents that this policy stands for from now on.
    """

    iss: str
    aud: str
    jti: str
    epoch: int
    ver: int
    iat_s: int
    nbf_s: int | None
    exp_s: int | None
    catalogue_sha256: str
    recipients: Mapping[str, Recipient]
    grants: tuple[Grant, ...]
    payload_sha256: str
    taken_over: tuple[str, ...] = ()

    def is_valid(self, now_ns: int) -> bool:
        """Whether now lies in the policy's own from ≤ now < until."""
        return _within(self.nbf_s, self.exp_s, now_ns)

    def live_grants(self, now_ns: int) -> tuple[Grant, ...]:
        """Return the grants under which something may be taken now, in the policy's order."""
        if not self.is_valid(now_ns):
            return ()
        return tuple(grant for grant in self.grants if grant.is_live(now_ns))


def parse_policy(payload: bytes, catalogue: Catalogue) -> Policy:
    """Return the policy of a verified payload.

    Raises:
        WrongCatalogue: The policy is bound to another catalogue.
        PolicyRejected: Anything else that is wrong; the reasons are listed in docs/policy.md.
    """
    return _parse(payload, catalogue, signed=True)


def parse_unsigned_policy(data: bytes, catalogue: Catalogue) -> Policy:
    """Return the policy of a plain JSON file, for tools that let nothing out of the machine.

    Raises:
        WrongCatalogue: The policy names another catalogue.
        PolicyRejected: As for `parse_policy`, but for the members that may be left out.
    """
    return _parse(data, catalogue, signed=False)


def _parse(data: bytes, catalogue: Catalogue, *, signed: bool) -> Policy:
    try:
        raw = strictjson.parse(data, max_bytes=MAX_POLICY_BYTES)
    except strictjson.StrictJsonError as exc:
        raise PolicyRejected(
            f"the policy is not strict JSON: {exc}",
            reason=exc.reason,
            hint="UTF-8, unique names, integers below 2**53, nothing behind the document",
        ) from exc
    members = Members(raw, "the policy", _POLICY_MEMBERS)

    def given(name: str) -> bool:
        return signed or name in members

    if given("v") and (version := members.integer("v")) != FORMAT_VERSION:
        raise PolicyRejected(
            f"the policy has format v {version}, this agent reads {FORMAT_VERSION}",
            reason="version",
        )
    if given("catalogue"):
        _check_catalogue(members.any("catalogue"), catalogue)
    recipients = {
        recipient_id: parse_recipient(recipient_id, value, signed=signed)
        for recipient_id, value in (members.by_id("recipients") if given("recipients") else ())
    }
    grants = tuple(
        _grant(value, f"grants[{index}]", recipients, catalogue)
        for index, value in enumerate(members.elements("grants"))
    )
    unique([grant.grant_id for grant in grants], "the policy", "grant_id")
    return Policy(
        iss=members.text("iss") if given("iss") else "",
        aud=members.id("aud") if given("aud") else "",
        jti=members.text("jti") if given("jti") else "",
        epoch=members.integer("epoch") if given("epoch") else 0,
        ver=members.integer("ver") if given("ver") else 0,
        iat_s=members.time_s("iat") if given("iat") else 0,
        nbf_s=members.time_s("nbf") if given("nbf") else None,
        exp_s=members.time_s("exp") if given("exp") else None,
        catalogue_sha256=catalogue.sha256,
        recipients=MappingProxyType(recipients),
        grants=grants,
        payload_sha256=hashlib.sha256(data).hexdigest(),
        taken_over=_taken_over(members) if "taken_over" in members else (),
    )


def _taken_over(members: Members) -> tuple[str, ...]:
    names = [as_id(value, "the policy: taken_over") for value in members.elements("taken_over")]
    if len(names) > MAX_TAKEN_OVER:
        raise PolicyRejected(
            f"the policy: taken_over names {len(names)} restrict documents, at most "
            f"{MAX_TAKEN_OVER} are allowed",
            reason="range",
            hint="a vehicle that has applied the policy remembers them; leave the oldest out",
        )
    return unique(names, "the policy", "taken_over")


def _check_catalogue(raw: Any, catalogue: Catalogue) -> None:
    members = Members(raw, "catalogue", ("id", "ver", "sha256"))
    named = (members.id("id"), members.integer("ver"), members.sha256("sha256"))
    if named != (catalogue.id, catalogue.version, catalogue.sha256):
        raise WrongCatalogue(
            f"the policy is bound to catalogue {named[0]} {named[1]} (sha256 {named[2][:16]}...), "
            f"in use is {catalogue.id} {catalogue.version} (sha256 {catalogue.sha256[:16]}...)",
            reason="catalogue",
            hint="give vehicle and platform the same catalogue file, byte for byte",
        )


def _grant(
    raw: Any,
    place: str,
    recipients: Mapping[str, Recipient],
    catalogue: Catalogue,
) -> Grant:
    members = Members(raw, place, _GRANT_MEMBERS)
    grant_id = members.id("grant_id")
    members.place = place = f"grant {grant_id}"
    state = _state(members) if "state" in members else GrantState.ACTIVE

    def given(name: str) -> bool:
        if state is GrantState.REVOKED or name in _OPTIONAL_IN_GRANT:
            return name in members
        return True

    recipient_id = members.id("recipient") if given("recipient") else None
    if recipient_id is not None and recipient_id not in recipients:
        raise PolicyRejected(
            f"{place}: the recipient {recipient_id} is not among the policy's recipients",
            reason="unknown-recipient",
        )
    details = _details(members, grant_id, catalogue) if given("details") else ()
    scopes = frozenset(detail.scope for detail in details)
    combine = _combine(members, place, scopes) if "combine" in members else ()
    _check_combined(place, details, combine, catalogue)
    return Grant(
        grant_id=grant_id,
        rev=members.integer("rev") if "rev" in members else 1,
        state=state,
        recipient_id=recipient_id,
        nbf_s=members.time_s("nbf") if given("nbf") else None,
        exp_s=members.time_s("exp") if given("exp") else None,
        offline_s=members.integer("offline_s") if given("offline_s") else None,
        purposes=_purposes(members, place) if given("purposes") else (),
        retention_s=members.duration_s("retention") if given("retention") else None,
        record=_record(members.any("record"), place) if "record" in members else None,
        details=details,
        combine=combine,
    )


def _state(members: Members) -> GrantState:
    text = members.text("state")
    try:
        return GrantState(text)
    except ValueError as exc:
        raise PolicyRejected(
            f"{members.place}: unknown state {shown(text)}, expected {', '.join(GrantState)}",
            reason="unknown-state",
        ) from exc


def _details(members: Members, grant_id: str, catalogue: Catalogue) -> tuple[Detail, ...]:
    details = tuple(
        _detail(value, grant_id, index, catalogue)
        for index, value in enumerate(members.some_elements("details"))
    )
    unique([detail.scope for detail in details], members.place, "scope")
    return details


def _detail(raw: Any, grant_id: str, index: int, catalogue: Catalogue) -> Detail:
    place = f"grant {grant_id}: details[{index}]"
    members = Members(raw, place, ("scope", "constraints"))
    name = members.id("scope")
    if name not in catalogue.scopes:
        raise PolicyRejected(
            f"{place}: the scope {name} is not in the catalogue", reason="unknown-scope"
        )
    scope_class = catalogue.classes[catalogue.scopes[name].scope_class]
    if not scope_class.grantable:
        raise PolicyRejected(
            f"grant {grant_id}: the scope {name} is of class {scope_class.name}, "
            "which cannot be granted",
            reason="ungrantable",
        )
    raw_constraints = members.any("constraints") if "constraints" in members else {}
    return Detail(
        name, parse_constraints(raw_constraints, scope_class, grant_id=grant_id, scope=name)
    )


def _purposes(members: Members, place: str) -> tuple[str, ...]:
    values = [as_text(value, f"{place}: a purpose") for value in members.some_elements("purposes")]
    return unique(values, place, "purpose")


def _record(raw: Any, place: str) -> ConsentRecord:
    members = Members(raw, f"{place}: record", ("id", "sha256"))
    return ConsentRecord(members.text("id"), members.sha256("sha256"))


def _combine(members: Members, place: str, scopes: frozenset[str]) -> tuple[tuple[str, ...], ...]:
    sets = []
    for value in members.elements("combine"):
        if not isinstance(value, list):
            raise wrong_type(f"{place}: an element of combine", "a list", value)
        names = [as_id(name, f"{place}: combine") for name in value]
        for name in names:
            if name not in scopes:
                raise PolicyRejected(
                    f"{place}: combine names {name}, which is no scope of this grant",
                    reason="unknown-scope",
                )
        if len(names) < 2:
            raise PolicyRejected(
                f"{place}: an element of combine names fewer than 2 scopes", reason="range"
            )
        sets.append(unique(names, f"{place}: combine", "scope"))
    return tuple(sets)


def _check_combined(
    place: str,
    details: tuple[Detail, ...],
    combine: tuple[tuple[str, ...], ...],
    catalogue: Catalogue,
) -> None:
    """Refuse a scope with speed beside one of class location that no set of `combine` joins."""
    scopes = [catalogue.scopes[detail.scope] for detail in details]
    speeds = [s.name for s in scopes if any(x.path in _SPEED_PATHS for x in s.signals)]
    locations = [scope.name for scope in scopes if scope.scope_class == _LOCATION_CLASS]
    for speed in speeds:
        for location in locations:
            if not any({speed, location} <= set(names) for names in combine):
                raise PolicyRejected(
                    f"{place}: {location} together with {speed} needs a set in combine that "
                    "names both",
                    reason="combine",
                    hint=f'"combine": [["{location}", "{speed}"]] says that the owner allowed the '
                    "two together; else give them under two grants",
                )


def _within(nbf_s: int | None, exp_s: int | None, now_ns: int) -> bool:
    return (nbf_s is None or nbf_s * NS_PER_S <= now_ns) and (
        exp_s is None or now_ns < exp_s * NS_PER_S
    )
