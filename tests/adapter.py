"""A CAN adapter of python-can that does what a script says: the peer of tests of adapters."""

import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

import can
import pytest

Step = can.Message | Exception | threading.Event | None


class Script:
    """What the adapters under one channel do, one opening after the other.

    Attributes:
        openings: For each, what comes by `recv`; an exception is raised, by the opening itself
            where it stands instead of a list; with an event it hangs until that is set. Behind the
            last, the last one's channel is silent.
        opened_s: When each opening was tried, as by time.monotonic.
        options: With what.
    """

    scripts: dict[str, "Script"] = {}  # noqa: RUF012 - by channel, as real adapters are found

    def __init__(self, channel: str, *openings: Iterable[Step] | Exception) -> None:
        self.openings = deque(openings)
        self.opened_s: list[float] = []
        self.options: list[dict[str, Any]] = []
        self.scripts[channel] = self

    def next(self, options: dict[str, Any]) -> deque[Step]:
        self.opened_s.append(time.monotonic())
        self.options.append(options)
        opening = self.openings.popleft() if self.openings else ()
        if isinstance(opening, Exception):
            raise opening
        return deque(opening)


class ScriptedBus(can.BusABC):
    """An adapter of python-can."""

    def __init__(self, channel: str, **options: Any) -> None:
        self._is_shutdown = True  # Until it is open, for BusABC.__del__.
        self._steps = Script.scripts[channel].next(options)
        super().__init__(channel=channel, **options)
        self._is_shutdown = False

    def send(self, msg: can.Message, timeout: float | None = None) -> None:  # noqa: ARG002 - theirs
        raise AssertionError("a reader never sends")

    def _recv_internal(self, timeout: float | None) -> tuple[can.Message | None, bool]:
        if not self._steps:
            time.sleep(min(timeout or 0.0, 0.005))
            return None, False
        step = self._steps.popleft()
        if isinstance(step, Exception):
            raise step
        if isinstance(step, threading.Event):
            step.wait()
            return None, False
        return step, False


def plug_in(monkeypatch: pytest.MonkeyPatch, interface: str) -> None:
    """Let python-can take the scripted adapter for one of this kind."""
    monkeypatch.setitem(
        can.interface.BACKENDS,  # type: ignore[arg-type] # a dict, typed as a mapping
        interface,
        (ScriptedBus.__module__, ScriptedBus.__name__),
    )
