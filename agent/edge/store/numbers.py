"""The numbers of each grant's envelopes, and of the rows: drawn in order, none twice.

Rules:
 * What draws a number is in the transaction that keeps the envelope, or notes its gap: a number
   that was drawn is one of the two.
 * Row ids are drawn as well, under no grant's name: a late PUBACK must never hit a younger row.
"""

from collections.abc import Mapping

from agent.edge.store.database import Database
from agent.edge.store.gaps import Gaps
from agent.edge.store.marks import AHEAD
from agent.edge.store.value import Mark

_ROWS = ""  # The name under which row ids are drawn.


def draw(db: Database, grant_id: str, recipient: str) -> int:
    """Return the next number of a grant; in a transaction."""
    ((n,),) = db.rows(
        "INSERT INTO sequence VALUES (?, 1, ?) ON CONFLICT DO UPDATE"
        " SET n = n + 1, recipient = excluded.recipient RETURNING n",
        grant_id,
        recipient,
    )
    return int(n)


def draw_row(db: Database) -> int:
    """Return the next row id; in a transaction."""
    return draw(db, _ROWS, "")


def last_row(db: Database) -> int:
    """Return the row id that was drawn last; 0 before the first."""
    row = db.row("SELECT n FROM sequence WHERE grant_id = ?", _ROWS)
    return 0 if row is None else int(row[0])


def were_begun(db: Database) -> bool:
    """Whether the file was told where numbers begin."""
    return db.row("SELECT 1 FROM sequence WHERE grant_id = ?", _ROWS) is not None


def begin_at(db: Database, gaps: Gaps, marks: Mapping[str, Mark], row_id: int, at_ns: int) -> None:
    """Go on above what an older file may have drawn, and note that it may be lost.

    Args:
        db: The new file, with what could be carried over.
        gaps: In it.
        marks: How far the older one had drawn, per grant.
        row_id: Of the first row: above those of any older file, whose rows may be on their way.
        at_ns: Time of the records of gaps.

    Raises:
        StoreError: The disk refused; nothing changed.
    """
    rows = db.rows("SELECT grant_id, recipient, n FROM sequence WHERE grant_id != ?", _ROWS)
    numbers = {grant_id: Mark(recipient, n) for grant_id, recipient, n in rows}
    for grant_id, mark in marks.items():
        carried = numbers.get(grant_id)
        # What was read of a damaged file counts where it can be true.
        if carried is None or not mark.n - AHEAD <= carried.n <= mark.n:
            numbers[grant_id] = mark
    with db.transaction():
        for grant_id, mark in numbers.items():
            _write(db, grant_id, mark)
        gaps.note_damage(at_ns)
        _write(db, _ROWS, Mark("", row_id - 1))


def _write(db: Database, grant_id: str, mark: Mark) -> None:
    db.rows("INSERT OR REPLACE INTO sequence VALUES (?, ?, ?)", grant_id, mark.n, mark.recipient)
