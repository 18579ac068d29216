"""What waits of a grant, erased with its gap in one commit, also on a full disk.

Rules:
 * One gap per recipient: nothing of the grant will wait, whatever lies between.
 * Where there is too little room for the log of one transaction the rows go in pieces before it.
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

    db.with_reserve(step, first=lambda: _erase_in_pieces(db, doomed))


def _notes(db: Database, doomed: Doomed) -> list[Note]:
    rows = db.rows(
        "SELECT grant_id, recipient, min(n), max(n) FROM spool"
        " WHERE grant_id = ? AND rev = ? GROUP BY recipient",
        *doomed,
    )
    return [(g, r, first, last) for g, r, first, last in rows]


def _erase_in_pieces(db: Database, doomed: Sequence[Doomed]) -> None:
    for grant_id, rev in doomed:
        while db.rows(
            "DELETE FROM spool WHERE row_id IN (SELECT row_id FROM spool"
            " WHERE grant_id = ? AND rev = ? LIMIT ?) RETURNING 1",
            grant_id,
            rev,
            PIECE_ROWS,
        ):
            db.truncate_log()
