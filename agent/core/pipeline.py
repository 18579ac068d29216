"""Frames in, closed batches out: gate, decode, transform, sampling.

Rules:
 * The pipeline has no clock: `feed` brings time with each frame, `tick` without one. The daemon and
   `replay` run this very code, so the same frames and plans give the same samples, byte for byte.
 * A frame that the plan does not name changes nothing, not even what time it is.
 * A batch holds one grant. It closes by age or by count, when the plan is swapped and at stop; age
   counts from its first sample, in sample time, so that what is in a batch depends on granted
   samples alone.
 * Swapping the plan hands over the open batches of grants that go on, and drops those of grants
   that ended or changed. The time rule goes on over a swap: a new policy is no reason to take a
   sample early.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet

from agent.core.model import NS_PER_MS, NS_PER_S, Batch, Column, Frame, Value
from agent.core.plan import Plan, Take, Tap, empty_plan
from agent.core.sampling import Sampler
from agent.core.transform import Drop

DEFAULT_MAX_AGE_NS = 60 * NS_PER_S
DEFAULT_MAX_SAMPLES = 50_000  # About 10 MB of Python values; a dense bus at full rate in a minute.
_GATE_CACHE = (
    8192  # Ids whose answer is kept per bus; babbling ids beyond it are looked up each time.
)

OnSample = Callable[[Take, int, Value], None]


class _Track:
    """The state of one take: its sampler, its share of the open batch and what was dropped."""

    __slots__ = (
        *("batch", "drops", "index", "queued_ns", "sampler"),
        *("take", "taken", "times_ms", "values"),
    )

    def __init__(self, take: Take, batch: "_OpenBatch", index: int) -> None:
        self.take = take
        self.index = index
        self.batch = batch
        self.sampler = Sampler(take.interval_ns, on_change=take.on_change, once=take.once)
        self.queued_ns: int | None = None  # When the pipeline will look for what is held.
        self.times_ms: list[int] = []
        self.values: list[Value] = []
        self.taken = 0
        self.drops: Counter[Drop] = Counter()

    def rest(self) -> None:
        """Forget every value but the last sample's, and keep the time rule's state."""
        self.batch = _OpenBatch()
        self.times_ms = []
        self.values = []
        self.sampler.drop_held()


class _OpenBatch:
    """The open batch of one grant; its samples lie in the tracks."""

    __slots__ = ("closes_ns", "count", "tracks")

    def __init__(self) -> None:
        self.tracks: list[_Track] = []
        self.count = 0
        self.closes_ns = 0


class Pipeline:
    """The gate and what follows it, for one vehicle. Used by one thread at a time."""

    def __init__(
        self,
        plan: Plan | None = None,
        *,
        max_age_ns: int = DEFAULT_MAX_AGE_NS,
        max_samples: int = DEFAULT_MAX_SAMPLES,
        once_taken: AbstractSet[tuple[str, str]] = frozenset(),
        on_sample: OnSample | None = None,
    ) -> None:
        """Start with a plan.

        Args:
            plan: What may be taken; None: nothing.
            max_age_ns: A batch closes when a sample or a tick is this much later than its first
                sample.
            max_samples: A batch closes at this many samples.
            once_taken: (grant id, path) of `once` paths that were taken before this pipeline began.
            on_sample: Called for each sample with the take, its time in ns before it is rounded to
                ms, and the value.
        """
        self._max_age_ns = max_age_ns
        self._max_samples = max_samples
        self._once_taken = set(once_taken)
        self._on_sample = on_sample
        self._tracks: dict[tuple[str, str], _Track] = {}
        # Tracks that no plan names at the moment: who comes back (after a pause, or in a log whose
        # time runs backwards) must not begin anew and take a sample early.
        self._rested: dict[tuple[str, str], _Track] = {}
        self._batches: dict[str, _OpenBatch] = {}
        self._closed: list[Batch] = []
        # Heap of (due, index of the take, order of entry, track): what is due at the same moment
        # is taken in the order of the policy, as what comes in one frame is.
        self._waiting: list[tuple[int, int, int, _Track]] = []
        self._order = 0
        self._gate: dict[str, dict[int, list[tuple[Tap, list[_Track]]] | None]] = {}
        self._plan = empty_plan()
        self.swap(plan or self._plan)

    @property
    def plan(self) -> Plan:
        """The plan in force."""
        return self._plan

    def swap(self, plan: Plan) -> None:
        """Put another plan in force, between two frames."""
        kept = {(grant.grant_id, grant.rev) for grant in plan.live}
        for batch in self._batches.values():
            take = batch.tracks[0].take
            if (take.grant_id, take.rev) in kept:
                self._close(batch)
        before, self._tracks, self._batches = self._rested | self._tracks, {}, {}
        self._waiting, self._gate, self._plan = [], {}, plan
        for index, take in enumerate(plan.takes):
            batch = self._batches.setdefault(take.grant_id, _OpenBatch())
            track = _Track(take, batch, index)
            batch.tracks.append(track)
            self._tracks[take.grant_id, take.path] = track
            old = before.pop((take.grant_id, take.path), None)
            if old is not None:
                self._go_on(track, old)
            elif take.once and (take.grant_id, take.path) in self._once_taken:
                track.sampler.finish()
        for track in before.values():
            track.rest()
        self._rested = before

    def feed(self, frames: Iterable[Frame]) -> None:
        """Take what the plan allows from these frames.

        Hot path: at most 0.5 µs for a frame that nobody may have (`make bench` prints it), so no
        object, call or queue per frame before the gate says yes.

        Args:
            frames: (t_ns, bus, can_id, data), see `agent.core.model`.
        """
        gate = self._gate
        from_ns, until_ns = self._plan.from_ns, self._plan.until_ns
        for t_ns, bus, can_id, data in frames:
            try:
                taps = gate[bus][can_id]
            except KeyError:
                taps = self._look_up(bus, can_id)
            if taps is None or not from_ns <= t_ns < until_ns:
                continue
            if self._waiting and t_ns >= self._waiting[0][0]:
                self._release(t_ns)
            for tap, tracks in taps:
                self._pick(tap, tracks, t_ns, data)

    def tick(self, t_ns: int) -> None:
        """Take the held changes whose time has come, and close the batches that are old enough."""
        self._release(min(t_ns, self._plan.until_ns - 1))
        for batch in self._batches.values():
            if batch.count and t_ns >= batch.closes_ns:
                self._close(batch)

    def stop(self) -> None:
        """Close every open batch; what is held and not due yet is let go."""
        for batch in self._batches.values():
            self._close(batch)

    def drain(self) -> list[Batch]:
        """Return the batches that were closed since the last call, oldest first."""
        closed, self._closed = self._closed, []
        return closed

    def counts(self) -> dict[tuple[str, str], "TakeCounts"]:
        """Return (grant id, path) -> what became of the values so far; it stays on the board."""
        return {
            key: TakeCounts(track.taken, track.sampler.thinned, dict(track.drops))
            for key, track in self._tracks.items()
        }

    def _look_up(self, bus: str, can_id: int) -> list[tuple[Tap, list[_Track]]] | None:
        """Answer for an id that was not seen before under this plan, and remember the answer."""
        taps = self._plan.taps(bus, can_id)
        made = [
            (tap, [self._tracks[p.take.grant_id, p.take.path] for p in tap.picks]) for tap in taps
        ]
        known = self._gate.setdefault(bus, {})
        if len(known) < _GATE_CACHE:
            known[can_id] = made or None
        return made or None

    def _pick(self, tap: Tap, tracks: list[_Track], t_ns: int, data: bytes) -> None:
        raws: tuple[int | float | None, ...] | None = None
        for pick, track in zip(tap.picks, tracks, strict=True):
            sampler = track.sampler
            if not sampler.on_change and t_ns - sampler.t_last_ns < sampler.interval_ns:
                sampler.thinned += 1
                continue
            if raws is None:
                raws = tap.extract(data)
            raw = raws[pick.index]
            if raw is None:
                continue
            if pick.conditions and not _meets(pick.conditions, raws):
                continue
            value = pick.transform(raw)
            if isinstance(value, Drop):
                track.drops[value] += 1
                continue
            held = sampler.holds
            if sampler.offer(t_ns, value):
                self._append(track, t_ns, value)
            elif sampler.holds and not held:
                self._wait(track)

    def _append(self, track: _Track, t_ns: int, value: Value) -> None:
        batch = track.batch
        if batch.count == 0:
            batch.closes_ns = t_ns + self._max_age_ns
        elif t_ns >= batch.closes_ns or batch.count >= self._max_samples:
            self._close(batch)
            batch.closes_ns = t_ns + self._max_age_ns
        batch.count += 1
        track.taken += 1
        track.times_ms.append(t_ns // NS_PER_MS)
        track.values.append(value)
        if track.take.once:
            self._once_taken.add((track.take.grant_id, track.take.path))
        if self._on_sample is not None:
            self._on_sample(track.take, t_ns, value)

    def _wait(self, track: _Track) -> None:
        # A signal that flickers in a long interval is held again and again for the same moment.
        if track.queued_ns == track.sampler.due_ns:
            return
        track.queued_ns = track.sampler.due_ns
        self._order += 1
        heapq.heappush(self._waiting, (track.sampler.due_ns, track.index, self._order, track))

    def _release(self, t_ns: int) -> None:
        """Take every held change that is due at `t_ns`, in the order of their times."""
        while self._waiting and self._waiting[0][0] <= t_ns:
            due_ns, _, _, track = heapq.heappop(self._waiting)
            sampler = track.sampler
            track.queued_ns = None
            # What went back to the last sample's value is not held any more.
            if sampler.holds and sampler.due_ns == due_ns:
                self._append(track, due_ns, sampler.release())

    def _close(self, batch: _OpenBatch) -> None:
        if batch.count == 0:
            return
        first = batch.tracks[0].take
        columns = tuple(
            Column(
                scope=track.take.scope,
                path=track.take.path,
                datatype=track.take.datatype,
                unit=track.take.unit,
                scale=track.take.scale,
                offset=track.take.offset,
                times_ms=tuple(track.times_ms),
                values=tuple(track.values),
            )
            for track in batch.tracks
            if track.values
        )
        self._closed.append(Batch(first.grant_id, first.rev, first.recipient, columns))
        batch.count = 0
        for track in batch.tracks:
            track.times_ms.clear()
            track.values.clear()

    def _go_on(self, track: _Track, old: _Track) -> None:
        """Carry the time rule over to the new plan's take of the same grant and path."""
        sampler, before = track.sampler, old.sampler
        track.taken, track.drops = old.taken, old.drops
        sampler.go_on_after(before, keep_held=old.take == track.take)
        if sampler.holds:
            self._wait(track)


class TakeCounts:
    """What became of the values of one take."""

    __slots__ = ("drops", "taken", "thinned")

    def __init__(self, taken: int, thinned: int, drops: dict[Drop, int]) -> None:
        self.taken = taken
        self.thinned = thinned
        self.drops = drops


def _meets(
    conditions: tuple[tuple[int, int | float, int | float, int], ...],
    raws: tuple[int | float | None, ...],
) -> bool:
    for index, scale, offset, wanted in conditions:
        raw = raws[index]
        if raw is None or raw * scale + offset != wanted:
            return False
    return True
