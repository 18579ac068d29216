from dataclasses import replace

import pytest

from agent.cloud.envelope import read_header
from agent.cloud.ledger import Finding, Witness, verify_checkpoint, verify_signed_proof
from agent.core import cbor
from agent.core.checkpoint import TYPE, Checkpoint, sign_checkpoint
from agent.core.cose import sign1
from agent.core.ledger import encode_line
from agent.core.ledgerevent import event
from agent.core.ledgerproof import Inclusion, encode_proof
from agent.core.merkle import Frontier, Tree, leaf_hash
from agent.errors import EnvelopeRejected, LedgerError
from tests.columns import SPEED, batch
from tests.sealing import device, devices, envelope, header

LINES = [encode_line(n, event(n * 10**9, "stopped", reason="signal")) for n in range(30)]
TREE = Tree(Frontier(), [leaf_hash(line) for line in LINES])


def checkpoint(size: int, generation: int = 0, **other: object) -> Checkpoint:
    made = Checkpoint("veh-0001", generation, size, TREE.root(size), 1_795_468_800, "boot")
    return replace(made, **other)  # type: ignore[arg-type] # a test's shorthand


def named(size: int, n: int, root: bytes | None = None, grant_id: str = "gr_a") -> object:
    made = header(batch(SPEED), device())
    return replace(
        made, grant_id=grant_id, n=n, ledger_size=size, ledger_root=root or TREE.root(size)
    )


def test_a_checkpoint_comes_back_from_the_device_that_signed_it() -> None:
    signed = sign_checkpoint(checkpoint(5), device())

    assert verify_checkpoint(signed, devices=devices()) == (device().kid, checkpoint(5))


def test_a_device_signs_only_for_its_own_vehicle() -> None:
    elsewhere = replace(device().public_half, vehicle="veh-0002")
    signed = sign_checkpoint(checkpoint(5), device())

    with pytest.raises(EnvelopeRejected) as caught:
        verify_checkpoint(signed, devices={elsewhere.kid: elsewhere})
    assert caught.value.reason == "wrong-device"


def test_any_flipped_bit_of_a_checkpoint_is_refused() -> None:
    data = sign_checkpoint(checkpoint(5), device())
    for bit in range(8 * len(data)):
        forged = bytearray(data)
        forged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EnvelopeRejected):
            verify_checkpoint(bytes(forged), devices=devices())


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("typ", "consent-ack"),
        ("v", 1),
        ("b", None),
        ("g", -1),
        ("s", 1.0),
        ("s", True),
        ("t", "1"),
        ("r", bytes(31)),
        ("r", "x"),
        ("y", 1),
    ],
)
def test_a_checkpoint_with_a_broken_member_is_refused(member: str, value: object) -> None:
    wire = {"typ": TYPE, "v": "veh-0001", "g": 0, "s": 5, "r": bytes(32), "t": 1, "b": "b"}

    verify_checkpoint(sign1(cbor.encode(wire), device()), devices=devices())
    with pytest.raises(EnvelopeRejected) as caught:
        verify_checkpoint(sign1(cbor.encode({**wire, member: value}), device()), devices=devices())
    assert caught.value.reason == "malformed"


def test_an_envelope_or_an_answer_is_no_checkpoint() -> None:
    with pytest.raises(EnvelopeRejected, match="checkpoint"):
        verify_checkpoint(sign1(cbor.encode({"typ": "consent-ack"}), device()), devices=devices())
    with pytest.raises(EnvelopeRejected):
        verify_checkpoint(envelope(), devices=devices())


def test_a_header_is_read_without_the_recipient_s_key() -> None:
    assert read_header(envelope(), devices=devices()).ledger_size == 0
    stranger = device(kid="dev-other").public_half
    with pytest.raises(EnvelopeRejected):
        read_header(envelope(), devices={stranger.kid: stranger})


def test_a_proof_counts_with_the_device_s_signature_only() -> None:
    made = Inclusion(4, LINES[4], 10, TREE.root(10), TREE.inclusion(4, 10), None)
    signed = replace(made, signed=sign_checkpoint(checkpoint(10), device()))
    stranger = device(kid="dev-other").public_half

    _, entry, found = verify_signed_proof(encode_proof(signed).encode(), devices=devices())
    assert entry is not None
    assert (entry.n, found) == (4, checkpoint(10))
    with pytest.raises(LedgerError, match="no checkpoint was signed"):
        verify_signed_proof(encode_proof(made).encode(), devices=devices())
    with pytest.raises(EnvelopeRejected):
        verify_signed_proof(encode_proof(signed).encode(), devices={stranger.kid: stranger})


def test_an_honest_vehicle_gives_no_finding_in_whatever_order_envelopes_come() -> None:
    witness = Witness()

    for n, size in [(3, 9), (2, 2), (1, 2), (5, 12), (4, 9), (4, 9)]:
        assert witness.see_envelope(named(size, n)) == []
    for size in (2, 9, 9, 12, 20, 12):
        assert witness.see_checkpoint(checkpoint(size)) == []
    assert witness.see_envelope(named(2, 1, grant_id="gr_b")) == []


def test_one_size_with_two_roots_is_a_fork_wherever_it_shows() -> None:
    envelopes, mixed, signed = Witness(), Witness(), Witness()
    other = bytes(32)

    envelopes.see_envelope(named(5, 1))
    assert envelopes.see_envelope(named(5, 2, other)) == [Finding("fork", 5, 5)]
    mixed.see_envelope(named(5, 1, other))
    assert mixed.see_checkpoint(checkpoint(5)) == [Finding("fork", 5, 5)]
    signed.see_checkpoint(checkpoint(5))
    assert signed.see_checkpoint(checkpoint(5, root=other)) == [Finding("fork", 5, 5)]
    assert Witness().see_envelope(named(0, 1, other)) == [Finding("fork", 0, 0)]


@pytest.mark.parametrize("order", [((1, 9), (2, 5)), ((2, 5), (1, 9))])
def test_a_head_that_goes_back_within_a_grant_is_found(order: tuple[tuple[int, int], ...]) -> None:
    witness = Witness()

    found = [finding for n, size in order for finding in witness.see_envelope(named(size, n))]

    assert found == [Finding("back", 5, 9)]


def test_a_head_that_goes_back_is_held_against_its_neighbours() -> None:
    witness = Witness()
    for n, size in [(1, 3), (2, 9), (5, 20), (6, 21)]:
        witness.see_envelope(named(size, n))

    assert witness.see_envelope(named(8, 3)) == [Finding("back", 8, 9)]
    assert witness.see_envelope(named(25, 4)) == [Finding("back", 20, 25)]


def test_a_checkpoint_that_goes_back_is_found() -> None:
    witness = Witness()
    for size in (2, 4, 9):
        assert witness.see_checkpoint(checkpoint(size)) == []

    assert witness.see_checkpoint(checkpoint(5)) == [Finding("back", 5, 9)]
    assert witness.see_checkpoint(checkpoint(4)) == []


def test_a_new_generation_is_told_once_and_both_may_be_seen_then() -> None:
    witness = Witness()
    witness.see_checkpoint(checkpoint(9))
    other = bytes(32)

    assert witness.see_checkpoint(checkpoint(3, 1, root=other)) == [Finding("begun-again", 3, 9)]
    assert witness.see_checkpoint(checkpoint(4, 1, root=other)) == []
    assert witness.see_envelope(named(9, 1)) == []
    assert witness.see_envelope(named(9, 2, other)) == []
    assert witness.see_envelope(named(9, 3, bytes(31) + b"x")) == [Finding("fork", 9, 9)]
