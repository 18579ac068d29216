"""The capture lane: chunks of frames in, closed batches out, one thread that owns the pipeline.

Rules:
 * Nothing but closed batches leaves this thread.
 * A new plan is swapped in between two chunks, without a lock: `swap` leaves it at the door.
 * While chunks lie in the queue, time is that of the frames and not the clock's: how far the thread
   lags behind must not decide which of two changes is taken.
 * The queue of chunks is bounded. When the thread cannot keep up, the newest chunk is dropped and
   its frames are counted: the readers never block, so they lose nothing silently.
"""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable

from agent.core.model import NS_PER_S, Batch, Frame
from agent.core.pipeline import Pipeline, TakeCounts
from agent.core.plan import Plan

MAX_CHUNKS = 4096  # A second of a saturated bus is about 20 chunks.
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
    ) -> None:
        """Prepare; `start` begins.

        Args:
            pipeline: Owned by this lane from now on.
            on_batches: Gets closed batches, oldest first, in this lane's thread.
            clock: ns since the epoch, the same clock as the frames'.
        """
        self._pipeline = pipeline
        self._on_batches = on_batches
        self._clock = clock
        self._chunks: queue.Queue[list[Frame] | None] = queue.Queue(MAX_CHUNKS)
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
        try:
            self._chunks.put_nowait(frames)
        except queue.Full:
            self.overrun += len(frames)

    def swap(self, plan: Plan) -> None:
        """Put another plan in force before the next chunk."""
        self._plans.append(plan)
        self._wake()

    def counts(self) -> dict[tuple[str, str], TakeCounts]:
        """Return what became of the values so far; it stays on the board."""
        return self._pipeline.counts()

    def close(self, timeout_s: float = 10.0) -> None:
        """Take what lies in the queue, close the open batches, hand them over and end.

        Args:
            timeout_s: How long to wait for it.
        """
        self._stop.set()
        self._wake()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def is_alive(self) -> bool:
        """Whether the lane's thread runs."""
        return self._thread.is_alive()

    def _wake(self) -> None:
        try:
            self._chunks.put_nowait(None)
        except queue.Full:
            return  # A full queue wakes the thread by itself.

    def _run(self) -> None:
        try:
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
            self._pipeline.swap(self._plans.popleft())
        if frames:
            self.frames += len(frames)
            self._pipeline.feed(frames)
        now_ns = self._clock()
        if now_ns - self._ticked_ns >= TICK_NS or now_ns < self._ticked_ns:
            if self._chunks.empty():
                self._pipeline.tick(now_ns)
            elif frames:
                self._pipeline.tick(min(now_ns, frames[-1][0]))
            self._ticked_ns = now_ns
        self.turns += 1
        self._hand_over()

    def _hand_over(self) -> None:
        batches = self._pipeline.drain()
        if batches:
            self._on_batches(batches)
