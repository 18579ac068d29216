"""When a value becomes a sample: the time rule.

Rules (t_last is the time of the last sample, before it is rounded to ms):
 * The first value is taken; after it a value is taken when t - t_last >= interval.
 * on_change: a value equal to the last sample is not taken. A change inside the interval is held;
   the latest one is taken once t_last + interval has come, and carries that time. Back at the last
   sample's value, nothing is held.
 * A value that was dropped before it came here does not start an interval.
 * once: after the first sample there is no second one.
 * The last sample's value is kept only where it is compared with, and no longer than its grant.
 * Where time runs backwards nothing is taken until it passes t_last again.
"""

from agent.core.model import Value

_NEVER_NS = -(1 << 100)  # Before any time: every interval has passed since.
_FOREVER_NS = 1 << 100  # After any time: no interval ever passes.


class Sampler:
    """The state of one granted path. On the capture path: no value object per frame.

    Attributes:
        interval_ns: Shortest time between samples.
        on_change: Equal values are not taken again.
        t_last_ns: Time of the last sample.
        due_ns: When the held value is to be taken; meaningful while `holds`.
        holds: A change waits for its time.
        thinned: How many values the time rule let go.
        thinned_ns: When it last did.
    """

    __slots__ = (
        "_held",
        "_last",
        "due_ns",
        "holds",
        "interval_ns",
        "on_change",
        "once",
        "t_last_ns",
        "thinned",
        "thinned_ns",
    )

    def __init__(self, interval_ns: int, *, on_change: bool, once: bool) -> None:
        self.interval_ns = interval_ns
        self.on_change = on_change
        self.once = once
        self.t_last_ns = _NEVER_NS
        self.due_ns = _FOREVER_NS
        self.holds = False
        self.thinned = 0
        self.thinned_ns: int | None = None
        self._held: Value | None = None
        self._last: Value | None = None

    def finish(self) -> None:
        """Take nothing any more (`once` was used up, perhaps before a restart)."""
        self.t_last_ns = _FOREVER_NS
        self.on_change = False
        self.forget()

    def begin_again(self) -> None:
        """Take back that `once` was used up: the sample was dropped before it left."""
        self.t_last_ns = _NEVER_NS

    def go_on_after(self, before: "Sampler", *, keep_last: bool, keep_held: bool) -> None:
        """Continue another sampler's time rule under this one's interval.

        Args:
            before: The sampler of the same grant and path under the plan before.
            keep_last: The grant did not change, so values are compared with its last sample.
            keep_held: The take did not change, so the change that waits may still be taken.
        """
        self.t_last_ns = before.t_last_ns
        if keep_last and self.on_change:
            self._last = before._last  # noqa: SLF001 - of the same class
        self.thinned, self.thinned_ns = before.thinned, before.thinned_ns
        if before.t_last_ns == _FOREVER_NS:
            # Used up; only a grant that is not `once` any more may begin again.
            if self.once:
                self.finish()
            else:
                self.t_last_ns = _NEVER_NS
        elif keep_held and before.holds:
            self.holds, self._held, self.due_ns = True, before._held, before.due_ns  # noqa: SLF001 - as above

    def forget(self) -> None:
        """Keep times only, no value."""
        self._last = None
        self.drop_held()

    def drop_held(self) -> None:
        """Forget the change that waits for its time."""
        self.holds = False
        self._held = None

    def offer(self, t_ns: int, value: Value) -> bool:
        """Return whether this value is a sample now; a change that comes too early is held.

        Call `release` first when `holds` and `t_ns >= due_ns`.
        """
        if self.on_change and value == self._last:
            if self.holds:
                self.thinned += 1
                self.drop_held()
            self.thinned += 1
            self.thinned_ns = t_ns
            return False
        if t_ns - self.t_last_ns >= self.interval_ns:
            self._taken(t_ns, value)
            return True
        if self.on_change:
            if self.holds:
                self.thinned += 1
                self.thinned_ns = t_ns
            self.due_ns = self.t_last_ns + self.interval_ns
            self.holds = True
            self._held = value
        else:
            self.thinned += 1
            self.thinned_ns = t_ns
        return False

    def release(self) -> Value:
        """Take the held value at `due_ns` and return it."""
        value = self._held
        assert self.holds, "only what is held can be released"
        assert value is not None, "what is held has a value"
        self.drop_held()
        self._taken(self.due_ns, value)
        return value

    def _taken(self, t_ns: int, value: Value) -> None:
        self.t_last_ns = t_ns
        if self.on_change:
            self._last = value
        if self.once:
            self.finish()
