"""Disks that fail under the installed unit: dead, without writes, read-only, full, lying.

Whatever fails: nothing of a revoked grant leaves, what was committed arrives, and what the disk
does not take was not promised.
"""

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.demo.link import Link
from tests.vm.guest.disk import Disk, Fault
from tests.vm.guest.vehicle import (
    MAX_AGE_S,
    PATH,
    Numbers,
    Vehicle,
    install,
    push,
    sh,
    wait_for,
)

STATE = Path("/var/lib/consentry")
BAD = STATE / "bad"
MORE = "[spool]\nmin_free_bytes = 0\n"
SMALL_MIB = 14


class Drive:
    """A drive whose state is begun anew, under two grants: one stays, one is revoked."""

    def __init__(self, vehicle: Vehicle, link: Link, number: int) -> None:
        self.vehicle = vehicle
        self.link = link
        self.stays, self.goes = f"stays{number}", f"goes{number}"
        self.begun_s = time.time()
        self.answered = 0

    def begin(self) -> None:
        """Start under a policy with both grants."""
        start()
        cloud = self.vehicle.cloud
        made = [
            cloud.grant({"read_odometer": {"min_interval_s": 0}}, grant_id=grant_id, recipient=to)
            for grant_id, to in ((self.stays, "fleet"), (self.goes, "city"))
        ]
        self.push(cloud.policy(*made))
        self.await_answer()

    def push(self, token: str) -> None:
        self.answered = self.vehicle.answers()
        push(self.vehicle.broker, token)

    def is_answered(self) -> bool:
        return self.vehicle.answers() > self.answered

    def await_answer(self) -> None:
        wait_for("the answer", self.is_answered)

    def send(self, for_s: float = 1.0) -> list[int]:
        """Send numbers on the bus; return which."""
        with Numbers(next(self.vehicle.millions) * 1_000_000, per_s=200) as numbers:
            time.sleep(for_s)
        return list(range(numbers.first, numbers.next))

    def record(self, *, on_a_good_disk: bool = True) -> list[int]:
        """Send numbers without a network, until they are stored or dropped; return which."""
        self.link.cut()
        before = self.count("samples")
        sent = self.send()
        if on_a_good_disk:
            wanted = before + 2 * len(sent)
            wait_for("what was sealed", lambda: self.count("samples") >= wanted)
        else:
            time.sleep(MAX_AGE_S + 1.0)
        return sent

    @staticmethod
    def count(name: str) -> int:
        """Return one of the counts that the running agent tells."""
        counts = json.loads(sh("consentry status --json"))["counts"]
        return int(counts.get(name, 0))

    def revoke(self) -> None:
        """Bring the network back, and with it the revocation of one grant."""
        self.push(self.vehicle.cloud.revoke(self.goes))
        self.link.restore()

    def numbers(self, grant_id: str) -> list[int]:
        """Return the numbers that came of a grant; its envelopes have come without a hole."""
        found: dict[int, list[int]] = {}
        for item in self.vehicle.auditor.seen():
            if "/data/" in item.topic and item.topic.endswith(f"/{grant_id}"):
                opened = self.vehicle.cloud.open(item.payload)
                samples = opened.samples("whoever")
                found[opened.header.n] = [int(s.value) for s in samples if s.path == PATH]
        assert list(found) == list(range(1, len(found) + 1))
        return [number for numbers in found.values() for number in numbers]

    def await_all(self, sent: list[int]) -> None:
        """Wait until numbers have come to the one whose grant stays; each once and in order."""
        wait_for("what was sent", lambda: set(sent) <= set(self.numbers(self.stays)))
        found = self.numbers(self.stays)
        assert found == sorted(set(found))

    def pause_and_resume(self) -> None:
        """Stop and start again at the vehicle."""
        sh(f"consentry pause --grant {self.stays}")
        sh(f"consentry resume --grant {self.stays}")

    def told(self) -> str:
        """Return what the unit said in this drive."""
        return sh(f"journalctl -u consentry -o cat --no-pager --since @{self.begun_s:.3f}")

    def check_revoked(self, sent: list[int]) -> None:
        """Make sure that nothing of these went out under the grant that was revoked."""
        assert not set(sent) & set(self.numbers(self.goes))
        (line,) = [line for line in sh("consentry status").splitlines() if self.goes in line]
        assert " revoked " in line
        assert not list(STATE.glob("*.corrupt-*"))
        assert not list(STATE.glob("*.damaged-*"))


@pytest.fixture(scope="module")
def vehicle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vehicle]:
    install()
    made = Vehicle(tmp_path_factory.mktemp("vehicle"), more=MORE)
    yield made
    made.close()


@pytest.fixture(scope="module")
def counter() -> Iterator[int]:
    return itertools.count(1)


@pytest.fixture
def drive(vehicle: Vehicle, counter: Iterator[int]) -> Iterator[Drive]:
    stop()
    sh(f"rm -rf {STATE}/*; install -d -o consentry -g consentry -m 700 {STATE}")
    with Link(vehicle.broker.port) as link:
        vehicle.port = link.port
        vehicle.configure()
        made = Drive(vehicle, link, next(counter))
        yield made
        sys.stdout.write(made.told())  # Shown when a test failed.
        stop()


def start() -> None:
    sh("systemctl reset-failed consentry", check=False)
    sh("systemctl start consentry")


def stop() -> None:
    sh("systemctl stop consentry", check=False)


@contextmanager
def on_a_bad_disk(*names: str) -> Iterator[Disk]:
    """Have some of the state's files, and its folder `ledger`, on a disk of their own."""
    if "ledger" in names:  # It is begun by a rename, which wants a folder.
        start()
        stop()
    with Disk(BAD) as disk:
        for name in names:
            sh(f"[ ! -e {STATE}/{name} ] || mv {STATE}/{name}* {BAD}")
            sh(f"ln -s bad/{name} {STATE}/{name}; chown -h consentry: {STATE}/{name}")
        try:
            yield disk
        finally:
            stop()


@contextmanager
def on_a_disk_with_a_journal() -> Iterator[Disk]:
    """Have the whole state on a disk whose file system gives up at the first fault."""
    with Disk(STATE, journal=True) as disk:
        try:
            yield disk
        finally:
            stop()


# The other, which takes as long, is the same story with other errors from SQLite and the kernel.
FAULTS = pytest.mark.parametrize(
    "fault", ["dead", pytest.param("no writes", marks=pytest.mark.long)]
)


@FAULTS
def test_spool_and_ledger_on_a_failing_disk_hinder_no_revocation_and_come_back(
    drive: Drive, fault: Fault
) -> None:
    """What the disk had taken is sent when it is back; what it refused is not, and was said so."""
    with on_a_bad_disk("spool.db", "ledger") as disk:
        drive.begin()
        pid = drive.vehicle.pid
        drive.await_all(drive.send())
        kept = drive.record()
        disk.fail(fault)
        disk.forget()
        lost = drive.record(on_a_good_disk=False)
        drive.revoke()
        drive.await_answer()
        drive.pause_and_resume()
        told = json.loads(sh("consentry status --json"))
        disk.mend()
        after = drive.send()
        drive.await_all([*kept, *after])
        drive.check_revoked([*kept, *lost, *after])

        assert "batch dropped" in drive.told()
        assert drive.vehicle.pid == pid
        assert not set(lost) <= set(drive.numbers(drive.stays))
        assert told["disk"]["spool_fault"]
        stop()
        disk.forget()
        assert "entries-lost" in sh("consentry ledger show")
        sh("consentry ledger verify")


@pytest.mark.long
@FAULTS
def test_what_is_recorded_goes_out_while_the_ledger_is_on_a_failing_disk(
    drive: Drive, fault: Fault
) -> None:
    with on_a_bad_disk("ledger") as disk:
        drive.begin()
        pid = drive.vehicle.pid
        disk.fail(fault)
        disk.forget()
        kept = drive.record()
        drive.revoke()
        drive.await_answer()
        drive.await_all(kept)
        drive.check_revoked(kept)

        assert drive.vehicle.pid == pid


@pytest.mark.parametrize("fault", [pytest.param("dead", marks=pytest.mark.long), "no writes"])
def test_consent_that_cannot_be_written_ends_the_agent_until_the_disk_is_back(
    drive: Drive, fault: Fault
) -> None:
    """The revocation is answered once it is on the disk, and then a power cut does not undo it."""
    with on_a_bad_disk("consent.db") as disk:
        drive.begin()
        pid = drive.vehicle.pid
        kept = drive.record()
        disk.fail(fault)
        drive.revoke()
        wait_for("the end", lambda: drive.vehicle.pid != pid)
        wait_for("the next start", lambda: "Scheduled restart" in drive.told())
        time.sleep(2)
        told, is_answered = drive.told(), drive.is_answered()
        disk.mend()
        drive.await_answer()
        drive.await_all(kept)
        drive.link.cut()
        os.kill(drive.vehicle.pid, signal.SIGKILL)
        disk.forget()
        after = drive.send(4.0)
        wait_for("the start", lambda: "revoked" in sh("consentry status", check=False))
        drive.check_revoked([])
        drive.link.restore()
        drive.await_all(after[-100:])

        assert "error: " in told
        assert "hint: " in told
        assert not is_answered
        drive.check_revoked([*kept, *after])


@pytest.mark.long
def test_a_disk_that_turns_read_only_ends_the_agent_until_it_is_repaired(drive: Drive) -> None:
    """What was committed is there after the check of the file system."""
    with on_a_disk_with_a_journal() as disk:
        drive.begin()
        kept = drive.record()
        disk.fail("no writes")
        drive.revoke()
        wait_for("the end", lambda: "Scheduled restart" in drive.told())
        is_answered = drive.is_answered()
        stop()
        disk.repair()
        start()
        drive.await_answer()
        after = drive.send()
        drive.await_all([*kept, *after])

        assert not is_answered
        drive.check_revoked([*kept, *after])


@pytest.mark.long
def test_a_disk_that_lies_about_writing_gives_nothing_of_a_revoked_grant(drive: Drive) -> None:
    """After the power cut the agent stands where the disk does, and the policy comes first."""
    with on_a_disk_with_a_journal() as disk:
        drive.begin()
        kept = drive.record()
        sh("sync")
        disk.fail("lies")
        lost = drive.record()
        drive.revoke()
        drive.await_answer()
        drive.link.cut()
        os.kill(drive.vehicle.pid, signal.SIGKILL)
        stop()
        disk.repair()
        drive.link.restore()
        start()
        drive.await_all(drive.send(4.0)[-100:])

        drive.check_revoked([*kept, *lost])


@pytest.mark.long
def test_on_a_full_disk_it_refuses_revokes_and_pauses(drive: Drive) -> None:
    """What there is no room for is dropped and said; what was stored before arrives."""
    sh(f"mount -t tmpfs -o size={SMALL_MIB}m,mode=700 tmpfs {STATE}; chown consentry: {STATE}")
    try:
        drive.begin()
        pid = drive.vehicle.pid
        kept = drive.record()
        sh(f"cat /dev/zero > {STATE}/filler", check=False)
        lost = drive.record(on_a_good_disk=False)
        drive.push("no.policy.atall")
        drive.link.restore()
        drive.await_answer()
        drive.link.cut()
        drive.revoke()
        drive.await_answer()
        drive.pause_and_resume()
        drive.await_all(kept)
        (STATE / "filler").unlink()
        after = drive.send()
        drive.await_all(after)

        assert "batch dropped" in drive.told()
        assert "SQLITE_FULL" in drive.told()
        assert "policy refused" in drive.told()
        assert drive.vehicle.pid == pid
        drive.check_revoked([*kept, *lost, *after])
    finally:
        stop()
        sh(f"umount {STATE}")
