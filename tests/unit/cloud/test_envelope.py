import json
import re
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cloud.envelope import Opened, open_envelope
from agent.cloud.keys import recipient_private
from agent.core import cbor
from agent.core.cose import device_public_key, sign1, verify1
from agent.core.model import Batch
from agent.core.seal import SUITE, enc_structure, recipient_structure
from agent.errors import EnvelopeRejected
from tests.columns import GEAR, SPEED, T0_MS, batch, batches, column, content, exact
from tests.sealing import (
    ALGS,
    RECIPIENT_KID,
    device,
    devices,
    envelope,
    header,
    opened_by_cwt,
    recipient_keys,
)

VECTORS = Path(__file__).resolve().parent.parent.parent / "vectors"


@cache
def cases() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((VECTORS / "envelope" / "cases.json").read_bytes())
    return loaded


def opened(data: bytes, **members: Any) -> Opened:
    return open_envelope(
        data, **{"recipient_keys": recipient_keys(), "devices": devices(), **members}
    )


def refused(data: bytes, **members: Any) -> EnvelopeRejected:
    with pytest.raises(EnvelopeRejected) as caught:
        opened(data, **members)
    return caught.value


def opened_case(data: str) -> Opened:
    return open_envelope(
        bytes.fromhex(data),
        recipient_keys={cases()["recipient"]["kid"]: recipient_private(cases()["recipient"])},
        devices={jwk["kid"]: device_public_key(jwk) for jwk in cases()["devices"]},
        max_plaintext=cases()["max_plaintext"],
    )


@given(batches(), st.sampled_from(ALGS))
@settings(max_examples=30, deadline=None)
def test_what_was_sealed_comes_out(made: Batch, alg: str) -> None:
    found = opened(envelope(made, alg))

    assert list(map(content, found.columns)) == list(map(content, made.columns))
    assert found.header == header(made, device(alg))
    assert found.recipient_kid == RECIPIENT_KID


def test_samples_come_in_the_order_of_their_times() -> None:
    found = opened(envelope(batch(SPEED, replace(GEAR, times_ms=(T0_MS + 50, T0_MS, T0_MS + 1)))))

    samples = list(found.samples("fleet-x"))

    assert [(s.t_ns // 10**6 - T0_MS, s.path, s.value, s.unit) for s in samples] == [
        (0, GEAR.path, 4, None),
        (0, SPEED.path, SPEED.values[0], "km/h"),
        (1, GEAR.path, 3, None),
        (50, GEAR.path, 3, None),
        (100, SPEED.path, SPEED.values[1], "km/h"),
        (205, SPEED.path, 0.0, "km/h"),
    ]
    assert {(s.recipient, s.grant_id, s.scope) for s in samples} == {
        ("fleet-x", "gr_1", "read_gear"),
        ("fleet-x", "gr_1", "read_speedometer"),
    }


def test_a_codec_that_is_not_known_is_refused() -> None:
    assert refused(envelope(codec=2)).reason == "codec"


def test_any_flipped_bit_is_refused() -> None:
    data = envelope(batch(column((1,))))

    for bit in range(8 * len(data)):
        forged = bytearray(data)
        forged[bit // 8] ^= 1 << bit % 8
        refused(bytes(forged))


def test_any_flipped_bit_below_the_signature_is_refused_too() -> None:
    """Signed anew by the same device: header, ciphertext and wrapped key hold by themselves."""
    _, payload = verify1(envelope(batch(column((1,)))), devices())

    for bit in range(0, 8 * len(payload), 3):
        forged = bytearray(payload)
        forged[bit // 8] ^= 1 << bit % 8
        refused(sign1(bytes(forged), device()))


def test_another_enrolled_device_cannot_sign_an_envelope_as_its_own() -> None:
    _, payload = verify1(envelope(), devices())
    other = device(kid="dev-other")

    stolen = sign1(payload, other)

    assert refused(stolen, devices=devices(other.public_half)).reason == "wrong-device"


def test_a_device_speaks_only_for_the_vehicle_it_is_enrolled_for() -> None:
    key = device().public_half

    assert opened(envelope(), devices={key.kid: replace(key, vehicle="veh-0001")})
    elsewhere = {key.kid: replace(key, vehicle="veh-0002")}
    assert refused(envelope(), devices=elsewhere).reason == "wrong-device"


def test_a_device_that_is_not_enrolled_is_refused() -> None:
    assert refused(envelope(), devices={}).reason == "unknown-device"


def test_only_the_recipients_key_opens_it() -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())

    assert refused(envelope(), recipient_keys={}).reason == "unknown-recipient"
    assert refused(envelope(), recipient_keys={RECIPIENT_KID: stranger}).reason == "decrypt"


@pytest.mark.parametrize("recipient_kid", [b"\xff", b"", "text"])
def test_a_recipient_without_a_readable_kid_is_refused(recipient_kid: object) -> None:
    _, payload = verify1(envelope(), devices())
    encrypt = cbor.decode(payload)
    encrypt.value[3][0][0] = cbor.encode({1: 53, 4: recipient_kid})

    assert refused(sign1(cbor.encode(encrypt), device())).reason in {
        "malformed",
        "unknown-recipient",
    }


@given(st.binary(max_size=120))
def test_any_bytes_are_refused_in_our_words(data: bytes) -> None:
    assert refused(data).reason == "malformed"


@given(st.binary(max_size=120))
def test_any_signed_bytes_are_refused_in_our_words(payload: bytes) -> None:
    assert refused(sign1(payload, device())).reason == "malformed"


@pytest.mark.parametrize("name", ["rev", "n", "epoch", "ver", "ledger_size", "from_s", "to_s"])
def test_a_number_of_h_that_no_database_holds_is_refused(name: str) -> None:
    numbers: dict[str, Any] = {name: (1 << 63) - 1}
    assert opened(envelope(**numbers))

    for number in (1 << 63, 1 << 200):
        numbers[name] = number
        assert refused(envelope(**numbers)).reason == "malformed"


def test_a_value_too_long_to_be_printed_is_refused() -> None:
    for digits, fits in ((100, True), (5_000, False)):
        made = envelope(batch(column((10**digits,))))
        if fits:
            assert opened(made)
        else:
            assert refused(made).reason == "malformed"


def test_the_plaintext_is_unpacked_only_to_a_limit() -> None:
    made = batch(column(tuple(range(100_000))))

    assert opened(envelope(made))
    assert refused(envelope(made), max_plaintext=50_000).reason == "too-large"


def test_no_message_tells_a_value_or_a_key() -> None:
    made = batch(column((48.7758459, 9.1829321), unit="degrees"))
    data = envelope(made)
    errors = [
        refused(data, recipient_keys={}),
        refused(data, devices={}),
        refused(data, max_plaintext=5),
        refused(data[:-1]),
        refused(envelope(made, plaintext=cbor.encode(48.7758459))),
    ]

    told = " ".join(f"{error.message} {error.hint}" for error in errors)

    assert "48.77" not in told
    assert data.hex()[:40] not in told


def test_the_drafts_own_vector_opens_with_our_parts() -> None:
    vector = json.loads((VECTORS / "hpke" / "draft-ietf-cose-hpke-27.json").read_bytes())
    secret = cbor2.loads(bytes.fromhex(vector["cose_key"]))[-4]
    private = ec.derive_private_key(int.from_bytes(secret), ec.SECP256R1())
    protected, unprotected, ciphertext, recipients = cbor.decode(
        bytes.fromhex(vector["cose_encrypt"])
    ).value
    [[to, to_map, wrapped]] = recipients

    key = SUITE.decrypt(to_map[-4] + wrapped, private, info=recipient_structure(to))
    plaintext = AESGCM(key).decrypt(unprotected[5], ciphertext, enc_structure(protected))

    assert plaintext.decode() == vector["plaintext"]


@pytest.mark.parametrize("index", range(len(cases()["accepted"])))
def test_an_envelope_built_from_the_document_opens(index: int) -> None:
    case = cases()["accepted"][index]

    found = opened_case(case["envelope"])

    head = case["header"]
    assert asdict(found.header) == {
        "vehicle": head["v"],
        "device_kid": head["dk"],
        "grant_id": head["g"],
        "rev": head["r"],
        "n": head["n"],
        "epoch": head["p"][0],
        "ver": head["p"][1],
        "from_s": head["t"][0],
        "to_s": head["t"][1],
        "codec": head["c"],
        "ledger_size": head["a"][0],
        "ledger_root": bytes.fromhex(head["a"][1]),
    }
    assert [
        (c.path, c.scope, c.datatype, c.unit, list(c.times_ms), list(map(exact, c.values)))
        for c in found.columns
    ] == [
        (
            column["path"],
            column["scope"],
            column["datatype"],
            column["unit"],
            column["times_ms"],
            list(map(exact, column["values"])),
        )
        for column in case["columns"]
    ]


@pytest.mark.parametrize("index", range(len(cases()["accepted"])))
def test_cwt_opens_the_same_vectors(index: int) -> None:
    case = cases()["accepted"][index]
    signer = next(jwk for jwk in cases()["devices"] if jwk["kid"] == case["header"]["dk"])

    protected, _ = opened_by_cwt(bytes.fromhex(case["envelope"]), signer, cases()["recipient"])

    assert protected[-65537]["g"] == case["header"]["g"]


@pytest.mark.parametrize("case", cases()["forged"], ids=lambda case: case["name"])
def test_a_forged_envelope_is_refused_for_what_is_wrong_with_it(case: dict[str, str]) -> None:
    with pytest.raises(EnvelopeRejected) as caught:
        opened_case(case["envelope"])

    assert caught.value.reason == case["reason"]


def test_there_are_enough_forged_envelopes() -> None:
    assert len(cases()["forged"]) >= 100


def test_the_document_names_every_reason() -> None:
    root = VECTORS.parent.parent
    sources = [*root.glob("agent/core/c*.py"), root / "agent" / "cloud" / "envelope.py"]
    code = " ".join(source.read_text() for source in sources if source.name != "catalogue.py")
    reasons = set(re.findall(r"EnvelopeRejected\([^)]*?reason=\"([a-z-]+)\"", code, re.DOTALL))

    table = (root / "docs" / "envelope.md").read_text()

    assert {"malformed", "signature", "decrypt", "replay", "codec"} <= reasons
    assert not [reason for reason in reasons if f"| `{reason}` |" not in table]
