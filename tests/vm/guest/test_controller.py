"""Our reader on controllers with a real driver: two SJA1000 on one wire."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.core.bushealth import BusState
from agent.core.canfilter import CanFilter
from tests.vm.guest.bus import EFF, RTR, Sender, ip, wait_for
from tests.vm.guest.tap import Tap

pytestmark = pytest.mark.qemu


def bring_up() -> None:
    """Let can0 only listen; can1 is another node of the bus."""
    ip("set", "can0", "up", "type", "can", "bitrate", "500000", "listen-only", "on")
    ip("set", "can1", "up", "type", "can", "bitrate", "500000")


@pytest.fixture(scope="module", autouse=True)
def _controllers() -> Iterator[None]:
    subprocess.run(["modprobe", "kvaser_pci"], check=True)
    bring_up()
    yield
    for name in ("can0", "can1"):
        ip("set", name, "down")
    subprocess.run(["rmmod", "kvaser_pci"], check=True)


@pytest.fixture
def tap() -> Iterator[Tap]:
    with Tap("can0") as made:
        made.reader.set_filters([CanFilter(0, 0)])
        yield made


def test_frames_of_another_node_are_read_and_none_is_sent(tap: Tap) -> None:
    with Sender("can1") as sender:
        for can_id, data in [(0x123, b"abc"), (0x123 | EFF, bytes(8)), (0x55 | RTR, b"")]:
            sender.send(can_id, data)
        wait_for("the frames", lambda: len(tap.frames) == 3)

    assert [(can_id, data) for _, _, can_id, data in tap.frames] == [
        (0x123, b"abc"),
        (0x123 | EFF, bytes(8)),
        (0x55 | RTR, b""),
    ]
    assert abs(tap.frames[-1][0] - time.time_ns()) < 30 * 10**9
    assert Path("/sys/class/net/can0/statistics/tx_packets").read_text() == "0\n"


def test_nothing_is_played_onto_a_real_bus_without_saying_so(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("(1600000000.000000) can1 123#0102\n")

    sent = Path("/sys/class/net/can1/statistics/tx_packets")
    before = sent.read_text()

    done = subprocess.run(
        ["consentry", "play", log, "--bus", "can1"], capture_output=True, check=False, text=True
    )

    assert done.returncode == 1
    assert "--yes-send-on-real-bus" in done.stderr
    assert sent.read_text() == before


def test_a_controller_that_is_unplugged_and_plugged_in_again_is_read_again(tap: Tap) -> None:
    subprocess.run(["rmmod", "kvaser_pci"], check=True)
    wait_for("missing", lambda: tap.reader.health().state is BusState.MISSING)

    subprocess.run(["modprobe", "kvaser_pci"], check=True)
    wait_for("down", lambda: tap.reader.health().state is BusState.DOWN)
    bring_up()
    wait_for("up", lambda: tap.reader.health().state is BusState.ACTIVE)
    with Sender("can1") as sender:
        sender.send(0x321, b"back")
        wait_for("the frame", lambda: tap.frames)

    assert tap.frames[0][3] == b"back"
    assert tap.reader.health().reconnects > 0
