"""The policy in force, live grants, tombstones, and the spool, in one transaction at a time.

Rules:
 * A spool row references the (grant_id, rev) of a live grant, so a row that no grant covers cannot
   exist: when the grant goes, its rows go in the same transaction.
 * An ended grant leaves a tombstone, and a trigger keeps a grant with a tombstone from becoming
   live. A live grant that the next policy does not name is revoked.
 * What has been erased is gone from the whole directory: freed pages are zeroed, the write-ahead
   log is truncated, and set-aside databases are removed.
 * Every method that writes is on disk when it returns. When it raises, nothing of it happened.
 * One thread: the one that opened the store.

    policy      one row: the JWS in force, and what guards against going back
    live_grant  (grant_id, rev) with state active, paused or pending
    tombstone   grant_id, revoked or expired
    sequence    grant_id and the last n drawn; outlives revs, restarts and the spool
    spool       envelopes, each REFERENCES live_grant ON DELETE CASCADE
    once_taken  (grant_id, path) that gave its single sample; goes with the grant's end
    number      counters and other numbers by name
    restriction restrict documents by jti
    taken_over  jti of each that a policy took over
    document    other signed documents in force, by name
    local_stop  grant_id or every grant, stopped at the vehicle
"""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from itertools import islice
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from agent.edge.store import grants, overlays
from agent.edge.store.database import Database
from agent.edge.store.value import (
    EndState,
    GrantState,
    LiveGrant,
    LocalStop,
    Purged,
    SpoolRow,
    StoredPolicy,
    StoredRestriction,
    Tally,
    Tombstone,
)
from agent.errors import StoreError

PIECE_ROWS = (
    64  # Rows erased per transaction on a full disk: each freed page needs room in the log.
)


class Store:
    """The state directory, open. A context manager; closing twice is harmless."""

    def __init__(
        self, database: Database, *, max_bytes: int | None = None, newest_first: bool = False
    ) -> None:
        self._db = database
        self._newest_first = newest_first
        self._max_bytes = max_bytes
        self._bytes = sum(tally.size_bytes for tally in self.counts().values())

    @classmethod
    def open(
        cls, directory: Path, *, max_bytes: int | None = None, newest_first: bool = False
    ) -> Self:
        """Open the state directory, creating it where it is missing.

        Args:
            directory: Owned by this user, mode 0700.
            max_bytes: Most bytes of envelopes that the spool takes; None: what the disk allows.
            newest_first: Offer the youngest envelopes first.

        Raises:
            StoreBusy: Another process holds it.
            StoreError: Wrong mode or owner, a newer schema, or the disk refused.
        """
        database = Database(directory)
        try:
            store = cls(database, max_bytes=max_bytes, newest_first=newest_first)
        except BaseException:
            database.close()
            raise
        store.scrub()  # Mends a crash between an erasure and the truncation of the log.
        return store

    @property
    def set_aside(self) -> Path | None:
        """Where a corrupt database was moved when this store was opened, or None.

        What could still be read of it, never the spool, has been carried over.
        """
        return self._db.set_aside

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database and let others in."""
        self._db.close()

    def in_force(self) -> StoredPolicy | None:
        """Return the policy that was applied last, expired or not."""
        return grants.in_force(self._db)

    def live_grants(self) -> tuple[LiveGrant, ...]:
        """Return all grants that have not ended, in order of grant id."""
        return grants.live(self._db)

    def tombstoned(self, grant_id: str) -> EndState | None:
        """Return how the grant ended, or None where it never did."""
        return grants.end_of(self._db, grant_id)

    def apply_policy(  # noqa: PLR0913 - what one transaction writes
        self,
        policy: StoredPolicy,
        live: Sequence[LiveGrant],
        ended: Sequence[Tombstone],
        at_ns: int,
        *,
        taken_over: Sequence[str] = (),
        numbers: Mapping[str, int] = MappingProxyType({}),
    ) -> Purged:
        """Put a policy in force: policy, live grants, tombstones and erasure in one transaction.

        Args:
            policy: Verified. Newer than the one in force, or the very same payload again.
            live: Every grant of the policy that has not ended, also paused and pending ones.
            ended: Every grant that the policy ends. One that was live and is in neither list is
                revoked; one in both has ended.
            at_ns: Time of the tombstones, ns since the epoch.
            taken_over: The restrictions, by jti, that restrict no more under this policy.
            numbers: To be kept with it, as by `keep_numbers`.

        Raises:
            StoreError: The policy would go back, or the disk refused; the old one stays in force.
        """
        grants.check_not_back(self.in_force(), policy)

        def beside() -> None:
            overlays.take_over(self._db, taken_over)
            self._write_numbers(numbers)

        return self._replace(policy, live, ended, at_ns, beside)

    def end_grants(self, ended: Sequence[Tombstone], at_ns: int) -> Purged:
        """End grants without a new policy, because they have expired.

        Raises:
            StoreError: The disk refused; nothing changed.
        """
        return self._replace(None, self.live_grants(), ended, at_ns, lambda: None)

    def suspend(self) -> Purged:
        """Make every grant pending and erase the whole spool, because the policy has expired.

        No tombstones: a renewed policy may name the same grants.

        Raises:
            StoreError: The disk refused; nothing changed.
        """

        def step() -> tuple[str, ...]:
            with self._db.transaction():
                self._db.rows("DELETE FROM spool")
                self._db.rows("UPDATE live_grant SET state = 'pending'")
            return ()

        return self._erase(step, keep=frozenset())

    def set_grant_state(self, grant_id: str, state: GrantState) -> None:
        """Move a live grant between active, paused and pending; its rows stay.

        Raises:
            StoreError: The grant is not live, or the disk refused.
        """

        def step() -> None:
            with self._db.transaction():
                if not self._db.rows(
                    "UPDATE live_grant SET state = ? WHERE grant_id = ? RETURNING 1",
                    state,
                    grant_id,
                ):
                    raise StoreError(f"grant {grant_id} is not live, expected a live one")

        self._db.with_reserve(step)

    def restrictions(self) -> tuple[StoredRestriction, ...]:
        """Return every restriction that has come, taken over or not, oldest first."""
        return overlays.restrictions(self._db)

    def taken_over(self) -> frozenset[str]:
        """Return every jti that a policy took over, whether its restriction has come or not."""
        return overlays.taken_over(self._db)

    def document(self, name: str) -> bytes | None:
        """Return the signed document that is kept under a name, or None."""
        return overlays.document(self._db, name)

    def keep_document(self, name: str, body: bytes) -> None:
        """Keep a signed document, such as the trust document, in the place of the one before.

        Raises:
            StoreError: The disk refused; the old one stays.
        """
        self._db.with_reserve(lambda: overlays.keep_document(self._db, name, body))

    def keep_restriction(self, restriction: StoredRestriction) -> None:
        """Keep a restriction; one that is known already stays as it is.

        Raises:
            StoreError: The disk refused.
        """
        self._db.with_reserve(lambda: overlays.keep_restriction(self._db, restriction))

    def local_stops(self) -> tuple[LocalStop, ...]:
        """Return what is stopped at the vehicle, in order of grant id."""
        return overlays.local_stops(self._db)

    def keep_local_stop(self, stop: LocalStop) -> None:
        """Keep a stop, in the place of an older one of the same grant.

        Raises:
            StoreError: The disk refused.
        """
        self._db.with_reserve(lambda: overlays.keep_local_stop(self._db, stop))

    def lift_local_stop(self, grant_id: str) -> bool:
        """Lift the stop of a grant, or the one of every grant; return whether there was one.

        Raises:
            StoreError: The disk refused; it still holds.
        """
        return self._db.with_reserve(lambda: overlays.lift_local_stop(self._db, grant_id))

    def scrub(self) -> bool:
        """Clear the traces of what has been erased; return whether that could be done."""
        return self._db.scrub()

    def append(  # noqa: PLR0913 - the columns of a row, by keyword
        self,
        grant_id: str,
        rev: int,
        *,
        recipient: str,
        created_ns: int,
        expires_ns: int,
        seal: Callable[[int], bytes],
        once: Sequence[str] = (),
    ) -> int:
        """Draw the grant's next number, seal with it, and keep the envelope, in one commit.

        Args:
            grant_id: A live, active grant.
            rev: Its revision when the samples were taken, which must still be its revision.
            recipient: To whom the envelope is addressed.
            created_ns: ns since the epoch.
            expires_ns: When the envelope is erased undelivered, ns since the epoch.
            seal: Called once with n; returns the envelope. What it raises comes out of here.
            once: Paths that gave their single sample in this envelope.

        Returns:
            n, from 1 without holes: also over revs, restarts and failures.

        Raises:
            StoreError: The grant is not live and active under this rev; the spool or the disk is
                full. Nothing was written and n is not used up.
        """
        with self._db.transaction():
            row = self._db.row(
                "SELECT state FROM live_grant WHERE grant_id = ? AND rev = ?", grant_id, rev
            )
            found = "not live" if row is None else row[0]
            if found != "active":
                raise StoreError(f"grant {grant_id} rev {rev} is {found}, expected active")
            ((n,),) = self._db.rows(
                "INSERT INTO sequence VALUES (?, 1)"
                " ON CONFLICT DO UPDATE SET n = n + 1 RETURNING n",
                grant_id,
            )
            envelope = seal(n)
            if self._max_bytes is not None and self._bytes + len(envelope) > self._max_bytes:
                raise StoreError(
                    f"the spool would hold {self._bytes + len(envelope)} bytes,"
                    f" expected at most {self._max_bytes}",
                    hint="restore the connection, or raise the limit of the spool",
                )
            self._db.rows(
                "INSERT INTO spool"
                " (grant_id, rev, n, recipient, created_ns, expires_ns, size_bytes, envelope)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                grant_id,
                rev,
                n,
                recipient,
                created_ns,
                expires_ns,
                len(envelope),
                envelope,
            )
            for path in once:
                self._db.rows("INSERT OR IGNORE INTO once_taken VALUES (?, ?)", grant_id, path)
        self._bytes += len(envelope)
        return int(n)

    def pending(
        self, limit: int, *, exclude: AbstractSet[int] = frozenset()
    ) -> tuple[SpoolRow, ...]:
        """Return up to `limit` envelopes of active grants, oldest first, without the excluded."""
        sign = -1 if self._newest_first else 1
        rows = self._db.each(
            "SELECT row_id, grant_id, rev, n, recipient, envelope, expires_ns"
            " FROM spool JOIN live_grant USING (grant_id, rev)"
            " WHERE state = 'active' ORDER BY row_id * ?",
            sign,
        )
        with closing(rows):
            offered = (SpoolRow(*row) for row in rows if row[0] not in exclude)
            return tuple(islice(offered, limit))

    def delivered(self, row_ids: Sequence[int]) -> Mapping[str, Tally]:
        """Remove envelopes that the broker has taken over; return what, per grant.

        Ids that are not there, because their grant has ended meanwhile, are passed over.

        Raises:
            StoreError: The disk refused; they stay and are delivered again.
        """
        marks = ", ".join("?" * len(row_ids))
        return self._remove(f"row_id IN ({marks})", *row_ids)

    def expire(self, now_ns: int) -> Mapping[str, Tally]:
        """Erase envelopes whose retention has passed (expires_ns ≤ now); return what, per grant.

        Raises:
            StoreError: The disk refused; nothing was erased.
        """
        gone = self._remove("expires_ns <= ?", now_ns)
        if gone:
            self.scrub()
        return gone

    def counts(self) -> Mapping[str, Tally]:
        """Return what the spool holds, per grant."""
        rows = self._db.rows(
            "SELECT grant_id, count(*), sum(size_bytes) FROM spool GROUP BY grant_id"
        )
        return {grant_id: Tally(envelopes, size) for grant_id, envelopes, size in rows}

    def once_taken(self) -> frozenset[tuple[str, str]]:
        """Return every (grant_id, path) of a live grant that has given its single sample."""
        return frozenset((row[0], row[1]) for row in self._db.rows("SELECT * FROM once_taken"))

    def next_counter(self, name: str) -> int:
        """Return 1, 2, 3 … for this name, never one twice, also after a crash.

        Raises:
            StoreError: The disk refused; the number is not used up.
        """
        ((value,),) = self._db.with_reserve(
            lambda: self._db.rows(
                "INSERT INTO number VALUES (?, 1)"
                " ON CONFLICT DO UPDATE SET value = value + 1 RETURNING value",
                name,
            )
        )
        return int(value)

    def number(self, name: str) -> int | None:
        """Return the number kept under this name, or None."""
        row = self._db.row("SELECT value FROM number WHERE name = ?", name)
        return None if row is None else int(row[0])

    def keep_numbers(self, numbers: Mapping[str, int]) -> None:
        """Keep numbers, such as the floor of the clock, under their names, all or none.

        Raises:
            StoreError: The disk refused; the old numbers stay.
        """

        def step() -> None:
            with self._db.transaction():
                self._write_numbers(numbers)

        self._db.with_reserve(step)

    def _write_numbers(self, numbers: Mapping[str, int]) -> None:
        for name, value in numbers.items():
            self._db.rows("INSERT OR REPLACE INTO number VALUES (?, ?)", name, value)

    def _replace(
        self,
        policy: StoredPolicy | None,
        live: Sequence[LiveGrant],
        ended: Sequence[Tombstone],
        at_ns: int,
        beside: Callable[[], None],
    ) -> Purged:
        """Replace the live grants; what is not named any more is erased."""

        def step() -> tuple[str, ...]:
            with self._db.transaction():
                beside()
                return grants.replace(self._db, policy, live, ended, at_ns)

        gone = {grant.grant_id for grant in ended}
        keep = frozenset((g.grant_id, g.rev) for g in live if g.grant_id not in gone)
        return self._erase(step, keep=keep)

    def _erase(
        self, step: Callable[[], tuple[str, ...]], *, keep: AbstractSet[tuple[str, int]]
    ) -> Purged:
        """Run a step that erases every row outside `keep`, and clear its traces."""
        doomed = [
            (grant.grant_id, grant.rev)
            for grant in self.live_grants()
            if (grant.grant_id, grant.rev) not in keep
        ]
        tallies = {grant_id: self._tally(grant_id, rev) for grant_id, rev in doomed}
        not_revived = self._db.with_reserve(step, first=lambda: self._erase_in_pieces(doomed))
        self._bytes -= sum(tally.size_bytes for tally in tallies.values())
        # Nobody can say whose envelopes lie in a database that could not be read.
        removed = self._db.remove_set_aside()
        return Purged(
            erased={grant_id: tally for grant_id, tally in tallies.items() if tally.envelopes},
            not_revived=not_revived,
            scrubbed=self.scrub() and removed,
        )

    def _erase_in_pieces(self, doomed: Sequence[tuple[str, int]]) -> None:
        """Erase rows whose grant is about to go, with little room for the log."""
        for grant_id, rev in doomed:
            while self._tally(grant_id, rev).envelopes:
                self._db.rows(
                    "DELETE FROM spool WHERE row_id IN"
                    " (SELECT row_id FROM spool WHERE grant_id = ? AND rev = ? LIMIT ?)",
                    grant_id,
                    rev,
                    PIECE_ROWS,
                )
                self._db.truncate_log()

    def _remove(self, which: str, *values: int) -> Mapping[str, Tally]:
        rows = self._db.with_reserve(
            lambda: self._db.rows(
                f"DELETE FROM spool WHERE {which} RETURNING grant_id, size_bytes",  # noqa: S608 - fixed texts and question marks
                *values,
            )
        )
        gone: dict[str, Tally] = {}
        for grant_id, size_bytes in rows:
            before = gone.get(grant_id, Tally(0, 0))
            gone[grant_id] = Tally(before.envelopes + 1, before.size_bytes + size_bytes)
            self._bytes -= size_bytes
        return gone

    def _tally(self, grant_id: str, rev: int) -> Tally:
        ((envelopes, size_bytes),) = self._db.rows(
            "SELECT count(*), ifnull(sum(size_bytes), 0) FROM spool WHERE grant_id = ? AND rev = ?",
            grant_id,
            rev,
        )
        return Tally(envelopes, size_bytes)
