"""The connection to one SQLite file of the state directory.

Rules:
 * One connection, one thread: SQLite's exclusive mode keeps every other reader out, who could hold
   up the truncation of the log.
 * A transaction is on disk when it returns; when it raises, nothing of it happened.
 * Freed pages are zeroed (secure_delete). Old page images remain in the write-ahead log until
   `truncate_log`, so whoever erases calls it.
 * A log may keep its room: emptied, it is as long as before, of zeros, which SQLite takes for no
   log. So on a disk that others filled what needs no more room can still be written.
"""

import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from agent.edge.store.directory import StateDirectory, keep_room
from agent.edge.store.file import CORRUPT, DISK_HINT, Schema, open_file
from agent.errors import StoreError

_Result = TypeVar("_Result")
Row = tuple[Any, ...]  # As SQLite gives it; the STRICT tables say what is in it.


class Database:
    """One open file.

    Attributes:
        set_aside: Where a corrupt file was moved when this one was opened, or None.
        is_lossy: Not all of its small tables could be carried over.
    """

    def __init__(
        self,
        directory: StateDirectory,
        name: str,
        schema: Schema,
        *,
        is_corrupt: bool = False,
        log_bytes: int = 0,
    ) -> None:
        """Open the file, creating it where it is missing.

        Args:
            directory: Held.
            name: Of the file.
            schema: What is to be in it.
            is_corrupt: It cannot be read: it is set aside and a new one begun.
            log_bytes: Room that its log keeps when it is emptied.

        Raises:
            StoreError: Another owner or mode, a newer schema, or the disk refused.
        """
        self._directory = directory
        self._name = name
        for file in (name, f"{name}-wal"):
            directory.check(file)
        with _translated(f"{name} cannot be opened"):
            opened = open_file(directory.path / name, schema, is_corrupt=is_corrupt)
        self._db, self.set_aside, self.is_lossy = opened.db, opened.set_aside, opened.is_lossy
        self._log_bytes = log_bytes
        self._keep_log_room()

    def close(self) -> None:
        """Close the file; twice is harmless."""
        self._db.close()

    def rows(self, sql: str, *values: object) -> list[Row]:
        """Run one statement and return its rows.

        Raises:
            StoreError: SQLite refused.
        """
        with _translated(f"{self._name} cannot be read or written"):
            return self._db.execute(sql, values).fetchall()

    def each(self, sql: str, *values: object) -> Generator[Row, None, None]:
        """Run one statement and yield its rows as they are asked for.

        Raises:
            StoreError: SQLite refused.
        """
        with _translated(f"{self._name} cannot be read"):
            yield from self._db.execute(sql, values)

    def row(self, sql: str, *values: object) -> Row | None:
        """Run one statement and return its first row, or None."""
        rows = self.rows(sql, *values)
        return rows[0] if rows else None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit, to disk, all that the block does, or nothing of it.

        Raises:
            StoreError: SQLite or the disk refused.
        """
        with _translated("nothing was written"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # Some faults have rolled it back already.
                    self._db.execute("ROLLBACK")
                raise

    def with_reserve(
        self,
        step: Callable[[], _Result],
        *,
        first: Callable[[], None] = lambda: None,
        but_bytes: int = 0,
    ) -> _Result:
        """Run a transaction; on a full disk once more, with the room that was kept for it.

        Args:
            step: The transaction.
            first: What makes room by itself before the second run.
            but_bytes: So much of the room is not given.

        Raises:
            StoreError: What the last run raised.
        """
        try:
            return step()
        except StoreError as exc:
            if not is_full(exc):
                raise
        self._directory.release_reserve(but_bytes=but_bytes)
        try:
            self.truncate_log()
            first()
            return step()
        finally:
            self.truncate_log()
            self._directory.fill_reserve()

    def settle(self) -> None:
        """Have on disk what is read, also what an earlier process left in the kernel's memory.

        A transaction that the disk refused did not happen, yet its pages can be read back until
        the kernel forgets them; here they become true.

        Raises:
            StoreError: The disk refused, and not for want of room.
        """
        try:
            self.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        except StoreError as exc:
            if not is_full(exc):
                raise
        self._keep_log_room()

    def truncate_log(self) -> bool:
        """Copy the write-ahead log into the database and empty it; return whether that was done."""
        is_done = self._checkpoint("TRUNCATE")
        if is_done:
            self._keep_log_room()
        return is_done

    def restart_log(self) -> bool:
        """Copy the log into the database; what is written next takes the place of the old log."""
        return self._checkpoint("RESTART")

    def shrink(self) -> None:
        """Give all free pages back to the disk, if it lets us; for a file with little in it."""
        # First the zeros of freed pages go into the file: what is cut off was erased.
        if self.truncate_log():
            with suppress(sqlite3.Error):
                self._db.execute("VACUUM")
            self.truncate_log()

    def free_bytes(self) -> int:
        """Return how much room there is in the file that it can use without the disk's.

        Raises:
            StoreError: SQLite refused.
        """
        ((pages,),), ((page_bytes,),) = (
            self.rows(f"PRAGMA {what}") for what in ("freelist_count", "page_size")
        )
        return int(pages) * int(page_bytes)

    def _checkpoint(self, mode: str) -> bool:
        try:
            busy, _, _ = self._db.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except sqlite3.Error:
            return False
        return not busy

    def _keep_log_room(self) -> None:
        if self._log_bytes:
            with suppress(OSError):
                keep_room(self._directory.path / f"{self._name}-wal", self._log_bytes)

    def scrub(self) -> bool:
        """Do `truncate_log`, on a full disk with the room of the reserve."""
        if self.truncate_log():
            return True
        self._directory.release_reserve()
        try:
            return self.truncate_log()
        finally:
            self._directory.fill_reserve()

    def faults(self) -> tuple[str, ...]:
        """Return what SQLite finds wrong with the file and its references."""
        found = [str(row[0]) for row in self.rows("PRAGMA integrity_check(20)")]
        lost = self.rows("PRAGMA foreign_key_check")
        return (
            *(f"{self._name}: {fault}" for fault in found if fault != "ok"),
            *(f"{self._name}: a row of {row[0]} without its {row[2]}" for row in lost),
        )

    def remove_set_aside(self) -> bool:
        """Remove every set-aside file of this name; return whether none is left."""
        try:
            for path in self._directory.path.glob(f"{self._name}.corrupt-*"):
                path.unlink()
        except OSError:
            return False
        return True


def is_full(exc: StoreError) -> bool:
    """Whether the disk had no room."""
    name = getattr(exc.__cause__, "sqlite_errorname", "")
    # A quota (EDQUOT) or a file-size limit (EFBIG) shows as a failed write, not as SQLITE_FULL.
    return name in ("SQLITE_FULL", "SQLITE_IOERR_WRITE")


def is_corrupt(exc: StoreError) -> bool:
    """Whether the file cannot be read."""
    return str(getattr(exc.__cause__, "sqlite_errorname", "")).startswith(CORRUPT)


@contextmanager
def _translated(consequence: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        name = getattr(exc, "sqlite_errorname", type(exc).__name__)
        hint = None
        if name == "SQLITE_FULL":
            hint = "make room on the disk of the state directory"
        elif name.startswith(("SQLITE_IOERR", "SQLITE_READONLY")):
            hint = DISK_HINT
        elif name == "SQLITE_CANTOPEN":
            hint = "see what lies in its place, and whose it is"
        elif name.startswith(CORRUPT):
            hint = "restart the agent: it sets a corrupt database aside and goes on with a new one"
        raise StoreError(f"{consequence}: {exc} ({name})", hint=hint) from exc
