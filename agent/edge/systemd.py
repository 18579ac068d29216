"""The unit that systemd runs us as: what we tell it, and the sockets that it keeps for us.

    READY=1 STATUS=…            policy and spool are open
    STATUS=…                    how we are, when it changes
    WATCHDOG=1                  every lane has moved
    RELOADING=1 … READY=1       SIGHUP: the files are read anew
    STOPPING=1                  SIGTERM
    FDSTORE=1 FDNAME=… FDPOLL=0 keep this socket; its next owner finds it under the name
    FDSTOREREMOVE=1 FDNAME=…    it is closed

Rules:
 * Where nobody started us as a unit, every call does nothing.
 * A message that systemd does not take within a moment is given up: a lane never hangs on it.
 * What systemd handed over is for this process alone: the variables are taken out of the
   environment, and no child inherits a descriptor.

The protocol is sd_notify(3), sd_listen_fds(3) and sd_watchdog_enabled(3) of systemd 252.
"""

import logging
import os
import socket
import time
from collections.abc import MutableMapping
from typing import Self

from agent.core.model import NS_PER_US

FIRST_FD = 3  # SD_LISTEN_FDS_START
TAKE_TIMEOUT_S = 1.0
US_PER_S = 1_000_000

_log = logging.getLogger(__name__)


class Unit:
    """This process as a unit of systemd. Its methods may be called from any thread."""

    def __init__(
        self,
        address: str | None,
        *,
        watchdog_s: float | None = None,
        inherited: list[tuple[str, int]] | None = None,
    ) -> None:
        """Describe the unit; `from_environment` finds it.

        Args:
            address: Of systemd's datagram socket, `@` in front for an abstract one; None: no unit.
            watchdog_s: How long systemd waits for `feed` before it ends us; None: for ever.
            inherited: (name, descriptor) of what was kept over the restart.
        """
        self._address = address
        self._inherited = inherited or []
        # By name, what tells the kept descriptor from others.
        self._kept = {name: _identity(descriptor) for name, descriptor in self._inherited}
        self.watchdog_s = watchdog_s

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Self:
        """Return the unit that the environment tells of, and take it out of the environment."""
        pid = str(os.getpid())
        address = environment.pop("NOTIFY_SOCKET", "")
        watched_pid = environment.pop("WATCHDOG_PID", pid)
        watchdog_us = environment.pop("WATCHDOG_USEC", "")
        listener_pid = environment.pop("LISTEN_PID", "")
        count = environment.pop("LISTEN_FDS", "")
        names = environment.pop("LISTEN_FDNAMES", "")
        watchdog_s, inherited = None, None
        if watched_pid == pid and watchdog_us.isdecimal() and int(watchdog_us):
            watchdog_s = int(watchdog_us) / US_PER_S
        if listener_pid == pid and count.isdecimal():
            inherited = _inherited(int(count), names)
        return cls(
            address if address[:1] in {"/", "@"} else None,
            watchdog_s=watchdog_s,
            inherited=inherited,
        )

    @property
    def is_there(self) -> bool:
        """Whether systemd runs us."""
        return self._address is not None

    def ready(self, status: str) -> None:
        """Say that we run, or run again after `reloading`, and how in a few words."""
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that the files are read anew; `ready` ends it."""
        # The stamp tells systemd from 253 on which of several reloads this one answers.
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // NS_PER_US
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now_us}")

    def stopping(self) -> None:
        """Say that we end."""
        self._tell("STOPPING=1", "STATUS=storing what is open")

    def say(self, status: str) -> None:
        """Say how we are in a few words, for `systemctl status`."""
        self._tell(f"STATUS={status}")

    def feed(self) -> bool:
        """Feed the watchdog; False if it was not taken."""
        return self._tell("WATCHDOG=1")

    def keep(self, name: str, descriptor: int) -> None:
        """Let systemd keep a descriptor over restarts and crashes.

        Args:
            name: Of A-Z a-z 0-9 _ -; another descriptor that was kept under it is replaced.
            descriptor: Stays ours; systemd gets a copy.
        """
        identity = _identity(descriptor)
        if self._kept.get(name) == identity:
            return  # No moment without it: a crash may come at any time.
        if name in self._kept:
            self.drop(name)
        self._kept[name] = identity
        # FDPOLL=0: without it systemd throws a socket away that reports an error, as a CAN socket
        # does when its interface goes down.
        self._tell("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", descriptors=[descriptor])

    def drop(self, name: str) -> None:
        """Let systemd close what it keeps under a name."""
        self._kept.pop(name, None)
        self._tell("FDSTOREREMOVE=1", f"FDNAME={name}")

    def take(self, name: str) -> int | None:
        """Return the descriptor that was kept under a name, now the caller's; None without one."""
        for index, (kept_as, descriptor) in enumerate(self._inherited):
            if kept_as == name:
                del self._inherited[index]
                return descriptor
        return None

    def drop_rest(self) -> list[str]:
        """Close what was kept and nobody took; return the names."""
        names = [name for name, _ in self._inherited]
        for name, descriptor in self._inherited:
            os.close(descriptor)
            self.drop(name)
        self._inherited.clear()
        return names

    def _tell(self, *assignments: str, descriptors: list[int] | None = None) -> bool:
        if self._address is None:
            return False
        address = f"\0{self._address[1:]}" if self._address[0] == "@" else self._address
        message = "\n".join(assignments).encode()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(TAKE_TIMEOUT_S)
                sock.connect(address)
                socket.send_fds(sock, [message], descriptors or [])
        except OSError as exc:
            _log.warning(
                "systemd did not take a message",
                extra={"kind": assignments[0], "error": exc.strerror or str(exc)},
            )
            return False
        return True


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def _inherited(count: int, names: str) -> list[tuple[str, int]]:
    """Return (name, descriptor) of each, kept from children."""
    told = names.split(":") if names else []
    told += ["unknown"] * (count - len(told))  # As sd_listen_fds_with_names does.
    found = [(name, FIRST_FD + index) for index, name in enumerate(told[:count])]
    for _, descriptor in found:
        os.set_inheritable(descriptor, False)
    return found
