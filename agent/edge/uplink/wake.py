"""Wakes a thread that waits for a descriptor, from any other thread."""

import os
import select
from contextlib import suppress


class Wake:
    """A descriptor that becomes readable when somebody calls `set`. Closing twice is harmless.

    Closing it is the owner's affair: nobody may call `set` at the same time.
    """

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def set(self) -> None:
        """Wake the waiting thread; nothing once it is closed."""
        if self.fd >= 0:
            os.eventfd_write(self.fd, 1)

    def clear(self) -> None:
        """Forget that somebody called."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)

    def wait(self, timeout_s: float) -> None:
        """Wait until somebody calls, at most so long, and forget the call."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        poll.poll(timeout_s * 1000)
        self.clear()

    def close(self) -> None:
        """Give the descriptor back."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
