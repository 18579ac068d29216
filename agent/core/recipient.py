"""The third parties of a policy and the public keys to which batches are sealed for them.

Rules:
 * A signed policy gives every recipient at least one key, in order of preference. Without a
   name it goes by its id.
 * A key names its one algorithm, `HPKE-7-KE`, and is a point of P-256; a private key in a policy
   is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.core.jwk import P256, public_jwk
from agent.core.member import Members, unique
from agent.core.strictjson import shown
from agent.errors import PolicyRejected

SEAL_ALG = "HPKE-7-KE"  # draft-ietf-cose-hpke: P-256, HKDF-SHA256, AES-256-GCM, key encryption


@dataclass(frozen=True, slots=True)
class RecipientKeyRef:
    """A key to which batches may be sealed: kid, algorithm, public JWK (P-256)."""

    kid: str
    alg: str
    jwk: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Recipient:
    """A third party. Its keys stand in order of preference; none only in an unsigned policy."""

    recipient_id: str
    name: str
    keys: tuple[RecipientKeyRef, ...]


def parse_recipient(recipient_id: str, raw: Any, *, signed: bool) -> Recipient:
    """Return one member of the policy's `recipients`.

    Args:
        recipient_id: Its name there, already checked as an id.
        raw: Its value, decoded.
        signed: Whether `keys` are needed; what is there is checked in any case.

    Raises:
        PolicyRejected: Says what is wrong and repeats nothing of a key.
    """
    place = f"recipient {recipient_id}"
    members = Members(raw, place, ("name", "keys"))
    name = members.text("name") if "name" in members else recipient_id
    raw_keys = members.some_elements("keys") if signed or "keys" in members else []
    keys = tuple(_recipient_key(key, f"{place}: keys[{i}]") for i, key in enumerate(raw_keys))
    unique([key.kid for key in keys], place, "kid")
    return Recipient(recipient_id, name, keys)


def _recipient_key(raw: Any, place: str) -> RecipientKeyRef:
    members = Members(raw, place, ("kid", "alg", "jwk"))
    kid, alg = members.id("kid"), members.text("alg")
    if alg != SEAL_ALG:
        raise PolicyRejected(
            f"{place}: alg {shown(alg)} is unknown, expected {SEAL_ALG}", reason="recipient-key"
        )
    try:
        return RecipientKeyRef(kid, alg, public_jwk(members.any("jwk"), P256))
    except ValueError as exc:
        raise PolicyRejected(
            f"{place}: jwk: {exc}",
            reason="recipient-key",
            hint="put in the public half: kty EC, crv P-256, x and y as base64url of 32 bytes",
        ) from exc
