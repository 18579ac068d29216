import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.checkpoint import Checkpoint, sign_checkpoint
from agent.core.ledger import encode_line
from agent.core.ledgerevent import event
from agent.core.ledgerproof import (
    Consistency,
    Inclusion,
    encode_proof,
    parse_proof,
    verify_proof,
)
from agent.core.merkle import Frontier, Tree, leaf_hash
from agent.errors import LedgerError
from tests.sealing import device

LINES = [encode_line(n, event(n * 10**9, "stopped", reason="signal")) for n in range(12)]
TREE = Tree(Frontier(), [leaf_hash(line) for line in LINES])
SIGNED = sign_checkpoint(Checkpoint("veh-0001", 0, 10, TREE.root(10), 1, "b"), device())
INCLUSION = Inclusion(4, LINES[4], 10, TREE.root(10), TREE.inclusion(4, 10), SIGNED)
CONSISTENCY = Consistency(3, TREE.root(3), 10, TREE.root(10), TREE.consistency(3, 10), SIGNED)


@pytest.mark.parametrize("proof", [INCLUSION, CONSISTENCY])
def test_a_proof_comes_back_from_its_json_and_holds(proof: Inclusion | Consistency) -> None:
    read = parse_proof(encode_proof(proof).encode())

    assert read == proof
    entry, checkpoint = verify_proof(read)
    assert checkpoint is not None
    assert checkpoint.size == 10
    assert (entry.n if entry else None) == (4 if proof is INCLUSION else None)


def test_the_first_entry_and_the_empty_ledger_can_be_proven() -> None:
    first = Inclusion(0, LINES[0], 10, TREE.root(10), TREE.inclusion(0, 10), None)
    empty = Consistency(0, TREE.root(0), 10, TREE.root(10), (), None)

    for proof in (first, empty):
        assert parse_proof(encode_proof(proof).encode()) == proof
        assert verify_proof(proof)[1] is None


def changed(proof: Inclusion | Consistency, **members: Any) -> bytes:
    return json.dumps({**json.loads(encode_proof(proof)), **members}).encode()


@pytest.mark.parametrize(
    "data",
    [
        changed(INCLUSION, index=5),
        changed(INCLUSION, line=LINES[5].decode()),
        changed(INCLUSION, line=LINES[5].decode(), index=5),
        changed(INCLUSION, line="x"),
        changed(INCLUSION, line=LINES[4].decode() + "ä"),
        changed(INCLUSION, line=None),
        changed(INCLUSION, index="4"),
        changed(INCLUSION, size=11),
        changed(INCLUSION, size=17, checkpoint=None),
        changed(INCLUSION, size=-1),
        changed(INCLUSION, root="00" * 32),
        changed(INCLUSION, root="00" * 32, checkpoint=None),
        changed(INCLUSION, root=None),
        changed(INCLUSION, path=[]),
        changed(INCLUSION, path=None),
        changed(INCLUSION, path=["zz"]),
        changed(INCLUSION, path={"a": 1}),
        changed(INCLUSION, checkpoint="AAAA"),
        changed(INCLUSION, checkpoint="AAAB*"),
        changed(INCLUSION, checkpoint="AB"),
        changed(INCLUSION, checkpoint=7),
        changed(INCLUSION, kind="consistency"),
        changed(INCLUSION, kind=["inclusion"]),
        changed(INCLUSION, more=1),
        changed(CONSISTENCY, first=4),
        changed(CONSISTENCY, first=True),
        changed(CONSISTENCY, first_root="00" * 32),
        changed(CONSISTENCY, first_root=1),
        changed(CONSISTENCY, path=["00" * 32] * 4),
        b"[]",
        b"{}",
        b"",
    ],
)
def test_a_changed_proof_shows_nothing(data: bytes) -> None:
    with pytest.raises(LedgerError):
        verify_proof(parse_proof(data))


@given(st.binary(max_size=100))
def test_any_bytes_are_refused_in_our_words(data: bytes) -> None:
    with pytest.raises(LedgerError):
        parse_proof(data)
