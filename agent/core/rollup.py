"""Events of one kind within a minute, as one event for the ledger.

Rules:
 * What is counted is added up: envelopes, bytes, samples, batches, times. Everything else names
   what it is counted for: events that differ in it stay apart.
 * `first` and `last` are the smallest and the largest number `n` among them.
 * What the list of events does not allow is refused when it is added, not a minute later.
"""

from agent.core.ledgerevent import EVENTS, Event, Fact, check, event
from agent.core.model import NS_PER_S

PERIOD_NS = 60 * NS_PER_S
_SUMMED = frozenset({"envelopes", "bytes", "samples", "batches", "times"})


class RollUp:
    """Counts events until a minute is over."""

    def __init__(self) -> None:
        """Begin with nothing counted."""
        self._since_ns: int | None = None
        self._counts: dict[tuple[str, tuple[tuple[str, Fact], ...]], dict[str, int]] = {}

    def add(self, now_ns: int, name: str, *, n: int | None = None, **facts: int | str) -> None:
        """Count an event.

        Args:
            now_ns: ns since the epoch.
            name: One of EVENTS.
            n: The envelope's number, where the event has `first` and `last`.
            facts: The event's others.

        Raises:
            ValueError: It is not in the list, or has other facts.
        """
        numbers = {} if n is None else {"first": n, "last": n}
        check(name, {**facts, **numbers})
        # `check` has seen to it that they are numbers.
        counted = {fact: int(value) for fact, value in facts.items() if fact in _SUMMED}
        key = (name, tuple(item for item in facts.items() if item[0] not in _SUMMED))
        if self._since_ns is None:
            self._since_ns = now_ns
        before = self._counts.get(key)
        if before is None:
            self._counts[key] = {**counted, **numbers}
            return
        for fact, count in counted.items():
            before[fact] += count
        if n is not None:
            before["first"], before["last"] = min(before["first"], n), max(before["last"], n)

    def is_due(self, now_ns: int) -> bool:
        """Tell whether a minute is over since the first event that is counted."""
        return self._since_ns is not None and abs(now_ns - self._since_ns) >= PERIOD_NS

    def take(self, now_ns: int) -> list[Event]:
        """Return what was counted, and begin anew; in the order of EVENTS, then as it came."""
        order = list(EVENTS)
        kept = sorted(self._counts.items(), key=lambda item: order.index(item[0][0]))
        self._since_ns, self._counts = None, {}
        return [event(now_ns, name, **dict(key), **counts) for (name, key), counts in kept]
