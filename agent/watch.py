"""Which lane stands still, and since when; systemd's watchdog is fed only while all move.

Rules:
 * The watchdog is fed when each lane has moved since it was fed last. A lane that hangs starves
   it, whatever the others do; systemd then ends the process and starts it again.
 * Which lane stands still is in the log and in the status before that end comes, and without a
   watchdog, too.
 * No timer and no thread of its own: the agent lane looks at the others, and the control lane looks
   at the agent lane. Who stood still itself accuses nobody of the time in which it did not look.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from agent.edge.systemd import Unit

# A lane moves at least every 5 s. Four looks in a watchdog's time of 20 s leave room for a lane
# that has just missed one.
LOOKS = 4
LOOK_S = 5.0  # Who looks at others does so at least this often, being a lane itself.
STILL_S = 10.0  # A lane that has not moved for so long stands still: half of the watchdog's time.

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


class Movement:
    """Keeps in mind when each lane moved last. Used by one thread."""

    def __init__(self) -> None:
        self._moved: dict[str, tuple[int, float]] = {}  # Lane -> its moves, and when they changed.
        self._told: set[str] = set()
        self._looked_s: float | None = None

    def look(self, lanes: Sequence[Lane], *, now_s: float) -> None:
        """Find out who has moved, and say who stands still.

        Args:
            lanes: How they are now.
            now_s: Seconds on a clock that only rises, and not while the machine sleeps.
        """
        was_away = self._looked_s is None or now_s - self._looked_s > LOOK_S
        self._looked_s = now_s
        before = {} if was_away else self._moved
        self._moved = {
            lane.name: before[lane.name]
            if before.get(lane.name, (None, 0.0))[0] == lane.moves
            else (lane.moves, now_s)
            for lane in lanes
        }
        still = {lane.name for lane in lanes if self.still_s(lane.name, now_s=now_s) is not None}
        for name in sorted(still - self._told):
            _log.error("lane stands still", extra={"lane": name, "for_s": int(STILL_S)})
        for name in sorted(self._told - still):
            _log.info("lane moves again", extra={"lane": name})
        self._told = still

    def still_s(self, name: str, *, now_s: float) -> float | None:
        """Return for how long a lane has stood still, or None while it moves.

        Args:
            name: The lane's.
            now_s: As in `look`.
        """
        for_s = now_s - self._moved.get(name, (0, now_s))[1]
        return for_s if for_s >= STILL_S else None


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

    def look(self, lanes: Sequence[Lane], *, now_s: float) -> None:
        """Feed the watchdog if it is time to and every lane has moved.

        Args:
            lanes: How they are now.
            now_s: On the clock of the constructor.
        """
        limit_s = self._unit.watchdog_s
        if limit_s is None or now_s - self._fed_s < limit_s / LOOKS:
            return
        all_moved = all(self._moves.get(lane.name) != lane.moves for lane in lanes)
        if all_moved and self._unit.feed():
            self._fed_s = now_s
            self._moves = {lane.name: lane.moves for lane in lanes}
