"""The shipped networkd file on a real driver: two SJA1000 controllers on one emulated wire."""

import json
import socket
from collections.abc import Iterator

import pytest

from tests.vm.guest.vehicle import documented, sh, wait_for

pytestmark = pytest.mark.qemu

FRAME = bytes.fromhex("2301000002000000abcd000000000000")  # linux/can.h: 123#ABCD


def raw(interface: str) -> socket.socket:
    sock = socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW)
    sock.bind((interface,))
    sock.settimeout(2)
    return sock


def link(interface: str) -> dict[str, object]:
    (found,) = json.loads(sh(f"ip -details -json link show {interface}"))
    data: dict[str, object] = found["linkinfo"]["info_data"] | {"flags": found["flags"]}
    return data


@pytest.fixture(scope="module")
def listening() -> Iterator[None]:
    """can0 as docs/install.md brings it up, can1 a node that sends."""
    sh("/src/scripts/install --only-files")
    sh("modprobe kvaser_pci")
    sh("ip link set can1 type can bitrate 500000 && ip link set can1 up")
    sh("systemctl unmask systemd-networkd.service systemd-networkd.socket")
    sh(documented("The bus"))
    wait_for("can0", lambda: "UP" in str(link("can0")["flags"]))
    yield
    sh("systemctl stop systemd-networkd.socket systemd-networkd; ip link set can0 down")
    sh("ip link set can1 down; rmmod kvaser_pci")


def test_the_bit_rate_is_set_and_the_controller_only_listens(listening: None) -> None:  # noqa: ARG001
    found = link("can0")

    assert found["ctrlmode"] == ["LISTEN-ONLY"]
    assert found["bittiming"]["bitrate"] == 500_000  # type: ignore[index]


def test_a_controller_that_withdrew_joins_again(listening: None) -> None:  # noqa: ARG001
    assert link("can0")["restart_ms"] == 100


def test_frames_of_others_come_in(listening: None) -> None:  # noqa: ARG001
    with raw("can0") as listener, raw("can1") as node:
        node.send(FRAME)

        assert listener.recv(16) == FRAME


def test_nothing_goes_out_whoever_sends(listening: None) -> None:  # noqa: ARG001
    """Not even another program's frame: the kernel drops it."""
    with raw("can0") as listener, raw("can1") as node:
        listener.send(FRAME)

        with pytest.raises(TimeoutError):
            node.recv(16)
