"""Frames through plan and pipeline, and messages of transport protocols put together."""

import math
import struct
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from agent.core.binding import bind
from agent.core.dbc import parse_dbc
from agent.core.isotp import IsoTpReassembly
from agent.core.j1939tp import J1939Reassembly
from agent.core.mapping import parse_mapping
from agent.core.model import CAN_EFF_FLAG, CAN_ERR_FLAG, CAN_RTR_FLAG, Frame
from agent.core.pipeline import Pipeline
from agent.core.plan import Plan, compile_plan
from tests import car
from tests.fuzz.target import ACCEPTED, Target, Verdict, insist

_T0_NS = 1_795_468_800 * 10**9
_RECORD = struct.Struct("<IBIB")  # ms since the last one, bus, canid_t, bytes
_RANGES = {
    **{f"uint{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
    **{f"int{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
}
_DBC = car.DBC.replace(
    b"VAL_ 400 Dr",
    b"""BO_ 291 MUX: 8 ECU
 SG_ M M : 0|8@1+ (1,0) [0|0] "" ECU
 SG_ Temp m1 : 8|16@0- (0.5,-3) [0|0] "degC" ECU
 SG_ F m3 : 32|32@1- (1,0) [0|0] "" ECU
BO_ 1280 WIDE: 64 ECU
 SG_ Fuel : 448|64@1- (1,0) [0|0] "%" ECU
BO_ 2364540158 EEC1: 8 ECU
 SG_ EngineSpeed : 24|16@1+ (0.125,0) [0|8031] "rpm" ECU
BO_ 2566844158 LONG: 20 ECU
 SG_ Pedal : 136|8@1+ (0.4,0) [0|100] "%" ECU
BO_ 2024 ANSWER: 30 ECU
 SG_ Coolant : 192|16@0+ (0.1,-40) [0|0] "celsius" ECU
SIG_VALTYPE_ 291 F : 1;
SIG_VALTYPE_ 1280 Fuel : 2;
BA_DEF_ BO_ "VFrameFormat" ENUM "StandardCAN","ExtendedCAN","reserved","J1939PG";
BA_DEF_DEF_ "VFrameFormat" "StandardCAN";
BA_ "VFrameFormat" BO_ 2364540158 3;
BA_ "VFrameFormat" BO_ 2566844158 3;
VAL_ 400 Dr""",
)
_MAPPING = (
    car.MAPPING
    + b"""
Vehicle.Exterior.AirTemperature:
  {type: sensor, datatype: float, dbc2vss: {signal: Temp, interval_ms: 0}}
Vehicle.Powertrain.FuelSystem.RelativeLevel:
  {type: sensor, datatype: uint8, dbc2vss: {signal: Fuel, interval_ms: 0, valid: [0, 90]}}
Vehicle.Powertrain.CombustionEngine.Speed:
  {type: sensor, datatype: uint16, dbc2vss: {signal: EngineSpeed, interval_ms: 0}}
Vehicle.Chassis.Accelerator.PedalPosition:
  {type: sensor, datatype: uint8, dbc2vss: {signal: Pedal, interval_ms: 0}}
Vehicle.Powertrain.CombustionEngine.ECT:
  {type: sensor, datatype: float, dbc2vss: {signal: Coolant, interval_ms: 0, transport: isotp}}
"""
)


@dataclass(frozen=True)
class _Case:
    plan: Plan
    allowed: dict[tuple[str, str], dict[str, Any]]
    ids: frozenset[int]


_CONSTRAINTS: tuple[dict[str, Any], ...] = (
    {},
    {"min_interval_s": 1},
    {"quantum": 5, "min_interval_s": 1},
    {"aggregate": {"window_s": 1, "fn": ["min", "max", "mean", "count", "last"]}},
    {
        "windows": [{"days": "1-7", "from": "00:00", "to": "00:00", "tz": "UTC"}],
        "min_interval_s": 2,
    },
    {"once": True},
)


@cache
def _cases() -> tuple[_Case, ...]:
    dbc = parse_dbc(_DBC, name="fuzz.dbc")
    mapping = parse_mapping(_MAPPING, name="fuzz.vspec")
    binding = bind(mapping, [dbc], car.catalogue(), bus=None, any_bus=True)
    by_scope: dict[str, list[str]] = {}
    for bound in binding.bound:
        by_scope.setdefault(bound.scope.name, []).append(bound.vss.path)
    scopes = list(by_scope)
    cases = []
    for number, constraints in enumerate(_CONSTRAINTS):
        classes = {name: car.catalogue().scopes[name].scope_class for name in scopes}
        given = {
            name: {} if classes[name] == "identity" else constraints
            for name in scopes
            if (number + len(name)) % 3 or number == 0
        }
        allowed = {}
        grants = {}
        for scope, wanted in given.items():
            grant_id = f"g-{scope}"
            grants[grant_id] = {scope: wanted}
            for path in by_scope[scope]:
                allowed[grant_id, path] = wanted
        policy = car.policy(grants)
        plan = compile_plan(policy, car.catalogue(), binding, now_ns=_T0_NS)
        ids = frozenset(bound.can_id for bound in binding.bound)
        cases.append(_Case(plan, allowed, ids))
    assert all(case.plan.takes for case in cases)
    return tuple(cases)


def _make(rng: Random) -> bytes:
    number = rng.randrange(len(_cases()))
    ids = sorted(_cases()[number].ids)
    made = bytearray([number])
    for _ in range(rng.randint(4, 20)):
        can_id = rng.choice(ids)
        data = rng.randbytes(rng.choice((8, 8, 8, 4, 64, rng.randrange(65))))
        if can_id == 2024 or rng.random() < 0.1:
            for frame in _isotp_frames(rng, rng.randbytes(rng.choice((5, 30, 40)))):
                made += _RECORD.pack(rng.randrange(50), 0, 2024, len(frame)) + frame
            continue
        if can_id == 2566844158:
            for part, frame in _bam_frames(rng, 0xFE00 | 0xF0, rng.randbytes(20)):
                made += _RECORD.pack(rng.randrange(50), 0, part, len(frame)) + frame
            continue
        if rng.random() < 0.15:
            can_id ^= rng.choice(
                (CAN_EFF_FLAG, CAN_RTR_FLAG, CAN_ERR_FLAG, 1, 1 << rng.randrange(29))
            )
        if rng.random() < 0.2:
            data = rng.choice((b"\xff", b"\x00", b"\x7f\xf0", b"\xfe", b"\x80")) * 32
            data = data[: rng.choice((8, 64, 7))]
        step_ms = rng.choice((0, 10, 100, 1000, 5000, 70_000))
        made += _RECORD.pack(step_ms, rng.randrange(2), can_id, len(data)) + data
    return bytes(made)


def _frames(data: bytes) -> list[Frame]:
    frames, at, t_ns = [], 1, _T0_NS
    while at + _RECORD.size <= len(data):
        step_ms, bus, can_id, length = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        t_ns += step_ms * 10**6
        frames.append((t_ns, f"can{bus}", can_id, data[at : at + min(length, 64)]))
        at += min(length, 64)
    return frames


def _judge(data: bytes) -> Verdict:
    case = _cases()[data[0] % len(_cases())]
    frames = _frames(data)
    counts: dict[tuple[str, str, str | None], int] = {}
    pipeline = Pipeline(case.plan)
    for start in range(0, len(frames), 3):  # In chunks, as a reader gives them.
        pipeline.feed(frames[start : start + 3])
    pipeline.stop()
    for batch in pipeline.drain():
        insist(batch.columns, "an empty batch")
        for column in batch.columns:
            _check_column(batch.grant_id, column, case, frames)
            key = (batch.grant_id, column.path, column.fn)
            counts[key] = counts.get(key, 0) + len(column.values)
    for (grant_id, path, _), count in counts.items():
        insist(not case.allowed[grant_id, path].get("once") or count == 1, "more than once")
    met = any(case.plan.taps(bus, can_id) for _, bus, can_id, _ in frames)
    return Verdict(met, ACCEPTED if counts else "no sample")


def _check_column(grant_id: str, column: Any, case: _Case, frames: list[Frame]) -> None:
    insist((grant_id, column.path) in case.allowed, "a path that is not granted")
    wanted = case.allowed[grant_id, column.path]
    found = car.catalogue().signal(column.path)
    assert found is not None
    datatype = {"mean": "double", "count": "uint64"}.get(column.fn or "", found[1].datatype)
    insist(column.datatype == datatype and column.scope == found[0].name, "another datatype")
    insist(len(column.times_ms) == len(column.values) > 0, "values without times")
    last_ms = frames[-1][0] // 10**6 if frames else 0
    insist(
        all(_T0_NS // 10**6 - 1000 <= t <= last_ms for t in column.times_ms), "a time that was not"
    )
    if "aggregate" in wanted:
        insist(all(t % 1000 == 0 for t in column.times_ms), "a window that begins elsewhere")
    else:
        least_ms = wanted.get("min_interval_s", 0) * 1000
        steps = (b - a for a, b in zip(column.times_ms, column.times_ms[1:], strict=False))
        insist(all(step >= least_ms for step in steps), "more often than granted")
    for value in column.values:
        _check_value(value, datatype)
        if datatype not in ("boolean", "string") and wanted.get("quantum") and column.fn is None:
            insist(math.isclose(value / 5, round(value / 5), abs_tol=1e-9), "off its quantum")
    if (
        found[0].scope_class == "location"
        and column.path.endswith("itude")
        and column.fn != "count"
    ):
        cells = (value / 0.01 - 0.5 for value in column.values)
        insist(all(abs(cell - round(cell)) < 1e-4 for cell in cells), "off its grid")
    if column.path.endswith("RelativeLevel") and column.fn != "count":
        insist(all(0 <= value <= 90 for value in column.values), "outside of valid")


def _check_value(value: Any, datatype: str) -> None:
    if datatype == "boolean":
        insist(type(value) is bool, "no boolean")
    elif datatype == "string":
        insist(type(value) is str, "no text")
    elif datatype in _RANGES:
        low, high = _RANGES[datatype]
        insist(type(value) is int and low <= value <= high, "outside its datatype")
    else:
        insist(type(value) is float and math.isfinite(value), "no finite number")


def _isotp_frames(rng: Random, message: bytes) -> list[bytes]:
    """Return a message in frames, some of which are lost, doubled, late or broken."""
    if len(message) < 8:
        frames = [bytes([len(message)]) + message]
    else:
        frames = [struct.pack(">H", 0x1000 | len(message)) + message[:6]]
        rest = message[6:]
        for number in range(-(-len(rest) // 7)):
            frames.append(bytes([0x20 | (number + 1) & 0xF]) + rest[7 * number : 7 * number + 7])
    return _disturbed(rng, frames)


def _bam_frames(rng: Random, pgn: int, message: bytes) -> list[tuple[int, bytes]]:
    source, to = 0x3E, 0xFF
    count = -(-len(message) // 7)
    control, data = (
        CAN_EFF_FLAG | 0x1CEC0000 | to << 8 | source,
        CAN_EFF_FLAG | 0x1CEB0000 | to << 8 | source,
    )
    head = struct.pack("<BHBB", 32, len(message), count, 0xFF) + pgn.to_bytes(3, "little")
    padded = message.ljust(7 * count, b"\xff")
    frames = [(control, head)]
    frames += [(data, bytes([n + 1]) + padded[7 * n : 7 * n + 7]) for n in range(count)]
    return _disturbed(rng, frames)


def _disturbed(rng: Random, frames: list[Any]) -> list[Any]:
    if rng.random() < 0.6:
        return frames
    at = rng.randrange(len(frames))
    match rng.randrange(4):
        case 0:
            del frames[at]
        case 1:
            frames.insert(at, frames[at])
        case 2:
            other = rng.randrange(len(frames))
            frames[at], frames[other] = frames[other], frames[at]
        case _:
            frame = frames[at]
            data = bytearray(frame[1] if isinstance(frame, tuple) else frame)
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            frames[at] = (frame[0], bytes(data)) if isinstance(frame, tuple) else bytes(data)
    return frames


_PGN = 0xFEF0


def _make_transport(rng: Random) -> bytes:
    made = bytearray([rng.randrange(256)])
    for _ in range(rng.randint(1, 4)):
        if rng.random() < 0.5:
            size = rng.choice((1, 7, 8, 20, 62, 63, 200, 4095, rng.randrange(1, 300)))
            parts = [(0x7E8, frame) for frame in _isotp_frames(rng, rng.randbytes(size))]
        else:
            size = rng.choice((9, 14, 15, 20, 100, 1785))
            pgn = _PGN if rng.random() < 0.9 else 0xFEE5
            parts = _bam_frames(rng, pgn, rng.randbytes(size))
        for can_id, frame in parts[:80]:
            made += _RECORD.pack(rng.choice((0, 1, 10, 50, 200)), 0, can_id, len(frame)) + frame
    return bytes(made)


def _judge_transport(data: bytes) -> Verdict:
    """Messages hold what their frames held, in order; a message needs each of its frames."""
    keep = data[0] + 1
    isotp = IsoTpReassembly(keep=keep, with_length=bool(data[0] & 1))
    j1939 = J1939Reassembly(lambda pgn, _: pgn == _PGN)
    naive = _Naive()
    given, has_frames = 0, False
    for t_ns, _, can_id, payload in _frames(data):
        if can_id == 0x7E8:
            message = isotp.feed(t_ns, payload)
            whole = naive.isotp(t_ns, payload)
            has_frames = has_frames or len(payload) > 0
            insist((message is None) == (whole is None), "a message that is none, or one is lost")
            if message is not None and whole is not None:
                told = bytes([len(whole) & 0xFF]) + whole if data[0] & 1 else whole
                insist(message == told[:keep], "other bytes than the frames held")
                given += 1
        elif can_id & CAN_EFF_FLAG:
            made = j1939.feed(t_ns, can_id, payload)
            whole = naive.j1939(can_id, payload)
            has_frames = True
            if made is not None:
                insist(
                    made[0] >> 8 & 0x3FFFF == _PGN and made[0] & 0xFF == can_id & 0xFF, "a group"
                )
                insist(9 <= len(made[1]) <= 1785 and made[1] == whole, "other bytes than were sent")
                given += 1
    return Verdict(has_frames, ACCEPTED if given else "no message")


class _Naive:
    """A plain reading of both protocols, frame by frame, for classic frames without addresses."""

    def __init__(self) -> None:
        self._message = b""
        self._length = self._next = self._last_ns = 0
        self._sent: dict[int, tuple[int, list[bytes]]] = {}

    def isotp(self, t_ns: int, data: bytes) -> bytes | None:
        if not data:
            return None
        kind, low = data[0] >> 4, data[0] & 15
        if kind == 0 and len(data) <= 8 and 0 < low < len(data):
            self._length = 0
            return data[1 : 1 + low]
        if kind == 0 and len(data) > 8 and data[0] == 0 and 0 < data[1] <= len(data) - 2:
            self._length = 0
            return data[2 : 2 + data[1]]
        if kind == 1:
            length, begin = (low << 8 | data[1] if len(data) > 1 else 0), 2
            if length == 0 and len(data) >= 6:
                length, begin = int.from_bytes(data[2:6], "big"), 6
                length = length if length > 4095 else 0
            single = 7 if len(data) <= 8 else len(data) - 2
            if len(data) >= 8 and length > single:
                self._length, self._message, self._next = length, data[begin:], 1
                self._chunk, self._last_ns = len(data) - 1, t_ns
        if kind == 2 and self._length:
            rest = self._length - len(self._message)
            part = data[1 : 1 + rest]
            late = t_ns - self._last_ns > 2 * 10**9
            if late or low != self._next or len(part) < min(rest, self._chunk):
                self._length = 0
                return None
            self._message += part
            self._next, self._last_ns = (low + 1) % 16, t_ns
            if len(self._message) == self._length:
                self._length = 0
                return self._message
        return None

    def j1939(self, can_id: int, data: bytes) -> bytes | None:
        """Return what was sent since the last announcement, each number once, cut to its size."""
        source = can_id & 0xFF
        if can_id >> 16 & 0xFF == 0xEC and len(data) == 8 and data[0] in (16, 32):
            self._sent[source] = (int.from_bytes(data[1:3], "little"), [])
        elif can_id >> 16 & 0xFF == 0xEB and source in self._sent and len(data) > 1:
            size, packets = self._sent[source]
            if data[0] == len(packets) + 1:
                packets.append(data[1:8])
            return b"".join(packets)[:size]
        return None


TARGETS = (
    Target("frame", _make, _judge, "the gate: a frame that the plan names", weight=1.0),
    Target(
        "ISO-TP, J1939-TP", _make_transport, _judge_transport, "a frame of the protocol", weight=1.0
    ),
)
