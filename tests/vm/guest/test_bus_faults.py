"""A bus fails in every way that can be shown here; the reader stays up and comes back by itself."""

import logging
import struct
import subprocess
import time
from collections.abc import Iterator

import pytest

from agent import condition
from agent.core.bushealth import BusState
from agent.core.canfilter import exact_filter
from tests.vm.guest.bus import EFF, ERR, Sender, extra_bus, ip, listened, wait_for
from tests.vm.guest.tap import COUNTED, Tap

BUS = "vcan9"


@pytest.fixture
def tap() -> Iterator[Tap]:
    with Tap(BUS) as made:
        made.reader.set_filters([exact_filter(COUNTED)])
        yield made


def state_is(tap: Tap, state: BusState) -> None:
    wait_for(state.value, lambda: tap.reader.health().state is state)


def sees_a_frame(tap: Tap) -> None:
    """Send one and wait for it."""
    before = len(tap.frames)
    with Sender(BUS) as sender:
        sender.send(COUNTED, struct.pack("<I", before))
        wait_for("a frame", lambda: len(tap.frames) > before)


def test_an_interface_that_comes_after_the_agent_is_read(tap: Tap) -> None:
    state_is(tap, BusState.MISSING)
    assert tap.sockets == []

    with extra_bus():
        state_is(tap, BusState.ACTIVE)
        sees_a_frame(tap)

    assert tap.reader.health().reconnects > 0


def test_an_interface_that_is_down_at_the_start_is_read_once_it_is_up() -> None:
    with extra_bus():
        ip("set", BUS, "down")
        with Tap(BUS) as tap:
            tap.reader.set_filters([exact_filter(COUNTED)])
            state_is(tap, BusState.DOWN)

            ip("set", BUS, "up")
            sees_a_frame(tap)

            assert tap.reader.health().state is BusState.ACTIVE


def test_an_interface_that_goes_down_and_up_keeps_its_socket_and_its_filters(
    tap: Tap, caplog: pytest.LogCaptureFixture
) -> None:
    with extra_bus():
        state_is(tap, BusState.ACTIVE)
        sees_a_frame(tap)
        for _ in range(3):
            ip("set", BUS, "down")
            state_is(tap, BusState.DOWN)
            ip("set", BUS, "up")
            state_is(tap, BusState.ACTIVE)  # Without a frame: a silent bus is not down.
            sees_a_frame(tap)

        assert len(tap.sockets) == 1
        assert listened(BUS)["sff"] == {(COUNTED, 0xC00007FF)}
        told = [r for r in caplog.records if r.message == "bus trouble"]
        assert len(told) == 1  # Each time would be a line for each bump in the road.


def test_what_lay_in_the_socket_when_the_interface_went_down_is_read(tap: Tap) -> None:
    with extra_bus(), Sender(BUS) as sender:
        state_is(tap, BusState.ACTIVE)
        tap.hold.clear()
        sender.send_all((COUNTED, struct.pack("<I", n)) for n in range(2000))
        ip("set", BUS, "down")
        tap.hold.set()

        wait_for("all frames", lambda: len(tap.frames) == 2000)
        state_is(tap, BusState.DOWN)


@pytest.mark.parametrize("and_then", ["is read", "gets a new filter"])
def test_what_lay_in_the_socket_when_the_interface_was_taken_away_is_read(
    tap: Tap, and_then: str
) -> None:
    with extra_bus(), Sender(BUS) as sender:
        state_is(tap, BusState.ACTIVE)
        tap.hold.clear()
        sender.send_all((COUNTED, struct.pack("<I", n)) for n in range(2000))
        ip("del", BUS)
        if and_then == "gets a new filter":
            tap.reader.set_filters([exact_filter(COUNTED), exact_filter(0x55)])
        tap.hold.set()

        wait_for("all frames", lambda: len(tap.frames) == 2000)
        state_is(tap, BusState.MISSING)

    assert tap.counted() == list(range(2000))
    assert [each is None for each in tap.sockets] == [False, True]


def test_an_interface_that_is_unplugged_and_plugged_in_again_is_read_again(tap: Tap) -> None:
    for _ in range(2):
        with extra_bus():
            state_is(tap, BusState.ACTIVE)
            sees_a_frame(tap)
        state_is(tap, BusState.MISSING)

    assert [each is None for each in tap.sockets] == [False, True, False, True]
    assert tap.reader.is_alive


def test_filters_that_are_set_while_the_interface_is_missing_hold_afterwards(tap: Tap) -> None:
    state_is(tap, BusState.MISSING)
    tap.reader.set_filters([exact_filter(0x55)])
    with extra_bus(), Sender(BUS) as sender:
        state_is(tap, BusState.ACTIVE)

        sender.send(COUNTED)
        sender.send(0x55)
        wait_for("a frame", lambda: tap.frames)

        assert tap.ids() == {0x55}


def test_a_bus_that_is_not_wanted_any_more_is_not_tried_again(tap: Tap) -> None:
    state_is(tap, BusState.MISSING)
    tap.reader.set_filters(())

    with extra_bus():
        time.sleep(1)

        assert tap.reader.health().state is BusState.IDLE
        assert listened(BUS) == {}


BUS_OFF = (ERR | 0x40, bytes(8))
RESTARTED = (ERR | 0x100, bytes(8))
WARNING = (ERR | 0x04, b"\x00\x04" + bytes(6))
PASSIVE = (ERR | 0x04, b"\x00\x30" + bytes(6))
ACTIVE = (ERR | 0x04, b"\x00\x40" + bytes(6))
OVERFLOW = (ERR | 0x04, b"\x00\x01" + bytes(6))
BIT_RATE = (ERR | 0x88, b"\x00\x00\x04" + bytes(5))  # Protocol violation: stuff error; bus error.


def test_the_controllers_own_words_are_its_state(tap: Tap) -> None:
    with extra_bus(), Sender(BUS) as sender:
        state_is(tap, BusState.ACTIVE)
        for frame, state in [
            (WARNING, BusState.WARNING),
            (PASSIVE, BusState.PASSIVE),
            (BUS_OFF, BusState.BUS_OFF),
            (RESTARTED, BusState.ACTIVE),
            (PASSIVE, BusState.PASSIVE),
            (ACTIVE, BusState.ACTIVE),
        ]:
            sender.send(*frame)
            state_is(tap, state)
        health = tap.reader.health()

    assert health.errors == {"controller": 4, "bus-off": 1, "restarted": 1}
    assert tap.frames == []  # Error frames are not frames of the bus.


def test_frames_that_the_controller_lost_are_counted(tap: Tap) -> None:
    with extra_bus(), Sender(BUS) as sender:
        state_is(tap, BusState.ACTIVE)
        sender.send_all([OVERFLOW] * 3)
        wait_for("the reports", lambda: tap.reader.health().overruns == 3)


def test_a_wrong_bit_rate_is_counted_and_told_once_and_not_for_each_error(
    tap: Tap, caplog: pytest.LogCaptureFixture
) -> None:
    """What a controller at another rate reports: violations without end, then passive."""
    caplog.set_level(logging.INFO)
    with extra_bus(), Sender(BUS) as sender:
        state_is(tap, BusState.ACTIVE)
        sender.send_all([BIT_RATE] * 2000)
        sender.send(*PASSIVE)
        state_is(tap, BusState.PASSIVE)
        health = tap.reader.health()

    assert health.errors["bus-error"] == 2000
    assert health.frames == 0
    told = [record.message for record in caplog.records if record.__dict__.get("bus") == BUS]
    assert told.count("bus errors") == 1
    assert len(told) < 8


def test_a_silent_bus_wakes_nobody_and_says_since_when(tap: Tap) -> None:
    with extra_bus():
        state_is(tap, BusState.ACTIVE)
        sees_a_frame(tap)
        before = tap.reader.turns
        time.sleep(3)

        assert tap.reader.turns - before <= 1
        health = tap.reader.health()
        assert health.state is BusState.ACTIVE
        assert health.last_frame_ns is not None
        assert 3 * 10**9 <= time.time_ns() - health.last_frame_ns < 10 * 10**9


def test_a_bus_that_stays_silent_is_told_of_once_and_is_back_with_the_next_frame(
    tap: Tap, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(condition, "SILENT_S", 2.0)
    caplog.set_level(logging.INFO)
    with extra_bus():
        state_is(tap, BusState.ACTIVE)
        state_is(tap, BusState.SILENT)
        sees_a_frame(tap)
        state_is(tap, BusState.ACTIVE)

    assert [r.message for r in caplog.records].count("bus silent") == 1


def test_a_bus_that_is_full_with_what_nobody_may_have_does_not_wake_the_process(tap: Tap) -> None:
    """Babbling identifiers, as fast as they can be sent."""
    with extra_bus():
        state_is(tap, BusState.ACTIVE)
        before = tap.reader.turns
        subprocess.run(
            ["cangen", BUS, "-g", "0", "-I", "7A0", "-n", "20000", "-i"], check=True, timeout=60
        )
        sees_a_frame(tap)

        assert len(tap.frames) == tap.reader.health().frames == 1
        assert tap.reader.turns - before <= 6


def test_a_bus_that_is_full_with_granted_frames_loses_none_uncounted(tap: Tap) -> None:
    """Twice as many as 1 Mbit/s can carry; sent = read + dropped."""
    sent = 20_000
    with extra_bus(), Sender(BUS) as sender:
        state_is(tap, BusState.ACTIVE)
        for n in range(sent):
            sender.send(COUNTED, struct.pack("<I", n))
            if n % 16 == 0:
                time.sleep(0.001)
        wait_for(
            "all frames",
            lambda: len(tap.frames) + tap.reader.health().kernel_drops == sent,
        )

        assert tap.counted() == sorted(tap.counted())
        assert tap.reader.health().kernel_drops == 0


def test_an_extended_identifier_of_the_same_number_does_not_get_in(tap: Tap) -> None:
    with extra_bus(), Sender(BUS) as sender:
        state_is(tap, BusState.ACTIVE)
        sender.send(COUNTED | EFF)
        sees_a_frame(tap)

        assert tap.ids() == {COUNTED}
