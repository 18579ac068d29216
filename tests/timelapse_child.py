"""`consentry run` in a process whose hours pass in seconds: a drive brings frames and the time.

`python -m tests.timelapse_child GAUGES DRIVE START_NS run --config agent.toml` is `consentry run`
but for two things:

 * A bus whose interface is `virtual` gives the frames of a log, over and over, moved on to now; or,
   where DRIVE is `car:N`, those of `tests.car`, N of each kind a second.
 * What the agent takes for its clocks is the time of the frame that was read last. While PACE is 0
   the vehicle is parked: no frame comes, and time passes as it does.

The drive goes at most PACE times as fast as it went, and waits every `LEAP_NS` until what was read
has become batches, and these envelopes: so no lane lags behind the clock by more, as in a vehicle.
GAUGES is a file of eight-byte numbers, see `Gauges`.
"""

import gc
import itertools
import mmap
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.modules["asammdf"] = None  # type: ignore[assignment] # python-can would load it: 60 MB.

import can
from can.interfaces import BACKENDS

from agent import daemon
from agent.cli.main import run as run_command
from agent.core.clock import Reading
from agent.core.model import CAN_EFF_FLAG, CAN_EFF_MASK, CAN_RTR_FLAG, NS_PER_S
from agent.daemon import Daemon
from agent.edge.logfile import read_logs
from tests import car

PACE, COLLECT, NOW, FRAMES, SPOOLED, SEALED, DELIVERED, BLOCKS, TURNS, LOST = range(10)
SLOTS = 10
STEP_NS = NS_PER_S  # Time goes on in steps that are no longer, also where no frame comes.
MAX_GAP_NS = 60 * NS_PER_S  # A longer pause of a recording is cut.
LEAP_NS = 5 * NS_PER_S  # So far the drive goes before it waits for the lanes to have followed.
FOLLOW_S = 1.0  # A lane that hangs for longer, because it ends, is not waited for.
LOOK_S = 0.02
COLLECT_S = 1.0
BOOT = f"{0:032x}"
BOOT_NS = 1_000 * NS_PER_S  # The board's age at the start.

Moved = tuple[int, int, bytes]


class Gauges:
    """Numbers that the processes share.

    The parent sets PACE, and COLLECT: 1 to collect garbage every second, so that what is in use can
    be told from what is not yet collected. The child sets: NOW, ns since the epoch; FRAMES that the
    drive gave; SPOOLED, envelopes that wait; SEALED and DELIVERED, envelopes so far; BLOCKS of
    memory that Python has in use; TURNS of the agent lane; LOST, frames that the capture lane could
    not take.
    """

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            # Not `struct`, which writes byte by byte: the other side would read halves.
            self._numbers = memoryview(mmap.mmap(file.fileno(), SLOTS * 8)).cast("q")

    def __getitem__(self, slot: int) -> int:
        return self._numbers[slot]

    def __setitem__(self, slot: int, value: int) -> None:
        self._numbers[slot] = value


class Drive:
    """Gives frames as they become due, and says what time it is."""

    def __init__(self, frames: Iterator[Moved], start_ns: int, gauges: Gauges) -> None:
        self._frames = frames
        self._next = next(frames)
        self._gauges = gauges
        self._lock = threading.Lock()
        self._started_ns = self._now_ns = start_ns
        self._pace = 0
        self._since = (time.monotonic(), start_ns)  # When this pace began, by both clocks.
        self._given = 0
        self._leap_ns = start_ns
        self._is_closed = False
        self.vehicle: Daemon | None = None
        self.readers = 0
        gauges[NOW] = start_ns

    def clock(self) -> Reading:
        now_ns = self._now_ns
        return Reading(now_ns, now_ns - self._started_ns + BOOT_NS, BOOT, is_synchronised=True)

    def take(self) -> Moved | None:
        """Return the next frame if it is due."""
        with self._lock:
            return self._step()

    def go_on(self) -> None:
        """Let time pass while nobody reads."""
        while True:
            time.sleep(LOOK_S)
            with self._lock:
                if self._pace == 0:
                    self._look(self._gauges[PACE])
                    self._set(self._now_ns + int(LOOK_S * NS_PER_S))
                elif self.readers == 0:  # Its frames pass by.
                    until_ns = self._now_ns + int(LOOK_S * NS_PER_S) * self._pace
                    while self._pace and self._now_ns < until_ns and not self._must_wait():
                        self._step()
            self._gauges[FRAMES] = self._given

    def _step(self) -> Moved | None:
        if self._given % 16 == 0 and self._must_wait():
            return None
        if self._pace == 0 or not self._has_followed():
            return None
        t_ns = self._next[0]
        if t_ns - self._now_ns > STEP_NS:
            self._set(self._now_ns + STEP_NS)
            return None
        frame, self._next = self._next, next(self._frames)
        self._given += 1
        self._set(max(self._now_ns, t_ns))
        return frame

    def _must_wait(self) -> bool:
        self._look(self._gauges[PACE])
        begun_s, begun_ns = self._since
        may_ns = begun_ns + int((time.monotonic() - begun_s) * self._pace * NS_PER_S)
        return self._now_ns >= may_ns or self.vehicle is None

    def _has_followed(self) -> bool:
        """Wait for the lanes, at the end of a leap."""
        if self._now_ns < self._leap_ns:
            return True
        if not self._is_closed:  # The reader hands over what it has when it gets nothing.
            self._is_closed = True
            return False
        vehicle = self.vehicle
        assert vehicle is not None
        capture, gauges = vehicle.capture, self._gauges
        for _ in range(3):  # One may be under way, and a lane hands over behind its count.
            _once_round(lambda: capture.put([]), lambda: capture.turns)
        for _ in range(2):
            _once_round(vehicle.wake, lambda: gauges[TURNS])
        self._is_closed = False
        self._leap_ns = self._now_ns + LEAP_NS
        return True

    def _look(self, pace: int) -> None:
        if pace != self._pace:
            self._pace, self._since = pace, (time.monotonic(), self._now_ns)

    def _set(self, now_ns: int) -> None:
        self._now_ns = self._gauges[NOW] = now_ns


class DriveBus(can.BusABC):
    """The drive as a bus of python-can."""

    drive: Drive  # Set before the first is opened.

    def __init__(self, channel: str, **options: Any) -> None:
        self.channel_info = channel
        self.drive.readers += 1
        super().__init__(channel, **options)

    def shutdown(self) -> None:
        if not self._is_shutdown:
            self.drive.readers -= 1
        super().shutdown()

    def _recv_internal(self, timeout: float | None) -> tuple[can.Message | None, bool]:
        frame = self.drive.take()
        if frame is None:
            time.sleep(min(timeout or 0.0, 0.002))
            return None, False
        t_ns, can_id, data = frame
        message = can.Message(
            timestamp=t_ns / NS_PER_S,
            arbitration_id=can_id & CAN_EFF_MASK,
            is_extended_id=bool(can_id & CAN_EFF_FLAG),
            is_remote_frame=bool(can_id & CAN_RTR_FLAG),
            is_fd=len(data) > 8,
            data=data,
        )
        return message, True

    def send(self, msg: can.Message, timeout: float | None = None) -> None:  # noqa: ARG002
        raise AssertionError("the agent does not send")


class Timelapse(Daemon):
    """The daemon by the drive's clock, with its gauges."""

    def __init__(self, *about: Any, **named: Any) -> None:
        self._gauges = DriveBus.drive._gauges
        self._collected_s = 0.0
        super().__init__(*about, clock=DriveBus.drive.clock, **named)
        DriveBus.drive.vehicle = self

    def turn(self) -> None:
        super().turn()
        gauges, counts = self._gauges, self.agent.counts
        gauges[SEALED], gauges[DELIVERED] = counts["sealed"], counts["delivered"]
        gauges[SPOOLED] = sum(tally.envelopes for tally in self._store.counts().values())
        if gauges[COLLECT] and time.monotonic() - self._collected_s > COLLECT_S:
            gc.collect()
            self._collected_s = time.monotonic()
        gauges[BLOCKS] = sys.getallocatedblocks()
        gauges[LOST] = self.capture.overrun
        gauges[TURNS] += 1


def _once_round(wake: Callable[[], None], turns: Callable[[], int]) -> None:
    before, until_s = turns(), time.monotonic() + FOLLOW_S
    wake()
    while turns() == before and time.monotonic() < until_s:
        time.sleep(0.0001)


def laps(log: Path, start_ns: int) -> Iterator[Moved]:
    """Yield the frames of a log over and over, moved on in time, long pauses cut."""
    last_ns = start_ns
    while True:
        shift_ns: int | None = None
        with read_logs([log]) as recording:
            for t_ns, _, can_id, data in recording:
                if shift_ns is None:
                    shift_ns = last_ns - t_ns
                elif t_ns + shift_ns - last_ns > MAX_GAP_NS:
                    shift_ns = last_ns + MAX_GAP_NS - t_ns
                last_ns = max(last_ns, t_ns + shift_ns)
                yield last_ns, can_id, data


def small_car(per_s: int, start_ns: int) -> Iterator[Moved]:
    """Yield frames of `tests.car`, so many of each kind a second."""
    for index in itertools.count():
        t_ms = (start_ns + index * NS_PER_S // per_s) / 1e6
        # Inside one cell of the grid, wherever it is.
        for frame in (car.odometer(t_ms, index), car.position(t_ms, 1.005, 2.005)):
            t_ns, _, can_id, data = frame
            yield t_ns, can_id, data


def main(arguments: list[str]) -> int:
    gauges = Gauges(Path(arguments[0]))
    start_ns = int(arguments[2])
    kind, _, count = arguments[1].partition(":")
    frames = small_car(int(count), start_ns) if kind == "car" else laps(Path(kind), start_ns)
    DriveBus.drive = drive = Drive(frames, start_ns, gauges)
    BACKENDS["virtual"] = ("tests.timelapse_child", DriveBus.__name__)
    daemon.Daemon = Timelapse  # type: ignore[misc]
    threading.Thread(target=drive.go_on, daemon=True).start()
    return run_command(arguments[3:])


if __name__ == "__main__":
    # python-can finds DriveBus by the name of its module, not as a second one.
    sys.modules["tests.timelapse_child"] = sys.modules["__main__"]
    sys.exit(main(sys.argv[1:]))
