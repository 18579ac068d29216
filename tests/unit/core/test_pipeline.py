"""Frames in, closed batches out: gate, time rule, batches, swaps."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.model import NS_PER_S, Batch, Frame
from agent.core.pipeline import Pipeline
from agent.core.plan import Plan, compile_plan
from agent.core.policy import Policy
from tests import car

SPEED = "Vehicle.Speed"
NOW_NS = 1_800_000_000 * NS_PER_S
FULL_RATE: dict[str, Any] = {"min_interval_s": 0}


def plan(policy: Policy | None, now_ns: int = NOW_NS) -> Plan:
    return compile_plan(policy, car.catalogue(), car.binding(), now_ns=now_ns)


def rows(batches: list[Batch]) -> list[tuple[str, str, int, Any]]:
    """Flatten batches: (grant, path, ms, value)."""
    return [
        (batch.grant_id, column.path, t_ms, value)
        for batch in batches
        for column in batch.columns
        for t_ms, value in zip(column.times_ms, column.values, strict=True)
    ]


def drive(policy: Policy | None, frames: list[Frame], **options: Any) -> list[Batch]:
    pipeline = Pipeline(plan(policy), **options)
    pipeline.feed(frames)
    pipeline.stop()
    return pipeline.drain()


def test_a_granted_signal_becomes_samples_of_its_grant() -> None:
    policy = car.policy({"g": {"read_odometer": FULL_RATE}})

    batches = drive(policy, [car.odometer(1000, 5), car.odometer(1100.9, 6)])

    assert rows(batches) == [
        ("g", "Vehicle.TraveledDistance", 1000, 5),
        ("g", "Vehicle.TraveledDistance", 1100, 6),
    ]
    assert batches[0].recipient == "r-g"
    assert batches[0].columns[0].unit == "m"


@pytest.mark.parametrize(
    "policy",
    [
        None,
        car.policy({}),
        car.policy({"g": {"read_odometer": {}}}, exp=1_700_000_000),
        car.policy({"g": {"read_odometer": {}}}, nbf=1_900_000_000),
        car.policy({"g": {"read_odometer": {}}}, g={"exp": 1_800_000_000}),
        car.policy({"g": {"read_odometer": {}}}, g={"nbf": 1_800_000_001}),
        car.policy({"g": {"read_odometer": {}}}, g={"state": "paused"}),
        car.policy({"g": {"read_odometer": {}}}, g={"state": "revoked"}),
    ],
    ids=["none", "empty", "expired", "early", "grant-expired", "grant-early", "paused", "revoked"],
)
def test_without_a_live_grant_there_is_no_sample(policy: Policy | None) -> None:
    t_ms = NOW_NS / 1e6

    batches = drive(policy, [car.odometer(t_ms + i, i) for i in range(20)])

    assert batches == []


def test_an_ungranted_signal_of_a_granted_message_is_not_taken() -> None:
    policy = car.policy({"g": {"read_security": {"min_interval_s": 1}}})

    batches = drive(policy, [car.door(0, 1, vin=1)])

    assert {path for _, path, _, _ in rows(batches)} == {
        "Vehicle.Cabin.Door.Row1.DriverSide.IsOpen"
    }


def test_two_grants_for_one_signal_are_two_takes_under_their_own_constraints() -> None:
    policy = car.policy(
        {
            "fine": {"read_odometer": FULL_RATE},
            "coarse": {"read_odometer": {"min_interval_s": 10, "quantum": 100}},
        }
    )

    batches = drive(policy, [car.odometer(i * 5000, 149 + i) for i in range(4)])

    assert [row for row in rows(batches) if row[0] == "fine"] == [
        ("fine", "Vehicle.TraveledDistance", i * 5000, 149 + i) for i in range(4)
    ]
    assert [row for row in rows(batches) if row[0] == "coarse"] == [
        ("coarse", "Vehicle.TraveledDistance", 0, 100),
        ("coarse", "Vehicle.TraveledDistance", 10_000, 200),
    ]


def test_the_interval_is_the_larger_of_the_mappings_and_the_grants() -> None:
    policy = car.policy({"g": {"read_odometer": {"min_interval_s": 0.5}}})

    batches = drive(policy, [car.odometer(i * 100, i) for i in range(11)])

    assert [row[2] for row in rows(batches)] == [0, 500, 1000]


def test_class_defaults_apply_where_the_grant_names_nothing() -> None:
    policy = car.policy({"g": {"read_location": {}}})

    batches = drive(
        policy, [car.position(i * 1000, 10.001 + i / 1000, -20.009) for i in range(121)]
    )

    latitudes = [row[2:] for row in rows(batches) if row[1].endswith("Latitude")]
    assert latitudes == [(0, 10.005), (60_000, 10.065), (120_000, 10.125)]
    assert {row[3] for row in rows(batches) if row[1].endswith("Longitude")} == {-20.005}


def test_batches_close_by_age_at_moments_that_no_frame_decides() -> None:
    policy = car.policy({"g": {"read_odometer": FULL_RATE}})
    frames = [car.odometer(t, t) for t in (500, 59_999, 60_000, 119_999, 300_000)]

    batches = drive(policy, frames, max_age_ns=60 * NS_PER_S)
    later = drive(policy, frames, max_age_ns=60 * NS_PER_S, phase_ns=NS_PER_S)

    assert [list(batch.columns[0].times_ms) for batch in batches] == [
        [500, 59_999],
        [60_000, 119_999],
        [300_000],
    ]
    assert [list(batch.columns[0].times_ms) for batch in later] == [
        [500],
        [59_999, 60_000],
        [119_999],
        [300_000],
    ]


def test_what_a_slower_bus_brings_behind_the_moment_is_no_batch_of_its_own() -> None:
    policy = car.policy({"g": {"read_odometer": FULL_RATE}})
    pipeline = Pipeline(plan(policy), max_age_ns=60 * NS_PER_S)
    pipeline.feed([car.odometer(1000, 1)])
    pipeline.close_at(60 * NS_PER_S)

    pipeline.feed([car.odometer(t, t) for t in (59_900, 60_100, 119_000)])
    pipeline.tick(120 * NS_PER_S)

    assert [list(batch.columns[0].times_ms) for batch in pipeline.drain()] == [
        [1000],
        [59_900, 60_100, 119_000],
    ]


def test_a_clock_that_is_set_back_keeps_no_batch_open_for_longer() -> None:
    policy = car.policy({"g": {"read_odometer": FULL_RATE}})
    pipeline = Pipeline(plan(policy), max_age_ns=60 * NS_PER_S)
    pipeline.close_at(3600 * NS_PER_S)

    pipeline.feed([car.odometer(1000, 1)])
    pipeline.tick(60 * NS_PER_S)

    assert len(pipeline.drain()) == 1


def test_a_batch_closes_by_count() -> None:
    policy = car.policy({"g": {"read_odometer": FULL_RATE}})

    batches = drive(policy, [car.odometer(t, t) for t in range(7)], max_samples=3)

    assert [batch.count for batch in batches] == [3, 3, 1]


def test_a_tick_closes_old_batches_and_takes_what_was_held() -> None:
    policy = car.policy({"g": {"read_security": {"min_interval_s": 10}}})
    pipeline = Pipeline(plan(policy), max_age_ns=60 * NS_PER_S)
    pipeline.feed([car.door(0, 0), car.door(2000, 1)])

    pipeline.tick(9 * NS_PER_S)
    early = pipeline.drain()
    pipeline.tick(60 * NS_PER_S)

    assert early == []
    assert [row[2:] for row in rows(pipeline.drain())] == [(0, False), (10_000, True)]


def test_a_swap_hands_over_what_goes_on_and_drops_what_ended() -> None:
    both = car.policy({"a": {"read_odometer": FULL_RATE}, "b": {"read_odometer": FULL_RATE}})
    only_a = car.policy({"a": {"read_odometer": FULL_RATE}})
    pipeline = Pipeline(plan(both))
    pipeline.feed([car.odometer(0, 1)])

    pipeline.swap(plan(only_a))
    pipeline.feed([car.odometer(10, 2)])
    pipeline.stop()

    assert [(row[0], row[3]) for row in rows(pipeline.drain())] == [("a", 1), ("a", 2)]


def test_a_new_revision_drops_what_was_collected_under_the_old_one() -> None:
    pipeline = Pipeline(plan(car.policy({"g": {"read_odometer": FULL_RATE}})))
    pipeline.feed([car.odometer(0, 1)])

    pipeline.swap(plan(car.policy({"g": {"read_odometer": FULL_RATE}}, g={"rev": 2})))
    pipeline.stop()

    assert pipeline.drain() == []


def test_a_swap_does_not_let_a_sample_through_early() -> None:
    policy = car.policy({"g": {"read_odometer": {"min_interval_s": 10}}})
    pipeline = Pipeline(plan(policy))

    for t_ms in range(0, 25_000, 1000):
        pipeline.feed([car.odometer(t_ms, t_ms)])
        pipeline.swap(plan(policy))
    pipeline.stop()

    assert [row[2] for row in rows(pipeline.drain())] == [0, 10_000, 20_000]


def test_once_gives_one_sample_also_over_swaps_and_restarts() -> None:
    policy = car.policy({"g": {"read_vin": {}}})
    pipeline = Pipeline(plan(policy))
    pipeline.feed([car.door(0, 0, vin=1), car.door(5000, 0, vin=1)])
    pipeline.swap(plan(policy))
    pipeline.feed([car.door(9000, 0, vin=1)])
    pipeline.stop()

    restarted = Pipeline(plan(policy), once_taken={("g", "Vehicle.VehicleIdentification.VIN")})
    restarted.feed([car.door(20_000, 0, vin=1)])
    restarted.stop()

    assert len(rows(pipeline.drain())) == 1
    assert restarted.drain() == []


@pytest.mark.parametrize("between", [car.policy({}), None], ids=["without the grant", "none"])
def test_a_single_sample_that_was_dropped_with_its_batch_is_taken_again(
    between: Policy | None,
) -> None:
    policy = car.policy({"g": {"read_vin": {}}})
    pipeline = Pipeline(plan(policy))
    pipeline.feed([car.door(0, 0, vin=1)])

    pipeline.swap(plan(between))
    pipeline.swap(plan(policy))
    pipeline.feed([car.door(9000, 0, vin=1)])
    pipeline.stop()

    assert [row[2] for row in rows(pipeline.drain())] == [9000]


def test_outside_the_plans_span_nothing_is_taken() -> None:
    policy = car.policy({"g": {"read_odometer": FULL_RATE}}, exp=100)
    pipeline = Pipeline(plan(policy, now_ns=50 * NS_PER_S))

    pipeline.feed([car.odometer(99_999, 1), car.odometer(100_000, 2), car.odometer(99_999, 3)])
    pipeline.stop()

    assert [row[2:] for row in rows(pipeline.drain())] == [(99_999, 1), (99_999, 3)]


def test_a_held_change_that_comes_due_after_the_end_is_not_taken() -> None:
    policy = car.policy({"g": {"read_security": {"min_interval_s": 10}}}, exp=5)
    pipeline = Pipeline(plan(policy, now_ns=0))
    pipeline.feed([car.door(0, 0), car.door(1000, 1)])

    pipeline.tick(3600 * NS_PER_S)
    pipeline.stop()

    assert [row[3] for row in rows(pipeline.drain())] == [False]


@pytest.mark.parametrize("flag", [0x8000_0000, 0x4000_0000, 0x2000_0000])
def test_extended_remote_and_error_frames_are_other_ids(flag: int) -> None:
    policy = car.policy({"g": {"read_odometer": FULL_RATE}})
    t_ns, bus, can_id, data = car.odometer(0, 1)

    assert drive(policy, [(t_ns, bus, can_id | flag, data)]) == []


def test_drops_and_thinned_values_are_counted() -> None:
    policy = car.policy({"g": {"read_security": {"min_interval_s": 1}}})
    pipeline = Pipeline(plan(policy))

    pipeline.feed([car.door(0, 3), car.door(1, 0), car.door(2, 0)])

    counts = pipeline.counts()["g", "Vehicle.Cabin.Door.Row1.DriverSide.IsOpen"]
    assert (counts.taken, counts.thinned) == (1, 1)
    assert [drop.name for drop in counts.drops] == ["NAMED"]


times = st.lists(st.integers(0, 200_000), max_size=30)


@given(times, times, st.integers(1, 50), st.booleans())
def test_samples_batches_and_times_do_not_depend_on_ungranted_frames(
    granted: list[int],
    ungranted: list[int],
    chunk: int,
    flip: bool,  # noqa: FBT001 - drawn
) -> None:
    """Non-interference: add, drop, change or cut frames that no live grant covers."""
    policy = car.policy(
        {"g": {"read_odometer": {"min_interval_s": 3}, "read_security": {"min_interval_s": 5}}}
    )
    own = [car.odometer(t, t // 7) if t % 3 else car.door(t, t % 2) for t in sorted(granted)]
    other = [car.foreign(t) if t % 2 else car.speed(t, t % 250) for t in sorted(ungranted)] + [
        car.position(t, 1, 2) for t in ungranted
    ]
    mixed = car.merged(own, other)
    if flip:  # The VIN's byte of the door message is not covered by the grant.
        mixed = [
            (t, bus, i, d[:1] + bytes((d[1] ^ 0xFF,)) if i == car.DOOR_ID else d)
            for t, bus, i, d in mixed
        ]

    alone, among = (Pipeline(plan(policy), max_age_ns=20 * NS_PER_S) for _ in range(2))
    alone.feed(own)
    for start in range(0, len(mixed), chunk):
        among.feed(mixed[start : start + chunk])
    for pipeline in (alone, among):
        pipeline.tick(400 * NS_PER_S)
        pipeline.stop()

    assert alone.drain() == among.drain()


@given(times, st.integers(1, 7))
def test_ticks_between_frames_change_no_sample(granted: list[int], every: int) -> None:
    policy = car.policy({"g": {"read_security": {"min_interval_s": 5}}})
    frames = [car.door(t, t % 2) for t in sorted(granted)]
    ticked, unticked = Pipeline(plan(policy)), Pipeline(plan(policy))
    unticked.feed(frames)
    for index, frame in enumerate(frames):
        if index % every == 0:
            ticked.tick(frame[0])
        ticked.feed([frame])
    for pipeline in (ticked, unticked):
        pipeline.tick(400 * NS_PER_S)
        pipeline.stop()

    assert sorted(rows(ticked.drain())) == sorted(rows(unticked.drain()))


def test_a_signal_that_flickers_in_a_long_interval_costs_no_memory() -> None:
    policy = car.policy({"g": {"read_security": {"min_interval_s": 86_400}}})
    pipeline = Pipeline(plan(policy))

    pipeline.feed([car.door(t, t % 2) for t in range(1000)])

    assert len(pipeline._waiting) == 1
    pipeline.tick(86_400 * NS_PER_S)
    pipeline.stop()
    assert [row[2:] for row in rows(pipeline.drain())] == [(0, False), (86_400_000, True)]
