"""Conversion between units of one quantity.

Rules:
 * A unit is known under the name that VSS gives it and under the spellings that DBC files use.
 * Units of one quantity convert linearly: value * factor + offset. Nothing else converts, and
   nothing is guessed: an unknown name converts only to the very same name.
 * Factors are exact by definition (SI brochure, 9th edition; the others NIST SP 811 appendix B).
"""

from dataclasses import dataclass

_ONE_MILE_M = 1609.344
_ONE_PSI_PA = 6894.757293168361  # lbf/in^2 with g_n = 9.80665 m/s^2 and 0.45359237 kg/lb
_ONE_DEGREE_RAD = 0.017453292519943295

# quantity -> {name: (factor, offset)} to the quantity's first unit.
_QUANTITIES: dict[str, dict[str, tuple[float, float]]] = {
    "length": {
        "m": (1, 0), "km": (1000, 0), "mm": (0.001, 0), "cm": (0.01, 0), "inch": (0.0254, 0),
        "ft": (0.3048, 0), "mile": (_ONE_MILE_M, 0),
    },
    "speed": {
        "km/h": (1, 0), "m/s": (3.6, 0), "cm/s": (0.036, 0), "mph": (1.609344, 0),
        "kn": (1.852, 0),
    },
    "temperature": {
        "Celsius": (1, 0), "K": (1, -273.15), "Fahrenheit": (5 / 9, -160 / 9),
    },
    "pressure": {
        "kPa": (1, 0), "Pa": (0.001, 0), "hPa": (0.1, 0), "mbar": (0.1, 0), "bar": (100, 0),
        "MPa": (1000, 0), "psi": (_ONE_PSI_PA / 1000, 0),
    },
    "voltage": {"V": (1, 0), "mV": (0.001, 0), "kV": (1000, 0)},
    "current": {"A": (1, 0), "mA": (0.001, 0), "kA": (1000, 0)},
    "power": {"W": (1, 0), "mW": (0.001, 0), "kW": (1000, 0), "MW": (1e6, 0), "PS": (735.49875, 0),
        "hp": (745.69987158227022, 0),
    },
    "energy": {
        "kWh": (1, 0), "Wh": (0.001, 0), "MWh": (1000, 0), "J": (1 / 3.6e6, 0),
        "kJ": (1 / 3600, 0), "MJ": (1 / 3.6, 0),
    },
    "time": {
        "s": (1, 0), "ms": (0.001, 0), "us": (1e-6, 0), "min": (60, 0), "h": (3600, 0),
        "day": (86400, 0), "weeks": (604800, 0),
    },
    "angle": {"degrees": (1, 0), "rad": (1 / _ONE_DEGREE_RAD, 0)},
    "angular velocity": {"degrees/s": (1, 0), "rad/s": (1 / _ONE_DEGREE_RAD, 0)},
    "rotation": {"rpm": (1, 0), "Hz": (60, 0)},
    "volume": {
        "l": (1, 0), "ml": (0.001, 0), "cm^3": (0.001, 0), "m^3": (1000, 0),
        "gal": (3.785411784, 0),
    },
    "acceleration": {"m/s^2": (1, 0), "cm/s^2": (0.01, 0), "g_n": (9.80665, 0)},
    "share": {"percent": (1, 0), "ratio": (100, 0)},
    "rate of beats": {"bpm": (1, 0), "cpm": (1, 0)},
    "consumption": {"l/100km": (1, 0), "ml/100km": (0.001, 0)},
}  # fmt: skip

# Other spellings of the same unit; the key is lower case unless case tells units apart.
_SPELLINGS = {
    "celsius": "Celsius", "degc": "Celsius", "°c": "Celsius", "deg c": "Celsius", "c": "Celsius",
    "deg_c": "Celsius", "degreesc": "Celsius", "degrees c": "Celsius", "degree c": "Celsius",
    "celcius": "Celsius", "degreesf": "Fahrenheit", "kilopascal": "kPa", "kilopascals": "kPa",
    "kpa": "kPa", "pascal": "Pa", "mbar (abs)": "mbar", "percent": "percent",
    "kelvin": "K", "degk": "K",
    "fahrenheit": "Fahrenheit", "degf": "Fahrenheit",
    "°f": "Fahrenheit", "deg f": "Fahrenheit", "f": "Fahrenheit",
    "kph": "km/h", "kmh": "km/h", "km/hr": "km/h", "kmph": "km/h", "mps": "m/s", "mi/h": "mph",
    "knots": "kn", "knot": "kn", "kt": "kn",
    "meter": "m", "meters": "m", "metre": "m", "metres": "m", "kilometer": "km", "kilometers": "km",
    "mi": "mile", "miles": "mile", "in": "inch", "inches": "inch", "feet": "ft",
    "%": "percent", "pct": "percent",
    "°": "degrees", "deg": "degrees", "degree": "degrees", "degre": "degrees",
    "deg/s": "degrees/s", "degree/s": "degrees/s", "°/s": "degrees/s", "deg/sec": "degrees/s",
    "radians": "rad", "radian": "rad", "radian/s": "rad/s",
    "1/min": "rpm", "u/min": "rpm", "min-1": "rpm", "r/min": "rpm", "rev/min": "rpm",
    "volt": "V", "volts": "V", "amp": "A", "amps": "A", "ampere": "A",
    "watt": "W", "watts": "W", "hp (metric)": "PS",
    "sec": "s", "second": "s", "seconds": "s", "msec": "ms", "minute": "min", "minutes": "min",
    "hr": "h", "hrs": "h", "hour": "h", "hours": "h", "days": "day", "µs": "us",
    "liter": "l", "liters": "l", "litre": "l", "litres": "l", "ltr": "l", "gallon": "gal",
    "m/s²": "m/s^2", "m/s2": "m/s^2", "m/sec^2": "m/s^2", "m/s/s": "m/s^2",
}  # fmt: skip

_CANONICAL = {name: (quantity, name) for quantity, names in _QUANTITIES.items() for name in names}
_AMBIGUOUS = {"mw", "mpa"}  # mW and MW; MPa is not mPa.
_ANY_CASE = {
    name.lower(): found for name, found in _CANONICAL.items() if name.lower() not in _AMBIGUOUS
}


@dataclass(frozen=True, slots=True)
class Conversion:
    """A linear conversion: value * factor + offset.

    Attributes:
        factor: An int where it is whole, so that integers stay integers.
        offset: As `factor`.
    """

    factor: int | float
    offset: int | float

    @property
    def is_identity(self) -> bool:
        """Whether the value stays as it is."""
        return self.factor == 1 and self.offset == 0


IDENTITY = Conversion(1, 0)


def conversion(source: str, target: str) -> Conversion | None:
    """Return how a value in `source` becomes one in `target`, or None where it cannot."""
    if source == target:
        return IDENTITY
    from_unit, to_unit = _lookup(source), _lookup(target)
    if from_unit is None or to_unit is None or from_unit[0] != to_unit[0]:
        return None
    names = _QUANTITIES[from_unit[0]]
    factor_in, offset_in = names[from_unit[1]]
    factor_out, offset_out = names[to_unit[1]]
    # Dividing by a factor below one is exact more often than multiplying by its inverse (1/0.001).
    return Conversion(_whole(factor_in / factor_out), _whole((offset_in - offset_out) / factor_out))


def same_unit(one: str, other: str) -> bool:
    """Tell whether two spellings name one unit."""
    if one == other:
        return True
    found = _lookup(one)
    return found is not None and found == _lookup(other)


def _lookup(name: str) -> tuple[str, str] | None:
    stripped = name.strip()
    if stripped in _CANONICAL:
        return _CANONICAL[stripped]
    lower = stripped.lower()
    return _CANONICAL.get(_SPELLINGS.get(lower, "")) or _ANY_CASE.get(lower)


def _whole(number: float) -> int | float:
    return int(number) if float(number).is_integer() else number
