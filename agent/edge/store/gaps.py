"""Gaps: numbers of a grant that will not come, kept until the recipient was told.

Rules:
 * What was noted is written in the transaction that erases the envelopes.
 * Neighbours with one reason become one gap, so that an outage of weeks is one record; one that
   was handed out to be told grows no more.
"""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from agent.edge.store.database import Database
from agent.edge.store.value import GapReason, StoredGap

MANY = 200  # Runs of numbers that are noted one by one.
Note = tuple[str, str, int, int]  # grant id, recipient, first n, last n


@dataclass(frozen=True, slots=True)
class Unstored:
    """Envelopes of a grant that the disk refused, and not even a gap could be noted.

    Attributes:
        envelopes: How many. They have no numbers yet.
        at_ns: When the last of them was refused.
    """

    recipient: str
    envelopes: int
    at_ns: int


def islands(rows: Iterable[tuple[str, str, int]]) -> list[Note]:
    """Return runs of neighbouring numbers among (grant id, recipient, n)."""
    notes: list[Note] = []
    for grant_id, recipient, n in sorted(rows):
        if notes and notes[-1][:2] == (grant_id, recipient) and notes[-1][3] == n - 1:
            notes[-1] = (grant_id, recipient, notes[-1][2], n)
        else:
            notes.append((grant_id, recipient, n, n))
    return notes if len(notes) <= MANY else _hulls(notes)


def _hulls(notes: Sequence[Note]) -> list[Note]:
    """Return one gap per grant: a record for each of thousands would fill the spool again."""
    hulls: dict[tuple[str, str], Note] = {}
    for grant_id, recipient, first, last in notes:
        _, _, begin, end = hulls.get((grant_id, recipient), ("", "", first, last))
        hulls[grant_id, recipient] = (grant_id, recipient, min(begin, first), max(end, last))
    return list(hulls.values())


def keep(
    db: Database, notes: Sequence[Note], why: GapReason, at_ns: int, *, told: AbstractSet[int]
) -> None:
    """Write gaps; in the transaction of what made them.

    Args:
        db: In a transaction.
        notes: What will not come.
        why: Why.
        at_ns: When.
        told: Ids (below zero) of gaps that must not change any more.
    """
    for grant_id, recipient, first, last in notes:
        row = db.row(
            "SELECT gap_id, last_n FROM gap WHERE grant_id = ? AND recipient = ? AND why = ?"
            " ORDER BY gap_id DESC LIMIT 1",
            grant_id,
            recipient,
            why,
        )
        if row is not None and row[1] == first - 1 and -row[0] not in told:
            db.rows("UPDATE gap SET last_n = ? WHERE gap_id = ?", last, row[0])
        else:
            db.rows(
                "INSERT INTO gap (grant_id, recipient, first_n, last_n, why, at_ns)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                *(grant_id, recipient, first, last, why, at_ns),
            )


def note_damage(db: Database, at_ns: int) -> None:
    """Say of every grant whose number could be carried over that all before may be lost."""
    db.rows(
        "INSERT INTO gap (grant_id, recipient, first_n, last_n, why, at_ns)"
        " SELECT grant_id, recipient, 1, n, 'damaged', ? FROM sequence WHERE recipient != ''",
        at_ns,
    )


def stored(db: Database) -> tuple[StoredGap, ...]:
    """Return all gaps, oldest first."""
    rows = db.rows(
        "SELECT -gap_id, grant_id, recipient, first_n, last_n, why, at_ns FROM gap ORDER BY gap_id"
    )
    return tuple(StoredGap(*row) for row in rows)
