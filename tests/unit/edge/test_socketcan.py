"""What of the SocketCAN reader can be tried without SocketCAN; the rest is in tests/vm/guest."""

import ast
import os
import time
from pathlib import Path

import pytest

from agent.core.bushealth import BusState
from agent.core.canfilter import exact_filter
from agent.edge import socketcan
from agent.edge.socketcan import SocketCanReader

SOURCES = sorted(Path(socketcan.__file__).parent.glob("*.py"))


def test_there_is_no_call_that_writes_to_a_socket() -> None:
    """Whatever has send or write in its name, but for the event that wakes our own thread."""
    names = {
        node.attr
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    writing = {name for name in names if "send" in name or "write" in name}

    assert len(SOURCES) > 3
    assert writing == {"eventfd_write"}
    (libc,) = (path for path in SOURCES if "ctypes.CDLL" in path.read_text(encoding="utf-8"))
    assert libc.read_text(encoding="utf-8").count("CDLL(None, use_errno=True).recvmmsg\n") == 1


def test_a_reader_whose_interface_is_missing_lives_and_tries_again() -> None:
    reader = SocketCanReader("b", channel="none-such", sink=lambda *_: None)
    reader.set_filters([exact_filter(1)])
    reader.start()
    until = time.monotonic() + 5
    while reader.health().reconnects < 3 and time.monotonic() < until:
        time.sleep(0.01)

    health = reader.health()
    reader.close()

    assert health.state is BusState.MISSING
    assert health.reconnects >= 3
    assert reader.failure is None
    assert not reader.is_alive


def test_a_kept_descriptor_that_nobody_wants_is_closed() -> None:
    kept, other = os.pipe()
    told: list[int | None] = []
    reader = SocketCanReader("b", channel="none-such", sink=lambda *_: None, on_socket=told.append)
    reader.adopt(kept)

    reader.set_filters(())
    reader.close()

    with pytest.raises(BrokenPipeError):
        os.write(other, b"x")
    os.close(other)
    assert told == [None]


def test_a_kept_descriptor_of_another_interface_is_not_kept_on_though_ours_is_missing() -> None:
    """With its old filter, systemd would hold it open even after a revocation."""
    kept, other = os.pipe()
    told: list[int | None] = []
    reader = SocketCanReader("b", channel="none-such", sink=lambda *_: None, on_socket=told.append)
    reader.adopt(kept)

    reader.set_filters([exact_filter(1)])

    with pytest.raises(BrokenPipeError):
        os.write(other, b"x")
    os.close(other)
    assert told == [None]
    assert reader.health().state is BusState.MISSING
    reader.set_filters(())
    reader.close()
    assert told == [None]
