"""A restrict document: it takes away beside the policy, at once, and never gives.

    {"v": 1, "aud": "<vehicle pseudonym>", "jti": "...", "iat": 1795468800,
     "mode": "pause" | "revoke", "grants": ["gr_1"] | "*"}

Rules:
 * Any role that may sign one may sign it alone; whoever can only take away needs no second word.
 * `jti` names it. The same one again changes nothing; another content under the same name is
   refused, so that it is noticed and not taken for a repetition.
 * A later policy lists it in `taken_over`, when it has itself what the document wanted. From then
   on the document is without effect, also where it arrives only then.
 * A revoke is for good, a pause holds until a policy takes it over. It may name grants that are not
   there yet. `"*"` is every grant, also of later policies, until one of them takes it over.

What a vehicle must keep: (jti, iat, mode, grants) of each, and each jti that a policy took over.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from agent.core import strictjson
from agent.core.admission import MAX_IAT_AHEAD_NS, Admission
from agent.core.member import Members, as_id, unique
from agent.core.model import NS_PER_S
from agent.core.policy import MAX_POLICY_BYTES
from agent.core.standing import EVERY_GRANT
from agent.core.strictjson import shown
from agent.errors import PolicyRejected, WrongVehicle

RestrictionMode = Literal["pause", "revoke"]

MAX_GRANTS = 256
_FORMAT_VERSION = 1
_PLACE = "the restrict document"


@dataclass(frozen=True, slots=True)
class Restriction:
    """What a verified restrict document takes away.

    Attributes:
        aud: The vehicle's pseudonym.
        jti: Names the document.
        iat_s: When it was signed, s since the epoch.
        grants: Grant ids in order, or (EVERY_GRANT,).
    """

    aud: str
    jti: str
    iat_s: int
    mode: RestrictionMode
    grants: tuple[str, ...]


def parse_restriction(payload: bytes) -> Restriction:
    """Return the restriction of a verified payload.

    Raises:
        PolicyRejected: With a reason of docs/policy.md.
    """
    try:
        raw = strictjson.parse(payload, max_bytes=MAX_POLICY_BYTES)
    except strictjson.StrictJsonError as exc:
        raise PolicyRejected(f"{_PLACE} is not strict JSON: {exc}", reason=exc.reason) from exc
    members = Members(raw, _PLACE, ("v", "aud", "jti", "iat", "mode", "grants"))
    if (version := members.integer("v")) != _FORMAT_VERSION:
        raise PolicyRejected(
            f"{_PLACE} has format v {version}, this agent reads {_FORMAT_VERSION}",
            reason="version",
        )
    return Restriction(
        aud=members.id("aud"),
        jti=members.id("jti"),
        iat_s=members.time_s("iat"),
        mode=_mode(members.text("mode")),
        grants=_grants(members),
    )


def admit_restriction(
    restriction: Restriction,
    *,
    vehicle: str,
    known: Iterable[Restriction],
    taken_over: Collection[str],
    now_ns: int | None,
) -> Admission:
    """Return whether a restriction takes effect, or changes nothing.

    Args:
        restriction: Parsed from a verified payload.
        vehicle: This vehicle's pseudonym.
        known: Those that are kept, taken over or not.
        taken_over: Each jti that a policy took over, whether its document ever came or not.
        now_ns: A synchronised clock, ns since the epoch; None while there is none.

    Raises:
        WrongVehicle: `aud` is another vehicle.
        PolicyRejected: With reason `equivocation` or `future`.
    """
    if restriction.aud != vehicle:
        raise WrongVehicle(
            f"the restrict document is for vehicle {restriction.aud}, this is {vehicle}",
            reason="vehicle",
        )
    same = next((old for old in known if old.jti == restriction.jti), None)
    if same is not None and same != restriction:
        raise PolicyRejected(
            f"the restrict document {restriction.jti} is known with another content",
            reason="equivocation",
            hint="give every restrict document a jti of its own",
        )
    if same is not None or restriction.jti in taken_over:
        return Admission.REPEAT
    if now_ns is not None and restriction.iat_s * NS_PER_S > now_ns + MAX_IAT_AHEAD_NS:
        raise PolicyRejected(
            "the restrict document's iat is more than a day ahead of this vehicle's clock",
            reason="future",
            hint="compare the clocks of the signer and the vehicle",
        )
    return Admission.APPLY


def _mode(text: str) -> RestrictionMode:
    if text == "pause":
        return "pause"
    if text == "revoke":
        return "revoke"
    raise PolicyRejected(
        f"{_PLACE}: unknown mode {shown(text)}, expected pause or revoke", reason="unknown-mode"
    )


def _grants(members: Members) -> tuple[str, ...]:
    if members.any("grants") == EVERY_GRANT:
        return (EVERY_GRANT,)
    ids = [as_id(value, f"{_PLACE}: grants") for value in members.some_elements("grants")]
    if len(ids) > MAX_GRANTS:
        raise PolicyRejected(
            f"{_PLACE} names {len(ids)} grants, at most {MAX_GRANTS} are allowed",
            reason="range",
            hint='sign several, or "*" for every grant',
        )
    return unique(ids, _PLACE, "grant")
