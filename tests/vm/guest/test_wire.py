"""Bad wires between the installed unit and its broker in another network namespace.

Whatever the wire does: what was sealed arrives, each envelope once and in order, and nothing of a
grant after its revocation was answered.
"""

import itertools
import sys
import time
from collections.abc import Iterator

import pytest

from tests.vm.guest.vehicle import PATH, FarBroker, Numbers, Vehicle, install, push, sh, wait_for
from tests.wire import Link

FOUND_S = 30.0  # In which a dead link is to be found.

# As tc-netem(8) spells it, for each direction.
WIRES = {
    "loses a tenth": "loss 10% delay 40ms 20ms",
    "loses a third": "loss 30%",
    "is late and out of order": "delay 200ms 150ms distribution normal reorder 25% 50%",
    "is very late": "delay 800ms 200ms",
    "doubles and breaks": "duplicate 20% corrupt 5% delay 20ms",
    "is GPRS": "rate 20kbit delay 300ms 50ms limit 30",
}
IN_CI = ("is GPRS",)


class Drive:
    """One vehicle at a wire, under two grants of its own."""

    def __init__(self, vehicle: Vehicle, link: Link, number: int) -> None:
        self.vehicle = vehicle
        self.link = link
        self.stays, self.goes = f"stays{number}", f"goes{number}"
        made = [
            vehicle.cloud.grant(
                {"read_odometer": {"min_interval_s": 0}}, grant_id=grant_id, recipient=to
            )
            for grant_id, to in ((self.stays, "fleet"), (self.goes, "city"))
        ]
        self.push(vehicle.cloud.policy(*made))
        self.await_answer()

    def push(self, token: str) -> None:
        self.answered = self.vehicle.answers()
        push(self.vehicle.broker, token)

    def await_answer(self) -> None:
        wait_for("the answer", lambda: self.vehicle.answers() > self.answered)

    def shape(self, netem: str) -> None:
        self.link.shape(self.vehicle.broker.port, netem)

    def send(self, for_s: float) -> list[int]:
        """Send numbers on the bus; return which."""
        with Numbers(next(self.vehicle.millions) * 1_000_000, per_s=100) as numbers:
            time.sleep(for_s)
        return list(range(numbers.first, numbers.next))

    def numbers(self, grant_id: str) -> list[int]:
        """Return the numbers that came of a grant; its envelopes have come in order, whole."""
        found: dict[int, bytes] = {}
        numbers: list[int] = []
        for item in self.vehicle.auditor.seen():
            if "/data/" in item.topic and item.topic.endswith(f"/{grant_id}"):
                opened = self.vehicle.cloud.open(item.payload)
                if found.setdefault(opened.header.n, item.payload) == item.payload:
                    samples = opened.samples("whoever")
                    numbers += [int(s.value) for s in samples if s.path == PATH]
        assert list(found) == list(range(1, len(found) + 1))
        return list(dict.fromkeys(numbers))

    def await_all(self, sent: list[int], *grant_ids: str) -> None:
        """Wait until numbers have come to whom they were granted; in order."""
        for grant_id in grant_ids:
            wait_for("what was sent", lambda g=grant_id: set(sent) <= set(self.numbers(g)))
            assert self.numbers(grant_id) == sorted(self.numbers(grant_id))

    def downs(self) -> int:
        return self.vehicle.log().count("uplink down")

    def check_nothing_behind(self, answers: int) -> None:
        """Make sure that no envelope of the revoked grant came behind the answer."""
        seen = self.vehicle.auditor.seen()
        places = [at for at, item in enumerate(seen) if item.topic.endswith("/policy/ack")]
        behind = seen[places[answers - 1] :]
        goes = [item for item in behind if item.topic.endswith(f"/{self.goes}")]
        assert not [item for item in goes if "/data/" in item.topic]


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    sh("modprobe -a veth sch_prio sch_netem cls_u32")
    with Link() as made:
        yield made


@pytest.fixture(scope="module")
def vehicle(link: Link, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vehicle]:
    install()
    folder = tmp_path_factory.mktemp("wire")
    made = Vehicle(folder, broker=FarBroker(folder / "far", link))
    sh("systemctl reset-failed consentry", check=False)
    sh("systemctl start consentry")
    yield made
    made.close()


@pytest.fixture(scope="module")
def counter() -> Iterator[int]:
    return itertools.count(1)


@pytest.fixture
def drive(vehicle: Vehicle, link: Link, counter: Iterator[int]) -> Iterator[Drive]:
    begun_s = time.time()
    made = Drive(vehicle, link, next(counter))
    yield made
    made.shape("")
    # Shown when a test failed.
    sys.stdout.write(sh(f"journalctl -u consentry -o cat --no-pager --since @{begun_s:.3f}"))


@pytest.mark.parametrize(
    "wire",
    [pytest.param(name, marks=[] if name in IN_CI else pytest.mark.long) for name in WIRES],
)
def test_over_a_wire_that(drive: Drive, wire: str) -> None:
    """What is sent while it is bad arrives over it; so does a revocation, and it holds."""
    drive.shape(WIRES[wire])
    sent = drive.send(3.0)
    drive.await_all(sent, drive.stays, drive.goes)
    more = drive.send(2.0)
    drive.push(drive.vehicle.cloud.revoke(drive.goes))
    drive.await_answer()
    answers = drive.vehicle.answers()
    more += drive.send(2.0)
    drive.await_all([*sent, *more], drive.stays)

    drive.check_nothing_behind(answers)


def test_over_a_wire_that_is_cut_while_publishing(drive: Drive) -> None:
    """Again and again, for moments, in the middle of a backlog over a bad wire."""
    drive.shape("loss 100%")
    sent = drive.send(4.0)
    for _ in range(3):
        drive.shape("delay 100ms 50ms loss 5% rate 64kbit")
        time.sleep(1.5)
        drive.link.lose("down")
        time.sleep(0.5)
        drive.link.find("down")
    drive.shape("delay 100ms 50ms loss 5%")
    drive.await_all(sent, drive.stays, drive.goes)


def test_over_a_wire_that_is_dead_and_does_not_say_so(drive: Drive) -> None:
    """Found while nothing is sent, and a revocation of that time comes before anything else."""
    drive.await_all(drive.send(1.0), drive.stays, drive.goes)
    before = drive.downs()
    begun_s = time.monotonic()
    drive.shape("loss 100%")
    drive.push(drive.vehicle.cloud.revoke(drive.goes))

    while drive.downs() == before:
        time.sleep(0.2)
        assert time.monotonic() - begun_s < FOUND_S
    sys.stdout.write(f"found in {time.monotonic() - begun_s:.1f} s\n")
    lost = drive.send(1.0)
    drive.shape("")
    drive.await_answer()
    drive.await_all(lost, drive.stays)

    assert not set(lost) & set(drive.numbers(drive.goes))
