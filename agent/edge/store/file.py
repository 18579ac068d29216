"""The SQLite file: its tables, and how it is opened, set aside and salvaged.

Rules:
 * The tables keep the promise by themselves: foreign keys and triggers, not the code around them.
 * A file is used only when every pragma took hold and SQLite finds it sound.
 * A file that cannot be read is renamed, never repaired and never deleted here. What can still be
   read of its small tables goes into the new one: the guard against an old policy must not fall
   with a bad block.
"""

import sqlite3
from contextlib import suppress
from pathlib import Path

from agent.errors import StoreError

SCHEMA_VERSION = 2
KEPT_ASIDE = 2  # Set-aside databases kept for an engineer; older ones go.

# SQLite zeroes a freed page whole, but a leaf page that it rebuilds keeps stale copies of moved
# cells in its gap: of 3,417 erased envelopes one could still be read. So no byte of an envelope may
# lie in a leaf page: `pad` is longer than the most of a record that stays in one (page size - 35;
# SQLite file format, section 1.6), and the envelope behind it lies in overflow pages of its own.
PAGE_BYTES = 1024

# What restricts beside the policy; version 2 brought it.
_OVERLAYS = """
CREATE TABLE restriction (
    jti TEXT PRIMARY KEY,
    iat_s INTEGER NOT NULL,
    mode TEXT NOT NULL CHECK (mode IN ('pause', 'revoke')),
    grants TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE taken_over (jti TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE document (name TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE local_stop (
    grant_id TEXT PRIMARY KEY,
    who TEXT NOT NULL,
    since_ns INTEGER NOT NULL,
    left_ns INTEGER
) STRICT, WITHOUT ROWID;
"""

# AUTOINCREMENT: a late PUBACK must never hit a younger row that got the id of an erased one.
_SCHEMA = f"""
CREATE TABLE policy (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    jws BLOB NOT NULL,
    epoch INTEGER NOT NULL,
    ver INTEGER NOT NULL,
    payload_sha256 BLOB NOT NULL,
    catalogue_sha256 BLOB NOT NULL,
    applied_ns INTEGER NOT NULL
) STRICT;
CREATE TABLE live_grant (
    grant_id TEXT NOT NULL UNIQUE,
    rev INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('active', 'paused', 'pending')),
    PRIMARY KEY (grant_id, rev)
) STRICT, WITHOUT ROWID;
CREATE TABLE tombstone (
    grant_id TEXT PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('revoked', 'expired')),
    at_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE sequence (grant_id TEXT PRIMARY KEY, n INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE spool (
    row_id INTEGER PRIMARY KEY AUTOINCREMENT,
    grant_id TEXT NOT NULL,
    rev INTEGER NOT NULL,
    n INTEGER NOT NULL,
    recipient TEXT NOT NULL,
    created_ns INTEGER NOT NULL,
    expires_ns INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    pad BLOB NOT NULL DEFAULT (zeroblob({PAGE_BYTES})) CHECK (length(pad) = {PAGE_BYTES}),
    envelope BLOB NOT NULL,
    FOREIGN KEY (grant_id, rev) REFERENCES live_grant ON DELETE CASCADE
) STRICT;
CREATE INDEX spool_by_grant ON spool (grant_id, rev, size_bytes);
CREATE INDEX spool_by_expiry ON spool (expires_ns);
CREATE TABLE once_taken (
    grant_id TEXT NOT NULL,
    path TEXT NOT NULL,
    PRIMARY KEY (grant_id, path)
) STRICT, WITHOUT ROWID;
CREATE TABLE number (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
{_OVERLAYS}
CREATE TRIGGER nothing_leads_back BEFORE INSERT ON live_grant
WHEN EXISTS (SELECT 1 FROM tombstone WHERE grant_id = NEW.grant_id)
BEGIN SELECT RAISE(ABORT, 'the grant has ended'); END;
CREATE TRIGGER an_end_erases AFTER INSERT ON tombstone
BEGIN
    DELETE FROM live_grant WHERE grant_id = NEW.grant_id;
    DELETE FROM once_taken WHERE grant_id = NEW.grant_id;
END;
PRAGMA user_version = {SCHEMA_VERSION};
"""  # noqa: S608 - own numbers

# In this order: a tombstone keeps its grant from being carried over as a live one.
_SALVAGED = (
    *("policy", "tombstone", "live_grant", "sequence", "once_taken", "number"),
    *("restriction", "taken_over", "local_stop", "document"),
)

_PRAGMAS: tuple[tuple[str, str, str | int], ...] = (
    ("page_size", str(PAGE_BYTES), PAGE_BYTES),  # Before anything is written; a fact of the file.
    ("locking_mode", "EXCLUSIVE", "exclusive"),  # Before WAL, so that no shared memory is used.
    ("journal_mode", "WAL", "wal"),
    ("synchronous", "FULL", 2),
    ("foreign_keys", "ON", 1),
    ("secure_delete", "ON", 1),
    ("temp_store", "MEMORY", 2),  # Nothing of ours in temporary files outside the directory.
)

CORRUPT = ("SQLITE_CORRUPT", "SQLITE_NOTADB")


def open_file(path: Path) -> tuple[sqlite3.Connection, Path | None]:
    """Open the database, or a new one in the place of one that cannot be read.

    Returns:
        The connection, and where an unreadable database is now, or None.

    Raises:
        sqlite3.Error: The disk refused.
        StoreError: A newer schema, an SQLite that does not keep our rules, or no set-aside.
    """
    try:
        return _connect(path), None
    except sqlite3.DatabaseError as exc:
        if not getattr(exc, "sqlite_errorname", "").startswith(CORRUPT):
            raise
    aside = _set_aside(path)
    db = _connect(path)
    _salvage(aside, db)
    return db, aside


def _connect(path: Path) -> sqlite3.Connection:
    """Open one database and check it whole.

    Raises:
        sqlite3.DatabaseError: With a code of CORRUPT where it cannot be read.
        StoreError: A newer schema, or an SQLite that does not keep our rules.
    """
    db = sqlite3.connect(path, isolation_level=None, timeout=0.0)
    try:
        _check(db)
    except BaseException:
        db.close()
        raise
    return db


def _check(db: sqlite3.Connection) -> None:
    for name, value, expected in _PRAGMAS:
        db.execute(f"PRAGMA {name} = {value}")
        (found,) = db.execute(f"PRAGMA {name}").fetchone()
        if found != expected:
            raise StoreError(f"SQLite answers {found!r} to {name}, expected {expected!r}")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"the state has schema version {version}, this agent knows {SCHEMA_VERSION}",
            hint="run the newer agent that wrote it",
        )
    if version == 0:
        db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
    elif version == 1:
        db.executescript(f"BEGIN IMMEDIATE; {_OVERLAYS} PRAGMA user_version = 2; COMMIT;")
    (health,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if health != "ok":
        damaged = sqlite3.DatabaseError(health)
        damaged.sqlite_errorname = "SQLITE_CORRUPT"
        raise damaged


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


def _salvage(aside: Path, db: sqlite3.Connection) -> None:
    """Carry over what can still be read of the small tables, each by itself."""
    old = sqlite3.connect(aside, isolation_level=None, timeout=0.0)
    try:
        for table in _SALVAGED:
            with suppress(sqlite3.Error):
                rows = old.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608 - own names
                for row in rows:
                    marks = ", ".join("?" * len(row))
                    with suppress(sqlite3.Error):  # A live grant with a tombstone, a torn row.
                        db.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", row)  # noqa: S608
    finally:
        old.close()
