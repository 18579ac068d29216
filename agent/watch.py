"""Feeds systemd's watchdog, and only while every lane moves.

Rules:
 * The watchdog is fed when each lane has moved since it was fed last. A lane that hangs starves
   it, whatever the others do; systemd then ends the process and starts it again.
 * No timer and no thread of its own: it is looked at from the agent lane, so that lane is watched
   by looking at all.
 * Which lane stands still is in the log before the end comes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from agent.edge.systemd import Unit

# A lane moves at least every 5 s. Four looks in a watchdog's time of 20 s leave room for a lane
# that has just missed one.
LOOKS = 4

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lane:
    """How a lane is at a moment.

    Attributes:
        name: For people.
        is_alive: Whether its thread runs.
        moves: Changes whenever the lane has gone round its loop.
    """

    name: str
    is_alive: bool
    moves: int


class Watch:
    """Keeps in mind how far each lane was when the watchdog was fed last."""

    def __init__(self, unit: Unit, *, now_s: float) -> None:
        """Begin to watch.

        Args:
            unit: Whose watchdog is fed; one without a watchdog is never fed.
            now_s: Seconds on any clock that only rises; `look` takes the same.
        """
        self._unit = unit
        self._fed_s = now_s
        self._moves: dict[str, int] = {}
        self._told = False

    def look(self, lanes: Sequence[Lane], *, now_s: float) -> None:
        """Feed the watchdog if it is time to and every lane has moved.

        Args:
            lanes: How they are now.
            now_s: On the clock of the constructor.
        """
        limit_s = self._unit.watchdog_s
        if limit_s is None or now_s - self._fed_s < limit_s / LOOKS:
            return
        still = [lane.name for lane in lanes if self._moves.get(lane.name) == lane.moves]
        if not still and self._unit.feed():
            self._fed_s, self._told = now_s, False
            self._moves = {lane.name: lane.moves for lane in lanes}
        elif still and not self._told and now_s - self._fed_s > limit_s / 2:
            self._told = True
            _log.error("lane stands still", extra={"lanes": ",".join(still)})
