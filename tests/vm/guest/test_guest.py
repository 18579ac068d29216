"""The guest is what the other tests take it for."""

import socket
import subprocess
from pathlib import Path

import pytest

import agent

FRAME = bytes.fromhex("2301000002000000abcd000000000000")  # linux/can.h: 123#ABCD


def exchange(bus: str) -> None:
    with (
        socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW) as sender,
        socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW) as receiver,
    ):
        for sock in (sender, receiver):
            sock.bind((bus,))
            sock.settimeout(5)
        sender.send(FRAME)
        assert receiver.recv(16) == FRAME


@pytest.mark.parametrize("bus", ["vcan0", "vcan1"])
def test_a_frame_crosses_a_virtual_bus(bus: str) -> None:
    exchange(bus)


@pytest.mark.qemu
def test_a_frame_crosses_a_virtual_bus_of_the_stock_kernel() -> None:
    exchange("vcan0")


def test_systemd_runs_and_nothing_has_failed() -> None:
    state = subprocess.run(["systemctl", "is-system-running"], capture_output=True, check=False)

    assert state.stdout.decode().strip() == "running"


def test_what_is_tested_is_the_wheel_that_is_installed() -> None:
    assert Path(agent.__file__).is_relative_to("/opt/venv")
    assert subprocess.run(["consentry", "--version"], check=False).returncode == 0
