"""The rows of the spool, one for each envelope that waits: written, removed and read.

Rules:
 * What writes or removes is in the transaction of the caller, who keeps count.
 * A row is padded, so that its envelope lies in pages of its own and is zeroed when it goes
   (`tables.pad_bytes`).
"""

from collections.abc import Iterator, Sequence

from agent.edge.store import numbers
from agent.edge.store.database import Database
from agent.edge.store.tables import pad_bytes
from agent.edge.store.value import NewEnvelope, SpoolRow, SpoolTally, Tally

NEVER_NS = 1 << 62


def insert(db: Database, new: NewEnvelope, n: int, envelope: bytes, *, expires_ns: int) -> None:
    """Write an envelope, and which paths gave their single sample in it.

    Args:
        db: In a transaction.
        new: What it was made of.
        n: Its number in its grant.
        envelope: Sealed.
        expires_ns: When it is erased undelivered, limits of age included.
    """
    columns = (
        *(new.grant_id, new.rev, n, new.recipient),
        *(new.created_ns, expires_ns, len(envelope)),
    )
    db.rows(
        "INSERT INTO spool VALUES (?, ?, ?, ?, ?, ?, ?, ?, zeroblob(?), ?)",
        numbers.draw_row(db),
        *columns,
        pad_bytes(columns, len(envelope)),
        envelope,
    )
    for path in new.once:
        db.rows("INSERT OR IGNORE INTO once_taken VALUES (?, ?)", new.grant_id, path)


def remove(db: Database, row_ids: Sequence[int]) -> list[tuple[str, int]]:
    """Remove rows; return grant id and bytes of each that was there."""
    marks = ", ".join("?" * len(row_ids))
    rows = db.rows(
        f"DELETE FROM spool WHERE row_id IN ({marks})"  # noqa: S608 - question marks
        " RETURNING grant_id, size_bytes",
        *row_ids,
    )
    return [(grant_id, size_bytes) for grant_id, size_bytes in rows]


def remove_expired(db: Database, now_ns: int) -> list[tuple[str, str, int, int]]:
    """Remove rows whose time has passed; return grant id, recipient, number and bytes of each."""
    rows = db.rows(
        "DELETE FROM spool WHERE expires_ns <= ? RETURNING grant_id, recipient, n, size_bytes",
        now_ns,
    )
    return [(grant_id, recipient, n, size) for grant_id, recipient, n, size in rows]


def remove_all_of(db: Database, grant_id: str) -> None:
    """Remove every row of a grant."""
    db.rows("DELETE FROM spool WHERE grant_id = ?", grant_id)


def held(db: Database) -> dict[str, Tally]:
    """Return what waits, per grant."""
    rows = db.rows("SELECT grant_id, count(*), sum(size_bytes) FROM spool GROUP BY grant_id")
    return {grant_id: Tally(count, size_bytes) for grant_id, count, size_bytes in rows}


def next_expiry_ns(db: Database) -> int:
    """Return when the first row is to be erased, or NEVER_NS."""
    ((first_ns,),) = db.rows("SELECT coalesce(min(expires_ns), ?) FROM spool", NEVER_NS)
    return int(first_ns)


def newest_ns(db: Database) -> int:
    """Return when the youngest envelope was made, or 0."""
    ((newest_ns,),) = db.rows("SELECT coalesce(max(created_ns), 0) FROM spool")
    return int(newest_ns)


def tallies(db: Database) -> tuple[SpoolTally, ...]:
    """Return what waits, with its numbers and times, in order of grant id."""
    rows = db.rows(
        "SELECT grant_id, rev, state, count(*), sum(size_bytes), min(n), max(n),"
        " min(created_ns), max(created_ns), min(expires_ns)"
        " FROM spool JOIN live_grant USING (grant_id, rev)"
        " GROUP BY grant_id, rev ORDER BY grant_id"
    )
    return tuple(SpoolTally(*row) for row in rows)


def each(db: Database) -> Iterator[SpoolRow]:
    """Yield every envelope, whether it may be sent or not, oldest first."""
    rows = db.each(
        "SELECT row_id, grant_id, rev, n, recipient, envelope, expires_ns"
        " FROM spool ORDER BY row_id"
    )
    return (SpoolRow(*row) for row in rows)


def doubles(db: Database) -> list[tuple[str, int]]:
    """Return grant id and number of what is there more than once; there should be none."""
    rows = db.rows("SELECT grant_id, n FROM spool GROUP BY grant_id, n HAVING count(*) > 1")
    return [(grant_id, n) for grant_id, n in rows]


def once_taken(db: Database) -> frozenset[tuple[str, str]]:
    """Return every (grant_id, path) that has given its single sample."""
    return frozenset((row[0], row[1]) for row in db.rows("SELECT * FROM once_taken"))
