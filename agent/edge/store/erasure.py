"""What waits of a grant, erased with its gap in one commit, also on a full disk.

Rules:
 * One gap per recipient: nothing of the grant will wait, whatever lies between.
 * Where there is too little room for the log of one transaction the rows go in pieces before it.
   The first piece brings the gap, so that no number is missing whatever becomes of the others.
"""

from collections.abc import Callable, Sequence

from agent.edge.store.database import Database
from agent.edge.store.gaps import Gaps, Note

PIECE_ROWS = 64  # Rows per transaction on a full disk: each freed page needs room in the log.
Doomed = tuple[str, int]  # grant id, rev


def erase(
    db: Database,
    gaps: Gaps,
    doomed: Sequence[Doomed],
    at_ns: int,
    *,
    delete: Callable[[], None],
) -> None:
    """Note the gaps of grants, and erase their rows.

    Args:
        db: Of the spool.
        gaps: In it.
        doomed: The grants of which nothing stays.
        at_ns: Time of the records of gaps.
        delete: Called in the transaction; deletes the rows, and what goes with them.

    Raises:
        StoreError: The disk refused; nothing changed but what went in pieces.
    """
    notes = [note for grant in doomed for note in _notes(db, grant)]

    def step() -> None:
        with db.transaction():
            gaps.keep(notes, "erased", at_ns)
            delete()

    def in_pieces() -> None:
        for grant in doomed:
            while True:
                with db.transaction():
                    gaps.keep(notes, "erased", at_ns)
                    is_left = _erase_piece(db, grant)
                notes.clear()
                db.truncate_log()
                if not is_left:
                    break

    db.with_reserve(step, first=in_pieces)


def _notes(db: Database, doomed: Doomed) -> list[Note]:
    rows = db.rows(
        "SELECT grant_id, recipient, min(n), max(n) FROM spool"
        " WHERE grant_id = ? AND rev = ? GROUP BY recipient",
        *doomed,
    )
    return [(g, r, first, last) for g, r, first, last in rows]


def _erase_piece(db: Database, doomed: Doomed) -> bool:
    """Erase some rows of a grant; return whether there may be more."""
    gone = db.rows(
        "DELETE FROM spool WHERE row_id IN (SELECT row_id FROM spool"
        " WHERE grant_id = ? AND rev = ? LIMIT ?) RETURNING 1",
        *doomed,
        PIECE_ROWS,
    )
    return len(gone) == PIECE_ROWS
