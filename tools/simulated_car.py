"""An invented car, its driver and its road: the physics behind tools/simulate_drive.py.

Rules:
 * Speed follows from the forces, the engine's speed from the gear, fuel from the power, the track
   from speed and bend, so that what one signal says agrees with what another says.
 * The road lies in the open sea around 0° N 0° E: it is nobody's way to work.
 * SI units unless the name says otherwise; yaw and bends are positive to the left (ISO 8855).
"""

import math
import random
from dataclasses import dataclass, field

MASS_KG = 1450.0
DRAG_AREA_M2 = 0.65  # drag coefficient times frontal area
ROLLING = 0.011
AIR_KG_M3 = 1.2
GRAVITY = 9.80665
WHEELBASE_M = 2.65
STEERING_RATIO = 15.0
POWER_W = 88_000.0
IDLE_RPM = 820.0
LATERAL_LIMIT = 2.4  # m/s^2 that this driver accepts in a bend
COMFORT_BRAKE = 1.7  # m/s^2 with which this driver slows down for what is ahead
KMH_PER_1000_RPM = (8.0, 14.5, 22.0, 30.0, 39.0, 48.0)
UPSHIFT_KMH = (17.0, 32.0, 48.0, 66.0, 84.0)
METRES_PER_DEGREE = 111_320.0


@dataclass(frozen=True, slots=True)
class Leg:
    """A piece of road.

    Attributes:
        length_m: Its length.
        limit_kmh: The speed limit.
        turn_deg: How far it turns, positive to the left.
        climb_m: How much higher its end lies.
        wait_s: How long the car stands at its end.
        hazard: Something runs onto the road: the driver brakes as hard as the car can.
        reverse: The car drives it backwards.
    """

    length_m: float
    limit_kmh: float
    turn_deg: float = 0.0
    climb_m: float = 0.0
    wait_s: float = 0.0
    hazard: bool = False
    reverse: bool = False

    @property
    def limit(self) -> float:
        """Highest speed on it, m/s, by sign or by bend."""
        by_sign = self.limit_kmh / 3.6
        tightest = abs(self.curvature(0.5 * self.length_m))
        return min(by_sign, math.sqrt(LATERAL_LIMIT / tightest)) if tightest else by_sign

    def curvature(self, at_m: float) -> float:
        """Bend after `at_m`, rad/m, positive to the left: it grows and shrinks smoothly."""
        share = math.sin(math.pi * min(1.0, at_m / self.length_m)) ** 2
        return 2 * math.radians(self.turn_deg) / self.length_m * share


ROAD = (
    Leg(12, 6, 55, reverse=True, wait_s=2.0),
    Leg(130, 30, -4),
    Leg(26, 50, -90),
    Leg(330, 50, 6, 2, wait_s=11.0),
    Leg(250, 50, 0, 1),
    Leg(28, 50, 88),
    Leg(420, 50, -12, -3, wait_s=9.0),
    Leg(220, 50, 0, 2),
    Leg(90, 40, -170),
    Leg(330, 50, 25, 4, wait_s=8.0),
    Leg(600, 70, -18, 9),
    Leg(750, 100, 28, 21),
    Leg(330, 90, -65, 8),
    Leg(800, 100, 12, -14),
    Leg(320, 80, 75, -9),
    Leg(500, 100, -9, 6),
    Leg(160, 100, 0, 1, hazard=True),
    Leg(750, 100, -38, 12),
    Leg(380, 80, 85, -6),
    Leg(480, 100, -6, -17),
    Leg(350, 70, 16, -8),
    Leg(40, 50, 95),
    Leg(300, 50, -8, -4, wait_s=7.0),
    Leg(250, 50, 5, -2),
    Leg(26, 30, -92),
    Leg(80, 30, 3, -1),
    Leg(16, 12, 70),
)


@dataclass(slots=True)
class Car:
    """What the car is doing now; changed by every step. SI units unless the name says otherwise."""

    speed: float = 0.0
    acceleration: float = 0.0
    yaw_rate: float = 0.0  # rad/s, positive to the left
    heading_deg: float = 205.0
    north_m: float = -0.011 * METRES_PER_DEGREE
    east_m: float = -0.013 * METRES_PER_DEGREE
    altitude: float = 12.0
    gear: int = 0
    lever: str = "Park"
    rpm: float = 0.0
    accelerator: float = 0.0  # percent
    brake: float = 0.0  # percent
    power: float = 0.0  # W at the wheels
    emergency: bool = False
    leg: int = 0
    leg_m: float = 0.0
    wait: float = 0.0
    odometer_m: float = 48_213_400.0
    trip_m: float = 0.0
    moving_s: float = 0.0
    running_s: float = 0.0
    fuel_l: float = 31.4
    fuel_l_per_h: float = 0.0
    coolant: float = 34.0
    oil: float = 31.0
    cabin: float = 27.5
    tyre_c: float = 21.0
    drift_m: float = 0.0
    locked: bool = True
    arrived_s: float = math.inf
    counters: dict[str, int] = field(default_factory=dict)

    @property
    def leg_now(self) -> Leg | None:
        """The piece of road under the car, or None at the end of it."""
        return ROAD[self.leg] if self.leg < len(ROAD) else None


def step(car: Car, t_s: float, dt: float, noise: random.Random) -> None:
    """Let the car do `dt` seconds of its drive."""
    since_arrival = t_s - car.arrived_s
    started = t_s >= 10.0 and since_arrival < 6.0
    driving = t_s >= 16.0 and car.leg_now is not None
    _choose_lever(car, driving=driving, since_arrival=since_arrival)
    _drive(car, t_s, dt, driving=driving)
    _turn_engine(car, dt, noise, started=started)
    _warm(car, dt, started=started)
    if car.speed > 4.2:
        car.locked = True
    if 2.0 <= t_s < 3.0 or since_arrival > 8.0:
        car.locked = False


def _choose_lever(car: Car, *, driving: bool, since_arrival: float) -> None:
    leg = car.leg_now
    if since_arrival > 2.0 or not driving:
        car.lever = "Drive" if 0 <= since_arrival <= 2.0 else "Park"
    elif leg is not None:
        car.lever = "Reverse" if leg.reverse else "Drive"


def _drive(car: Car, t_s: float, dt: float, *, driving: bool) -> None:
    leg = car.leg_now
    wanted = 0.0
    if driving and leg is not None:
        if car.wait > 0:
            car.wait -= dt
            if car.wait <= 0:
                _enter_next_leg(car, t_s)
        else:
            wanted = _allowed_speed(car)
    if leg is not None and leg.hazard and not car.leg_m:
        car.emergency = True
    elif car.speed < 5.0:
        car.emergency = False
    wanted *= 1 + 0.015 * math.sin(t_s / 7) + 0.01 * math.sin(t_s / 2.3)  # Nobody drives a ruler.
    aim = max(-3.2, min(2.3 - 0.05 * car.speed, 1.6 * (wanted - car.speed)))
    if car.emergency:
        aim = -8.2
    # A driver's foot is not instant: 5 m/s^3 in traffic, 25 m/s^3 in fright.
    change = (25.0 if car.emergency else 5.0) * dt
    car.acceleration += max(-change, min(change, aim - car.acceleration))
    car.speed += car.acceleration * dt
    if car.speed <= 0.02 and wanted == 0.0:
        car.speed, car.acceleration = 0.0, 0.0
    car.speed = max(0.0, car.speed)
    moved = car.speed * dt
    car.odometer_m += moved
    car.trip_m += moved
    car.moving_s += dt if car.speed else 0.0
    _follow_road(car, leg, moved, t_s)


def _follow_road(car: Car, leg: Leg | None, moved: float, t_s: float) -> None:
    if leg is None:
        car.yaw_rate = 0.0
        return
    curvature = leg.curvature(car.leg_m)
    car.yaw_rate = curvature * car.speed
    car.heading_deg = (car.heading_deg - math.degrees(curvature * moved)) % 360.0
    ahead = -moved if leg.reverse else moved
    car.north_m += ahead * math.cos(math.radians(car.heading_deg))
    car.east_m += ahead * math.sin(math.radians(car.heading_deg))
    car.altitude += leg.climb_m * moved / leg.length_m
    car.leg_m += moved
    if car.leg_m < leg.length_m:
        stands_before_end = leg.length_m - car.leg_m < 0.6 and car.speed == 0.0
        if not stands_before_end:
            return
    if leg.wait_s and car.wait <= 0:
        car.wait = leg.wait_s
    elif not leg.wait_s:
        _enter_next_leg(car, t_s)


def _enter_next_leg(car: Car, t_s: float) -> None:
    car.leg += 1
    car.leg_m = 0.0
    car.wait = 0.0
    if car.leg_now is None:
        car.arrived_s = t_s


def _allowed_speed(car: Car) -> float:
    """Return the speed from which the car can still slow down for everything ahead."""
    leg = ROAD[car.leg]
    allowed = leg.limit
    ahead = leg.length_m - car.leg_m
    for index in range(car.leg, len(ROAD)):
        stops = ROAD[index].wait_s > 0 or index == len(ROAD) - 1
        then = 0.0 if stops else ROAD[index + 1].limit
        allowed = min(
            allowed,
            math.sqrt(then**2 + 2 * COMFORT_BRAKE * max(0.0, ahead - 0.3 - 0.4 * car.speed)),
        )
        if stops or ahead > 400:
            break
        ahead += ROAD[index + 1].length_m
    # Creeping up to the line: without it the last centimetres would take for ever.
    return max(allowed, 0.4)


def _turn_engine(car: Car, dt: float, noise: random.Random, *, started: bool) -> None:
    leg = car.leg_now
    slope = leg.climb_m / leg.length_m if leg else 0.0
    force = MASS_KG * (car.acceleration + GRAVITY * slope) if car.speed else 0.0
    force += 0.5 * AIR_KG_M3 * DRAG_AREA_M2 * car.speed**2
    force += MASS_KG * GRAVITY * ROLLING if car.speed else 0.0
    _shift(car)
    if not started:
        car.rpm = max(0.0, car.rpm - 900 * dt)
        car.accelerator = car.power = car.fuel_l_per_h = 0.0
        car.brake = 30.0 if car.lever != "Park" else 0.0
        return
    geared = 1000 * car.speed * 3.6 / KMH_PER_1000_RPM[max(0, abs(car.gear) - 1)]
    slipping = IDLE_RPM + (380 if force > 1200 and car.gear else 0)
    target = max(slipping, geared) if car.gear else IDLE_RPM
    car.rpm += (target - car.rpm) * min(1.0, dt / 0.25) + 6 * (noise.random() - 0.5)
    car.power = max(0.0, force * car.speed)
    available = POWER_W * min(1.0, max(0.12, car.rpm / 4800))
    pressing = force > 0 and car.speed > 0.1
    foot = 100 * (0.04 + 0.96 * car.power / available) if pressing else 0.0
    car.accelerator += (min(100.0, foot) - car.accelerator) * min(1.0, dt / 0.12)
    engine_brake = 350.0
    braking = max(0.0, -force - engine_brake) / (MASS_KG * 9.0) * 100
    holding = 18.0 if car.speed == 0.0 and car.lever != "Park" else 0.0
    car.brake += (min(100.0, max(braking, holding)) - car.brake) * min(1.0, dt / 0.1)
    overrun = force < 0 and car.rpm > 1150
    car.fuel_l_per_h = 0.0 if overrun else 0.75 + car.power / 1000 * 0.275
    car.fuel_l -= car.fuel_l_per_h * dt / 3600
    car.running_s += dt


def _shift(car: Car) -> None:
    kmh = car.speed * 3.6
    if car.lever == "Park":
        car.gear = 0
    elif car.lever == "Reverse":
        car.gear = -1
    else:
        car.gear = max(1, car.gear)
        # A pressed pedal holds the gear longer.
        later = 1 + 0.006 * car.accelerator
        if car.gear < len(KMH_PER_1000_RPM) and kmh > later * UPSHIFT_KMH[car.gear - 1]:
            car.gear += 1
        elif car.gear > 1 and kmh < UPSHIFT_KMH[car.gear - 2] - 7:
            car.gear -= 1


def _warm(car: Car, dt: float, *, started: bool) -> None:
    if started:
        heat = 0.10 + 0.5 * car.power / POWER_W
        car.coolant += (heat * 2.6 if car.coolant < 89 else 0.35 * (90 - car.coolant)) * dt
        car.oil += (car.coolant + 5 - car.oil) * dt / 210
        car.cabin += (21.5 - car.cabin) * dt / 150
    else:
        car.coolant -= 0.01 * dt
    car.tyre_c += (21 + 0.28 * car.speed * 3.6 - car.tyre_c) * dt / 240
