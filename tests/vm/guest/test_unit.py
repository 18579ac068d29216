"""The installed unit under the guest's systemd, with a broker, frames and an opened result."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from agent.daemon import STOP_S
from tests import car
from tests.cloud import Cloud
from tests.vm.guest.vehicle import (
    SETTINGS,
    Numbers,
    Vehicle,
    documented,
    install,
    sh,
    wait_for,
)

RUN_S = 3.0
SOCKET_AND_RING = "2"  # What systemd keeps of a bus.
KILLED_AFTER_S = (2.0, 0.3, 1.1, 0.7)  # Batches close every second.


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
    return next(vehicle.millions) * 1_000_000


def test_what_is_installed_is_where_it_belongs(installed: None) -> None:  # noqa: ARG001
    assert sh("stat -c '%U %a' /etc/consentry") == "root 755"
    assert sh("getent passwd consentry").endswith(":/nonexistent:/usr/sbin/nologin")
    assert Path("/proc/sys/net/core/rmem_max").read_text() == "16777216\n"
    assert sh("/usr/bin/consentry --version").startswith("consentry")
    assert sh("systemctl cat consentry.service | head -1") == (
        "# /lib/systemd/system/consentry.service"
    )


def test_systemd_finds_nothing_to_complain_about(installed: None) -> None:  # noqa: ARG001
    units = (
        "/usr/lib/systemd/system/consentry.service /usr/lib/systemd/system/consentry-alert.service"
    )

    assert sh(f"systemd-analyze verify {units} 2>&1 | grep -i consentry || true") == ""


def test_what_the_document_shows_before_and_after_the_start(vehicle: Vehicle) -> None:
    assert "vehicle veh-test, buses body" in vehicle.found
    assert vehicle.found.endswith("ok")
    assert "Active: active (running)" in vehicle.started
    assert 'Status: "no policy, 0 grants live, 1 buses"' in vehicle.started


@pytest.mark.usefixtures("vehicle")
def test_the_doctor_and_the_status_find_the_installation_sound() -> None:
    doctor, status = documented("See that it works").splitlines()

    found = sh(doctor)  # Its status is 1 for a single `fail`.
    told = sh(status)

    assert "ok    agent   consentry " in found
    assert "ok    bus     bus body: vcan0 is up" in found
    assert "\nuplink     up, " in told


def test_what_it_says_of_itself_is_exposed_to_is_at_most_13(installed: None) -> None:  # noqa: ARG001
    sh("systemd-analyze security --threshold=13 --no-pager consentry.service")


def test_frames_reach_the_recipient_through_the_sandbox(vehicle: Vehicle, first: int) -> None:
    with Numbers(first) as numbers:
        time.sleep(RUN_S)
    memory = Path(f"/proc/{vehicle.pid}/status").read_text().partition("VmRSS:")[2].split()[0]
    sys.stdout.write(f"resident {int(memory) // 1024} MiB, {vehicle.started_in_s():.1f} s to ready")

    assert vehicle.await_last(numbers) == list(range(first, numbers.next))
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
    inside = f"nsenter -t {vehicle.pid} -m -S $(id -u consentry) -G $(id -g consentry) --"
    for command, why in {
        "touch /usr/x": "Read-only file system",
        "touch /etc/consentry/x": "Read-only file system",
        "cat /etc/consentry/vehicle.key": "Permission denied",
        "cat /var/log/dpkg.log": "No such file or directory",
        "cat /proc/1/status": "No such file or directory",
    }.items():
        assert why in sh(f"{inside} {command}", check=False)
    assert sh(f"{inside} cat /proc/self/net/route").startswith("Iface")
    assert sh(f"cat {process}/root/run/credentials/consentry.service/boot_id") == sh(
        "cat /proc/sys/kernel/random/boot_id"
    )
    assert not sh(f"{inside} ls /proc/sys", check=False).startswith("kernel")
    assert list((process / "root" / "home").iterdir()) == []
    assert not (process / "root" / "src").exists()
    assert not (process / "root" / "run" / "dbus").exists()


def test_a_restart_loses_no_frame(vehicle: Vehicle, first: int) -> None:
    """At 2,000 frames a second: what comes while nobody runs waits in the kernel."""
    with Numbers(first) as numbers:
        time.sleep(1)
        for _ in range(2):
            sh("systemctl restart consentry")
            time.sleep(2)

    assert vehicle.await_last(numbers) == list(range(first, numbers.next))
    assert vehicle.log().count("bus open bus=body kept=True") >= 2


def test_kills_lose_no_frame_and_repeat_none(vehicle: Vehicle, first: int) -> None:
    """At 2,000 frames a second, with batches open, sealed, and being stored."""
    assert kill_while_numbers_come(vehicle, first, KILLED_AFTER_S) == len(KILLED_AFTER_S)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_twenty_five_kills_lose_no_frame_and_repeat_none(vehicle: Vehicle, first: int) -> None:
    drop_in("StartLimitIntervalSec=0", section="Unit")
    rng = random.Random(20261124)
    lived_s = [rng.uniform(0.0, 2.5) for _ in range(25)]

    assert kill_while_numbers_come(vehicle, first, lived_s) == len(lived_s)


def kill_while_numbers_come(vehicle: Vehicle, first: int, lived_s: Sequence[float]) -> int:
    """Kill the unit again and again; return how many processes died, when every number came."""
    killed = set()
    with Numbers(first) as numbers:
        for seconds in lived_s:
            time.sleep(seconds)
            killed.add(dying := vehicle.pid)
            os.kill(dying, signal.SIGKILL)
            wait_for("the death", lambda pid=dying: not Path(f"/proc/{pid}/exe").exists())
            wait_for("the unit", lambda: vehicle.show("SubState") == "running")
        time.sleep(1)

    assert vehicle.await_last(numbers) == list(range(first, numbers.next))
    assert "info: frames found bus=body" in vehicle.log()
    return len(killed)


def test_a_kill_brings_nothing_back_that_a_pause_let_go(vehicle: Vehicle, first: int) -> None:
    with Numbers(first):
        time.sleep(1.5)
        sh("consentry pause")
    wait_for("the end of what was sealed", lambda: vehicle.is_quiet(2.0))
    came = vehicle.numbers(first)
    kept = vehicle.show("NFileDescriptorStore")
    os.kill(vehicle.pid, signal.SIGKILL)
    wait_for("the unit", lambda: vehicle.show("SubState") == "running")
    sh("consentry resume")
    with Numbers(first + 500_000) as numbers:
        time.sleep(1)

    assert len(came) > 1000
    assert kept == "0"
    wait_for("the last", lambda: vehicle.numbers(first)[-1:] == [numbers.next - 1])
    assert vehicle.numbers(first) == came + list(range(first + 500_000, numbers.next))


def test_a_socket_stays_kept_while_its_interface_is_down(vehicle: Vehicle, first: int) -> None:
    """An error on a socket makes systemd forget it, but for FDPOLL=0."""
    sh("ip link set vcan0 down; sleep 1; ip link set vcan0 up")
    with Numbers(first) as numbers:
        sh("systemctl restart consentry")
        time.sleep(1)

    assert vehicle.await_last(numbers) == list(range(first, numbers.next))
    assert vehicle.show("NFileDescriptorStore") == SOCKET_AND_RING


def test_without_a_live_grant_no_socket_is_kept(vehicle: Vehicle, first: int) -> None:
    before = vehicle.show("NFileDescriptorStore")
    vehicle.revoke()
    wait_for("the end of the socket", lambda: vehicle.show("NFileDescriptorStore") == "0")
    listening = sh("cat /proc/net/can/rcvlist_*")
    vehicle.consent(grant_id="g2")
    with Numbers(first) as numbers:
        time.sleep(1)

    assert before == SOCKET_AND_RING
    assert " raw" not in listening
    assert vehicle.await_last(numbers) == list(range(first, numbers.next))


def test_a_reload_takes_up_a_mapping_and_refuses_wrong_files(vehicle: Vehicle, first: int) -> None:
    pid = vehicle.pid
    trust = (SETTINGS / "trust.json").read_bytes()
    other = SETTINGS / "other"
    other.mkdir()
    Cloud().write_files(other)
    with Numbers(first) as numbers:
        (SETTINGS / "vehicle.vspec").write_bytes(b"no: [mapping")
        sh("systemctl reload consentry")
        wait_for("the first refusal", lambda: "vehicle.vspec:1: not YAML" in vehicle.log())
        (SETTINGS / "vehicle.vspec").write_bytes(car.MAPPING + b"# new\n")
        (SETTINGS / "trust.json").write_bytes((other / "trust.json").read_bytes())
        sh("systemctl reload consentry")
        wait_for("the second", lambda: vehicle.log().count("error: reload refused") == 2)
        (SETTINGS / "trust.json").write_bytes(trust)
        sh("systemctl reload consentry")
        wait_for("the reload", lambda: "info: reloaded" in vehicle.log())
        time.sleep(1)
    shutil.rmtree(other)

    assert vehicle.await_last(numbers) == list(range(first, numbers.next))
    assert vehicle.pid == pid
    assert vehicle.show("ActiveState") == "active"


def test_a_stop_under_full_load_and_a_broker_that_hangs_is_in_time(
    vehicle: Vehicle, first: int
) -> None:
    """And what the process had read is stored: nothing is missing before the last that came."""
    broker = int(sh("pgrep -x mosquitto"))
    with Numbers(first, per_s=8000) as numbers:
        time.sleep(RUN_S)
        os.kill(broker, signal.SIGSTOP)
        begun_at = numbers.next
        begun_s = time.monotonic()
        sh("systemctl stop consentry")
        took_s = time.monotonic() - begun_s
    os.kill(broker, signal.SIGCONT)
    sh("systemctl start consentry")
    wait_for("what was stored", lambda: vehicle.numbers(begun_at) != [])
    wait_for("the spool's end", lambda: vehicle.is_quiet(2.0))
    came = vehicle.numbers(first)

    sys.stdout.write(f"stopped in {took_s:.1f} s at {len(came) / RUN_S:.0f} frames/s")
    assert took_s < STOP_S
    assert vehicle.show("Result") == "success"
    assert came == list(range(first, first + len(came)))


def test_who_may_pause_and_who_may_resume(vehicle: Vehicle, first: int) -> None:
    """A stranger neither, the group may pause, root both; and a pause outlives a restart."""
    sh("id stranger || useradd -M stranger; id driver || useradd -M -G consentry driver")
    with Numbers(first) as numbers:
        refused = [sh("runuser -u stranger -- consentry pause && echo done", check=False)]
        time.sleep(2)
        sh("runuser -u driver -- consentry pause")
        wait_for("the end of the socket", lambda: vehicle.show("NFileDescriptorStore") == "0")
        paused_at = numbers.next
        refused += [
            sh(f"runuser -u {user} -- consentry resume && echo done", check=False)
            for user in ("stranger", "driver")
        ]
        sh("systemctl restart consentry")
        time.sleep(2)
        resumed_at = numbers.next
        sh("consentry resume")
        time.sleep(2)
    came = vehicle.await_last(numbers)

    assert not [told for told in refused if "done" in told]
    assert [told.partition(":")[0] for told in refused] == ["error"] * 3
    assert len([n for n in came if n < paused_at]) > 2000
    assert not [n for n in came if paused_at <= n < resumed_at]


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


def test_it_can_be_removed_and_leaves_what_is_the_owners(vehicle: Vehicle) -> None:
    """The last test here: nothing of the program is left; who needs it then installs it anew."""
    sh(documented("Remove"))
    install.cache_clear()
    left = sh("find / -xdev -iname '*consentry*' -not -path '/proc/*' -not -path '/tmp/*'")

    assert vehicle.show("LoadState") == "not-found"
    assert {path for path in left.splitlines() if not path.startswith(("/src", "/opt/venv"))} == {
        "/etc/consentry",
        "/var/lib/consentry",
    }
