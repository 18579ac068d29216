"""The state directory and the connection to the one SQLite database in it.

Rules:
 * One process, one connection, one thread: a lock file keeps every other process out, and SQLite's
   exclusive mode keeps every other reader out, who could hold up the truncation of the log.
 * A transaction is on disk when it returns; when it raises, nothing of it happened.
 * Freed pages are zeroed (secure_delete). Old page images remain in the write-ahead log until
   `truncate_log`, so whoever erases calls it.
 * On a full disk the reserve file gives its room to what ends consent, never to envelopes.

    state.db, state.db-wal        the database
    state.db.corrupt-<n>[-wal]    set aside
    reserve                       some megabytes of nothing
    lock                          held while open
"""

import fcntl
import os
import sqlite3
import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from agent.edge.store.file import CORRUPT, open_file
from agent.errors import StoreBusy, StoreError

RESERVE_BYTES = 4 * 1024 * 1024  # A policy of 64 KiB and the log of a piecewise erasure, with room.

_Result = TypeVar("_Result")
Row = tuple[Any, ...]  # As SQLite gives it; the STRICT tables say what is in it.


class Database:
    """The open state directory.

    Attributes:
        directory: Where it is.
        set_aside: Where a corrupt database was moved when this one was opened, or None.
    """

    def __init__(self, directory: Path) -> None:
        """Open the directory, creating it where it is missing.

        Raises:
            StoreBusy: Another process holds it.
            StoreError: Wrong mode or owner, a newer schema, or the disk refused.
        """
        self.directory = directory
        _check_directory(directory)
        self._lock = _take_lock(directory)
        try:
            with _translated("the state cannot be opened"):
                self._db, self.set_aside = open_file(directory / "state.db")
        except BaseException:
            os.close(self._lock)
            raise
        self._fill_reserve()

    def close(self) -> None:
        """Close the database and let others in; twice is harmless."""
        if self._lock >= 0:
            self._db.close()
            os.close(self._lock)
            self._lock = -1

    def rows(self, sql: str, *values: object) -> list[Row]:
        """Run one statement and return its rows.

        Raises:
            StoreError: SQLite refused.
        """
        with _translated("the state cannot be read or written"):
            return self._db.execute(sql, values).fetchall()

    def each(self, sql: str, *values: object) -> Generator[Row, None, None]:
        """Run one statement and yield its rows as they are asked for.

        Raises:
            StoreError: SQLite refused.
        """
        with _translated("the state cannot be read"):
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
        self, step: Callable[[], _Result], *, first: Callable[[], None] = lambda: None
    ) -> _Result:
        """Run a transaction; on a full disk once more, with the room that was kept for it.

        Args:
            step: The transaction.
            first: What makes room by itself before the second run.

        Raises:
            StoreError: What the last run raised.
        """
        try:
            return step()
        except StoreError as exc:
            if not _is_full(exc):
                raise
        self._release_reserve()
        try:
            self.truncate_log()
            first()
            return step()
        finally:
            self.truncate_log()
            self._fill_reserve()

    def truncate_log(self) -> bool:
        """Copy the write-ahead log into the database and empty it; return whether that was done."""
        try:
            busy, _, _ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error:
            return False
        return not busy

    def scrub(self) -> bool:
        """Do `truncate_log`, on a full disk with the room of the reserve."""
        if self.truncate_log():
            return True
        self._release_reserve()
        try:
            return self.truncate_log()
        finally:
            self._fill_reserve()

    def remove_set_aside(self) -> bool:
        """Remove every set-aside database; return whether none is left."""
        try:
            for path in self.directory.glob("state.db.corrupt-*"):
                path.unlink()
        except OSError:
            return False
        return True

    def _release_reserve(self) -> None:
        with suppress(OSError):
            os.truncate(self.directory / "reserve", 0)

    def _fill_reserve(self) -> None:
        # On a full disk there is none until room is made; that is no reason to stop.
        with suppress(OSError):
            fd = os.open(self.directory / "reserve", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, RESERVE_BYTES)
            finally:
                os.close(fd)


@contextmanager
def _translated(consequence: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        name = getattr(exc, "sqlite_errorname", type(exc).__name__)
        hint = None
        if name == "SQLITE_FULL":
            hint = "make room on the disk of the state directory"
        elif name.startswith(CORRUPT):
            hint = "restart the agent: it sets a corrupt database aside and goes on with a new one"
        raise StoreError(f"{consequence}: {exc} ({name})", hint=hint) from exc


def _is_full(exc: StoreError) -> bool:
    name = getattr(exc.__cause__, "sqlite_errorname", "")
    # A quota (EDQUOT) or a file-size limit (EFBIG) shows as a failed write, not as SQLITE_FULL.
    return name in ("SQLITE_FULL", "SQLITE_IOERR_WRITE")


def _check_directory(directory: Path) -> None:
    try:
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        found = directory.stat()
    except OSError as exc:
        raise StoreError(
            f"state directory {directory}: {exc.strerror}",
            hint="create its parent folder, or name another directory in the configuration",
        ) from exc
    if not stat.S_ISDIR(found.st_mode):
        raise StoreError(f"state directory {directory} is not a directory")
    me = os.geteuid()
    if found.st_uid != me:
        raise StoreError(
            f"state directory {directory} belongs to uid {found.st_uid}, expected {me}",
            hint=f"chown -R {me} {directory}",
        )
    if found.st_mode & 0o077:
        raise StoreError(
            f"state directory {directory} has mode {stat.S_IMODE(found.st_mode):04o},"
            " expected 0700",
            hint=f"chmod 0700 {directory}",
        )


def _take_lock(directory: Path) -> int:
    try:
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise StoreError(f"state directory {directory}: {exc.strerror}") from exc
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(fd)
        raise StoreBusy(
            f"state directory {directory} is held by another process, expected by none",
            hint="stop the other agent; a state directory has one owner",
        ) from exc
    return fd
