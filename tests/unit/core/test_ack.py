from dataclasses import replace
from typing import Any

import cbor2
import pytest
from cwt import COSE, COSEKey
from hypothesis import given
from hypothesis import strategies as st

from agent.cloud.envelope import open_envelope, verify_ack
from agent.cloud.keys import public_half
from agent.core import cbor
from agent.core.ack import Ack, parse_ack, sign_ack
from agent.core.cose import sign1
from agent.errors import EnvelopeRejected
from tests.sealing import ALGS, device, device_jwk, devices, envelope, recipient_keys

ACK = Ack(
    vehicle="veh-0001",
    payload_sha256=bytes(range(32)),
    epoch=1,
    ver=42,
    outcome="applied",
    reason="",
    time_s=1_795_468_800,
    counter=9,
    ledger_size=3,
    ledger_root=bytes(32),
    skipped=("Vehicle.Speed",),
    before=(1, 41),
    erased={"gr_1": (120, 9_000)},
    scrubbed=True,
    latency_ms=12,
)
WIRE = {
    "typ": "consent-ack",
    "v": "veh-0001",
    "h": bytes(range(32)),
    "p": [1, 42],
    "o": "applied",
    "e": "",
    "t": 1_795_468_800,
    "n": 9,
    "a": [3, bytes(32)],
    "s": ["Vehicle.Speed"],
    "b": [1, 41],
    "x": {"gr_1": [120, 9_000]},
    "k": True,
    "d": 12,
}


def refused(data: bytes, **limits: Any) -> str:
    with pytest.raises(EnvelopeRejected) as caught:
        verify_ack(data, devices=devices(), **limits)
    return caught.value.reason


@pytest.mark.parametrize("alg", ALGS)
def test_an_answer_comes_back_from_the_device_that_gave_it(alg: str) -> None:
    assert verify_ack(sign_ack(ACK, device(alg)), devices=devices()) == (f"dev-{alg}", ACK)


@pytest.mark.parametrize("outcome", ["applied", "repeated", "refused", "ended"])
def test_every_outcome_comes_back(outcome: str) -> None:
    ack = replace(ACK, outcome=outcome, reason="rollback", skipped=(), erased={})

    assert verify_ack(sign_ack(ack, device()), devices=devices())[1] == ack


def test_cwt_reads_what_the_document_says() -> None:
    key = COSEKey.from_jwk(public_half(device_jwk()))

    assert cbor2.loads(COSE.new().decode(sign_ack(ACK, device()), key)) == WIRE


def test_an_answer_that_was_seen_is_refused() -> None:
    data = sign_ack(ACK, device())

    assert verify_ack(data, devices=devices(), after=8)[1] == ACK
    assert refused(data, after=9) == "replay"
    assert refused(data, after=10) == "replay"


def test_a_device_answers_only_for_its_own_vehicle() -> None:
    elsewhere = replace(device().public_half, vehicle="veh-0002")
    here = replace(device().public_half, vehicle="veh-0001")
    data = sign_ack(ACK, device())

    assert verify_ack(data, devices={here.kid: here})[1] == ACK
    with pytest.raises(EnvelopeRejected) as caught:
        verify_ack(data, devices={elsewhere.kid: elsewhere})
    assert caught.value.reason == "wrong-device"


def test_an_envelope_is_no_answer_and_an_answer_no_envelope() -> None:
    """Both are signed by the same key; neither may pass for the other."""
    assert refused(envelope()) == "malformed"
    with pytest.raises(EnvelopeRejected) as caught:
        open_envelope(sign_ack(ACK, device()), recipient_keys=recipient_keys(), devices=devices())
    assert caught.value.reason == "malformed"


def test_any_flipped_bit_is_refused() -> None:
    data = sign_ack(ACK, device())

    for bit in range(8 * len(data)):
        forged = bytearray(data)
        forged[bit // 8] ^= 1 << bit % 8
        refused(bytes(forged))


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("typ", "other"),
        ("v", 1),
        ("h", bytes(31)),
        ("h", "0" * 32),
        ("p", [1]),
        ("p", [1, 2, 3]),
        ("p", [1, -1]),
        ("p", [1, 1 << 63]),
        ("p", [-1, 1]),
        ("p", [True, 1]),
        ("p", [1, 1.0]),
        ("o", "maybe"),
        ("e", None),
        ("t", -1),
        ("t", 1.5),
        ("t", 1 << 100),
        ("n", "9"),
        ("n", True),
        ("a", [3, bytes(31)]),
        ("a", [3, "x"]),
        ("a", {}),
        ("s", "Vehicle.Speed"),
        ("s", [1]),
        ("x", -1),
        ("x", [1]),
        ("y", 1),
    ],
)
def test_an_answer_with_a_broken_member_is_refused(member: str, value: object) -> None:
    data = sign1(cbor.encode({**WIRE, member: value}), device())

    assert refused(data) == "malformed"


@pytest.mark.parametrize("member", WIRE)
def test_an_answer_without_a_member_is_refused(member: str) -> None:
    without = {name: value for name, value in WIRE.items() if name != member}

    assert refused(sign1(cbor.encode(without), device())) == "malformed"


@given(st.binary(max_size=60))
def test_any_payload_is_refused_in_our_words(payload: bytes) -> None:
    with pytest.raises(EnvelopeRejected) as caught:
        parse_ack(payload)
    assert caught.value.reason == "malformed"
