"""A SocketCAN reader and what it handed over."""

import struct
import threading
from typing import Self

from agent.core.model import Frame, Place
from agent.edge.socketcan import SocketCanReader

COUNTED = 0x123  # Frames of this identifier carry their number.


class Tap:
    """A running reader. A context manager.

    Attributes:
        hold: Cleared: whoever takes the frames waits, as a process that is too slow.
        sockets: What `on_socket` told.
        place: Behind the last chunk.
    """

    def __init__(self, bus: str = "vcan0") -> None:
        self.frames: list[Frame] = []
        self.chunks = 0
        self.sockets: list[int | None] = []
        self.place: Place | None = None
        self.hold = threading.Event()
        self.hold.set()
        self.reader = SocketCanReader(
            bus, channel=bus, sink=self._take, on_socket=self.sockets.append
        )

    def __enter__(self) -> Self:
        self.reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hold.set()
        self.reader.close()
        assert self.reader.failure is None

    def ids(self) -> set[int]:
        return {can_id for _, _, can_id, _ in self.frames}

    def counted(self) -> list[int]:
        return [
            struct.unpack("<I", data[:4])[0]
            for _, _, can_id, data in self.frames
            if can_id == COUNTED
        ]

    def _take(self, frames: list[Frame], place: Place) -> None:
        self.hold.wait()
        self.chunks += 1
        self.frames += frames
        self.place = place
