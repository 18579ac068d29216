"""The chain that explains a path: each link says what it found, and the verdict what follows."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from agent.core.binding import Binding, bind
from agent.core.dbc import parse_dbc
from agent.core.explain import explain
from agent.core.explanation import (
    Explanation,
    Finding,
    Step,
    TakeFacts,
    View,
    facts_of,
    parse_explanation,
)
from agent.core.mapping import parse_mapping
from agent.core.model import NS_PER_S
from agent.core.pipeline import Pipeline
from agent.core.plan import compile_plan
from agent.core.policy import Policy, parse_policy
from agent.core.standing import EVERY_GRANT, NO_OVERLAYS, Overlays, standings
from agent.core.status import StopStatus
from agent.errors import AgentError
from tests import car, policydoc
from tests.unit.core.test_plan import J1939, RPM

NOW_S = 1_795_600_000  # 2026-11-25, a Wednesday, 09:46 UTC
SPEED, ODOMETER, DOOR = (
    "Vehicle.Speed",
    "Vehicle.TraveledDistance",
    "Vehicle.Cabin.Door.Row1.DriverSide.IsOpen",
)
CEILING = "not more often than every 0.1 s"
FAST = {"g": {"read_speedometer": {"min_interval_s": 0.1}}}


def view(
    policy: Policy | None,
    *,
    binding: Binding | None = None,
    overlays: Overlays = NO_OVERLAYS,
    now_s: int = NOW_S,
    is_time_known: bool = True,
    **more: Any,
) -> View:
    """A vehicle as the daemon sees it: the plan is compiled as `agent.control` compiles it."""
    binding = binding or car.binding()
    stands = standings(policy, overlays, now_s * NS_PER_S) if policy else {}
    ended: frozenset[str] = more.get("ended", frozenset())
    plan = compile_plan(
        policy,
        car.catalogue(),
        binding,
        now_ns=now_s * NS_PER_S,
        suspended={g for g, stand in stands.items() if stand != "active"} | ended,
        time_known=is_time_known,
    )
    return View(
        car.catalogue(),
        binding,
        policy,
        plan,
        now_s * NS_PER_S,
        is_time_known=is_time_known,
        overlays=overlays,
        **more,
    )


def mapped(text: str, dbc: bytes = car.DBC) -> Binding:
    return bind(
        parse_mapping(text.encode(), name="m"),
        [parse_dbc(dbc, name="d.dbc")],
        car.catalogue(),
        bus="body",
    )


def step(found: Explanation, name: str) -> Step:
    """Return the first step of that name, which must be there."""
    return next(item for item in found.steps if item.name == name)


def test_what_leaves_is_told_from_end_to_end() -> None:
    facts = {
        ("g", SPEED): TakeFacts(
            taken=3,
            thinned=1,
            drops={"outside the mapping's valid range": 2},
            last_taken_ns=NOW_S * NS_PER_S,
            last_dropped_ns=(NOW_S - 60) * NS_PER_S,
            last_drop="outside the mapping's valid range",
        )
    }
    policy = car.policy(
        {"g": {"read_speedometer": {"min_interval_s": 0.5, "quantum": 5}}}, exp=NOW_S + 100
    )

    found = explain(SPEED, view(policy, facts=facts))

    assert found.recipients == ("r-g",)
    assert found.verdict == "leaves the vehicle for r-g (grant g)"
    assert [(item.name, item.finding.value, item.text) for item in found.steps] == [
        (
            "catalogue",
            "yes",
            "float in km/h, in scope read_speedometer of class driver_behaviour; ceiling: "
            + CEILING,
        ),
        ("mapping", "yes", "signal Speed, every value"),
        ("dbc", "yes", "SPEED.Speed, id 0x64, on every bus"),
        ("bus", "yes", "6 values of it came since the start"),
        ("policy", "yes", "unsigned, until 2026-11-25 09:48 UTC"),
        ("grant", "yes", "grant g rev 1 to r-g (g) is active, until 2026-11-25 09:48 UTC"),
        ("constraint", "note", "not more often than every 0.5 s; in steps of 5"),
        ("taken", "note", "3 samples since the start, the last 2026-11-25 09:46 UTC"),
        ("thinned", "note", "1 value let go by the time rule"),
        (
            "blocked",
            "note",
            "2 values dropped: outside the mapping's valid range, the last 2026-11-25 09:45 UTC",
        ),
    ]


STAYS: dict[str, tuple[str, Mapping[str, Any], str, str]] = {
    # Name: path, arguments of `view`, the step that says it, a part of its text.
    "no such path": (
        "vehicle.sped",
        {"policy": car.policy(FAST)},
        "catalogue",
        "no scope of the catalogue has vehicle.sped; close are Vehicle.Speed",
    ),
    "nothing like it": (
        "Hello",
        {"policy": car.policy(FAST)},
        "catalogue",
        "no scope of the catalogue has Hello",
    ),
    "a class that nobody can grant": (
        "Vehicle.Driver.HeartRate",
        {"policy": car.policy(FAST)},
        "catalogue",
        "of class biometric, which nobody can grant",
    ),
    "not mapped": (
        "Vehicle.CurrentLocation.Altitude",
        {"policy": car.policy({"g": {"read_location": {"precise": True}}})},
        "mapping",
        "this vehicle's mapping has no entry for it",
    ),
    "mapped under a mistyped path": (
        SPEED,
        {
            "policy": car.policy(FAST),
            "binding": mapped("Vehicle.Sped: {type: sensor, dbc: {signal: Speed}}"),
        },
        "mapping",
        "has no entry for it; close are Vehicle.Sped",
    ),
    "a signal that no DBC has": (
        SPEED,
        {
            "policy": car.policy(FAST),
            "binding": mapped(f"{SPEED}: {{type: sensor, dbc: {{signal: Sped}}}}"),
        },
        "dbc",
        "its mapping entry is disabled: no DBC has a signal Sped; close are Speed",
    ),
    "another bus": (
        SPEED,
        {
            "policy": car.policy(FAST),
            "binding": mapped(f"{SPEED}: {{type: sensor, dbc: {{signal: Speed, bus: hs}}}}"),
        },
        "dbc",
        "disabled: the mapping takes it only from the bus hs",
    ),
    "no policy": (SPEED, {"policy": None}, "policy", "there is no policy"),
    "an expired policy": (
        SPEED,
        {"policy": car.policy(FAST, exp=NOW_S)},
        "policy",
        "the policy (unsigned) expired 2026-11-25 09:46 UTC",
    ),
    "a policy that has not begun": (
        SPEED,
        {"policy": car.policy(FAST, nbf=NOW_S + 60)},
        "policy",
        "the policy (unsigned) begins 2026-11-25 09:47 UTC",
    ),
    "another scope": (
        ODOMETER,
        {"policy": car.policy(FAST)},
        "grant",
        "no grant names read_odometer",
    ),
    "a paused grant": (
        SPEED,
        {"policy": car.policy(FAST, g={"state": "paused"})},
        "grant",
        "grant g rev 1 to r-g (g) is paused: the policy says paused",
    ),
    "a revoked grant": (
        SPEED,
        {"policy": car.policy(FAST, g={"state": "revoked"})},
        "grant",
        "is revoked: the policy says revoked",
    ),
    "a grant that is over": (
        SPEED,
        {"policy": car.policy(FAST, g={"exp": NOW_S})},
        "grant",
        "is expired: it ended 2026-11-25 09:46 UTC",
    ),
    "a grant that has not begun": (
        SPEED,
        {"policy": car.policy(FAST, g={"nbf": NOW_S + 60})},
        "grant",
        "is pending: it begins 2026-11-25 09:47 UTC",
    ),
    "revoked by the owner": (
        SPEED,
        {"policy": car.policy(FAST), "overlays": Overlays(revoked=frozenset({"g"}))},
        "grant",
        "is revoked: a restrict document revokes it",
    ),
    "paused by the owner": (
        SPEED,
        {"policy": car.policy(FAST), "overlays": Overlays(paused=frozenset({EVERY_GRANT}))},
        "grant",
        "is paused: a restrict document pauses it",
    ),
    "stopped at the vehicle": (
        SPEED,
        {
            "policy": car.policy(FAST),
            "overlays": Overlays(stopped=frozenset({EVERY_GRANT})),
            "stops": (StopStatus("*", "uid 1000", NOW_S - 60, 5_400),),
        },
        "grant",
        "paused: every grant is stopped at the vehicle by uid 1000 since 2026-11-25 09:45 UTC, for",
    ),
    "stopped by itself": (
        SPEED,
        {
            "policy": car.policy(FAST),
            "overlays": Overlays(stopped=frozenset({"g"})),
            "stops": (StopStatus("g", "uid 0", NOW_S - 60, None),),
        },
        "grant",
        "paused: stopped at the vehicle by uid 0 since 2026-11-25 09:45 UTC",
    ),
    "stopped by the switch": (
        SPEED,
        {"policy": car.policy(FAST), "overlays": Overlays(stopped=frozenset({"g"}))},
        "grant",
        "is paused: stopped at the vehicle",
    ),
    "offline for too long": (
        SPEED,
        {
            "policy": car.policy(FAST, g={"offline_s": 3_600}),
            "overlays": Overlays(lapsed=frozenset({"g"})),
        },
        "grant",
        "is paused: no fresh policy came for 1 h",
    ),
    "ended here for good": (
        SPEED,
        {"policy": car.policy(FAST), "ended": frozenset({"g"})},
        "grant",
        "is active: it has ended here for good, renewed consent needs a new grant id",
    ),
    "outside its windows": (
        SPEED,
        {
            "policy": car.policy(
                {
                    "g": {
                        "read_speedometer": {
                            "windows": [
                                {"days": "6-7", "from": "07:00", "to": "19:30", "tz": "UTC"}
                            ]
                        }
                    }
                }
            )
        },
        "window",
        "grant g: outside its windows",
    ),
    "windows while the time is not known": (
        SPEED,
        {
            "policy": car.policy(
                {
                    "g": {
                        "read_speedometer": {
                            "windows": [
                                {"days": "1-7", "from": "00:00", "to": "00:00", "tz": "UTC"}
                            ]
                        }
                    }
                }
            ),
            "is_time_known": False,
        },
        "window",
        "its windows are closed: the time is not known",
    ),
    "an altitude under a grid": (
        "Vehicle.CurrentLocation.Altitude",
        {
            "policy": car.policy({"g": {"read_location": {}}}),
            "binding": mapped(
                "Vehicle.CurrentLocation.Altitude: {type: sensor, dbc: {signal: Odometer}}"
            ),
        },
        "vehicle",
        "grant g covers it, but not taken while a grid is in force",
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_stays_is_told_with_the_link_that_breaks_the_chain(name: str) -> None:
    path, arguments, broken, text = STAYS[name]

    found = explain(path, view(**arguments))

    said = step(found, broken)
    assert said.finding is Finding.NO
    assert text in said.text
    assert found.recipients == ()
    assert found.verdict.startswith("does not leave the vehicle: ")
    first = next(s for s in found.steps if s.finding is Finding.NO and s.name != "bus")
    assert found.verdict.endswith(first.text)
    assert first is said


@pytest.mark.parametrize("path", [SPEED, ODOMETER])
def test_the_same_paths_leave_where_every_link_is_whole(path: str) -> None:
    whole = car.policy({"g": {"read_speedometer": {"min_interval_s": 0.1}, "read_odometer": {}}})

    assert explain(path, view(whole)).recipients == ("r-g",)


def test_two_grants_of_one_path_are_two_stories() -> None:
    policy = car.policy(
        {
            "a": {"read_odometer": {"min_interval_s": 5}},
            "b": {"read_odometer": {"once": True}},
            "c": {"read_odometer": {}},
        },
        b={"state": "paused"},
    )

    found = explain(ODOMETER, view(policy))

    assert found.recipients == ("r-a", "r-c")
    assert found.verdict == "leaves the vehicle for r-a (grant a), r-c (grant c)"
    stories = [(s.grant_id, s.finding.value) for s in found.steps if s.name == "grant"]
    assert stories == [("a", "yes"), ("b", "no"), ("c", "yes")]
    limits = [s.text for s in found.steps if s.name == "constraint"]
    assert limits == [
        "not more often than every 5 s",
        "one sample for this grant, ever",
        "not more often than every 10 s",
    ]


def test_constraints_are_told_after_defaults_and_only_where_they_apply() -> None:
    def limits(path: str, scope: str, **constraints: Any) -> str:
        policy = car.policy({"g": {scope: constraints}})
        return step(explain(path, view(policy)), "constraint").text

    latitude = "Vehicle.CurrentLocation.Latitude"
    assert limits(latitude, "read_location") == (
        "not more often than every 60 s; only the centre of a cell of 0.01°"
    )
    assert limits(latitude, "read_location", precise=True, min_interval_s=1) == (
        "not more often than every 1 s; the exact position"
    )
    assert limits(ODOMETER, "read_odometer", min_interval_s=0) == "none"
    assert limits("Vehicle.VehicleIdentification.VIN", "read_vin") == (
        "one sample for this grant, ever"
    )
    window = {"days": "1-3,5", "from": "22:00", "to": "06:30", "tz": "Europe/Berlin"}
    assert limits(ODOMETER, "read_odometer", windows=[window]).endswith(
        "on days 1,2,3,5 from 22:00 to 06:30 Europe/Berlin"
    )


def test_an_open_window_is_told_too() -> None:
    window = {"days": "1-7", "from": "00:00", "to": "00:00", "tz": "UTC"}
    policy = car.policy({"g": {"read_odometer": {"windows": [window]}}})

    found = explain(ODOMETER, view(policy))

    assert step(found, "window").finding is Finding.YES
    assert found.recipients == ("r-g",)


def test_what_nobody_permits_is_not_looked_at_on_the_bus() -> None:
    """No frame is read for it, so nobody can know."""
    assert step(explain(ODOMETER, view(car.policy(FAST), facts={})), "bus") == Step(
        "bus", Finding.UNKNOWN, "not looked at: nothing permits it, so nothing is read"
    )


def test_a_log_knows_what_came_whoever_permits_it() -> None:
    seen = view(car.policy(FAST), frames={ODOMETER: 1}, since="in the log")

    assert step(explain(ODOMETER, seen), "bus").text == "1 frame of its message came in the log"
    assert explain(ODOMETER, seen).verdict == (
        "does not leave the vehicle: no grant names read_odometer"
    )
    assert step(explain(SPEED, seen), "bus").finding is Finding.NO
    assert explain(SPEED, seen).verdict == (
        "may leave the vehicle for r-g, but no frame of its message came in the log"
    )


def test_what_is_permitted_and_never_came_is_told_so() -> None:
    found = explain(SPEED, view(car.policy(FAST), facts={}))

    assert found.recipients == ("r-g",)
    assert found.verdict == (
        "may leave the vehicle for r-g, but no value of it came since the start"
    )


def test_what_came_and_was_never_a_sample_is_told_with_the_last_reason() -> None:
    facts = {("g", SPEED): TakeFacts(drops={"it has a name": 7}, last_drop="it has a name")}

    assert explain(SPEED, view(car.policy(FAST), facts=facts)).verdict == (
        "may leave the vehicle for r-g, but no sample was taken since the start: it has a name"
    )


def test_a_parameter_group_is_told_by_its_number_and_source() -> None:
    text = RPM.format("source: 0x17, on_change: true, interval_ms: 0")
    found = explain(
        "Vehicle.Powertrain.CombustionEngine.Speed",
        view(car.policy({"g": {"read_powertrain": {}}}), binding=mapped(text, J1939)),
    )

    assert step(found, "mapping").text == (
        "signal EngineSpeed, when it changes, from source address 0x17 only"
    )
    assert step(found, "dbc").text == "EEC1.EngineSpeed, PGN 61444 (0xf004), on bus body"


def test_every_bus_that_gives_a_path_is_told() -> None:
    both = car.binding()
    second = replace(both, bound=tuple(replace(b, bus="hs") for b in both.bound))
    merged = replace(both, bound=both.bound + second.bound)

    found = explain(SPEED, view(car.policy(FAST), binding=merged))

    assert [s.text.rpartition(" on ")[2] for s in found.steps if s.name == "dbc"] == [
        "every bus",
        "bus hs",
    ]


def test_a_signed_policy_is_told_by_its_version() -> None:
    policy = parse_policy(policydoc.encoded(policydoc.example()), car.catalogue())

    found = explain(ODOMETER, view(policy, now_s=policydoc.T0_S))

    assert step(found, "policy").text == "epoch 1, version 42, until 2026-12-23 21:20 UTC"
    assert step(found, "grant").text == (
        "grant gr_01JD rev 3 to fleet-x (Fleet X GmbH) is active, until 2026-12-23 21:20 UTC"
    )


@pytest.mark.parametrize("name", STAYS)
def test_an_explanation_survives_the_socket(name: str) -> None:
    path, arguments, _, _ = STAYS[name]
    found = explain(path, view(**arguments))

    assert parse_explanation(json.loads(json.dumps(found.members()))) == found


@pytest.mark.parametrize(
    "members",
    [{}, {"path": "p", "steps": [{}], "recipients": [], "verdict": ""}]
    + [
        {"path": "p", "recipients": [], "verdict": "", "steps": [step_]}
        for step_ in ({"name": "n", "finding": "maybe", "text": "", "grant_id": None}, None)
    ],
)
def test_an_explanation_of_another_version_is_an_error(members: dict[str, Any]) -> None:
    with pytest.raises(AgentError, match="not what this version"):
        parse_explanation(members)


def test_the_pipelines_own_counts_are_what_is_told() -> None:
    policy = car.policy({"g": {"read_security": {"min_interval_s": 1}}})
    made = view(policy)
    pipeline = Pipeline(made.plan)
    start_ms = NOW_S * 1000
    pipeline.feed([car.door(start_ms + 2000 * i, state) for i, state in enumerate((0, 0, 3, 1))])

    found = explain(DOOR, replace(made, facts=facts_of(pipeline.counts())))

    said = "since the start, the last 2026-11-25 09:"
    assert step(found, "taken").text == f"2 samples {said}46 UTC"
    assert step(found, "thinned").text == (
        "1 value let go by the time rule, the last 2026-11-25 09:46 UTC"
    )
    assert step(found, "blocked").text == (
        "1 value dropped: the raw value has a name instead of a measurement, "
        "the last 2026-11-25 09:46 UTC"
    )
    assert found.verdict == "leaves the vehicle for r-g (grant g)"


def test_an_aggregate_is_one_story_however_many_functions_it_has() -> None:
    aggregate = {"aggregate": {"window_s": 60, "fn": ["min", "max"]}}
    made = view(car.policy({"g": {"read_odometer": aggregate}}))
    pipeline = Pipeline(made.plan)
    pipeline.feed([car.odometer(NOW_S * 1000 + 1000 * i, i) for i in range(100)])

    found = explain(ODOMETER, replace(made, facts=facts_of(pipeline.counts())))

    assert step(found, "constraint").text == "only min, max of every 60 s"
    assert [s.name for s in found.steps].count("taken") == 1
    assert step(found, "thinned").text.startswith("100 values entered a window or were let go")
    assert found.verdict == "leaves the vehicle for r-g (grant g)"


@pytest.mark.parametrize(
    ("mapping", "where"),
    [
        ("obd2_29bit.vspec", "id 0x18daf110, extended"),
        ("j1939_truck.vspec", "PGN 65260 (0xfeec)"),
    ],
)
def test_a_text_that_comes_in_several_frames_is_told_as_such(mapping: str, where: str) -> None:
    dbcs = [
        parse_dbc((car.ROOT / "dbc" / name).read_bytes(), name=name)
        for name in ("obd2.dbc", "obd2_answers.dbc", "j1939.dbc")
    ]
    made = bind(
        parse_mapping((car.ROOT / "config/vehicles" / mapping).read_bytes(), name=mapping),
        dbcs,
        car.catalogue(),
        bus="body",
    )

    found = explain(
        "Vehicle.VehicleIdentification.VIN",
        view(car.policy({"g": {"read_vin": {}}}), binding=made),
    )

    assert step(found, "mapping").text.endswith("its bytes are characters (vin)")
    assert f"{where}, in messages of several frames, on bus body" in step(found, "dbc").text
