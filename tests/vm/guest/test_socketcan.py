"""The SocketCAN reader on a real kernel: what it reads, when it was, and what it must not see."""

import contextlib
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.core.bushealth import BusState
from agent.core.canfilter import CanFilter, exact_filter, pgn_filter
from agent.edge.socketcan import FrameRing, Received, Receiver, open_raw
from tests.vm.guest.bus import (
    EFF,
    RTR,
    Sender,
    candump,
    extra_bus,
    listened,
    recorded,
    wait_for,
)
from tests.vm.guest.tap import COUNTED, Tap

EVERYTHING = (CanFilter(0, 0),)


@pytest.fixture
def tap() -> Iterator[Tap]:
    with Tap() as made:
        yield made
    assert listened() == {}


@pytest.fixture
def sender() -> Iterator[Sender]:
    with Sender() as made:
        yield made


def test_every_kind_of_frame_comes_as_candump_writes_it(
    tap: Tap, sender: Sender, tmp_path: Path
) -> None:
    """Identifier with flags, data and time to the microsecond."""
    rng = random.Random(7)
    tap.reader.set_filters(EVERYTHING)
    with candump(tmp_path / "log"):
        for length in range(9):
            sender.send(0x100, rng.randbytes(length))
            sender.send(0x100 | EFF, rng.randbytes(length))
        for length in (0, 8, 12, 16, 20, 24, 32, 48, 64):
            sender.send(0x101, rng.randbytes(length), fd=True)
            sender.send(0x1ABCDEF1 | EFF, rng.randbytes(length), fd=True)
        sender.send(0x100 | RTR, length=4)
        sender.send(0x100 | EFF | RTR)
        sender.send(0x7FF, b"\x00")
        wait_for("all frames", lambda: len(tap.frames) == 39)

    assert tap.frames == recorded(tmp_path / "log")
    assert all(t_ns % 1000 == 0 for t_ns, *_ in tap.frames)
    assert abs(tap.frames[-1][0] - time.time_ns()) < 10 * 10**9


def test_many_frames_come_in_few_chunks_and_in_order(tap: Tap, sender: Sender) -> None:
    tap.reader.set_filters([exact_filter(COUNTED)])

    sender.send_all((COUNTED, struct.pack("<I", n)) for n in range(5000))
    wait_for("all frames", lambda: len(tap.frames) == 5000)

    assert tap.counted() == list(range(5000))
    assert tap.chunks < 500
    assert [t for t, *_ in tap.frames] == sorted(t for t, *_ in tap.frames)


def test_what_the_filter_does_not_name_never_reaches_the_process(tap: Tap, sender: Sender) -> None:
    """Babbling identifiers cost the process nothing; a remote frame is not a frame."""
    tap.reader.set_filters([exact_filter(0x200), exact_filter(0x200 | EFF), pgn_filter(0xFEF1)])

    sender.send_all((can_id, b"babble") for can_id in range(0x800) if can_id != 0x200)
    sender.send(0x200 | RTR)
    sender.send(0x0CFEF121 | EFF, b"speed")
    sender.send(0x0CFEF221 | EFF, b"other")
    sender.send(0x200, b"last")
    wait_for("the last frame", lambda: 0x200 in tap.ids())

    assert [(can_id, data) for _, _, can_id, data in tap.frames] == [
        (0x0CFEF121 | EFF, b"speed"),
        (0x200, b"last"),
    ]
    assert tap.reader.health().frames == 2
    assert tap.reader.health().kernel_drops == 0
    assert listened() == {
        "sff": {(0x200, 0xC00007FF)},
        "eff": {(0x80000200, 0xDFFFFFFF)},
        "fil": {(0x80FEF100, 0xC3FFFF00)},
        "err": {(0, 0x1FFFFFFF)},
    }


def test_without_a_filter_no_socket_is_open(tap: Tap, sender: Sender) -> None:
    assert listened() == {}
    assert tap.reader.descriptor is None
    assert tap.reader.health().state is BusState.IDLE
    tap.reader.set_filters([exact_filter(1)])
    assert set(listened()) == {"sff", "err"}

    tap.reader.set_filters(())

    assert listened() == {}
    sender.send(1)
    tap.reader.set_filters([exact_filter(1)])
    sender.send(1, b"x")
    wait_for("a frame", lambda: tap.frames)
    assert [data for *_, data in tap.frames] == [b"x"]
    assert [each is None for each in tap.sockets] == [False, True, False]


def test_new_filters_lose_no_frame_that_stays_granted_and_double_none(
    tap: Tap, sender: Sender
) -> None:
    """On the open socket, while the bus is busy, again and again."""
    keeps = exact_filter(COUNTED)
    sets = [
        [keeps],
        [keeps, exact_filter(0x124), pgn_filter(0xFEF1)],
        [CanFilter(0x120, 0xC00007F0)],  # Wider: the same frame passes by another filter.
        [keeps, CanFilter(0x120, 0xC00007F0)],
        [exact_filter(n) for n in range(0x700)[:500]],
        list(EVERYTHING),
    ]
    tap.reader.set_filters(sets[0])
    done = threading.Event()

    def send() -> None:
        sender.send_all((COUNTED, struct.pack("<I", n)) for n in range(20_000))
        done.set()

    sending = threading.Thread(target=send)
    sending.start()
    swaps = 0
    while not done.is_set():
        tap.reader.set_filters(sets[swaps % len(sets)])
        swaps += 1
        time.sleep(0.0005)
    sending.join()
    wait_for("all frames", lambda: len(tap.counted()) >= 20_000)

    assert tap.counted() == list(range(20_000))
    assert swaps > 100
    assert len(tap.sockets) == 1


@pytest.fixture
def small_buffers() -> Iterator[None]:
    """Give sockets Debian's default: 555 frames."""
    limit = Path("/proc/sys/net/core/rmem_max")
    before = limit.read_text()
    limit.write_text("212992")
    yield
    limit.write_text(before)


@pytest.mark.usefixtures("small_buffers")
def test_frames_that_the_process_is_too_slow_for_are_counted(tap: Tap, sender: Sender) -> None:
    """Received and dropped are together what was sent, though the last are dropped too."""
    sent = 10_000
    tap.reader.set_filters(EVERYTHING)
    tap.hold.clear()
    sender.send_all((COUNTED, struct.pack("<I", n)) for n in range(sent))
    dropped = tap.reader.health().kernel_drops

    tap.hold.set()
    wait_for("all frames", lambda: len(tap.frames) + dropped == sent)

    assert dropped > 0
    assert tap.reader.health().kernel_drops == dropped
    assert tap.reader.health().frames == len(tap.frames) == len(set(tap.counted()))


@pytest.mark.usefixtures("small_buffers")
def test_a_frame_brings_the_count_of_those_dropped_before_it(sender: Sender) -> None:
    """SO_RXQ_OVFL: told without being asked, from the first frame behind the gap on."""
    receiver = Receiver(FrameRing("b", "can0"))
    with open_raw("vcan0", [exact_filter(COUNTED)]) as sock:
        sender.send_all((COUNTED, struct.pack("<I", n)) for n in range(1000))
        before = [received.drops for received in emptied(sock, receiver)]
        sender.send(COUNTED)
        (last,) = emptied(sock, receiver)

    assert before[0] is None
    assert last.drops == 1000 - 555  # What fits into Debian's default.


def emptied(sock: socket.socket, receiver: Receiver) -> list[Received]:
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(receiver.receive(sock))
    return found


def test_another_process_goes_on_with_the_socket(sender: Sender) -> None:
    """What comes while nobody reads lies in it, with its times; so nothing is lost."""
    with Tap() as first:
        first.reader.set_filters([exact_filter(COUNTED)])
        sender.send(COUNTED, struct.pack("<I", 0))
        wait_for("a frame", lambda: first.frames)
        assert first.reader.descriptor is not None
        kept = os.dup(first.reader.descriptor)
    before_ns = time.time_ns()
    sender.send_all((COUNTED, struct.pack("<I", n)) for n in range(1, 300))
    after_ns = time.time_ns()

    second = Tap()
    second.reader.adopt(kept)
    second.reader.set_filters([exact_filter(COUNTED), exact_filter(0x124)])
    with second:
        sender.send(0x124)
        wait_for("all frames", lambda: len(second.frames) == 300)

    assert first.counted() + second.counted() == list(range(300))
    assert all(before_ns - 1000 <= t_ns <= after_ns for t_ns, *_ in second.frames[:-1])
    assert listened() == {}


@pytest.mark.parametrize("make", ["other bus", "other family", "removed"])
def test_a_kept_socket_that_is_not_of_this_bus_is_replaced(
    make: str, tap: Tap, sender: Sender
) -> None:
    tap.reader.adopt(foreign_sockets()[make]())

    tap.reader.set_filters([exact_filter(1)])
    sender.send(1)
    wait_for("a frame", lambda: tap.frames)

    assert listened("vcan1") == {}


def foreign_sockets() -> dict[str, Callable[[], int]]:
    def bound(bus: str) -> int:
        sock = socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW)
        sock.bind((bus,))
        return sock.detach()

    def removed() -> int:
        with extra_bus() as bus:
            return bound(bus)

    return {
        "other bus": lambda: bound("vcan1"),
        "other family": lambda: socket.socket().detach(),
        "removed": removed,
    }


def test_a_kept_socket_that_nobody_wants_any_more_is_closed(tap: Tap) -> None:
    tap.reader.adopt(foreign_sockets()["other bus"]())

    tap.reader.set_filters(())

    assert listened("vcan1") == {}
    assert tap.sockets == [None]


def test_closing_twice_and_a_filter_after_it_are_harmless() -> None:
    with Tap() as made:
        pass
    made.reader.close()

    made.reader.set_filters(())

    assert listened() == {}
