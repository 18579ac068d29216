"""Open an envelope, on the recipient's side; verify a device's answer, on the platform's.

Rules:
 * Exactly the spelling of `agent.core.seal`: tags, labels and types as written there, every layer
   in canonical CBOR, nothing behind it. So no bit of an envelope can be flipped unseen.
 * The device's key is looked up by its kid, with its one algorithm, and the sealed header must name
   that very kid: another enrolled device cannot sign the envelope anew as its own. Where the
   registry gives a device its one vehicle, the header must name that too.
 * Plaintext is unpacked only up to a limit.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cbor2 import CBORTag
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from agent.core import cbor
from agent.core.ack import Ack, parse_ack
from agent.core.cbor import is_count, malformed
from agent.core.codec import MAX_PLAINTEXT_BYTES, decode
from agent.core.cose import LABEL_ALG, LABEL_KID, DevicePublicKey, verify1
from agent.core.model import Batch, Column, Sample
from agent.core.seal import (
    ALG_A256GCM,
    ALG_HPKE_7_KE,
    CONTENT_TYPE,
    ENC_BYTES,
    IV_BYTES,
    LABEL_CONTENT_TYPE,
    LABEL_EK,
    LABEL_HEADER,
    LABEL_IV,
    SUITE,
    TAG_ENCRYPT,
    Header,
    enc_structure,
    recipient_structure,
)
from agent.errors import EnvelopeRejected

_KEY_BYTES = 32
_ROOT_BYTES = 32
_WRAPPED_BYTES = _KEY_BYTES + 16  # AES-GCM tag.

RecipientKeys = Mapping[str, ec.EllipticCurvePrivateKey]
Devices = Mapping[str, DevicePublicKey]
_Parts = tuple[bytes, bytes, bytes, bytes, bytes]


@dataclass(frozen=True, slots=True)
class Opened:
    """What an envelope held."""

    header: Header
    recipient_kid: str
    columns: tuple[Column, ...]

    def samples(self, recipient: str) -> Iterator[Sample]:
        """Yield the samples, by time and then by path.

        Args:
            recipient: The name to give to whoever opened it.
        """
        batch = Batch(self.header.grant_id, self.header.rev, recipient, self.columns)
        yield from sorted(batch.samples(), key=lambda sample: (sample.t_ns, sample.path))


def open_envelope(
    data: bytes,
    *,
    recipient_keys: RecipientKeys,
    devices: Devices,
    max_plaintext: int = MAX_PLAINTEXT_BYTES,
) -> Opened:
    """Verify, decrypt and decode an envelope.

    Args:
        data: The envelope's bytes.
        recipient_keys: kid -> private key of the recipient.
        devices: kid -> public key of enrolled devices.
        max_plaintext: Most bytes that the plaintext may unpack to.

    Raises:
        EnvelopeRejected: With reason `malformed`, `unknown-device`, `algorithm`, `signature`,
            `wrong-device`, `unknown-recipient` or `decrypt`; nothing else, for any bytes.
    """
    header, iv, parts = _signed_parts(data, devices)
    protected, ciphertext, recipient_protected, enc, wrapped = parts
    kid = _recipient_header(recipient_protected)
    key = recipient_keys.get(kid)
    if key is None:
        raise EnvelopeRejected(
            f"the envelope is sealed to the key {kid}, which is not yours",
            reason="unknown-recipient",
            hint="name the recipient's private key with that kid",
        )
    try:
        content_key = SUITE.decrypt(
            enc + wrapped, key, info=recipient_structure(recipient_protected)
        )
        plaintext = AESGCM(content_key).decrypt(iv, ciphertext, enc_structure(protected))
    except (InvalidTag, ValueError) as exc:
        raise EnvelopeRejected("the envelope does not open", reason="decrypt") from exc
    columns = decode(plaintext, codec=header.codec, max_bytes=max_plaintext)
    return Opened(header, kid, tuple(columns))


def read_header(data: bytes, *, devices: Devices) -> Header:
    """Return the header of an envelope that an enrolled device signed, without opening it.

    Raises:
        EnvelopeRejected: With reason `malformed`, `unknown-device`, `algorithm`, `signature` or
            `wrong-device`; nothing else, for any bytes.
    """
    return _signed_parts(data, devices)[0]


def verify_ack(data: bytes, *, devices: Devices, after: int | None = None) -> tuple[str, Ack]:
    """Return the device's kid and its answer to a policy.

    Args:
        data: What came on the topic.
        devices: kid -> public key of enrolled devices.
        after: The highest counter that this device's answers had so far, to refuse replays.

    Raises:
        EnvelopeRejected: It is no answer of an enrolled device, or an old one (reason `replay`).
    """
    signer, payload = verify1(data, devices)
    ack = parse_ack(payload)
    speaks_for(devices[signer], ack.vehicle)
    if after is not None and ack.counter <= after:
        raise EnvelopeRejected(
            f"answer {ack.counter} is not newer than {after}, which was seen", reason="replay"
        )
    return signer, ack


def speaks_for(device: DevicePublicKey, vehicle: str) -> None:
    """Raise unless a device may speak for a vehicle.

    Raises:
        EnvelopeRejected: The registry gives the device another vehicle (reason `wrong-device`).
    """
    if device.vehicle not in (None, vehicle):
        raise EnvelopeRejected(
            f"device {device.kid} is not enrolled for the vehicle it names", reason="wrong-device"
        )


def _signed_parts(data: bytes, devices: Devices) -> tuple[Header, bytes, _Parts]:
    """Return header, iv and parts of an envelope whose device signed it for its own vehicle."""
    signer, payload = verify1(data, devices)
    parts = _parts(payload)
    iv, header = _content_header(parts[0])
    if header.device_kid != signer:
        raise EnvelopeRejected(
            "another device signed the envelope than its sealed header names",
            reason="wrong-device",
        )
    speaks_for(devices[signer], header.vehicle)
    return header, iv, parts


def _parts(payload: bytes) -> _Parts:
    """Return protected header, ciphertext, recipient's protected header, enc, wrapped key."""
    value = cbor.decode(payload)
    if not isinstance(value, CBORTag) or value.tag != TAG_ENCRYPT:
        raise malformed("the payload is no tagged COSE_Encrypt")
    parts = value.value
    if not isinstance(parts, list) or len(parts) != 4 or parts[1] != {}:
        raise malformed("COSE_Encrypt has four elements and no unprotected header")
    protected, _, ciphertext, recipients = parts
    if not isinstance(recipients, list) or len(recipients) != 1:
        raise malformed("COSE_Encrypt has exactly one recipient")
    recipient = recipients[0]
    if not isinstance(recipient, list) or len(recipient) != 3:
        raise malformed("a COSE_recipient has three elements")
    recipient_protected, unprotected, wrapped = recipient
    if not isinstance(unprotected, dict) or set(unprotected) != {LABEL_EK}:
        raise malformed("the recipient's unprotected header holds exactly the encapsulated key")
    enc = unprotected[LABEL_EK]
    fields = (protected, ciphertext, recipient_protected, enc, wrapped)
    if not all(isinstance(item, bytes) for item in fields):
        raise malformed("headers, ciphertext and keys are byte strings")
    if len(enc) != ENC_BYTES or len(wrapped) != _WRAPPED_BYTES:
        raise malformed("the encapsulated or the wrapped key has another length")
    return protected, ciphertext, recipient_protected, enc, wrapped


def _content_header(protected: bytes) -> tuple[bytes, Header]:
    value = cbor.decode(protected)
    labels = {LABEL_ALG, LABEL_CONTENT_TYPE, LABEL_IV, LABEL_HEADER}
    if not isinstance(value, dict) or set(value) != labels:
        raise malformed("the content header holds exactly alg, content type, iv and H")
    if value[LABEL_ALG] != ALG_A256GCM or value[LABEL_CONTENT_TYPE] != CONTENT_TYPE:
        raise malformed("the content is not a batch under AES-256-GCM")
    iv = value[LABEL_IV]
    if not isinstance(iv, bytes) or len(iv) != IV_BYTES:
        raise malformed(f"the iv is {IV_BYTES} bytes long")
    return iv, _header(value[LABEL_HEADER])


def _recipient_header(protected: bytes) -> str:
    value = cbor.decode(protected)
    if not isinstance(value, dict) or set(value) != {LABEL_ALG, LABEL_KID}:
        raise malformed("the recipient's header holds exactly alg and kid")
    kid = value[LABEL_KID]
    if value[LABEL_ALG] != ALG_HPKE_7_KE or not isinstance(kid, bytes) or not kid.isascii():
        raise malformed("the recipient is not addressed by HPKE-7-KE and a kid")
    return kid.decode("ascii")


def _header(value: Any) -> Header:
    if not isinstance(value, dict) or set(value) != {"v", "dk", "g", "r", "n", "p", "t", "c", "a"}:
        raise malformed("H has other members than it should")
    texts, counts = (value["v"], value["dk"], value["g"]), (value["r"], value["n"], value["c"])
    if not (all(isinstance(text, str) for text in texts) and all(map(is_count, counts))):
        raise malformed("a member of H has the wrong type")
    pairs = (value["p"], value["t"], value["a"])
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise malformed("a member of H is no pair")
    numbers = (*value["p"], value["a"][0])
    root = value["a"][1]
    if not (all(map(is_count, numbers)) and isinstance(root, bytes) and len(root) == _ROOT_BYTES):
        raise malformed("a member of H has the wrong type")
    # Times before 1970 are negative: only their size is that of a count.
    if not all(type(second) is int and is_count(abs(second)) for second in value["t"]):
        raise malformed("the times of H are whole seconds")
    return Header(
        vehicle=value["v"],
        device_kid=value["dk"],
        grant_id=value["g"],
        rev=value["r"],
        n=value["n"],
        epoch=value["p"][0],
        ver=value["p"][1],
        from_s=value["t"][0],
        to_s=value["t"][1],
        codec=value["c"],
        ledger_size=value["a"][0],
        ledger_root=root,
    )
