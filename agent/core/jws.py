"""A compact JWS (RFC 7515 section 3.1) → the payload that a trusted key signed.

Rules:
 * At most 64 KiB, three parts, canonical base64url: one token has one spelling.
 * The header is exactly `{alg, kid, typ}`. So `crit`, `b64`, `zip`, `jwk`, `jku`, `x5c` and
   whatever may be invented cannot bring in a key or another reading.
 * `kid` names a key of the trust file, and the key its one algorithm. The header's `alg` chooses
   nothing; it is only compared (RFC 8725 section 3.1). `EdDSA` means Ed25519 here and nothing
   else, which is what RFC 9864 asks for by a new name.
 * Nothing of the payload is looked at before the signature holds.

The trust file is strict JSON, `role` is always `policy`:

    {"v": 1, "keys": [{"kid": "policy-2026", "alg": "EdDSA", "role": "policy",
                       "jwk": {"kty": "OKP", "crv": "Ed25519", "x": "..."}}]}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey
from joserfc.jws import JWSRegistry

from agent.core import strictjson
from agent.core.jwk import ED25519, P256, decode_base64url, public_jwk
from agent.core.member import Members, unique
from agent.core.policy import MAX_POLICY_BYTES
from agent.core.strictjson import shown
from agent.errors import BadSignature, KeyFileError, PolicyRejected

__all__ = [
    "MAX_POLICY_BYTES",
    "POLICY_TYP",
    "Trust",
    "TrustedKey",
    "parse_trust",
    "unsafe_unverified_payload",
    "verify_policy_jws",
]

POLICY_TYP = "consent-policy+jwt"
POLICY_ROLE = "policy"
ALGORITHMS: Mapping[str, Mapping[str, str]] = MappingProxyType({"EdDSA": ED25519, "ES256": P256})

_MAX_TRUST_BYTES = 64 * 1024
_MAX_HEADER_BYTES = 512
_SIGNATURE_BYTES = 64  # Both: RFC 8032 section 5.1.6; RFC 7518 section 3.4, R and S of 32 bytes


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key that may sign policies, with its one algorithm."""

    kid: str
    alg: str
    jwk: Mapping[str, str]
    role: str


@dataclass(frozen=True, slots=True)
class Trust:
    """The keys of the trust file by kid; never empty."""

    keys: Mapping[str, TrustedKey]


@dataclass(frozen=True, slots=True)
class _Token:
    alg: str
    kid: str
    signed: bytes
    payload: bytes
    signature: bytes


def parse_trust(data: bytes) -> Trust:
    """Return the trusted keys of a trust file's bytes.

    Raises:
        KeyFileError: The file is no trust file, or it holds no key or a private one.
    """
    try:
        raw = strictjson.parse(data, max_bytes=_MAX_TRUST_BYTES)
        root = Members(raw, "the trust file", ("v", "keys"))
        if root.integer("v") != 1:
            raise KeyFileError("the trust file: v is not 1")
        keys = [
            _trusted_key(entry, f"the trust file: keys[{index}]")
            for index, entry in enumerate(root.some_elements("keys"))
        ]
        unique([key.kid for key in keys], "the trust file", "kid")
    except strictjson.StrictJsonError as exc:
        raise KeyFileError(f"the trust file is not strict JSON: {exc}") from exc
    except PolicyRejected as exc:
        raise KeyFileError(exc.message, hint=exc.hint) from exc
    return Trust(MappingProxyType({key.kid: key for key in keys}))


def verify_policy_jws(token: bytes, trust: Trust) -> bytes:
    """Return the payload of a policy that a trusted key signed.

    Args:
        token: A compact JWS, without a line end.
        trust: The keys that may sign.

    Raises:
        BadSignature: With reason `unknown-key`, `algorithm` or `signature`.
        PolicyRejected: With reason `too-large`, `unsigned`, `token` or `header`; nothing else,
            for any bytes.
    """
    parts = _split(token)
    key = trust.keys.get(parts.kid)
    if key is None:
        raise BadSignature(
            f"no trusted key has the kid {shown(parts.kid)}",
            reason="unknown-key",
            hint=f"the trust file has {', '.join(trust.keys)}",
        )
    if parts.alg != key.alg:
        raise BadSignature(
            f"the token says alg {shown(parts.alg)}, the key {key.kid} signs with {key.alg}",
            reason="algorithm",
        )
    # joserfc's own front door would take the header's word for more than we do, and warns
    # of the name EdDSA; its algorithms are used directly, behind the checks above.
    public = _public_key(key)
    try:
        holds = JWSRegistry.algorithms[key.alg].verify(parts.signed, parts.signature, public)
    except (JoseError, ValueError) as exc:
        raise _bad_signature(key) from exc
    if not holds:
        raise _bad_signature(key)
    return parts.payload


def unsafe_unverified_payload(token: bytes) -> bytes:
    """Return the payload of a well-formed token WITHOUT checking who signed it.

    For tools that let nothing out of the machine; never for what a vehicle obeys.

    Raises:
        PolicyRejected: With reason `too-large`, `unsigned`, `token` or `header`.
    """
    return _split(token).payload


def _split(token: bytes) -> _Token:
    if len(token) > MAX_POLICY_BYTES:
        raise PolicyRejected(
            f"the policy is {len(token)} bytes long, at most {MAX_POLICY_BYTES} are allowed",
            reason="too-large",
        )
    if token.lstrip()[:1] == b"{":
        raise PolicyRejected(
            "the policy is plain JSON, expected a signed one (compact JWS)",
            reason="unsigned",
            hint="sign it with `consentry policy sign`",
        )
    texts = token.split(b".")
    if len(texts) != 3:
        raise _no_token(f"it has {len(texts)} parts separated by dots, expected 3")
    header, payload, signature = (
        _decode(text, name)
        for text, name in zip(texts, ("header", "payload", "signature"), strict=True)
    )
    alg, kid = _header(header)
    if len(signature) != _SIGNATURE_BYTES:
        raise BadSignature(
            f"the signature is {len(signature)} bytes long, expected {_SIGNATURE_BYTES}",
            reason="signature",
        )
    return _Token(alg, kid, b".".join(texts[:2]), payload, signature)


def _decode(text: bytes, name: str) -> bytes:
    try:
        return decode_base64url(text.decode("ascii"))
    except UnicodeDecodeError as exc:
        raise _no_token(f"the {name} is not ASCII") from exc
    except ValueError as exc:
        raise _no_token(f"the {name}: {exc}") from exc


def _no_token(fault: str) -> PolicyRejected:
    return PolicyRejected(
        f"the policy is no compact JWS: {fault}",
        reason="token",
        hint="pass the token on byte for byte, without line ends or padding",
    )


def _header(data: bytes) -> tuple[str, str]:
    hint = f'the header is exactly {{"alg": ..., "kid": ..., "typ": "{POLICY_TYP}"}}'
    try:
        raw = strictjson.parse(data, max_bytes=_MAX_HEADER_BYTES, max_depth=1)
        members = Members(raw, "the token's header", ("alg", "kid", "typ"))
        alg, kid, typ = members.text("alg"), members.id("kid"), members.text("typ")
    except strictjson.StrictJsonError as exc:
        raise PolicyRejected(
            f"the token's header is not strict JSON: {exc}", reason="header", hint=hint
        ) from exc
    except PolicyRejected as exc:
        raise PolicyRejected(exc.message, reason="header", hint=hint) from exc
    if typ != POLICY_TYP:
        raise PolicyRejected(
            f"the token has typ {shown(typ)}, expected {POLICY_TYP}", reason="header", hint=hint
        )
    if alg not in ALGORITHMS:
        raise BadSignature(
            f"the token says alg {shown(alg)}, expected {' or '.join(ALGORITHMS)}",
            reason="algorithm",
        )
    return alg, kid


def _trusted_key(raw: Any, place: str) -> TrustedKey:
    members = Members(raw, place, ("kid", "alg", "role", "jwk"))
    kid, alg, role = members.id("kid"), members.text("alg"), members.text("role")
    if alg not in ALGORITHMS:
        raise KeyFileError(f"{place}: alg {shown(alg)}, expected {' or '.join(ALGORITHMS)}")
    if role != POLICY_ROLE:
        raise KeyFileError(f"{place}: role {shown(role)}, expected {POLICY_ROLE}")
    try:
        return TrustedKey(kid, alg, public_jwk(members.any("jwk"), ALGORITHMS[alg]), role)
    except ValueError as exc:
        raise KeyFileError(f"{place}: jwk: {exc}") from exc


def _public_key(key: TrustedKey) -> OKPKey | ECKey:
    kind = OKPKey if key.alg == "EdDSA" else ECKey
    return kind.import_key(dict(key.jwk))


def _bad_signature(key: TrustedKey) -> BadSignature:
    return BadSignature(
        f"the signature does not belong to these bytes and the key {key.kid}",
        reason="signature",
    )
