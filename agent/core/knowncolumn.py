"""Columns that every reader knows by number, so that no envelope has to spell them.

Rules:
 * The number of a column is its place in the list below, from 0. It is part of codec 1: lines are
   appended at the end, never changed, moved or taken out (a scope's name may stand there again).
 * A number stands for exactly this path, scope, datatype and unit. What differs is spelled out.
   For the column of an aggregate's function it stands for path and scope, and datatype and unit
   are what the function makes of those here.
 * docs/known-columns.json is the same list for readers in other languages.

Per scope: path, datatype and, where there is one, unit, as in version 1 of the catalogue.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

_LIST = """\
read_vehicle_info
    Vehicle.VehicleIdentification.Brand string
    Vehicle.VehicleIdentification.Model string
    Vehicle.VehicleIdentification.Year uint16
    Vehicle.Powertrain.Type string
    Vehicle.Powertrain.FuelSystem.SupportedFuelTypes string[]
read_vin
    Vehicle.VehicleIdentification.VIN string
read_extended_vehicle_info
    Vehicle.VehicleIdentification.VehicleExteriorColor string
    Vehicle.VehicleIdentification.VehicleConfiguration string
    Vehicle.VehicleIdentification.BodyType string
    Vehicle.VehicleIdentification.OptionalExtras string[]
    Vehicle.LowVoltageSystemState string
read_odometer
    Vehicle.TraveledDistance uint32 m
    Vehicle.TripMeterReading uint32 m
read_location
    Vehicle.CurrentLocation.Latitude double degrees
    Vehicle.CurrentLocation.Longitude double degrees
    Vehicle.CurrentLocation.Timestamp string iso8601
    Vehicle.CurrentLocation.HorizontalAccuracy double m
    Vehicle.CurrentLocation.Altitude double m
read_compass
    Vehicle.CurrentLocation.Heading double degrees
read_speedometer
    Vehicle.Speed float km/h
    Vehicle.AverageSpeed float km/h
read_battery
    Vehicle.Powertrain.TractionBattery.StateOfCharge.Displayed float percent
    Vehicle.Powertrain.TractionBattery.StateOfCharge.Current float percent
    Vehicle.Powertrain.TractionBattery.StateOfCharge.CurrentEnergy float kWh
    Vehicle.Powertrain.TractionBattery.Range uint32 m
    Vehicle.Powertrain.TractionBattery.GrossCapacity uint16 kWh
    Vehicle.Powertrain.TractionBattery.NetCapacity uint16 kWh
    Vehicle.Powertrain.TractionBattery.StateOfHealth float percent
    Vehicle.Powertrain.TractionBattery.CurrentVoltage float V
    Vehicle.Powertrain.TractionBattery.CurrentCurrent float A
    Vehicle.Powertrain.TractionBattery.CurrentPower float W
    Vehicle.Powertrain.TractionBattery.Temperature.Average float Celsius
read_charge
    Vehicle.Powertrain.TractionBattery.Charging.IsCharging boolean
    Vehicle.Powertrain.TractionBattery.Charging.ChargingPort.AnyPosition.IsChargingCableConnected \
boolean
    Vehicle.Powertrain.TractionBattery.Charging.ChargeLimit uint8 percent
    Vehicle.Powertrain.TractionBattery.Charging.TimeToComplete uint32 s
    Vehicle.Powertrain.TractionBattery.Charging.ChargeRate float km/h
    Vehicle.Powertrain.TractionBattery.Charging.AveragePower float kW
    Vehicle.Powertrain.TractionBattery.Charging.MaximumChargingCurrent.DC float A
    Vehicle.Powertrain.TractionBattery.Charging.ChargeVoltage.DC float V
    Vehicle.Powertrain.TractionBattery.Charging.ChargeCurrent.DC float A
read_charge_locations
    Vehicle.Powertrain.TractionBattery.Charging.Location.Latitude double degrees
    Vehicle.Powertrain.TractionBattery.Charging.Location.Longitude double degrees
    Vehicle.Powertrain.TractionBattery.Charging.EvseId string
read_fuel
    Vehicle.Powertrain.FuelSystem.RelativeLevel uint8 percent
    Vehicle.Powertrain.FuelSystem.AbsoluteLevel float l
    Vehicle.Powertrain.FuelSystem.Range uint32 m
    Vehicle.Powertrain.FuelSystem.TankCapacity float l
read_engine_oil
    Vehicle.Powertrain.CombustionEngine.EngineOil.LifeRemaining int32 s
    Vehicle.Powertrain.CombustionEngine.EngineOil.Level string
    Vehicle.Powertrain.CombustionEngine.EngineOil.Temperature float Celsius
read_tires
    Vehicle.Chassis.Axle.Row1.Wheel.Left.Tire.Pressure uint16 kPa
    Vehicle.Chassis.Axle.Row1.Wheel.Left.Tire.IsPressureLow boolean
    Vehicle.Chassis.Axle.Row1.Wheel.Left.Tire.Temperature float Celsius
    Vehicle.Chassis.Axle.Row1.Wheel.Right.Tire.Pressure uint16 kPa
    Vehicle.Chassis.Axle.Row1.Wheel.Right.Tire.IsPressureLow boolean
    Vehicle.Chassis.Axle.Row1.Wheel.Right.Tire.Temperature float Celsius
    Vehicle.Chassis.Axle.Row2.Wheel.Left.Tire.Pressure uint16 kPa
    Vehicle.Chassis.Axle.Row2.Wheel.Left.Tire.IsPressureLow boolean
    Vehicle.Chassis.Axle.Row2.Wheel.Left.Tire.Temperature float Celsius
    Vehicle.Chassis.Axle.Row2.Wheel.Right.Tire.Pressure uint16 kPa
    Vehicle.Chassis.Axle.Row2.Wheel.Right.Tire.IsPressureLow boolean
    Vehicle.Chassis.Axle.Row2.Wheel.Right.Tire.Temperature float Celsius
read_thermometer
    Vehicle.Exterior.AirTemperature float Celsius
    Vehicle.Cabin.HVAC.AmbientAirTemperature float Celsius
read_climate
    Vehicle.Cabin.HVAC.Station.Row1.Driver.Temperature float Celsius
    Vehicle.Cabin.HVAC.IsAirConditioningActive boolean
    Vehicle.Cabin.HVAC.IsFrontDefrosterActive boolean
    Vehicle.Cabin.HVAC.IsRearDefrosterActive boolean
read_security
    Vehicle.Cabin.Door.Row1.DriverSide.IsLocked boolean
    Vehicle.Cabin.Door.Row1.DriverSide.IsOpen boolean
    Vehicle.Cabin.Door.Row1.DriverSide.Window.IsOpen boolean
    Vehicle.Cabin.Door.Row1.PassengerSide.IsLocked boolean
    Vehicle.Cabin.Door.Row1.PassengerSide.IsOpen boolean
    Vehicle.Cabin.Door.Row1.PassengerSide.Window.IsOpen boolean
    Vehicle.Cabin.Door.Row2.DriverSide.IsLocked boolean
    Vehicle.Cabin.Door.Row2.DriverSide.IsOpen boolean
    Vehicle.Cabin.Door.Row2.DriverSide.Window.IsOpen boolean
    Vehicle.Cabin.Door.Row2.PassengerSide.IsLocked boolean
    Vehicle.Cabin.Door.Row2.PassengerSide.IsOpen boolean
    Vehicle.Cabin.Door.Row2.PassengerSide.Window.IsOpen boolean
    Vehicle.Body.Trunk.Rear.IsLocked boolean
    Vehicle.Body.Trunk.Rear.IsOpen boolean
    Vehicle.Body.Trunk.Front.IsOpen boolean
    Vehicle.Body.Hood.IsOpen boolean
    Vehicle.Cabin.Sunroof.Position int8 percent
read_diagnostics
    Vehicle.Diagnostics.DTCCount uint8
    Vehicle.Diagnostics.DTCList string[]
    Vehicle.ADAS.ABS.IsError boolean
    Vehicle.LowVoltageBattery.CurrentVoltage float V
    Vehicle.Powertrain.CombustionEngine.EngineCoolant.Temperature float Celsius
read_service_history
    Vehicle.Service.IsServiceDue boolean
    Vehicle.Service.DistanceToService float km
    Vehicle.Service.TimeToService int32 s
read_powertrain
    Vehicle.Powertrain.CombustionEngine.Speed float rpm
    Vehicle.Powertrain.CombustionEngine.TPS uint8 percent
    Vehicle.Powertrain.CombustionEngine.EngineHours float h
    Vehicle.Powertrain.Transmission.CurrentGear int8
    Vehicle.Powertrain.Transmission.SelectedGear int8
    Vehicle.Powertrain.FuelSystem.InstantConsumption float l/100km
read_driver_behaviour
    Vehicle.Acceleration.Longitudinal float m/s^2
    Vehicle.Acceleration.Lateral float m/s^2
    Vehicle.AngularVelocity.Yaw float degrees/s
    Vehicle.Chassis.Accelerator.PedalPosition uint8 percent
    Vehicle.Chassis.Brake.PedalPosition uint8 percent
    Vehicle.Chassis.SteeringWheel.Angle int16 degrees
    Vehicle.ADAS.ABS.IsEngaged boolean
    Vehicle.ADAS.ESC.IsEngaged boolean
    Vehicle.ADAS.EBA.IsEngaged boolean
    Vehicle.Cabin.Seat.Row1.DriverSide.IsBelted boolean
read_driver_state
    Vehicle.Driver.DistractionLevel float percent
    Vehicle.Driver.FatigueLevel float percent
    Vehicle.Driver.HeartRate uint16 bpm
    Vehicle.Driver.AttentiveProbability float percent
read_driver_identity
    Vehicle.Occupant.Row1.DriverSide.Identifier.Subject string
read_occupancy
    Vehicle.Cabin.Seat.Row1.DriverSide.OccupancyStatus string
    Vehicle.Cabin.Seat.Row1.PassengerSide.OccupancyStatus string
"""


class Names(NamedTuple):
    """What a column is called."""

    path: str
    scope: str
    datatype: str
    unit: str | None


def _names(text: str) -> Iterator[Names]:
    scope = ""
    for line in text.strip().splitlines():
        path, *rest = line.split()
        if not rest:
            scope = path
            continue
        datatype, unit = (*rest, None)[:2]
        yield Names(path, scope, datatype or "", unit)


KNOWN_COLUMNS: Final = tuple(_names(_LIST))
NUMBERS: Final = {names: number for number, names in enumerate(KNOWN_COLUMNS)}
NUMBERS_BY_PATH: Final = {
    (names.path, names.scope): number for number, names in enumerate(KNOWN_COLUMNS)
}
