"""Frames in, closed batches out: gate, decode, transform, sampling.

Rules:
 * The pipeline has no clock: `feed` brings time with each frame, `tick` without one. The daemon and
   `replay` run this very code, so the same frames and plans give the same samples, byte for byte.
 * A frame that the plan does not name changes nothing, not even what time it is.
 * A frame of a transport protocol changes nothing by itself either: the message that it completes
   counts as a frame of that moment.
 * What enters the window of an aggregate is no sample. A window gives its samples when a granted
   frame or a tick shows that it is over, and at stop what it holds by then.
 * A batch holds one grant. It closes by age or by count, when the plan is swapped and at stop. All
   that close by age do so at the same moments, in sample time, `max_age_ns` apart and given
   beforehand, so that what is in a batch depends on granted samples alone.
 * Swapping the plan hands over the open batches of grants that go on, and what their windows hold
   where the plan gives the path no more; it drops those of grants that ended or changed, and every
   value of theirs. The time rule goes on over a swap: a new policy is no reason to take a sample
   early.
"""

import hashlib
import heapq
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from itertools import groupby

from agent.core.decode import Raw
from agent.core.isotp import IsoTpReassembly
from agent.core.j1939tp import J1939Reassembly
from agent.core.joint import Joints
from agent.core.model import NS_PER_MS, NS_PER_S, Batch, Frame, Value
from agent.core.plan import Plan, Take, Tap, empty_plan
from agent.core.track import OpenBatch, Share, TakeCounts, Track
from agent.core.transform import Drop

__all__ = ["DEFAULT_MAX_AGE_NS", "DEFAULT_MAX_SAMPLES", "OnSample", "Pipeline", "TakeCounts"]

DEFAULT_MAX_AGE_NS = 60 * NS_PER_S
DEFAULT_MAX_SAMPLES = 50_000  # About 10 MB of Python values; a dense bus at full rate in a minute.
NEVER_NS = 1 << 100  # After any time.
_GATE_CACHE = (
    8192  # Ids whose answer is kept per bus; babbling ids beyond it are looked up each time.
)

_Taps = list[tuple[Tap, list[Track]]]
OnSample = Callable[[Take, int, Value], None]


class Pipeline:
    """The gate and what follows it, for one vehicle. Used by one thread at a time."""

    def __init__(  # noqa: PLR0913 - settings, by keyword
        self,
        plan: Plan | None = None,
        *,
        max_age_ns: int = DEFAULT_MAX_AGE_NS,
        phase_ns: int = 0,
        max_samples: int = DEFAULT_MAX_SAMPLES,
        once_taken: AbstractSet[tuple[str, str]] = frozenset(),
        on_sample: OnSample | None = None,
    ) -> None:
        """Start with a plan.

        Args:
            plan: What may be taken; None: nothing.
            max_age_ns: Batches close when a sample or a tick reaches a multiple of this.
            phase_ns: How much later than that; what tells vehicles apart keeps a fleet from sending
                at once.
            max_samples: A batch closes at this many samples.
            once_taken: (grant id, path) of `once` paths that were taken before this pipeline began.
            on_sample: Called for each sample with the take, its time in ns before it is rounded to
                ms, and the value; of an aggregate's window with its start.
        """
        self._max_age_ns = max(1, max_age_ns)
        self._closed_ns = -NEVER_NS  # When batches closed by age last.
        self._phase_ns = phase_ns
        self._max_samples = max_samples
        self._once_taken = set(once_taken)
        self._on_sample = on_sample
        self._tracks: dict[tuple[str, str], Track] = {}
        # Tracks that no plan names at the moment: who comes back (after a pause, or in a log whose
        # time runs backwards) must not begin anew and take a sample early.
        self._rested: dict[tuple[str, str], Track] = {}
        self._batches: dict[str, OpenBatch] = {}
        self._closed: list[Batch] = []
        # Heap of (due, index of the take, order of entry, track): what is due at the same moment
        # is taken in the order of the policy, as what comes in one frame is.
        self._waiting: list[tuple[int, int, int, Track]] = []
        self._order = 0
        self._gate: dict[str, dict[int, _Taps | _Joint | None]] = {}
        self._joints = Joints()
        self._plan = empty_plan()
        self.swap(plan or self._plan)

    @property
    def plan(self) -> Plan:
        """The plan in force."""
        return self._plan

    @property
    def given_up(self) -> int:
        """Messages of transport protocols that could not be put together; it stays on the board."""
        return self._joints.given_up

    @property
    def has_closed(self) -> bool:
        """Whether `drain` would return anything."""
        return bool(self._closed)

    @property
    def is_open(self) -> bool:
        """Whether what was fed may still give something: samples, held changes, open windows."""
        return self.is_waiting or any(batch.count for batch in self._batches.values())

    @property
    def closes_ns(self) -> int:
        """When the open batches close by age; `NEVER_NS` where none is open."""
        return min((b.closes_ns for b in self._batches.values() if b.count), default=NEVER_NS)

    @property
    def is_waiting(self) -> bool:
        """Whether something may be due at a later moment, a held change or a window's end."""
        return bool(self._waiting)

    def swap(self, plan: Plan) -> None:
        """Put another plan in force, between two frames."""
        live = {(grant.grant_id, grant.rev) for grant in plan.live}
        wanted = {
            key: tuple(takes) for key, takes in groupby(plan.takes, lambda t: (t.grant_id, t.path))
        }
        self._settle(live, wanted)
        before, self._tracks, self._batches = self._rested | self._tracks, {}, {}
        self._waiting, self._gate, self._plan = [], {}, plan
        self._joints.swap(plan)
        for index, (key, takes) in enumerate(wanted.items()):
            batch = self._batches.setdefault(takes[0].grant_id, OpenBatch())
            track = Track(takes, batch, index)
            batch.tracks.append(track)
            self._tracks[key] = track
            if (old := before.pop(key, None)) is not None:
                track.go_on_after(old)
                if track.sampler.holds:
                    self._wait(track, track.sampler.due_ns)
                elif track.window is not None and track.window.is_open:
                    self._wait(track, track.window.end_ns)
            elif takes[0].once and key in self._once_taken:
                track.sampler.finish()
        self._rested = {
            key: track
            for key, track in before.items()
            if plan.lasting is None or key[0] in plan.lasting
        }
        for track in self._rested.values():
            track.rest(keep_last=track.grant in live)

    def _settle(
        self,
        live: AbstractSet[tuple[str, int]],
        wanted: Mapping[tuple[str, str], tuple[Take, ...]],
    ) -> None:
        """Close the open batches of live grants, with what windows hold that do not go on."""
        for track in self._tracks.values():
            if track.grant in live and wanted.get(track.key) != track.takes:
                self._send_window(track)
        for batch in self._batches.values():
            if batch.tracks[0].grant in live:
                self._close(batch)
            else:
                self._drop(batch)

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
            if isinstance(taps, _Joint):
                self._join(taps, t_ns, bus, can_id, data)
                continue
            if self._waiting and t_ns >= self._waiting[0][0]:
                self._release(t_ns)
            for tap, tracks in taps:
                self._pick(tap, tracks, t_ns, data)

    def tick(self, t_ns: int) -> None:
        """Take what is due, held changes and windows, and close the batches that are old enough."""
        self._release(min(t_ns, self._plan.until_ns - 1))
        for batch in self._batches.values():
            if batch.count and t_ns >= batch.closes_ns:
                self._closed_ns = batch.closes_ns
                self._close(batch)

    def close_at(self, closes_ns: int) -> None:
        """Take what is due before a moment at which batches close by age, and close them."""
        self._release(min(closes_ns, self._plan.until_ns) - 1)
        self._closed_ns = closes_ns
        self.close()

    def next_close_ns(self, t_ns: int) -> int:
        """Return when a batch closes by age whose first sample comes at `t_ns`.

        What comes a little late, from a bus that lags behind, waits with what comes now.
        """
        if 0 < self._closed_ns - t_ns <= self._max_age_ns:
            t_ns = self._closed_ns
        return t_ns + self._max_age_ns - (t_ns - self._phase_ns) % self._max_age_ns

    def stop(self) -> None:
        """Send what open windows hold and close every batch; what is held and not due is let go."""
        for track in self._tracks.values():
            self._send_window(track)
        self.close()

    def close(self) -> None:
        """Close every open batch; windows stay open."""
        for batch in self._batches.values():
            self._close(batch)

    def drain(self) -> list[Batch]:
        """Return the batches that were closed since the last call, oldest first."""
        closed, self._closed = self._closed, []
        return closed

    def counts(self) -> dict[tuple[str, str], "TakeCounts"]:
        """Return (grant id, path) -> what became of the values so far; it stays on the board.

        Paths that the plan gives no more are among them, as long as their grant may come back.
        """
        return {key: track.counts() for key, track in (self._rested | self._tracks).items()}

    def _look_up(self, bus: str, can_id: int) -> "_Taps | _Joint | None":
        """Answer for an id that was not seen before under this plan, and remember the answer."""
        taps = self._plan.taps(bus, can_id)
        parts = self._joints.split(bus, can_id, taps)
        made: _Taps | _Joint = self._with_tracks(parts.plain)
        if parts.isotp or parts.j1939 is not None:
            isotp = [(line, self._with_tracks((tap,))) for line, tap in parts.isotp]
            made = _Joint(self._with_tracks(parts.plain), isotp, parts.j1939)
        known = self._gate.setdefault(bus, {})
        if len(known) < _GATE_CACHE:
            known[can_id] = made or None
        return made or None

    def _with_tracks(self, taps: Iterable[Tap]) -> "_Taps":
        return [
            (tap, [self._tracks[p.take.grant_id, p.take.path] for p in tap.picks]) for tap in taps
        ]

    def _join(self, joint: "_Joint", t_ns: int, bus: str, can_id: int, data: bytes) -> None:
        """Take from a frame that may be a part of a message, and from the message it completes."""
        if joint.plain:
            self._take(joint.plain, t_ns, data)
        for line, taps in joint.isotp:
            message = line.feed(t_ns, data)
            if message is not None:
                self._take(taps, t_ns, message)
        if joint.j1939 is not None:
            whole = joint.j1939.feed(t_ns, can_id, data)
            if whole is not None:
                found = self._look_up(bus, whole[0])
                if isinstance(found, list):
                    self._take(found, t_ns, whole[1])

    def _take(self, taps: "_Taps", t_ns: int, data: bytes) -> None:
        if self._waiting and t_ns >= self._waiting[0][0]:
            self._release(t_ns)
        for tap, tracks in taps:
            self._pick(tap, tracks, t_ns, data)

    def _pick(self, tap: Tap, tracks: list[Track], t_ns: int, data: bytes) -> None:
        raws: tuple[Raw, ...] | None = None
        for pick, track in zip(tap.picks, tracks, strict=True):
            sampler = track.sampler
            if not sampler.on_change and t_ns - sampler.t_last_ns < sampler.interval_ns:
                sampler.thinned += 1
                sampler.thinned_ns = t_ns
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
                self._count_drop(track, t_ns, value)
                continue
            held = sampler.holds
            if sampler.offer(t_ns, value):
                if track.window is None:
                    self._append(track, track.share, t_ns, t_ns, value)
                else:
                    self._enter(track, t_ns, value)
            elif sampler.holds and not held:
                self._wait(track, sampler.due_ns)

    def _count_drop(self, track: Track, t_ns: int, reason: Drop) -> None:
        track.drops[reason] += 1
        track.dropped_ns, track.dropped_for = t_ns, reason

    def _append(self, track: Track, share: Share, now_ns: int, t_ns: int, value: Value) -> None:
        """Take a sample that came at `now_ns` and carries the time `t_ns`."""
        batch = track.batch
        if batch.count == 0:
            batch.closes_ns = self.next_close_ns(now_ns)
        elif now_ns >= batch.closes_ns or batch.count >= self._max_samples:
            if now_ns >= batch.closes_ns:
                self._closed_ns = batch.closes_ns
            self._close(batch)
            batch.closes_ns = self.next_close_ns(now_ns)
        batch.count += 1
        track.taken += 1
        track.sampled_ns = now_ns
        share.times_ms.append(t_ns // NS_PER_MS)
        share.values.append(value)
        if share.take.once:
            self._once_taken.add(track.key)
        if self._on_sample is not None:
            self._on_sample(share.take, t_ns, value)

    def _enter(self, track: Track, t_ns: int, value: Value) -> None:
        """Take a value into the open window; one that is over was sent before, by `_release`."""
        window = track.window
        assert window is not None, "only an aggregate has windows"
        window.enter(t_ns, value)
        track.sampler.thinned += 1
        self._wait(track, window.end_ns)

    def _send_window(self, track: Track, now_ns: int | None = None) -> None:
        """Take what the open window holds, if there is one, as samples, and begin anew.

        Args:
            track: Of an aggregate, or of any other path.
            now_ns: The window's end, when it has come; None where its batch closes right behind.
                Never when a value came: not even which batch a sample is in may tell that.
        """
        window = track.window
        if window is None or not window.is_open:
            return
        for share in track.shares:
            assert share.take.fn is not None, "each take of an aggregate is one function"
            value = window.result(share.take.fn)
            if isinstance(value, Drop):
                self._count_drop(track, window.start_ns, value)
            else:
                came_ns = window.start_ns if now_ns is None else now_ns
                self._append(track, share, came_ns, window.start_ns, value)
        window.clear()

    def _wait(self, track: Track, due_ns: int) -> None:
        # What flickers in a long interval is held again and again for the same moment, and many
        # values enter one window.
        if track.queued_ns == due_ns:
            return
        track.queued_ns = due_ns
        self._order += 1
        heapq.heappush(self._waiting, (due_ns, track.index, self._order, track))

    def _release(self, t_ns: int) -> None:
        """Take what is due at `t_ns`, held changes and windows, in the order of their times."""
        while self._waiting and self._waiting[0][0] <= t_ns:
            due_ns, _, _, track = heapq.heappop(self._waiting)
            sampler = track.sampler
            track.queued_ns = None
            if track.window is not None:
                if track.window.end_ns == due_ns:
                    self._send_window(track, due_ns)
            # What went back to the last sample's value is not held any more.
            elif sampler.holds and sampler.due_ns == due_ns:
                self._append(track, track.share, due_ns, due_ns, sampler.release())

    def _close(self, batch: OpenBatch) -> None:
        if batch.count == 0:
            return
        first = batch.tracks[0].takes[0]
        shares = [share for track in batch.tracks for share in track.shares]
        columns = tuple(share.column() for share in shares if share.values)
        self._closed.append(Batch(first.grant_id, first.rev, first.recipient, columns))
        self._empty(batch)

    def _drop(self, batch: OpenBatch) -> None:
        """Let the open batch of a grant go that ended or changed; what was in it was never sent."""
        for track in batch.tracks:
            if track.takes[0].once and track.share.values:
                self._once_taken.discard(track.key)
                track.sampler.begin_again()
        self._empty(batch)

    def _empty(self, batch: OpenBatch) -> None:
        batch.count = 0
        for track in batch.tracks:
            for share in track.shares:
                share.clear()


class _Joint:
    """The gate's answer for an identifier whose frames are, or may be, parts of messages."""

    __slots__ = ("isotp", "j1939", "plain")

    def __init__(
        self,
        plain: _Taps,
        isotp: list[tuple[IsoTpReassembly, _Taps]],
        j1939: J1939Reassembly | None,
    ) -> None:
        self.plain = plain
        self.isotp = isotp
        self.j1939 = j1939


def phase_ns(vehicle: str, max_age_ns: int) -> int:
    """Return when a vehicle's batches close: each at another moment, so that a fleet is spread.

    Args:
        vehicle: Its pseudonym.
        max_age_ns: As a pipeline has it.

    Returns:
        ns after a multiple of `max_age_ns`.
    """
    return int.from_bytes(hashlib.sha256(vehicle.encode()).digest()) % max(1, max_age_ns)


def _meets(
    conditions: tuple[tuple[int, int | float, int | float, int], ...],
    raws: tuple[Raw, ...],
) -> bool:
    for index, scale, offset, wanted in conditions:
        raw = raws[index]
        if raw is None or isinstance(raw, bytes) or raw * scale + offset != wanted:
            return False
    return True
