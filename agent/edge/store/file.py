"""One SQLite file: how it is opened, checked, set aside and salvaged.

Rules:
 * A file is used only when every pragma took hold and SQLite finds it sound.
 * A file that cannot be read is renamed, never repaired and never deleted here; but not while the
   disk takes no other in its place: then the disk is at fault, and may come back with the file.
   SQLite says of both that the file is malformed.
 * What can still be read of its small tables goes into the new one: the guard against an old policy
   must not fall with a bad block, nor with a bit of the header, of which SQLite says that it is no
   database.
"""

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from agent.errors import StoreError

KEPT_ASIDE = 2  # Set-aside databases kept for an engineer; older ones go.

_PRAGMAS: tuple[tuple[str, str, str | int], ...] = (
    ("locking_mode", "EXCLUSIVE", "exclusive"),  # Before WAL, so that no shared memory is used.
    ("journal_mode", "WAL", "wal"),
    ("synchronous", "FULL", 2),
    ("foreign_keys", "ON", 1),
    ("secure_delete", "ON", 1),
    ("temp_store", "MEMORY", 2),  # Nothing of ours in temporary files outside the directory.
)

CORRUPT = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
DISK_HINT = "the disk of the state directory fails: the kernel's log says how"

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_HEADER_BYTES = 100
_MOST_COPIED = 64 << 20  # Bytes of a file whose header is put right to read it.


class NewerState(StoreError):  # noqa: N818 - says what happened
    """A newer agent wrote the file; it is left alone."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one file.

    Attributes:
        sql: What makes them, in a new file.
        version: Of the tables, `user_version` of the file.
        page_bytes: SQLite's page size.
        salvaged: Small tables that are carried over from a file that cannot be read, in this order.
        upgrades: Version -> SQL that leads to the next one.
    """

    sql: tuple[str, ...]
    version: int
    page_bytes: int
    salvaged: tuple[str, ...]
    upgrades: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that was opened.

    Attributes:
        db: The connection.
        set_aside: Where an unreadable database is now, or None.
        is_lossy: Not all of its small tables could be carried over.
    """

    db: sqlite3.Connection
    set_aside: Path | None = None
    is_lossy: bool = False


def open_file(path: Path, schema: Schema, *, is_corrupt: bool = False) -> Opened:
    """Open the database, or a new one in the place of one that cannot be read.

    Args:
        path: The file.
        schema: What is to be in it.
        is_corrupt: It was found not to be readable.

    Raises:
        sqlite3.Error: The disk refused.
        StoreError: A newer schema, an SQLite that does not keep our rules, no set-aside, or a disk
            that fails.
    """
    if not is_corrupt:
        try:
            return Opened(_connect(path, schema))
        except sqlite3.DatabaseError as exc:
            if not _is_damage(exc):
                raise
    _check_disk(path)
    try:  # It may have come back while the file was read.
        return Opened(_connect(path, schema, check="integrity_check"))
    except sqlite3.DatabaseError as exc:
        if not _is_damage(exc):
            raise
    aside = _set_aside(path)
    db = _connect(path, schema)
    is_whole = False
    with suppress(OSError), _readable(aside, schema.page_bytes) as source:
        is_whole = salvage(source, db, schema.salvaged)
    return Opened(db, aside, is_lossy=not is_whole)


def salvage(aside: Path, db: sqlite3.Connection, tables: tuple[str, ...]) -> bool:
    """Carry over what can still be read of the named tables, each by itself.

    Returns:
        Whether each could be read to its end.
    """
    left = set(tables)
    old = sqlite3.connect(aside, isolation_level=None, timeout=0.0)
    try:
        for table in tables:
            with suppress(sqlite3.Error):
                rows = old.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608 - own names
                for row in rows:
                    marks = ", ".join("?" * len(row))
                    with suppress(sqlite3.Error):  # A live grant with a tombstone, a torn row.
                        db.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", row)  # noqa: S608
                left.discard(table)
    finally:
        old.close()
    return not left


def _is_damage(exc: sqlite3.DatabaseError) -> bool:
    """Whether the file, not the disk or the caller, is what SQLite complains of."""
    name = getattr(exc, "sqlite_errorname", "")
    # A wrong schema format in the header has no code of its own.
    return name.startswith(CORRUPT) or "unsupported file format" in str(exc)


@contextmanager
def _readable(aside: Path, page_bytes: int) -> Iterator[Path]:
    """Give the file, or a copy of it with the header that all of ours have, while it is read.

    Raises:
        OSError: The disk refused.
    """
    with aside.open("rb") as file:
        found = file.read(_HEADER_BYTES)
    header = _header(found, page_bytes)
    if len(found) < _HEADER_BYTES or found == header or aside.stat().st_size > _MOST_COPIED:
        yield aside
        return
    copy = aside.with_name(f"{aside.name}-copy")
    try:
        shutil.copyfile(aside, copy)
        with suppress(FileNotFoundError):
            shutil.copyfile(f"{aside}-wal", f"{copy}-wal")
        with copy.open("r+b") as file:
            file.write(header)
        yield copy
    finally:
        for suffix in ("", "-wal", "-shm"):
            aside.with_name(f"{copy.name}{suffix}").unlink(missing_ok=True)


def _header(found: bytes, page_bytes: int) -> bytes:
    """Return a header with what is the same in all of our files (SQLite's file format, 1.3)."""
    constant = {
        0: b"SQLite format 3\x00",
        16: page_bytes.to_bytes(2, "big"),
        18: b"\x02\x02",  # Written and read with a write-ahead log.
        20: b"\x00\x40\x20\x20",  # No reserved space; fractions of a payload.
        44: (4).to_bytes(4, "big"),  # Schema format.
        56: (1).to_bytes(4, "big"),  # UTF-8.
    }
    header = bytearray(found)
    for at, value in constant.items():
        header[at : at + len(value)] = value
    return bytes(header)


def _connect(path: Path, schema: Schema, *, check: str = "quick_check") -> sqlite3.Connection:
    """Open one database and check it whole.

    Raises:
        sqlite3.DatabaseError: With a code of CORRUPT where it cannot be read.
        StoreError: A newer schema, or an SQLite that does not keep our rules.
    """
    with suppress(OSError):  # SQLite says what is in the way, and asks no umask for the log.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, isolation_level=None, timeout=0.0)
    try:
        _check(db, path.name, schema, check)
    except BaseException:
        db.close()
        raise
    return db


def _check(db: sqlite3.Connection, name: str, schema: Schema, check: str) -> None:
    # The page size comes before anything is written; it is a fact of the file from then on.
    size = ("page_size", str(schema.page_bytes), schema.page_bytes)
    for pragma, value, expected in (size, *_PRAGMAS):
        db.execute(f"PRAGMA {pragma} = {value}")
        (found,) = db.execute(f"PRAGMA {pragma}").fetchone()
        if found != expected:
            raise StoreError(f"SQLite answers {found!r} to {pragma}, expected {expected!r}")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > schema.version:
        raise NewerState(
            f"{name} has schema version {version}, this agent knows {schema.version}",
            hint="run the newer agent that wrote it",
        )
    while version < schema.version:
        step = schema.upgrades[version] if version else "".join(schema.sql)
        version = version + 1 if version else schema.version
        db.executescript(f"BEGIN IMMEDIATE; {step} PRAGMA user_version = {version}; COMMIT;")
    (health,) = db.execute(f"PRAGMA {check}(1)").fetchone()
    if health != "ok":
        damaged = sqlite3.DatabaseError(health)
        damaged.sqlite_errorname = "SQLITE_CORRUPT"
        raise damaged


def _check_disk(path: Path) -> None:
    """Make sure that the disk takes a new file where this one is.

    Raises:
        StoreError: It does not.
    """
    probe = path.resolve().with_name(f"{path.name}.probe")
    try:
        fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, bytes(_HEADER_BYTES))
            os.fsync(fd)
        finally:
            os.close(fd)
            probe.unlink()
    except OSError as exc:
        if exc.errno not in _NO_ROOM:
            raise StoreError(
                f"{path.name} cannot be read, and its disk takes no other: {exc.strerror}",
                hint=DISK_HINT,
            ) from exc


def _set_aside(path: Path) -> Path:
    """Rename a database and its log; return the new name."""
    taken = sorted(
        int(number)
        for found in path.parent.glob(f"{path.name}.corrupt-*")
        if (number := found.name.rpartition("-")[2]).isdecimal()
    )
    aside = path.with_name(f"{path.name}.corrupt-{taken[-1] + 1 if taken else 1}")
    try:
        for old in taken[: max(0, len(taken) + 1 - KEPT_ASIDE)]:
            for suffix in ("", "-wal"):
                path.with_name(f"{path.name}.corrupt-{old}{suffix}").unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            path.with_name(f"{path.name}-wal").rename(f"{aside}-wal")
        path.rename(aside)
    except OSError as exc:
        raise StoreError(f"the corrupt {path} cannot be set aside: {exc.strerror}") from exc
    return aside
