"""A recorded log through the daemon's own pipeline, with the log's time as the clock.

Rules:
 * What comes out is exactly what the daemon would seal: the same plan, gate, transform and
   sampling.
 * The clock is the log's: `nbf`, `exp` and windows are held against the time of each frame. What
   needs a live vehicle (floor clock, `offline_s`, `aud`, local stop) does not apply.
 * In a log without absolute time windows are closed: nobody knows when it was recorded.
 * A held change or a window is taken when a granted frame, the end of a grant or the end of the
   log shows that its time has come: it must not matter in what portions the frames are fed. A
   window that is open at the end of the log is taken as the daemon does when it is stopped.
 * Samples come in the order of (t, as taken), t in whole ms.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

from agent.core.binding import Binding
from agent.core.bound import Bound
from agent.core.catalogue import Catalogue
from agent.core.j1939tp import announced
from agent.core.model import NS_PER_MS, Frame, Sample, Value
from agent.core.pipeline import Pipeline, TakeCounts
from agent.core.plan import Plan, Skipped, Take, compile_plan, is_j1939_id, pgn_of
from agent.core.policy import GrantState, Policy
from agent.core.transform import Drop


@dataclass(frozen=True, slots=True)
class PathReport:
    """What became of one path under one grant, or without any.

    Attributes:
        grant_id: None where no grant covers the path.
        frames: Frames of the signal's messages in the log.
        taken: Samples.
        thinned: Values that the time rule let go.
        dropped: Values that were no measurement, with the reason.
        blocked: Frames that were not decoded for this path, because of `why`.
        why: Why nothing was taken, or not every function of an aggregate; else None.
    """

    path: str
    scope: str
    recipient: str | None
    grant_id: str | None
    frames: int
    taken: int
    thinned: int
    dropped: dict[str, int]
    blocked: int
    why: str | None


class Replay:
    """One recording, frame by frame. Give it frames with `feed`, then `finish` once."""

    def __init__(
        self,
        policy: Policy | None,
        catalogue: Catalogue,
        binding: Binding,
        *,
        named_buses: Sequence[str] = (),
        time_known: bool = True,
    ) -> None:
        """Prepare.

        Args:
            policy: None: nothing is taken.
            catalogue: What the policy's scopes mean.
            binding: What the vehicle can give.
            named_buses: Buses with bindings of their own.
            time_known: Whether the log's times are those of the day on which it was recorded.
        """
        self._policy = policy
        self._time_known = time_known
        self._catalogue = catalogue
        self._binding = binding
        self._named_buses = tuple(named_buses)
        self._plans: list[Plan] = []
        self._pipeline = Pipeline(on_sample=self._keep)
        self._rows: list[tuple[int, Take, Value]] = []
        self._counts: dict[tuple[str, str], TakeCounts] = {}
        self._takes: dict[tuple[str, str], Take] = {}
        # Reason -> what was skipped for it; the functions of an aggregate may have several.
        self._skipped: dict[tuple[str, str], dict[str, Skipped]] = {}
        self._closed: dict[tuple[str, str], dict[str, Skipped]] = {}
        self._seen: Counter[tuple[str, int]] = Counter()
        self._now_ns: int | None = None
        self._has_long_groups = any(b.is_j1939 and b.is_transported for b in binding.bound)

    def feed(self, frames: Sequence[Frame]) -> None:
        """Take what the policy allows from the next frames of the recording.

        Args:
            frames: In the order of the recording; any number, a few thousand at once are fast.
        """
        if not frames:
            return
        times = [frame[0] for frame in frames]
        first, last = min(times), max(times)
        if self._now_ns is None:
            self._plan_for(times[0])
        self._seen.update([(frame[1], frame[2]) for frame in frames])
        if self._has_long_groups:
            self._see_announcements(frames)
        plan = self._pipeline.plan
        if plan.from_ns <= first and last < plan.until_ns:
            self._pipeline.feed(frames)
        else:
            for frame in frames:
                if not self._pipeline.plan.from_ns <= frame[0] < self._pipeline.plan.until_ns:
                    self._plan_for(frame[0])
                self._pipeline.feed((frame,))
        self._now_ns = last if self._now_ns is None else max(self._now_ns, last)
        self._pipeline.drain()  # The samples are in the rows already, in the order as taken.

    def finish(self) -> None:
        """Take what is due at the log's last moment, and what windows hold by then."""
        if self._now_ns is not None:
            self._plan_for(self._now_ns)
        self._pipeline.stop()
        self._pipeline.drain()
        self._remember()

    def samples(self) -> Iterator[Sample]:
        """Yield every sample in the order of (t, as taken)."""
        self._rows.sort(key=itemgetter(0))  # Stable: within a ms they stay as taken.
        for t_ms, take, value in self._rows:
            yield Sample(
                t_ns=t_ms * NS_PER_MS,
                recipient=take.recipient,
                grant_id=take.grant_id,
                scope=take.scope,
                path=take.path,
                value=value,
                unit=take.unit,
                fn=take.fn,
                window_s=take.window_s,
            )

    def report(self) -> list[PathReport]:
        """Return what became of every path that is granted, or mapped and in the catalogue."""
        frames = self._frames_by_path()
        rows = [
            self._taken_row(take, self._counts.get(key), frames.get(take.path, 0))
            for key, take in self._takes.items()
        ]
        granted = {take.path for take in self._takes.values()}
        for (grant_id, path), reasons in (self._closed | self._skipped).items():
            if (grant_id, path) not in self._takes:
                rows.append(self._skipped_row(reasons, frames.get(path, 0)))
                granted.add(path)
        ungranted = {b.vss.path: b for b in self._binding.bound if b.vss.path not in granted}
        rows += [self._blocked_row(bound, frames.get(path, 0)) for path, bound in ungranted.items()]
        return rows

    def _keep(self, take: Take, t_ns: int, value: Value) -> None:
        self._rows.append((t_ns // NS_PER_MS, take, value))

    def _plan_for(self, t_ns: int) -> None:
        """Put the plan in force that holds at a moment of the log.

        While something waits for its time, every plan between is put in force at its own moment, as
        the daemon does also where no frame comes.
        """
        while self._pipeline.is_waiting and self._pipeline.plan.until_ns < t_ns:
            self._swap(self._pipeline.plan.until_ns)
        self._swap(t_ns)

    def _swap(self, t_ns: int) -> None:
        plan = next((p for p in self._plans if p.from_ns <= t_ns < p.until_ns), None)
        if plan is None:
            plan = compile_plan(
                self._policy,
                self._catalogue,
                self._binding,
                now_ns=t_ns,
                named_buses=self._named_buses,
                time_known=self._time_known,
            )
            self._plans.append(plan)
        self._tick(t_ns)
        self._pipeline.close()  # What is in the rows was given out, also where its grant ends now.
        self._remember()
        self._pipeline.swap(plan)
        self._pipeline.drain()
        self._takes |= {(take.grant_id, take.path): take for take in plan.takes}
        for found, items in ((self._skipped, plan.skipped), (self._closed, plan.closed)):
            for item in items:
                found.setdefault((item.grant_id, item.path), {})[item.reason] = item

    def _tick(self, t_ns: int) -> None:
        self._pipeline.tick(t_ns)
        self._pipeline.drain()

    def _remember(self) -> None:
        self._counts |= self._pipeline.counts()

    def _see_announcements(self, frames: Sequence[Frame]) -> None:
        """Count a group that transport carries as a frame of it."""
        for _, bus, can_id, data in frames:
            group = announced(can_id, data) if is_j1939_id(can_id) else None
            if group is not None:
                self._seen[bus, group] += 1

    def _frames_by_path(self) -> dict[str, int]:
        """Count the frames of each mapped path's messages, taken or not."""
        named = set(self._named_buses)
        by_key: Counter[tuple[str | None, str, int]] = Counter()
        for (bus, can_id), count in self._seen.items():
            known = bus if bus in named else None
            by_key[known, "id", can_id] += count
            if is_j1939_id(can_id):
                by_key[known, "pgn", pgn_of(can_id)] += count
        result: Counter[str] = Counter()
        for bound in self._binding.bound:
            key = ("pgn", pgn_of(bound.can_id)) if bound.is_j1939 else ("id", bound.can_id)
            result[bound.vss.path] += by_key[bound.bus, *key]
        return result

    def _taken_row(self, take: Take, counts: TakeCounts | None, frames: int) -> PathReport:
        drops: dict[Drop, int] = counts.drops if counts else {}
        taken = counts.taken if counts else 0
        why = [] if taken or frames else ["no frame of its message is in the log"]
        why += self._skipped.get((take.grant_id, take.path), {})
        return PathReport(
            path=take.path,
            scope=take.scope,
            recipient=take.recipient,
            grant_id=take.grant_id,
            frames=frames,
            taken=taken,
            thinned=counts.thinned if counts else 0,
            dropped={drop.value: count for drop, count in drops.items()},
            blocked=0,
            why="; ".join(why) or None,
        )

    def _skipped_row(self, reasons: dict[str, Skipped], frames: int) -> PathReport:
        first = next(iter(reasons.values()))
        return PathReport(
            path=first.path,
            scope=first.scope,
            recipient=self._recipient(first.grant_id),
            grant_id=first.grant_id,
            frames=frames,
            taken=0,
            thinned=0,
            dropped={},
            blocked=frames,
            why="; ".join(reasons),
        )

    def _blocked_row(self, bound: Bound, frames: int) -> PathReport:
        return PathReport(
            path=bound.vss.path,
            scope=bound.scope.name,
            recipient=None,
            grant_id=None,
            frames=frames,
            taken=0,
            thinned=0,
            dropped={},
            blocked=frames,
            why=self._why_not(bound.scope.name),
        )

    def _recipient(self, grant_id: str) -> str | None:
        if self._policy is None:
            return None
        return next((g.recipient_id for g in self._policy.grants if g.grant_id == grant_id), None)

    def _why_not(self, scope: str) -> str:
        """Say why no live grant covers a scope."""
        if self._policy is None:
            return "there is no policy"
        grants = [g for g in self._policy.grants if any(d.scope == scope for d in g.details)]
        if not grants:
            return f"no grant names {scope}"
        for state in (GrantState.PAUSED, GrantState.REVOKED):
            if all(grant.state is state for grant in grants):
                return f"the grant of {scope} is {state}"
        return f"no grant of {scope} was in force at the log's time"
