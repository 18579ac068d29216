"""The tree over the ledger's lines (RFC 9162 section 2.1): root, proofs, and their verification.

Rules:
 * A leaf is SHA-256(0x00 || line), a node SHA-256(0x01 || left || right), the empty tree
   SHA-256 of nothing. So no line can pass for a node.
 * To go on with a tree of any size, at most 64 hashes are needed: its frontier.
 * Of leaves that have been retired the frontier is kept. Roots and proofs of what came later are
   made from it as if the leaves were there; what would need a retired leaf itself is refused.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

from agent.errors import LedgerError

HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()  # RFC 9162 2.1.1


def leaf_hash(line: bytes) -> bytes:
    """Return the hash of a line, without its line feed, as a leaf."""
    return sha256(b"\x00" + line).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of a node over two subtrees."""
    return sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True, slots=True)
class Frontier:
    """All that is needed to go on with a tree.

    Attributes:
        size: Leaves of the tree.
        peaks: Roots of the perfect subtrees that it consists of, from left to right: one for each
            one in the binary form of `size`.
    """

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    def extended(self, leaves: Iterable[bytes]) -> "Frontier":
        """Return the frontier with leaf hashes added on the right."""
        size, peaks = self.size, list(self.peaks)
        for leaf in leaves:
            grown, rest = leaf, size
            while rest & 1:
                grown = sha256(b"\x01" + peaks.pop() + grown).digest()
                rest >>= 1
            peaks.append(grown)
            size += 1
        return Frontier(size, tuple(peaks))

    def root(self) -> bytes:
        """Return the root of the tree, 32 bytes."""
        if not self.peaks:
            return EMPTY_ROOT
        root = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            root = node_hash(peak, root)
        return root


class Tree:
    """A tree with its leaves at hand, but for those that were retired."""

    def __init__(self, retired: Frontier, leaves: Sequence[bytes]) -> None:
        """Take the leaf hashes that follow on a frontier."""
        self._first = retired.size
        self._leaves = leaves
        self.size = retired.size + len(leaves)
        # (begin, end) of the perfect subtrees of the retired part.
        self._known: dict[tuple[int, int], bytes] = {}
        begin = 0
        for peak in retired.peaks:
            end = begin + (1 << ((retired.size - begin).bit_length() - 1))
            self._known[begin, end] = peak
            begin = end

    def root(self, size: int) -> bytes:
        """Return the root of the tree when it had `size` leaves.

        Raises:
            LedgerError: It never had so many, or they were retired.
        """
        self._check(size)
        return self._hash(0, size) if size else EMPTY_ROOT

    def inclusion(self, index: int, size: int) -> tuple[bytes, ...]:
        """Return the proof that a leaf is in the tree of `size` leaves (RFC 9162 2.1.3.1).

        Raises:
            LedgerError: There is no such leaf, or it was retired.
        """
        self._check(size)
        if not 0 <= index < size:
            raise LedgerError(f"a tree of {size} entries has no entry {index}")
        if index < self._first:
            raise _retired(index, self._first)
        path = []
        begin, end = 0, size
        while end - begin > 1:
            middle = begin + _split(end - begin)
            if index < middle:
                path.append(self._hash(middle, end))
                end = middle
            else:
                path.append(self._hash(begin, middle))
                begin = middle
        return tuple(reversed(path))

    def consistency(self, first: int, second: int) -> tuple[bytes, ...]:
        """Return the proof that a tree only grew from one size to another (RFC 9162 2.1.4.1).

        Raises:
            LedgerError: The sizes do not rise, there is no such tree, or it would need leaves that
                were retired.
        """
        self._check(second)
        if not 0 <= first <= second:
            raise LedgerError(f"a tree does not grow from {first} to {second} entries")
        if first in (0, second):
            return ()
        path = []
        begin, end, whole = 0, second, True
        while first != end:
            middle = begin + _split(end - begin)
            if first <= middle:
                path.append(self._hash(middle, end))
                end = middle
            else:
                path.append(self._hash(begin, middle))
                begin, whole = middle, False
        if not whole:
            path.append(self._hash(begin, end))
        return tuple(reversed(path))

    def _check(self, size: int) -> None:
        if not 0 <= size <= self.size:
            raise LedgerError(f"the ledger has {self.size} entries, expected at least {size}")

    def _hash(self, begin: int, end: int) -> bytes:
        """Return the root over the leaves from `begin` up to, not including, `end`."""
        if begin >= self._first:
            leaves = self._leaves[begin - self._first : end - self._first]
            return Frontier().extended(leaves).root()
        known = self._known.get((begin, end))
        if known is not None:
            return known
        if end - begin == 1:
            raise _retired(begin, self._first)
        middle = begin + _split(end - begin)
        return node_hash(self._hash(begin, middle), self._hash(middle, end))


def verify_inclusion(
    *, leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes
) -> None:
    """Verify that a leaf stands at an index of the tree with a root (RFC 9162 2.1.3.2).

    Raises:
        LedgerError: The proof does not show it.
    """
    if not 0 <= index < size:
        raise LedgerError(f"a tree of {size} entries has no entry {index}")
    found = leaf
    for sibling, is_left in _climb(index, size - 1, path):
        found = node_hash(sibling, found) if is_left else node_hash(found, sibling)
    if found != root:
        raise LedgerError(f"the proof does not lead from entry {index} to the root")


def verify_consistency(
    *, first: int, first_root: bytes, second: int, second_root: bytes, path: Sequence[bytes]
) -> None:
    """Verify that the tree of the second root begins with that of the first (RFC 9162 2.1.4.2).

    Raises:
        LedgerError: The proof does not show it.
    """
    if not 0 <= first <= second:
        raise LedgerError(f"a ledger does not grow from {first} to {second} entries")
    if first in (0, second):
        known = EMPTY_ROOT if first == 0 else second_root
        if path or first_root != known:
            raise _inconsistent(first, second)
        return
    rest = list(path)
    if first & (first - 1) == 0:  # A power of two is its own first node.
        rest.insert(0, first_root)
    if not rest:
        raise _inconsistent(first, second)
    here, last = first - 1, second - 1
    while here & 1:
        here, last = here >> 1, last >> 1
    old = new = rest[0]
    for node, is_left in _climb(here, last, rest[1:]):
        old = node_hash(node, old) if is_left else old
        new = node_hash(node, new) if is_left else node_hash(new, node)
    if old != first_root or new != second_root:
        raise _inconsistent(first, second)


def _climb(here: int, last: int, path: Sequence[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield each node of a proof, and whether it stands on the left, from a leaf to the root.

    Raises:
        LedgerError: The proof has another length than the tree's height asks for.
    """
    for node in path:
        if last == 0:
            raise LedgerError("the proof is longer than the tree is high")
        is_left = bool(here & 1) or here == last
        yield node, is_left
        while is_left and not here & 1 and here:
            here, last = here >> 1, last >> 1
        here, last = here >> 1, last >> 1
    if last:
        raise LedgerError("the proof is shorter than the tree is high")


def _split(count: int) -> int:
    """Return the largest power of two below a count of at least 2."""
    return 1 << ((count - 1).bit_length() - 1)


def _retired(index: int, first: int) -> LedgerError:
    return LedgerError(
        f"entry {index} was retired, the ledger begins at entry {first}",
        hint="entries are kept for 180 days; proofs of older ones must have been made in time",
    )


def _inconsistent(first: int, second: int) -> LedgerError:
    return LedgerError(
        f"the ledger of {second} entries does not begin with the one of {first} that was seen"
    )
