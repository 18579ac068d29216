"""How an adapter is tried again: when the pauses grow, and when they begin anew."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from agent import adapter
from agent.adapter import MAX_PAUSE_S, MIN_PAUSE_S, STEADY_S, AdapterReader, Pauses
from agent.core.bushealth import BusState
from agent.core.canfilter import exact_filter
from tests.rig import wait_for


def test_pauses_grow_to_a_limit_while_an_adapter_gives_nothing() -> None:
    pauses = Pauses()

    got = [pauses.after(open_s=STEADY_S / 2, frames=0) for _ in range(9)]

    assert got == [min(MIN_PAUSE_S * 2**n, MAX_PAUSE_S) for n in range(9)]


@pytest.mark.parametrize(("open_s", "frames"), [(STEADY_S, 0), (0.0, 1)])
def test_pauses_begin_anew_with_an_adapter_that_worked(open_s: float, frames: int) -> None:
    pauses = Pauses()
    for _ in range(3):
        pauses.after(open_s=0.0, frames=0)

    got = [pauses.after(open_s=open_s, frames=frames), pauses.after(open_s=0.0, frames=0)]

    assert got == [MIN_PAUSE_S, 2 * MIN_PAUSE_S]


class Counting(AdapterReader[None]):
    """A reader that counts, and fails as it is told to."""

    def __init__(self, fault: Exception | None = None) -> None:
        super().__init__("b", clock=lambda: 0)
        self.is_open = threading.Event()
        self._fault = fault

    @contextmanager
    def _open(self) -> Iterator[None]:
        self.is_open.set()
        yield
        self.is_open.clear()

    def _read(self, port: None) -> None:  # noqa: ARG002 - there is none
        if self._fault is not None:
            raise self._fault


def test_an_adapter_is_open_only_while_something_is_wanted_of_it() -> None:
    reader = Counting()
    reader.start()
    assert not reader.is_open.wait(0.02)

    reader.set_filters([exact_filter(1)])
    assert reader.is_open.wait(5)
    reader.set_filters(())
    wait_for("it to be closed", lambda: not reader.is_open.is_set())
    reader.close()

    assert reader.health().state is BusState.IDLE
    assert not reader.is_alive


def test_a_reader_that_waits_for_its_next_try_moves_and_ends_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapter, "MOVE_S", 0.001)
    monkeypatch.setattr(adapter, "MIN_PAUSE_S", 3600.0)
    reader = Counting(OSError("gone"))
    reader.set_filters([exact_filter(1)])
    reader.start()

    wait_for("turns", lambda: reader.turns > 5)
    reader.close()

    assert reader.health().reconnects == 1
    assert not reader.is_alive


def test_what_is_no_loss_of_the_adapter_ends_the_reader(caplog: pytest.LogCaptureFixture) -> None:
    reader = Counting(KeyError("ours"))
    reader.set_filters([exact_filter(1)])
    reader.start()
    wait_for("the end", lambda: not reader.is_alive)

    assert isinstance(reader.failure, KeyError)
    assert [record.message for record in caplog.records] == ["bus reader died"]
