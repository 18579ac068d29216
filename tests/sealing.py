"""Keys and a sealed batch for tests of envelope, signature and answer."""

from functools import cache
from typing import Any

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec
from cwt import COSE, COSEKey

from agent.cloud.keys import make_device_key, make_recipient_key, recipient_private
from agent.core.codec import CODEC_ID, encode
from agent.core.cose import DeviceKey, DevicePublicKey, device_key
from agent.core.model import Batch
from agent.core.seal import Header, RecipientKey, header_times, seal
from tests.columns import GEAR, SPEED, batch

ALGS = ("EdDSA", "ES256")
RECIPIENT_KID = "fx-2026-11"


def device_jwk(alg: str = "EdDSA", kid: str | None = None) -> dict[str, Any]:
    """Return the private JWK of a device, the same one for the same arguments."""
    return _made(kid or f"dev-{alg}", alg)


_made = cache(make_device_key)


def device(alg: str = "EdDSA", kid: str | None = None) -> DeviceKey:
    """Return the key of `device_jwk`."""
    return device_key(device_jwk(alg, kid))


@cache
def recipient_jwk() -> dict[str, Any]:
    """Return the private JWK of the recipient, always the same."""
    return make_recipient_key(RECIPIENT_KID)


def recipient_keys() -> dict[str, ec.EllipticCurvePrivateKey]:
    """Return what the recipient opens with."""
    return {RECIPIENT_KID: recipient_private(recipient_jwk())}


def recipient() -> RecipientKey:
    """Return what the device seals to."""
    return RecipientKey(RECIPIENT_KID, recipient_keys()[RECIPIENT_KID].public_key())


def devices(*extra: DevicePublicKey) -> dict[str, DevicePublicKey]:
    """Return the registry of enrolled devices."""
    enrolled = [device(alg).public_half for alg in ALGS]
    return {key.kid: key for key in (*enrolled, *extra)}


def header(made: Batch, signer: DeviceKey, **members: Any) -> Header:
    """Return H for a batch."""
    from_s, to_s = header_times(made)
    values: dict[str, Any] = {
        "vehicle": "veh-0001",
        "device_kid": signer.kid,
        "grant_id": made.grant_id,
        "rev": made.rev,
        "n": 7,
        "epoch": 1,
        "ver": 42,
        "from_s": from_s,
        "to_s": to_s,
        "codec": CODEC_ID,
        "ledger_size": 0,
        "ledger_root": bytes(32),
    }
    return Header(**{**values, **members})


def envelope(
    made: Batch | None = None, alg: str = "EdDSA", plaintext: bytes | None = None, **members: Any
) -> bytes:
    """Return a sealed batch."""
    made = made or batch(SPEED, GEAR)
    signer = device(alg)
    return seal(
        encode(made) if plaintext is None else plaintext,
        header(made, signer, **members),
        recipient=recipient(),
        device=signer,
    )


def opened_by_cwt(data: bytes, signer: dict[str, Any], opener: dict[str, Any]) -> tuple[Any, bytes]:
    """Open an envelope with the independent package `cwt` alone.

    Returns:
        The content layer's protected header and the plaintext.
    """
    public = {name: value for name, value in signer.items() if name not in ("d", "vehicle")}
    _, _, inner = COSE.new().decode_with_headers(data, COSEKey.from_jwk(public))
    # RFC 9052 3.1 lets the IV stand in either map; cwt looks only into the unprotected one, which
    # is not authenticated, so a copy there changes nothing but where cwt finds it.
    encrypt = cbor2.loads(inner)
    encrypt.value[1][5] = cbor2.loads(encrypt.value[0])[5]
    protected, _, plaintext = COSE.new().decode_with_headers(
        cbor2.dumps(encrypt), COSEKey.from_jwk(opener)
    )
    return protected, plaintext
