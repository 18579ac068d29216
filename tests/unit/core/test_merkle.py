"""Held against RFC 9162's own definitions, written down again as recursions."""

import random
from hashlib import sha256

import pytest

from agent.core.merkle import (
    EMPTY_ROOT,
    Frontier,
    Tree,
    leaf_hash,
    node_hash,
    verify_consistency,
    verify_inclusion,
)
from agent.errors import LedgerError

LINES = [b"line %d" % index for index in range(301)]
LEAVES = [leaf_hash(line) for line in LINES]


def mth(lines: list[bytes]) -> bytes:
    """RFC 9162 2.1.1, as it stands there."""
    if not lines:
        return sha256(b"").digest()
    if len(lines) == 1:
        return sha256(b"\x00" + lines[0]).digest()
    k = 1
    while k * 2 < len(lines):
        k *= 2
    return sha256(b"\x01" + mth(lines[:k]) + mth(lines[k:])).digest()


def path(m: int, lines: list[bytes]) -> list[bytes]:
    """RFC 9162 2.1.3.1, as it stands there."""
    if len(lines) == 1:
        return []
    k = 1
    while k * 2 < len(lines):
        k *= 2
    if m < k:
        return [*path(m, lines[:k]), mth(lines[k:])]
    return [*path(m - k, lines[k:]), mth(lines[:k])]


def subproof(m: int, lines: list[bytes], *, whole: bool) -> list[bytes]:
    """RFC 9162 2.1.4.1, as it stands there."""
    n = len(lines)
    if m == n:
        return [] if whole else [mth(lines)]
    k = 1
    while k * 2 < n:
        k *= 2
    if m <= k:
        return [*subproof(m, lines[:k], whole=whole), mth(lines[k:])]
    return [*subproof(m - k, lines[k:], whole=False), mth(lines[:k])]


def test_the_root_is_that_of_the_recursion_for_every_size() -> None:
    frontier = Frontier()

    for size in range(301):
        assert frontier.size == size
        assert frontier.root() == mth(LINES[:size])
        assert len(frontier.peaks) == size.bit_count()
        frontier = frontier.extended(LEAVES[size : size + 1])


def test_the_root_of_big_trees_is_that_of_the_recursion() -> None:
    chance = random.Random(9162)
    for size in (1000, 4096, chance.randrange(5_000, 9_000)):
        lines = [chance.randbytes(chance.randrange(40)) for _ in range(size)]
        leaves = [leaf_hash(line) for line in lines]
        cut = chance.randrange(size)

        in_two = Frontier().extended(leaves[:cut]).extended(leaves[cut:])

        assert in_two == Frontier().extended(leaves)
        assert in_two.root() == mth(lines)


def test_the_empty_tree_is_the_hash_of_nothing() -> None:
    assert Frontier().root() == EMPTY_ROOT == sha256(b"").digest()


def test_a_leaf_cannot_pass_for_a_node() -> None:
    left, right = LEAVES[:2]

    assert leaf_hash(left + right) != node_hash(left, right)


@pytest.mark.parametrize("size", [*range(1, 35), 63, 64, 65, 127, 129, 150])
def test_every_inclusion_proof_is_the_recursion_s_and_holds(size: int) -> None:
    tree, root = Tree(Frontier(), LEAVES), mth(LINES[:size])
    for index in range(size):
        proof = tree.inclusion(index, size)

        assert list(proof) == path(index, LINES[:size])
        verify_inclusion(leaf=LEAVES[index], index=index, size=size, path=proof, root=root)


def test_every_consistency_proof_is_the_recursion_s_and_holds() -> None:
    tree = Tree(Frontier(), LEAVES)
    roots = [mth(LINES[:size]) for size in range(41)]
    for second in range(1, 41):
        for first in range(second + 1):
            proof = tree.consistency(first, second)

            assert list(proof) == (subproof(first, LINES[:second], whole=True) if first else [])
            verify_consistency(
                first=first,
                first_root=roots[first],
                second=second,
                second_root=roots[second],
                path=proof,
            )


def inclusion_holds(index: int, size: int, leaf: bytes, proof: list[bytes], root: bytes) -> bool:
    try:
        verify_inclusion(leaf=leaf, index=index, size=size, path=proof, root=root)
    except LedgerError:
        return False
    return True


def test_no_inclusion_proof_holds_for_anything_else() -> None:
    """Not for another leaf, place, size of equal height, root, nor with a node more or less."""
    tree = Tree(Frontier(), LEAVES)
    for size in range(1, 20):
        root = tree.root(size)
        for index in range(size):
            proof = list(tree.inclusion(index, size))
            for other in range(size):
                held = inclusion_holds(other, size, LEAVES[index], proof, root)
                assert held == (other == index)
            assert not inclusion_holds(index, size, LEAVES[size], proof, root)
            assert not inclusion_holds(index, size, LEAVES[index], proof, LEAVES[size + 1])
            assert not inclusion_holds(index, size, LEAVES[index], [*proof, root], root)
            assert not inclusion_holds(index, size, LEAVES[index], proof[:-1], root) or not proof
            assert not inclusion_holds(size, size, LEAVES[index], proof, root)
            assert not inclusion_holds(-1, size, LEAVES[index], proof, root)


def consistency_holds(a: int, root_a: bytes, b: int, root_b: bytes, proof: list[bytes]) -> bool:
    try:
        verify_consistency(first=a, first_root=root_a, second=b, second_root=root_b, path=proof)
    except LedgerError:
        return False
    return True


def test_no_consistency_proof_holds_for_another_past() -> None:
    tree = Tree(Frontier(), LEAVES)
    forged = Tree(Frontier(), [LEAVES[250], *LEAVES[1:]])
    for second in range(1, 24):
        for first in range(1, second + 1):
            proof = list(tree.consistency(first, second))
            roots = (tree.root(first), tree.root(second))
            assert consistency_holds(first, roots[0], second, roots[1], proof)
            assert not consistency_holds(first, forged.root(first), second, roots[1], proof)
            assert not consistency_holds(first, roots[0], second, forged.root(second), proof)
            assert not consistency_holds(first, roots[0], second, roots[1], [*proof, roots[0]])
            assert not consistency_holds(first, roots[0], second, roots[1], proof[:-1]) or not proof
    assert not consistency_holds(0, LEAVES[0], 3, tree.root(3), [])
    assert not consistency_holds(4, tree.root(4), 3, tree.root(3), [])
    assert not consistency_holds(3, tree.root(3), 5, tree.root(5), [])


@pytest.mark.parametrize("kept", [1, 2, 3, 7, 8, 23, 64, 65, 100, 128])
def test_retired_leaves_are_not_needed_for_what_came_later(kept: int) -> None:
    """Roots and proofs are the same as with every leaf at hand."""
    whole = Tree(Frontier(), LEAVES[:150])
    rest = Tree(Frontier().extended(LEAVES[:kept]), LEAVES[kept:150])

    for size in (kept, kept + 1, 137, 150):
        assert rest.root(size) == whole.root(size)
        for index in range(kept, size):
            assert rest.inclusion(index, size) == whole.inclusion(index, size)
        assert rest.consistency(kept, size) == whole.consistency(kept, size)


def test_a_proof_that_needs_a_retired_leaf_is_refused_by_name() -> None:
    tree = Tree(Frontier().extended(LEAVES[:10]), LEAVES[10:20])

    with pytest.raises(LedgerError, match="entry 9 was retired, the ledger begins at entry 10"):
        tree.inclusion(9, 20)
    with pytest.raises(LedgerError, match="was retired"):
        tree.root(5)
    with pytest.raises(LedgerError, match="was retired"):
        tree.consistency(5, 20)


def test_a_proof_of_what_is_not_there_is_refused() -> None:
    tree = Tree(Frontier(), LEAVES[:5])

    with pytest.raises(LedgerError, match="has no entry 5"):
        tree.inclusion(5, 5)
    with pytest.raises(LedgerError, match="has 5 entries, expected at least 6"):
        tree.root(6)
    with pytest.raises(LedgerError, match="has 5 entries"):
        tree.consistency(2, 6)
    with pytest.raises(LedgerError, match="does not grow from 4 to 3"):
        tree.consistency(4, 3)
    assert tree.root(0) == EMPTY_ROOT
