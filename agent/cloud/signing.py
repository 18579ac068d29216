"""Sign the documents that a vehicle obeys; the signatures of core/jws.py, from the other side.

Rules:
 * What is signed is the bytes as they are; nobody writes them anew on the way.
 * A token is never longer than a vehicle reads.
 * A second signature is over the payload and the kind of document of the first, never over others.
"""

import json
from collections.abc import Mapping
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey
from joserfc.jws import JWSRegistry

from agent.core.jwk import encode_base64url, public_jwk
from agent.core.jws import POLICY_TYP, SECOND, unsafe_unverified_typ
from agent.core.member import ID
from agent.core.policy import MAX_POLICY_BYTES
from agent.core.strictjson import shown
from agent.core.trust import ALGORITHMS
from agent.errors import KeyFileError, PolicyRejected


def sign(
    payload: bytes,
    key: Mapping[str, Any],
    *,
    typ: str,
    kid: str | None = None,
    alg: str | None = None,
) -> str:
    """Return a document as a compact JWS.

    Args:
        payload: Its exact bytes.
        key: Private JWK, Ed25519 or P-256.
        typ: What it is: POLICY_TYP, RESTRICT_TYP or TRUST_TYP.
        kid: Name of the key in the vehicles' trust files; by default the JWK's own.
        alg: `EdDSA` or `ES256`; by default the JWK's own.

    Raises:
        PolicyRejected: It is too long (reason `too-large`).
        KeyFileError: The key is no private key for this algorithm.
    """
    header, body = _header(key, typ, kid, alg), encode_base64url(payload)
    return _short(f"{header}.{body}.{_signature(f'{header}.{body}', key, alg)}")


def countersign(token: str, key: Mapping[str, Any]) -> str:
    """Return a signed policy with the owner's signature beside the platform's.

    Args:
        token: With one signature, which is not checked here.
        key: The owner's private JWK, with `kid` and `alg`.

    Raises:
        PolicyRejected: It is no policy with one signature, or too long.
        KeyFileError: The key is no private key for its algorithm.
    """
    if unsafe_unverified_typ(token.encode()) != POLICY_TYP or SECOND in token:
        raise PolicyRejected(
            "only a policy with one signature can be countersigned",
            reason="token",
            hint="give the token as the platform signed it",
        )
    header, body = _header(key, POLICY_TYP, None, None), token.split(".")[1]
    return _short(f"{token}{SECOND}{header}..{_signature(f'{header}.{body}', key, None)}")


def encode(document: Mapping[str, Any]) -> bytes:
    """Return a document as JSON without spaces.

    Raises:
        PolicyRejected: It holds what JSON cannot say (reason `json`).
    """
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode()
    except (TypeError, ValueError) as exc:
        raise PolicyRejected(
            f"the document cannot be written as JSON: {exc}", reason="json"
        ) from exc


def kind_of(alg: str) -> Mapping[str, str]:
    """Return which curve an algorithm signs with.

    Raises:
        KeyFileError: It is no algorithm of signing keys.
    """
    if alg not in ALGORITHMS:
        raise KeyFileError(f"a signing key has alg {' or '.join(ALGORITHMS)}, found {shown(alg)}")
    return ALGORITHMS[alg]


def kid_of(key: Mapping[str, Any]) -> str:
    """Return the name of a key.

    Raises:
        KeyFileError: It has none.
    """
    kid = key.get("kid")
    if not isinstance(kid, str) or not ID.fullmatch(kid):
        raise KeyFileError(
            f"the key has no kid that matches {ID.pattern}",
            hint="give it a name that is never used again",
        )
    return kid


def public_half(key: Mapping[str, Any], kind: Mapping[str, str]) -> Mapping[str, str]:
    """Return the public members of a key alone.

    Raises:
        KeyFileError: It is no key of this kind.
    """
    members = {name: key[name] for name in (*kind, "x", "y") if name in key}
    try:
        return dict(public_jwk(members, kind))
    except ValueError as exc:
        raise KeyFileError(f"the key {kid_of(key)}: {exc}") from exc


def _header(key: Mapping[str, Any], typ: str, kid: str | None, alg: str | None) -> str:
    header = {"alg": alg or str(key.get("alg")), "kid": kid or kid_of(key), "typ": typ}
    return encode_base64url(encode(header))


def _signature(signed: str, key: Mapping[str, Any], alg: str | None) -> str:
    name = alg or str(key.get("alg"))
    kind = kind_of(name)
    if "d" not in key or any(key.get(member) != value for member, value in kind.items()):
        raise KeyFileError(f"the key is no private {kind['crv']} key, as {name} needs")
    try:
        private = (OKPKey if name == "EdDSA" else ECKey).import_key(
            {member: key[member] for member in (*kind, "x", "y", "d") if member in key}
        )
        return encode_base64url(JWSRegistry.algorithms[name].sign(signed.encode(), private))
    except (JoseError, ValueError) as exc:
        raise KeyFileError("the signing key is damaged") from exc


def _short(token: str) -> str:
    if len(token) > MAX_POLICY_BYTES:
        raise PolicyRejected(
            f"the signed document is {len(token)} bytes long, at most {MAX_POLICY_BYTES} are "
            "allowed",
            reason="too-large",
            hint="leave out revoked grants that every vehicle has acknowledged",
        )
    return token
