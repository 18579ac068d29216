"""A policy compiled: who gets what from which frames, and until when."""

from typing import Any

import pytest

from agent.core.binding import bind
from agent.core.dbc import parse_dbc
from agent.core.mapping import parse_mapping
from agent.core.model import NS_PER_S, Frame
from agent.core.pipeline import Pipeline
from agent.core.plan import Plan, compile_plan, empty_plan, pgn_of
from agent.core.policy import Policy
from tests import car

J1939 = b"""VERSION ""
BU_: E
BO_ 2364540158 EEC1: 8 E
 SG_ EngineSpeed : 24|16@1+ (0.125,0) [0|8031.875] "rpm" E
BO_ 2566834942 PDU1: 8 E
 SG_ Odo : 0|32@1+ (1,0) [0|0] "m" E
BA_DEF_ BO_ "VFrameFormat" ENUM "StandardCAN","ExtendedCAN","reserved","J1939PG";
BA_DEF_DEF_ "VFrameFormat" "J1939PG";
"""
RPM = (
    "Vehicle.Powertrain.CombustionEngine.Speed: {{type: sensor, dbc: {{signal: EngineSpeed, {}}}}}"
)


def plan(policy: Policy | None, now_s: int = 0) -> Plan:
    return compile_plan(policy, car.catalogue(), car.binding(), now_ns=now_s * NS_PER_S)


def truck(leaf: str) -> Pipeline:
    text = RPM.format(leaf) + (
        "\nVehicle.TraveledDistance: {type: sensor, dbc: {signal: Odo, interval_ms: 0}}"
    )
    binding = bind(
        parse_mapping(text.encode(), name="m"),
        [parse_dbc(J1939, name="j1939.dbc")],
        car.catalogue(),
        bus=None,
        any_bus=True,
    )
    policy = car.policy(
        {"g": {"read_powertrain": {"min_interval_s": 0.1}, "read_odometer": {"min_interval_s": 0}}}
    )
    return Pipeline(compile_plan(policy, car.catalogue(), binding, now_ns=0))


def taken(pipeline: Pipeline, frames: list[Frame]) -> list[int]:
    pipeline.feed(frames)
    pipeline.stop()
    return [t for batch in pipeline.drain() for column in batch.columns for t in column.times_ms]


def eec1(t_ms: int, source: int, priority: int = 3, raw: int = 6400) -> Frame:
    can_id = 0x8000_0000 | priority << 26 | 0xF004 << 8 | source
    return t_ms * 10**6, "can0", can_id, bytes(3) + raw.to_bytes(2, "little") + bytes(3)


def test_no_policy_is_the_empty_plan() -> None:
    assert plan(None) == empty_plan()
    assert plan(None).taps("can0", car.SPEED_ID) == ()


def test_a_plan_holds_until_the_next_grant_begins_or_ends() -> None:
    policy = car.policy(
        {"a": {"read_odometer": {}}, "b": {"read_odometer": {}}},
        a={"nbf": 100, "exp": 200},
        b={"exp": 150},
        exp=180,
    )

    spans = [
        (plan(policy, now).from_ns // NS_PER_S, plan(policy, now).until_ns // NS_PER_S)
        for now in (100, 149, 150, 180, 250)
    ]

    assert spans[:3] == [(100, 150), (100, 150), (150, 180)]
    assert spans[3] == (180, 200)
    assert spans[4][0] == 200
    live = [[grant.grant_id for grant in plan(policy, now).live] for now in (0, 100, 150, 180)]
    assert live == [["b"], ["a", "b"], ["a"], []]


def test_equal_inputs_give_equal_takes() -> None:
    policy = car.policy({"g": {"read_odometer": {}, "read_location": {}}})

    assert plan(policy).takes == plan(policy).takes


def test_altitude_is_not_taken_while_a_grid_is_in_force() -> None:
    reasons = {
        item.path: item.reason for item in plan(car.policy({"g": {"read_location": {}}})).skipped
    }

    assert "grid" in reasons["Vehicle.CurrentLocation.Altitude"]


def test_what_the_vehicle_lacks_is_skipped_with_a_reason() -> None:
    skipped = plan(car.policy({"g": {"read_odometer": {}}})).skipped

    assert [(item.path, item.reason) for item in skipped] == [
        ("Vehicle.TripMeterReading", "not in this vehicle's mapping")
    ]


def test_a_suspended_grant_takes_nothing() -> None:
    policy = car.policy({"a": {"read_odometer": {}}, "b": {"read_odometer": {}}})

    made = compile_plan(
        policy, car.catalogue(), car.binding(), now_ns=0, suspended=frozenset({"a"})
    )

    assert [take.grant_id for take in made.takes] == ["b"]


@pytest.mark.parametrize(
    ("can_id", "pgn"),
    [(0x0CF00400, 0xF004), (0x18FEF125, 0xFEF1), (0x18EF1234, 0xEF00), (0x19FEDA03, 0x1FEDA)],
)
def test_the_pgn_ignores_the_destination_of_pdu1_only(can_id: int, pgn: int) -> None:
    assert pgn_of(0x8000_0000 | can_id) == pgn


def test_j1939_is_matched_by_pgn_whatever_priority_and_source() -> None:
    frames = [eec1(0, 0x00), eec1(200, 0x17, priority=6), eec1(250, 0x00)]

    assert taken(truck("interval_ms: 0"), frames) == [0, 200]  # One stream for all sources.


def test_a_named_source_is_the_only_one() -> None:
    frames = [eec1(0, 0x00), eec1(200, 0x17), eec1(400, 0x00)]

    assert taken(truck("interval_ms: 0, source: 0x17"), frames) == [200]


def test_the_destination_of_pdu1_does_not_count() -> None:
    # BO_ 2566834942 is 0x18FEDAFE in the DBC; PGN 0xEF00 would be PDU1, so make one of its id.
    dbc = J1939.replace(b"BO_ 2566834942", b"BO_ %d" % (0x8000_0000 | 0x18EF00FE))
    binding = bind(
        parse_mapping(b"Vehicle.TraveledDistance: {type: sensor, dbc: {signal: Odo}}", name="m"),
        [parse_dbc(dbc, name="j1939.dbc")],
        car.catalogue(),
        bus=None,
        any_bus=True,
    )
    policy = car.policy({"g": {"read_odometer": {"min_interval_s": 0}}})
    pipeline = Pipeline(compile_plan(policy, car.catalogue(), binding, now_ns=0))

    frames: list[Frame] = [
        (t * NS_PER_S, "can0", 0x8000_0000 | 0x18EF0003 | destination << 8, bytes(8))
        for t, destination in ((0, 0x10), (1, 0xFF), (2, 0x00))
    ]

    assert taken(pipeline, frames) == [0, 1000, 2000]


def test_remote_and_standard_frames_carry_no_parameter_group() -> None:
    t_ns, bus, can_id, data = eec1(0, 0)
    frames = [(t_ns, bus, can_id | 0x4000_0000, data), (t_ns, bus, can_id & 0x7FF, data)]

    assert taken(truck("interval_ms: 0"), frames) == []


def test_named_buses_see_their_own_bindings_only() -> None:
    mapping = parse_mapping(car.MAPPING, name="m")
    on_body = bind(mapping, [car.dbc()], car.catalogue(), bus="body")
    policy = car.policy({"g": {"read_odometer": {"min_interval_s": 0}}})

    made = compile_plan(
        policy, car.catalogue(), on_body, now_ns=0, named_buses=("body", "powertrain")
    )

    assert made.taps("body", car.ODOMETER_ID)
    assert not made.taps("powertrain", car.ODOMETER_ID)
    assert not made.taps("can9", car.ODOMETER_ID)


def test_babbling_identifiers_change_nothing() -> None:
    policy = car.policy({"g": {"read_odometer": {"min_interval_s": 0}}})
    pipeline = Pipeline(plan(policy))

    pipeline.feed((0, "can0", i, b"") for i in range(20_000) if i != car.ODOMETER_ID)
    times = taken(pipeline, [car.odometer(5, 1)])

    assert times == [5]


OFFICE = {"days": "1-5", "from": "07:00", "to": "19:00", "tz": "Europe/Berlin"}
TUESDAY_S = 1_795_474_800  # 2026-11-24 00:00 in Berlin.
HOUR_NS = 3600 * NS_PER_S


def _windowed(clock_h: float, **options: Any) -> Plan:
    policy = car.policy(
        {"g": {"read_odometer": {"windows": [OFFICE]}, "read_speedometer": {}}},
        nbf=TUESDAY_S - 86_400,
        exp=TUESDAY_S + 86_400,
    )
    now_ns = TUESDAY_S * NS_PER_S + round(clock_h * HOUR_NS)
    return compile_plan(policy, car.catalogue(), car.binding(), now_ns=now_ns, **options)


@pytest.mark.parametrize(
    ("clock_h", "span_h", "paths"),
    [
        (6.5, (-5, 7), {"Vehicle.Speed"}),
        (7, (7, 19), {"Vehicle.Speed", "Vehicle.TraveledDistance"}),
        (18.999, (7, 19), {"Vehicle.Speed", "Vehicle.TraveledDistance"}),
        (19, (19, 24), {"Vehicle.Speed"}),
    ],
)
def test_a_plan_ends_when_a_window_opens_or_closes_and_leaves_out_what_is_closed(
    clock_h: float, span_h: tuple[int, int], paths: set[str]
) -> None:
    """The grant stays live with one of its scopes; Monday's window closed five hours before."""
    made = _windowed(clock_h)

    midnight_ns = TUESDAY_S * NS_PER_S
    assert (made.from_ns, made.until_ns) == tuple(midnight_ns + h * HOUR_NS for h in span_h)
    assert {take.path for take in made.takes} == paths
    assert [grant.grant_id for grant in made.live] == ["g"]
    closed = {(item.scope, item.path, item.reason) for item in made.closed}
    assert closed == (
        set()
        if len(paths) == 2
        else {("read_odometer", "Vehicle.TraveledDistance", "outside its windows")}
    )
    assert not any(item.path == "Vehicle.TraveledDistance" for item in made.skipped)


def test_windows_are_closed_while_the_time_is_not_known() -> None:
    made = _windowed(12, time_known=False)

    assert {take.path for take in made.takes} == {"Vehicle.Speed"}
    assert [item.reason for item in made.closed] == [
        "its windows are closed: the time is not known"
    ]
    assert (made.from_ns, made.until_ns) == (
        (TUESDAY_S - 86_400) * NS_PER_S,
        (TUESDAY_S + 86_400) * NS_PER_S,
    )


def test_windows_of_a_grant_that_is_not_live_do_not_end_a_plan() -> None:
    policy = car.policy(
        {"g": {"read_odometer": {"windows": [OFFICE]}}, "h": {"read_speedometer": {}}},
        g={"state": "paused"},
    )

    made = compile_plan(policy, car.catalogue(), car.binding(), now_ns=TUESDAY_S * NS_PER_S)

    assert made.until_ns - made.from_ns > 1 << 100


def test_altitude_is_taken_where_positions_are_not_on_a_grid() -> None:
    """A height tells the place on a slope, so a grid leaves it out."""
    altitude = b"""
Vehicle.CurrentLocation.Altitude: {type: sensor, datatype: double, dbc2vss: {signal: Counter}}
"""
    binding = car.binding(car.MAPPING + altitude)

    def paths(**constraints: object) -> set[str]:
        policy = car.policy({"g": {"read_location": constraints}})
        made = compile_plan(policy, car.catalogue(), binding, now_ns=0)
        return {take.path.rpartition(".")[2] for take in made.takes}

    assert paths(grid_deg=0.01) == {"Latitude", "Longitude"}
    assert paths(precise=True) == {"Latitude", "Longitude", "Altitude"}


def test_every_path_of_a_scope_whose_windows_are_closed_is_told() -> None:
    window = {"days": "1-7", "from": "12:00", "to": "13:00", "tz": "Europe/Berlin"}
    policy = car.policy({"g": {"read_location": {"windows": [window]}}})

    closed = [(item.path.rpartition(".")[2], item.reason) for item in plan(policy).closed]

    assert closed == [(leaf, "outside its windows") for leaf in ("Latitude", "Longitude")]


def test_what_fits_in_a_frame_asks_for_no_transport() -> None:
    """TP.CM and TP.DT would bring messages that nobody wants."""
    assert truck("interval_ms: 0")._plan.taps("can0", 0x9CEC_FF00) == ()
