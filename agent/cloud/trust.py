"""The platform's side of trust: write a vehicle's trust file, and renew the platform's keys.

How the platform's keys are renewed without touching vehicles one by one:

 1. Make the new key, and sign a trust document with the old and the new one. Every vehicle takes
    policies of either.
 2. Sign policies with the new key from now on.
 3. When every vehicle has answered such a policy, sign a trust document with the new key alone.

A vehicle that missed a step takes the newest trust document all the same: it is signed by a root
key of its trust file, not by the keys that it replaces.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agent.cloud.signing import encode, kid_of, kind_of, public_half, sign
from agent.core.jws import TRUST_TYP
from agent.core.trust import Role, parse_trust, parse_trust_document

Jwk = Mapping[str, Any]


def trust_file(
    *jwks: Jwk,
    owners: Sequence[Jwk] = (),
    roots: Sequence[Jwk] = (),
    owner_needed_for: Sequence[str] = (),
    ver: int = 0,
) -> bytes:
    """Return a vehicle's trust file.

    Args:
        jwks: Keys that may sign policies, as JWK with `kid` and `alg`; of a private one only the
            public members are taken.
        owners: Keys of the owner.
        roots: Keys that may renew those of `jwks` from afar.
        owner_needed_for: Classes of which a policy gives more only with the owner's signature.
        ver: Above that of every trust document that this file is to outrank.

    Raises:
        KeyFileError: A key lacks `kid` or `alg`, or is of another kind than its `alg` needs; or
            the file makes no sense as a whole.
    """
    by_role = ((Role.POLICY, jwks), (Role.OWNER, owners), (Role.ROOT, roots))
    keys = [_entry(key, role) for role, some in by_role for key in some]
    document: dict[str, Any] = {"v": 1}
    if ver:
        document["ver"] = ver
    if owner_needed_for:
        document["owner_needed_for"] = list(owner_needed_for)
    data = json.dumps(document | {"keys": keys}, indent=2).encode() + b"\n"
    parse_trust(data)
    return data


def sign_trust(jwks: Sequence[Jwk], root: Jwk, *, ver: int, iat_s: int) -> str:
    """Return a signed trust document: the platform's keys from now on.

    Args:
        jwks: All keys that may sign policies, the old ones that stay included.
        root: Private JWK of a root key of the vehicles' trust files.
        ver: Above that of the trust files and of every trust document before.
        iat_s: Now.

    Raises:
        PolicyRejected: No vehicle would take it.
        KeyFileError: A key lacks `kid` or `alg`, or cannot sign.
    """
    keys = [_entry(key, Role.POLICY) for key in jwks]
    payload = encode({"v": 1, "ver": ver, "iat": iat_s, "keys": keys})
    parse_trust_document(payload)
    return sign(payload, root, typ=TRUST_TYP)


def _entry(key: Jwk, role: Role) -> dict[str, Any]:
    alg = str(key.get("alg"))
    return {
        "kid": kid_of(key),
        "alg": alg,
        "role": role.value,
        "jwk": public_half(key, kind_of(alg)),
    }
