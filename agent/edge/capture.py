"""The capture lane: chunks of frames in, closed batches out, one thread that owns the pipeline.

Rules:
 * Nothing but closed batches leaves this thread, and with them how far the frames had come. All
   open batches close together, so that every frame before that place is in what was handed over, or
   in nothing: a reader keeps what comes after it until it is stored as well. While nothing is open
   a place is told by itself every second, so that no reader keeps what nobody wants.
 * A new plan is swapped in between two chunks, without a lock: `swap` leaves it at the door.
 * While chunks lie in the queue, or a reader still has what a killed process read, time is that of
   the frames and not the clock's. Else it is `SETTLE_NS` behind the clock, for readers hand a frame
   over a little after it was stamped: how far a thread lags behind must not decide which of two
   changes is taken.
 * The privacy switch on CAN, where there is one, is obeyed here and at once: nothing is taken of
   the frame that turns it to private, or of those behind it. What lay in open batches is dropped,
   as with any stop.
 * The queue is bounded in frames. When the thread cannot keep up, the newest chunk is dropped and
   its frames are counted and told: the readers never block, so they lose nothing silently.
"""

import logging
import queue
import threading
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable
from operator import itemgetter

from agent.core.model import NS_PER_S, Batch, Frame, Place
from agent.core.pipeline import Pipeline, TakeCounts
from agent.core.plan import Plan, empty_plan
from agent.core.switch import SignalSwitch
from agent.log import Repeats

# Measured: 43 to 50 MiB, where MemoryMax= of the unit is 192; 5 s of two full CAN FD buses.
MAX_FRAMES = 200_000
# Of frames that can wait: few, for they are old, and what lies in the queue falls under a new plan.
MAX_WAITING = 1 << 13
SETTLE_NS = NS_PER_S  # By then readers have handed a frame over, on a busy machine too.
TICK_NS = NS_PER_S  # Held changes and old batches are looked at this often.

_Chunk = tuple[list[Frame], Place | None]

_log = logging.getLogger(__name__)


class Capture:
    """Runs a pipeline over what readers put in."""

    def __init__(  # noqa: PLR0913 - what it is connected to, by keyword
        self,
        pipeline: Pipeline,
        *,
        on_batches: Callable[[list[Batch], tuple[Place, ...]], None],
        clock: Callable[[], int],
        on_swap: Callable[[Plan], None] = lambda _: None,
        max_open_frames: int = MAX_FRAMES,
        switch: SignalSwitch | None = None,
        on_switch: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            pipeline: Owned by this lane from now on.
            on_batches: Gets closed batches, oldest first, and the place of each bus up to which
                nothing is open any more, in this lane's thread. There may be places alone.
            clock: ns since the epoch, the same clock as the frames'.
            on_swap: Gets each plan that was put in force, in this lane's thread, once what was open
                under the one before has been handed over.
            max_open_frames: Batches close when so many frames of a bus have come; less than what
                its reader keeps.
            switch: The privacy switch on CAN; owned by this lane from now on.
            on_switch: Gets what the switch says at the start and whenever it turns, True for
                private, in this lane's thread and after it has been obeyed.
        """
        self._pipeline = pipeline
        self._switch = switch
        self._on_switch = on_switch
        self._is_private = False
        self._given = pipeline.plan  # What holds while the switch does not say private.
        self._on_batches = on_batches
        self._on_swap = on_swap
        self._clock = clock
        self._max_open_frames = max_open_frames
        self._places: dict[str, Place] = {}  # Of each bus, since batches were sent last.
        self._open_frames: Counter[str] = Counter()  # The same.
        self._chunks: queue.SimpleQueue[_Chunk | None] = queue.SimpleQueue()
        self._room = threading.Lock()  # Guards what follows, which readers' threads change.
        self._waiting = 0  # Frames in the queue.
        self._behind: set[str] = set()  # Buses of which frames of long ago are still to come.
        self._repeats = Repeats()
        self._plans: deque[Plan] = deque()
        self._ticked_ns = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self.frames = 0
        self.overrun = 0
        self.turns = 0
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def put(self, frames: list[Frame], place: Place | None = None) -> None:
        """Hand over a chunk; called in readers' threads.

        Args:
            frames: Of one bus, where there is a place.
            place: Behind the last of them, where the reader keeps what is not stored.
        """
        with self._room:
            if self._waiting + len(frames) <= MAX_FRAMES:
                self._waiting += len(frames)
                self._chunks.put((frames, place))
                return
            self.overrun += len(frames)
            held_back = self._repeats.due("capture overrun")
        if held_back is not None:
            _log.warning("capture overrun", extra={"frames": self.overrun, "held_back": held_back})

    def has_room(self, frames: int) -> bool:
        """Whether so many frames that can wait should be handed over now."""
        with self._room:
            return self._waiting + frames <= MAX_WAITING

    def expect(self, bus: str) -> None:
        """Be told that frames of long ago will come from a bus, until `caught_up`."""
        with self._room:
            self._behind.add(bus)

    def caught_up(self, bus: str) -> None:
        """Be told that no more frames of long ago will be put."""
        with self._room:
            self._behind.discard(bus)

    @property
    def is_behind(self) -> bool:
        """Whether frames of long ago are still to come."""
        return bool(self._behind)

    def swap(self, plan: Plan) -> None:
        """Put another plan in force before the next chunk."""
        self._plans.append(plan)
        self._chunks.put(None)

    def counts(self) -> dict[tuple[str, str], TakeCounts]:
        """Return what became of the values so far; it stays on the board."""
        return self._pipeline.counts()

    @property
    def given_up(self) -> int:
        """Messages of transport protocols that could not be put together; it stays on the board."""
        return self._pipeline.given_up

    def close(self, timeout_s: float = 10.0) -> None:
        """Take what lies in the queue, close the open batches, hand them over and end.

        Args:
            timeout_s: How long to wait for it.
        """
        self._stop.set()
        self._chunks.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def is_alive(self) -> bool:
        """Whether the lane's thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            if self._switch is not None:
                self._obey(is_private=self._switch.is_private)
            while not (self._stop.is_set() and self._chunks.empty()):
                self._turn()
            self._pipeline.tick(self._clock())
            self._pipeline.stop()
            self._send()
        except Exception as exc:  # noqa: BLE001 - the thread's top, see below
            # The thread's top: the daemon sees the dead lane and ends the process.
            self.failure = exc
            _log.exception("capture died")

    def _turn(self) -> None:
        try:
            chunk = self._chunks.get(timeout=TICK_NS / NS_PER_S)
        except queue.Empty:
            chunk = None
        while self._plans:
            self._given = self._plans.popleft()
            if not self._is_private:
                self._put_in_force(self._given)
        frames, place = chunk or ([], None)
        if frames:
            with self._room:
                self._waiting -= len(frames)
            self.frames += len(frames)
            if self._switch is None:
                self._feed(frames, place)
            else:
                self._feed_by_switch(frames, place, self._switch)
        now_ns = self._clock()
        is_tick = now_ns - self._ticked_ns >= TICK_NS or now_ns < self._ticked_ns
        if is_tick:
            self._tick(now_ns, frames[-1][0] if frames else None)
        self.turns += 1
        is_over = is_tick and not self._pipeline.is_open and bool(self._places)
        if self._pipeline.has_closed or is_over or self._is_much_open():
            self._close()

    def _tick(self, now_ns: int, fed_ns: int | None) -> None:
        """Let time pass up to now, or as far as the frames that were just fed."""
        is_idle = not self.is_behind and self._chunks.empty()  # In this order: they are put first.
        if is_idle:
            self._pipeline.tick(now_ns - SETTLE_NS)
        elif fed_ns is not None:
            self._pipeline.tick(min(now_ns - SETTLE_NS, fed_ns))
        if self._switch is not None and is_idle and self._switch.tick(now_ns):
            self._obey(is_private=self._switch.is_private)
        self._ticked_ns = now_ns

    def _feed(self, frames: list[Frame], place: Place | None) -> None:
        """Feed a chunk; where batches close by age, all do, between two frames."""
        left = frames
        while left and left[-1][0] >= (closes_ns := self._closes_ns(left[0][0])):
            at = bisect_left(left, closes_ns, key=itemgetter(0))
            self._pipeline.feed(left[:at])
            self._pass(place, at, before=len(left) - at)
            self._pipeline.close_at(closes_ns)
            if self._pipeline.has_closed:
                self._send()
            left = left[at:]
        self._pipeline.feed(left)
        self._pass(place, len(left))

    def _closes_ns(self, t_ns: int) -> int:
        """Return when batches close by age, those that are open or one that a frame would open."""
        return min(self._pipeline.closes_ns, self._pipeline.next_close_ns(t_ns))

    def _feed_by_switch(
        self, frames: list[Frame], place: Place | None, switch: SignalSwitch
    ) -> None:
        fed = 0
        for index, is_private in switch.cuts(frames):
            self._feed(frames[fed:index], place and place.earlier(len(frames) - index))
            self._obey(is_private=is_private)
            fed = index
        self._feed(frames[fed:], place)

    def _obey(self, *, is_private: bool) -> None:
        self._is_private = is_private
        # What was closed before it turned stays: it was permitted then.
        if is_private:
            self._pipeline.swap(empty_plan())
            self._send()
        else:
            self._put_in_force(self._given)
        self._on_switch(is_private)

    def _put_in_force(self, plan: Plan) -> None:
        self._pipeline.swap(plan)
        self._send()
        self._on_swap(plan)

    def _pass(self, place: Place | None, frames: int, *, before: int = 0) -> None:
        """Note that frames were fed.

        Args:
            place: Behind their chunk.
            frames: How many.
            before: How many of the chunk come behind them.
        """
        if place is not None:
            self._places[place.bus] = place.earlier(before)
            self._open_frames[place.bus] += frames

    def _is_much_open(self) -> bool:
        return any(count >= self._max_open_frames for count in self._open_frames.values())

    def _close(self) -> None:
        self._pipeline.close()
        self._send()

    def _send(self) -> None:
        """Hand over what is closed; nothing is open."""
        batches, places = self._pipeline.drain(), tuple(self._places.values())
        self._places.clear()
        self._open_frames.clear()
        if batches or places:
            self._on_batches(batches, places)
