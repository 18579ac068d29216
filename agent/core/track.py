"""What a pipeline keeps of one granted path: its time rule, its share of the open batch, counts.

Rules:
 * Of a grant that is not live only times and counts stay, never a value.
 * Counts and times are for a person at the vehicle; they do not leave it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from agent.core.aggregate import Accumulator
from agent.core.model import Column, Value
from agent.core.sampling import Sampler
from agent.core.take import Take
from agent.core.transform import Drop, compile_snap


@dataclass(frozen=True, slots=True)
class TakeCounts:
    """What became of the values of one path under one grant, so far.

    Attributes:
        taken: Samples; of an aggregate every function of a window is one.
        thinned: Values that the time rule let go, or that only entered a window.
        drops: Values that were no measurement or fell to a limit.
        sampled_ns: When the last sample was taken, ns since the epoch.
        thinned_ns: When the time rule last let a value go.
        dropped_ns: When a value was last dropped.
        dropped_for: Why.
    """

    taken: int
    thinned: int
    drops: dict[Drop, int]
    sampled_ns: int | None = None
    thinned_ns: int | None = None
    dropped_ns: int | None = None
    dropped_for: Drop | None = None


class Share:
    """One column of the open batch as it grows.

    Attributes:
        times_ms: Sample times, rounded down to whole ms.
    """

    __slots__ = ("take", "times_ms", "values")

    def __init__(self, take: Take) -> None:
        self.take = take
        self.times_ms: list[int] = []
        self.values: list[Value] = []

    def column(self) -> Column:
        """Return what was collected, as it goes into a batch."""
        take = self.take
        return Column(
            scope=take.scope,
            path=take.path,
            datatype=take.datatype,
            unit=take.unit,
            scale=take.scale,
            offset=take.offset,
            times_ms=tuple(self.times_ms),
            values=tuple(self.values),
            fn=take.fn,
            window_s=take.window_s,
        )

    def clear(self) -> None:
        """Begin the next batch."""
        self.times_ms.clear()
        self.values.clear()


class OpenBatch:
    """The open batch of one grant; its samples lie in the shares of its tracks."""

    __slots__ = ("closes_ns", "count", "tracks")

    def __init__(self) -> None:
        self.tracks: list[Track] = []
        self.count = 0
        self.closes_ns = 0


class Track:
    """One path under one grant. On the capture path: plain attributes, see `Pipeline.feed`.

    Attributes:
        takes: One, or one for each function of an aggregate.
        index: Place of the first take in the plan.
        window: The open window of an aggregate; None where values are samples.
        queued_ns: When the pipeline will look for what is held, or for the window's end.
    """

    __slots__ = (
        *("batch", "dropped_for", "dropped_ns", "drops", "index", "queued_ns", "sampled_ns"),
        *("sampler", "share", "shares", "takes", "taken", "window"),
    )

    def __init__(self, takes: Sequence[Take], batch: OpenBatch, index: int) -> None:
        first = takes[0]
        self.takes = tuple(takes)
        self.index = index
        self.batch = batch
        self.sampler = Sampler(first.interval_ns, on_change=first.on_change, once=first.once)
        self.window: Accumulator | None = None
        if first.window_s is not None:
            snap = compile_snap(grid_deg=first.grid_deg, quantum=first.quantum)
            self.window = Accumulator(first.window_s, snap)
        self.queued_ns: int | None = None
        self.shares = tuple(map(Share, takes))
        self.share = self.shares[0]
        self.taken = 0
        self.drops: Counter[Drop] = Counter()
        self.sampled_ns: int | None = None
        self.dropped_ns: int | None = None
        self.dropped_for: Drop | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Grant id and path."""
        return self.takes[0].grant_id, self.takes[0].path

    @property
    def grant(self) -> tuple[str, int]:
        """Grant id and rev."""
        return self.takes[0].grant_id, self.takes[0].rev

    def go_on_after(self, old: "Track") -> None:
        """Continue under a new plan what another track of this grant and path began."""
        self.taken, self.drops = old.taken, old.drops
        self.sampled_ns = old.sampled_ns
        self.dropped_ns, self.dropped_for = old.dropped_ns, old.dropped_for
        self.sampler.go_on_after(
            old.sampler, keep_last=old.grant == self.grant, keep_held=old.takes == self.takes
        )
        if old.takes == self.takes:
            self.window = old.window

    def rest(self, *, keep_last: bool) -> None:
        """Keep the time rule's state and the counts while no plan names the path.

        Args:
            keep_last: The grant is live, so the last sample is still what values are compared with.
        """
        self.batch = OpenBatch()
        self.shares = tuple(map(Share, self.takes))
        self.share = self.shares[0]
        if self.window is not None:
            self.window.clear()
        if keep_last:
            self.sampler.drop_held()
        else:
            self.sampler.forget()

    def counts(self) -> TakeCounts:
        """Return what became of the values so far."""
        return TakeCounts(
            taken=self.taken,
            thinned=self.sampler.thinned,
            drops=dict(self.drops),
            sampled_ns=self.sampled_ns,
            thinned_ns=self.sampler.thinned_ns,
            dropped_ns=self.dropped_ns,
            dropped_for=self.dropped_for,
        )
