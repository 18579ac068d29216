from typing import Any

import cbor2
import pytest
from cbor2 import CBORTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cwt import COSE, COSEKey
from hypothesis import given
from hypothesis import strategies as st

from agent.cloud.keys import make_device_key, public_half
from agent.core.cose import (
    ALGORITHMS,
    DevicePublicKey,
    device_key,
    device_public_key,
    sign1,
    verify1,
)
from agent.core.jwk import decode_base64url, encode_base64url
from agent.errors import EnvelopeRejected, KeyFileError
from tests.sealing import ALGS, device, device_jwk, devices


def refused(data: bytes, registry: dict[str, DevicePublicKey] | None = None) -> str:
    with pytest.raises(EnvelopeRejected) as caught:
        verify1(data, devices() if registry is None else registry)
    return caught.value.reason


@pytest.mark.parametrize("alg", ALGS)
def test_a_payload_comes_back_with_its_signers_kid(alg: str) -> None:
    signed = sign1(b"payload", device(alg))

    assert verify1(signed, devices()) == (f"dev-{alg}", b"payload")


@pytest.mark.parametrize("alg", ALGS)
def test_cwt_verifies_what_we_sign(alg: str) -> None:
    key = COSEKey.from_jwk(public_half(device_jwk(alg)))

    protected, unprotected, payload = COSE.new().decode_with_headers(
        sign1(b"payload", device(alg)), key
    )

    assert payload == b"payload"
    assert protected == {1: ALGORITHMS[alg], 4: f"dev-{alg}".encode()}
    assert unprotected == {}


@pytest.mark.parametrize("alg", ALGS)
def test_we_verify_what_cwt_signs(alg: str) -> None:
    signed = COSE.new().encode(
        b"payload",
        COSEKey.from_jwk(device_jwk(alg)),
        protected={1: ALGORITHMS[alg], 4: f"dev-{alg}".encode()},
    )

    assert verify1(signed, devices()) == (f"dev-{alg}", b"payload")


@pytest.mark.parametrize("alg", ALGS)
def test_any_flipped_bit_is_refused(alg: str) -> None:
    signed = sign1(b"payload", device(alg))

    for bit in range(8 * len(signed)):
        forged = bytearray(signed)
        forged[bit // 8] ^= 1 << bit % 8
        refused(bytes(forged))


@given(st.binary(max_size=120))
def test_any_bytes_are_refused_in_our_words(data: bytes) -> None:
    assert refused(data) == "malformed"


def test_a_signer_outside_the_registry_has_signed_nothing() -> None:
    assert refused(sign1(b"payload", device()), {}) == "unknown-device"


def test_another_key_under_the_same_kid_is_refused() -> None:
    imposter = device_key(make_device_key("dev-EdDSA"))

    assert refused(sign1(b"payload", imposter)) == "signature"


def test_the_registry_and_not_the_wire_names_the_algorithm() -> None:
    """A P-256 key that is enrolled under the kid of an Ed25519 device."""
    imposter = device_key(make_device_key("dev-EdDSA", "ES256"))

    assert refused(sign1(b"payload", imposter)) == "algorithm"


def test_an_ecdsa_signature_is_64_bytes_and_not_der() -> None:
    signer = device("ES256")
    protected, _, payload, signature = cbor2.loads(sign1(b"payload", signer)).value
    der = encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))

    assert len(signature) == 64
    assert isinstance(signer.private, ec.EllipticCurvePrivateKey)
    to_be_signed = cbor2.dumps(["Signature1", protected, b"", payload])
    signer.private.public_key().verify(der, to_be_signed, ec.ECDSA(SHA256()))
    forged = cbor2.dumps(CBORTag(18, [protected, {}, payload, der]))
    assert refused(forged) == "signature"


def test_an_ecdsa_signature_has_one_length() -> None:
    """A zero between R and S would else change neither."""
    protected, _, payload, signature = cbor2.loads(sign1(b"payload", device("ES256"))).value
    longer = signature[:32] + b"\0" + signature[32:]

    assert refused(cbor2.dumps(CBORTag(18, [protected, {}, payload, longer]))) == "signature"


def test_an_ecdsa_signature_of_zeros_is_refused() -> None:
    protected, _, payload, _ = cbor2.loads(sign1(b"payload", device("ES256"))).value

    assert refused(cbor2.dumps(CBORTag(18, [protected, {}, payload, bytes(64)]))) == "signature"


@pytest.mark.parametrize("alg", ALGS)
def test_a_key_survives_its_jwk(alg: str) -> None:
    jwk = make_device_key("dev-7", alg)

    key = device_key(jwk)

    assert (key.kid, key.alg) == ("dev-7", alg)
    assert device_public_key(public_half(jwk)) == key.public_half
    assert device_public_key(jwk) == key.public_half, "of a private key its public half"


def test_a_registry_entry_may_name_its_vehicle() -> None:
    jwk = public_half(device_jwk()) | {"vehicle": "veh-0001"}

    assert device_public_key(jwk).vehicle == "veh-0001"
    with pytest.raises(KeyFileError, match="vehicle"):
        device_public_key(jwk | {"vehicle": 7})


_OTHER = make_device_key("dev-8")
_P256 = make_device_key("dev-9", "ES256")


@pytest.mark.parametrize(
    ("fault", "changes"),
    [
        ("no kid", {"kid": None}),
        ("empty kid", {"kid": ""}),
        ("number as kid", {"kid": 7}),
        ("kid with umlaut", {"kid": "gerät"}),
        ("no alg", {"alg": None}),
        ("alg none", {"alg": "none"}),
        ("alg of another kind", {"alg": "ES256"}),
        ("no d", {"d": None}),
        ("number as d", {"d": 7}),
        ("d with padding", {"d": _OTHER["d"] + "="}),
        ("short d", {"d": encode_base64url(bytes(31))}),
        ("d of another key", {"d": _OTHER["d"]}),
        ("x of another key", {"x": _OTHER["x"]}),
        ("short x", {"x": encode_base64url(bytes(31))}),
        ("another curve", {"crv": "X25519"}),
    ],
)
def test_a_broken_private_jwk_is_refused_without_telling_the_key(
    fault: str, changes: dict[str, Any]
) -> None:
    jwk = {n: v for n, v in {**device_jwk(), **changes}.items() if v is not None}

    with pytest.raises(KeyFileError) as caught:
        device_key(jwk)

    told = f"{caught.value.message} {caught.value.hint}"
    secrets = [device_jwk()["d"], _OTHER["d"], device_jwk()["x"]]
    assert not [secret for secret in secrets if secret in told], fault


@pytest.mark.parametrize(
    "changes",
    [
        {"d": encode_base64url(bytes(32))},
        {"d": encode_base64url(b"\xff" * 32)},
        {"y": _P256["x"]},
        {"y": None},
        {"d": encode_base64url(b"\0" + decode_base64url(_P256["d"]))},
    ],
)
def test_a_broken_p256_jwk_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(KeyFileError):
        device_key({n: v for n, v in {**_P256, **changes}.items() if v is not None})


def test_a_key_shows_no_secret_when_it_is_printed() -> None:
    assert device_jwk()["d"] not in repr(device())
