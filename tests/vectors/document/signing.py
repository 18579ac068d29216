"""The keys, the trust file, and how the forged documents are signed. Public: for tests alone."""

from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tests.vectors.policy import write_vectors as one
from tests.vectors.policy.write_vectors import (
    ED_KEY,
    ES_KEY,
    ec_jwk,
    ed_jwk,
    sign_ed,
    sign_es,
)

POLICY = "consent-policy+jwt"
RESTRICT = "consent-restrict+jwt"
TRUST = "consent-trust+jwt"

OWNER_ED = ed25519.Ed25519PrivateKey.from_private_bytes(b"consentry test vectors: owner ke")
OWNER_ES = ec.derive_private_key(0x0DE7, ec.SECP256R1())
ROOT_ED = ed25519.Ed25519PrivateKey.from_private_bytes(b"consentry test vectors: root key")
NEXT_ED = ed25519.Ed25519PrivateKey.from_private_bytes(b"consentry test vectors: next key")

Sign = Callable[[bytes], bytes]
Forged = tuple[str, str, str, str]


def by_ed(key: ed25519.Ed25519PrivateKey) -> Sign:
    return lambda data: sign_ed(data, key)


def by_es(key: ec.EllipticCurvePrivateKey) -> Sign:
    def sign(data: bytes) -> bytes:
        der = key.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        r, s = decode_dss_signature(der)
        return r.to_bytes(32) + s.to_bytes(32)

    return sign


SIGNERS: dict[str, tuple[str, Sign]] = {
    "ed-1": ("EdDSA", sign_ed),
    "es-1": ("ES256", sign_es),
    "owner-ed": ("EdDSA", by_ed(OWNER_ED)),
    "owner-es": ("ES256", by_es(OWNER_ES)),
    "root-1": ("EdDSA", by_ed(ROOT_ED)),
}


def key(kid: str, alg: str, role: str, jwk: dict[str, str]) -> dict[str, Any]:
    return {"kid": kid, "alg": alg, "role": role, "jwk": jwk}


TRUST_FILE: dict[str, Any] = {
    "v": 1,
    "ver": 3,
    "owner_needed_for": ["location", "identity"],
    "keys": [
        key("ed-1", "EdDSA", "policy", ed_jwk(ED_KEY)),
        key("es-1", "ES256", "policy", ec_jwk(ES_KEY)),
        key("owner-ed", "EdDSA", "owner", ed_jwk(OWNER_ED)),
        key("owner-es", "ES256", "owner", ec_jwk(OWNER_ES)),
        key("root-1", "EdDSA", "root", ed_jwk(ROOT_ED)),
    ],
}


def header(kid: str, typ: str, **more: Any) -> dict[str, Any]:
    alg = SIGNERS[kid][0] if kid in SIGNERS else "EdDSA"
    return {"alg": alg, "kid": kid, "typ": typ, **more}


def token(payload: bytes, kid: str, typ: str, *, head: Any = None, sign: Sign | None = None) -> str:
    return one.token(
        payload,
        header=header(kid, typ) if head is None else head,
        sign=sign or SIGNERS[kid][1],
    )


def told(forged: list[Forged]) -> list[dict[str, str]]:
    return [
        {"name": name, "error": error, "reason": reason, "token": text}
        for name, error, reason, text in forged
    ]
