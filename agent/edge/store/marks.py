"""How far the numbers of each grant may have been drawn, kept beside the consent.

Rules:
 * The mark of a grant is on disk, in the consent's file, before a number above the last one is
   drawn. It is raised by many at once, so that it costs an append next to nothing.
 * A spool that was lost or cannot be read goes on above the mark: no number is ever drawn twice,
   and the recipient is told that those up to it may be lost.
"""

from collections.abc import Mapping
from dataclasses import replace

from agent.edge.store.database import Database
from agent.edge.store.value import Mark, NewEnvelope

AHEAD = 1024  # Numbers that one write allows.


class Marks:
    """The mark of each grant that ever drew a number, as the consent's file has it."""

    def __init__(self, db: Database) -> None:
        self._db = db
        rows = db.rows("SELECT grant_id, recipient, n FROM mark")
        self._known = {grant_id: Mark(recipient, n) for grant_id, recipient, n in rows}

    @property
    def known(self) -> Mapping[str, Mark]:
        """The marks, by grant id."""
        return dict(self._known)

    def reach(self, grant_id: str, recipient: str, n: int) -> None:
        """Have it on disk that the grant's numbers may have come to n.

        Raises:
            StoreError: The disk refused; n must not be used.
        """
        known = self._known.get(grant_id)
        if known is not None and n <= known.n and recipient == known.recipient:
            return
        mark = Mark(recipient, max(n - 1 + AHEAD, known.n if known else 0))
        self._db.with_reserve(
            lambda: self._db.rows(
                "INSERT OR REPLACE INTO mark VALUES (?, ?, ?)", grant_id, mark.recipient, mark.n
            )
        )
        self._known[grant_id] = mark

    def before(self, new: NewEnvelope) -> NewEnvelope:
        """Return the same, but that no number is sealed with before its mark is on disk."""

        def seal(n: int) -> bytes:
            self.reach(new.grant_id, new.recipient, n)
            return new.seal(n)

        return replace(new, seal=seal)
