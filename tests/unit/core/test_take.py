"""Takes beside those that plan and pipeline are tested with."""

from agent.core.take import once_paths
from tests import car


def test_what_is_given_once_is_known_also_while_its_hours_are_closed() -> None:
    """A batch may reach the store when the plan gives its path no more."""
    never = {"days": "1", "from": "03:00", "to": "03:01", "tz": "UTC"}
    policy = car.policy(
        {"g": {"read_vin": {"windows": [never]}, "read_fuel": {"once": True}, "read_odometer": {}}}
    )

    found = once_paths(policy.grants[0], car.catalogue())

    assert "Vehicle.VehicleIdentification.VIN" in found
    assert "Vehicle.Powertrain.FuelSystem.Range" in found
    assert "Vehicle.TraveledDistance" not in found
