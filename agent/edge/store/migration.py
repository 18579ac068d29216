"""state.db of 0.1.0, which held consent and spool, into two files.

Rules:
 * The new files are complete before consent.db gets its name, which ends the migration: a crash
   before that begins anew, one behind it only removes the old file.
 * The old file is overwritten before it is removed: it holds envelopes that are erased later.
 * One that cannot be read becomes a set-aside consent.db: what can be read of its small tables is
   carried over.
"""

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from agent.edge.store.directory import StateDirectory
from agent.edge.store.file import open_file
from agent.edge.store.tables import CONSENT, SPOOL, pad_bytes
from agent.errors import StoreError

OLD = "state.db"
OLD_VERSIONS = (1, 2)
_CHUNK = 1 << 20


def migrate(directory: StateDirectory) -> None:
    """Bring an old state directory up to date; do nothing in a new one.

    Raises:
        StoreError: A newer schema, or the disk refused; the old file is as it was.
    """
    old = directory.path / OLD
    if not old.exists():
        return
    try:
        if not (directory.path / "consent.db").exists():
            _split(directory.path, old)
        for path in (old, old.with_name(f"{OLD}-wal")):
            _overwrite(path)
    except (OSError, sqlite3.Error) as exc:
        raise StoreError(f"{OLD} cannot be brought up to date: {exc}") from exc


def _split(directory: Path, old: Path) -> None:
    consent, spool = directory / "consent.db.new", directory / "spool.db.new"
    for path in (consent, spool):
        for left in (path, path.with_name(f"{path.name}-wal"), directory / "spool.db"):
            left.unlink(missing_ok=True)
    with (
        closing(sqlite3.connect(old, isolation_level=None, timeout=0.0)) as source,
        closing(open_file(consent, CONSENT).db) as to_consent,
        closing(open_file(spool, SPOOL).db) as to_spool,
    ):
        _check_version(source)
        to_consent.execute("BEGIN IMMEDIATE")
        for table in CONSENT.salvaged:
            _copy(source, to_consent, table)
        to_consent.execute("COMMIT")
        to_spool.execute("BEGIN IMMEDIATE")
        for table in ("live_grant", "sequence", "once_taken"):
            _copy(source, to_spool, table)
        last = _copy_rows(source, to_spool)
        to_spool.execute("INSERT INTO sequence VALUES ('', ?, '')", (last,))
        to_spool.execute("COMMIT")
    spool.rename(directory / "spool.db")
    consent.rename(directory / "consent.db")
    _sync(directory)


def _check_version(source: sqlite3.Connection) -> None:
    try:
        (version,) = source.execute("PRAGMA user_version").fetchone()
    except sqlite3.DatabaseError:
        return  # Not readable: what can be read is taken.
    if version > max(OLD_VERSIONS):
        raise StoreError(
            f"the state has schema version {version}, this agent knows {max(OLD_VERSIONS)}",
            hint="run the newer agent that wrote it",
        )


def _copy(source: sqlite3.Connection, sink: sqlite3.Connection, table: str) -> None:
    added = {"live_grant": ("",), "sequence": ("",)}.get(table, ())
    with suppress(sqlite3.Error):
        rows = source.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608 - own names
        for row in rows:
            values = (*row, *added)
            marks = ", ".join("?" * len(values))
            with suppress(sqlite3.Error):  # A live grant with a tombstone, a torn row.
                sink.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", values)  # noqa: S608


def _copy_rows(source: sqlite3.Connection, sink: sqlite3.Connection) -> int:
    """Copy the envelopes; return the highest row id that was ever used."""
    last = 0
    with suppress(sqlite3.Error):
        for row_id, *columns, envelope in source.execute(
            "SELECT row_id, grant_id, rev, n, recipient, created_ns, expires_ns, size_bytes,"
            " envelope FROM spool ORDER BY row_id"
        ):
            pad = pad_bytes(tuple(columns), len(envelope))
            sink.execute(
                "INSERT INTO spool VALUES (?, ?, ?, ?, ?, ?, ?, ?, zeroblob(?), ?)",
                (row_id, *columns, pad, envelope),
            )
            sink.execute(
                "UPDATE sequence SET recipient = ? WHERE grant_id = ?", (columns[3], columns[0])
            )
            last = row_id
    with suppress(sqlite3.Error):
        row = source.execute("SELECT seq FROM sqlite_sequence WHERE name = 'spool'").fetchone()
        last = max(last, int(row[0]) if row else 0)
    return last


def _overwrite(path: Path) -> None:
    if not path.exists():
        return
    with path.open("r+b", buffering=0) as file:
        left = os.fstat(file.fileno()).st_size
        while left > 0:
            left -= file.write(bytes(min(_CHUNK, left)))
        os.fsync(file.fileno())
    path.unlink()


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
