import cbor2
import pytest
from cbor2 import CBORTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from agent.core.codec import decode, encode
from agent.core.recipient import RecipientKeyRef
from agent.core.seal import RecipientKey, header_times, recipient_key, seal
from tests.columns import GEAR, SPEED, T0_MS, batch, column, content
from tests.sealing import (
    ALGS,
    RECIPIENT_KID,
    device,
    device_jwk,
    envelope,
    header,
    opened_by_cwt,
    recipient,
    recipient_jwk,
    recipient_keys,
)

SUITE = Suite(KEM.P256, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
MINUTE = 1_795_468_800


def layers(data: bytes) -> tuple[list[object], list[object]]:
    """Return the four parts of COSE_Sign1 and of the COSE_Encrypt in it, tags checked."""
    outer = cbor2.loads(data)
    inner = cbor2.loads(outer.value[2])
    assert isinstance(outer, CBORTag)
    assert (outer.tag, inner.tag) == (18, 96)
    return outer.value, inner.value


@pytest.mark.parametrize("alg", ALGS)
def test_cwt_opens_what_we_seal(alg: str) -> None:
    made = batch(SPEED, GEAR)

    protected, plaintext = opened_by_cwt(envelope(made, alg), device_jwk(alg), recipient_jwk())

    assert plaintext == encode(made)
    assert list(map(content, decode(plaintext))) == list(map(content, made.columns))
    assert protected[-65537] == {
        "v": "veh-0001",
        "dk": f"dev-{alg}",
        "g": "gr_1",
        "r": 1,
        "n": 7,
        "p": [1, 42],
        "t": [MINUTE, MINUTE + 60],
        "c": 1,
        "a": [0, bytes(32)],
    }


def test_the_envelope_is_spelled_as_the_design_says() -> None:
    (outer, unprotected, _, _), (content_head, content_map, _, recipients) = layers(envelope())

    assert (unprotected, content_map) == ({}, {})
    assert cbor2.loads(outer) == {1: -8, 4: b"dev-EdDSA"}  # type: ignore[arg-type]
    head = cbor2.loads(content_head)  # type: ignore[arg-type]
    assert head.keys() == {1, 3, 5, -65537}
    assert (head[1], head[3], len(head[5])) == (3, "application/vnd.consentry.batch", 12)
    [[to, to_map, wrapped]] = recipients  # type: ignore[misc]
    assert cbor2.loads(to) == {1: 53, 4: RECIPIENT_KID.encode()}
    assert to_map.keys() == {-4}
    assert (len(to_map[-4]), len(wrapped)) == (65, 48)


def test_content_is_bound_to_its_header_and_the_key_to_its_recipient() -> None:
    """Enc_structure and Recipient_structure, built here from RFC 9052 and the draft."""
    _, (head, _, ciphertext, [[to, to_map, wrapped]]) = layers(envelope())  # type: ignore[misc]
    info = cbor2.dumps(["HPKE Recipient", 3, to, b""])

    key = SUITE.decrypt(to_map[-4] + wrapped, recipient_keys()[RECIPIENT_KID], info=info)
    aad = cbor2.dumps(["Encrypt", head, b""])

    assert AESGCM(key).decrypt(cbor2.loads(head)[5], ciphertext, aad) == encode(batch(SPEED, GEAR))


def test_no_two_envelopes_share_key_nonce_or_bytes() -> None:
    """Also of the same plaintext under the same header: a disk that was rolled back repeats n."""
    keys, nonces, bodies = set(), set(), set()
    for _ in range(20):
        _, (head, _, ciphertext, [[to, to_map, wrapped]]) = layers(envelope())  # type: ignore[misc]
        info = cbor2.dumps(["HPKE Recipient", 3, to, b""])
        sealed = to_map[-4] + wrapped
        keys.add(SUITE.decrypt(sealed, recipient_keys()[RECIPIENT_KID], info=info))
        nonces.add(cbor2.loads(head)[5])
        bodies.add(ciphertext)

    assert (len(keys), len(nonces), len(bodies)) == (20, 20, 20)
    assert {len(key) for key in keys} == {32}


def test_an_envelope_names_the_device_that_signs_it() -> None:
    made = batch(SPEED)

    with pytest.raises(AssertionError):
        seal(
            encode(made),
            header(made, device(), device_kid="dev-other"),
            recipient=recipient(),
            device=device(),
        )


@pytest.mark.parametrize(
    ("first_ms", "last_ms", "expected"),
    [
        (T0_MS, T0_MS, (MINUTE, MINUTE)),
        (T0_MS, T0_MS + 1, (MINUTE, MINUTE + 60)),
        (T0_MS + 59_999, T0_MS + 60_000, (MINUTE, MINUTE + 60)),
        (T0_MS + 59_999, T0_MS + 60_001, (MINUTE, MINUTE + 120)),
        (T0_MS - 1, T0_MS, (MINUTE - 60, MINUTE)),
        (-1, 1, (-60, 60)),
    ],
)
def test_the_header_tells_whole_minutes_around_the_samples(
    first_ms: int, last_ms: int, expected: tuple[int, int]
) -> None:
    made = batch(column((1.0, 2.0), times_ms=(last_ms, first_ms)))

    assert header_times(made) == expected


def test_the_header_takes_the_span_of_all_columns() -> None:
    early = column((1,), times_ms=(T0_MS - 61_000,))
    late = column((1,), times_ms=(T0_MS + 61_000,))

    assert header_times(batch(late, early)) == (MINUTE - 120, MINUTE + 120)


def test_the_key_of_a_policys_recipient_is_sealed_to() -> None:
    jwk = {name: recipient_jwk()[name] for name in ("kty", "crv", "x", "y")}

    key = recipient_key(RecipientKeyRef(RECIPIENT_KID, "HPKE-7-KE", jwk))

    assert key == RecipientKey(RECIPIENT_KID, recipient().public)
