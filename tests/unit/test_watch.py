"""Which lane stands still, and when the watchdog is fed: a real datagram socket hears it."""

import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from agent.edge.systemd import Unit
from agent.watch import STILL_S, Lane, Movement, Watch


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


def test_one_lane_that_stands_still_starves_it(watch: Watch, listener: socket.socket) -> None:
    watch.look(lanes(1, 1), now_s=5.0)
    before = fed(listener)

    for second in range(6, 40):
        watch.look(lanes(second, 1), now_s=float(second))

    assert (before, fed(listener)) == (1, 0)


def watched(moves: Callable[[int], int], seconds: Iterable[int]) -> list[float | None]:
    """Return for how long the network lane has stood still, at each look; capture always moves."""
    movement = Movement()
    found = []
    for second in seconds:
        movement.look(lanes(second, moves(second)), now_s=float(second))
        assert movement.still_s("capture", now_s=float(second)) is None
        found.append(movement.still_s("network", now_s=float(second)))
    return found


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.message, record.__dict__["lane"]) for record in caplog.records]


def test_a_lane_that_stands_still_is_named_once_and_again_when_it_moves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Before a watchdog of 20 s ends it, and after twice the time that a lane may take."""
    caplog.set_level("INFO")

    found = watched(lambda second: min(second, 5) + second // 30, range(40))

    assert found[:15] == [None] * 15
    assert found[15:30] == [float(second - 5) for second in range(15, 30)]
    assert found[30:] == [None] * 10
    assert told(caplog) == [("lane stands still", "network"), ("lane moves again", "network")]


def test_a_lane_that_moves_every_five_seconds_does_not_stand(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert watched(lambda second: second // 5, range(100)) == [None] * 100
    assert told(caplog) == []


def test_who_stood_still_itself_accuses_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """The whole machine stood: after it each lane has its time anew."""
    found = watched(lambda _: 0, [0, 1, 60, 61, 65, 69])

    assert found == [None] * 6
    assert told(caplog) == []


def test_a_lane_that_was_begun_anew_with_the_same_count_has_its_time_anew() -> None:
    movement = Movement()
    for second in range(20):
        gone = lanes(second, 0)[: 2 if second < 5 or second > 8 else 1]
        movement.look(gone, now_s=float(second))

        assert (movement.still_s("network", now_s=second) is None) is (second < 9 + STILL_S)


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
