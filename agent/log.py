"""Log lines on stderr: an event, then its facts as key=value.

Rules:
 * Events, not prose: `log.info("policy applied", extra={"version": 7})`.
 * Never per frame, never a signal value, a position, a VIN or a key.
 * journald adds time and unit; a terminal gets the time from us.
 * What a fault can make come again and again goes through `Repeats`.
"""

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Final

REPEAT_S = 10.0

_STANDARD: Final = frozenset(
    logging.LogRecord("", 0, "", 0, "", None, None).__dict__ | {"message": "", "asctime": ""}
)


class _EventFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
        line = f"{record.levelname.lower()}: {record.getMessage()}"
        for key, value in facts.items():
            text = str(value)
            line += f" {key}={text if text and ' ' not in text else repr(text)}"
        if sys.stderr.isatty():
            line = f"{self.formatTime(record, '%H:%M:%S')} {line}"
        if record.exc_info:
            line += f"\n{self.formatException(record.exc_info)}"
        return line


def start_logging(level: str) -> None:
    """Send the log to stderr.

    Args:
        level: debug, info, warning or error.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_EventFormatter())
    logging.getLogger().handlers[:] = [handler]
    set_level(level)
    # Libraries speak of frames and packets at their lower levels, or of themselves.
    for noisy in ("can", "paho", "cantools", "numexpr"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def set_level(level: str) -> None:
    """Let through lines from this level on: debug, info, warning or error."""
    logging.getLogger().setLevel(level.upper())


class Repeats:
    """Holds repeats of a line back, and says how many. Used by one thread at a time."""

    def __init__(
        self, every_s: float = REPEAT_S, *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin with nothing held back.

        Args:
            every_s: A line comes at most this often.
            clock_s: Seconds that only rise.
        """
        self._every_s = every_s
        self._clock_s = clock_s
        self._next_s: dict[Hashable, float] = {}
        self._held: Counter[Hashable] = Counter()

    def due(self, line: Hashable) -> int | None:
        """Return how many were held back since the last one, or None where this one is, too."""
        now_s = self._clock_s()
        if now_s < self._next_s.get(line, now_s):
            self._held[line] += 1
            return None
        self._next_s[line] = now_s + self._every_s
        return self._held.pop(line, 0)
