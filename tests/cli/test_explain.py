"""`consentry explain` from the command line: live over the socket, offline from files and logs."""

import json
from pathlib import Path
from typing import Any

import pytest

from agent.cli.main import run
from agent.core.model import NS_PER_US, Frame
from tests import car
from tests.desk import Desk, complaint
from tests.unit.core.test_explain import SPEED

Capsys = pytest.CaptureFixture[str]
START_MS = 1_795_600_000_000
POLICY = {
    "recipients": {"fleet-x": {"name": "Fleet X"}},
    "grants": [
        {
            "grant_id": "gr_1",
            "recipient": "fleet-x",
            "details": [{"scope": "read_odometer", "constraints": {"min_interval_s": 1}}],
        }
    ],
}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "vehicle")


def offline(desk: Desk, path: str, *arguments: str) -> int:
    return run(["explain", path, "--config", desk.path("agent.toml"), *arguments])


def candump(frames: list[Frame], channel: str = "vcan7") -> str:
    return "".join(
        f"({t_ns // NS_PER_US / 1e6:.6f}) {channel} {can_id:03X}#{data.hex()}\n"
        for t_ns, _, can_id, data in frames
    )


def test_without_an_agent_offline_is_the_way(tmp_path: Path, capsys: Capsys) -> None:
    assert run(["explain", SPEED, "--socket", str(tmp_path / "s")]) == 1

    error, hint = complaint(capsys.readouterr().err)
    assert "no agent listens" in error
    assert "--offline reads the files" in hint


def test_a_policy_or_a_log_is_for_offline(desk: Desk, capsys: Capsys) -> None:
    assert offline(desk, SPEED, "--live", "--policy", "p") == 2
    complaint(capsys.readouterr().err)


def test_files_alone_tell_what_a_policy_would_permit(desk: Desk, capsys: Capsys) -> None:
    """Neither the device's key nor the certificates are needed for it."""
    (desk.folder / "device.jwk").unlink()
    policy = desk.write("p.json", json.dumps(POLICY))

    assert offline(desk, "Vehicle.TraveledDistance", "--policy", policy) == 0
    assert offline(desk, SPEED, "--policy", policy) == 0
    assert offline(desk, SPEED, "--offline") == 0

    captured = capsys.readouterr()
    assert "leaves the vehicle for fleet-x (grant gr_1)" in captured.out
    assert "does not leave the vehicle: no grant names read_speedometer" in captured.out
    assert "does not leave the vehicle: there is no policy" in captured.out
    assert captured.err == "no policy was named: --policy FILE says what it would permit\n"


def test_a_signed_policy_is_verified_with_the_vehicles_trust_file(
    desk: Desk, capsys: Capsys
) -> None:
    desk.new_policy()
    signed = desk.sign()
    assert offline(desk, "Vehicle.TraveledDistance", "--policy", signed) == 0
    assert "leaves the vehicle" in capsys.readouterr().out

    forged = Path(signed).read_text()
    desk.write("forged.jws", forged[:-8] + "AAAAAAAA")
    assert offline(desk, SPEED, "--policy", desk.path("forged.jws")) == 3
    complaint(capsys.readouterr().err)


def test_a_log_tells_what_came_and_what_became_of_it(desk: Desk, capsys: Capsys) -> None:
    """Its one channel is the one bus of the configuration, whatever it is called."""
    policy = desk.write("p.json", json.dumps(POLICY))
    frames = [car.odometer(START_MS + 100 * i, 5 + i) for i in range(25)]
    log = desk.write("d.log", candump([*frames, car.speed(START_MS + 2_500, 50)]))

    assert offline(desk, "Vehicle.TraveledDistance", "--policy", policy, "--log", log) == 0
    assert offline(desk, SPEED, "--policy", policy, "--log", log) == 0
    assert offline(desk, "Vehicle.VehicleIdentification.VIN", "--log", log, "--policy", policy) == 0

    out = capsys.readouterr().out
    assert "25 frames of its message came in the log" in out
    assert "3 samples in the log, the last 2026-11-25 09:46 UTC" in out
    assert "22 values let go by the time rule" in out
    assert "1 frame of its message came in the log" in out
    assert "no frame of its message came in the log" in out


def test_a_log_is_judged_at_its_own_time(desk: Desk, capsys: Capsys) -> None:
    document: dict[str, Any] = POLICY | {"exp": START_MS // 1000 + 3}
    policy = desk.write("p.json", json.dumps(document))
    early = desk.write("early.log", candump([car.odometer(START_MS, 1)]))
    late = desk.write("late.log", candump([car.odometer(START_MS + 3_000, 1)]))

    for log in (early, late):
        assert offline(desk, "Vehicle.TraveledDistance", "--policy", policy, "--log", log) == 0

    out = capsys.readouterr().out
    assert out.count("leaves the vehicle for fleet-x") == 1
    assert "does not leave the vehicle: the policy (unsigned) expired 2026-11-25 09:46 UTC" in out


def test_channels_that_are_no_bus_of_a_vehicle_with_several_are_named(
    desk: Desk, capsys: Capsys
) -> None:
    more = """
        [[bus]]
        name = "can1"
        channel = "can1"
        dbc = ["car.dbc"]
        mapping = "car.vspec"
    """
    desk.configure(more=more)
    policy = desk.write("p.json", json.dumps(POLICY))
    mine = candump([car.odometer(START_MS, 1)], "can1")
    log = desk.write("d.log", mine + candump([car.odometer(START_MS + 10, 2)], "vcan7"))

    assert offline(desk, "Vehicle.TraveledDistance", "--policy", policy, "--log", log) == 0

    captured = capsys.readouterr()
    assert "the log's channel vcan7 is no bus of agent.toml: 1 frames passed over" in captured.err
    assert "1 frame of its message came in the log" in captured.out


@pytest.mark.captures
@pytest.mark.parametrize(
    ("path", "parts"),
    {
        "Vehicle.Speed": ["BrakeSysFeatures.Veh_V_ActlBrk, id 0x415", "frames of its message came"],
        "Vehicle.TraveledDistance": ["in scope read_odometer", "samples in the log"],
        "Vehicle.CurrentLocation.Latitude": ["does not leave the vehicle: this vehicle's mapping"],
        "Vehicle.Sped": ["no scope of the catalogue has Vehicle.Sped; close are Vehicle.Speed"],
    }.items(),
)
def test_a_captured_drive_is_explained(
    desk: Desk, captures: Path, path: str, parts: list[str], capsys: Capsys
) -> None:
    folder = captures / "mustang"
    desk.configure(
        dbc=json.dumps([str(folder / "ford_lincoln_base_pt.dbc")]),
        mapping=json.dumps(str(car.ROOT / "config/vehicles/ford_mustang_s550.vspec")),
    )
    policy = str(car.ROOT / "config/example_policy.json")
    log = str(folder / "mustang_s550.log.gz")

    assert offline(desk, path, "--policy", policy, "--log", log) == 0

    out = capsys.readouterr().out
    for part in parts:
        assert part in out
