"""Consent and spool behind one door: two files that share no point of failure.

Rules:
 * Consent first: it is on disk in its own file before the spool hears of it. When the store is
   opened the spool follows the consent before anything else, so a crash between the two leaves the
   new policy, and nothing that it does not cover.
 * A spool that is full, corrupt or gone hinders no refusal, revocation or pause. It gives nothing
   out and takes nothing in until it has followed; one that cannot be read is set aside.
 * An ended grant leaves a tombstone, and a trigger keeps a grant with a tombstone from becoming
   live. A live grant that the next policy does not name is revoked.
 * What has been erased is gone from the whole directory: freed pages are zeroed, the write-ahead
   logs are truncated, and set-aside spools are removed.
 * Every method that writes is on disk when it returns. When it raises, nothing of it happened.
 * One thread: the one that opened the store.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from agent.edge.store import grants, overlays
from agent.edge.store.consent import CHANGED_NS, SPOOL_ERASURES, ConsentFile
from agent.edge.store.database import is_full
from agent.edge.store.directory import StateDirectory
from agent.edge.store.follower import Follower
from agent.edge.store.marks import Marks
from agent.edge.store.migration import migrate
from agent.edge.store.spool import Spool
from agent.edge.store.value import (
    Damage,
    GrantState,
    Kept,
    LiveGrant,
    NewEnvelope,
    Purged,
    SpoolLimits,
    SpoolRow,
    SpoolTally,
    StoredGap,
    StoredPolicy,
    Tally,
    Tombstone,
)
from agent.errors import StoreError

NOTHING: AbstractSet[int] = frozenset()
NO_GRANTS: AbstractSet[str] = frozenset()


class Store(ConsentFile):
    """The state directory, open. A context manager; closing twice is harmless."""

    def __init__(
        self, directory: StateDirectory, *, limits: SpoolLimits, newest_first: bool
    ) -> None:
        self._directory = directory
        self._newest_first = newest_first
        migrate(directory)
        super().__init__(directory)
        self._marks = Marks(self._db)
        self._spool = Follower(directory, limits, self, self._marks)
        self._damage = (Damage("consent", "set-aside"),) if self._db.set_aside else ()
        try:
            self._db.settle()
            self._spool.follow()
            self.scrub()  # Mends a crash between an erasure and the truncation of the log.
        except BaseException:
            self._close_files()
            raise

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        limits: SpoolLimits | None = None,
        newest_first: bool = False,
    ) -> Self:
        """Open the state directory, creating it where it is missing.

        Args:
            directory: Owned by this user, mode 0700.
            limits: How much the spool keeps; None: what the disk allows.
            newest_first: Offer the youngest envelopes of each grant first.

        Raises:
            StoreBusy: Another process holds it.
            StoreError: Wrong mode or owner, a newer schema, or the disk refused the consent.
        """
        held = StateDirectory(directory)
        try:
            return cls(held, limits=limits or SpoolLimits(), newest_first=newest_first)
        except BaseException:
            held.close()
            raise

    @property
    def directory(self) -> Path:
        """Where it is."""
        return self._directory.path

    @property
    def set_aside(self) -> Path | None:
        """Where a corrupt file was moved when it was opened, or None.

        What could still be read of its small tables has been carried over; never envelopes.
        """
        return self._db.set_aside or self._spool.set_aside

    @property
    def evidence(self) -> tuple[str, ...]:
        """Names of the damaged files and ledgers that lie in the directory, set aside."""
        return self._directory.evidence()

    @property
    def spool_fault(self) -> str:
        """Why the spool takes or gives nothing, or "" while it does."""
        return self._spool.fault

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
        """Close the files and let others in."""
        self._close_files()
        self._directory.close()

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
        """Put a policy in force: policy, live grants and tombstones in one transaction, then erase.

        Args:
            policy: Verified. Newer than the one in force, or the very same payload again.
            live: Every grant of the policy that has not ended, also paused and pending ones.
            ended: Every grant that the policy ends. One that was live and is in neither list is
                revoked; one in both has ended.
            at_ns: Time of the tombstones and of the records that tell the recipients.
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

    def suspend(self, at_ns: int) -> Purged:
        """Make every grant pending and erase the whole spool, because the policy has expired.

        No tombstones: a renewed policy may name the same grants.

        Args:
            at_ns: Time of the records that tell the recipients.

        Raises:
            StoreError: The disk refused; nothing changed.
        """

        def step() -> None:
            with self._db.transaction():
                self._db.rows("UPDATE live_grant SET state = 'pending'")
                erasures = (self.number(SPOOL_ERASURES) or 0) + 1
                self._write_numbers({SPOOL_ERASURES: erasures, CHANGED_NS: at_ns})

        if not self.counts() and all(g.state == "pending" for g in self.live_grants()):
            return Purged()
        self._db.with_reserve(step)
        erased, scrubbed = self._spool.follow(is_end=True)
        return Purged(erased=erased, scrubbed=self._db.scrub() and scrubbed)

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
        self._spool.follow()

    @property
    def last_row(self) -> int:
        """The row that an envelope was given last, whether it still waits or not; 0: none yet."""
        return self._spool.read(lambda spool: spool.last_row, 0)

    def append_all(self, arrived: Sequence[NewEnvelope]) -> list[Kept | StoreError]:
        """Draw the next number of each one's grant, seal with it, and keep all, in one commit.

        When the spool is full older envelopes go first; one for which no other may go is noted as
        evicted itself. Where they cannot be kept together each is tried by itself.

        Returns:
            For each what it became, or why it could not be kept: its grant is not live and active
            under its rev; the disk is full, or the spool cannot be used. Then nothing of it was
            written. What a full disk refused is a gap before its grant's next number, and noted
            as soon as that can be written.
        """
        if not arrived:
            return []
        marked = [self._marks.before(new) for new in arrived]
        try:
            return list(self._spool.write(lambda spool: spool.append_all(marked)))
        except StoreError as exc:
            if len(marked) == 1:
                return [exc]
        return [one for new in arrived for one in self.append_all([new])]

    def pending(
        self,
        limit: int,
        *,
        exclude: AbstractSet[int] = NOTHING,
        without: AbstractSet[str] = NO_GRANTS,
    ) -> tuple[SpoolRow, ...]:
        """Return up to `limit` envelopes of active grants, in the order in which they are to go.

        Each grant has its share, so that none starves the others.

        Args:
            limit: Most envelopes.
            exclude: Rows that are on their way already.
            without: Grants of which nothing may be sent now.
        """
        order = self._newest_first
        return self._spool.read(
            lambda spool: spool.pending(
                limit, exclude=exclude, without=without, newest_first=order
            ),
            (),
        )

    def gaps(self, limit: int, *, exclude: AbstractSet[int] = NOTHING) -> tuple[StoredGap, ...]:
        """Return up to `limit` records of numbers that will not come; their ids are below zero.

        Each stays until its id is given to `delivered`, also of a grant that has ended.
        """
        return self._spool.read(lambda spool: spool.gaps(limit, exclude=exclude), ())

    def delivered(self, row_ids: Sequence[int]) -> Mapping[str, Tally]:
        """Remove envelopes that the broker has taken over; return what, per grant.

        Ids that are not there, because their grant has ended meanwhile, are passed over. Ids below
        zero are those of gaps that were told.

        Raises:
            StoreError: The disk refused, or the spool cannot be used; all stay.
        """
        return self._spool.write(lambda spool: spool.delivered(row_ids))

    def expire(self, now_ns: int) -> Mapping[str, Tally]:
        """Erase envelopes whose retention has passed (expires_ns ≤ now); return what, per grant.

        To be called at every turn: it also clears traces, and notes the gaps of what could not be
        stored.

        When the disk refuses nothing is erased, and the next call tries again.
        """

        def step(spool: Spool) -> Mapping[str, Tally]:
            try:
                spool.note_unstored(self._marks.reach)
            except StoreError as exc:
                if not is_full(exc):
                    raise
            return spool.expire(now_ns)

        return self._spool.read(step, {})

    def take_evicted(self) -> Mapping[str, Tally]:
        """Return what gave way in a full spool since this was last asked, per grant."""
        return self._spool.take_evicted()

    def take_damage(self) -> tuple[Damage, ...]:
        """Return which files had to be begun anew since this was last asked."""
        damage, self._damage = (*self._damage, *self._spool.take_damage()), ()
        return damage

    def counts(self) -> Mapping[str, Tally]:
        """Return what the spool holds, per grant."""
        return self._spool.read(lambda spool: spool.counts, {})

    def tallies(self) -> tuple[SpoolTally, ...]:
        """Return what waits, with its numbers and times, in order of grant id."""
        return self._spool.read(lambda spool: spool.tallies(), ())

    def each(self) -> Iterator[SpoolRow]:
        """Yield every envelope, whether it may be sent or not, oldest first."""
        return self._spool.read(lambda spool: spool.each(), iter(()))

    def faults(self) -> tuple[str, ...]:
        """Return what is wrong with the files, one sentence each.

        Raises:
            StoreError: They cannot be read at all.
        """
        return (*self._db.faults(), *self._spool.ask(lambda spool: spool.faults()))

    def purge(self, grant_id: str | None, at_ns: int) -> Mapping[str, Tally]:
        """Erase what waits of a grant, or all of it; consent stays as it is.

        Args:
            grant_id: None: of every grant.
            at_ns: Time of the records that tell the recipients.

        Raises:
            StoreError: The disk refused; nothing was erased.
        """
        return self._spool.ask(lambda spool: spool.purge(grant_id, at_ns))

    def once_taken(self) -> frozenset[tuple[str, str]]:
        """Return every (grant_id, path) of a live grant that has given its single sample."""
        return self._spool.read(lambda spool: spool.once_taken(), frozenset())

    def scrub(self) -> bool:
        """Clear the traces of what has been erased; return whether that could be done."""
        is_done = self._spool.scrub()
        return self._db.scrub() and is_done

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
                self._write_numbers({CHANGED_NS: at_ns})
                return grants.replace(self._db, policy, live, ended, at_ns)

        before = {(grant.grant_id, grant.rev) for grant in self.live_grants()}
        not_revived = self._db.with_reserve(step)
        after = {(grant.grant_id, grant.rev) for grant in self.live_grants()}
        erased, scrubbed = self._spool.follow(is_end=bool(before - after))
        return Purged(
            erased=erased, not_revived=not_revived, scrubbed=self._db.scrub() and scrubbed
        )

    def _close_files(self) -> None:
        self._db.close()
        self._spool.close()
