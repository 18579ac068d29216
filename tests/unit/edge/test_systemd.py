"""What systemd hears from us, on a real datagram socket."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.edge.systemd import Unit


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    name = str(tmp_path / "notify") if request.param == "path" else f"\0{tmp_path.name}-notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name)
        sock.settimeout(5)
        yield sock


def address_of(listener: socket.socket) -> str:
    name = listener.getsockname()
    return f"@{name[1:].decode()}" if isinstance(name, bytes) else str(name)


@pytest.fixture
def unit(listener: socket.socket) -> Unit:
    return Unit(address_of(listener))


def heard(listener: socket.socket) -> list[str]:
    return listener.recv(4096).decode().split("\n")


def test_ready_comes_with_the_status(unit: Unit, listener: socket.socket) -> None:
    unit.ready("2 grants live")

    assert heard(listener) == ["READY=1", "STATUS=2 grants live"]


def test_a_reload_is_stamped_with_the_monotonic_clock(unit: Unit, listener: socket.socket) -> None:
    before_us = time.monotonic_ns() // 1000

    unit.reloading()

    word, stamp = heard(listener)
    assert word == "RELOADING=1"
    assert before_us <= int(stamp.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_the_end_and_the_watchdog_are_told(unit: Unit, listener: socket.socket) -> None:
    unit.stopping()
    unit.say("1 grant live")
    fed = unit.feed()

    assert heard(listener)[0] == "STOPPING=1"
    assert heard(listener) == ["STATUS=1 grant live"]
    assert fed
    assert heard(listener) == ["WATCHDOG=1"]


def test_a_kept_descriptor_reaches_systemd_and_is_not_polled(
    unit: Unit, listener: socket.socket, tmp_path: Path
) -> None:
    with (tmp_path / "kept").open("wb") as file:
        unit.keep("can-body", file.fileno())
        message, descriptors, _, _ = socket.recv_fds(listener, 4096, 4)
        same = os.fstat(descriptors[0]).st_ino == os.fstat(file.fileno()).st_ino
        os.close(descriptors[0])

    assert message.decode().split("\n") == ["FDSTORE=1", "FDNAME=can-body", "FDPOLL=0"]
    assert len(descriptors) == 1
    assert same


def test_what_is_kept_is_replaced_by_another_and_left_alone_when_it_is_the_same(
    unit: Unit, listener: socket.socket, tmp_path: Path
) -> None:
    """At every moment systemd has it, for a crash may come at any."""
    with (tmp_path / "a").open("wb") as first, (tmp_path / "b").open("wb") as second:
        unit.keep("can-body", first.fileno())
        unit.keep("can-body", first.fileno())
        unit.keep("can-body", second.fileno())
        unit.drop("can-body")
        told = [heard(listener)[0] for _ in range(4)]

    assert told == ["FDSTORE=1", "FDSTOREREMOVE=1", "FDSTORE=1", "FDSTOREREMOVE=1"]


def test_without_systemd_every_call_does_nothing() -> None:
    unit = Unit.from_environment({})

    unit.ready("")
    unit.reloading()
    unit.stopping()
    unit.keep("can-body", 0)
    unit.drop("can-body")

    assert not unit.is_there
    assert not unit.feed()
    assert unit.watchdog_s is None
    assert unit.take("can-body") is None
    assert unit.drop_rest() == []


def test_a_systemd_that_is_gone_is_told_in_the_log_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fed = Unit(str(tmp_path / "gone")).feed()

    assert not fed
    assert [record.message for record in caplog.records] == ["systemd did not take a message"]


def test_what_the_environment_says_is_taken_out_of_it(listener: socket.socket) -> None:
    environment = {
        "NOTIFY_SOCKET": address_of(listener),
        "WATCHDOG_USEC": "20000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/",
    }

    unit = Unit.from_environment(environment)

    assert unit.is_there
    assert unit.watchdog_s == 20.0
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize(
    "environment",
    [
        {"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "can-body"},
        {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "can-body"},
        {"NOTIFY_SOCKET": "vsock:2:1"},
    ],
)
def test_what_is_for_another_process_or_no_number_is_left_alone(
    environment: dict[str, str],
) -> None:
    unit = Unit.from_environment(environment)

    assert not unit.is_there
    assert unit.watchdog_s is None
    assert unit.take("can-body") is None


INHERITED = """
import os
from agent.edge.systemd import Unit
os.environ["LISTEN_PID"] = str(os.getpid())
unit = Unit.from_environment(os.environ)
body = unit.take("can-body")
print(body, os.get_inheritable(body), unit.take("can-body"), unit.drop_rest(), unit.drop_rest())
try:
    os.fstat(4)
except OSError:
    print("closed")
"""


def test_inherited_descriptors_are_found_by_name_and_the_rest_is_closed(tmp_path: Path) -> None:
    """In a process of its own, because they begin at 3."""
    script = tmp_path / "inherited.py"
    script.write_text(INHERITED)

    run = 'exec "$0" "$1" 3</dev/null 4</dev/null 5</dev/null'
    shown = subprocess.run(
        ["sh", "-c", run, sys.executable, script],
        env={"LISTEN_FDS": "3", "LISTEN_FDNAMES": "can-body:old", "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert shown.splitlines() == ["3 False None ['old', 'unknown'] []", "closed"]
