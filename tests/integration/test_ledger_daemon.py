"""The ledger of a vehicle that drives: true, witnessed by its envelopes, and without any value."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.cloud.ledger import Witness, verify_checkpoint
from agent.core.checkpoint import Checkpoint
from agent.core.ledger import Entry, Replay
from agent.core.ledgerevent import WORD
from agent.core.member import SHA256
from agent.core.model import Frame
from agent.demo.broker import Broker
from agent.demo.judge import Auditor
from agent.edge.ledger import replay_all
from tests import car
from tests.cloud import Cloud
from tests.desk import needs_mosquitto
from tests.rig import Rig, data_of, wait_for

pytestmark = pytest.mark.broker

T0_MS = 1_800_000_000_000
GRANTS = {"g1", "g2"}
# What the second drive has otherwise: how long its envelopes are, and its policy's jti and folder.
OTHER = {"bytes", "sha256", "config"}
STORY = {
    "started",
    "stopped",
    "crash-noticed",
    "policy-applied",
    "grant-state",
    "purged",
    "dropped",
}


@contextmanager
def broker_in(folder: Path) -> Iterator[Broker]:
    needs_mosquitto()
    with Broker(folder / "broker") as running:
        yield running


def drive(shift: int) -> list[Frame]:
    """A drive; another shift gives other values and positions at the same times."""
    return car.merged(
        [car.odometer(T0_MS + i * 100, 10_000 * shift + 7 * i) for i in range(900)],
        [car.position(T0_MS + i * 1000, 10 * shift + i / 50, 3 * shift) for i in range(90)],
        [car.speed(T0_MS + i * 50, (i + shift) % 200) for i in range(1800)],
    )


def driven(rig: Rig, cloud: Cloud, auditor: Auditor, frames: list[Frame]) -> list[Entry]:
    """Drive under two grants, withdraw one, start again, and return the ledger."""
    location = cloud.grant({"read_location": {}}, grant_id="g2", recipient="city")
    full = cloud.grant({"read_odometer": {"min_interval_s": 0}})
    rig.push(cloud.policy(full, location))
    with rig.running() as daemon:
        wait_for("the policy", lambda: len(daemon.plan.live) == 2)
        rig.play(frames)
        wait_for("the capture lane", lambda: daemon.capture.frames >= len(frames))
        rig.clock.now_ns = frames[-1][0]
        daemon.wake()
        rig.push(cloud.policy(full))
        wait_for("the revocation", lambda: len(daemon.plan.live) == 1)
    with rig.running():
        wait_for("an envelope", lambda: data_of(auditor, "fleet"))
    replay = Replay(devices={cloud.device.kid: cloud.device.public_half})
    entries = [entry for entry, _ in replay_all(rig.state / "ledger", replay)]
    assert replay.checkpoint is not None
    return entries


def auditor_of(broker: Broker) -> Auditor:
    return Auditor(port=broker.port, tls=broker.tls("auditor"))


def checkpoints(auditor: Auditor, cloud: Cloud) -> list[Checkpoint]:
    devices = {cloud.device.kid: cloud.device.public_half}
    found = [item for item in auditor.seen() if item.topic.endswith("/ledger/head")]
    return [verify_checkpoint(item.payload, devices=devices)[1] for item in found]


def test_the_ledger_tells_the_drive_and_every_envelope_bears_it_out(tmp_path: Path) -> None:
    cloud = Cloud()
    with broker_in(tmp_path) as broker, auditor_of(broker) as auditor:
        rig = Rig(tmp_path / "vehicle", broker, cloud)
        entries = driven(rig, cloud, auditor, drive(1))
        wait_for("checkpoints", lambda: len(checkpoints(auditor, cloud)) >= 2)
        headers = [cloud.open(envelope).header for envelope in data_of(auditor)]
        signed = checkpoints(auditor, cloud)

    names = Counter(entry.name for entry in entries)
    assert names["policy-applied"] == 2
    assert names["started"] == names["stopped"] == 2
    assert names["crash-noticed"] == 0
    assert names["checkpoint"] >= 2
    told = [entry.facts for entry in entries if entry.name == "sealed"]
    sealed = {g: sum(f["envelopes"] for f in told if f["grant"] == g) for g in GRANTS}
    assert sealed["g1"] == len([h for h in headers if h.grant_id == "g1"])

    witness = Witness()
    seen = {header.ledger_size: header.ledger_root for header in headers}
    assert [witness.see_envelope(header) for header in headers] == [[]] * len(headers)
    assert [witness.see_checkpoint(one) for one in signed] == [[]] * len(signed)
    seen |= {one.size: one.root for one in signed}
    replay = Replay(heads=seen)
    for _ in replay_all(rig.state / "ledger", replay):
        pass
    assert {size: replay.heads[size] for size in seen} == seen
    assert min(seen) > 0


def test_another_drive_at_the_same_times_leaves_the_same_ledger(tmp_path: Path) -> None:
    """But for how long its sealed envelopes are: no value and no position comes into it."""
    cloud = Cloud()
    found: list[list[Any]] = []
    for shift in (1, 4):
        folder = tmp_path / str(shift)
        folder.mkdir()
        cloud.document = {}
        with broker_in(folder) as broker, auditor_of(broker) as auditor:
            entries = driven(Rig(folder / "vehicle", broker, cloud), cloud, auditor, drive(shift))
        for entry in entries:
            scan(entry)
        found.append(shape(entries))

    assert found[0] == found[1]
    assert {name for name, _ in found[0][:-1]} >= {"policy-applied", "grant-state", "started"}
    assert found[0][-1]


def shape(entries: list[Entry]) -> list[Any]:
    """What must not differ: the events in order, and what was counted in all.

    When the broker brings a policy again, and in which minute something is counted, is the
    machine's affair.
    """
    counted: Counter[Any] = Counter()
    events: list[Any] = []
    for entry in entries:
        facts: dict[str, Any] = {f: v for f, v in entry.facts.items() if f not in OTHER}
        if entry.name == "sealed":
            for name in ("envelopes", "samples"):
                counted[facts["grant"], name] += facts[name]
        elif entry.name in STORY:
            events.append((entry.name, facts))
    return [*events, sorted(counted.items())]


def scan(entry: Entry) -> None:
    """Every text is an id of ours, a hash or a word, or names program, boot, key, checkpoint."""
    for fact, value in entry.facts.items():
        if fact in ("signed", "version", "boot", "crc", "kid"):
            continue
        items = [*value, *value.values()] if isinstance(value, dict) else value
        for item in items if isinstance(items, list) else [items]:
            if isinstance(item, str):
                assert item in GRANTS or SHA256.fullmatch(item) or WORD.accepts(item)
            else:
                assert type(item) is int
