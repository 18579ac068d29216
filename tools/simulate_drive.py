"""Writes the bundled drive: an invented car on an invented road, as candump text.

    python tools/simulate_drive.py [FILE]        default: demo/drive_SIMULATED.log

Rules:
 * No person's data: the car (dbc/demo_vehicle.dbc), the driver, the road and the day are made up,
   and the road lies in the open sea around 0° N 0° E.
 * The same code writes the same bytes: one fixed seed, no clock, and only `Random.random`, whose
   sequence Python keeps between versions.
 * The car itself is in simulated_car.py; here is what its control units would say about it.
"""

import argparse
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import cantools
from cantools.database.can import Database
from simulated_car import METRES_PER_DEGREE, STEERING_RATIO, WHEELBASE_M, Car, step

ROOT = Path(__file__).resolve().parent.parent
DBC = ROOT / "dbc" / "demo_vehicle.dbc"
LOG = ROOT / "demo" / "drive_SIMULATED.log"

SEED = 20260601
START_S = 1_780_300_800  # 2026-06-01T08:00:00Z, a Monday.
DURATION_S = 600
STEP_MS = 20

TANK_L = 50.0
TYRES = ("FrontLeft", "FrontRight", "RearLeft", "RearRight")

Payload = dict[str, float | int | str]


def _counter(car: Car, name: str) -> int:
    car.counters[name] = (car.counters.get(name, -1) + 1) % 16
    return car.counters[name]


def _percent(value: float) -> float:
    return max(0.0, min(100.0, value))


def _engine(car: Car, _t_s: float, _noise: random.Random) -> Payload:
    return {
        "EngineSpeed": car.rpm,
        "ThrottlePosition": _percent(3 + 0.92 * car.accelerator) if car.rpm > 400 else 0.0,
        "AcceleratorPosition": _percent(car.accelerator),
        "CurrentGear": car.gear,
        "LeverPosition": car.lever,
        "EngineCounter": _counter(car, "ENGINE"),
    }


def _motion(car: Car, _t_s: float, noise: random.Random) -> Payload:
    shake = 0.05 if car.speed else 0.01
    hard = car.emergency and car.acceleration < -6.0 and car.speed > 2.0
    return {
        "VehicleSpeed": car.speed * 3.6,
        "LongitudinalAcceleration": car.acceleration + shake * (noise.random() - 0.5),
        "LateralAcceleration": car.speed * car.yaw_rate + shake * (noise.random() - 0.5),
        "YawRate": math.degrees(car.yaw_rate),
        "AbsActive": int(hard),
        "EscActive": 0,
        "BrakeAssistActive": int(hard and car.speed > 8.0),
        "AbsFault": 0,
        "MotionCounter": _counter(car, "MOTION"),
    }


def _chassis(car: Car, _t_s: float, noise: random.Random) -> Payload:
    wheels = math.atan(WHEELBASE_M * car.yaw_rate / car.speed) if car.speed > 0.3 else 0.0
    return {
        "SteeringWheelAngle": STEERING_RATIO * math.degrees(wheels) + noise.random() - 0.5,
        "BrakePedalPosition": _percent(car.brake),
        "ParkingBrake": int(car.lever == "Park"),
        "ChassisCounter": _counter(car, "CHASSIS"),
    }


def _gnss_position(car: Car, t_s: float, noise: random.Random) -> Payload | None:
    if t_s < 4.0:  # The receiver needs its time to find satellites.
        return None
    car.drift_m += 0.3 * (noise.random() - 0.5) - 0.05 * car.drift_m
    return {
        "Latitude": (car.north_m + car.drift_m) / METRES_PER_DEGREE,
        # On the equator a degree of longitude is as long as one of latitude.
        "Longitude": (car.east_m - car.drift_m) / METRES_PER_DEGREE,
    }


def _gnss_state(car: Car, t_s: float, noise: random.Random) -> Payload:
    fixed = t_s >= 4.0
    return {
        "Heading": min(359.99, car.heading_deg),
        "Altitude": car.altitude + noise.random() - 0.5,
        "HorizontalAccuracy": 1.4 + 0.8 * noise.random() if fixed else 25.4,
        "Satellites": 9 + int(3 * noise.random()) if fixed else 2,
        "FixType": "Fix3D" if fixed else "None",
    }


def _cluster(car: Car, _t_s: float, _noise: random.Random) -> Payload:
    return {
        # An instrument shows what is behind the car, so it rounds down.
        "Odometer": math.floor(car.odometer_m / 100) / 10,
        "TripDistance": math.floor(car.trip_m / 10) / 100,
        "AverageSpeed": 3.6 * car.trip_m / car.moving_s if car.moving_s else 0.0,
    }


def _fuel(car: Car, _t_s: float, _noise: random.Random) -> Payload:
    kmh = car.speed * 3.6
    moving = kmh >= 5.0
    return {
        "FuelLevel": 100 * car.fuel_l / TANK_L,
        "FuelVolume": car.fuel_l,
        "FuelRange": math.floor(100 * car.fuel_l / 6.4),
        "InstantConsumption": min(100.0, 100 * car.fuel_l_per_h / kmh)
        if moving
        else "NotAvailable",
        "TankCapacity": TANK_L,
    }


def _temperatures(car: Car, t_s: float, noise: random.Random) -> Payload:
    running = car.rpm > 400
    return {
        "CoolantTemperature": round(car.coolant),
        "OilTemperature": round(car.oil) if t_s >= 18.0 else "Checking",
        "AmbientTemperature": 18.5 + 0.6 * math.sin(t_s / 130) - 0.0065 * (car.altitude - 12),
        "BatteryVoltage": (14.2 if running else 12.5) + 0.08 * (noise.random() - 0.5),
    }


def _body(car: Car, t_s: float, _noise: random.Random) -> Payload:
    since_arrival = t_s - car.arrived_s
    seated = t_s >= 4.5 and since_arrival < 12.0
    locked = int(car.locked)
    ignition = "OFF"
    if t_s >= 7.0 and since_arrival < 6.0:
        ignition = "START" if 9.0 <= t_s < 10.0 else "ON"
    return {
        "DoorFrontLeftOpen": int(3.0 <= t_s < 6.0 or 10.0 <= since_arrival < 14.0),
        "DoorFrontRightOpen": 0,
        "DoorRearLeftOpen": 0,
        "DoorRearRightOpen": 0,
        "DoorFrontLeftLocked": locked,
        "DoorFrontRightLocked": locked,
        "DoorRearLeftLocked": locked,
        "DoorRearRightLocked": locked,
        "WindowFrontLeftOpen": int(95.0 <= t_s < 236.0),
        "WindowFrontRightOpen": 0,
        "WindowRearLeftOpen": 0,
        "WindowRearRightOpen": 0,
        "TrunkOpen": int(since_arrival >= 15.0),
        "TrunkLocked": int(car.locked and since_arrival < 15.0),
        "HoodOpen": 0,
        "DriverBelt": int(t_s >= 8.0 and since_arrival < 7.0),
        "DriverSeat": "OCCUPIED" if seated else "EMPTY",
        "PassengerSeat": "EMPTY",
        "IgnitionState": ignition,
        "SunroofPosition": round(max(0, min(100, 12 * (t_s - 60), 12 * (240 - t_s)))),
    }


def _climate(car: Car, t_s: float, _noise: random.Random) -> Payload:
    on = car.rpm > 400
    return {
        "CabinTemperature": car.cabin,
        "DriverSetTemperature": 21.5,
        "AirConditioning": int(on and car.cabin > 22.5),
        "FrontDefroster": int(on and 20.0 <= t_s < 80.0),
        "RearDefroster": 0,
    }


def _tyre(car: Car, t_s: float, _noise: random.Random) -> Payload:
    wheel = int(t_s) % 4
    name = TYRES[wheel]
    temperature = car.tyre_c + (0, 1, 2, 2)[wheel]
    pressure = 228 + 0.8 * (temperature - 20)
    if name == "RearLeft":  # A nail: 25 kPa in ten minutes.
        pressure = 212 - t_s / 24 + 0.8 * (temperature - 20)
    return {
        "Wheel": wheel,
        f"Pressure{name}": pressure,
        f"Temperature{name}": round(temperature),
        f"Low{name}": int(pressure < 205),
    }


def _driver_monitor(car: Car, t_s: float, noise: random.Random) -> Payload:
    return {
        "FatigueLevel": _percent(12 + t_s / 40 + 2 * noise.random()),
        "DistractionLevel": _percent(6 + 10 * noise.random() + (25 if 95 <= t_s < 110 else 0)),
        "AttentiveProbability": _percent(93 - t_s / 60 + 4 * noise.random()),
        "HeartRate": round(66 + 0.12 * car.speed * 3.6 + 22 * car.emergency + 4 * noise.random()),
    }


def _service(car: Car, _t_s: float, _noise: random.Random) -> Payload:
    return {
        "ServiceDue": 0,
        "OilLevel": "NORMAL",
        "TroubleCodeCount": 1,
        "DistanceToService": 11_786 - math.floor(car.trip_m / 1000),
        "TimeToService": 143,
        "EngineHours": 1287.5 + car.running_s / 3600,
    }


def _vehicle(_car: Car, _t_s: float, _noise: random.Random) -> Payload:
    return {
        "Brand": "Consentry",
        "Model": "Demo",
        "ModelYear": 2024,
        "BodyType": "Estate",
        "PowertrainType": "COMBUSTION",
        "ExteriorColor": "Blue",
    }


Reader = Callable[[Car, float, random.Random], Payload | None]

# message: (offset within its cycle in ms, what it carries)
MESSAGES: dict[str, tuple[int, Reader]] = {
    "ENGINE": (0, _engine),
    "MOTION": (20, _motion),
    "CHASSIS": (40, _chassis),
    "GNSS_POSITION": (60, _gnss_position),
    "GNSS_STATE": (160, _gnss_state),
    "CLUSTER": (260, _cluster),
    "FUEL": (360, _fuel),
    "TEMPERATURES": (460, _temperatures),
    "BODY": (80, _body),
    "CLIMATE": (560, _climate),
    "TYRE": (660, _tyre),
    "DRIVER_MONITOR": (760, _driver_monitor),
    "SERVICE": (860, _service),
    "VEHICLE": (960, _vehicle),
}


def simulate(database: Database, seed: int = SEED) -> Iterator[str]:
    """Yield the drive's candump lines in time order, without line ends.

    Args:
        database: dbc/demo_vehicle.dbc; it gives ids, layout and cycle times.
        seed: Of the noise; the road stays the same.
    """
    noise = random.Random(seed)
    car = Car()
    schedule = []
    for name, (offset_ms, reader) in MESSAGES.items():
        message = database.get_message_by_name(name)
        assert message.cycle_time, f"{name} has no GenMsgCycleTime in the DBC"
        schedule.append((message, message.cycle_time, offset_ms, reader))
    for t_ms in range(0, DURATION_S * 1000, STEP_MS):
        t_s = t_ms / 1000
        step(car, t_s, STEP_MS / 1000, noise)
        t_us = t_ms * 1000
        for message, cycle_ms, offset_ms, reader in schedule:
            if (t_ms - offset_ms) % cycle_ms:
                continue
            payload = reader(car, t_s, noise)
            if payload is None:
                continue
            # Waiting for the bus: up to 0.4 ms, and never before the frame that was sent last.
            t_us = max(t_us + 250, t_ms * 1000 + int(400 * noise.random()))
            data = database.encode_message(message.frame_id, payload, strict=True, padding=False)
            yield (
                f"({START_S + t_us // 1_000_000}.{t_us % 1_000_000:06d}) can0 "
                f"{message.frame_id:03X}#{data.hex().upper()}"
            )


def main() -> None:
    """Write the log."""
    parser = argparse.ArgumentParser(description="write the simulated drive as candump text")
    parser.add_argument("file", nargs="?", type=Path, default=LOG)
    target = parser.parse_args().file
    database = cantools.database.load_file(DBC, strict=True)
    if not isinstance(database, Database):
        raise SystemExit(f"error: {DBC.name} is not a CAN database")
    lines = list(simulate(database))
    target.write_bytes("".join(f"{line}\n" for line in lines).encode("ascii"))
    print(f"{target.name}: {len(lines)} frames, {DURATION_S} s")


if __name__ == "__main__":
    main()
