"""The capture lane: chunks of frames in, closed batches out, one thread that owns the pipeline.

Rules:
 * Nothing but closed batches leaves this thread.
 * A new plan is swapped in between two chunks, without a lock: `swap` leaves it at the door.
 * While chunks lie in the queue, time is that of the frames and not the clock's, and while none do
   it is `SETTLE_NS` behind the clock, for readers hand a frame over a little after it was stamped:
   how far a thread lags behind must not decide which of two changes is taken.
 * The privacy switch on CAN, where there is one, is obeyed here and at once: nothing is taken of
   the frame that turns it to private, or of those behind it. What lay in open batches is dropped,
   as with any stop.
 * The queue is bounded in frames. When the thread cannot keep up, the newest chunk is dropped and
   its frames are counted and told: the readers never block, so they lose nothing silently.
"""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable

from agent.core.model import NS_PER_S, Batch, Frame
from agent.core.pipeline import Pipeline, TakeCounts
from agent.core.plan import Plan, empty_plan
from agent.core.switch import SignalSwitch
from agent.log import Repeats

# Measured: 43 to 50 MiB, where MemoryMax= of the unit is 192; 5 s of two full CAN FD buses.
MAX_FRAMES = 200_000
SETTLE_NS = NS_PER_S  # By then readers have handed a frame over, on a busy machine too.
TICK_NS = NS_PER_S  # Held changes and old batches are looked at this often.

_log = logging.getLogger(__name__)


class Capture:
    """Runs a pipeline over what readers put in."""

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        on_batches: Callable[[list[Batch]], None],
        clock: Callable[[], int],
        switch: SignalSwitch | None = None,
        on_switch: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            pipeline: Owned by this lane from now on.
            on_batches: Gets closed batches, oldest first, in this lane's thread.
            clock: ns since the epoch, the same clock as the frames'.
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
        self._clock = clock
        self._chunks: queue.SimpleQueue[list[Frame] | None] = queue.SimpleQueue()
        self._room = threading.Lock()  # Guards what follows, which readers' threads change.
        self._waiting = 0  # Frames in the queue.
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

    def put(self, frames: list[Frame]) -> None:
        """Hand over a chunk; called in readers' threads."""
        with self._room:
            if self._waiting + len(frames) <= MAX_FRAMES:
                self._waiting += len(frames)
                self._chunks.put(frames)
                return
            self.overrun += len(frames)
            held_back = self._repeats.due("capture overrun")
        if held_back is not None:
            _log.warning("capture overrun", extra={"frames": self.overrun, "held_back": held_back})

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
            self._hand_over()
        except Exception as exc:  # noqa: BLE001 - the thread's top, see below
            # The thread's top: the daemon sees the dead lane and ends the process.
            self.failure = exc
            _log.exception("capture died")

    def _turn(self) -> None:
        try:
            frames = self._chunks.get(timeout=TICK_NS / NS_PER_S)
        except queue.Empty:
            frames = None
        while self._plans:
            self._given = self._plans.popleft()
            if not self._is_private:
                self._pipeline.swap(self._given)
        if frames:
            with self._room:
                self._waiting -= len(frames)
            self.frames += len(frames)
            if self._switch is None:
                self._pipeline.feed(frames)
            else:
                self._feed_by_switch(frames, self._switch)
        now_ns = self._clock()
        if now_ns - self._ticked_ns >= TICK_NS or now_ns < self._ticked_ns:
            if self._chunks.empty():
                self._pipeline.tick(now_ns - SETTLE_NS)
            elif frames:
                self._pipeline.tick(min(now_ns - SETTLE_NS, frames[-1][0]))
            if self._switch is not None and self._chunks.empty() and self._switch.tick(now_ns):
                self._obey(is_private=self._switch.is_private)
            self._ticked_ns = now_ns
        self.turns += 1
        self._hand_over()

    def _feed_by_switch(self, frames: list[Frame], switch: SignalSwitch) -> None:
        fed = 0
        for index, is_private in switch.cuts(frames):
            self._pipeline.feed(frames[fed:index])
            self._obey(is_private=is_private)
            fed = index
        self._pipeline.feed(frames[fed:])

    def _obey(self, *, is_private: bool) -> None:
        self._hand_over()  # What was closed before it turned stays: it was permitted then.
        self._is_private = is_private
        self._pipeline.swap(empty_plan() if is_private else self._given)
        self._on_switch(is_private)

    def _hand_over(self) -> None:
        batches = self._pipeline.drain()
        if batches:
            self._on_batches(batches)
