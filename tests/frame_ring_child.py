"""A process that reads frames into a ring and stores them by the batch, to be killed at any moment.

    python -m tests.frame_ring_child SOCKET RING FILE

SOCKET and RING are descriptors. A batch is a line of FILE, a commit its one write(2): the numbers
that the frames bear. The frame with the number `END` ends it.
"""

import os
import random
import select
import socket
import struct
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from agent.core.model import Frame
from agent.edge.socketcan import FrameRing, Receiver

END = 0xFFFF_FFFF
_NUMBER = struct.Struct("<I4x")


def main() -> None:
    sock = socket.socket(fileno=int(sys.argv[1]))
    ring = FrameRing("b", "can0", int(sys.argv[2]))
    path = Path(sys.argv[3])
    row = path.read_bytes().count(b"\n")
    ring.take_up(row)
    receiver = Receiver(ring)
    out = os.open(path, os.O_WRONLY | os.O_APPEND)
    rng = random.Random()
    numbers: list[int] = []
    place = ring.place
    for frames, place in ring.rest():  # noqa: B007 - the last one is meant
        numbers += read(frames)
    due_s = time.monotonic()
    while END not in numbers:
        if select.select([sock], [], [], 0.01)[0]:
            received = receiver.receive(sock)
            numbers += read(received.frames)
            place = received.place
        if numbers and (time.monotonic() >= due_s or END in numbers):
            row += 1
            ring.announce(place, row)
            linger(rng)
            os.write(out, b" ".join(b"%d" % n for n in numbers if n != END) + b"\n")
            linger(rng)
            ring.settle(place)
            if END not in numbers:
                numbers.clear()
            due_s = time.monotonic() + rng.uniform(0.0, 0.01)


def linger(rng: random.Random) -> None:
    """Let a kill come between two steps that are next to each other."""
    time.sleep(rng.uniform(0.0, 0.004))


def read(frames: Iterable[Frame]) -> list[int]:
    return [_NUMBER.unpack(data)[0] for _, _, _, data in frames]


if __name__ == "__main__":
    main()
