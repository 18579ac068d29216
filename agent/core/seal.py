"""A batch's plaintext sealed to its recipient and signed by the device: an envelope.

RFC 9052; draft-ietf-cose-hpke, Key Encryption mode, HPKE-7-KE (P-256, HKDF-SHA256, AES-256-GCM).

    18([ << {1: alg, 4: device kid} >>, {}, << COSE_Encrypt >>, signature ])
    COSE_Encrypt =
    96([ << {1: 3, 3: content type, 5: iv, -65537: H} >>, {}, ciphertext,
         [[ << {1: 53, 4: recipient kid} >>, {-4: enc}, wrapped content key ]] ])
    H = {v: vehicle pseudonym, dk: device kid, g: grant id, r: rev, n: sequence in this grant,
         p: [epoch, ver], t: [from, to] in s, rounded to 60 s, c: codec, a: [ledger size, root]}

Rules:
 * Sealing happens in RAM, before the disk. The board holds no key that opens what it sealed.
 * A fresh content key and IV per envelope, so no nonce is ever used twice, also not after the disk
   was rolled back. Drawing them (and HPKE's own randomness) is the one impurity of this package.
 * H is authenticated, not secret: of the samples it tells the grant and the minutes, no more.
"""

import os
from dataclasses import dataclass

from cbor2 import CBORTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from agent.core import cbor
from agent.core.cose import LABEL_ALG, LABEL_KID, DeviceKey, public_key, sign1
from agent.core.jwk import P256
from agent.core.model import Batch
from agent.core.recipient import RecipientKeyRef

TAG_ENCRYPT = 96
ALG_A256GCM = 3
ALG_HPKE_7_KE = 53
LABEL_CONTENT_TYPE, LABEL_IV, LABEL_EK, LABEL_HEADER = 3, 5, -4, -65537
CONTENT_TYPE = "application/vnd.consentry.batch"
IV_BYTES = 12
ENC_BYTES = 65  # An uncompressed point of P-256 (RFC 9180 section 7.1).
ROUND_S = 60

SUITE = Suite(KEM.P256, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


@dataclass(frozen=True, slots=True)
class RecipientKey:
    """A key to seal to."""

    kid: str
    public: ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class Header:
    """H: what the broker may read and the recipient can rely on.

    Attributes:
        vehicle: The vehicle's pseudonym.
        device_kid: Must be the signer's.
        n: Sequence in this grant, from 1.
        from_s: At or before the first sample, a whole minute, s since the epoch.
        to_s: At or after the last sample, a whole minute.
        ledger_size: Leaves of the device's ledger.
        ledger_root: Its root, 32 bytes.
    """

    vehicle: str
    device_kid: str
    grant_id: str
    rev: int
    n: int
    epoch: int
    ver: int
    from_s: int
    to_s: int
    codec: int
    ledger_size: int
    ledger_root: bytes


def recipient_key(ref: RecipientKeyRef) -> RecipientKey:
    """Return the key of a policy's recipient; it was checked when the policy was parsed."""
    public = public_key(ref.jwk, P256)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    return RecipientKey(ref.kid, public)


def header_times(batch: Batch) -> tuple[int, int]:
    """Return [from, to] of a batch in s since the epoch: rounded outwards to whole minutes."""
    first_ms, last_ms = batch.span_ms
    minute_ms = ROUND_S * 1000
    return first_ms // minute_ms * ROUND_S, -(-last_ms // minute_ms) * ROUND_S


def seal(plaintext: bytes, header: Header, *, recipient: RecipientKey, device: DeviceKey) -> bytes:
    """Return the envelope of a plaintext.

    Args:
        plaintext: From `codec.encode`.
        header: H; names the device that signs.
        recipient: The one key that opens the envelope.
        device: Signs.
    """
    assert header.device_kid == device.kid, "an opener would refuse it"
    content_key, iv = AESGCM.generate_key(256), os.urandom(IV_BYTES)
    protected = cbor.encode(
        {
            LABEL_ALG: ALG_A256GCM,
            LABEL_CONTENT_TYPE: CONTENT_TYPE,
            LABEL_IV: iv,
            LABEL_HEADER: _wire(header),
        }
    )
    ciphertext = AESGCM(content_key).encrypt(iv, plaintext, enc_structure(protected))
    recipient_protected = cbor.encode({LABEL_ALG: ALG_HPKE_7_KE, LABEL_KID: recipient.kid.encode()})
    wrapped = SUITE.encrypt(
        content_key, recipient.public, info=recipient_structure(recipient_protected)
    )
    encrypted = cbor.encode(
        CBORTag(
            TAG_ENCRYPT,
            [
                protected,
                {},
                ciphertext,
                [[recipient_protected, {LABEL_EK: wrapped[:ENC_BYTES]}, wrapped[ENC_BYTES:]]],
            ],
        )
    )
    return sign1(encrypted, device)


def enc_structure(protected: bytes) -> bytes:
    """Return the AAD of the content layer (RFC 9052 section 5.3)."""
    return cbor.encode(["Encrypt", protected, b""])


def recipient_structure(recipient_protected: bytes) -> bytes:
    """Return HPKE's info (draft-ietf-cose-hpke, Recipient_structure)."""
    return cbor.encode(["HPKE Recipient", ALG_A256GCM, recipient_protected, b""])


def _wire(header: Header) -> dict[str, object]:
    return {
        "v": header.vehicle,
        "dk": header.device_kid,
        "g": header.grant_id,
        "r": header.rev,
        "n": header.n,
        "p": [header.epoch, header.ver],
        "t": [header.from_s, header.to_s],
        "c": header.codec,
        "a": [header.ledger_size, header.ledger_root],
    }
