"""Make, write and read keys, as JWK files.

Rules:
 * A key has a `kid` that is never used again, and one algorithm.
 * A private key's file is made with mode 0600 and never overwritten.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.core import strictjson
from agent.core.cose import private_key
from agent.core.jwk import ED25519, P256, encode_base64url
from agent.core.recipient import SEAL_ALG
from agent.errors import KeyFileError

_KID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_MAX_FILE_BYTES = 4096
_BYTES = 32

Jwk = dict[str, Any]


def make_recipient_key(kid: str) -> Jwk:
    """Return a new private key that envelopes are sealed to (P-256)."""
    return {**_p256(kid), "alg": SEAL_ALG}


def make_device_key(kid: str, alg: str = "EdDSA") -> Jwk:
    """Return a new private key that a device signs with.

    Args:
        kid: The key's name.
        alg: `EdDSA` (Ed25519) or `ES256` (P-256).
    """
    return _signing_key(kid, alg)


def make_policy_key(kid: str, alg: str = "EdDSA") -> Jwk:
    """Return a new private key that documents for vehicles are signed with.

    Whether it is the platform's, the owner's or a root key is said by the trust file alone.

    Args:
        kid: The key's name.
        alg: `EdDSA` (Ed25519) or `ES256` (P-256).
    """
    return _signing_key(kid, alg)


def public_half(jwk: Mapping[str, Any]) -> Jwk:
    """Return a key without its private member."""
    return {name: value for name, value in jwk.items() if name != "d"}


def recipient_private(jwk: Mapping[str, Any]) -> ec.EllipticCurvePrivateKey:
    """Return the private key that opens envelopes.

    Raises:
        KeyFileError: It is no private P-256 key.
    """
    key = private_key(jwk, P256)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def save_key(path: Path, jwk: Mapping[str, Any]) -> None:
    """Write a key to a new file, mode 0600 where it is private.

    Raises:
        KeyFileError: The file exists, or cannot be written.
    """
    mode = 0o600 if "d" in jwk else 0o644
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as exc:
        raise KeyFileError(
            f"{path} is there already; keys are not overwritten", hint="name another file"
        ) from exc
    except OSError as exc:
        raise KeyFileError(f"{path} cannot be written: {exc.strerror}") from exc
    with os.fdopen(file, "w", encoding="utf-8") as out:
        out.write(json.dumps(dict(jwk), indent=2) + "\n")


def load_key(path: Path) -> Jwk:
    """Return the JWK in a file.

    Raises:
        KeyFileError: It is not there, or holds no JWK with a kid.
    """
    try:
        value = strictjson.parse(path.read_bytes(), max_bytes=_MAX_FILE_BYTES)
    except strictjson.StrictJsonError as exc:
        raise KeyFileError(f"the key {path} is not strict JSON: {exc}") from exc
    except OSError as exc:
        raise KeyFileError(f"the key {path} cannot be read: {exc.strerror}") from exc
    if not isinstance(value, dict) or not isinstance(value.get("kid"), str):
        raise KeyFileError(
            f"the key {path} is no JWK with a kid", hint="make one with `consentry keys new`"
        )
    return value


def _signing_key(kid: str, alg: str) -> Jwk:
    if alg == "EdDSA":
        private = Ed25519PrivateKey.generate()
        return {
            **ED25519,
            "x": encode_base64url(private.public_key().public_bytes_raw()),
            "d": encode_base64url(private.private_bytes_raw()),
            "kid": _checked(kid),
            "alg": alg,
        }
    if alg == "ES256":
        return {**_p256(kid), "alg": alg}
    raise KeyFileError(f"alg {alg} is not known, expected EdDSA or ES256")


def _p256(kid: str) -> Jwk:
    numbers = ec.generate_private_key(ec.SECP256R1()).private_numbers()
    public = numbers.public_numbers
    return {
        **P256,
        "x": encode_base64url(public.x.to_bytes(_BYTES)),
        "y": encode_base64url(public.y.to_bytes(_BYTES)),
        "d": encode_base64url(numbers.private_value.to_bytes(_BYTES)),
        "kid": _checked(kid),
    }


def _checked(kid: str) -> str:
    if not _KID.fullmatch(kid):
        raise KeyFileError(f"a kid matches {_KID.pattern}, found another name")
    return kid
