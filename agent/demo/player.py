"""A recorded drive on python-can's virtual bus, faster than it was.

Rules:
 * Frames carry the demo's clock, which runs `speed` times as fast as the wall clock and stands at
   today: intervals, windows and expiries of the policy see a drive that happens now.
 * The distances between frames are those of the recording.
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import can

from agent.core.clock import Reading
from agent.core.model import (
    CAN_EFF_FLAG,
    CAN_EFF_MASK,
    CAN_ERR_FLAG,
    CAN_RTR_FLAG,
    NS_PER_S,
    Frame,
)
from agent.edge.logfile import read_logs

_BOOT = str(uuid.UUID(int=0))
_LEAD = 64  # Frames sent between two looks at the clock.


class DemoClock:
    """A clock that starts at now and runs `speed` times as fast."""

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self._start_ns = time.time_ns()
        self._start_mono_ns = time.monotonic_ns()

    def __call__(self) -> int:
        """Return the demo's time, ns since the epoch."""
        return self._start_ns + int((time.monotonic_ns() - self._start_mono_ns) * self.speed)

    def reading(self) -> Reading:
        """Return the demo's time as the agent reads it."""
        now_ns = self()
        return Reading(now_ns, now_ns, _BOOT, is_synchronised=True)

    def wait_until(self, t_ns: int, stop: threading.Event | None = None) -> bool:
        """Sleep until the clock shows `t_ns`; True when `stop` came first."""
        left_s = (t_ns - self()) / self.speed / NS_PER_S
        if stop is None:
            time.sleep(max(0.0, left_s))
            return False
        return stop.wait(left_s) if left_s > 0 else stop.is_set()


class Player:
    """Sends a drive in a thread of its own."""

    def __init__(
        self,
        logs: Sequence[Path],
        *,
        channel: str,
        clock: DemoClock,
        start_ns: int,
        duration_s: float,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            logs: One recording.
            channel: Of python-can's virtual bus.
            clock: The demo's.
            start_ns: When the drive begins, on that clock.
            duration_s: How much of the recording is played, in its own time.
        """
        self._logs = logs
        self._channel = channel
        self._clock = clock
        self._start_ns = start_ns
        self._duration_ns = int(duration_s * NS_PER_S)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-player", daemon=True)
        self.sent = 0
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Begin to play."""
        self._thread.start()

    @property
    def is_playing(self) -> bool:
        """Whether the drive goes on."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop playing."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        try:
            # preserve_timestamps: the receiver sees our stamps, not the moment of sending.
            with (
                read_logs(self._logs) as recording,
                can.Bus(
                    interface="virtual", channel=self._channel, preserve_timestamps=True
                ) as bus,
            ):
                self._play(iter(recording), bus.send)
        except Exception as exc:  # noqa: BLE001 - the thread's top; the demo reports it
            self.failure = exc

    def _play(self, frames: Iterator[Frame], send: Callable[[can.Message], None]) -> None:
        first_ns: int | None = None
        while chunk := list(islice(frames, _LEAD)):
            if first_ns is None:
                first_ns = chunk[0][0]
            for t_ns, _, can_id, data in chunk:
                passed_ns = t_ns - first_ns
                if passed_ns > self._duration_ns:
                    return
                if self._clock.wait_until(self._start_ns + passed_ns, self._stop):
                    return
                send(message_of(self._start_ns + passed_ns, can_id, data))
                self.sent += 1


def message_of(t_ns: int, can_id: int, data: bytes) -> can.Message:
    """Return a frame as python-can sends it."""
    return can.Message(
        timestamp=t_ns / NS_PER_S,
        arbitration_id=can_id & CAN_EFF_MASK,
        is_extended_id=bool(can_id & CAN_EFF_FLAG),
        is_remote_frame=bool(can_id & CAN_RTR_FLAG),
        is_error_frame=bool(can_id & CAN_ERR_FLAG),
        is_fd=len(data) > 8,
        data=data,
        check=False,
    )
