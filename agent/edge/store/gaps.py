"""Gaps: numbers of a grant that will not come, kept until the recipient was told.

Rules:
 * What was noted is written in the transaction that erases the envelopes.
 * Neighbours with one reason become one gap, so that an outage of weeks is one record; one that
   was handed out to be told grows no more.
"""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from agent.edge.store.database import Database
from agent.edge.store.value import GapReason, StoredGap

MANY = 200  # Runs of numbers that are noted one by one.
Note = tuple[str, str, int, int]  # grant id, recipient, first n, last n


class Gaps:
    """The gaps in one file, and which of them were handed out."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._told: set[int] = set()  # Ids of gaps that grow no more.

    def keep(self, notes: Sequence[Note], why: GapReason, at_ns: int) -> None:
        """Write gaps; in the transaction of what made them."""
        for grant_id, recipient, first, last in notes:
            row = self._db.row(
                "SELECT gap_id, last_n FROM gap WHERE grant_id = ? AND recipient = ? AND why = ?"
                " ORDER BY gap_id DESC LIMIT 1",
                grant_id,
                recipient,
                why,
            )
            if row is not None and row[1] == first - 1 and -row[0] not in self._told:
                self._db.rows("UPDATE gap SET last_n = ? WHERE gap_id = ?", last, row[0])
            else:
                self._db.rows(
                    "INSERT INTO gap (grant_id, recipient, first_n, last_n, why, at_ns)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    *(grant_id, recipient, first, last, why, at_ns),
                )

    def note_damage(self, at_ns: int) -> None:
        """Say of every grant whose number could be carried over that all before may be lost."""
        self._db.rows(
            "INSERT INTO gap (grant_id, recipient, first_n, last_n, why, at_ns)"
            " SELECT grant_id, recipient, 1, n, 'damaged', ? FROM sequence WHERE recipient != ''",
            at_ns,
        )

    def hand_out(self, limit: int, *, exclude: AbstractSet[int]) -> tuple[StoredGap, ...]:
        """Return up to `limit` gaps to be told, oldest first.

        Args:
            limit: Most gaps.
            exclude: Ids of gaps that are on their way already.
        """
        rows = self._db.rows(
            "SELECT -gap_id, grant_id, recipient, first_n, last_n, why, at_ns FROM gap"
            " ORDER BY gap_id"
        )
        stored = [StoredGap(*row) for row in rows]
        found = tuple(gap for gap in stored if gap.gap_id not in exclude)[:limit]
        self._told &= {gap.gap_id for gap in stored}
        self._told |= {gap.gap_id for gap in found}
        return found

    def remove(self, gap_ids: Sequence[int]) -> None:
        """Remove gaps that were told, among other ids; in a transaction."""
        marks = ", ".join("?" * len(gap_ids))
        self._db.rows(f"DELETE FROM gap WHERE -gap_id IN ({marks})", *gap_ids)  # noqa: S608 - question marks


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
