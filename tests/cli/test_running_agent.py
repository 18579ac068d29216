"""The commands against a running agent, each a process of its own, judged by what then arrives.

An installer's vehicle: keys, trust file and policy made with our commands, `consentry run`, a
mosquitto with TLS, `consentry receive` as the recipient, and a subscriber that sees every topic.
Each test leaves the agent as it found it: running, with two grants, and nothing stopped.
"""

import json
import os
import pwd
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from agent.cli.main import run
from agent.cloud.keys import load_key
from agent.cloud.ledger import verify_checkpoint
from agent.cloud.receiver import BrokerAddress, push_policy
from agent.core.ask import Status
from agent.core.cose import device_public_key
from agent.core.model import NS_PER_MS
from agent.core.status import StatusReport, parse_status
from agent.demo.broker import Broker
from agent.demo.judge import Auditor
from agent.edge.control_client import ask
from agent.errors import NotRunning
from tests import car
from tests.desk import (
    COMMAND,
    RECIPIENT,
    VEHICLE,
    WAIT_S,
    CanServer,
    Desk,
    complaint,
    consentry,
    needs_mosquitto,
    wait_for,
)

pytestmark = pytest.mark.broker

ME = pwd.getpwuid(os.geteuid()).pw_name
BATCH_S = 0.3
FRAMES_PER_S = 200  # Half of them odometer, half speed.
LIVE = """
[time]
synchronised = "always"
[switch]
file = "switch"
poll_s = 0.1
"""
RIGHTS = f'may_pause = ["{ME}"]\nmay_resume = ["{ME}"]\nmay_look = ["{ME}"]'


class Drive:
    """An odometer that counts its frames, and a speed, until it is closed."""

    def __init__(self, bus: CanServer) -> None:
        self._bus = bus
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent = 0
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(WAIT_S)

    def _run(self) -> None:
        while not self._stop.wait(2 / FRAMES_PER_S):
            t_ms = time.time_ns() / NS_PER_MS
            self.sent += 1
            with suppress(OSError):  # With nothing granted the bus is not open.
                self._bus.send([car.odometer(t_ms, self.sent), car.speed(t_ms, self.sent % 200)])


def is_there(desk: Desk) -> bool:
    """Whether the agent answers."""
    with suppress(NotRunning):
        ask(desk.socket, Status())
        return True
    return False


class Vehicle:
    """A vehicle that drives, its cloud, and who listens. `start` and `stop` its agent."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.desk = Desk(folder / "vehicle")
        self._stack = stack
        self._agent = ExitStack()
        self.broker = stack.enter_context(Broker(folder / "broker"))
        self._bus = stack.enter_context(CanServer())
        self.broker.write_client(VEHICLE, self.desk.folder)
        self.switch(is_private=False)
        self.auditor = stack.enter_context(
            Auditor(port=self.broker.port, tls=self.broker.tls("auditor"))
        )
        self._received = folder / "received.jsonl"
        self._receive(folder / "recipient")
        self._ver = 0
        stack.callback(self.stop)
        self.start()
        self.new_policy()
        self.drive = Drive(self._bus)
        stack.callback(self.drive.close)

    @property
    def state(self) -> str:
        return self.desk.path("state")

    @property
    def device_key(self) -> str:
        return self.desk.path("device.pub.jwk")

    def start(self) -> None:
        self.desk.configure(
            port=self.broker.port,
            bus_port=self._bus.port,
            more=LIVE,
            max_age_s=str(BATCH_S),
            rights=RIGHTS,
        )
        self.process = self._agent.enter_context(self.desk.running())
        wait_for("the agent", lambda: is_there(self.desk), self.process)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.desk.stop(self.process)
        self._agent.close()

    def switch(self, *, is_private: bool) -> None:
        self.desk.write("switch", "1\n" if is_private else "0\n")

    def new_policy(self, *taken_over: str) -> None:
        """Push the next version: the odometer for gr_1, the speed for gr_2."""
        self._ver += 1
        made = [
            *("policy", "new", "--vehicle", VEHICLE, "--out", self.desk.path("policy.json")),
            *("--recipient", f"{RECIPIENT}={self.desk.path('recipient.pub.jwk')}"),
            *("--grant", f"gr_1={RECIPIENT}:read_odometer"),
            *("--grant", f"gr_2={RECIPIENT}:read_speedometer"),
        ]
        assert run(made) == 0
        document = json.loads((self.desk.folder / "policy.json").read_bytes())
        document |= {"ver": self._ver, "taken_over": list(taken_over)}
        for grant, interval_s in zip(document["grants"], (0, 0.1), strict=True):
            grant["rev"] = self._ver
            grant["details"][0]["constraints"] = {"min_interval_s": interval_s}
        ack = push_policy(
            VEHICLE,
            Path(self.desk.sign(document)).read_text().strip(),
            BrokerAddress("localhost", self.broker.port, self.broker.tls("platform")),
            devices=self.devices,
        )
        assert (ack.outcome, ack.ver) == ("applied", self._ver)

    @property
    def devices(self) -> dict[str, Any]:
        key = device_public_key(load_key(Path(self.device_key)))
        return {key.kid: key}

    def asked(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command that asks the agent."""
        return consentry(*command, "--config", self.desk.path("agent.toml"))

    def told(self, *command: str) -> str:
        """Return what such a command prints, which must succeed."""
        done = self.asked(*command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *command: str, status: int = 1) -> tuple[str, str]:
        """Return the error and the hint of such a command, which must fail."""
        done = self.asked(*command)
        assert (done.returncode, done.stdout) == (status, "")
        return complaint(done.stderr)

    def status(self) -> StatusReport:
        """Return what `status --json` prints, without a process for each look."""
        return parse_status(ask(self.desk.socket, Status()))

    def seen(self, grant_id: str) -> int:
        """Count the envelopes of a grant that the broker passed on."""
        topic = f"/data/{RECIPIENT}/{grant_id}"
        return len({s.payload for s in self.auditor.seen() if s.topic.endswith(topic)})

    def await_more(self, *grants: str) -> None:
        before = {grant: self.seen(grant) for grant in grants}
        wait_for("more envelopes", lambda: all(self.seen(g) > before[g] for g in grants))

    def settled(self, grant_id: str, *, while_others: str) -> int:
        """Return `seen` of a grant when what was on its way has come: later ones came after it."""
        for _ in range(2):
            self.await_more(while_others)
        return self.seen(grant_id)

    def odometer(self) -> list[int]:
        """Return the values of gr_1 that the recipient opened."""
        lines = self._received.read_text().splitlines()
        return [row["value"] for row in map(json.loads, lines) if row["grant"] == "gr_1"]

    def events(self, name: str) -> list[dict[str, Any]]:
        shown = consentry("ledger", "show", "--state", self.state, "--event", name, "--json")
        assert shown.returncode == 0, shown.stderr
        return [json.loads(line)["facts"] for line in shown.stdout.splitlines()]

    def _receive(self, mine: Path) -> None:
        mine.mkdir()
        self.broker.write_client(RECIPIENT, mine)
        with self._received.open("wb") as out, (mine / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    *(*COMMAND, "receive", "--host", "localhost", "--port", str(self.broker.port)),
                    *("--ca", str(mine / "ca.pem"), "--certificate", str(mine / "client.pem")),
                    *("--private-key", str(mine / "client.key"), "--recipient", RECIPIENT),
                    *("--key", self.desk.path("recipient.jwk"), "--device", self.device_key),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
            )
        self._stack.callback(process.wait, WAIT_S)
        self._stack.callback(process.terminate)
        wait_for("the recipient", lambda: "subscribed" in (mine / "log").read_text(), process)


@pytest.fixture(scope="module")
def _vehicle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vehicle]:
    needs_mosquitto()
    with ExitStack() as stack:
        yield Vehicle(tmp_path_factory.mktemp("running"), stack)


@pytest.fixture
def vehicle(_vehicle: Vehicle) -> Vehicle:
    """The vehicle, of which both grants arrive."""
    _vehicle.await_more("gr_1", "gr_2")
    return _vehicle


def test_status_says_how_it_is_to_people_and_to_programs(vehicle: Vehicle) -> None:
    shown = vehicle.told("status")
    told = parse_status(json.loads(vehicle.told("status", "--json")))

    for part in (
        f"vehicle {VEHICLE}, running for ",
        "policy     epoch 1, version ",
        "time       known, now ",
        "uplink     up, ",
        "\nledger     ",
        "\nidentity   certificate until ",
        "\ncapture    ",
        "capture ok, network ok, control ok, switch ok, bus can0 ok",
        " samples sealed, ",
        " envelopes sealed, ",
        " delivered",
    ):
        assert part in shown
    assert re.search(r"\ncan0  active  [\d,]+ +0 +0 +0 +\d s ago\n", shown)
    assert re.search(
        rf"\ngr_1 r\d+  {RECIPIENT}    active  20\S+ \S+ UTC  \d+ +read_odometer\n", shown
    )
    assert max(map(len, shown.splitlines())) <= 120
    assert "\x1b" not in shown, "no colours where the output is no terminal"
    assert [(g.grant_id, g.state, g.why) for g in told.grants] == [
        ("gr_1", "active", ""),
        ("gr_2", "active", ""),
    ]
    assert told.buses[0].frames > 0
    assert told.capture.frames > 0
    assert told.disk.ledger_size > 0
    assert told.warnings == ()


def test_status_counts_what_the_broker_passed_on(vehicle: Vehicle) -> None:
    vehicle.told("pause")
    try:
        wait_for("the answers", lambda: vehicle.status().in_flight == 0)
        first, now = vehicle.status(), vehicle.status()
        # Not equal: an agent that was started anew counts from there.
        wait_for(
            "what the broker has taken",
            lambda: vehicle.seen("gr_1") + vehicle.seen("gr_2") >= now.counts["delivered"],
        )
    finally:
        vehicle.told("resume")

    assert now.counts["delivered"] > 0
    assert now.counts == first.counts, "nothing is sealed or sent"
    assert now.buses[0].frames == first.buses[0].frames, "the bus is not open"


def test_top_says_what_moves(vehicle: Vehicle) -> None:
    first, second = vehicle.told("top", "--count", "2", "--seconds", "1").split("\n\nconsentry ")

    assert "per second" not in first
    rates = re.search(r"per second  ([\d.]+) frames on can0, ([\d.]+) samples sealed, ", second)
    assert rates, second
    assert FRAMES_PER_S / 4 < float(rates[1]) < FRAMES_PER_S * 1.5
    assert " envelopes sealed, " in second


def test_what_comes_while_everything_is_paused_never_arrives(vehicle: Vehicle) -> None:
    """From the end of `pause` to the beginning of `resume`, and not a frame more or less."""
    assert re.fullmatch(
        r"stopped: all grants, by uid \d+ since 20\S+ \S+ UTC, until resumed\n",
        vehicle.told("pause"),
    )
    since = vehicle.drive.sent
    assert "stopped    all grants, by uid " in vehicle.told("status")
    why = vehicle.told("explain", "Vehicle.TraveledDistance")
    assert "does not leave the vehicle: " in why
    assert "every grant is stopped at the vehicle by uid " in why
    time.sleep(3 * BATCH_S)
    until = vehicle.drive.sent
    assert vehicle.told("resume") == "nothing is stopped at the vehicle\n"
    vehicle.await_more("gr_1", "gr_2")
    wait_for("what came afterwards", lambda: max(vehicle.odometer()) > until + 50)

    assert until > since + 50
    assert [metres for metres in vehicle.odometer() if since < metres <= until] == []
    assert {"on", "off"} <= {e["state"] for e in vehicle.events("local-stop")}
    assert "leaves the vehicle for fleet-x" in vehicle.told("explain", "Vehicle.TraveledDistance")


def test_one_grant_is_paused_for_a_while_and_the_other_goes_on(vehicle: Vehicle) -> None:
    told = vehicle.told("pause", "--grant", "gr_1", "--for", "2h")
    since = vehicle.drive.sent
    envelopes = vehicle.settled("gr_1", while_others="gr_2")
    vehicle.await_more("gr_2")
    later = vehicle.seen("gr_1")
    now = vehicle.status()
    until = vehicle.drive.sent
    answer = json.loads(vehicle.told("resume", "--grant", "gr_1", "--json"))

    assert told.startswith("stopped: grant gr_1, by uid ")
    assert told.endswith(", for another 2 h\n")
    assert later == envelopes
    assert [(g.state, g.why) for g in now.grants] == [
        ("paused", "stopped at the vehicle"),
        ("active", ""),
    ]
    assert answer == {"stops": []}
    wait_for("what came afterwards", lambda: max(vehicle.odometer()) > until)
    assert [metres for metres in vehicle.odometer() if since < metres <= until] == []


def test_a_pause_ends_by_itself(vehicle: Vehicle) -> None:
    assert vehicle.told("pause", "--for", "1s").endswith("for another 1 s\n")

    vehicle.await_more("gr_1", "gr_2")

    assert vehicle.status().stops == ()
    assert vehicle.events("local-stop")[-1]["by"] == "timer"


def test_what_cannot_be_done_is_one_error_with_its_hint(vehicle: Vehicle) -> None:
    cases = {
        ("pause", "--grant", "gr_9"): "has no grant gr_9",
        ("resume",): "no stop of all grants to lift",
        ("resume", "--grant", "gr_1"): "no stop of gr_1 to lift",
    }
    for command, error in cases.items():
        told = vehicle.refused(*command)
        assert error in told[0]
        assert "`consentry status` names" in told[1]
    vehicle.await_more("gr_1", "gr_2")


def test_the_privacy_switch_is_told_of_and_only_it_lifts_what_it_holds(vehicle: Vehicle) -> None:
    vehicle.switch(is_private=True)
    wait_for("the switch", lambda: vehicle.status().stops)
    since = vehicle.drive.sent
    shown = vehicle.told("status")
    told = vehicle.refused("resume")
    why = vehicle.told("explain", "Vehicle.Speed")
    until = vehicle.drive.sent
    vehicle.switch(is_private=False)
    vehicle.await_more("gr_1", "gr_2")

    assert re.search(r"\nstopped +all grants, by switch since .* until the switch says oth", shown)
    assert "no stop of all grants to lift" in told[0]
    assert "the privacy switch says private, and only it can lift that" in told[1]
    assert "every grant is stopped at the vehicle by switch since " in why
    wait_for("what came afterwards", lambda: max(vehicle.odometer()) > until)
    assert [metres for metres in vehicle.odometer() if since < metres <= until] == []
    assert [(e["state"], e["by"]) for e in vehicle.events("local-stop")][-2:] == [
        ("on", "switch"),
        ("off", "switch"),
    ]


def test_who_has_no_right_is_told_so_and_changes_nothing(vehicle: Vehicle, tmp_path: Path) -> None:
    other = Desk(tmp_path / "other")
    vehicle.broker.write_client(VEHICLE, other.folder)
    asked = ("--config", other.configure(rights=f'may_pause=[]\nmay_resume=[]\nmay_look=["{ME}"]'))
    with other.running() as process:
        wait_for("the agent", lambda: is_there(other), process)
        refused = [consentry(command, *asked) for command in ("pause", "resume")]
        status = json.loads(consentry("status", *asked, "--json").stdout)

    for done, key in zip(refused, ("may_pause", "may_resume"), strict=True):
        error, hint = complaint(done.stderr)
        assert done.returncode == 1
        assert f"user {os.geteuid()} may not {key[4:]}" in error
        assert key in hint
    assert status["stops"] == []


def test_what_waits_while_it_does_not_run_can_be_looked_at_and_arrives(vehicle: Vehicle) -> None:
    """The state directory has one owner; without an agent each command says how to start one."""
    where = ("--state", vehicle.state)
    held = consentry("spool", "inspect", *where)
    vehicle.broker.stop()
    wait_for("a backlog", lambda: min(g.envelopes for g in vehicle.status().grants) > 2)
    waiting = {g.grant_id: g.envelopes for g in vehicle.status().grants}
    vehicle.stop()
    try:
        refused = [vehicle.refused(name) for name in ("status", "top", "pause", "resume")]
        shown = consentry("spool", "inspect", *where)
        told = json.loads(consentry("spool", "inspect", *where, "--json").stdout)
        sound = consentry("spool", "verify", *where, "--key", vehicle.device_key)
    finally:
        vehicle.broker.start()
        vehicle.start()

    assert held.returncode == 1
    assert "held by another process" in complaint(held.stderr)[0]
    assert "`consentry status` says what waits" in complaint(held.stderr)[1]
    for error, hint in refused:
        assert "no agent listens on" in error
        assert "`consentry run` starts the agent" in hint
    rows = {row["grant"]: row for row in told["grants"]}
    assert all(rows[grant]["envelopes"] >= count for grant, count in waiting.items())
    lines = [re.split("  +", line) for line in shown.stdout.splitlines()]
    assert [line[:3] for line in lines] == [
        ["grant", "state", "envelopes"],
        *([grant, "active", str(row["envelopes"])] for grant, row in rows.items()),
    ]
    assert (sound.returncode, sound.stdout) == (0, "")
    count = sum(row["envelopes"] for row in rows.values())
    assert sound.stderr == f"0 faults, {count} signatures checked\n"
    wait_for("the backlog", lambda: all(g.envelopes < 3 for g in vehicle.status().grants))


@pytest.mark.parametrize(
    ("path", "verdict"),
    [
        ("Vehicle.TraveledDistance", "leaves the vehicle for fleet-x (grant gr_1)"),
        ("Vehicle.CurrentLocation.Latitude", "no grant names read_location"),
        ("Vehicle.TraveldDistance", "close are Vehicle.TraveledDistance"),
    ],
)
def test_explain_tells_of_a_path_what_becomes_of_it(
    vehicle: Vehicle, path: str, verdict: str
) -> None:
    shown = vehicle.told("explain", path).splitlines()

    assert shown[0] == path
    assert verdict in shown[-1]
    assert [line[7:16].strip() for line in shown[1:3]] == ["catalogue", "mapping"]


def test_explain_tells_programs_the_same(vehicle: Vehicle) -> None:
    told = json.loads(vehicle.told("explain", "Vehicle.Speed", "--json"))

    assert told["recipients"] == [RECIPIENT]
    assert {step["name"]: step["finding"] for step in told["steps"]} == {
        **dict.fromkeys(("catalogue", "mapping", "dbc", "bus", "policy", "grant"), "yes"),
        **dict.fromkeys(("constraint", "taken", "thinned"), "note"),
    }
    assert told["verdict"] == "leaves the vehicle for fleet-x (grant gr_2)"


def test_a_restrict_document_holds_until_a_policy_takes_it_over(vehicle: Vehicle) -> None:
    document = restriction(vehicle.desk, "--mode", "pause", "--grant", "gr_2")

    assert vehicle.told("restrict", document) == "in force: pause of gr_2\n"
    again = vehicle.told("restrict", document)
    envelopes = vehicle.settled("gr_2", while_others="gr_1")
    vehicle.await_more("gr_1")

    assert again == "in force: pause of gr_2 (it was known already)\n"
    assert vehicle.seen("gr_2") == envelopes
    assert "restricted pause of gr_2 since " in vehicle.told("status")
    (jti,) = {fact["jti"] for fact in vehicle.events("restriction-applied")}
    vehicle.new_policy(jti)
    vehicle.await_more("gr_1", "gr_2")
    assert "restricted" not in vehicle.told("status")


def test_a_document_that_is_not_the_owners_changes_nothing(
    vehicle: Vehicle, tmp_path: Path
) -> None:
    stranger = Desk(tmp_path / "stranger")
    policy = vehicle.desk.path("policy.jws")
    for document, error in (
        (restriction(stranger, "--mode", "revoke"), "the signature does not belong to"),
        (policy, "expected consent-restrict+jwt"),
    ):
        assert error in vehicle.refused("restrict", document, status=3)[0]

    assert vehicle.status().restrictions == ()
    vehicle.await_more("gr_1", "gr_2")


def restriction(desk: Desk, *options: str) -> str:
    made = ["policy", "restrict", "--vehicle", VEHICLE, *options]
    key = ["--key", desk.path("policy.jwk"), "--out", desk.path("restrict.jws")]
    assert run([*made, *key]) == 0
    return desk.path("restrict.jws")


def test_the_ledger_of_the_running_agent_is_what_the_broker_has_seen_of_it(
    vehicle: Vehicle,
) -> None:
    """Heads that it published are the ledger's own; a proof holds without the ledger."""
    where = ("--state", vehicle.state)
    heads = [
        verify_checkpoint(item.payload, devices=vehicle.devices)[1]
        for item in vehicle.auditor.seen()
        if item.topic.endswith("/ledger/head")
    ]
    seen = [f"--head={head.size}:{head.root.hex()}" for head in heads]
    proof = vehicle.desk.path("proof.json")

    sound = consentry("ledger", "verify", *where, "--key", vehicle.device_key, *seen)
    forged = consentry("ledger", "verify", *where, f"--head={heads[0].size}:{'0' * 64}")
    proven = consentry("ledger", "prove", "1", *where, "--out", proof)
    held = consentry("ledger", "verify", "--proof", proof, "--key", vehicle.device_key)

    assert heads
    assert (sound.returncode, sound.stderr) == (0, "")
    assert "last checkpoint, signature holds: " in sound.stdout
    assert forged.returncode == 1
    assert "another ledger" in complaint_of(forged)
    assert proven.returncode == held.returncode == 0
    assert "this entry is among the first" in held.stdout
    assert "  started  " in held.stdout


def complaint_of(done: "subprocess.CompletedProcess[str]") -> str:
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    return error


def test_the_doctor_finds_it_sound_and_the_broker_gone(vehicle: Vehicle) -> None:
    lines = vehicle.told("doctor").splitlines()
    verdicts = {line[6:13].strip(): line[:4].strip() for line in lines}
    vehicle.broker.stop()
    try:
        wait_for("the loss", lambda: vehicle.status().uplink == "down")
        ill = vehicle.asked("doctor", "--json")
    finally:
        vehicle.broker.start()

    sound = ("config", "files", "state", "clock", "bus", "broker", "agent", "policy")
    assert {name: verdicts[name] for name in sound} == dict.fromkeys(sound, "ok")
    assert ill.returncode == 1
    found = {check["name"]: check for check in json.loads(ill.stdout)}
    assert found["broker"]["verdict"] == "fail"
    assert found["broker"]["hint"]
