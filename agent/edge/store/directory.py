"""The state directory: one owner, one process, and some room kept for what ends consent.

    consent.db, spool.db, each with -wal      the databases
    consent.db.corrupt-<n>, spool.db.corrupt-<n>      set aside
    reserve                                   some megabytes of nothing
    lock                                      held while open

Rules:
 * The directory and its files are one user's, and closed to all others.
 * One process: a lock file keeps every other one out.
 * On a full disk the reserve file gives its room to what ends consent; the last of it to nothing
   else. What is left is kept again at once, before another writer takes it.
"""

import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path

from agent.errors import StoreBusy, StoreError

CONSENT_BYTES = 4 << 20  # A policy of 64 KiB and the log of a piecewise erasure, with room.
RESERVE_BYTES = CONSENT_BYTES + (2 << 20)  # And once the room for the spool's log.
_PAGE_BYTES = 4096


class StateDirectory:
    """The directory, held. Closing twice is harmless.

    Attributes:
        path: Where it is.
        is_roomy: The reserve is whole. While it is not, nothing else may take room.
    """

    def __init__(self, path: Path) -> None:
        """Hold the directory, creating it where it is missing.

        Raises:
            StoreBusy: Another process holds it.
            StoreError: Wrong mode or owner, or the disk refused.
        """
        self.path = path
        _check_directory(path)
        for name in ("lock", "reserve"):
            self.check(name)
        self._lock = _take_lock(path)
        self.is_roomy = False
        self.fill_reserve()

    def close(self) -> None:
        """Let others in."""
        if self._lock >= 0:
            self.fill_reserve()  # With the room of the logs, which are removed when files close.
            os.close(self._lock)
            self._lock = -1

    def check(self, name: str) -> None:
        """Check that a file, if it is there, is this user's and nobody else's.

        Raises:
            StoreError: Another owner or mode, or the disk refused.
        """
        path = self.path / name
        try:
            found = path.stat()
        except FileNotFoundError:
            return
        except OSError as exc:
            raise StoreError(f"state file {path}: {exc.strerror}") from exc
        me, mode = os.geteuid(), stat.S_IMODE(found.st_mode)
        if found.st_uid != me:
            raise StoreError(
                f"state file {path} belongs to uid {found.st_uid}, expected {me}",
                hint=f"chown {me} {path}",
            )
        if mode & 0o077 and stat.S_ISREG(found.st_mode):
            raise StoreError(
                f"state file {path} has mode {mode:04o}, expected 0600",
                hint=f"find out who could write it, then chmod 0600 {path}",
            )

    def evidence(self) -> tuple[str, ...]:
        """Return the names of files and ledgers that were damaged and set aside, in order."""
        found = (
            path.name for word in ("corrupt", "damaged") for path in self.path.glob(f"*.{word}-*")
        )
        return tuple(sorted(name for name in found if name.rpartition("-")[2].isdecimal()))

    def free_bytes(self) -> int:
        """Return how much room the disk has for us, without the reserve.

        Raises:
            StoreError: The disk does not say.
        """
        try:
            found = os.statvfs(self.path)
        except OSError as exc:
            raise StoreError(f"state directory {self.path}: {exc.strerror}") from exc
        return found.f_bavail * found.f_frsize

    def release_reserve(self, *, but_bytes: int = 0) -> None:
        """Give the kept room to whoever needs it now.

        Args:
            but_bytes: So much of it is not given.
        """
        path = self.path / "reserve"
        with suppress(OSError):
            os.truncate(path, min(but_bytes, path.stat().st_size))

    def fill_reserve(self) -> None:
        """Keep the room again, as much of it as there is."""
        # On a full disk there is none until room is made; that is no reason to stop.
        self.is_roomy = False
        with suppress(OSError):
            self.is_roomy = keep_room(self.path / "reserve", RESERVE_BYTES)


def keep_room(path: Path, size_bytes: int) -> bool:
    """Make a file as long as that, with zeros and blocks of its own, or as the disk allows.

    Returns:
        Whether it is as long now.

    Raises:
        OSError: It cannot be opened.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        step = size_bytes - size
        while step > 0:
            # All or nothing: what a full disk has left is found by halving.
            try:
                os.posix_fallocate(fd, size, step)
            except OSError:
                step = step // 2 if step >= 2 * _PAGE_BYTES else 0
            else:
                size += step
                step = min(step, size_bytes - size)
    finally:
        os.close(fd)
    return size >= size_bytes


def _check_directory(directory: Path) -> None:
    try:
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        found = directory.stat()
    except OSError as exc:
        raise StoreError(
            f"state directory {directory}: {exc.strerror}",
            hint="create its parent folder, or name another directory in the configuration",
        ) from exc
    if not stat.S_ISDIR(found.st_mode):
        raise StoreError(f"state directory {directory} is not a directory")
    me = os.geteuid()
    if found.st_uid != me:
        raise StoreError(
            f"state directory {directory} belongs to uid {found.st_uid}, expected {me}",
            # Given to root it would be closed to the agent.
            hint=f"chown -R {me} {directory}" if me else f"run it as uid {found.st_uid}",
        )
    if found.st_mode & 0o077:
        raise StoreError(
            f"state directory {directory} has mode {stat.S_IMODE(found.st_mode):04o},"
            " expected 0700",
            hint=f"chmod 0700 {directory}",
        )


def _take_lock(directory: Path) -> int:
    try:
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise StoreError(f"state directory {directory}: {exc.strerror}") from exc
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(fd)
        raise StoreBusy(
            f"state directory {directory} is held by another process, expected by none",
            hint="stop the other agent; a state directory has one owner",
        ) from exc
    return fd
