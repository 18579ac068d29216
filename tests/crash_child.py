"""A vehicle to be killed: the daemon's own wiring in a process of its own, fed by itself.

`python -m tests.crash_child CONFIG MARKS` waits for lines on stdin. `run` and `drain` fork a
vehicle and print its pid; `run` also plays frames, `drain` only delivers. So one start costs
no imports.

MARKS is a file of eight-byte numbers that the vehicle writes as it goes, and its killer reads:

    0  phase: 1 a batch is open, 2 a commit is under way, 3 a publish is unacknowledged
    1  envelopes in the spool
    2  turns of the agent lane
    3… the last number of each grant whose append has returned
"""

import itertools
import json
import mmap
import os
import random
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import can

from agent import daemon as daemon_module
from agent.config import parse_config
from agent.core.model import CAN_EFF_FLAG, CAN_EFF_MASK, NS_PER_S, Frame
from agent.daemon import Daemon
from agent.edge.logfile import read_logs
from agent.edge.store import Kept, NewEnvelope, Store
from agent.errors import StoreError
from agent.parts import load_parts
from tests import car

OPEN, COMMIT, UNACKNOWLEDGED = 1, 2, 3
PHASE, WAITING, TURNS, FIRST_GRANT = range(4)
GRANTS = ("gr_a", "gr_b", "gr_c")
SLOTS = FIRST_GRANT + len(GRANTS)
FRAME_S = 0.002
BURST = 4  # Frames of a recorded drive at once: some 2,000 a second.
DRIVE = "drive.log.gz"  # Beside the configuration; without it frames are made up.


class Marks:
    """The shared numbers."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), SLOTS * 8)

    def __getitem__(self, slot: int) -> int:
        return int(struct.unpack_from("<q", self._map, slot * 8)[0])

    def __setitem__(self, slot: int, value: int) -> None:
        struct.pack_into("<q", self._map, slot * 8, value)


def make_marks(path: Path) -> Marks:
    path.write_bytes(bytes(SLOTS * 8))
    return Marks(path)


def main(config: Path, marks: Path) -> None:
    drive = recorded(config.parent / DRIVE)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Nobody waits for the dead.
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                vehicle(config, Marks(marks), drive, is_fed=line.strip() == "run")
            except BaseException:  # noqa: BLE001 - told, and never back into the loop above
                traceback.print_exc()
                sys.stderr.flush()
            os._exit(1)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


def vehicle(config: Path, marks: Marks, drive: Sequence[Frame], *, is_fed: bool) -> None:
    """Run until killed."""

    class Marked(Store):
        def append_all(self, arrived: Sequence[NewEnvelope]) -> list[Kept | StoreError]:
            marks[PHASE] = COMMIT
            kept = super().append_all(arrived)
            for new, one in zip(arrived, kept, strict=True):
                if isinstance(one, Kept):
                    marks[FIRST_GRANT + GRANTS.index(new.grant_id)] = one.n
            marks[PHASE] = OPEN
            return kept

    daemon_module.Store = Marked  # type: ignore[misc]
    parsed = parse_config(json.loads(config.read_text(encoding="utf-8")), config.parent)
    daemon = Daemon(parsed, load_parts(parsed))
    daemon.start()
    if is_fed:
        channel = str(parsed.bus[0].channel)
        work = (drive_again, (channel, drive)) if drive else (feed, (channel,))
        threading.Thread(target=work[0], args=work[1], daemon=True).start()
    while True:
        daemon.agent.turn(0.05)
        is_sent = bool(daemon.uplink.in_flight())
        marks[PHASE] = UNACKNOWLEDGED if is_sent else OPEN
        store = daemon._store
        marks[WAITING] = sum(tally.envelopes for tally in store.counts().values())
        marks[TURNS] += 1


def recorded(log: Path) -> list[Frame]:
    """Return the frames of a recorded drive; none where there is no such file."""
    if not log.exists():
        return []
    with read_logs([log]) as recording:
        return list(recording)


def drive_again(channel: str, drive: Sequence[Frame]) -> None:
    """Send a recorded drive from somewhere on, each frame with the time of now."""
    begin = random.randrange(len(drive))
    with can.Bus(interface="virtual", channel=channel, preserve_timestamps=True) as bus:
        for index, (_, _, can_id, data) in enumerate(
            itertools.cycle([*drive[begin:], *drive[:begin]])
        ):
            with suppress(can.CanError):
                bus.send(
                    can.Message(
                        timestamp=time.time(),
                        arbitration_id=can_id & CAN_EFF_MASK,
                        is_extended_id=bool(can_id & CAN_EFF_FLAG),
                        data=data,
                    )
                )
            if index % BURST == 0:
                time.sleep(FRAME_S)


def feed(channel: str) -> None:
    """Drive: speed and mileage rise and fall, at 500 frames a second."""
    with can.Bus(interface="virtual", channel=channel, preserve_timestamps=True) as bus:
        for index in itertools.count():
            now_ms = time.time() * 1000
            made = (
                car.speed(now_ms, index % 200)
                if index % 2
                else car.odometer(now_ms, 1_000_000 + index)
            )
            t_ns, _, can_id, data = made
            with suppress(can.CanError):
                bus.send(
                    can.Message(
                        timestamp=t_ns / NS_PER_S,
                        arbitration_id=can_id & CAN_EFF_MASK,
                        is_extended_id=bool(can_id & CAN_EFF_FLAG),
                        data=data,
                    )
                )
            time.sleep(FRAME_S)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
