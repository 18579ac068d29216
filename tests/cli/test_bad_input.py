"""What an installer can get wrong, and what can go wrong under the daemon.

Each is one clear `error:` line, one `hint:` line and the right status, and what was stored stays.
What a log can have wrong is in test_replay.py, wrong keys for `open` in test_open_receive.py.
"""

import json
import logging
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from agent.cli.main import run
from agent.cloud.keys import load_key
from agent.cloud.receiver import BrokerAddress, push_policy
from agent.core.cose import device_public_key
from agent.core.model import NS_PER_S, Frame
from agent.core.pipeline import phase_ns
from agent.demo.broker import Broker
from agent.edge.store import Store
from tests import car
from tests.desk import (
    RECIPIENT,
    VEHICLE,
    CanServer,
    Desk,
    complaint,
    needs_mosquitto,
    wait_for,
)

FULL = {"min_interval_s": 0}

Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A vehicle that is ready to run, with a broker that is not there."""
    made = Desk(tmp_path / "vehicle")
    Broker(tmp_path / "nobody").write_client(VEHICLE, made.folder)
    return made


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker that is still to be started."""
    needs_mosquitto()
    made = Broker(tmp_path / "broker")
    yield made
    made.stop()


class Drive:
    """Frames of a drive from now on: every leg closes the batch of the one before."""

    def __init__(self) -> None:
        age_ns = 60 * NS_PER_S
        # A moment behind one at which batches close: no leg is cut in two.
        self._t_ns = time.time_ns() // age_ns * age_ns + phase_ns(VEHICLE, age_ns) + NS_PER_S
        self._metres = count(1)
        self.sent: list[int] = []

    def leg(self) -> Iterator[Frame]:
        self._t_ns += 60 * NS_PER_S
        for i in range(10):
            metres = next(self._metres)
            self.sent.append(metres)
            yield self._t_ns + i * NS_PER_S // 10, *car.odometer(0, metres)[1:]


class Recipient:
    """Who the data is for; a broker keeps it for those alone who have subscribed before."""

    def __init__(self, desk: Desk, broker: Broker, capsys: Capsys) -> None:
        mine = desk.folder / "mine"
        mine.mkdir()
        broker.write_client(RECIPIENT, mine)
        self._capsys = capsys
        self._command = [
            *("receive", "--host", "localhost", "--port", str(broker.port)),
            *("--ca", str(mine / "ca.pem"), "--certificate", str(mine / "client.pem")),
            *("--private-key", str(mine / "client.key"), "--recipient", RECIPIENT),
            *("--key", desk.path("recipient.jwk"), "--device", desk.path("device.pub.jwk")),
        ]

    def subscribe(self) -> None:
        assert run([*self._command, "--seconds", "0.1"]) == 0

    def received(self, envelopes: int) -> list[int]:
        """Return the values in the next envelopes."""
        self._capsys.readouterr()
        status = run([*self._command, "--count", str(envelopes), "--seconds", "30"])
        captured = self._capsys.readouterr()
        assert status == 0, captured.err
        assert captured.err.splitlines()[-1] == f"{envelopes} envelopes"
        return [json.loads(line)["value"] for line in captured.out.splitlines()]


def stored(desk: Desk) -> tuple[int, list[tuple[int, bytes]]]:
    """Return the version of the policy on disk and the envelopes in the spool."""
    with Store.open(desk.folder / "state") as store:
        policy = store.in_force()
        assert policy is not None
        return policy.ver, [(row.n, row.envelope) for row in store.pending(1000)]


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Give the log back to pytest, where `run` has run in its process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("own_logging")
def test_a_policy_that_must_not_be_applied_stops_the_start_and_changes_nothing(
    desk: Desk, tmp_path: Path, capsys: Capsys
) -> None:
    """Status 3, and the policy on disk and everything sealed under it are still there."""
    document = desk.new_policy(constraints=FULL)
    first = desk.sign(name="first.jws")
    with CanServer() as bus:
        desk.configure(bus_port=bus.port)
        with desk.running("--policy", desk.sign(document | {"ver": 2})) as process:
            drive = Drive()
            bus.send(drive.leg())
            bus.send(drive.leg())
            wait_for("the first envelope", desk.spooled, process)
            desk.stop(process)
    before = stored(desk)
    assert (before[0], len(before[1])) == (2, 2)
    other = Desk(tmp_path / "other")
    other.new_policy(constraints=FULL)
    token = Path(first).read_text()
    refused = {
        "unsigned": desk.path("policy.json"),
        "signed by somebody else": other.sign(),
        "for another vehicle": desk.sign(document | {"ver": 3, "aud": "veh-2"}, "aud.jws"),
        "another policy of the same version": desk.sign(
            document | {"ver": 2, "grants": []}, "same.jws"
        ),
        "broken": desk.write("broken.jws", token[: len(token) // 2]),
        "changed": desk.write("changed.jws", token.strip()[:-4] + "AAAA"),
        "alg none": desk.write("none.jws", f"eyJhbGciOiJub25lIn0.{token.split('.')[1]}."),
        "empty": desk.write("empty.jws", ""),
    }

    done = desk.run("--policy", desk.path("policy.json"))
    assert done.returncode == 3
    assert "signed" in complaint(done.stderr)[0]
    for what, file in refused.items():
        capsys.readouterr()

        status = run(["run", "--config", desk.path("agent.toml"), "--policy", file])

        assert status == 3, what
        complaint(capsys.readouterr().err)
        assert stored(desk) == before, what


def _left_out(name: str) -> Callable[[Desk], object]:
    return lambda desk: (desk.folder / name).unlink()


def _written(name: str, data: bytes) -> Callable[[Desk], object]:
    return lambda desk: desk.write(name, data)


def _replaced(name: str, by: str) -> Callable[[Desk], object]:
    return lambda desk: (desk.folder / name).write_bytes((desk.folder / by).read_bytes())


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (_left_out("agent.toml"), "agent.toml"),
        (_left_out("car.dbc"), "car.dbc"),
        (_left_out("car.vspec"), "car.vspec"),
        (_left_out("trust.json"), "trust.json"),
        (_left_out("device.jwk"), "device.jwk"),
        (_left_out("ca.pem"), "ca.pem"),
        (_left_out("client.pem"), "client.pem"),
        (_left_out("client.key"), "client.key"),
        (_written("agent.toml", b"[vehicle\n"), "agent.toml"),
        (_written("agent.toml", b"\xff\xfe"), "agent.toml"),
        (_written("agent.toml", b"[vehicle]\nid = 'x'\n"), "uplink"),
        (_written("car.dbc", b"BO_ 100 SPEED: 4 ECU\n SG_ Speed : 0|16@1+ (0.01"), "car.dbc"),
        (_written("car.dbc", b"\x00\x01 no DBC at all"), "car.dbc"),
        (_written("car.vspec", b"Vehicle.Speed: {dbc2vss: {interval_ms: 0}}"), "car.vspec"),
        (_written("car.vspec", b"{ not yaml"), "car.vspec"),
        (_written("trust.json", b"{}"), "trust"),
        (_written("device.jwk", b"{}"), "device"),
        (_replaced("device.jwk", "recipient.jwk"), "device.jwk"),
        (_replaced("device.jwk", "device.pub.jwk"), "device.jwk"),
        (_replaced("trust.json", "policy.pub.jwk"), "trust"),
        (_replaced("client.key", "device.jwk"), "client.key"),
        (_written("client.key", b"-----BEGIN PRIVATE KEY-----\n"), "client.key"),
        (_written("ca.pem", b"nobody"), "ca.pem"),
        (lambda desk: (desk.folder / "device.jwk").chmod(0o644), "device.jwk"),
        (lambda desk: (desk.folder / "client.key").chmod(0o640), "client.key"),
        (lambda desk: desk.configure(more="surprise = 1"), "uplink.surprise"),
        (lambda desk: desk.configure(dbc="[]"), "dbc"),
        (lambda desk: desk.configure(trust='"."'), "folder"),
    ],
)
def test_a_wrong_file_is_named_before_anything_starts(
    spoil: Callable[[Desk], object], named: str, desk: Desk, capsys: Capsys
) -> None:
    spoil(desk)
    capsys.readouterr()

    assert run(["check", "--config", desk.path("agent.toml")]) == 1

    captured = capsys.readouterr()
    error, _ = complaint(captured.err)
    assert named in error
    assert captured.out == ""
    assert not (desk.folder / "state").exists()


@pytest.mark.parametrize("missing", ["agent.toml", "car.dbc"])
def test_run_says_what_check_says(missing: str, desk: Desk, capsys: Capsys) -> None:
    (desk.folder / missing).unlink()
    capsys.readouterr()

    done = desk.run()

    assert run(["check", "--config", desk.path("agent.toml")]) == done.returncode == 1
    assert complaint(capsys.readouterr().err) == complaint(done.stderr)


def test_an_ambiguous_name_and_a_foreign_path_are_told_and_nothing_is_guessed(
    desk: Desk, capsys: Capsys
) -> None:
    twice = b'BO_ 500 AGAIN: 2 ECU\n SG_ Speed : 0|16@1+ (0.01,0) [0|655] "km/h" ECU\n'
    desk.write("car.dbc", car.DBC.replace(b"VAL_ 400", twice + b"VAL_ 400", 1))
    foreign = b"Vehicle.Private.Diary: {type: sensor, datatype: float, dbc2vss: {signal: Speed}}\n"
    desk.write("car.vspec", car.MAPPING + foreign)
    capsys.readouterr()

    assert run(["check", "--config", desk.path("agent.toml"), "--json"]) == 0
    captured = capsys.readouterr()
    assert run(["check", "--config", desk.path("agent.toml"), "--strict"]) == 1
    strict, _ = complaint(capsys.readouterr().err)

    found = json.loads(captured.out)
    assert "Vehicle.Speed" not in found["mapped"]
    assert "ambiguous" in found["disabled"]["Vehicle.Speed"]
    assert found["outside_catalogue"] == 1
    (warning,) = [line for line in captured.err.splitlines() if line.startswith("warning: ")]
    for text in (warning, strict):
        assert "AGAIN.Speed" in text
        assert "SPEED.Speed" in text


def test_a_state_directory_has_one_owner(desk: Desk) -> None:
    with CanServer() as bus:
        desk.configure(bus_port=bus.port)
        with desk.running() as process:
            wait_for("the agent", lambda: "running" in desk.log, process)

            second = desk.run()

            assert second.returncode == 1
            error, _ = complaint(second.stderr)
            assert "another process" in error
            desk.stop(process)


def test_a_state_directory_that_others_can_read_is_not_used(desk: Desk) -> None:
    (desk.folder / "state").mkdir(mode=0o755)

    done = desk.run()

    assert done.returncode == 1
    _, hint = complaint(done.stderr)
    assert "chmod 0700" in hint


@pytest.mark.broker
def test_a_broker_that_is_not_there_costs_nothing(
    desk: Desk, broker: Broker, capsys: Capsys
) -> None:
    """The agent goes on; what it sealed meanwhile, before a restart too, is delivered once."""
    desk.new_policy(constraints=FULL)
    drive = Drive()
    broker.write_client(VEHICLE, desk.folder)
    recipient = Recipient(desk, broker, capsys)
    with CanServer() as bus:
        desk.configure(port=broker.port, bus_port=bus.port)
        with desk.running("--policy", desk.sign()) as process:
            bus.send(drive.leg())
            bus.send(drive.leg())
            wait_for("the first envelope", desk.spooled, process)
            wait_for("a try", lambda: "uplink down" in desk.log, process)
            desk.stop(process)
        bus.await_nobody()
        with desk.running() as process:
            bus.send(drive.leg())
            broker.start()
            got = recipient.received(2)
            desk.stop(process)
        with desk.running():
            got += recipient.received(1)

    assert got == drive.sent


ON_A_SMALL_DISK = 'mount -t tmpfs -o size=8m,mode=700 tmpfs "$1" && shift && exec "$@"'


def _fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue  # ENOSPC; then in smaller pieces.


@pytest.mark.broker
def test_on_a_full_disk_the_agent_goes_on_and_obeys_policies(
    desk: Desk, broker: Broker, capsys: Capsys
) -> None:
    """The newest is stored in the room of the oldest, and delivered; consent still changes."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a small file system of one's own needs user namespaces")
    document: dict[str, Any] = desk.new_policy(constraints=FULL)
    drive = Drive()
    broker.write_client(VEHICLE, desk.folder)
    recipient = Recipient(desk, broker, capsys)
    state = desk.folder / "state"
    state.mkdir(mode=0o700)
    on = ["unshare", "-rm", "sh", "-c", ON_A_SMALL_DISK, "sh", str(state)]
    with CanServer() as bus:
        desk.configure(port=broker.port, bus_port=bus.port)
        with desk.running("--policy", desk.sign(), on=on) as process:
            disk = Path(f"/proc/{process.pid}/root") / state.relative_to("/")
            bus.send(drive.leg())
            bus.send(drive.leg())
            wait_for("the first envelope", lambda: desk.spooled(disk), process)
            _fill(disk)
            for _ in range(3):
                bus.send(drive.leg())
            newest = drive.sent[-10:]  # Open yet: the next policy closes it.

            broker.start()
            recipient.subscribe()  # The agent waits longer for a policy before it sends.
            platform = BrokerAddress("localhost", broker.port, broker.tls("platform"))
            device = device_public_key(load_key(desk.folder / "device.pub.jwk"))
            second = Path(desk.sign(document | {"ver": 2})).read_text().strip()
            ack = push_policy(VEHICLE, second, platform, devices={device.kid: device})
            assert (ack.outcome, ack.ver) == ("applied", 2)
            before = recipient.received(1)
            while before[-1] < newest[-1]:
                before += recipient.received(1)
            assert before[-10:] == newest

            (disk / "filler").unlink()
            seen = len(drive.sent)
            bus.send(drive.leg())
            bus.send(drive.leg())
            got = recipient.received(1)
            while got[-1] < drive.sent[seen + 9]:
                got += recipient.received(1)
            desk.stop(process)

    assert got[-10:] == drive.sent[seen : seen + 10]
    assert [*before, *got] == sorted({*before, *got}), "in order, each once"
    assert "Traceback" not in desk.log
