"""Envelopes that the disk refused, until their gap can be noted.

Rules:
 * They have no numbers. Those are drawn with the gap: before the grant's next envelope, in its
   transaction, or by themselves as soon as the disk has room for that.
 * They are kept in memory alone: what a crash forgets had no number, so no number is missing.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from agent.edge.store import numbers
from agent.edge.store.database import Database
from agent.edge.store.gaps import Gaps
from agent.edge.store.value import NewEnvelope


@dataclass(frozen=True, slots=True)
class _Refused:
    """What was refused of one grant.

    Attributes:
        recipient: Of the last.
        envelopes: How many.
        at_ns: When the last of them was made.
    """

    recipient: str
    envelopes: int
    at_ns: int


class Unstored:
    """What was refused, per grant."""

    def __init__(self, db: Database, gaps: Gaps) -> None:
        self._db = db
        self._gaps = gaps
        self._refused: dict[str, _Refused] = {}

    def add(self, new: NewEnvelope) -> None:
        """Count an envelope that the disk refused."""
        before = self._refused.get(new.grant_id)
        envelopes = 1 if before is None else before.envelopes + 1
        self._refused[new.grant_id] = _Refused(new.recipient, envelopes, new.created_ns)

    def note(self, grant_id: str) -> None:
        """Note the gap of a grant, if something was refused of it; in a transaction.

        `forget` is to be called once it is on disk.
        """
        refused = self._refused.get(grant_id)
        if refused is not None:
            self._note(grant_id, refused)

    def note_all(self, mark: Callable[[str, str, int], None]) -> None:
        """Note the gap of every grant, each in a transaction.

        Args:
            mark: Called with grant, recipient and highest number before these are on disk.

        Raises:
            StoreError: The disk still has no room; what was not noted is kept.
        """
        for grant_id, refused in self._refused.items():
            with self._db.transaction():
                mark(grant_id, refused.recipient, self._note(grant_id, refused))
            self.forget([grant_id])

    def forget(self, grant_ids: Collection[str]) -> None:
        """Let go what was noted."""
        self._refused = {g: r for g, r in self._refused.items() if g not in grant_ids}

    def keep_only(self, grant_ids: Collection[str]) -> None:
        """Let go what was refused of other grants: they have ended, and no number is missed."""
        self._refused = {g: r for g, r in self._refused.items() if g in grant_ids}

    def _note(self, grant_id: str, refused: _Refused) -> int:
        """Draw the numbers of a grant's envelopes, as a gap; return the last."""
        recipient = refused.recipient
        drawn = [numbers.draw(self._db, grant_id, recipient) for _ in range(refused.envelopes)]
        self._gaps.keep([(grant_id, recipient, drawn[0], drawn[-1])], "evicted", refused.at_ns)
        return drawn[-1]
