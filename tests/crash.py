"""Kill a vehicle again and again, and its broker too, and account for every envelope.

The oracle: each number that the vehicle has ever drawn was opened at the recipient, once after
de-duplication and in order per grant, or is told of as expired, evicted or erased; nothing of a
grant arrives after its revocation was acknowledged.

`python -m tests.crash --kills 1000 --report docs/reports/crash.md` is `make test-long`.
"""

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import yaml

from agent.cloud.envelope import Opened
from agent.cloud.keys import recipient_private
from agent.cloud.receiver import BrokerAddress, Receiver, publish_policy, push_policy
from agent.edge.keys import client_tls
from agent.edge.store import Store
from tests import car
from tests.broker import Broker
from tests.cloud import VEHICLE, Cloud
from tests.crash_child import (
    COMMIT,
    DRIVE,
    FIRST_GRANT,
    GRANTS,
    OPEN,
    PHASE,
    TURNS,
    UNACKNOWLEDGED,
    WAITING,
    Marks,
    make_marks,
)
from tests.peer import wait_until
from tests.pki import Files, Pki
from tests.relay import Relay

FORD = car.ROOT / "config" / "vehicles" / "ford_mustang_s550.vspec"
BRIEF = {
    "class_max_bytes": {"driver_behaviour": 3000},
    "class_max_age_s": {"driver_behaviour": 2},
}
NAMES = {
    OPEN: "batch open",
    COMMIT: "commit under way",
    UNACKNOWLEDGED: "publish on its way, or answered and not erased",
}
START_S = 30.0


@dataclass
class Figures:
    """What was seen.

    Attributes:
        moments: In which phase the vehicle was when it was killed.
        faults: What was done to the broker and the link.
        drawn: Numbers per grant.
        told_of: Numbers that did not come, by the reason that was told.
    """

    kills: int
    seed: int
    moments: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    drawn: dict[str, int] = field(default_factory=dict)
    opened: int = 0
    duplicates: int = 0
    told_of: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def told(self) -> str:
        """Return a table for a report."""
        rows = [
            ("kills", self.kills),
            ("seed", self.seed),
            *((f"killed: {name}", count) for name, count in sorted(self.moments.items())),
            *((f"meanwhile: {name}", count) for name, count in sorted(self.faults.items())),
            *((f"numbers drawn: {name}", count) for name, count in sorted(self.drawn.items())),
            ("opened at the recipient, once each", self.opened),
            ("came again and were told apart", self.duplicates),
            *((f"told of as {why}", count) for why, count in sorted(self.told_of.items())),
            ("lost", 0),
            ("seconds", round(self.seconds)),
        ]
        return as_table(rows)


def as_table(rows: Iterable[tuple[str, int]]) -> str:
    lines = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"| what | count |\n|---|---|\n{lines}\n"


def write_report(path: Path, title: str, text: str, told: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"# {title}\n\n{text}\n\n{told}", encoding="utf-8")


class Recipient(threading.Thread):
    """Opens what comes, in a thread."""

    def __init__(self, address: BrokerAddress, cloud: Cloud) -> None:
        super().__init__()
        keys = {key["kid"]: recipient_private(key) for key in cloud.keys.values()}
        self.receiver = Receiver(
            address,
            recipient="fleet",
            recipient_keys=keys,
            devices={cloud.device.kid: cloud.device.public_half},
        )
        self.came: list[tuple[str, int]] = []
        self.rejected: list[str] = []

    def run(self) -> None:
        for item in self.receiver:
            if isinstance(item, Opened):
                self.came.append((item.header.grant_id, item.header.n))
            else:
                self.rejected.append(item.error.reason)

    def settled(self, quiet_s: float = 0.5, *, grant_id: str | None = None) -> None:
        """Wait until nothing, or nothing of a grant, came for a while."""
        before, since_s = -1, time.monotonic()
        while time.monotonic() - since_s < quiet_s:
            duplicates = self.receiver.duplicates if grant_id is None else 0
            found = duplicates + sum(grant_id in (None, name) for name, _ in list(self.came))
            if found != before:
                before, since_s = found, time.monotonic()
            time.sleep(0.02)


class Vehicle:
    """The process that is killed. A context manager."""

    def __init__(self, config: Path, marks: Path) -> None:
        self.marks: Marks = make_marks(marks)
        with (config.parent / "vehicle.log").open("ab") as log:
            self._zygote = subprocess.Popen(
                [*(sys.executable, "-W", "ignore", "-m", "tests.crash_child"), config, marks],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=Path(__file__).resolve().parent.parent,
            )
        self._pid = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._zygote.communicate(timeout=10)

    def start(self, how: str) -> None:
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        turns = self.marks[TURNS]
        self._zygote.stdin.write(f"{how}\n")
        self._zygote.stdin.flush()
        self._pid = int(self._zygote.stdout.readline())
        wait_until(lambda: self.marks[TURNS] > turns, START_S)

    def kill(self) -> None:
        pid, self._pid = self._pid, 0
        if pid:
            with suppress(ProcessLookupError):  # It ended by itself: `start` has said so.
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not Path(f"/proc/{pid}").exists(), START_S)


class Scene:
    """Broker, link, recipient, vehicle."""

    def __init__(  # noqa: PLR0917 - the parts
        self,
        folder: Path,
        pki: Pki,
        broker: Broker,
        relay: Relay,
        sockets: str,
        captures: Path | None,
    ) -> None:
        self.folder, self.broker, self.relay = folder, broker, relay
        self.cloud = Cloud()
        self.cloud.now_s = int(time.time()) - 60
        self.platform = _address(pki.client("platform", pki.backend), broker.backend_port)
        fleet = _address(pki.client("fleet", pki.recipients), broker.recipient_port)
        self.recipient = Recipient(fleet, self.cloud)
        self.recipient.start()
        write_car(folder, self.cloud)
        if captures is not None:
            drive = captures / "mustang"
            (folder / "car.dbc").write_bytes((drive / "ford_lincoln_base_pt.dbc").read_bytes())
            mapping = yaml.safe_load(FORD.read_text())
            for leaf in mapping.values():
                leaf["dbc2vss"] |= {"interval_ms": 0}  # The grants alone say how often.
            (folder / "car.vspec").write_text(yaml.safe_dump(mapping))
            (folder / DRIVE).symlink_to(drive / "mustang_s550.log.gz")
        files = pki.vehicle(VEHICLE)
        self.config = folder / "config.json"
        uplink = {
            "port": relay.port,
            "ca": str(files.ca),
            "certificate": str(files.certificate),
            "private_key": str(files.private_key),
        }
        document = settings(uplink, socket=f"{sockets}/control.sock") | {"spool": BRIEF}
        self.config.write_text(json.dumps(document), encoding="utf-8")
        every = {scope: {"min_interval_s": 0} for scope in ("read_odometer", "read_diagnostics")}
        grants = [self.cloud.grant(every, grant_id=grant_id) for grant_id in ("gr_a", "gr_b")]
        # Of a class that gives way and outlives its time in the first second without a broker.
        brief = {"read_speedometer": {"min_interval_s": 0.1}}
        grants.append(self.cloud.grant(brief, grant_id="gr_c"))
        publish_policy(VEHICLE, self.cloud.policy(*grants), self.platform)

    def revoke(self) -> None:
        """Withdraw one grant, and wait for the vehicle's word that it is done."""
        device = self.cloud.device
        ack = push_policy(
            VEHICLE,
            self.cloud.revoke("gr_b"),
            self.platform,
            devices={device.kid: device.public_half},
        )
        assert ack.outcome in ("applied", "repeated"), ack

    def trouble(self, kind: str, chance: random.Random) -> None:
        """Do something to the broker or to the link."""
        match kind:
            case "link cut":
                self.relay.cut()
            case "link dead":
                self.relay.silent = True
                time.sleep(chance.uniform(0.1, 0.4))
                self.relay.cut()
                self.relay.silent = False
            case "broker paused":
                self.broker.signal(signal.SIGSTOP)
                time.sleep(chance.uniform(0.1, 0.4))
                self.broker.signal(signal.SIGCONT)
            case "broker restarted":
                self.broker.stop()
                self.broker.start()
            case "broker killed":
                # What a broker has acknowledged and not passed on dies with it, whoever the agent
                # is: so it is killed when it holds nothing, and comes back before the vehicle.
                self.relay.silent = True
                self.relay.cut()
                self.recipient.settled()
                connections = self.recipient.receiver.connections
                self.broker.kill()
                self.broker.start()
                wait_until(lambda: self.recipient.receiver.connections > connections, START_S)
                publish_policy(VEHICLE, self.cloud.token(self.cloud.document), self.platform)
                self.relay.cut()
                self.relay.silent = False


TROUBLES = {
    "link cut": 0.15,
    "link dead": 0.1,
    "broker paused": 0.1,
    "broker restarted": 0.05,
    "broker killed": 0.02,
}


def run(folder: Path, *, kills: int, seed: int, captures: Path | None = None) -> Figures:
    """Kill a vehicle so often and account for what it had.

    Args:
        folder: Empty.
        kills: How often.
        seed: Of all that is left to chance.
        captures: Of recorded drives; None: frames are made up.
    """
    chance = random.Random(seed)
    figures = Figures(kills, seed)
    begun_s = time.monotonic()
    pki = Pki(folder / "pki")
    (folder / "car").mkdir()
    with (
        Broker(folder / "broker", pki) as broker,
        Relay(broker.port) as relay,
        tempfile.TemporaryDirectory() as sockets,  # Their paths must be short.
    ):
        scene = Scene(folder / "car", pki, broker, relay, sockets, captures)
        try:
            with Vehicle(scene.config, folder / "marks") as vehicle:
                returned = _shoot(scene, vehicle, chance, figures)
        finally:
            scene.recipient.settled()
            scene.recipient.receiver.close()
            scene.recipient.join(START_S)
        _account(folder / "car" / "state", scene.recipient, returned, figures)
    figures.seconds = time.monotonic() - begun_s
    return figures


def _shoot(
    scene: Scene, vehicle: Vehicle, chance: random.Random, figures: Figures
) -> dict[str, int]:
    """Kill and start; return the highest number of each grant whose append has returned."""
    revoked_at = -1
    for shot in range(figures.kills):
        vehicle.start("run")
        if shot == figures.kills // 2:
            scene.revoke()
            scene.recipient.settled(grant_id="gr_b")
            revoked_at = _of(scene.recipient, "gr_b")
        time.sleep(chance.uniform(0.02, 0.5))
        for kind, share in TROUBLES.items():
            if chance.random() < share:
                figures.faults[kind] += 1
                scene.trouble(kind, chance)
        aim = chance.choice(list(NAMES))
        until_s = time.monotonic() + 1.5
        while vehicle.marks[PHASE] != aim and time.monotonic() < until_s:
            pass
        vehicle.kill()
        figures.moments[NAMES[vehicle.marks[PHASE]]] += 1
    returned = {name: vehicle.marks[FIRST_GRANT + i] for i, name in enumerate(GRANTS)}
    vehicle.start("drain")
    wait_until(lambda: vehicle.marks[WAITING] == 0, 120)
    scene.recipient.settled()
    assert _of(scene.recipient, "gr_b") == revoked_at, "something of a revoked grant arrived"
    return returned


def _account(state: Path, recipient: Recipient, returned: dict[str, int], figures: Figures) -> None:
    """Hold every number that was drawn against what became of it."""
    db = sqlite3.connect(state / "spool.db")
    last = dict(db.execute("SELECT grant_id, n FROM sequence WHERE grant_id != ''"))
    db.close()
    with Store.open(state) as store:
        assert store.counts() == {}
        told = {
            (gap.grant_id, n): str(gap.why)
            for gap in store.gaps(10_000)
            for n in range(gap.first_n, gap.last_n + 1)
        }
    told |= {
        (run.grant_id, n): run.why
        for run in recipient.receiver.missing()
        if run.why != "lost"
        for n in range(run.first_n, run.last_n + 1)
    }
    assert set(told.values()) <= {"erased", "expired", "evicted"}, "nothing was damaged"
    assert not list(state.glob("*.corrupt-*"))
    assert {grant_id for grant_id, _ in told} <= {"gr_b", "gr_c"}, "gr_a has room and time"
    assert recipient.rejected == []
    assert recipient.receiver.conflicts == 0
    for grant_id, n in returned.items():
        assert last[grant_id] >= n, f"{grant_id}: {n} was committed, {last[grant_id]} is left"
    came = recipient.came
    assert len(set(came)) == len(came), "an envelope came twice"
    drawn = {(grant_id, n) for grant_id, top in last.items() for n in range(1, top + 1)}
    lost = sorted(drawn - set(came) - told.keys())
    assert lost == [], f"lost: {lost[:20]} of {len(drawn)}"
    assert set(came) <= drawn
    for grant_id in last:
        numbers = [n for name, n in came if name == grant_id]
        assert numbers == sorted(numbers), f"{grant_id} came out of order"
    figures.drawn = last
    figures.opened = len(came)
    figures.duplicates = recipient.receiver.duplicates
    figures.told_of = Counter(why for number, why in told.items() if number not in set(came))


def _of(recipient: Recipient, grant_id: str) -> int:
    return sum(name == grant_id for name, _ in list(recipient.came))


def _address(files: Files, port: int) -> BrokerAddress:
    tls = client_tls(ca=files.ca, certificate=files.certificate, private_key=files.private_key)
    return BrokerAddress("127.0.0.1", port, tls)


def write_car(folder: Path, cloud: Cloud) -> None:
    """Write what the configuration names."""
    (folder / "car.dbc").write_bytes(car.DBC)
    (folder / "car.vspec").write_bytes(car.MAPPING)
    cloud.write_files(folder)


def settings(
    uplink: Mapping[str, object], *, socket: str, state: str = "state", max_age_s: float = 0.05
) -> dict[str, object]:
    """Return a configuration that seals at every moment, for the files of tests.car."""
    return {
        "vehicle": {"id": VEHICLE, "trust": "trust.json"},
        "state": {"directory": state},
        "keys": {"device": "device.jwk"},
        "batch": {"max_age_s": max_age_s},
        "control": {"socket": socket},
        "time": {"synchronised": "always"},
        "bus": [
            {
                "name": "can0",
                "interface": "virtual",
                "channel": "crash",
                "dbc": ["car.dbc"],
                "mapping": "car.vspec",
                "options": {"preserve_timestamps": True},
            }
        ],
        "uplink": {
            "host": "127.0.0.1",
            "min_backoff_s": 0.05,
            "max_backoff_s": 0.3,
            "keepalive_s": 5,
            "max_rate_per_s": 2000.0,
            **uplink,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path)
    captures = os.environ.get("CONSENTRY_CAPTURES", str(car.ROOT.parent / "shared" / "data"))
    parser.add_argument("--captures", type=Path, default=Path(captures))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = run(Path(folder), kills=given.kills, seed=given.seed, captures=given.captures)
    told = figures.told()
    sys.stdout.write(told)
    if given.report is not None:
        write_report(
            given.report,
            "Crash test",
            "Written by `python -m tests.crash` (`make test-long`): the vehicle drives a recorded"
            " drive again and again and is killed with SIGKILL while it reads, seals, stores and"
            " publishes; its broker is killed, restarted, paused and cut off; every number that it"
            " ever drew is accounted for. One grant (gr_b) is revoked half-way; one (gr_c) is of"
            " a class that has room for few envelopes and two seconds. The broker is killed when"
            " the recipient has what it holds: what a broker has acknowledged and not passed on"
            " dies with it, whoever sends.",
            told,
        )


if __name__ == "__main__":
    main()
