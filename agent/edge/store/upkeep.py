"""What the file of the spool needs from time to time: an empty log, the reserve, its own end.

Rules:
 * Traces of what was delivered or gave way, under a consent that lives, are gone within a minute:
   to empty the log after each envelope would cost three more waits for the disk than the envelope.
 * A file in which nothing waits any more gives its pages back to the disk.
 * What the reserve has lost on a full disk is kept again as soon as there is room.
"""

from agent.core.model import NS_PER_S
from agent.edge.store.database import Database
from agent.edge.store.directory import StateDirectory

TURN_NS = 60 * NS_PER_S
SHRINK_BYTES = 4 << 20  # A file with less to give back is left as it is.


class Upkeep:
    """Looks after one file.

    Attributes:
        has_traces: Something was erased whose traces are still in the log.
    """

    def __init__(self, db: Database, directory: StateDirectory) -> None:
        self._db = db
        self._directory = directory
        self._turned_ns = -TURN_NS
        self.has_traces = False

    def turn(self, now_ns: int, *, is_empty: bool) -> None:
        """Do what is due.

        Args:
            now_ns: ns since the epoch; it may step.
            is_empty: Nothing waits.

        Raises:
            StoreError: SQLite refused.
        """
        self._directory.fill_reserve()
        if 0 <= now_ns - self._turned_ns < TURN_NS:
            return
        self._turned_ns = now_ns
        if self.has_traces:
            self.has_traces = not self._db.scrub()
        if is_empty and self._db.free_bytes() >= SHRINK_BYTES:
            self._db.shrink()
