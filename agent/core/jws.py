"""A signed document (RFC 7515) → its payload, and who signed it.

Rules:
 * At most 64 KiB, canonical base64url, and nothing around it: one signature has one spelling.
 * Every header is exactly `{alg, kid, typ}`. So `crit`, `b64`, `zip`, `jwk`, `jku`, `x5c` and
   whatever may be invented cannot bring in a key or another reading.
 * `kid` names a trusted key, and the key its one algorithm and its one role. The header's `alg`
   chooses nothing; it is only compared (RFC 8725 section 3.1). `EdDSA` means Ed25519 here and
   nothing else, which is what RFC 9864 asks for by a new name.
 * `typ` says what kind of document it is, and the kind who may sign it. Every signature that is
   there must hold; one that is not needed does not make up for another.
 * Nothing of the payload is looked at before the signatures hold.

A document is a compact JWS. A policy may carry a second signature, the owner's, over the very same
payload, which is not repeated (detached content, RFC 7515 appendix F):

    header.payload.signature
    header.payload.signature~header..signature
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey
from joserfc.jws import JWSRegistry

from agent.core import strictjson
from agent.core.jwk import decode_base64url
from agent.core.member import Members
from agent.core.policy import MAX_POLICY_BYTES
from agent.core.strictjson import shown
from agent.core.trust import ALGORITHMS, Role, Trust, TrustedKey, parse_trust
from agent.errors import BadSignature, PolicyRejected

__all__ = [
    "MAX_POLICY_BYTES",
    "POLICY_TYP",
    "RESTRICT_TYP",
    "SECOND",
    "TRUST_TYP",
    "Signer",
    "Trust",
    "TrustedKey",
    "Verified",
    "parse_trust",
    "unsafe_unverified_payload",
    "unsafe_unverified_typ",
    "verify_document",
    "verify_policy_jws",
]

POLICY_TYP = "consent-policy+jwt"
RESTRICT_TYP = "consent-restrict+jwt"
TRUST_TYP = "consent-trust+jwt"
SECOND = "~"  # Between the two signatures; base64url and the dots of a JWS have no such character.

# Who signs first, and who may sign beside; the second signature is never there alone.
_ROLES: Mapping[str, tuple[frozenset[Role], ...]] = MappingProxyType(
    {
        POLICY_TYP: (frozenset({Role.POLICY}), frozenset({Role.OWNER})),
        RESTRICT_TYP: (frozenset({Role.POLICY, Role.OWNER}),),
        TRUST_TYP: (frozenset({Role.ROOT}),),
    }
)
_MAX_HEADER_BYTES = 512
_SIGNATURE_BYTES = 64  # Both: RFC 8032 section 5.1.6; RFC 7518 section 3.4, R and S of 32 bytes


@dataclass(frozen=True, slots=True)
class Signer:
    """A trusted key whose signature holds."""

    kid: str
    role: Role


@dataclass(frozen=True, slots=True)
class Verified:
    """A document that those who may have signed.

    Attributes:
        typ: POLICY_TYP, RESTRICT_TYP or TRUST_TYP.
        payload: The signed bytes.
        signers: The first is the one whose signature the kind of document needs.
    """

    typ: str
    payload: bytes
    signers: tuple[Signer, ...]

    @property
    def roles(self) -> frozenset[Role]:
        """The roles of all who signed."""
        return frozenset(signer.role for signer in self.signers)


@dataclass(frozen=True, slots=True)
class _Signature:
    typ: str
    alg: str
    kid: str
    signed: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class _Token:
    payload: bytes
    signatures: tuple[_Signature, ...]


def verify_document(token: bytes, trust: Trust) -> Verified:
    """Return what those who may have signed.

    Args:
        token: A document as it is sent, without a line end.
        trust: The keys that may sign.

    Raises:
        BadSignature: With reason `unknown-key`, `algorithm`, `role` or `signature`.
        PolicyRejected: With reason `too-large`, `unsigned`, `token` or `header`; nothing else,
            for any bytes.
    """
    parts = _split(token)
    typ = parts.signatures[0].typ
    if len(parts.signatures) > len(_ROLES[typ]):
        raise _no_token(f"{typ} takes one signature, it has {len(parts.signatures)}")
    signers = tuple(
        _signer(signature, trust, roles)
        for signature, roles in zip(parts.signatures, _ROLES[typ], strict=False)
    )
    return Verified(typ, parts.payload, signers)


def verify_policy_jws(token: bytes, trust: Trust) -> bytes:
    """Return the payload of a policy that the platform signed, for whoever asks no more.

    Raises:
        BadSignature: As for `verify_document`.
        PolicyRejected: As for `verify_document`; also where it is another document than a policy
            (reason `header`).
    """
    verified = verify_document(token, trust)
    if verified.typ != POLICY_TYP:
        raise PolicyRejected(
            f"the document has typ {verified.typ}, expected {POLICY_TYP}", reason="header"
        )
    return verified.payload


def unsafe_unverified_payload(token: bytes) -> bytes:
    """Return the payload of a well-formed token WITHOUT checking who signed it.

    For tools that let nothing out of the machine; never for what a vehicle obeys.

    Raises:
        PolicyRejected: With reason `too-large`, `unsigned`, `token` or `header`.
    """
    return _split(token).payload


def unsafe_unverified_typ(token: bytes) -> str:
    """Return what kind of document a well-formed token says it is, WITHOUT checking who signed it.

    Raises:
        PolicyRejected: As for `unsafe_unverified_payload`.
    """
    return _split(token).signatures[0].typ


def _signer(signature: _Signature, trust: Trust, roles: frozenset[Role]) -> Signer:
    key = trust.keys.get(signature.kid)
    if key is None:
        raise BadSignature(
            f"no trusted key has the kid {shown(signature.kid)}",
            reason="unknown-key",
            hint=f"trusted are {', '.join(trust.keys)}",
        )
    if signature.alg != key.alg:
        raise BadSignature(
            f"the token says alg {shown(signature.alg)}, the key {key.kid} signs with {key.alg}",
            reason="algorithm",
        )
    if key.role not in roles:
        raise BadSignature(
            f"the key {key.kid} has the role {key.role}, "
            f"a signature there needs {' or '.join(sorted(roles))}",
            reason="role",
        )
    # joserfc's own front door would take the header's word for more than we do, and warns
    # of the name EdDSA; its algorithms are used directly, behind the checks above.
    public = (OKPKey if key.alg == "EdDSA" else ECKey).import_key(dict(key.jwk))
    try:
        holds = JWSRegistry.algorithms[key.alg].verify(
            signature.signed, signature.signature, public
        )
    except (JoseError, ValueError) as exc:
        raise _bad_signature(key) from exc
    if not holds:
        raise _bad_signature(key)
    return Signer(key.kid, key.role)


def _split(token: bytes) -> _Token:
    if len(token) > MAX_POLICY_BYTES:
        raise PolicyRejected(
            f"the document is {len(token)} bytes long, at most {MAX_POLICY_BYTES} are allowed",
            reason="too-large",
        )
    if token.lstrip()[:1] == b"{":
        raise PolicyRejected(
            "the document is plain JSON, expected a signed one (compact JWS)",
            reason="unsigned",
            hint="sign it with `consentry policy sign`",
        )
    first, *rest = token.split(SECOND.encode())
    if len(rest) > 1:
        raise _no_token(f"it has {1 + len(rest)} signatures, expected 1 or 2")
    header, body, signature = _parts(first)
    payload = _decode(body, "payload")
    signatures = [_signature(header, body, signature)]
    for text in rest:
        header, detached, signature = _parts(text)
        if detached:
            raise _no_token("the second signature brings a payload, expected none between its dots")
        signatures.append(_signature(header, body, signature))
        if signatures[0].typ != signatures[-1].typ:
            raise PolicyRejected("the two signatures have different typ", reason="header")
        if signatures[0].kid == signatures[-1].kid:
            raise _no_token("both signatures are by the same key")
    return _Token(payload, tuple(signatures))


def _parts(text: bytes) -> list[bytes]:
    parts = text.split(b".")
    if len(parts) != 3:
        raise _no_token(f"it has {len(parts)} parts separated by dots, expected 3")
    return parts


def _signature(header: bytes, body: bytes, signature: bytes) -> _Signature:
    decoded = _decode(signature, "signature")
    alg, kid, typ = _header(_decode(header, "header"))
    if len(decoded) != _SIGNATURE_BYTES:
        raise BadSignature(
            f"the signature is {len(decoded)} bytes long, expected {_SIGNATURE_BYTES}",
            reason="signature",
        )
    return _Signature(typ, alg, kid, header + b"." + body, decoded)


def _decode(text: bytes, name: str) -> bytes:
    try:
        return decode_base64url(text.decode("ascii"))
    except UnicodeDecodeError as exc:
        raise _no_token(f"the {name} is not ASCII") from exc
    except ValueError as exc:
        raise _no_token(f"the {name}: {exc}") from exc


def _no_token(fault: str) -> PolicyRejected:
    return PolicyRejected(
        f"the document is no compact JWS: {fault}",
        reason="token",
        hint="pass the token on byte for byte, without line ends or padding",
    )


def _header(data: bytes) -> tuple[str, str, str]:
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
    if typ not in _ROLES:
        raise PolicyRejected(
            f"the token has typ {shown(typ)}, expected {', '.join(_ROLES)}",
            reason="header",
            hint=hint,
        )
    if alg not in ALGORITHMS:
        raise BadSignature(
            f"the token says alg {shown(alg)}, expected {' or '.join(ALGORITHMS)}",
            reason="algorithm",
        )
    return alg, kid, typ


def _bad_signature(key: TrustedKey) -> BadSignature:
    return BadSignature(
        f"the signature does not belong to these bytes and the key {key.kid}",
        reason="signature",
    )
