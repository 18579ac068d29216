"""The vehicle's privacy switch through the whole daemon: what it holds, and who gets to know."""

import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from agent.core.ask import Pause, Resume, Status, Verb
from agent.core.bushealth import BusState
from agent.core.ledger import Replay
from agent.core.model import Frame, Sample
from agent.core.status import StatusReport, StopStatus, parse_status
from agent.daemon import Daemon
from agent.demo.judge import Auditor, find_bytes
from agent.edge.control_client import ask
from agent.edge.ledger import replay_all
from agent.errors import AskRefused
from tests import car
from tests.cloud import Cloud
from tests.rig import Rig, data_of, wait_for

pytestmark = pytest.mark.broker

ME = pwd.getpwuid(os.geteuid()).pw_name
T0_MS = 1_800_000_000_000
BATCH = 50  # Samples until a batch is old enough.


@pytest.fixture
def rig(rig: Rig) -> Rig:
    """A vehicle that may give its odometer, and whom we may ask."""
    rig.rights = {key: [ME] for key in ("may_pause", "may_resume", "may_look")}
    rig.max_age_s = BATCH / 100
    return rig


@pytest.fixture
def switch(rig: Rig) -> Path:
    """The file that says private, or does not."""
    file = rig.folder / "switch"
    rig.switch = {"file": str(file), "poll_s": 0.05}
    return file


def odometer(first: int, count: int) -> list[Frame]:
    """Frames that are told apart by their value, one each 10 ms."""
    return [car.odometer(T0_MS + 10 * n, n) for n in range(first, first + count)]


def grant(rig: Rig, cloud: Cloud, auditor: Auditor) -> None:
    rig.push(cloud.policy(cloud.grant({"read_odometer": {"min_interval_s": 0}})))
    wait_for("the answer", lambda: seen(auditor, "/policy/ack"))


def drive(rig: Rig, daemon: Daemon, frames: list[Frame]) -> None:
    """Play frames that the capture lane gets."""
    due = daemon.capture.frames + len(frames)
    rig.play(frames)
    wait_for("the capture lane", lambda: daemon.capture.frames >= due)


def asked(rig: Rig, verb: Verb) -> dict[str, Any]:
    return ask(rig.socket, verb)


def status(rig: Rig) -> StatusReport:
    return parse_status(asked(rig, Status()))


def is_private(rig: Rig) -> bool:
    return any(stop.who == "switch" for stop in status(rig).stops)


def seen(auditor: Auditor, suffix: str) -> list[bytes]:
    return [item.payload for item in auditor.seen() if item.topic.endswith(suffix)]


def opened(auditor: Auditor, cloud: Cloud) -> list[Sample]:
    return [s for envelope in data_of(auditor) for s in cloud.open(envelope).samples("fleet")]


def values(auditor: Auditor, cloud: Cloud) -> list[Any]:
    return sorted(sample.value for sample in opened(auditor, cloud))


def stops_in_ledger(rig: Rig) -> list[tuple[Any, Any, Any]]:
    entries = (entry for entry, _ in replay_all(rig.state / "ledger", Replay()))
    return [
        (entry.facts["state"], entry.facts["by"], entry.facts["grants"])
        for entry in entries
        if entry.name == "local-stop"
    ]


def test_while_the_file_says_private_nothing_is_collected_kept_or_sent(
    rig: Rig, cloud: Cloud, auditor: Auditor, switch: Path
) -> None:
    """From before the first frame, over a policy, a reload and a restart, and back."""
    switch.write_text("1\n")
    with rig.running() as daemon:
        grant(rig, cloud, auditor)
        rig.play(odometer(0, 200))
        rig.reload(daemon)
        rig.play(odometer(200, 200))
        private = status(rig)
        (bus,) = daemon.buses.health()
        assert (bus.state, bus.frames) == (BusState.IDLE, 0), "the bus was not even open"
        assert data_of(auditor) == []
        assert find_bytes(rig.state, {"sealed": b"fleet-key"}) == {"sealed": 0}

        switch.write_text("0\n")
        wait_for("the switch", lambda: not is_private(rig))
        drive(rig, daemon, odometer(400, 5 * BATCH - 10))
        wait_for("envelopes", lambda: len(values(auditor, cloud)) >= 3 * BATCH)

        switch.write_text("1\n")
        wait_for("the switch", lambda: is_private(rig))
        rig.play(odometer(1000, 200))
    with rig.running():
        assert is_private(rig)
        rig.play(odometer(2000, 200))
    before = values(auditor, cloud)
    switch.write_text("0\n")
    with rig.running() as daemon:
        assert not is_private(rig)
        drive(rig, daemon, odometer(3000, 3 * BATCH))
    with rig.running():
        wait_for("the rest", lambda: len(values(auditor, cloud)) >= len(before) + 3 * BATCH)

    assert private.stops == (StopStatus("*", "switch", cloud.now_s, None),)
    assert [(g.state, g.why) for g in private.grants] == [("paused", "stopped at the vehicle")]
    assert any(json.loads(told)["stopped"] for told in seen(auditor, "/health"))
    assert before == list(range(400, 400 + len(before)))
    assert len(before) < 5 * BATCH - 10, "what lay in the open batch is dropped"
    assert values(auditor, cloud) == [*before, *range(3000, 3000 + 3 * BATCH)]
    on, off = ("on", "switch", []), ("off", "switch", [])
    assert stops_in_ledger(rig) == [on, off, on, on, off, off], "each start tells"


def test_a_file_that_is_gone_counts_as_private(
    rig: Rig, cloud: Cloud, auditor: Auditor, switch: Path
) -> None:
    switch.write_text("0")
    with rig.running() as daemon:
        grant(rig, cloud, auditor)
        switch.unlink()
        wait_for("the switch", lambda: is_private(rig))
        wait_for("the bus", lambda: daemon.buses.health()[0].state is BusState.IDLE)
        rig.play(odometer(0, 200))

        assert daemon.capture.frames == 0
    assert data_of(auditor) == []


def test_switch_and_pause_hold_each_by_itself(
    rig: Rig, cloud: Cloud, auditor: Auditor, switch: Path
) -> None:
    switch.write_text("1")
    with rig.running() as daemon:
        grant(rig, cloud, auditor)
        with pytest.raises(AskRefused, match="no stop of all grants") as refused:
            asked(rig, Resume())
        asked(rig, Pause())
        switch.write_text("0")
        wait_for("the switch", lambda: not is_private(rig))
        assert [stop.who for stop in status(rig).stops] == [f"uid {os.geteuid()}"]
        assert not daemon.plan.takes
        switch.write_text("1")
        wait_for("the switch", lambda: is_private(rig))
        assert [stop["who"] for stop in asked(rig, Resume())["stops"]] == ["switch"]
        assert not daemon.plan.takes
        switch.write_text("0")
        wait_for("the grant", lambda: daemon.plan.takes)

    assert "only it can lift that" in (refused.value.hint or "")


def test_a_bus_is_not_open_for_the_switch_alone(rig: Rig, cloud: Cloud, auditor: Auditor) -> None:
    rig.switch = {"signal": "DOOR.DriverDoor", "bus": "can0", "private": [1.0]}

    def is_bus(state: BusState) -> bool:
        return daemon.buses.health()[0].state is state

    with rig.running() as daemon:
        assert is_private(rig), "it was not heard yet"
        rig.play(odometer(0, 10))
        assert is_bus(BusState.IDLE)

        grant(rig, cloud, auditor)
        wait_for("the bus", lambda: is_bus(BusState.ACTIVE))
        assert is_private(rig), "the grant waits for the switch"
        drive(rig, daemon, [car.door(T0_MS, 0)])
        wait_for("the switch", lambda: not is_private(rig))
        assert is_bus(BusState.ACTIVE)

        rig.push(cloud.policy())
        wait_for("the bus", lambda: is_bus(BusState.IDLE))

        assert daemon.capture.frames == 1


def test_a_signal_on_the_bus_is_obeyed_at_its_very_frame_and_goes_no_further(
    rig: Rig, cloud: Cloud, auditor: Auditor
) -> None:
    """Here the driver's door: open is private."""
    rig.switch = {"signal": "DOOR.DriverDoor", "bus": "can0", "private": [1.0]}

    def turn(daemon: Daemon, t_ms: int, *, door: int) -> None:
        drive(rig, daemon, [car.door(T0_MS + t_ms, door)])
        wait_for("the switch", lambda: is_private(rig) == bool(door))

    with rig.running() as daemon:
        grant(rig, cloud, auditor)
        drive(rig, daemon, odometer(0, 100))
        assert is_private(rig), "it was not heard yet"
        turn(daemon, 1000, door=0)
        # In one go: whoever is behind the frame that says private is not taken, however soon.
        drive(
            rig,
            daemon,
            [*odometer(100, 3 * BATCH + 10), car.door(T0_MS + 2600, 1), *odometer(260, 100)],
        )
        wait_for("the switch", lambda: is_private(rig))
        # The bus stays open for the one identifier: nobody would hear it turn back otherwise.
        assert [bus.state for bus in daemon.buses.health()] == [BusState.ACTIVE]
        turn(daemon, 3600, door=0)
        drive(rig, daemon, odometer(360, 2 * BATCH - 10))
        turn(daemon, 4600, door=1)
        rig.play(odometer(460, 100))
    with rig.running() as daemon:
        assert is_private(rig), "after a start it was not heard yet"
        turn(daemon, 6000, door=0)
        drive(rig, daemon, odometer(601, 100))
    with rig.running() as daemon:
        turn(daemon, 8000, door=0)  # Until then nothing is published either.
        wait_for("the rest", lambda: 700 in values(auditor, cloud))

    found = values(auditor, cloud)
    first = [n for n in found if n < 260]
    second = [n for n in found if 260 <= n < 600]
    assert first == list(range(100, 100 + len(first)))
    assert second == list(range(360, 360 + len(second)))
    assert 2 * BATCH <= len(first) < 3 * BATCH + 10, "what lay in the open batch is dropped"
    assert BATCH <= len(second) < 2 * BATCH - 10
    assert [n for n in found if n >= 600] == list(range(601, 701))
    assert {sample.path for sample in opened(auditor, cloud)} == {"Vehicle.TraveledDistance"}
    states = [state for state, by, _ in stops_in_ledger(rig) if by == "switch"]
    assert states == ["on", "off", "on", "off", "on", "on", "off", "on", "off"]
