"""A mapping cannot give a strict signal a lax name, nor undo what a grant limits."""

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.binding import Binding, bind
from agent.core.dbc import parse_dbc
from agent.core.lineage import strictness
from agent.core.mapping import parse_mapping
from agent.core.model import NS_PER_S
from agent.core.pipeline import Pipeline
from agent.core.plan import compile_plan
from tests import car

LATITUDE = "Vehicle.CurrentLocation.Latitude"
METRES = "Vehicle.TraveledDistance"
DBC = b"""VERSION ""
BU_: ECU
BO_ 300 POSITION: 16 ECU
 SG_ Lat : 0|32@1- (1E-07,0) [0|0] "deg" ECU
 SG_ LatAgain : 0|32@1- (1E-07,0) [0|0] "deg" ECU
 SG_ LatHigh : 24|8@1- (1,0) [0|0] "" ECU
 SG_ LatBigEndian : 7|32@0- (1E-07,0) [0|0] "deg" ECU
 SG_ Beside : 32|8@1+ (1,0) [0|0] "" ECU
BO_ 301 PAGES: 8 ECU
 SG_ Page M : 0|8@1+ (1,0) [0|0] "" ECU
 SG_ LatPage m1 : 8|32@1- (1E-07,0) [0|0] "deg" ECU
 SG_ OdoPage m2 : 8|32@1+ (1,0) [0|0] "m" ECU
 SG_ AlsoPage m1 : 8|16@1+ (1,0) [0|0] "m" ECU
BO_ 302 LOCK: 8 ECU
 SG_ Vin : 0|8@1+ (1,0) [0|0] "" ECU
 SG_ Far : 8|32@1+ (1,0) [0|0] "m" ECU
VAL_ 302 Vin 1 "WTEST0000000000001" ;
"""


def bound(**signals: Any) -> Binding:
    """Bind paths; `__` stands for a dot, a value is a signal or the whole entry."""
    names = {"lat": LATITUDE, "metres": METRES, "vin": "Vehicle.VehicleIdentification.VIN"}
    names |= {"trip": "Vehicle.TripMeterReading", "fuel": "Vehicle.Powertrain.FuelSystem.Range"}
    lines = [
        f"{names[name]}: {{type: sensor, datatype: double, dbc2vss: {entry}}}"
        for name, entry in signals.items()
    ]
    mapping = parse_mapping("\n".join(lines).encode(), name="m.vspec")
    dbc = parse_dbc(DBC, name="x.dbc")
    return bind(mapping, [dbc], car.catalogue(), bus=None, any_bus=True)


@pytest.mark.parametrize(
    "signal",
    [
        "{signal: Lat}",
        "{signal: LatAgain}",
        "{signal: LatHigh}",
        "{signal: LatBigEndian}",
        '{signal: Lat, transform: {math: "floor(abs(x))"}}',
        "{signal: Beside, multiplexer: [{signal: Lat, value: 1}]}",
        "{signal: Beside, multiplexer: [{signal: LatHigh, value: 1}]}",
    ],
)
def test_a_signal_of_a_position_cannot_pass_for_a_distance(signal: str) -> None:
    """By its own name, by another that lies on its bits, by math, and by deciding what is there."""
    made = bound(lat="{signal: Lat}", metres=signal)

    assert [item.vss.path for item in made.bound] == [LATITUDE]
    assert "which also stands for Vehicle.CurrentLocation.Latitude" in made.disabled[METRES]
    assert "stricter class location" in made.disabled[METRES]
    assert any(METRES in warning for warning in made.warnings)


CARRIED = b"""VERSION ""
BU_: ECU
BO_ 2024 FRAME: 8 ECU
 SG_ Kind M : 4|4@1+ (1,0) [0|0] "" ECU
 SG_ Service m0M : 8|8@1+ (1,0) [0|0] "" ECU
 SG_ Speed m65 : 32|16@1+ (1,0) [0|0] "m" ECU
 SG_ VinService m73 : 32|16@1+ (1,0) [0|0] "m" ECU
 SG_ Later m2 : 8|16@1+ (1,0) [0|0] "m" ECU
 SG_ Always : 8|16@1+ (1,0) [0|0] "m" ECU
BO_ 2025 BYTEWISE: 8 ECU
 SG_ Length M : 0|8@1+ (1,0) [0|0] "" ECU
 SG_ Short m6 : 8|16@1+ (1,0) [0|0] "m" ECU
 SG_ First m16 : 8|16@1+ (1,0) [0|0] "m" ECU
BO_ 2566843646 VI: 200 ECU
 SG_ Vin2 : 0|1600@1+ (1,0) [0|0] "" ECU
BO_ 2565603070 PACKET: 8 ECU
 SG_ Part : 8|16@1+ (1,0) [0|0] "m" ECU
SG_MUL_VAL_ 2024 Service Kind 0-0;
SG_MUL_VAL_ 2024 Speed Service 65-65;
SG_MUL_VAL_ 2024 VinService Service 73-73;
SG_MUL_VAL_ 2024 Later Kind 2-2;
BA_DEF_ BO_ "VFrameFormat" ENUM "StandardCAN","ExtendedCAN","reserved","J1939PG";
BA_DEF_DEF_ "VFrameFormat" "StandardCAN";
BA_ "VFrameFormat" BO_ 2566843646 3;
BA_ "VFrameFormat" BO_ 2565603070 3;
"""
ANSWER = b"""VERSION ""
BU_: ECU
BO_ 2024 ANSWER: 20 ECU
 SG_ Sid M : 0|8@1+ (1,0) [0|0] "" ECU
 SG_ Vin m73 : 24|136@1+ (1,0) [0|0] "" ECU
 SG_ Digits m73 : 24|16@1+ (1,0) [0|0] "m" ECU
 SG_ Other m98 : 24|16@1+ (1,0) [0|0] "m" ECU
BO_ 2025 ANSWER2: 20 ECU
 SG_ Vin3 : 24|136@1+ (1,0) [0|0] "" ECU
"""
VIN_PATH = "Vehicle.VehicleIdentification.VIN"


@pytest.mark.parametrize(
    ("vin", "metres", "is_taken"),
    [
        ("ANSWER.Vin, transport: isotp", "Speed", True),  # Another service, in a single frame.
        ("ANSWER.Vin, transport: isotp", "VinService", False),
        ("ANSWER.Vin, transport: isotp", "Later", False),  # A part of the answer.
        ("ANSWER.Vin, transport: isotp", "Always", False),
        ("ANSWER.Vin, transport: isotp", "Digits, transport: isotp", False),
        ("ANSWER.Vin, transport: isotp", "Other, transport: isotp", True),
        ("ANSWER2.Vin3, transport: isotp", "Short", True),  # Bytes 1 and 2; the VIN's are from 4.
        ("ANSWER2.Vin3, transport: isotp", "First", False),
        ("VI.Vin2", "PACKET.Part", False),
    ],
)
def test_what_carries_a_vin_in_several_frames_gives_nothing_of_it(
    vin: str,
    metres: str,
    is_taken: bool,  # noqa: FBT001 - pytest's call
) -> None:
    """Also not the frames: a single one is compared in its own place, a part counts as all."""
    text = f"{VIN_PATH}: {{type: sensor, dbc: {{signal: {vin}, text: vin}}}}\n"
    text += f"{METRES}: {{type: sensor, dbc: {{signal: {metres}}}}}"
    dbcs = [parse_dbc(data, name="x.dbc") for data in (CARRIED, ANSWER)]
    made = bind(
        parse_mapping(text.encode(), name="m"), dbcs, car.catalogue(), bus=None, any_bus=True
    )

    assert {item.vss.path for item in made.bound} == {VIN_PATH, *([METRES] if is_taken else [])}
    assert is_taken or "stricter class identity" in made.disabled[METRES]


@pytest.mark.parametrize(
    ("position", "distance"),
    [
        ("{signal: Lat}", "{signal: Beside}"),
        ("{signal: LatPage}", "{signal: OdoPage}"),  # Never in the same frame.
        ("{signal: LatPage}", "{signal: LOCK.Far}"),
        ("{signal: LatPage}", "{signal: Beside}"),
    ],
)
def test_what_only_lies_near_a_position_is_taken(position: str, distance: str) -> None:
    made = bound(lat=position, metres=distance)

    assert {item.vss.path for item in made.bound} == {LATITUDE, METRES}


def test_signals_of_one_page_that_share_bits_are_the_same() -> None:
    made = bound(lat="{signal: LatPage}", metres="{signal: AlsoPage}")

    assert [item.vss.path for item in made.bound] == [LATITUDE]


def test_an_identity_does_not_decide_what_is_there() -> None:
    made = bound(
        vin="{signal: Vin}", metres="{signal: Far, multiplexer: [{signal: Vin, value: 1}]}"
    )

    assert METRES in made.disabled


def test_paths_of_classes_that_limit_alike_may_share_a_signal() -> None:
    made = bound(metres="{signal: Far}", trip="{signal: Far}", fuel="{signal: Far}")

    assert len(made.bound) == 3


def test_a_lax_grant_gives_nothing_of_a_position_under_another_name() -> None:
    policy = car.policy({"g": {"read_odometer": {"min_interval_s": 0}}})
    made = bound(lat="{signal: Lat}", metres="{signal: LatAgain, interval_ms: 0}")

    plan = compile_plan(policy, car.catalogue(), made, now_ns=0)

    assert (plan.takes, dict(plan.exact)) == ((), {})
    assert any(item.path == METRES and "stricter" in item.reason for item in plan.skipped)


def test_classes_are_ordered_by_what_they_limit() -> None:
    classes = car.catalogue().classes
    ordered = sorted(classes, key=lambda name: strictness(classes[name]))

    assert set(ordered[:3]) == {"static", "usage", "condition"}
    assert ordered[3:] == ["driver_behaviour", "cabin", "location", "identity", "biometric"]


ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "interval_ms": st.sampled_from([0, 1, 700, 5000]),
        "on_change": st.booleans(),
        "transform": st.sampled_from(
            [{"math": "x"}, {"math": "x*1.7+0.013"}, {"math": "x*0"}, {"math": "floor(x)/7"}]
        ),
        "valid": st.sampled_from([[-1e9, 1e9], [-20, 20]]),
    },
)


@settings(max_examples=100, deadline=None)
@given(
    entry=ENTRIES,
    moves=st.lists(
        st.tuples(st.integers(0, 3000), st.integers(-(10**9), 10**9)), min_size=1, max_size=40
    ),
)
def test_no_mapping_undoes_interval_grid_quantum_or_window(
    entry: dict[str, Any], moves: list[tuple[int, int]]
) -> None:
    """Whatever its interval, math, `on_change` and range: what leaves keeps to the grant."""
    mapping = f"""
{LATITUDE}: {{type: sensor, datatype: double, dbc2vss: {_text("Lat", entry)}}}
Vehicle.Speed: {{type: sensor, datatype: float, dbc2vss: {_text("Speed", entry)}}}
"""
    binding = car.binding(mapping.encode())
    policy = car.policy(
        {
            "plain": {"read_location": {"min_interval_s": 2, "grid_deg": 0.25}},
            "steps": {"read_speedometer": {"min_interval_s": 1, "quantum": 2.5}},
            "once": {"read_speedometer": {"once": True}},
            "windows": {
                "read_location": {"aggregate": {"window_s": 3, "fn": ["max", "mean", "last"]}}
            },
        }
    )
    taken: list[tuple[str, str | None, int, Any]] = []
    pipeline = Pipeline(
        compile_plan(policy, car.catalogue(), binding, now_ns=0),
        on_sample=lambda take, t_ns, value: taken.append((take.grant_id, take.fn, t_ns, value)),
    )
    t_ms = 0
    for step_ms, raw in moves:
        t_ms += step_ms
        pipeline.feed([car.position(t_ms, raw / 1e7, 0), car.speed(t_ms, abs(raw) % 600)])
    pipeline.tick((t_ms + 10_000) * 1_000_000)
    pipeline.stop()

    def rows(grant: str, fn: str | None = None) -> list[tuple[int, Any]]:
        return [(t, v) for g, f, t, v in taken if (g, f) == (grant, fn)]

    for grant, interval_s in (("plain", 2), ("steps", 1)):
        times = [t_ns for t_ns, _ in rows(grant)]
        assert all(b - a >= interval_s * NS_PER_S for a, b in pairwise(times))
    assert len(rows("once")) <= 1
    assert all(value / 2.5 == round(value / 2.5) for _, value in rows("steps"))
    assert all(_is_centre(value, 0.25) for _, value in rows("plain"))
    for fn in ("max", "mean", "last"):
        starts = [t_ns for t_ns, _ in rows("windows", fn)]
        assert starts == sorted(set(starts))
        assert all(start % (3 * NS_PER_S) == 0 for start in starts)
        assert all(_is_centre(value, 0.01) for _, value in rows("windows", fn))


def _text(signal: str, entry: dict[str, Any]) -> str:
    parts = [f"signal: {signal}"]
    for name, value in entry.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        parts.append(f"{name}: {text}")
    return "{" + ", ".join(parts) + "}"


def _is_centre(value: float, grid_deg: float) -> bool:
    return value == round((math.floor(value / grid_deg) + 0.5) * grid_deg, 7)
