"""Policies, restrict and trust documents, mutated and then correctly signed; and the trust file."""

import base64
import json
import zlib
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.core.expansion import check_owner_signature
from agent.core.jws import POLICY_TYP, RESTRICT_TYP, TRUST_TYP, Verified, verify_document
from agent.core.plan import compile_plan
from agent.core.policy import Policy, parse_policy
from agent.core.restrict import admit_restriction, parse_restriction
from agent.core.standing import NO_OVERLAYS, Overlays, Standing, standings
from agent.core.trust import Role, Trust, parse_trust, parse_trust_document, renewed
from agent.errors import KeyFileError, PolicyRejected
from tests import car, policydoc
from tests.fuzz import rules
from tests.fuzz.mutate import SCALARS, copied, mutate_tree, spoiled, times
from tests.fuzz.target import ACCEPTED, Target, Verdict, WrongAcceptance, insist
from tests.policydoc import T0_S, VEHICLE

NOW_S = T0_S + 50
NOW_NS = NOW_S * 10**9
_SEEDS = {"policy": 21, "policy-2": 22, "owner": 23, "root": 24}
# Refusals that come before, or of, the JSON of the payload.
_BEFORE = frozenset({"json", "too-large", "token", "header", "unsigned", "signature"})
_BEFORE_KEY = frozenset({"unknown-key", "algorithm", "role"})


@cache
def _key(kid: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([_SEEDS[kid]] * 32))


def _b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


@cache
def _header(kid: str, typ: str) -> bytes:
    return _b64(json.dumps({"alg": "EdDSA", "kid": kid, "typ": typ}).encode())


def _entry(kid: str, role: str) -> dict[str, Any]:
    x = _b64(_key(kid).public_key().public_bytes_raw()).decode()
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": x}
    return {"kid": kid, "alg": "EdDSA", "role": role, "jwk": jwk}


def _trust_file() -> dict[str, Any]:
    roles = {"policy": "policy", "owner": "owner", "root": "root"}
    keys = [_entry(kid, role) for kid, role in roles.items()]
    return {"v": 1, "ver": 3, "owner_needed_for": ["location"], "keys": keys}


@cache
def _trust() -> Trust:
    return parse_trust(json.dumps(_trust_file()).encode(), classes=policydoc.catalogue().classes)


def _signed(payload: bytes, typ: str, *kids: str) -> bytes:
    """Return a document that is signed with these keys, the second over the same payload."""
    body = _b64(payload)
    parts = []
    for kid in kids:
        signed = _header(kid, typ) + b"." + body
        signature = _b64(_key(kid).sign(signed))
        parts.append(b".".join((_header(kid, typ), b"" if parts else body, signature)))
    return b"~".join(parts)


def _check_signatures(token: bytes, verified: Verified, roles: Sequence[set[str]]) -> None:
    """Hold a verified document against its bytes: every signature, by whom it says."""
    kids = []
    body = token.split(b".")[1]
    for part in token.split(b"~"):
        header, _, signature = part.split(b".")
        said = json.loads(base64.urlsafe_b64decode(header + b"=="))
        insist(set(said) == {"alg", "kid", "typ"}, "a header with another member")
        insist(said["typ"] == verified.typ and said["alg"] == "EdDSA", "another kind of document")
        try:
            _key(said["kid"]).public_key().verify(
                base64.urlsafe_b64decode(signature + b"=="), header + b"." + body
            )
        except (InvalidSignature, KeyError) as exc:
            raise WrongAcceptance("a signature that does not hold") from exc
        kids.append(said["kid"])
    insist([signer.kid for signer in verified.signers] == kids, "other signers than it has")
    insist(len(kids) == len(set(kids)) <= len(roles), "more signatures than it may have")
    insist(
        all(signer.role in may for signer, may in zip(verified.signers, roles, strict=False)),
        "signed by who may not",
    )
    insist(
        verified.payload == base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4)),
        "another payload than was signed",
    )


def _is_past(reason: str) -> bool:
    return reason not in _BEFORE and reason not in _BEFORE_KEY


_POLICY_NAMES = (
    *("v", "iss", "aud", "jti", "epoch", "ver", "iat", "nbf", "exp", "catalogue", "recipients"),
    *("grants", "taken_over", "grant_id", "rev", "state", "recipient", "offline_s", "purposes"),
    *("retention", "record", "details", "combine", "scope", "constraints", "min_interval_s"),
    *("quantum", "grid_deg", "precise", "once", "windows", "aggregate", "window_s", "fn", "days"),
    *("from", "to", "tz", "kid", "alg", "jwk", "kty", "crv", "x", "y", "d", "name", "id", "sha256"),
    *("fleet-x", "insurer", "crit", "rate"),
)


def _policy_pool() -> tuple[Any, ...]:
    shown = policydoc.catalogue()
    return (
        *shown.scopes,
        *shown.classes,
        *("active", "paused", "revoked", "pending", "fleet-x", "insurer", "nobody", "gr_01JD"),
        *("gr_01JC", "P30D", "PT12H", "P1Y", "P0D", "P", "P101Y", "PT1.5S", "dpv:Insurance"),
        *("Europe/Berlin", "UTC", "localtime", "Europe", "right/UTC", "1-5", "1,3", "7", "5-1"),
        *("07:00", "23:59", "24:00", "min", "max", "mean", "count", "last", "HPKE-7-KE", "EC"),
        *(T0_S, T0_S + 49, T0_S + 51, 253402300799, 253402300800, 0.1, 0.05, 1, 0.5, 59, 60, 0.01),
        *(1e-7, 9e-8, 180, policydoc.public_p256(), policydoc.public_p256(13)),
        *({}, *SCALARS),
    )


@cache
def _pools() -> tuple[tuple[Any, ...], tuple[str, ...]]:
    return _policy_pool(), tuple(policydoc.catalogue().scopes)


def _constraints(rng: Random) -> dict[str, Any]:
    """Return constraints, most of which some scope may have."""
    made: dict[str, Any] = {}
    for _ in range(times(rng, 4)):
        match rng.randrange(8):
            case 0 | 1:
                made["min_interval_s"] = rng.choice((0, 0.05, 0.1, 0.5, 1, 10, 60, 3600, 9.3e9))
            case 2:
                made["quantum"] = rng.choice((0.5, 1, 5, 1e-9, 1e300, 0))
            case 3:
                made["grid_deg"] = rng.choice((0.01, 0.001, 1e-7, 180, 200, 1))
            case 4:
                made["precise"] = rng.random() < 0.7
            case 5:
                made["once"] = rng.random() < 0.6
            case 6:
                functions = rng.sample(("min", "max", "mean", "count", "last"), rng.randint(1, 3))
                made["aggregate"] = {
                    "window_s": rng.choice((0.05, 0.5, 1, 60, 7.0005)),
                    "fn": functions,
                }
            case 7:
                made["windows"] = [
                    {
                        "days": rng.choice(("1-5", "6,7", "1", "1-7", "2,4-6")),
                        "from": rng.choice(("00:00", "07:00", "22:30")),
                        "to": rng.choice(("19:00", "00:00", "06:15")),
                        "tz": rng.choice(("Europe/Berlin", "UTC", "America/New_York")),
                    }
                    for _ in range(times(rng, 3))
                ]
    return made


def _regrant(rng: Random, document: dict[str, Any]) -> None:
    """Give a grant other scopes and constraints; most of them may be given."""
    grants = [grant for grant in document["grants"] if isinstance(grant.get("details"), list)]
    if not grants:
        return
    grant = rng.choice(grants)
    scopes = rng.sample(_pools()[1], rng.randint(1, 3))
    grant["details"] = [
        {"scope": scope, "constraints": _constraints(rng)}
        if rng.random() < 0.8
        else {"scope": scope}
        for scope in scopes
    ]
    grant.pop("combine", None)
    if len(scopes) > 1 and rng.random() < 0.7:
        grant["combine"] = [scopes]


def _mutated_policy(rng: Random) -> bytes:
    document = policydoc.example()
    if rng.random() < 0.5:
        _regrant(rng, document)
    for _ in range(rng.choice((0, 1, 1, 1, times(rng)))):
        mutate_tree(rng, document, _pools()[0], _POLICY_NAMES)
    return _written(rng, document)


def _written(rng: Random, document: Any) -> bytes:
    data = json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return spoiled(rng, data) if rng.random() < 0.08 else data


def _maybe_forged(rng: Random, token: bytes) -> bytes:
    """Return the token, once in a while with a change that its signature does not cover."""
    return (
        spoiled(rng, token, (b"~", b".", b"=", b"A", b"+", b"\n", b".."))
        if rng.random() < 0.04
        else token
    )


def _make_policy(rng: Random) -> bytes:
    return _maybe_forged(rng, _signed(_mutated_policy(rng), POLICY_TYP, "policy"))


def _make_countersigned(rng: Random) -> bytes:
    kids = rng.choice(
        (
            ("policy", "owner"),
            ("policy",),
            ("policy", "owner"),
            ("policy", "root"),
            ("owner", "policy"),
        )
    )
    if rng.random() < 0.9:
        kids = kids if kids[0] == "policy" and kids[-1] != "root" else ("policy", "owner")
    return _maybe_forged(rng, _signed(_mutated_policy(rng), POLICY_TYP, *kids))


def _read_policy(token: bytes) -> tuple[Verified, Policy]:
    verified = verify_document(token, _trust())
    if verified.typ != POLICY_TYP:
        raise PolicyRejected("another document", reason="header")
    return verified, parse_policy(verified.payload, policydoc.catalogue())


def _judge_policy(token: bytes) -> Verdict:
    try:
        verified, policy = _read_policy(token)
    except PolicyRejected as exc:
        return Verdict(_is_past(exc.reason), exc.reason)
    _check_signatures(token, verified, ({"policy"}, {"owner"}))
    rules.check_policy(verified.payload, policy)
    if zlib.crc32(token) % 3 == 0:  # Half of the time that a policy takes.
        plan = compile_plan(policy, policydoc.catalogue(), car.binding(), now_ns=NOW_NS)
        rules.check_plan(json.loads(verified.payload), plan.takes, NOW_S)
    return Verdict(True, ACCEPTED)


@cache
def _before() -> Policy:
    return parse_policy(json.dumps(policydoc.example()).encode(), policydoc.catalogue())


def _judge_countersigned(token: bytes) -> Verdict:
    try:
        verified, policy = _read_policy(token)
        check_owner_signature(
            policy,
            before=_before(),
            roles=verified.roles,
            trust=_trust(),
            catalogue=policydoc.catalogue(),
            now_ns=NOW_NS,
        )
    except PolicyRejected as exc:
        return Verdict(_is_past(exc.reason), exc.reason)
    _check_signatures(token, verified, ({"policy"}, {"owner"}))
    rules.check_policy(verified.payload, policy)
    if Role.OWNER not in verified.roles:
        rules.check_no_more(policydoc.example(), json.loads(verified.payload), "location")
    return Verdict(True, ACCEPTED)


_RESTRICT = (
    {"v": 1, "aud": VEHICLE, "jti": "r-1", "iat": T0_S, "mode": "pause", "grants": ["gr_01JD"]},
    {"v": 1, "aud": VEHICLE, "jti": "r-2", "iat": T0_S, "mode": "revoke", "grants": "*"},
    {
        "v": 1,
        "aud": VEHICLE,
        "jti": "r-3",
        "iat": T0_S,
        "mode": "revoke",
        "grants": ["gr_01JF", "gr_9"],
    },
)
_RESTRICT_NAMES = ("v", "aud", "jti", "iat", "mode", "grants", "resume", "exp", "until")
_RESTRICT_POOL = (
    *("pause", "revoke", "resume", "active", "*", ["*"], "gr_01JD", "gr_01JF", VEHICLE, "veh-2"),
    *(T0_S, T0_S + 86_400, T0_S + 90_000, [], ["gr_01JD", "gr_01JD"], "r-1", "r-9", *SCALARS),
)


def _make_restrict(rng: Random) -> bytes:
    document = copied(rng.choice(_RESTRICT))
    for _ in range(rng.choice((0, 1, 1, times(rng)))):
        mutate_tree(rng, document, _RESTRICT_POOL, _RESTRICT_NAMES)
    kid = rng.choice(
        ("policy", "owner", "policy", "owner", "root")
        if rng.random() < 0.1
        else ("policy", "owner")
    )
    return _maybe_forged(rng, _signed(_written(rng, document), RESTRICT_TYP, kid))


def _judge_restrict(token: bytes) -> Verdict:
    known = parse_restriction(json.dumps(_RESTRICT[0]).encode())
    try:
        verified = verify_document(token, _trust())
        if verified.typ != RESTRICT_TYP:
            raise PolicyRejected("another document", reason="header")
        restriction = parse_restriction(verified.payload)
        admission = admit_restriction(
            restriction, vehicle=VEHICLE, known=[known], taken_over=("r-9",), now_ns=NOW_NS
        )
    except PolicyRejected as exc:
        return Verdict(_is_past(exc.reason), exc.reason)
    _check_signatures(token, verified, ({"policy", "owner"},))
    said = rules.read(verified.payload)
    rules.check_restriction(said, restriction, vehicle=VEHICLE, now_s=NOW_S)
    insist((admission.name == "REPEAT") == (said["jti"] in ("r-1", "r-9")), "a repetition or not")
    which = frozenset(restriction.grants)
    overlays = Overlays(revoked=which) if said["mode"] == "revoke" else Overlays(paused=which)
    free, held = (standings(_before(), words, NOW_NS) for words in (NO_OVERLAYS, overlays))
    for grant_id, now in held.items():
        insist(now is free[grant_id] or now in (Standing.PAUSED, Standing.REVOKED), "it gives")
        named = said["grants"] == "*" or grant_id in said["grants"]
        insist(not named or now is not Standing.ACTIVE, "it does not take away")
        insist(named or now is free[grant_id], "it takes away what it does not name")
    return Verdict(True, ACCEPTED)


_TRUST_NAMES = (
    *("v", "ver", "iat", "keys", "owner_needed_for", "kid", "alg", "role", "jwk", "kty", "crv"),
    *("x", "y", "d", "x5u", "use"),
)


@cache
def _trust_pool() -> tuple[Any, ...]:
    small = [bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f", b"\xff" * 32]
    return (
        *("policy", "owner", "root", "EdDSA", "ES256", "OKP", "EC", "Ed25519", "P-256", "policy-2"),
        *(_b64(data).decode() for data in small),
        *(_entry(kid, role)["jwk"]["x"] for kid in _SEEDS for role in ("policy",)),
        *(_entry(kid, role) for kid in _SEEDS for role in ("policy", "owner", "root")),
        {"kid": "es", "alg": "ES256", "role": "policy", "jwk": policydoc.public_p256(31)},
        policydoc.public_p256(32),
        *policydoc.catalogue().classes,
        *(0, 1, 2, 3, 4, 5, T0_S, *SCALARS),
    )


def _make_trust_document(rng: Random) -> bytes:
    document = {"v": 1, "ver": 4, "iat": T0_S, "keys": [_entry("policy-2", "policy")]}
    if rng.random() < 0.5:
        document["keys"].append(_entry("policy", "policy"))
    for _ in range(rng.choice((0, 1, 1, 2, times(rng)))):
        mutate_tree(rng, document, _trust_pool(), _TRUST_NAMES)
    kid = rng.choice(tuple(_SEEDS)) if rng.random() < 0.05 else "root"
    return _maybe_forged(rng, _signed(_written(rng, document), TRUST_TYP, kid))


def _judge_trust_document(token: bytes) -> Verdict:
    before = _trust()
    try:
        verified = verify_document(token, before)
        if verified.typ != TRUST_TYP:
            raise PolicyRejected("another document", reason="header")
        after = renewed(before, parse_trust_document(verified.payload))
    except PolicyRejected as exc:
        # An odd key is refused by the reader of keys, whose reasons are those of a token, too.
        return Verdict(_trust_is_past(token, exc.reason), exc.reason)
    _check_signatures(token, verified, ({"root"},))
    said = rules.read(verified.payload)
    insist(set(said) == {"v", "ver", "iat", "keys"} and rules.is_int(said["v"], 1, 1), "members")
    insist(rules.is_int(said["ver"], before.ver + 1) and after.ver == said["ver"], "not newer")
    rules.check_keys(said["keys"], {"policy"})
    fixed = {kid: key for kid, key in before.keys.items() if key.role is not Role.POLICY}
    given = {key["kid"]: key for key in said["keys"]}
    insist(after.owner_needed_for == before.owner_needed_for, "it takes the owner's veto")
    insist(set(after.keys) == set(fixed) | set(given), "other keys than it gives")
    for kid, key in after.keys.items():
        if kid in fixed:
            insist(key == fixed[kid] and kid not in given, "it changes who may not be changed")
        else:
            same = (key.alg, dict(key.jwk), key.role.value)
            insist(same == (given[kid]["alg"], given[kid]["jwk"], "policy"), "another key")
    return Verdict(True, ACCEPTED)


def _trust_is_past(token: bytes, reason: str) -> bool:
    if reason in ("algorithm", "role"):
        try:
            verify_document(token, _trust())
        except PolicyRejected:
            return False
        return True
    return _is_past(reason)


def _make_trust_file(rng: Random) -> bytes:
    document = _trust_file()
    for _ in range(rng.choice((0, 1, 1, 2, times(rng)))):
        mutate_tree(rng, document, _trust_pool(), _TRUST_NAMES)
    return _written(rng, document)


def _judge_trust_file(data: bytes) -> Verdict:
    try:
        trust = parse_trust(data, classes=policydoc.catalogue().classes)
    except KeyFileError as exc:
        return Verdict("is not strict JSON" not in exc.message, "key file")
    said = rules.read(data)
    insist(set(said) <= {"v", "ver", "keys", "owner_needed_for"}, "a member that is none")
    insist(rules.is_int(said["v"], 1, 1) and rules.is_int(said.get("ver", 0), 0), "a version")
    rules.check_keys(said["keys"], {"policy", "owner", "root"})
    roles = {key["role"] for key in said["keys"]}
    needed = said.get("owner_needed_for", [])
    insist(roles != {"owner"}, "nobody may sign policies")
    insist(not needed or "owner" in roles, "the owner is needed and has no key")
    insist(set(needed) <= set(policydoc.catalogue().classes), "no class")
    insist(len(set(needed)) == len(needed), "a class twice")
    insist(
        trust.owner_needed_for == set(needed) and trust.ver == said.get("ver", 0), "another trust"
    )
    for key in said["keys"]:
        kept = trust.keys[key["kid"]]
        insist(
            (kept.alg, dict(kept.jwk), kept.role) == (key["alg"], key["jwk"], key["role"]), "key"
        )
    return Verdict(True, ACCEPTED)


TARGETS = (
    Target("policy", _make_policy, _judge_policy, "signature and strict JSON"),
    Target(
        "countersigned policy",
        _make_countersigned,
        _judge_countersigned,
        "signatures and strict JSON",
    ),
    Target("restrict document", _make_restrict, _judge_restrict, "signature and strict JSON"),
    Target(
        "trust document", _make_trust_document, _judge_trust_document, "signature and strict JSON"
    ),
    Target("trust file", _make_trust_file, _judge_trust_file, "strict JSON"),
)
