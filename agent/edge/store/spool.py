"""Envelopes that wait for the broker, in a file of their own; it follows the consent, never leads.

Rules:
 * A row references the (grant, rev) of a live grant in the same file, so a row that no grant covers
   cannot exist: `follow` takes over who is live, and what is not named goes.
 * Numbers have no holes: each is an envelope that was delivered or waits, or it lies in a gap that
   the recipient is told of.
 * When it is full the grant whose classes go first gives way, its oldest envelope first.
 * An append is one transaction and one fsync, however many envelopes it brings.
 * What consent does not cover any more is gone from the file and its log at once; what was
   delivered or gave way under it, within a minute (`Upkeep`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

from agent.edge.store import gaps, grants, numbers, tallies
from agent.edge.store.database import Database, is_full
from agent.edge.store.directory import CONSENT_BYTES, StateDirectory
from agent.edge.store.gaps import Note, Unstored
from agent.edge.store.offers import offered
from agent.edge.store.room import Room
from agent.edge.store.tables import SPOOL, pad_bytes
from agent.edge.store.upkeep import Upkeep
from agent.edge.store.value import (
    Kept,
    LiveGrant,
    Mark,
    NewEnvelope,
    SpoolLimits,
    SpoolRow,
    SpoolTally,
    StoredGap,
    Tally,
)
from agent.errors import StoreError

PIECE_ROWS = (
    64  # Rows erased per transaction on a full disk: each freed page needs room in the log.
)
NAME = "spool.db"
GENERATION = "generation"
NEVER_NS = 1 << 62
LOG_BYTES = 1 << 20  # Room that the log keeps: SQLite copies it into the file at 1,000 pages.
_Doomed = tuple[str, int]


class Spool:
    """The open spool. Used by the agent thread only.

    Attributes:
        set_aside: Where a file that could not be read was moved when this one was opened, or None.
        evicted: What gave way since somebody last took note of it, per grant.
    """

    def __init__(
        self, directory: StateDirectory, limits: SpoolLimits, *, is_corrupt: bool = False
    ) -> None:
        """Open the file, creating it where it is missing.

        Args:
            directory: Held.
            limits: How much it keeps.
            is_corrupt: The file cannot be read: it is set aside and a new one begun.

        Raises:
            StoreError: A newer schema, or the disk refused.
        """
        self._directory = directory
        self._limits = limits
        self._db = Database(directory, NAME, SPOOL, is_corrupt=is_corrupt, log_bytes=LOG_BYTES)
        self.set_aside = self._db.set_aside
        self.evicted: dict[str, Tally] = {}
        self._upkeep = Upkeep(self._db, directory)
        self._told: set[int] = set()  # Gaps that were handed out: they grow no more.
        self._unstored: dict[str, Unstored] = {}
        self._live = {grant.grant_id: grant for grant in grants.live(self._db)}
        rows = self._db.rows(
            "SELECT grant_id, count(*), sum(size_bytes) FROM spool GROUP BY grant_id"
        )
        self._tallies = {grant_id: Tally(count, size) for grant_id, count, size in rows}
        self._next_ns = self._next_expiry_ns()

    def close(self) -> None:
        """Close the file; twice is harmless."""
        self._db.close()

    @property
    def is_new(self) -> bool:
        """Whether it is to be told where numbers begin, before the first one is drawn."""
        return self.set_aside is not None or not numbers.were_begun(self._db)

    def begin_at(self, marks: Mapping[str, Mark], row_id: int, at_ns: int) -> None:
        """Go on above what an older file may have drawn; see `numbers.begin_at`."""
        numbers.begin_at(self._db, marks, row_id, at_ns)

    @property
    def counts(self) -> Mapping[str, Tally]:
        """What waits, per grant."""
        return dict(self._tallies)

    def follow(
        self, live: Sequence[LiveGrant], at_ns: int, *, generation: int
    ) -> tuple[dict[str, Tally], bool]:
        """Take over who is live; erase what is not covered any more.

        Args:
            live: All live grants, as the consent says.
            at_ns: Time of the records of gaps; 0: nobody knows, and they bear the time of the
                newest envelope.
            generation: Another than at the last time: all rows go, whoever is live.

        Returns:
            What was erased per grant, and whether its bytes are gone from the file and its log.

        Raises:
            StoreError: The disk refused; nothing changed.
        """
        named = {(grant.grant_id, grant.rev) for grant in live}
        doomed = [
            (g.grant_id, g.rev) for g in self._live.values() if (g.grant_id, g.rev) not in named
        ]
        is_other = generation != self._number(GENERATION)
        if is_other:
            doomed = [(grant.grant_id, grant.rev) for grant in self._live.values()]
        if not doomed and not is_other and list(live) == sorted(self._live.values(), key=_name):
            return {}, True
        erased = {g: self._tallies[g] for g, _ in doomed if g in self._tallies}
        notes = [note for grant in doomed for note in self._note(grant)]
        noted_ns = at_ns or self._newest_ns()

        def step() -> None:
            with self._db.transaction():
                gaps.keep(self._db, notes, "erased", noted_ns, told=self._told)
                for grant_id, rev in doomed:
                    self._db.rows(
                        "DELETE FROM live_grant WHERE grant_id = ? AND rev = ?", grant_id, rev
                    )
                for grant in live:
                    grants.write(self._db, grant)
                self._db.rows(
                    "DELETE FROM once_taken WHERE grant_id NOT IN (SELECT grant_id FROM live_grant)"
                )
                self._keep_number(GENERATION, generation)

        if doomed:
            # On a full disk the failing first run fills the log, and what the log held before could
            # not be copied out of it any more.
            self._db.truncate_log()
        self._db.with_reserve(step, first=lambda: self._erase_in_pieces(doomed))
        self._tallies = tallies.without(self._tallies, erased)
        self._live = {grant.grant_id: grant for grant in live}
        # They had no numbers yet, so the recipient of a grant that has ended misses none.
        self._unstored = {g: u for g, u in self._unstored.items() if g in self._live}
        if not doomed:
            return {}, True
        # Nobody can say whose envelopes lie in a file that could not be read.
        removed = self._db.remove_set_aside()
        return erased, self._db.scrub() and removed

    def append_all(self, arrived: Sequence[NewEnvelope]) -> list[Kept]:
        """Draw a number for each, seal with it, make room, and keep them, all or none.

        Raises:
            StoreError: One of them cannot be kept, or the disk refused; nothing was written.
        """
        for new in arrived:
            self._check_live(new)
        if not self._directory.is_roomy:
            self._directory.fill_reserve()
        try:
            return self._keep_all(arrived, may_grow=True)
        except StoreError as exc:
            # Of several each comes again by itself.
            if len(arrived) > 1 or not is_full(exc):
                raise
        # What has been copied into the file leaves its room in the log to what is written next.
        self._db.restart_log()
        try:
            return self._db.with_reserve(
                lambda: self._keep_all(arrived, may_grow=False), but_bytes=CONSENT_BYTES
            )
        except StoreError as exc:
            if is_full(exc):
                self._keep_in_mind(arrived[0])
            raise

    def _keep_all(self, arrived: Sequence[NewEnvelope], *, may_grow: bool) -> list[Kept]:
        """Keep all, or where one should be its gap, in one commit."""
        before = self._tallies, self._next_ns
        evicted: dict[str, Tally] = {}
        names = {new.grant_id for new in arrived}
        try:
            with self._db.transaction():
                for grant_id in names:
                    self._number_unstored(grant_id)
                kept = [self._append(new, evicted, may_grow=may_grow) for new in arrived]
        except BaseException:
            self._tallies, self._next_ns = before
            raise
        for grant_id in names:
            self._unstored.pop(grant_id, None)
        self.evicted = tallies.both(self.evicted, evicted)
        if evicted:
            self._upkeep.has_traces = True
        return kept

    def _keep_in_mind(self, new: NewEnvelope) -> None:
        """Count what the disk refused, until a gap can be noted."""
        before = self._unstored.get(new.grant_id)
        envelopes = 1 if before is None else before.envelopes + 1
        self._unstored[new.grant_id] = Unstored(new.recipient, envelopes, new.created_ns)

    def _check_live(self, new: NewEnvelope) -> None:
        grant = self._live.get(new.grant_id)
        if grant is None or grant.rev != new.rev or grant.state != "active":
            found = "not live" if grant is None or grant.rev != new.rev else grant.state
            raise StoreError(f"grant {new.grant_id} rev {new.rev} is {found}, expected active")

    def _append(self, new: NewEnvelope, evicted: dict[str, Tally], *, may_grow: bool) -> Kept:
        """Keep one, in a transaction; add to `evicted` what gave way."""
        grant = self._live[new.grant_id]
        expires_ns = self._limits.expires_ns(grant.classes, new.created_ns, new.expires_ns)
        n = numbers.draw(self._db, new.grant_id, new.recipient)
        envelope = new.seal(n)
        free = None if may_grow and self._directory.is_roomy else 0
        if free is None and self._limits.min_free_bytes:
            free = self._directory.free_bytes()
        room = Room(self._db, self._limits, self._live, self._tallies)
        gone, fits = room.make(grant, len(envelope), new.created_ns, free=free, told=self._told)
        self._tallies = tallies.without(self._tallies, gone)
        if fits:
            columns = (
                *(new.grant_id, new.rev, n, new.recipient),
                *(new.created_ns, expires_ns, len(envelope)),
            )
            self._db.rows(
                "INSERT INTO spool VALUES (?, ?, ?, ?, ?, ?, ?, ?, zeroblob(?), ?)",
                numbers.draw_row(self._db),
                *columns,
                pad_bytes(columns, len(envelope)),
                envelope,
            )
            for path in new.once:
                self._db.rows("INSERT OR IGNORE INTO once_taken VALUES (?, ?)", new.grant_id, path)
            self._next_ns = min(self._next_ns, expires_ns)
            one = {new.grant_id: Tally(1, len(envelope))}
            self._tallies = tallies.both(self._tallies, one)
        else:
            note = (new.grant_id, new.recipient, n, n)
            gaps.keep(self._db, [note], "evicted", new.created_ns, told=self._told)
            gone = gone | tallies.summed([(new.grant_id, len(envelope))])
        evicted.update(tallies.both(evicted, gone))
        return Kept(n, len(envelope))

    def number_unstored(self, mark: Callable[[str, str, int], None]) -> None:
        """Note the gaps of what the disk refused, once it has room for that.

        Args:
            mark: Called with grant, recipient and highest number before these are on disk.

        Raises:
            StoreError: It still has none.
        """
        for grant_id in list(self._unstored):
            with self._db.transaction():
                mark(grant_id, *self._number_unstored(grant_id))
            del self._unstored[grant_id]

    def _number_unstored(self, grant_id: str) -> tuple[str, int]:
        """Draw the numbers of what the disk refused, as a gap; return recipient and the last."""
        unstored = self._unstored.get(grant_id)
        if unstored is None:
            return "", 0
        recipient = unstored.recipient
        drawn = [numbers.draw(self._db, grant_id, recipient) for _ in range(unstored.envelopes)]
        note = (grant_id, recipient, drawn[0], drawn[-1])
        gaps.keep(self._db, [note], "evicted", unstored.at_ns, told=self._told)
        return recipient, drawn[-1]

    def pending(
        self,
        limit: int,
        *,
        exclude: AbstractSet[int],
        without: AbstractSet[str],
        newest_first: bool,
    ) -> tuple[SpoolRow, ...]:
        """Return what may be sent: of each active grant its share; see `Store`."""
        may_go = [
            grant
            for grant in self._live.values()
            if grant.state == "active"
            and grant.grant_id not in without
            and grant.grant_id in self._tallies
        ]
        return offered(self._db, may_go, limit, exclude=exclude, newest_first=newest_first)

    def delivered(self, row_ids: Sequence[int]) -> Mapping[str, Tally]:
        """Remove envelopes that the broker has taken over, and gaps that were told."""
        marks = ", ".join("?" * len(row_ids))

        def step() -> list[tuple[str, int]]:
            with self._db.transaction():
                self._db.rows(f"DELETE FROM gap WHERE -gap_id IN ({marks})", *row_ids)  # noqa: S608 - question marks
                return [
                    (grant_id, size)
                    for grant_id, size in self._db.rows(
                        f"DELETE FROM spool WHERE row_id IN ({marks})"  # noqa: S608 - as above
                        " RETURNING grant_id, size_bytes",
                        *row_ids,
                    )
                ]

        gone = tallies.summed(self._db.with_reserve(step))
        self._upkeep.has_traces = True
        self._told.difference_update(row_ids)
        self._tallies = tallies.without(self._tallies, gone)
        return gone

    def expire(self, now_ns: int) -> Mapping[str, Tally]:
        """Erase envelopes whose time has passed, and note the gap; see `Store`."""
        self._upkeep.turn(now_ns, is_empty=not self._tallies)
        if now_ns < self._next_ns:
            return {}

        def step() -> list[tuple[str, str, int, int]]:
            with self._db.transaction():
                rows = self._db.rows(
                    "DELETE FROM spool WHERE expires_ns <= ?"
                    " RETURNING grant_id, recipient, n, size_bytes",
                    now_ns,
                )
                notes = gaps.islands((g, r, n) for g, r, n, _ in rows)
                gaps.keep(self._db, notes, "expired", now_ns, told=self._told)
                return [(g, r, n, size) for g, r, n, size in rows]

        gone = tallies.summed((g, size) for g, _, _, size in self._db.with_reserve(step))
        self._next_ns = self._next_expiry_ns()
        self._tallies = tallies.without(self._tallies, gone)
        if gone:
            self._db.scrub()
        return gone

    def gaps(self, limit: int, *, exclude: AbstractSet[int]) -> tuple[StoredGap, ...]:
        """Return records of gaps that were not told yet, oldest first; see `Store`."""
        found = tuple(gap for gap in gaps.stored(self._db) if gap.gap_id not in exclude)[:limit]
        self._told.update(gap.gap_id for gap in found)
        return found

    def tallies(self) -> tuple[SpoolTally, ...]:
        """Return what waits, with its numbers and times, in order of grant id."""
        rows = self._db.rows(
            "SELECT grant_id, rev, state, count(*), sum(size_bytes), min(n), max(n),"
            " min(created_ns), max(created_ns), min(expires_ns)"
            " FROM spool JOIN live_grant USING (grant_id, rev)"
            " GROUP BY grant_id, rev ORDER BY grant_id"
        )
        return tuple(SpoolTally(*row) for row in rows)

    def each(self) -> Iterator[SpoolRow]:
        """Yield every envelope, whether it may be sent or not, oldest first."""
        rows = self._db.each(
            "SELECT row_id, grant_id, rev, n, recipient, envelope, expires_ns"
            " FROM spool ORDER BY row_id"
        )
        return (SpoolRow(*row) for row in rows)

    def faults(self) -> tuple[str, ...]:
        """Return what SQLite, the schema and the numbers find wrong with the file."""
        doubles = self._db.rows(
            "SELECT grant_id, n FROM spool GROUP BY grant_id, n HAVING count(*) > 1"
        )
        return (
            *self._db.faults(),
            *(f"{NAME}: grant {grant_id} has number {n} twice" for grant_id, n in doubles),
        )

    def purge(self, grant_id: str | None, at_ns: int) -> Mapping[str, Tally]:
        """Erase the envelopes of a grant, or all, though they may be sent; note the gap."""
        chosen = [g for g in self._live.values() if grant_id in (None, g.grant_id)]
        gone = {
            g.grant_id: self._tallies[g.grant_id] for g in chosen if g.grant_id in self._tallies
        }
        notes = [note for g in chosen for note in self._note((g.grant_id, g.rev))]

        def step() -> None:
            with self._db.transaction():
                gaps.keep(self._db, notes, "erased", at_ns, told=self._told)
                for name in gone:
                    self._db.rows("DELETE FROM spool WHERE grant_id = ?", name)

        doomed = [(grant.grant_id, grant.rev) for grant in chosen]
        self._db.with_reserve(step, first=lambda: self._erase_in_pieces(doomed))
        self._tallies = tallies.without(self._tallies, gone)
        self._db.scrub()
        return gone

    def once_taken(self) -> frozenset[tuple[str, str]]:
        """Return every (grant_id, path) of a live grant that has given its single sample."""
        return frozenset((row[0], row[1]) for row in self._db.rows("SELECT * FROM once_taken"))

    def remove_set_aside(self) -> bool:
        """Remove every spool that was set aside; return whether none is left."""
        return self._db.remove_set_aside()

    def scrub(self) -> bool:
        """Clear the traces of what has been erased; return whether that could be done."""
        return self._db.scrub()

    def _next_expiry_ns(self) -> int:
        row = self._db.row("SELECT min(expires_ns) FROM spool")
        return NEVER_NS if row is None or row[0] is None else int(row[0])

    def _newest_ns(self) -> int:
        row = self._db.row("SELECT max(created_ns) FROM spool")
        return 0 if row is None or row[0] is None else int(row[0])

    def _note(self, doomed: _Doomed) -> list[Note]:
        """Return one gap per recipient: nothing of the grant will wait, whatever lies between."""
        rows = self._db.rows(
            "SELECT grant_id, recipient, min(n), max(n) FROM spool"
            " WHERE grant_id = ? AND rev = ? GROUP BY recipient",
            *doomed,
        )
        return [(g, r, first, last) for g, r, first, last in rows]

    def _erase_in_pieces(self, doomed: Sequence[_Doomed]) -> None:
        """Erase rows whose grant is about to go, with little room for the log."""
        for grant_id, rev in doomed:
            while self._db.rows(
                "DELETE FROM spool WHERE row_id IN (SELECT row_id FROM spool"
                " WHERE grant_id = ? AND rev = ? LIMIT ?) RETURNING 1",
                grant_id,
                rev,
                PIECE_ROWS,
            ):
                self._db.truncate_log()

    def _number(self, name: str) -> int:
        row = self._db.row("SELECT value FROM number WHERE name = ?", name)
        return 0 if row is None else int(row[0])

    def _keep_number(self, name: str, value: int) -> None:
        self._db.rows("INSERT OR REPLACE INTO number VALUES (?, ?)", name, value)


def _name(grant: LiveGrant) -> str:
    return grant.grant_id
