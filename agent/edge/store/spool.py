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

from agent.edge.store import grants, numbers, rows, tallies
from agent.edge.store.database import Database, is_full
from agent.edge.store.directory import CONSENT_BYTES, StateDirectory
from agent.edge.store.erasure import erase
from agent.edge.store.gaps import Gaps, islands
from agent.edge.store.offers import offered
from agent.edge.store.room import Room
from agent.edge.store.tables import SPOOL
from agent.edge.store.unstored import Unstored
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

NAME = "spool.db"
GENERATION = "generation"
LOG_BYTES = 1 << 20  # Room that the log keeps: SQLite copies it into the file at 1,000 pages.


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
        self._gaps = Gaps(self._db)
        self._unstored = Unstored(self._db, self._gaps)
        self._live = {grant.grant_id: grant for grant in grants.live(self._db)}
        self._tallies = rows.held(self._db)
        self._next_ns = rows.next_expiry_ns(self._db)

    def close(self) -> None:
        """Close the file; twice is harmless."""
        self._db.close()

    @property
    def is_new(self) -> bool:
        """Whether it is to be told where numbers begin, before the first one is drawn."""
        return self.set_aside is not None or not numbers.were_begun(self._db)

    def begin_at(self, marks: Mapping[str, Mark], row_id: int, at_ns: int) -> None:
        """Go on above what an older file may have drawn; see `numbers.begin_at`."""
        numbers.begin_at(self._db, self._gaps, marks, row_id, at_ns)

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

        def delete() -> None:
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
        erase(self._db, self._gaps, doomed, at_ns or rows.newest_ns(self._db), delete=delete)
        self._tallies = tallies.without(self._tallies, erased)
        self._live = {grant.grant_id: grant for grant in live}
        self._unstored.keep_only(self._live)
        if not doomed:
            return {}, True
        # Nobody can say whose envelopes lie in a file that could not be read.
        removed = self._db.remove_set_aside()
        return erased, self._db.scrub() and removed

    @property
    def last_row(self) -> int:
        """The row id that was drawn last; 0 before the first."""
        return numbers.last_row(self._db)

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
                self._unstored.add(arrived[0])
            raise

    def _keep_all(self, arrived: Sequence[NewEnvelope], *, may_grow: bool) -> list[Kept]:
        """Keep all, or where one should be its gap, in one commit."""
        before = self._tallies, self._next_ns
        evicted: dict[str, Tally] = {}
        names = {new.grant_id for new in arrived}
        try:
            with self._db.transaction():
                for grant_id in names:
                    self._unstored.note(grant_id)
                kept = [self._append(new, evicted, may_grow=may_grow) for new in arrived]
        except BaseException:
            self._tallies, self._next_ns = before
            raise
        self._unstored.forget(names)
        self.evicted = tallies.both(self.evicted, evicted)
        if evicted:
            self._upkeep.has_traces = True
        return kept

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
        room = Room(self._db, self._gaps, self._limits, self._live, self._tallies)
        gone, fits = room.make(grant, len(envelope), new.created_ns, free=free)
        self._tallies = tallies.without(self._tallies, gone)
        if fits:
            rows.insert(self._db, new, n, envelope, expires_ns=expires_ns)
            self._next_ns = min(self._next_ns, expires_ns)
            one = {new.grant_id: Tally(1, len(envelope))}
            self._tallies = tallies.both(self._tallies, one)
        else:
            note = (new.grant_id, new.recipient, n, n)
            self._gaps.keep([note], "evicted", new.created_ns)
            gone = gone | tallies.summed([(new.grant_id, len(envelope))])
        evicted.update(tallies.both(evicted, gone))
        return Kept(n, len(envelope))

    def note_unstored(self, mark: Callable[[str, str, int], None]) -> None:
        """Note the gaps of what the disk refused; see `Unstored.note_all`."""
        self._unstored.note_all(mark)

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

        def step() -> list[tuple[str, int]]:
            with self._db.transaction():
                self._gaps.remove(row_ids)
                return rows.remove(self._db, row_ids)

        gone = tallies.summed(self._db.with_reserve(step))
        self._upkeep.has_traces = True
        self._tallies = tallies.without(self._tallies, gone)
        return gone

    def expire(self, now_ns: int) -> Mapping[str, Tally]:
        """Erase envelopes whose time has passed, and note the gap; see `Store`."""
        self._upkeep.turn(now_ns, is_empty=not self._tallies)
        if now_ns < self._next_ns:
            return {}

        def step() -> list[tuple[str, str, int, int]]:
            with self._db.transaction():
                expired = rows.remove_expired(self._db, now_ns)
                notes = islands((g, r, n) for g, r, n, _ in expired)
                self._gaps.keep(notes, "expired", now_ns)
                return expired

        gone = tallies.summed((g, size) for g, _, _, size in self._db.with_reserve(step))
        self._next_ns = rows.next_expiry_ns(self._db)
        self._tallies = tallies.without(self._tallies, gone)
        if gone:
            self._db.scrub()
        return gone

    def gaps(self, limit: int, *, exclude: AbstractSet[int]) -> tuple[StoredGap, ...]:
        """Return records of gaps that were not told yet, oldest first; see `Store`."""
        return self._gaps.hand_out(limit, exclude=exclude)

    def tallies(self) -> tuple[SpoolTally, ...]:
        """Return what waits, with its numbers and times, in order of grant id."""
        return rows.tallies(self._db)

    def each(self) -> Iterator[SpoolRow]:
        """Yield every envelope, whether it may be sent or not, oldest first."""
        return rows.each(self._db)

    def faults(self) -> tuple[str, ...]:
        """Return what SQLite, the schema and the numbers find wrong with the file."""
        return (
            *self._db.faults(),
            *(
                f"{NAME}: grant {grant_id} has number {n} twice"
                for grant_id, n in rows.doubles(self._db)
            ),
        )

    def purge(self, grant_id: str | None, at_ns: int) -> Mapping[str, Tally]:
        """Erase the envelopes of a grant, or all, though they may be sent; note the gap."""
        chosen = [g for g in self._live.values() if grant_id in (None, g.grant_id)]
        gone = {
            g.grant_id: self._tallies[g.grant_id] for g in chosen if g.grant_id in self._tallies
        }
        doomed = [(grant.grant_id, grant.rev) for grant in chosen]

        def delete() -> None:
            for name in gone:
                rows.remove_all_of(self._db, name)

        erase(self._db, self._gaps, doomed, at_ns, delete=delete)
        self._tallies = tallies.without(self._tallies, gone)
        self._db.scrub()
        return gone

    def once_taken(self) -> frozenset[tuple[str, str]]:
        """Return every (grant_id, path) of a live grant that has given its single sample."""
        return rows.once_taken(self._db)

    def remove_set_aside(self) -> bool:
        """Remove every spool that was set aside; return whether none is left."""
        return self._db.remove_set_aside()

    def scrub(self) -> bool:
        """Clear the traces of what has been erased; return whether that could be done."""
        return self._db.scrub()

    def _number(self, name: str) -> int:
        row = self._db.row("SELECT value FROM number WHERE name = ?", name)
        return 0 if row is None else int(row[0])

    def _keep_number(self, name: str, value: int) -> None:
        self._db.rows("INSERT OR REPLACE INTO number VALUES (?, ?)", name, value)


def _name(grant: LiveGrant) -> str:
    return grant.grant_id
