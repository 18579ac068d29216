"""When the watchdog is fed: a real datagram socket hears it."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.edge.systemd import Unit
from agent.watch import Lane, Watch


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


@pytest.fixture
def watch(listener: socket.socket) -> Watch:
    return Watch(Unit(listener.getsockname(), watchdog_s=20.0), now_s=0.0)


def fed(listener: socket.socket) -> int:
    """Return how often the watchdog was fed since the last look."""
    count = 0
    while True:
        try:
            assert listener.recv(100) == b"WATCHDOG=1"
        except BlockingIOError:
            return count
        count += 1


def lanes(capture: int, network: int) -> list[Lane]:
    return [Lane("capture", True, capture), Lane("network", True, network)]


def test_it_is_fed_four_times_in_its_time_while_all_lanes_move(
    watch: Watch, listener: socket.socket
) -> None:
    for second in range(1, 41):
        watch.look(lanes(second, second), now_s=float(second))

    assert fed(listener) == 8


def test_one_lane_that_stands_still_starves_it_and_is_named(
    watch: Watch, listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    watch.look(lanes(1, 1), now_s=5.0)
    before = fed(listener)

    for second in range(6, 40):
        watch.look(lanes(second, 1), now_s=float(second))

    assert before == 1
    assert fed(listener) == 0
    assert [(r.message, r.lanes) for r in caplog.records] == [  # type: ignore[attr-defined]
        ("lane stands still", "network")
    ]


def test_a_lane_that_moves_again_in_time_is_forgiven(watch: Watch, listener: socket.socket) -> None:
    watch.look(lanes(1, 1), now_s=5.0)
    watch.look(lanes(2, 1), now_s=10.0)
    watch.look(lanes(3, 2), now_s=11.0)

    assert fed(listener) == 2


def test_without_a_watchdog_nothing_is_fed(listener: socket.socket) -> None:
    watch = Watch(Unit(listener.getsockname()), now_s=0.0)

    watch.look(lanes(1, 1), now_s=1000.0)

    assert fed(listener) == 0


def test_a_systemd_that_does_not_hear_is_fed_again_at_the_next_look(tmp_path: Path) -> None:
    watch = Watch(Unit(str(tmp_path / "notify"), watchdog_s=20.0), now_s=0.0)
    watch.look(lanes(1, 1), now_s=5.0)

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        watch.look(lanes(2, 2), now_s=6.0)

        assert fed(sock) == 1
