"""The installer's files: mappings in YAML and JSON, and DBC files."""

import json
import math
import re
import struct
from random import Random
from typing import Any

from agent.core.binding import bind
from agent.core.dbc import Message, parse_dbc
from agent.core.decode import Field, compile_extract, field_of
from agent.core.mapping import parse_mapping
from agent.errors import DbcError, MappingError
from tests import car
from tests.fuzz.mutate import SCALARS, copied, mutate_tree, nudged_text, spoiled, times
from tests.fuzz.target import ACCEPTED, Target, Verdict, insist

_LEAVES: dict[str, Any] = {
    "Vehicle.Speed": {
        **{"type": "sensor", "datatype": "float", "unit": "km/h"},
        "dbc2vss": {
            "signal": "SPEED.Speed",
            "interval_ms": 100,
            "transform": {"math": "floor(abs(x/5))"},
        },
    },
    "Vehicle.TraveledDistance": {
        "type": "sensor",
        "dbc": {"signal": "Odometer", "valid": [0, 1e6]},
    },
    "Vehicle.Cabin.Door.Row1.DriverSide.IsOpen": {
        "type": "sensor",
        "dbc2vss": {
            **{"signal": "DriverDoor", "on_change": True, "bus": "body", "source": 23},
            "transform": {"mapping": [{"from": "Open", "to": True}, {"from": 0, "to": False}]},
            "multiplexer": [{"signal": "Vin", "value": 1}],
        },
    },
    "Vehicle.CurrentLocation.Latitude": {
        "type": "sensor",
        "dbc2vss": {"signal": "Lat", "transport": "isotp", "address": 241},
    },
    "Vehicle.VehicleIdentification.VIN": {
        "type": "attribute",
        "dbc2vss": {"signal": "Odometer", "text": "vin"},
    },
}
_NAMES = (
    *(
        "dbc2vss",
        "dbc",
        "signal",
        "interval_ms",
        "on_change",
        "transform",
        "math",
        "mapping",
        "bus",
    ),
    *("source", "valid", "transport", "address", "multiplexer", "unit", "type", "children", "from"),
    "text",
    *("to", "value", "Vehicle.Speed", "Vehicle.CurrentLocation.Longitude", "Vehicle"),
)
_POOL = (
    *(
        "Speed",
        "SPEED.Speed",
        "Lon",
        "nobody",
        "isotp",
        "isotp-length",
        "vin",
        "ascii",
        "m/s",
        "mi",
        "celsius",
    ),
    *(
        "x/0",
        "x*x*x",
        "9^9^9^9",
        "sqrt(x)",
        "(" * 90 + "x" + ")" * 90,
        "x.y",
        "log(x)",
        "-" * 400 + "x",
    ),
    *("exp(x)", "pow(x, 99)", "x % 0", "min(x)", "max(x, 1, 2)", "round(x*1e308)", "floor(1e999)"),
    *(10**12, 10**12 + 1, 253, 254, 255, 256, [1, 0], [0, 250], [0.0, math.inf], [1e299, 1e301]),
    *({"math": "x"}, {"mapping": []}, {"mapping": [{"from": 1, "to": 2}]}, *SCALARS),
)
_YAML = (
    *(
        b"&a",
        b"*a",
        b"<<: ",
        b"!!python/object:os.system",
        b"!!int ",
        b"? ",
        b": ",
        b"- ",
        b"--- ",
        b"%",
    ),
    *(
        b"\n",
        b"  ",
        b"\t",
        b"#",
        b"|",
        b">",
        b"{",
        b"}",
        b"[",
        b"]",
        b"yes",
        b"1_000",
        b"0x1f",
        b"0o7",
    ),
    *(b"1:30", b".inf", b".nan", b"~", b"2020-01-01", b"'", b'"', b"\xff", b"\\x"),
)


def _make_mapping(rng: Random) -> bytes:
    names = rng.sample(tuple(_LEAVES), rng.choice((1, 1, 2)))
    tree = {name: copied(_LEAVES[name]) for name in names}
    for _ in range(times(rng)):
        mutate_tree(rng, tree, _POOL, _NAMES)
    if rng.random() < 0.75:
        data = json.dumps(tree).encode("utf-8", "surrogatepass")
    else:
        lines = [f"{name}: {json.dumps(leaf)}" for name, leaf in tree.items()]
        data = "\n".join(lines).encode("utf-8", "surrogatepass")
        if rng.random() < 0.4:
            data = spoiled(rng, data, _YAML)
    return spoiled(rng, data) if rng.random() < 0.05 else data


def _judge_mapping(data: bytes) -> Verdict:
    try:
        mapping = parse_mapping(data, name="x.vspec")
    except MappingError as exc:
        first = ("not JSON", "not YAML", "not UTF-8", "holds no mapping")
        return Verdict(not any(word in exc.message for word in first), "mapping")
    paths = [entry.path for entry in mapping.entries]
    insist(len(set(paths)) == len(paths), "a path twice")
    for entry in mapping.entries:
        insist(entry.interval_ns >= 0 and entry.signal, "an interval, or no signal")
        insist(entry.source is None or 0 <= entry.source <= 253, "a source address")
        insist(entry.valid is None or -1e300 < entry.valid[0] <= entry.valid[1] < 1e300, "valid")
        insist(entry.isotp is None or entry.isotp.address in (None, *range(256)), "an address")
        insist(entry.text is None or (entry.math, entry.choices) == (None, None), "a text")
        for x in (0, 1, -7, 2**64, 0.5, 1e300) if entry.math is not None else ():
            assert entry.math is not None
            value = entry.math(x)
            insist(value is None or (type(value) in (int, float) and math.isfinite(value)), "math")
    if data.lstrip().startswith(b"{"):
        _compare_mapping(json.loads(data.decode("utf-8-sig")), mapping.entries)
    bound = bind(mapping, [car.dbc()], car.catalogue(), bus=None, any_bus=True)
    for one in bound.bound:
        insist(one.scope.name and one.vss.path in paths, "a path that the file has not")
        insist(car.catalogue().signal(one.vss.path) is not None, "a path outside the catalogue")
        name = one.entry.signal.rpartition(".")[2]
        insist(one.field.name == name, "another signal than is named")
    return Verdict(True, ACCEPTED)


def _compare_mapping(tree: dict[str, Any], entries: Any) -> None:
    """Hold entries against JSON that is flat, as a second reading of it."""
    for entry in entries:
        leaf = tree.get(entry.path)
        if not isinstance(leaf, dict):
            continue  # Of a tree with `children`.
        said = leaf["dbc2vss"] if leaf.get("dbc2vss") is not None else leaf["dbc"]
        default = 0 if said.get("on_change") is True else 1000
        interval = said.get("interval_ms")
        interval = default if interval is None else interval
        insist(entry.interval_ns == interval * 10**6 and type(interval) is int, "another interval")
        insist(entry.signal == said["signal"] and entry.bus == said.get("bus"), "another signal")
        insist(entry.on_change is bool(said.get("on_change")), "on_change")
        insist(entry.source == said.get("source"), "another source")


_DBC = (
    car.DBC,
    b"""VERSION ""
BO_ 2364540158 EEC1: 8 Vector__XXX
 SG_ EngineSpeed : 24|16@1+ (0.125,0) [0|8031.875] "rpm" Vector__XXX
 SG_ Torque : 16|8@1+ (1,-125) [-125|125] "%" Vector__XXX
BO_ 291 MUX: 8 ECU
 SG_ M M : 0|8@1+ (1,0) [0|0] "" ECU
 SG_ A m0 : 8|16@1- (0.5,-3) [0|0] "V" ECU
 SG_ B m1M : 15|12@0+ (1,0) [0|0] "" ECU
 SG_ F m3 : 32|32@1- (1,0) [0|0] "" ECU
SIG_VALTYPE_ 291 F : 1;
SG_MUL_VAL_ 291 A M 0-2, 7-7;
BA_DEF_ BO_ "VFrameFormat" ENUM "StandardCAN","ExtendedCAN","reserved","J1939PG";
BA_DEF_DEF_ "VFrameFormat" "StandardCAN";
BA_ "VFrameFormat" BO_ 2364540158 3;
VAL_ 291 M 0 "zero" 1 "one" -1 "less" ;
CM_ SG_ 291 A "a comment; with a semicolon";
""",
    b"""BO_ 1 FD: 64 X
 SG_ Wide : 0|64@1- (1,0) [0|0] "" X
 SG_ Far : 500|12@1+ (2,1) [0|0] "" X
 SG_ Big : 7|64@0+ (1e-3,0) [0|0] "" X
 SG_ D : 128|64@1- (1,0) [0|0] "" X
SIG_VALTYPE_ 1 D : 2;
""",
)
_DBC_PIECES = (
    *(
        b"BO_ ",
        b" SG_ ",
        b"VAL_ ",
        b"SG_MUL_VAL_ ",
        b"SIG_VALTYPE_ ",
        b"BA_ ",
        b"CM_ ",
        b"BU_:",
        b"EV_ ",
    ),
    *(
        b"VERSION ",
        b'"',
        b";",
        b":",
        b"|",
        b"@0-",
        b"@1+",
        b"(1,0)",
        b"[0|0]",
        b" M ",
        b" m0M ",
        b"m",
    ),
    *(
        b"-",
        b"1e400",
        b"0x10",
        b"4294967295",
        b"3221225472",
        b"2147483648",
        b"64",
        b"63",
        b"0",
        b"//",
    ),
    *(b"\r\n", b"\n\n", b"\x00", b"\xe4", b"\\", b'\\"', b"9" * 30, b"NS_ :\n", b"FILTER"),
)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
_NUMBERS = (
    b"0",
    b"1",
    b"7",
    b"8",
    b"12",
    b"16",
    b"31",
    b"32",
    b"63",
    b"64",
    b"65",
    b"512",
    b"4095",
    b"1785",
    b"-1",
    b"0.5",
    b"1e-7",
    b"2.5",
    b"291",
    b"1",
    b"2047",
    b"2048",
    b"2147483939",
    b"99999",
)


def _make_dbc(rng: Random) -> bytes:
    data = rng.choice(_DBC)
    for _ in range(times(rng, 8)):
        what = rng.randrange(10)
        if what < 5:
            found = rng.choice(list(_NUMBER.finditer(data)) or [None])
            if found is not None:
                data = data[: found.start()] + rng.choice(_NUMBERS) + data[found.end() :]
        elif what < 8:
            lines = data.split(b"\n")
            at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
            change = rng.randrange(4)
            if change == 0:
                lines.insert(other, lines[at])
            elif change == 1:
                lines[at], lines[other] = lines[other], lines[at]
            elif change == 2:
                del lines[at]
            else:
                lines[at] = nudged_text(rng, lines[at].decode("latin-1")).encode("utf-8")
            data = b"\n".join(lines)
        else:
            data = spoiled(rng, data, _DBC_PIECES)
    return data


def _judge_dbc(data: bytes) -> Verdict:
    try:
        file = parse_dbc(data, name="x.dbc")
    except DbcError as exc:
        first = ("cannot be read", "no DBC entry", "empty", "no message", "belongs to no message")
        return Verdict(not any(word in exc.message for word in first), "dbc")
    list(file.told())
    for message in file.messages:
        insist(
            0 <= message.frame_id <= (0x1FFF_FFFF if message.is_extended_frame else 0xFFFF_FFFF),
            "id",
        )
        names = [signal.name for signal in message.signals]
        insist(len(set(names)) == len(names), "one name for two layouts")
        _check_message(message, data)
    return Verdict(any(message.signals for message in file.messages), ACCEPTED)


def _check_message(message: Message, data: bytes) -> None:
    """Hold what is extracted of some payloads against bits that are counted one by one."""
    fields = [field_of(message, name.name) for name in message.signals][:6]
    if not fields:
        return
    extract = compile_extract(tuple(fields))
    rng = Random(len(data))
    for length in (rng.randrange(65), 8, 64):
        payload = rng.randbytes(length)
        for field, raw in zip(fields, extract(payload), strict=True):
            expected = _raw(field, payload)
            same = raw == expected or (raw != raw and expected != expected)  # noqa: PLR0124 - NaN
            insist(same and type(raw) is type(expected), "another value than the bits say")


def _raw(field: Field, payload: bytes) -> int | float | None:
    if field.mux is not None:
        chosen = _raw(field.mux.selector, payload)
        if chosen is None or not any(low <= chosen <= high for low, high in field.mux.ids):
            return None
    positions = []
    at = field.start
    for _ in range(field.length):
        positions.append(at)
        if field.byte_order == "little_endian":
            at += 1
        else:
            at = at - 1 if at % 8 else at + 15
    if max(positions) // 8 >= len(payload):
        return None
    bits = [payload[at // 8] >> at % 8 & 1 for at in positions]
    if field.byte_order == "little_endian":
        bits.reverse()
    word = int("".join(map(str, bits)), 2)
    if field.is_float:
        code, whole = {16: ("e", "H"), 32: ("f", "I"), 64: ("d", "Q")}[field.length]
        value: float = struct.unpack(f">{code}", struct.pack(f">{whole}", word))[0]
        return value
    return word - (1 << field.length) if field.is_signed and bits[0] else word


TARGETS = (
    Target("mapping", _make_mapping, _judge_mapping, "YAML or JSON", weight=1.03, least_past=0.75),
    Target("DBC", _make_dbc, _judge_dbc, "statements", weight=1.35, least_past=0.55),
)
