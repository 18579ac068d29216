"""Public keys as they stand in the policy and in the trust file (RFC 7517, 7518, 8037).

Rules:
 * A JWK has exactly the members of a public key: a private `d`, and whatever could point
   elsewhere (`x5u`, `jku`), is refused.
 * Base64url is canonical (RFC 7515 section 2): no padding, no whitespace, no stray bits, so that
   equal keys are equal texts and nobody can send one token in two spellings.
 * The key is a point of its curve, and none of the eight of small order: with one of those as a
   key, signatures that hold can be made without any secret (RFC 8032 section 8; no library here
   looks at Ed25519 keys).
"""

import base64
import binascii
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicNumbers

P256 = {"kty": "EC", "crv": "P-256"}
ED25519 = {"kty": "OKP", "crv": "Ed25519"}

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*", re.ASCII)
_PRIME = 2**255 - 19  # RFC 8032 section 5.1: the field, and d of the curve -x² + y² = 1 + dx²y²
_D = -121_665 * pow(121_666, -1, _PRIME) % _PRIME
_COORDINATE_BYTES = 32  # Both curves: RFC 7518 section 6.2.1.2, RFC 8032 section 5.1.5


def decode_base64url(text: str) -> bytes:
    """Return the bytes of canonical base64url text.

    Raises:
        ValueError: Padding, characters outside the alphabet, a length that no bytes have, or
            bits behind the last byte.
    """
    if not _BASE64URL.fullmatch(text):
        raise ValueError("base64url holds only A-Z a-z 0-9 - _ and no padding")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as exc:
        raise ValueError(f"base64url cannot be {len(text)} characters long") from exc
    if encode_base64url(data) != text:
        raise ValueError("base64url is not canonical: bits are set behind the last byte")
    return data


def encode_base64url(data: bytes) -> str:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def public_jwk(raw: Any, kind: Mapping[str, str]) -> Mapping[str, str]:
    """Return the key as a read-only mapping, checked.

    Args:
        raw: What a document holds where a JWK belongs.
        kind: `P256` or `ED25519`.

    Raises:
        ValueError: With a sentence that repeats nothing of the key.
    """
    coordinates = ("x", "y") if kind["kty"] == "EC" else ("x",)
    names = {*kind, *coordinates}
    if not isinstance(raw, dict):
        raise ValueError("a JWK is a JSON object")  # noqa: TRY004  callers catch one error
    if "d" in raw:
        raise ValueError("it holds a private key (d); only the public half belongs here")
    if set(raw) != names:
        raise ValueError(f"it has other members than {', '.join(sorted(names))}")
    for name, value in kind.items():
        if raw[name] != value:
            raise ValueError(f"{name} is not {value}")
    numbers = [_coordinate(name, raw[name]) for name in coordinates]
    if kind["kty"] == "EC":
        x, y = (int.from_bytes(number) for number in numbers)
        try:
            EllipticCurvePublicNumbers(x, y, SECP256R1()).public_key()
        except ValueError as exc:
            raise ValueError(f"x, y is no point of {kind['crv']}") from exc
    else:
        _check_ed25519(numbers[0])
    return MappingProxyType(dict(raw))


def _check_ed25519(data: bytes) -> None:
    """Raise ValueError where the bytes are no canonical point, or one of small order."""
    y = int.from_bytes(data, "little") % 2**255  # The highest bit is the sign of x.
    above, below = (y * y - 1) % _PRIME, (_D * y * y + 1) % _PRIME  # x² = above / below
    x2 = above * pow(below, -1, _PRIME) % _PRIME
    if y >= _PRIME or pow(x2, (_PRIME - 1) // 2, _PRIME) not in (0, 1):
        raise ValueError("x is no point of Ed25519")
    # Order 1 and 2: x = 0. Order 4: y = 0. Order 8: twice the point has y = 0, so x² = -y².
    if x2 == 0 or y == 0 or (x2 + y * y) % _PRIME == 0:
        raise ValueError("x is a point of small order, with which anybody could sign")


def _coordinate(name: str, value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError(f"{name} is not text")  # noqa: TRY004  callers catch one error
    try:
        data = decode_base64url(value)
    except ValueError as exc:
        raise ValueError(f"{name}: {exc}") from exc
    if len(data) != _COORDINATE_BYTES:
        raise ValueError(f"{name} is {len(data)} bytes long, expected {_COORDINATE_BYTES}")
    return data
