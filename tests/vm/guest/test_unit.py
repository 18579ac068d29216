"""The installed unit under the guest's systemd, with a broker, frames and an opened result."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.guest.vehicle import SETTINGS, Numbers, Vehicle, documented, install, sh, wait_for

RUN_S = 3.0


@pytest.fixture(scope="module")
def installed() -> None:
    install()


@pytest.fixture(scope="module")
def vehicle(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vehicle]:  # noqa: ARG001
    made = Vehicle(tmp_path_factory.mktemp("vehicle"))
    made.started = sh(documented("Start"))
    made.consent()
    yield made
    sys.stdout.write(made.log())  # Shown when a test failed.
    made.close()


def drop_in(line: str, *, section: str = "Service") -> None:
    """Change the unit until the test ends."""
    folder = Path("/run/systemd/system/consentry.service.d")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test.conf").write_text(f"[{section}]\n{line}\n")
    sh("systemctl daemon-reload")


@pytest.fixture(autouse=True)
def _shipped_unit() -> Iterator[None]:
    yield
    changed = Path("/run/systemd/system/consentry.service.d/test.conf")
    if changed.exists():
        changed.unlink()
        sh("systemctl daemon-reload")


@pytest.fixture
def first(vehicle: Vehicle) -> int:
    """The number that a test begins with; each its own million."""
    sh("systemctl reset-failed consentry; systemctl start consentry")
    return (max(vehicle.numbers(), default=0) // 1_000_000 + 1) * 1_000_000


def test_what_is_installed_is_where_it_belongs(installed: None) -> None:  # noqa: ARG001
    assert sh("stat -c '%U %a' /etc/consentry") == "root 755"
    assert sh("getent passwd consentry").endswith(":/nonexistent:/usr/sbin/nologin")
    assert Path("/proc/sys/net/core/rmem_max").read_text() == "16777216\n"
    assert sh("/usr/bin/consentry --version").startswith("consentry")
    assert sh("systemctl cat consentry.service | head -1") == (
        "# /lib/systemd/system/consentry.service"
    )


def test_what_the_document_shows_before_and_after_the_start(vehicle: Vehicle) -> None:
    assert "vehicle veh-test, buses body" in vehicle.found
    assert vehicle.found.endswith("ok")
    assert "Active: active (running)" in vehicle.started
    assert 'Status: "no policy, 0 grants live, 1 buses"' in vehicle.started


def test_what_it_says_of_itself_is_exposed_to_is_at_most_13(installed: None) -> None:  # noqa: ARG001
    sh("systemd-analyze security --threshold=13 --no-pager consentry.service")


def test_frames_reach_the_recipient_through_the_sandbox(vehicle: Vehicle, first: int) -> None:
    with Numbers(first) as numbers:
        time.sleep(RUN_S)
    wait_for("every number", lambda: len(vehicle.numbers(first)) >= numbers.next - first)

    assert vehicle.numbers(first) == list(range(first, numbers.next))
    assert "policy 1." in vehicle.show("StatusText")


def test_it_runs_without_rights_and_sees_little(vehicle: Vehicle) -> None:
    process = Path(f"/proc/{vehicle.pid}")
    status = dict(
        line.split(":\t", 1)
        for line in (process / "status").read_text().splitlines()
        if ":\t" in line
    )

    assert status["CapEff"] == status["CapBnd"] == "0" * 16
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert sh("stat -c '%U %a' /var/lib/consentry") == "consentry 700"
    assert sh("stat -c '%U %G %a' /run/consentry") == "consentry consentry 750"
    assert sh("stat -c '%U %a' /etc/consentry/device.jwk") == "root 600"
    inside = f"nsenter -t {vehicle.pid} -m -S $(id -u consentry) --"
    assert sh(
        f"{inside} ls /root/run; {inside} touch /usr/x; {inside} cat /etc/consentry/vehicle.key",
        check=False,
    )
    assert list((process / "root" / "home").iterdir()) == []
    assert not (process / "root" / "src").exists()
    assert not (process / "root" / "run" / "dbus").exists()


def test_a_process_that_stands_is_ended_by_the_watchdog_and_started_again(
    vehicle: Vehicle, first: int
) -> None:
    drop_in("WatchdogSec=12")
    sh("systemctl restart consentry")
    before, restarts = vehicle.pid, int(vehicle.show("NRestarts"))
    os.kill(before, signal.SIGSTOP)

    wait_for("the restart", lambda: int(vehicle.show("NRestarts")) > restarts)
    wait_for("the unit", lambda: vehicle.show("SubState") == "running")
    with Numbers(first) as numbers:
        time.sleep(1)
    wait_for("every number", lambda: len(vehicle.numbers(first)) >= numbers.next - first)

    assert vehicle.pid != before
    assert "watchdog" in sh("journalctl -u consentry --no-pager").lower()


def test_a_unit_that_cannot_start_raises_the_alert(vehicle: Vehicle) -> None:
    drop_in("StartLimitBurst=2", section="Unit")
    good = (SETTINGS / "trust.json").read_bytes()
    (SETTINGS / "trust.json").write_text("{}")
    sh("systemctl restart consentry", check=False)
    try:
        wait_for("the end", lambda: vehicle.show("ActiveState") == "failed")
        alerts = "journalctl -t consentry-alert -p alert -o cat"
        wait_for("the alert", lambda: "has failed" in sh(alerts))
    finally:
        (SETTINGS / "trust.json").write_bytes(good)
