"""A small car for tests: its DBC, its mapping, and frames and policies for it."""

import json
import struct
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from agent.core.binding import Binding, bind
from agent.core.catalogue import Catalogue, parse_catalogue
from agent.core.dbc import DbcFile, parse_dbc
from agent.core.mapping import parse_mapping
from agent.core.model import NS_PER_MS, Frame
from agent.core.policy import Policy, parse_unsigned_policy

ROOT = Path(__file__).resolve().parent.parent
SPEED_ID, ODOMETER_ID, POSITION_ID, DOOR_ID, FOREIGN_ID = 0x64, 0xC8, 0x12C, 0x190, 0x7FF

DBC = b"""VERSION ""
BU_: ECU
BO_ 100 SPEED: 4 ECU
 SG_ Speed : 0|16@1+ (0.01,0) [0|655] "km/h" ECU
 SG_ Counter : 16|8@1+ (1,0) [0|255] "" ECU
BO_ 200 ODO: 4 ECU
 SG_ Odometer : 0|32@1+ (1,0) [0|0] "m" ECU
BO_ 300 POSITION: 8 ECU
 SG_ Lat : 0|32@1- (1E-07,0) [-90|90] "deg" ECU
 SG_ Lon : 32|32@1- (1E-07,0) [-180|180] "deg" ECU
BO_ 400 DOOR: 2 ECU
 SG_ DriverDoor : 0|2@1+ (1,0) [0|3] "" ECU
 SG_ Vin : 8|8@1+ (1,0) [0|255] "" ECU
VAL_ 400 DriverDoor 0 "Closed" 1 "Open" 3 "Fault" ;
VAL_ 400 Vin 1 "WTEST0000000000001" ;
"""

MAPPING = b"""
Vehicle.Speed: {type: sensor, datatype: float, dbc2vss: {signal: Speed, interval_ms: 0}}
Vehicle.TraveledDistance:
  {type: sensor, datatype: uint32, dbc2vss: {signal: ODO.Odometer, interval_ms: 0}}
Vehicle.CurrentLocation.Latitude:
  {type: sensor, datatype: double, dbc2vss: {signal: Lat, interval_ms: 0}}
Vehicle.CurrentLocation.Longitude:
  {type: sensor, datatype: double, dbc2vss: {signal: Lon, interval_ms: 0}}
Vehicle.Cabin.Door.Row1.DriverSide.IsOpen:
  {type: sensor, datatype: boolean, dbc2vss: {signal: DriverDoor, on_change: true}}
Vehicle.VehicleIdentification.VIN:
  {type: sensor, datatype: string, dbc2vss: {signal: Vin}}
"""


@cache
def catalogue() -> Catalogue:
    return parse_catalogue((ROOT / "config" / "catalogue.json").read_bytes())


@cache
def dbc() -> DbcFile:
    return parse_dbc(DBC, name="car.dbc")


@cache
def binding(mapping: bytes = MAPPING) -> Binding:
    return bind(
        parse_mapping(mapping, name="car.vspec"), [dbc()], catalogue(), bus=None, any_bus=True
    )


def policy(grants: Mapping[str, Mapping[str, Mapping[str, Any]]], **members: Any) -> Policy:
    """Make an unsigned policy: grant id -> scope -> constraints; recipient r-<grant id>."""
    document: dict[str, Any] = {
        "recipients": {f"r-{grant_id}": {"name": grant_id} for grant_id in grants},
        "grants": [
            {
                "grant_id": grant_id,
                "recipient": f"r-{grant_id}",
                "details": [{"scope": s, "constraints": dict(c)} for s, c in scopes.items()],
                **combined(scopes),
                **members.pop(grant_id, {}),
            }
            for grant_id, scopes in grants.items()
        ],
        **members,
    }
    return parse_unsigned_policy(json.dumps(document).encode(), catalogue())


def combined(scopes: Iterable[str]) -> dict[str, Any]:
    """Return the member `combine` that a grant of these scopes needs, if any."""
    sensitive = ("read_speedometer", "read_location", "read_compass", "read_charge_locations")
    found = [scope for scope in scopes if scope in sensitive]
    return {"combine": [found]} if len(found) > 1 else {}


def speed(t_ms: float, km_h: float) -> Frame:
    return _frame(t_ms, SPEED_ID, struct.pack("<HBB", round(km_h * 100), 0, 0))


def odometer(t_ms: float, metres: int) -> Frame:
    return _frame(t_ms, ODOMETER_ID, struct.pack("<I", metres))


def position(t_ms: float, lat: float, lon: float) -> Frame:
    return _frame(t_ms, POSITION_ID, struct.pack("<ii", round(lat * 1e7), round(lon * 1e7)))


def door(t_ms: float, state: int, vin: int = 0) -> Frame:
    return _frame(t_ms, DOOR_ID, bytes((state, vin)))


def foreign(t_ms: float, data: bytes = b"\x01\x02") -> Frame:
    return _frame(t_ms, FOREIGN_ID, data)


def merged(*parts: Iterable[Frame]) -> list[Frame]:
    return sorted((frame for part in parts for frame in part), key=lambda frame: frame[0])


def _frame(t_ms: float, can_id: int, data: bytes) -> Frame:
    return round(t_ms * NS_PER_MS), "can0", can_id, data
