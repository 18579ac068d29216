"""Counts of envelopes and bytes, per grant: added up and taken off each other."""

from collections.abc import Iterable, Mapping

from agent.edge.store.value import Tally

NOTHING = Tally(0, 0)


def summed(rows: Iterable[tuple[str, int]]) -> dict[str, Tally]:
    """Return the tallies of envelopes, each given by its grant and size."""
    found: dict[str, Tally] = {}
    for grant_id, size_bytes in rows:
        found[grant_id] = _sum(found.get(grant_id, NOTHING), Tally(1, size_bytes))
    return found


def both(one: Mapping[str, Tally], other: Mapping[str, Tally]) -> dict[str, Tally]:
    """Return the tallies of two together."""
    return {
        grant_id: _sum(one.get(grant_id, NOTHING), other.get(grant_id, NOTHING))
        for grant_id in {*one, *other}
    }


def without(tallies: Mapping[str, Tally], gone: Mapping[str, Tally]) -> dict[str, Tally]:
    """Return what is left of tallies; a grant of which nothing is left is not in it."""
    left = dict(tallies)
    for grant_id, tally in gone.items():
        before = left.pop(grant_id)
        if before.envelopes > tally.envelopes:
            size_bytes = before.size_bytes - tally.size_bytes
            left[grant_id] = Tally(before.envelopes - tally.envelopes, size_bytes)
    return left


def _sum(one: Tally, other: Tally) -> Tally:
    return Tally(one.envelopes + other.envelopes, one.size_bytes + other.size_bytes)
