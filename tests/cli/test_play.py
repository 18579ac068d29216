"""`consentry play` on python-can's virtual bus: what is sent, when, and what is refused."""

import gzip
import itertools
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import can
import pytest

from agent.cli.main import run
from agent.cli.virtualbus import link_kind, why_real

Capsys = pytest.CaptureFixture[str]
LOG = """\
(1800000000.000000) can0 123#0102
(1800000000.100000) can1 123#0304
(1800000000.200000) can0 18FEF100#0102030405060708
(1800000000.250000) can0 321##1000102030405060708090A0B
(1800000000.300000) can0 20000004#0000000000000000
(1800000000.400000) can0 124#R
"""
KIND = ("arbitration_id", "is_extended_id", "is_remote_frame", "is_error_frame", "is_fd")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "drive.log"
    path.write_text(LOG, encoding="ascii")
    return path


@pytest.fixture
def bus() -> Iterator[can.BusABC]:
    with can.Bus(interface="virtual", channel="play-0") as receiver:
        yield receiver


def received(bus: can.BusABC) -> list[can.Message]:
    return list(iter(lambda: bus.recv(timeout=0), None))


def kinds(messages: list[can.Message]) -> list[tuple[object, ...]]:
    return [(*(getattr(m, name) for name in KIND), bytes(m.data)) for m in messages]


def play(*arguments: object) -> int:
    return run(["play", "--interface", "virtual", *map(str, arguments)])


def test_every_frame_is_played_as_it_was(log: Path, bus: can.BusABC) -> None:
    """python-can's own reader of the log says what that is; of an error frame it makes another."""
    assert play(log, "--bus", "play-0", "--speed", 100) == 0

    got = kinds(received(bus))
    assert got.pop(4) == (4, False, False, True, False, bytes(8))
    told = kinds(list(can.CanutilsLogReader(log)))
    assert got == told[:4] + told[5:]


def test_the_distances_between_frames_are_those_of_the_recording(
    log: Path, bus: can.BusABC
) -> None:
    play(log, "--bus", "play-0", "--speed", 2)

    times = [message.timestamp for message in received(bus)]
    # Never early; how late depends on the machine, so that is not held against a number.
    passed = [(b - times[0]) * 2 for b in times]
    assert passed == sorted(passed)
    for got, was in zip(passed, (0, 0.1, 0.2, 0.25, 0.3, 0.4), strict=True):
        assert got > was - 0.02


def test_a_late_frame_does_not_make_the_next_ones_late(tmp_path: Path, bus: can.BusABC) -> None:
    """The schedule counts from the start: 2,000 waits add up to no drift."""
    frames = tmp_path / "dense.log"
    frames.write_text("".join(f"({1.8e9 + i / 4000:.6f}) c 001#\n" for i in range(2000)))

    play(frames, "--bus", "play-0")

    times = [message.timestamp for message in received(bus)]
    behind = [time - times[0] - index / 4000 for index, time in enumerate(times)]
    assert min(behind[-200:]) < 0.02


def test_channels_go_to_their_buses_and_the_others_nowhere(
    log: Path, bus: can.BusABC, capsys: Capsys
) -> None:
    assert play(log, "--channel", "can1=play-0", "--speed", 0, "--json") == 0

    assert [message.data for message in received(bus)] == [b"\x03\x04"]
    told = json.loads(capsys.readouterr().out)
    assert told["sent"] == {"play-0": 1}
    assert sum(told["skipped"].values()) == 5


def test_a_packed_log_is_played_and_the_result_says_how_many(
    log: Path, tmp_path: Path, bus: can.BusABC, capsys: Capsys
) -> None:
    packed = tmp_path / "drive.log.gz"
    packed.write_bytes(gzip.compress(log.read_bytes()))

    assert play(packed, "--bus", "play-0", "--speed", 0) == 0

    assert len(received(bus)) == 6
    assert capsys.readouterr().out.startswith("6 frames onto play-0 in ")


def test_a_loop_goes_on_until_the_keyboard_ends_it_and_the_result_is_told(
    log: Path, bus: can.BusABC, capsys: Capsys
) -> None:
    stop = threading.Timer(0.5, signal.raise_signal, (signal.SIGINT,))
    stop.start()

    status = play(log, "--bus", "play-0", "--speed", 50, "--loop", "--json")
    stop.join()

    told = json.loads(capsys.readouterr().out)
    assert status == 130
    assert told["interrupted"]
    assert told["passes"] > 1
    assert len(received(bus)) == told["frames"]


def test_a_broken_line_is_told_and_the_rest_is_played(
    log: Path, bus: can.BusABC, capsys: Capsys
) -> None:
    log.write_text(LOG + "(180000000x.5) can0 123#01\n", encoding="ascii")

    assert play(log, "--bus", "play-0", "--speed", 0) == 1

    assert len(received(bus)) == 6
    assert "1 places could not be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--bus", "can0"],
        ["--bus", "lo"],
        ["--bus", "../lo"],
        ["--channel", "can0=can7"],
        ["--bus", "/dev/ttyACM0", "--interface", "slcan"],
        ["--bus", "239.0.0.1", "--interface", "udp_multicast", "--option", "hop_limit=1"],
    ],
)
def test_what_may_be_a_vehicles_bus_is_refused(
    arguments: list[str], log: Path, capsys: Capsys
) -> None:
    status = run(["play", str(log), *arguments])

    told = capsys.readouterr().err
    assert status == 1
    assert "this may be a vehicle's bus, nothing was sent" in told
    assert "--yes-send-on-real-bus" in told


def test_who_says_so_may_send_on_a_real_bus(log: Path, capsys: Capsys) -> None:
    """There is none here, so opening it is what fails."""
    status = run(["play", str(log), "--bus", "can7", "--yes-send-on-real-bus"])

    assert status == 1
    assert "the bus can7 (socketcan) cannot be opened" in capsys.readouterr().err


def test_only_what_is_known_to_be_virtual_is_virtual() -> None:
    options: list[dict[str, str | int | float | bool]] = [{}, {"hop_limit": 0}, {"hop_limit": 1}]
    udp = [why_real("udp_multicast", "239.0.0.1", option) for option in options]

    assert [why is None for why in udp] == [False, True, False]
    assert why_real("virtual", "anything", {}) is None
    adapters = sorted(set(can.VALID_INTERFACES) - {"virtual", "udp_multicast", "socketcan"})
    assert len(adapters) > 10
    for interface, option in itertools.product(adapters, options):
        assert why_real(interface, "0", option) == f"{interface} is an adapter"


def test_the_kernel_does_not_call_the_loopback_a_virtual_can() -> None:
    assert link_kind("lo") is None
    assert link_kind("no-such-link") is None
    assert why_real("socketcan", "lo", {}) == "its kind is not told, not vcan or vxcan"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--bus", "x", "--option", "bitrate"],
        ["--channel", "can0"],
        ["--bus", "x", "--speed=-1"],
    ],
)
def test_what_is_no_sense_is_a_usage_error(arguments: list[str], log: Path) -> None:
    assert play(log, *arguments) == 2
