"""What people at the vehicle have stopped: by command, for a time or until lifted, and by a switch.

Rules:
 * A stop is lifted at the vehicle only, or ends by itself after the time it was set for. That time
   is counted while the board runs, so it may last longer than asked for, never shorter.
 * Who may stop cannot lift, by a shorter stop, a longer one that only others may lift.
 * The privacy switch is a stop of every grant that is not kept on disk: the switch itself is asked
   again at the next start.
"""

from collections.abc import Set as AbstractSet
from dataclasses import replace

from agent.core.clock import Moment
from agent.core.model import NS_PER_S
from agent.core.standing import EVERY_GRANT
from agent.core.status import StopStatus
from agent.edge.store import LocalStop, Store


class Stops:
    """The stops that hold, on disk and in time. Used by the agent thread only."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ends_ns: dict[str, int] = {}  # On CLOCK_BOOTTIME, of the stops that end.
        self._private_since_ns: int | None = None

    @property
    def is_private(self) -> bool:
        """Whether the privacy switch holds everything."""
        return self._private_since_ns is not None

    @property
    def grants(self) -> AbstractSet[str]:
        """What is stopped: grant ids, EVERY_GRANT for all of them."""
        stopped = {stop.grant_id for stop in self._store.local_stops()}
        return frozenset(stopped | {EVERY_GRANT} if self.is_private else stopped)

    def restore(self, now: Moment) -> None:
        """Let the stops on disk go on for as long as they had left."""
        for stop in self._store.local_stops():
            if stop.left_ns is not None:
                self._ends_ns[stop.grant_id] = now.boot_ns + stop.left_ns

    def hold(self, grant_id: str, *, who: str, for_ns: int | None, now: Moment) -> None:
        """Stop a grant, or EVERY_GRANT; a stop that holds is never shortened.

        Args:
            grant_id: May name a grant that is not there yet.
            who: For the ledger: `uid 1000`.
            for_ns: How long, counted while the board runs; None: until `lift`.
            now: When it was asked for.

        Raises:
            StoreError: It could not be written; it does not hold.
        """
        if any(stop.grant_id == grant_id for stop in self._store.local_stops()):
            end_ns = self._ends_ns.get(grant_id)
            for_ns = None if end_ns is None or for_ns is None else max(for_ns, end_ns - now.boot_ns)
        self._store.keep_local_stop(LocalStop(grant_id, who, now.now_ns, for_ns))
        if for_ns is None:
            self._ends_ns.pop(grant_id, None)
        else:
            self._ends_ns[grant_id] = now.boot_ns + for_ns

    def lift(self, grant_id: str) -> bool:
        """Lift the stop of a grant, or the one of EVERY_GRANT; False where there was none.

        Raises:
            StoreError: It could not be written; the stop holds.
        """
        was_held = self._store.lift_local_stop(grant_id)
        self._ends_ns.pop(grant_id, None)
        return was_held

    def switch(self, now: Moment, *, is_private: bool) -> None:
        """Follow the vehicle's privacy switch."""
        if is_private != self.is_private:
            self._private_since_ns = now.now_ns if is_private else None

    def take_over(self, before: "Stops") -> None:
        """Go on under the privacy switch as these did; what is on disk needs no taking over."""
        self._private_since_ns = before._private_since_ns  # noqa: SLF001 - our own kind

    def is_due(self, now: Moment) -> bool:
        """Whether a stop has lasted for its time."""
        return any(end_ns <= now.boot_ns for end_ns in self._ends_ns.values())

    def end(self, now: Moment) -> tuple[str, ...]:
        """Lift the stops that have lasted for their time, and return what they had stopped."""
        over = tuple(grant_id for grant_id, end in self._ends_ns.items() if end <= now.boot_ns)
        for grant_id in over:
            self.lift(grant_id)
        return over

    def keep(self, now: Moment) -> None:
        """Write to disk how long each stop still has."""
        for stop in self._store.local_stops():
            end_ns = self._ends_ns.get(stop.grant_id)
            if end_ns is not None:
                left_ns = max(0, end_ns - now.boot_ns)
                self._store.keep_local_stop(replace(stop, left_ns=left_ns))

    def status(self, now: Moment) -> tuple[StopStatus, ...]:
        """Return the stops that hold, as they are told."""
        found = []
        for stop in self._store.local_stops():
            end_ns = self._ends_ns.get(stop.grant_id)
            # Rounded up, so that two hours are told as two hours at first.
            left_s = None if end_ns is None else -(min(0, now.boot_ns - end_ns) // NS_PER_S)
            found.append(StopStatus(stop.grant_id, stop.who, stop.since_ns // NS_PER_S, left_s))
        if self._private_since_ns is not None:
            since_s = self._private_since_ns // NS_PER_S
            found.append(StopStatus(EVERY_GRANT, "switch", since_s, None))
        return tuple(found)
