"""Room on the disk for what the ledger must not lose; its file is the ledger's lock."""

import errno
import fcntl
import os
from pathlib import Path

from agent.errors import StoreBusy

_PAGE_BYTES = 4096
_STEP_BYTES = 4 * _PAGE_BYTES
# A quota (EDQUOT) or a file-size limit (EFBIG) is a full disk too.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_full(exc: OSError) -> bool:
    """Tell whether a write failed for want of room."""
    return exc.errno in _FULL


class Reserve:
    """Some kilobytes of nothing, given up bit by bit when the disk is full."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        """Take the lock and the room; a disk that has none gives it later.

        Raises:
            StoreBusy: Another process holds it.
            OSError: The file cannot be opened.
        """
        self._size = size_bytes
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(self._fd)
            raise StoreBusy(
                f"the ledger beside {path} is held by another process, expected by none",
                hint="stop the other agent; a state directory has one owner",
            ) from exc
        self._left = 0
        self.fill()

    def give(self, needed_bytes: int) -> bool:
        """Free room for a line; return whether there was any left to free."""
        if self._left <= 0:
            return False
        self._left = max(0, self._left - needed_bytes - _STEP_BYTES)
        try:
            os.ftruncate(self._fd, self._left)
        except OSError:
            return False
        return True

    def fill(self) -> None:
        """Take the room again, as much as there is."""
        step = self._size - self._left
        while step > 0:
            try:
                os.posix_fallocate(self._fd, 0, self._left + step)
            except OSError:
                step = step // 2 if step >= 2 * _PAGE_BYTES else 0
            else:
                self._left += step
                step = min(step, self._size - self._left)

    def close(self) -> None:
        """Let others in."""
        os.close(self._fd)
