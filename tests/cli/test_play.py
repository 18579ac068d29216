"""`consentry play` on python-can's virtual bus: what is sent, when, and what is refused."""

import contextlib
import gzip
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE

import can
import pytest

from agent.cli.main import run
from agent.cli.virtualbus import link_kind, why_real

Capsys = pytest.CaptureFixture[str]
SCRIPT = Path(sys.executable).with_name("consentry")
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


def on_a_terminal(
    *arguments: object, until: Callable[[str], bool] = lambda _: False
) -> tuple[int, str, str]:
    """Play with a terminal of 80 columns behind stderr; press Ctrl-C once it shows something.

    Returns:
        Status, stdout, and all that was written on the terminal.
    """
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    words = [SCRIPT, "play", "--interface", "virtual", "--bus", "x", *map(str, arguments)]
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm"}
    with subprocess.Popen(words, stdout=PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown, is_enough = b"", False
        with contextlib.suppress(OSError):  # EIO: nobody has the other end open any more.
            while piece := os.read(ours, 65536):
                shown += piece
                if not is_enough and until(shown.decode(errors="ignore")):
                    is_enough = True
                    process.send_signal(signal.SIGINT)
        os.close(ours)
        out = process.communicate()[0].decode()
    return process.returncode, out, shown.decode()


def frames_told(shown: str) -> list[int]:
    """Return how many frames each picture on the terminal told of."""
    return [int(told.replace(",", "")) for told in re.findall(r"([\d,]+) frames", shown)]


def test_on_a_terminal_a_bar_moves_with_the_log_and_is_gone_at_the_end(tmp_path: Path) -> None:
    """The result goes to stdout alone, so that it can be piped on while somebody watches."""
    drive = tmp_path / "drive.log"
    frame = "({:.6f}) c 123#0102030405060708\n"  # 16,000 of them are read in three pieces.
    drive.write_text("".join(frame.format(1.8e9 + i / 12_000) for i in range(16_000)))

    status, out, shown = on_a_terminal(drive)

    assert status == 0
    assert re.fullmatch(r"16000 frames onto x in [\d.]+ s, the latest [\d.]+ ms late\n", out)
    told = frames_told(shown)
    assert told == sorted(told)
    assert len(set(told)) > 2
    pictures = re.findall(r"play [^\r\n]*", shown)
    plain = re.sub(r"\x1b\[[\d;]*m", "", pictures[-1])
    assert re.fullmatch(r"play [━╸╺]{40} [\d,]+ frames \d:\d\d:\d\d", plain)
    assert len({re.sub(r" [\d,]+ frames.*", "", picture) for picture in pictures}) > 1
    # The cursor is shown again, and the line that the bar was on is empty.
    assert shown.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")


def test_the_bar_counts_on_over_the_passes_of_a_short_log(tmp_path: Path) -> None:
    """Each pass takes less than the time between two pictures."""
    short = tmp_path / "short.log"
    short.write_text("(1.0) c 123#01\n(1.05) c 123#02\n")

    def is_enough(shown: str) -> bool:
        return max(frames_told(shown), default=0) > 6 or "0:00:05" in shown

    status, out, shown = on_a_terminal(short, "--loop", "--json", until=is_enough)

    assert status == 130
    assert max(frames_told(shown)) > 6
    assert json.loads(out)["passes"] > 2
    assert shown.endswith("\x1b[2K")


def test_where_stderr_is_no_terminal_nothing_is_drawn(log: Path) -> None:
    words = [SCRIPT, "play", "--interface", "virtual", "--bus", "x", str(log)]

    done = subprocess.run(
        words, capture_output=True, env=os.environ | {"TERM": "xterm"}, check=True
    )

    assert done.stdout.startswith(b"6 frames onto x in ")
    assert done.stderr == b""


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
