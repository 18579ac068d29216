"""The thread of a reader whose adapter comes and goes: opened while wanted, tried when lost.

Rules:
 * The adapter is open while something is wanted of it, and at no other time.
 * One that cannot be opened or read is tried again with growing pauses (`Pauses`), told by
   `Condition`.
 * The thread moves at least every `MOVE_S`, whatever it waits for.
 * What an adapter raises when it is lost is for its reader to name. Anything else ends the thread,
   and with it the process: the daemon sees the dead lane.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

from agent.condition import Condition
from agent.core.bushealth import BusHealth, BusState
from agent.core.canfilter import CanFilter
from agent.errors import BusError

POLL_S = 0.5  # How long a silent adapter is waited for before the flags are looked at.
MOVE_S = 5.0
MIN_PAUSE_S = 0.5
MAX_PAUSE_S = 30.0
STEADY_S = 10.0  # An adapter that was open for so long works; one that gave a frame does, too.
JOIN_S = 1.0  # A reader whose adapter hangs is not waited for: it has nothing that must be stored.

Port = TypeVar("Port")

_log = logging.getLogger(__name__)


class Pauses:
    """How long to wait before an adapter is tried again: twice as long each time."""

    def __init__(self) -> None:
        self._next_s = MIN_PAUSE_S

    def after(self, *, open_s: float, frames: int) -> float:
        """Return the pause after a loss, in s.

        Args:
            open_s: How long the adapter was open; 0 where it could not be opened.
            frames: That it gave meanwhile.
        """
        if frames or open_s >= STEADY_S:
            self._next_s = MIN_PAUSE_S
        pause_s, self._next_s = self._next_s, min(self._next_s * 2, MAX_PAUSE_S)
        return pause_s


class AdapterReader(ABC, Generic[Port]):
    """Reads one adapter in a thread of its own until it is closed. What it is, a subclass says.

    Attributes:
        name: The bus's name in frames.
        turns: Rises whenever the thread has gone round its loop.
        failure: What ended the thread, if anything did.
    """

    _losses: tuple[type[Exception], ...] = (BusError, OSError)

    def __init__(self, name: str, *, clock: Callable[[], int]) -> None:
        """Prepare; `start` begins.

        Args:
            name: The bus's name in frames.
            clock: ns since the epoch.
        """
        self.name = name
        self.turns = 0
        self.failure: BaseException | None = None
        self._clock = clock
        self._condition = Condition(name)
        self._stop = threading.Event()
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"bus-{name}", daemon=True)

    @abstractmethod
    def _open(self) -> AbstractContextManager[Port]:
        """Open the adapter.

        Raises:
            BusError: It is not there.
        """

    @abstractmethod
    def _read(self, port: Port) -> None:
        """Hand over what comes; wait for it at most `POLL_S`."""

    def set_filters(self, filters: Sequence[CanFilter]) -> None:
        """Read while there are filters; () closes the adapter within `POLL_S`. For any thread."""
        if filters:
            self._wanted.set()
        elif not self._stop.is_set():
            self._wanted.clear()

    def start(self) -> None:
        """Begin reading; the adapter is opened in the reader's thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; `close` waits for it."""
        self._stop.set()
        self._wanted.set()  # Wakes it where nothing is wanted.

    def close(self) -> None:
        """Stop reading and give the adapter back. Harmless when called twice."""
        self.stop()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=JOIN_S)

    @property
    def is_alive(self) -> bool:
        """Whether the reader's thread runs."""
        return self._thread.is_alive()

    def health(self) -> BusHealth:
        """Return how the bus does now. For any thread."""
        return self._condition.health()

    def _run(self) -> None:
        pauses = Pauses()
        try:
            while not self._stop.is_set():
                self.turns += 1
                if not self._wanted.wait(MOVE_S):
                    continue
                frames, opened_s = self._condition.frames, None
                try:
                    with self._open() as port:
                        opened_s = time.monotonic()
                        self._condition.enter(BusState.ACTIVE, self._clock())
                        self._read_on(port)
                    self._condition.enter(BusState.IDLE, self._clock())
                except self._losses as exc:
                    self._condition.lose(self._clock(), str(exc))
                    open_s = 0.0 if opened_s is None else time.monotonic() - opened_s
                    came = self._condition.frames - frames
                    self._pause(pauses.after(open_s=open_s, frames=came))
        except Exception as exc:  # noqa: BLE001 - the thread's top: see the rules
            self.failure = exc
            _log.exception("bus reader died", extra={"bus": self.name})

    def _read_on(self, port: Port) -> None:
        while self._wanted.is_set() and not self._stop.is_set():
            self.turns += 1
            self._condition.look(self._clock())
            self._read(port)

    def _pause(self, left_s: float) -> None:
        while left_s > 0 and self._wanted.is_set() and not self._stop.wait(min(left_s, MOVE_S)):
            left_s -= MOVE_S
            self.turns += 1
