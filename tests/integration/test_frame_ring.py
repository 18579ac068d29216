"""A reader that is killed again and again loses no frame and stores none twice.

Where there may be no CAN the frames come over UDP on loopback: recvmmsg(2), the kernel's times and
SIGKILL are real. With CAN, systemd and the whole agent: tests/vm/guest/test_unit.py.
"""

import random
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

from agent.edge.socketcan import FrameRing
from agent.edge.socketcan.receiver import SO_TIMESTAMPNS
from tests.frame_ring_child import END

KILLS = 25
PER_S = 1000  # A socket without privileges has room for 550.


def test_a_reader_that_is_killed_loses_nothing_and_stores_nothing_twice(tmp_path: Path) -> None:
    rng = random.Random(20261124)
    file = tmp_path / "stored"
    file.touch()
    ring = FrameRing("b", "can0")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inbound,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outbound,
    ):
        inbound.bind(("127.0.0.1", 0))
        inbound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        inbound.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        outbound.connect(inbound.getsockname())
        passed = (inbound.fileno(), ring.descriptor)
        words = [sys.executable, "-m", "tests.frame_ring_child", *map(str, passed), str(file)]
        sent, done = [0], threading.Event()

        def send() -> None:
            begun_s = time.monotonic()
            while not done.wait(0.002):
                while sent[0] < (time.monotonic() - begun_s) * PER_S:
                    outbound.send(frame(sent[0]))
                    sent[0] += 1

        sender = threading.Thread(target=send)
        sender.start()
        for _ in range(KILLS):
            before = file.stat().st_size
            with subprocess.Popen(words, pass_fds=passed) as child:
                wait_until(lambda size=before: file.stat().st_size > size)
                time.sleep(rng.uniform(0.0, 0.05))
                child.kill()
        with subprocess.Popen(words, pass_fds=passed) as child:
            before = file.stat().st_size
            wait_until(lambda size=before: file.stat().st_size > size)
            done.set()
            sender.join()
            outbound.send(frame(END))
            assert child.wait(10) == 0
    found = [int(word) for word in file.read_bytes().split()]
    ring.close()

    assert found == list(range(sent[0]))


def frame(number: int) -> bytes:
    """Return a struct can_frame."""
    return struct.pack("=IB3xI4x", 0x123, 8, number)


def wait_until(condition: object) -> None:
    assert callable(condition)
    until_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until_s, "the child stores nothing"
        time.sleep(0.002)
