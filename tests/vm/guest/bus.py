"""What tests in the guest do to a bus: send on it, take it down, record it with candump."""

import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from agent.core.model import Frame
from agent.edge.logfile import read_logs

WAIT_S = 20.0
ERR = 0x2000_0000
EFF = 0x8000_0000
RTR = 0x4000_0000


def pack(can_id: int, data: bytes = b"", *, fd: bool = False, length: int | None = None) -> bytes:
    """Return struct can_frame, or canfd_frame where `fd` or the length asks for it."""
    count = len(data) if length is None else length
    if fd or len(data) > 8:
        return struct.pack("=IB3x64s", can_id, count, data)
    return struct.pack("=IB3x8s", can_id, count, data)


class Sender:
    """Sends on one bus."""

    def __init__(self, bus: str = "vcan0") -> None:
        self._sock = socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW)
        self._sock.setsockopt(socket.SOL_CAN_RAW, socket.CAN_RAW_FD_FRAMES, 1)
        # It reads nothing; without this its own queue would fill up.
        self._sock.setsockopt(socket.SOL_CAN_RAW, socket.CAN_RAW_FILTER, b"")
        self._sock.bind((bus,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def send(self, can_id: int, data: bytes = b"", **how: bool | int | None) -> None:
        self._sock.send(pack(can_id, data, **how))  # type: ignore[arg-type]

    def send_all(self, frames: Iterable[tuple[int, bytes]]) -> int:
        count = 0
        for can_id, data in frames:
            self._sock.send(pack(can_id, data))
            count += 1
        return count


def ip(*words: str) -> None:
    subprocess.run(["ip", "link", *words], check=True)


@contextmanager
def extra_bus(name: str = "vcan9") -> Iterator[str]:
    """Have one more bus, which a test may take down and away."""
    ip("add", name, "mtu", "72", "type", "vcan")
    ip("set", name, "up")
    try:
        yield name
    finally:
        subprocess.run(["ip", "link", "del", name], check=False, capture_output=True)


@contextmanager
def candump(path: Path, bus: str = "vcan0") -> Iterator[None]:
    """Record a bus, error frames too, until the block ends."""
    before = len(receivers("all"))
    with (
        path.open("wb") as out,
        subprocess.Popen(
            ["candump", "-L", "-r", "16777216", f"{bus},0:0,#FFFFFFFF"], stdout=out
        ) as dump,
    ):
        wait_for("candump", lambda: len(receivers("all")) > before)
        try:
            yield
        finally:
            time.sleep(0.2)
            dump.terminate()


def recorded(path: Path) -> list[Frame]:
    with read_logs([path]) as recording:
        return list(recording)


LISTS = ("all", "eff", "err", "fil", "inv", "sff")


def receivers(which: str) -> list[str]:
    """Return the lines of the kernel's receive lists that name a receiver.

    Args:
        which: One of `LISTS`: all frames, single extended ids, errors, masks, inverted, single
            standard ids.
    """
    lines = Path(f"/proc/net/can/rcvlist_{which}").read_text().splitlines()
    return [line for line in lines if line.split()[-1:] == ["raw"]]


def listened(bus: str = "vcan0") -> dict[str, set[tuple[int, int]]]:
    """Return list → (can_id, mask) of raw sockets on a bus, as the kernel shows them."""
    found: dict[str, set[tuple[int, int]]] = {}
    for which in LISTS:
        for line in receivers(which):
            device, can_id, mask, *_ = line.split()
            if device == bus:
                found.setdefault(which, set()).add((int(can_id, 16), int(mask, 16)))
    return found


def wait_for(what: str, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"waited {WAIT_S:.0f} s in vain for: {what}")
