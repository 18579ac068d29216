"""Room in a full spool, or on a disk that others filled: which envelopes give way for which.

Rules:
 * The grant whose classes go first gives way, its oldest envelope first.
 * Nothing goes for what goes before it itself, nor for what would not fit then either.
 * Where the disk has too little room an envelope goes into what is free in the file, so that the
   file does not grow; only then others go for it.
 * Each envelope that goes is noted as a gap, in the transaction that erases it.
"""

from collections.abc import Mapping, Sequence

from agent.edge.store.database import Database
from agent.edge.store.gaps import Gaps
from agent.edge.store.tables import PAGE_BYTES, own_page_bytes
from agent.edge.store.value import LiveGrant, SpoolLimits, Tally

# What an append may take beside the pages of its envelope: splits of tables and index, a gap.
_BESIDE_BYTES = 8 * PAGE_BYTES
_NOTHING = Tally(0, 0)


class Room:
    """Evicts; sees who is live and what waits as the spool keeps it."""

    def __init__(
        self,
        db: Database,
        gaps: Gaps,
        limits: SpoolLimits,
        live: Mapping[str, LiveGrant],
        tallies: Mapping[str, Tally],
    ) -> None:
        self._db = db
        self._gaps = gaps
        self._limits = limits
        self._live = live
        self._tallies = tallies

    def make(
        self,
        grant: LiveGrant,
        size: int,
        at_ns: int,
        *,
        free: int | None,
    ) -> tuple[dict[str, Tally], bool]:
        """Evict until an envelope fits; in a transaction.

        Args:
            grant: Whose envelope it is.
            size: Its bytes.
            at_ns: Time of the records of gaps.
            free: Room on the disk, in bytes. None: as much as one likes; 0: the file must not grow.

        Returns:
            What went, per grant, and whether it fits now. If not, nothing went.
        """
        rank = self._limits.rank(grant.classes)
        may_go = {
            other.grant_id: self._tallies[other.grant_id]
            for other in self._live.values()
            if other.grant_id in self._tallies and self._limits.rank(other.classes) <= rank
        }
        is_low = free is not None and free <= self._limits.min_free_bytes
        needed = own_page_bytes(size) + (0 if free else _BESIDE_BYTES)

        def grows(gone: Mapping[str, Tally], room: int) -> bool:
            # Where nothing else waits, room that is kept for others is not worth the newest.
            is_alone = _envelopes(gone) == _envelopes(self._tallies)
            return is_low and room < needed and not (free and is_alone)

        room = self._db.free_bytes() if is_low else 0
        # An envelope has at least one page to itself.
        most = room + sum(max(t.size_bytes, t.envelopes * PAGE_BYTES) for t in may_go.values())
        if self._over(grant, size, may_go, grows=grows(may_go, most)) is not None:
            return {}, False
        gone: dict[str, Tally] = {}
        while (over := self._over(grant, size, gone, grows=grows(gone, room))) is not None:
            victims = [
                other
                for other in self._live.values()
                if over in ("", *other.classes)
                and other.grant_id in may_go
                and self._held(other.grant_id, gone) > 0
            ]
            row_id, grant_id, recipient, n, row_size = self._oldest(victims)
            self._db.rows("DELETE FROM spool WHERE row_id = ?", row_id)
            note = (grant_id, recipient, n, n)
            self._gaps.keep([note], "evicted", at_ns)
            before = gone.get(grant_id, _NOTHING)
            gone[grant_id] = Tally(before.envelopes + 1, before.size_bytes + row_size)
            room = self._db.free_bytes() if is_low else 0
        return gone, True

    def _over(
        self, grant: LiveGrant, size: int, gone: Mapping[str, Tally], *, grows: bool
    ) -> str | None:
        """Return which limit an envelope would exceed: a class, "" for all, None for none."""
        limits = self._limits
        freed = sum(tally.size_bytes for tally in gone.values())
        held = sum(tally.size_bytes for tally in self._tallies.values()) - freed
        if grows or (limits.max_bytes is not None and held + size > limits.max_bytes):
            return ""
        for name in grant.classes:
            most = limits.classes[name].max_bytes if name in limits.classes else None
            if most is None:
                continue
            alike = (other for other in self._live.values() if name in other.classes)
            if sum(self._held(other.grant_id, gone) for other in alike) + size > most:
                return name
        return None

    def _held(self, grant_id: str, gone: Mapping[str, Tally]) -> int:
        return (
            self._tallies.get(grant_id, _NOTHING).size_bytes
            - gone.get(grant_id, _NOTHING).size_bytes
        )

    def _oldest(self, victims: Sequence[LiveGrant]) -> tuple[int, str, str, int, int]:
        """Return the oldest row of the grants that go first, of which each has some."""
        found = []
        least = min(self._limits.rank(grant.classes) for grant in victims)
        for grant in victims:
            if self._limits.rank(grant.classes) != least:
                continue
            row = self._db.row(
                "SELECT row_id, grant_id, recipient, n, size_bytes FROM spool"
                " WHERE grant_id = ? AND rev = ? ORDER BY row_id LIMIT 1",
                grant.grant_id,
                grant.rev,
            )
            if row is not None:
                found.append((int(row[0]), str(row[1]), str(row[2]), int(row[3]), int(row[4])))
        return min(found)


def _envelopes(tallies: Mapping[str, Tally]) -> int:
    return sum(tally.envelopes for tally in tallies.values())
