"""A device on a pty, under a path that stays when it is unplugged and plugged in again."""

import os
import select
import threading
import tty
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from agent.core.model import CAN_EFF_FLAG, CAN_EFF_MASK, CAN_RTR_FLAG, Frame


class SerialDevice:
    """The device's end of a serial line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ends: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        self.plug()
        return self

    def __exit__(self, *_: object) -> None:
        self.unplug()

    @property
    def ends(self) -> tuple[int, int]:
        """Descriptors of our end and of the other, while it is plugged in."""
        assert self._ends is not None, "it is plugged in"
        return self._ends

    def plug(self) -> None:
        ours, theirs = os.openpty()
        tty.setraw(theirs)
        self._ends = ours, theirs
        self.path.symlink_to(os.ttyname(theirs))

    def unplug(self) -> None:
        if self._ends is not None:
            self.path.unlink()
            for end in self._ends:
                os.close(end)
            self._ends = None

    def say(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.ends[0], data[:4096]) :]


class SlcanAdapter(SerialDevice):
    """A CAN adapter that speaks slcan (Lawicel): it sends frames once its channel was opened."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked: list[str] = []
        self.is_open = threading.Event()
        self._stop = threading.Event()

    def plug(self) -> None:
        super().plug()
        self.is_open.clear()
        self._stop.clear()
        self._thread = threading.Thread(target=self._obey, args=(self.ends[0],))
        self._thread.start()

    def unplug(self) -> None:
        if self._ends is not None:
            self._stop.set()
            self._thread.join()
        super().unplug()

    def send(self, frames: Iterable[Frame]) -> None:
        for _, _, can_id, data in frames:
            self.say(slcan_line(can_id, data))

    def _obey(self, line: int) -> None:
        rest = b""
        while not self._stop.is_set():
            if not select.select([line], [], [], 0.02)[0]:
                continue
            *commands, rest = (rest + os.read(line, 4096)).split(b"\r")
            for command in commands:
                self.asked.append(command.decode("ascii"))
                if command[:1] in (b"O", b"L"):
                    self.is_open.set()
                elif command[:1] == b"C":
                    self.is_open.clear()


def slcan_line(can_id: int, data: bytes) -> bytes:
    """Return a frame as the adapter writes it."""
    remote = bool(can_id & CAN_RTR_FLAG)
    number = f"{can_id & CAN_EFF_MASK:08X}" if can_id & CAN_EFF_FLAG else f"{can_id & 0x7FF:03X}"
    kind = "r" if remote else "t"
    kind = kind.upper() if can_id & CAN_EFF_FLAG else kind
    return f"{kind}{number}{len(data)}{data.hex().upper()}\r".encode("ascii")
