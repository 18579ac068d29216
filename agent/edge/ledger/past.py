"""The segments before the last one: which may go, and whether they are still what they were.

Rules:
 * The oldest goes first, whole, and one at a time: a clock set wrongly cannot take all at once.
 * The tree does not need them any more. A damaged one stays where it is, as evidence.
"""

from dataclasses import dataclass
from typing import Literal

from agent.edge.ledger.limits import Limits
from agent.edge.ledger.segment import Segment, is_as_it_was


@dataclass(frozen=True, slots=True)
class Leaving:
    """A segment that is to be removed.

    Attributes:
        entries: How many it holds.
    """

    segment: Segment
    entries: int
    reason: Literal["age", "space"]


class Past:
    """All segments in order; the last one is being written."""

    def __init__(self, segments: list[Segment], limits: Limits) -> None:
        """Take over the segments of a ledger that holds."""
        self._segments = segments
        self._limits = limits
        self._looked_at = 0

    @property
    def last(self) -> Segment:
        """The segment that is being written."""
        return self._segments[-1]

    def add(self, segment: Segment) -> None:
        """Take in the segment that is written from now on."""
        self._segments.append(segment)

    def leaving(self, now_s: int, last_bytes: int) -> Leaving | None:
        """Return the oldest segment if its time has come.

        Args:
            now_s: s since the epoch.
            last_bytes: How long the last segment is by now.
        """
        if len(self._segments) < 2:
            return None
        oldest, after = self._segments[:2]
        entries = after.first - oldest.first
        # What follows was begun when the last entry of the oldest was there.
        if after.t_s <= now_s - self._limits.retention_s:
            return Leaving(oldest, entries, "age")
        total_bytes = last_bytes + sum(segment.before_bytes for segment in self._segments[1:])
        if total_bytes > self._limits.total_bytes:
            return Leaving(oldest, entries, "space")
        return None

    def remove_oldest(self) -> None:
        """Remove the oldest segment.

        Raises:
            OSError: The disk refused; it is still there.
        """
        self._segments[0].path.unlink()
        del self._segments[0]
        self._looked_at = max(0, self._looked_at - 1)

    def look_at_next(self) -> tuple[int, int] | None:
        """Read the next of the closed segments; return its first index and entries if damaged.

        Raises:
            OSError: It cannot be read.
        """
        closed = len(self._segments) - 1
        if closed == 0:
            return None
        self._looked_at %= closed
        segment, after = self._segments[self._looked_at : self._looked_at + 2]
        self._looked_at += 1
        if is_as_it_was(segment, after):
            return None
        return segment.first, after.first - segment.first
