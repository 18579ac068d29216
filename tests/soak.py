"""A day of driving in minutes through `consentry run`, and whether it grows meanwhile.

A real drive is driven again and again (tests/timelapse.py), faster than it went; the agent, its
files, mosquitto with TLS and the recipient are the real ones. The day has rounds, and in each the
policy is renewed, a grant revoked and given anew under another id, the broker away and back, the
owner pauses and resumes, and the configuration is read anew: at moments drawn by the seed, the same
in each quarter of the day.

`python -m tests.soak --hours 24 --report docs/reports/soak.md` is part of `make test-long`.
"""

import argparse
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.cloud.receiver import BrokerAddress, publish_policy, push_policy
from agent.core.ask import Pause, Resume
from agent.core.model import NS_PER_S
from agent.edge.keys import client_tls
from tests import car
from tests.broker import Broker
from tests.cloud import VEHICLE, Cloud
from tests.crash import Recipient
from tests.growth import Figures, Moment, told
from tests.pki import Files, Pki
from tests.timelapse import START_S, Vehicle, drawn, held, size_of, write_config
from tests.timelapse_child import BLOCKS, COLLECT, DELIVERED, FRAMES, LOST, SEALED, SPOOLED

DRIVE = "obd2_gnss_drive"
WAIT_S = 600.0  # For one step of a day, on a machine that others use too.
HOUR_S = 3600
ROUND_HOURS = 1.5
KEPT = {"read_speedometer": {"min_interval_s": 1}, "read_odometer": {"min_interval_s": 1}}
PLACE = {"read_location": {"min_interval_s": 1}}
ENGINE = {"read_powertrain": {"min_interval_s": 0.1}, "read_fuel": {"min_interval_s": 1}}
AWAY = 0.06  # Part of a round for which the broker is away, and for which the owner pauses.
MIB = 1 << 20


class Scene:
    """Broker, recipient, platform, and the vehicle's files."""

    def __init__(
        self,
        folder: Path,
        captures: Path,
        pki: Pki,
        broker: Broker,
        *,
        socket: str,
        batch_s: float,
    ) -> None:
        self.folder, self.broker = folder, broker
        self.cloud = Cloud()
        self.platform = _address(pki.client("platform", pki.backend), broker.backend_port)
        fleet = _address(pki.client("fleet", pki.recipients), broker.recipient_port)
        self.recipient = Recipient(fleet, self.cloud)
        folder.mkdir()
        self.cloud.write_files(folder)
        drive = captures / DRIVE
        self.config = write_config(
            folder,
            broker.port,
            pki.vehicle(VEHICLE),
            socket=socket,
            bus={
                "dbc": [str(car.ROOT / "dbc" / "obd2.dbc"), str(drive / "canmod-gps.dbc")],
                "mapping": str(car.ROOT / "config" / "vehicles" / "obd2_gnss.vspec"),
            },
            batch={"max_age_s": batch_s},
            uplink={"max_rate_per_s": 2000.0},
        )
        start_ns = int(time.time()) * NS_PER_S
        self.cloud.now_s = start_ns // NS_PER_S
        self.vehicle = Vehicle(
            self.config,
            socket=socket,
            drive=str(drive / "drive_all.log.gz"),
            start_ns=start_ns,
        )
        self.grants = {
            "usage": self.cloud.grant(KEPT, grant_id="gr_usage", **car.combined(KEPT)),
            "place": self.cloud.grant(PLACE, grant_id="gr_place"),
            "engine": self.cloud.grant(ENGINE, grant_id="gr_engine_0"),
        }
        publish_policy(VEHICLE, self.cloud.policy(*self.grants.values()), self.platform)

    def push(self) -> None:
        """Renew the policy, and wait for the vehicle's word."""
        self.cloud.now_s = self.vehicle.now_s
        device = self.cloud.device
        token = self.cloud.policy(*self.grants.values())
        devices = {device.kid: device.public_half}
        ack = push_policy(VEHICLE, token, self.platform, devices=devices)
        assert ack.outcome == "applied", ack

    def give_anew(self) -> None:
        """Revoke a grant and give the same under another id."""
        count = int(self.grants["engine"]["grant_id"].rpartition("_")[2])
        self.cloud.now_s = self.vehicle.now_s
        self.grants["engine"] = self.cloud.grant(ENGINE, grant_id=f"gr_engine_{count + 1}")
        self.push()

    def away(self, wait: Callable[[], None]) -> None:
        """Take the broker away for a while."""
        self.broker.stop()
        wait()
        self.broker.start()

    def paused(self, wait: Callable[[], None]) -> None:
        """Let the owner stop everything for a while."""
        self.vehicle.ask(Pause())
        wait()
        self.vehicle.ask(Resume())


class Watcher(threading.Thread):
    """Looks at the vehicle every so often."""

    def __init__(self, scene: Scene, figures: Figures, every_s: float) -> None:
        super().__init__()
        self._scene, self._figures, self._every_s = scene, figures, every_s
        self._ended = threading.Event()
        self._begun_s = scene.vehicle.now_s
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._ended.wait(self._every_s):
                self._figures.moments.append(self._look())
        except BaseException as exc:  # noqa: BLE001 - raised where it is ended
            self.failure = exc

    def end(self) -> None:
        self._ended.set()
        self.join()
        if self.failure is not None:
            raise self.failure

    def _look(self) -> Moment:
        vehicle, state = self._scene.vehicle, self._scene.folder / "state"
        use = vehicle.use()
        files = {
            name: [state / f"{name}.db{end}" for end in ("", "-wal", "-shm")]
            for name in ("spool", "consent")
        }
        found = {
            "resident": use.resident_bytes / MIB,
            "blocks": vehicle.gauges[BLOCKS],
            "files": use.files,
            "threads": use.threads,
            "spool": size_of(*files["spool"]) / 1024,
            "consent": size_of(*files["consent"]) / 1024,
            "waiting": vehicle.gauges[SPOOLED],
            "ledger": size_of(state / "ledger") / 1024,
            "log": size_of(vehicle.log) / 1024,
        }
        return Moment((vehicle.now_s - self._begun_s) / HOUR_S, found)


def run(
    folder: Path,
    captures: Path,
    *,
    hours: float,
    seed: int,
    pace: int,
    every_s: float,
    rounds: int,
    batch_s: float = 10.0,
    collects: bool = False,
) -> Figures:
    """Drive so many hours; return what was seen, every envelope accounted for.

    Args:
        folder: Empty.
        captures: Of recorded drives.
        hours: By the vehicle's clock.
        seed: Of the moments at which something happens.
        pace: At most so many times as fast as it went.
        every_s: How often is looked, by ours.
        rounds: In each everything happens once; a multiple of four.
        batch_s: As `max_age_s` in agent.toml.
        collects: Python's garbage is collected every second: a short soak could not tell it from
            what is in use, for Python lets it grow to a quarter of that.
    """
    figures = Figures(hours, seed)
    begun_s = time.monotonic()
    pki = Pki(folder / "pki")
    with Broker(folder / "broker", pki) as broker, tempfile.TemporaryDirectory() as sockets:
        scene = Scene(
            folder / "car",
            captures,
            pki,
            broker,
            socket=f"{sockets}/control.sock",
            batch_s=batch_s,
        )
        scene.recipient.start()
        try:
            with scene.vehicle as vehicle:
                vehicle.gauges[COLLECT] = collects
                _day(scene, figures, random.Random(seed), pace=pace, every_s=every_s, rounds=rounds)
                vehicle.drive(0)
                vehicle.wait(lambda: vehicle.gauges[SPOOLED] == 0, WAIT_S)
            scene.recipient.settled(quiet_s=1.0)
        finally:
            scene.recipient.receiver.close()
            scene.recipient.join(START_S)
        _account(scene, figures)
    figures.seconds = time.monotonic() - begun_s
    return figures


def _day(
    scene: Scene,
    figures: Figures,
    chance: random.Random,
    *,
    pace: int,
    every_s: float,
    rounds: int,
) -> None:
    vehicle = scene.vehicle
    vehicle.wait(lambda: b"policy applied" in vehicle.log.read_bytes(), START_S)
    length_s = figures.hours * HOUR_S / rounds
    begun_s = vehicle.now_s
    watcher = Watcher(scene, figures, every_s)
    vehicle.drive(pace)
    watcher.start()

    def wait() -> None:
        """Drive on for a part of the round: always the same, or the spool's size would vary."""
        vehicle.drive_until(vehicle.now_s + length_s * AWAY, WAIT_S)

    steps: dict[str, Callable[[], Any]] = {
        "policy renewed": scene.push,
        "grant revoked, another given": scene.give_anew,
        "broker away and back": lambda: scene.away(wait),
        "paused and resumed": lambda: scene.paused(wait),
        "configuration read anew": vehicle.reload,
    }
    try:
        # The same in each quarter, or they could not be compared.
        quarter = [
            [
                (name, (place + chance.random() / 2) / len(steps))
                for place, name in enumerate(chance.sample(list(steps), len(steps)))
            ]
            for _ in range(rounds // 4)
        ]
        for number, order in enumerate(quarter * 4):
            for name, part in order:
                vehicle.drive_until(begun_s + (number + part) * length_s, WAIT_S)
                steps[name]()
                figures.done[name] += 1
        vehicle.drive_until(begun_s + figures.hours * HOUR_S, WAIT_S)
    finally:
        watcher.end()


def _account(scene: Scene, figures: Figures) -> None:
    """Hold every number that was drawn against what became of it."""
    recipient, gauges = scene.recipient, scene.vehicle.gauges
    state = scene.folder / "state"
    every = {(g, n) for g, top in drawn(state).items() for n in range(1, top + 1)}
    waits, untold = held(state)
    told = {
        (run.grant_id, n)
        for run in recipient.receiver.missing()
        if run.why != "lost"
        for n in range(run.first_n, run.last_n + 1)
    }
    came = set(recipient.came)
    assert recipient.rejected == []
    assert len(came) == len(recipient.came), "an envelope came twice"
    lost = every - came - told - waits - untold
    assert not lost, f"lost: {sorted(lost)[:10]} of {len(every)}"
    figures.counts = {
        "frames driven": gauges[FRAMES],
        "frames that the capture lane could not take": gauges[LOST],
        "envelopes sealed": gauges[SEALED],
        "envelopes that the broker took": gauges[DELIVERED],
        "envelopes opened at the recipient, once each": len(came),
        "envelopes erased by a revocation, and told": len(told - came),
        "envelopes of the stop, which wait for the next start": len(waits),
        "envelopes lost": 0,
    }


def _address(files: Files, port: int) -> BrokerAddress:
    tls = client_tls(ca=files.ca, certificate=files.certificate, private_key=files.private_key)
    return BrokerAddress("127.0.0.1", port, tls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pace", type=int, default=400, help="at most so many times real time")
    captures = os.environ.get("CONSENTRY_CAPTURES", str(car.ROOT.parent / "shared" / "data"))
    parser.add_argument("--captures", type=Path, default=Path(captures))
    parser.add_argument("--report", type=Path)
    given = parser.parse_args()
    rounds = max(4, round(given.hours / ROUND_HOURS / 4) * 4)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        figures = run(
            Path(folder),
            given.captures,
            hours=given.hours,
            seed=given.seed,
            pace=given.pace,
            every_s=1.0,
            rounds=rounds,
        )
    text = told(figures)
    sys.stdout.write(text)
    if given.report is not None:
        given.report.parent.mkdir(exist_ok=True)
        given.report.write_text(
            "# Soak\n\nWritten by `python -m tests.soak` (`make test-long`): a recorded drive is"
            " driven again and again through `consentry run`, faster than it went, with everything"
            " going on that the last table names. What must not grow is looked at every"
            " second. What counts is the floor of the last quarter (a quarter of the looks were"
            " below it) against that of the second, for the first is warming up."
            f"\n\n{text}",
            encoding="utf-8",
        )
    sys.exit(bool(figures.grown()))


if __name__ == "__main__":
    main()
