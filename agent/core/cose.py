"""Who signs: keys with a name and one algorithm, and COSE_Sign1 (RFC 9052 section 4.2).

Rules:
 * A kid names a key and its one algorithm. The algorithm on the wire must be that one; it is never
   what the wire says.
 * Exactly this spelling and no other:

    18([ << {1: alg, 4: kid} >>, {}, payload, signature ])
    signature over  << ["Signature1", protected, h'', payload] >>
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cbor2 import CBORTag
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA256

from agent.core import cbor
from agent.core.cbor import malformed
from agent.core.jwk import ED25519, P256, decode_base64url, public_jwk
from agent.errors import EnvelopeRejected, KeyFileError

TAG_SIGN1 = 18
LABEL_ALG, LABEL_KID = 1, 4
ALGORITHMS = {"EdDSA": -8, "ES256": -7}  # IANA COSE Algorithms.
_KINDS = {"EdDSA": ED25519, "ES256": P256}
_COORDINATE_BYTES = 32

PrivateKey = Ed25519PrivateKey | ec.EllipticCurvePrivateKey
PublicKey = Ed25519PublicKey | ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class DevicePublicKey:
    """A device's public key, with its name and its one algorithm.

    Attributes:
        vehicle: The one pseudonym that this device speaks for, where the registry says so. An
            enrolled device could else sign as another vehicle under its own kid.
    """

    kid: str
    alg: str
    public: PublicKey
    vehicle: str | None = None


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """A device's private key, with its name and its one algorithm."""

    kid: str
    alg: str
    private: PrivateKey

    @property
    def public_half(self) -> DevicePublicKey:
        """What the platform needs to check this device's signatures."""
        return DevicePublicKey(self.kid, self.alg, self.private.public_key())


def device_key(jwk: Mapping[str, object]) -> DeviceKey:
    """Return the private key of a JWK with `kid` and `alg`.

    Raises:
        KeyFileError: It is no private key for its algorithm.
    """
    kid, alg = _names(jwk)
    private = private_key(jwk, _KINDS[alg])
    assert not isinstance(private, bytes)
    return DeviceKey(kid, alg, private)


def device_public_key(jwk: Mapping[str, object]) -> DevicePublicKey:
    """Return the public key of a JWK with `kid` and `alg`; of a private one its public half.

    Args:
        jwk: May name the device's one vehicle in a member `vehicle`.

    Raises:
        KeyFileError: It is no key for its algorithm.
    """
    kid, alg = _names(jwk)
    vehicle = jwk.get("vehicle")
    if vehicle is not None and not isinstance(vehicle, str):
        raise KeyFileError(f"vehicle of the key {kid} is not text")
    return DevicePublicKey(kid, alg, public_key(jwk, _KINDS[alg]), vehicle)


def public_key(jwk: Mapping[str, object], kind: Mapping[str, str]) -> PublicKey:
    """Return the public key of a JWK.

    Args:
        jwk: Of the given kind; other members than the key's own are not looked at.
        kind: `agent.core.jwk.P256` or `ED25519`.

    Raises:
        KeyFileError: It is of another kind, or no point of its curve.
    """
    names = ("x", "y") if kind is P256 else ("x",)
    try:
        key = public_jwk({name: jwk.get(name) for name in (*kind, *names)}, kind)
    except ValueError as exc:
        raise KeyFileError(f"the key {jwk.get('kid', '')}: {exc}") from exc
    x = decode_base64url(key["x"])
    if kind is ED25519:
        return Ed25519PublicKey.from_public_bytes(x)
    y = decode_base64url(key["y"])
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), ec.SECP256R1())
    return numbers.public_key()


def private_key(jwk: Mapping[str, object], kind: Mapping[str, str]) -> PrivateKey:
    """Return the private key of a JWK.

    Raises:
        KeyFileError: It holds no private key of this kind, or one that is not its public half's.
    """
    public = public_key(jwk, kind)
    text = jwk.get("d")
    fault = KeyFileError(
        f"the key {jwk.get('kid', '')} is no private {kind['crv']} key",
        hint="name the file with the private half",
    )
    if not isinstance(text, str):
        raise fault
    try:
        secret = decode_base64url(text)
        if len(secret) != _COORDINATE_BYTES:
            raise fault
        private: PrivateKey
        if kind is ED25519:
            private = Ed25519PrivateKey.from_private_bytes(secret)
        else:
            private = ec.derive_private_key(int.from_bytes(secret), ec.SECP256R1())
    except ValueError as exc:
        raise fault from exc
    if private.public_key() != public:
        raise KeyFileError(f"the halves of the key {jwk.get('kid', '')} do not belong together")
    return private


def sign1(payload: bytes, key: DeviceKey) -> bytes:
    """Return the COSE_Sign1 of a payload."""
    protected = cbor.encode({LABEL_ALG: ALGORITHMS[key.alg], LABEL_KID: key.kid.encode()})
    signed = _signed(protected, payload)
    if isinstance(key.private, Ed25519PrivateKey):
        signature = key.private.sign(signed)
    else:
        r, s = decode_dss_signature(key.private.sign(signed, ec.ECDSA(SHA256())))
        # RFC 9053 2.1: R and S, 32 bytes each, not DER.
        signature = r.to_bytes(_COORDINATE_BYTES) + s.to_bytes(_COORDINATE_BYTES)
    return cbor.encode(CBORTag(TAG_SIGN1, [protected, {}, payload, signature]))


def verify1(data: bytes, registry: Mapping[str, DevicePublicKey]) -> tuple[str, bytes]:
    """Return the signer's kid and the payload of a COSE_Sign1.

    Args:
        data: Exactly one COSE_Sign1, tagged.
        registry: kid -> key; who is not in it has signed nothing.

    Raises:
        EnvelopeRejected: With reason `malformed`, `unknown-device`, `algorithm` or `signature`;
            nothing else, for any bytes.
    """
    protected, payload, signature = _parts(data)
    kid, alg = _header(protected)
    key = registry.get(kid)
    if key is None:
        raise EnvelopeRejected(
            "the signer's key is not in the registry",
            reason="unknown-device",
            hint="enrol the device's public key",
        )
    if alg != ALGORITHMS[key.alg]:
        raise EnvelopeRejected(
            f"the device {kid} signs with {key.alg}, the header says otherwise", reason="algorithm"
        )
    if not _holds(key.public, signature, _signed(protected, payload)):
        raise EnvelopeRejected(f"the signature of device {kid} does not hold", reason="signature")
    return kid, payload


def unsafe_unverified1(data: bytes) -> bytes:
    """Return the payload of a COSE_Sign1 without looking at who signed it.

    For readers that have no key, and learn what they read from elsewhere.

    Raises:
        EnvelopeRejected: It is none (reason `malformed`); nothing else, for any bytes.
    """
    _, payload, _ = _parts(data)
    return payload


def _parts(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Return protected header, payload and signature."""
    value = cbor.decode(data)
    if not isinstance(value, CBORTag) or value.tag != TAG_SIGN1:
        raise malformed("not a tagged COSE_Sign1")
    parts = value.value
    if not isinstance(parts, list) or len(parts) != 4 or parts[1] != {}:
        raise malformed("COSE_Sign1 has four elements and no unprotected header")
    protected, _, payload, signature = parts
    if not all(isinstance(part, bytes) for part in (protected, payload, signature)):
        raise malformed("protected header, payload and signature are byte strings")
    return protected, payload, signature


def _signed(protected: bytes, payload: bytes) -> bytes:
    """Return the Sig_structure (RFC 9052 section 4.4)."""
    return cbor.encode(["Signature1", protected, b"", payload])


def _header(protected: bytes) -> tuple[str, int]:
    header = cbor.decode(protected)
    if not isinstance(header, dict) or set(header) != {LABEL_ALG, LABEL_KID}:
        raise malformed("the protected header holds exactly alg and kid")
    alg, kid = header[LABEL_ALG], header[LABEL_KID]
    if not isinstance(alg, int) or isinstance(alg, bool) or not isinstance(kid, bytes):
        raise malformed("alg is an integer and kid a byte string")
    try:
        return kid.decode("ascii"), alg
    except UnicodeDecodeError as exc:
        raise malformed("kid is ASCII") from exc


def _holds(key: PublicKey, signature: bytes, signed: bytes) -> bool:
    if len(signature) != 2 * _COORDINATE_BYTES:
        return False
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, signed)
        else:
            r = int.from_bytes(signature[:_COORDINATE_BYTES])
            s = int.from_bytes(signature[_COORDINATE_BYTES:])
            key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def _names(jwk: Mapping[str, object]) -> tuple[str, str]:
    kid, alg = jwk.get("kid"), jwk.get("alg")
    if not isinstance(kid, str) or not kid or not kid.isascii():
        raise KeyFileError("the key has no kid", hint="make one with `consentry keys new`")
    if not isinstance(alg, str) or alg not in ALGORITHMS:
        raise KeyFileError(
            f"the key {kid} has no alg of {', '.join(ALGORITHMS)}",
            hint="make one with `consentry keys new`",
        )
    return kid, alg
