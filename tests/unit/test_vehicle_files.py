import itertools
import json
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import cantools
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DRIVE = ROOT / "demo" / "drive_SIMULATED.log"
DBC_FILES = sorted((ROOT / "dbc").glob("*.dbc"))
MAPPINGS = sorted((ROOT / "config" / "vehicles").glob("*.vspec"))
OWN_DBC = {
    "demo_vehicle": "demo_vehicle.dbc",
    "gnss": "gnss.dbc",
    "obd2_29bit": "obd2.dbc obd2_answers.dbc",
    "j1939_truck": "j1939.dbc",
}
STANDARD_UNITS = {"%": "percent", "degC": "Celsius", "deg": "degrees", "deg/s": "degrees/s"}


def _catalogue() -> dict[str, dict[str, Any]]:
    catalogue = json.loads((ROOT / "config" / "catalogue.json").read_text("utf-8"))
    return {
        leaf["path"]: leaf for scope in catalogue["scopes"].values() for leaf in scope["signals"]
    }


def _leaves(mapping: Path) -> dict[str, dict[str, Any]]:
    leaves = yaml.safe_load(mapping.read_text("utf-8"))
    assert isinstance(leaves, dict)
    return leaves


def _load(name: str) -> Any:
    return cantools.database.load_file(ROOT / "dbc" / name, strict=True)


def _decoded() -> dict[str, list[tuple[float, Any]]]:
    database = _load("demo_vehicle.dbc")
    series: dict[str, list[tuple[float, Any]]] = {}
    for line in DRIVE.read_text("ascii").splitlines():
        stamp, _, frame = line.split()
        can_id, data = frame.split("#")
        values = database.decode_message(int(can_id, 16), bytes.fromhex(data))
        for name, value in values.items():
            series.setdefault(name, []).append((float(stamp[1:-1]), value))
    return series


@pytest.fixture(scope="module")
def drive() -> dict[str, list[tuple[float, Any]]]:
    return _decoded()


def test_the_repository_has_its_dbc_files_and_mappings() -> None:
    assert [path.name for path in DBC_FILES] == [
        *("demo_vehicle.dbc", "gnss.dbc", "j1939.dbc", "obd2.dbc", "obd2_answers.dbc")
    ]
    assert len(MAPPINGS) >= 6


@pytest.mark.parametrize("dbc", DBC_FILES, ids=lambda path: path.stem)
def test_our_dbc_files_load_strictly_and_without_a_warning(dbc: Path) -> None:
    """Strict loading refuses overlapping signals and signals that do not fit."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        database = _load(dbc.name)

    text = dbc.read_text("ascii")
    assert len(database.messages) == text.count("\nBO_ ")
    assert sum(len(message.signals) for message in database.messages) == text.count("\n SG_ ")


@pytest.mark.parametrize("mapping", MAPPINGS, ids=lambda path: path.stem)
def test_every_mapped_path_is_in_the_catalogue_with_its_datatype(mapping: Path) -> None:
    catalogue = _catalogue()

    for path, leaf in _leaves(mapping).items():
        assert path in catalogue, f"{path} cannot be granted"
        assert leaf["datatype"] == catalogue[path]["datatype"], path
        assert set(leaf) <= {"datatype", "type", "unit", "dbc2vss"}, path
        assert ("unit" in leaf) == (catalogue[path]["unit"] is not None), path


@pytest.mark.parametrize(("mapping", "dbc"), OWN_DBC.items())
def test_every_mapped_signal_of_our_dbc_files_exists_with_that_unit(mapping: str, dbc: str) -> None:
    messages = {message.name: message for name in dbc.split() for message in _load(name).messages}

    for path, leaf in _leaves(ROOT / "config" / "vehicles" / f"{mapping}.vspec").items():
        wanted = leaf["dbc2vss"]
        message_name, signal_name = wanted["signal"].split(".")
        message = messages[message_name]
        signal = message.get_signal_by_name(signal_name)
        for condition in wanted.get("multiplexer", ()):
            assert condition["signal"].split(".")[0] == message_name
            message.get_signal_by_name(condition["signal"].split(".")[1])
        transform = wanted.get("transform", {})
        if transform.get("mapping"):
            names = {str(choice) for choice in (signal.choices or {}).values()}
            assert {line["from"] for line in transform["mapping"]} <= names, path
        elif not transform and signal.unit:
            unit = STANDARD_UNITS.get(signal.unit, signal.unit)
            alike = {("day", "days"), ("iso8601", "s")}
            assert leaf["unit"] == unit or (leaf["unit"], unit) in alike, path


def test_the_11_bit_and_the_29_bit_obd_mapping_say_the_same() -> None:
    folder = ROOT / "config" / "vehicles"
    long_ids = (folder / "obd2_29bit.vspec").read_text("utf-8")
    short_ids = (folder / "obd2_gnss.vspec").read_text("utf-8")

    as_short = yaml.safe_load(long_ids.replace("29BIT", "11BIT"))

    both = yaml.safe_load(short_ids)
    assert as_short == {path: both[path] for path in as_short}


def test_an_answer_with_29_bit_ids_decodes_like_one_with_11_bit_ids() -> None:
    database = _load("obd2.dbc")

    answer = bytes.fromhex("0641A6000F4240AA")  # PID 0xA6: 1,000,000 * 0.1 km

    for can_id in (0x7E8, 0x18DAF110):
        assert database.decode_message(can_id, answer)["Odometer"] == 100_000


@pytest.mark.parametrize(
    "frame",
    [
        "21410D3200000000",  # a consecutive frame whose bytes look like service 01, PID 0x0D
        "1014410D32000000",  # a first frame
        "037F0D3200000000",  # a refusal
        "04490D3200000000",  # service 09
    ],
)
def test_no_other_answer_passes_for_a_speed(frame: str) -> None:
    database = _load("obd2.dbc")

    try:
        decoded = database.decode_message(0x7E8, bytes.fromhex(frame))
    except cantools.database.DecodeError:
        decoded = {}  # An info type that the DBC does not know.

    assert "VehicleSpeed" not in decoded


def test_every_message_of_j1939_dbc_is_matched_by_its_pgn() -> None:
    for message in _load("j1939.dbc").messages:
        assert message.protocol == "j1939"
        assert message.is_extended_frame
        assert message.frame_id & 0xFF == 0xFE
        assert f"PGN {(message.frame_id >> 8) & 0x3FFFF}:" in message.comment


def test_regenerating_the_drive_gives_the_same_bytes(tmp_path: Path) -> None:
    again = tmp_path / "again.log"

    subprocess.run([sys.executable, ROOT / "tools" / "simulate_drive.py", again], check=True)

    assert again.read_bytes() == DRIVE.read_bytes()


def test_the_drive_is_a_clean_candump_file() -> None:
    text = DRIVE.read_text("ascii")
    stamps = [line.split()[0][1:-1] for line in text.splitlines()]

    assert len(text) < 1_200_000
    assert stamps[0].startswith("1780300800.")
    assert all(len(stamp.split(".")[1]) == 6 for stamp in stamps)
    assert all(early < late for early, late in itertools.pairwise(stamps))
    assert all(line.split()[1] == "can0" for line in text.splitlines())
    assert "SIMULATED" in DRIVE.name


def test_the_drive_holds_every_mapped_signal(drive: dict[str, list[tuple[float, Any]]]) -> None:
    leaves = _leaves(ROOT / "config" / "vehicles" / "demo_vehicle.vspec")

    missing = {leaf["dbc2vss"]["signal"].split(".")[1] for leaf in leaves.values()} - set(drive)

    assert not missing


def test_the_drive_lies_in_the_open_sea(drive: dict[str, list[tuple[float, Any]]]) -> None:
    """The next land is 500 km away from 0° N 0° E."""
    for name in ("Latitude", "Longitude"):
        assert all(abs(value) < 0.1 for _, value in drive[name])


def test_what_the_drive_says_about_distance_agrees(
    drive: dict[str, list[tuple[float, Any]]],
) -> None:
    """Odometer, speed and track are three witnesses of one drive."""
    speed = drive["VehicleSpeed"]
    by_speed = sum(
        (after[0] - before[0]) * (after[1] + before[1]) / 2 / 3.6
        for before, after in itertools.pairwise(speed)
    )
    by_odometer = (drive["Odometer"][-1][1] - drive["Odometer"][0][1]) * 1000
    places = [
        (math.radians(north[1]) * 6_378_137, math.radians(east[1]) * 6_378_137)
        for north, east in zip(drive["Latitude"], drive["Longitude"], strict=True)
    ]
    by_track = sum(math.dist(a, b) for a, b in itertools.pairwise(places))

    assert by_speed > 6000
    assert by_odometer == pytest.approx(by_speed, abs=110)  # The odometer counts 100 m.
    assert by_track == pytest.approx(by_speed, rel=0.03)


def test_what_the_drive_says_about_turning_agrees(
    drive: dict[str, list[tuple[float, Any]]],
) -> None:
    """Yaw rate is positive to the left, heading clockwise, lateral acceleration speed * yaw."""
    yaw = drive["YawRate"]
    turned = sum(
        (after[0] - before[0]) * (after[1] + before[1]) / 2
        for before, after in itertools.pairwise(yaw)
    )
    heading = drive["Heading"]
    change = (heading[0][1] - heading[-1][1] - turned + 180) % 360 - 180
    worst = max(
        abs(lateral[1] - speed[1] / 3.6 * math.radians(rate[1]))
        for lateral, speed, rate in zip(
            drive["LateralAcceleration"], drive["VehicleSpeed"], yaw, strict=True
        )
    )

    assert abs(change) < 3
    assert worst < 0.1


def test_the_drive_shows_what_the_demo_needs(drive: dict[str, list[tuple[float, Any]]]) -> None:
    def values(name: str) -> set[Any]:
        return {
            str(value) if not isinstance(value, int | float) else value for _, value in drive[name]
        }

    assert max(value for _, value in drive["VehicleSpeed"]) > 95
    assert max(value for _, value in drive["EngineSpeed"]) > 2500
    assert values("CurrentGear") == {-1, 0, 1, 2, 3, 4, 5, 6}
    assert values("LeverPosition") == {"Park", "Reverse", "Drive"}
    assert {"NotAvailable"} < values("InstantConsumption")
    assert {"Checking"} < values("OilTemperature")
    for event in ("AbsActive", "DoorFrontLeftOpen", "DriverBelt", "LowRearLeft", "TrunkOpen"):
        assert values(event) == {0, 1}, event
