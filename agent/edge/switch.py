"""The vehicle's privacy switch in a file: a GPIO line's `value`, or any file of one word.

Rules:
 * It can only restrict: while it says private nothing is collected or published.
 * The file is read anew each time; what cannot be read, or is neither of the two words, says what
   the configuration says of a fault, by default private.
 * Its first state is known before `start` returns, so nothing is taken before it was asked.
"""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

_MAX_BYTES = 64

_log = logging.getLogger(__name__)


class FileSwitch:
    """Looks at the file in a thread of its own until it is closed."""

    def __init__(  # noqa: PLR0913 - the keys of [switch], by keyword
        self,
        path: Path,
        *,
        active: str,
        inactive: str,
        private_on_fault: bool,
        poll_s: float,
        on_switch: Callable[[bool], None],
    ) -> None:
        """Prepare; `start` begins.

        Args:
            path: The file.
            active: What it holds while the switch says private, without white space around it.
            inactive: What it holds while it does not.
            private_on_fault: What the switch says when it cannot be read.
            poll_s: How often it is read.
            on_switch: Gets the first state, and each that differs from the one before: True is
                private. Called in this thread, the first time in the caller's of `start`.
        """
        self._path = path
        self._words = {active: True, inactive: False}
        self._on_fault = private_on_fault
        self._poll_s = poll_s
        self._on_switch = on_switch
        self._can_be_read = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="switch", daemon=True)
        self.is_private = True
        self.turns = 0
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Read it, tell what it says, and begin to look at it."""
        self.is_private = self._read()
        self._on_switch(self.is_private)
        self._thread.start()

    def close(self) -> None:
        """Stop looking. Harmless when called twice."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._poll_s):
                is_private = self._read()
                if is_private != self.is_private:
                    self.is_private = is_private
                    self._on_switch(is_private)
                self.turns += 1
        except Exception as exc:  # noqa: BLE001 - the thread's top, see below
            # The thread's top: the daemon sees the dead lane and ends the process.
            self.failure = exc
            _log.exception("switch died")

    def _read(self) -> bool:
        try:
            # O_NONBLOCK: a pipe in its place must not hold us up.
            fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                word = os.read(fd, _MAX_BYTES).decode("utf-8").strip()
            finally:
                os.close(fd)
            said = self._words.get(word)
            fault = "" if said is not None else "neither active nor inactive"
        except OSError as exc:
            said, fault = None, exc.strerror or "unreadable"
        except UnicodeDecodeError:
            said, fault = None, "no text"
        if fault and self._can_be_read:
            _log.warning("switch fault", extra={"file": str(self._path), "error": fault})
        self._can_be_read = not fault
        return self._on_fault if said is None else said
