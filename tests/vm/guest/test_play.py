"""`consentry play` on the kernel's virtual buses."""

import json
import socket
import subprocess
from pathlib import Path

import pytest

from agent.cli.virtualbus import link_kind, why_real

CAN_RAW_ERR_FILTER = 2  # linux/can/raw.h; Python has no name for it.
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
FRAMES = 500
FD_LOG = "(1800000000.0) a 123##1" + "00" * 12 + "\n(1800000000.1) b 20000004#0000000000000000\n"


def played(tmp_path: Path, log: str, *arguments: str) -> dict[str, object]:
    path = tmp_path / "drive.log"
    path.write_text(log, encoding="ascii")
    done = subprocess.run(
        ["consentry", "play", path, *arguments, "--json"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    result: dict[str, object] = json.loads(done.stdout)
    return result


def test_the_kernel_calls_its_virtual_buses_virtual() -> None:
    assert link_kind("vcan0") == "vcan"
    assert why_real("socketcan", "vcan0", {}) is None
    assert why_real("socketcan", "lo", {}) is not None


@pytest.mark.qemu
def test_the_stock_kernel_calls_its_virtual_buses_virtual_and_a_pair_too() -> None:
    pair = ["ip", "link", "add", "vx0", "type", "vxcan", "peer", "name", "vx1"]
    made = subprocess.run(pair, capture_output=True, check=False)

    assert why_real("socketcan", "vcan0", {}) is None
    if made.returncode == 0:
        assert why_real("socketcan", "vx0", {}) is None
        subprocess.run(["ip", "link", "delete", "vx0"], check=True)


def test_a_log_is_played_onto_a_virtual_bus_frame_by_frame(tmp_path: Path) -> None:
    log = "".join(f"(1800000000.{i:06}) can0 123#{i:04X}\n" for i in range(FRAMES))
    with socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
        receiver.bind(("vcan0",))
        receiver.settimeout(5)

        told = played(tmp_path, log, "--bus", "vcan0")

        got = [receiver.recv(72)[8:10] for _ in range(FRAMES)]
    assert told["frames"] == FRAMES
    assert got == [i.to_bytes(2, "big") for i in range(FRAMES)]


def test_fd_and_error_frames_go_onto_a_virtual_bus_and_channels_to_theirs(tmp_path: Path) -> None:
    with (
        socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW) as first,
        socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW) as second,
    ):
        first.setsockopt(socket.SOL_CAN_RAW, socket.CAN_RAW_FD_FRAMES, 1)
        second.setsockopt(socket.SOL_CAN_RAW, CAN_RAW_ERR_FILTER, 0x1FFF_FFFF)
        for sock, bus in ((first, "vcan0"), (second, "vcan1")):
            sock.bind((bus,))
            sock.settimeout(5)

        played(tmp_path, FD_LOG, "--channel", "a=vcan0", "--channel", "b=vcan1")

        assert len(first.recv(72)) == 72
        assert int.from_bytes(second.recv(72)[:4], "little") == 0x2000_0004
