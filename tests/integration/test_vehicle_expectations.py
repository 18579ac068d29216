"""The stated sample counts are what cantools alone finds, and every vehicle yields what it must."""

import json
from pathlib import Path

import pytest
from vehicle_oracle import EXPECTATIONS, VEHICLES, count

# The main job's list (issue 2): each of these must come out of that vehicle's capture.
MUST_YIELD = {
    "obd2_gnss_drive": (
        "Vehicle.Speed",
        "Vehicle.Powertrain.CombustionEngine.Speed",
        "Vehicle.Powertrain.FuelSystem.RelativeLevel",
        "Vehicle.Powertrain.CombustionEngine.EngineCoolant.Temperature",
        "Vehicle.CurrentLocation.Latitude",
        "Vehicle.CurrentLocation.Longitude",
        "Vehicle.TripMeterReading",
    ),
    "mustang": (
        "Vehicle.Speed",
        "Vehicle.Powertrain.CombustionEngine.Speed",
        "Vehicle.TraveledDistance",
        "Vehicle.Powertrain.FuelSystem.RelativeLevel",
        "Vehicle.Chassis.Axle.Row1.Wheel.Left.Tire.Pressure",
        "Vehicle.Cabin.Door.Row1.DriverSide.IsLocked",
    ),
    "tesla_model3": ("Vehicle.Speed", "Vehicle.Powertrain.Transmission.CurrentGear"),
    "giulia": ("Vehicle.Speed", "Vehicle.Powertrain.CombustionEngine.Speed"),
    "j1939": ("Vehicle.TraveledDistance", "Vehicle.Powertrain.CombustionEngine.Speed"),
}


@pytest.mark.captures
@pytest.mark.parametrize("vehicle", VEHICLES)
def test_the_stated_counts_are_what_cantools_finds(captures: Path, vehicle: str) -> None:
    stated = json.loads(EXPECTATIONS.read_text("utf-8"))

    found = count(vehicle, captures)

    assert set(stated) == set(VEHICLES)
    assert stated[vehicle] == {**VEHICLES[vehicle], "paths": found}


@pytest.mark.parametrize("vehicle", MUST_YIELD)
def test_each_vehicle_yields_what_the_main_job_needs(vehicle: str) -> None:
    stated = json.loads(EXPECTATIONS.read_text("utf-8"))[vehicle]["paths"]

    for path in MUST_YIELD[vehicle]:
        assert stated[path]["default"] > 0, path
        assert stated[path]["loosest"] >= stated[path]["default"], path


def test_the_demo_vehicle_yields_every_grantable_path() -> None:
    stated = json.loads(EXPECTATIONS.read_text("utf-8"))["demo"]["paths"]

    silent = {path for path, counts in stated.items() if not counts["loosest"]}

    assert silent == {path for path in stated if path.startswith("Vehicle.Driver.")}
