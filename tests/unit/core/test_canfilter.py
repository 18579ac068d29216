"""Filters for the kernel: everything that is wanted passes, and as little else as possible."""

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.canfilter import (
    MAX_FILTERS,
    CanFilter,
    FilterSet,
    compile_filters,
    exact_filter,
    pgn_filter,
)
from agent.core.model import CAN_EFF_FLAG, CAN_ERR_FLAG, CAN_RTR_FLAG
from agent.core.plan import Plan, Tap, empty_plan
from tests import car

TAP = (Tap(extract=lambda _: (), picks=()),)
PDU1, PDU2 = 0xEA00, 0xFEF1  # Request (with a destination); cruise control and vehicle speed.

Sources = Mapping[int | None, tuple[Tap, ...]]


def plan(
    ids: Mapping[str | None, set[int]],
    pgns: Mapping[str | None, Mapping[int, Sources]] | None = None,
) -> Plan:
    exact = {bus: dict.fromkeys(found, TAP) for bus, found in ids.items()}
    return Plan(0, 1, live=(), takes=(), exact=exact, pgns=pgns or {}, skipped=())


def passes(made: FilterSet, can_id: int) -> bool:
    """Judge as the kernel does: linux/can.h, struct can_filter."""
    return any(can_id & each.mask == each.can_id & each.mask for each in made.filters)


def test_nothing_granted_is_no_filter() -> None:
    assert compile_filters(empty_plan(), "can0") == FilterSet((), 0)
    assert compile_filters(plan({"can0": set(), None: {1}}), "can0") == FilterSet((), 0)


def test_a_standard_an_extended_and_a_remote_frame_of_one_number_are_different() -> None:
    standard = compile_filters(plan({None: {0x100}}), "can0")
    extended = compile_filters(plan({None: {0x100 | CAN_EFF_FLAG}}), "can0")

    assert passes(standard, 0x100)
    assert not passes(standard, 0x100 | CAN_EFF_FLAG)
    assert not passes(standard, 0x100 | CAN_RTR_FLAG)
    assert passes(extended, 0x100 | CAN_EFF_FLAG)
    assert not passes(extended, 0x100)
    assert not passes(extended, 0x100 | CAN_EFF_FLAG | CAN_RTR_FLAG)


def test_no_mask_holds_the_error_flag() -> None:
    """With it the kernel would take the filter for one of error frames."""
    made = compile_filters(plan({None: {1, 2 | CAN_EFF_FLAG}}, {None: {PDU2: {None: TAP}}}), "x")

    assert [each for each in made.filters if (each.mask | each.can_id) & CAN_ERR_FLAG] == []


@pytest.mark.parametrize("priority", [0, 3, 7])
@pytest.mark.parametrize("source", [0x00, 0x21, 0xFF])
def test_a_group_passes_with_any_priority_and_source(priority: int, source: int) -> None:
    made = compile_filters(plan({"b": set()}, {"b": {PDU2: {None: TAP}}}), "b")
    head = CAN_EFF_FLAG | priority << 26

    assert passes(made, head | PDU2 << 8 | source)
    assert not passes(made, head | (PDU2 ^ 1) << 8 | source)
    assert not passes(made, head | (PDU2 | 0x10000) << 8 | source)


def test_a_group_with_a_destination_passes_with_any_and_one_without_only_as_it_is() -> None:
    made = compile_filters(plan({"b": set()}, {"b": {PDU1: {None: TAP}}}), "b")

    assert passes(made, CAN_EFF_FLAG | (PDU1 | 0x55) << 8)
    assert not passes(made, CAN_EFF_FLAG | 0xEB55 << 8)


def test_where_only_named_sources_are_wanted_no_other_passes() -> None:
    made = compile_filters(plan({"b": set()}, {"b": {PDU2: {None: (), 0x11: TAP}}}), "b")

    assert passes(made, CAN_EFF_FLAG | PDU2 << 8 | 0x11)
    assert not passes(made, CAN_EFF_FLAG | PDU2 << 8 | 0x12)


def test_what_else_must_pass_does() -> None:
    made = compile_filters(
        plan({None: {1}}), "can0", extra=[pgn_filter(0xEC00), exact_filter(0x7E8)]
    )

    assert passes(made, CAN_EFF_FLAG | 0xECFF << 8)
    assert passes(made, 0x7E8)


def test_a_filter_that_another_covers_is_left_out() -> None:
    one = CAN_EFF_FLAG | PDU2 << 8 | 0x11

    made = compile_filters(plan({"b": {one}}, {"b": {PDU2: {None: TAP}}}), "b")

    assert made == FilterSet((pgn_filter(PDU2),), 0)


def test_a_plan_of_real_grants_passes_its_messages_and_no_other() -> None:
    granted = car.policy({"g": {"read_odometer": {}}})
    made = compile_filters(car_plan(granted), "can0")

    assert [can_id for can_id in range(0x800) if passes(made, can_id)] == [car.ODOMETER_ID]
    assert made == FilterSet((CanFilter(car.ODOMETER_ID, 0xC00007FF),), 0)


def car_plan(granted: object) -> Plan:
    from agent.core.plan import compile_plan  # noqa: PLC0415

    return compile_plan(granted, car.catalogue(), car.binding(), now_ns=0)  # type: ignore[arg-type]


STANDARD = st.integers(0, 0x7FF)
EXTENDED = st.integers(0, 0x1FFF_FFFF).map(lambda n: n | CAN_EFF_FLAG)
PGNS = st.one_of(
    st.integers(0, 0x3EF).map(lambda n: (n & 0x3FF) << 8).filter(lambda n: (n >> 8 & 0xFF) < 240),
    st.integers(0xF000, 0xFFFF),
)
# As in a compiled plan: all sources, or the named ones and nobody else.
SOURCES = st.one_of(
    st.just({None: TAP}),
    st.sets(st.integers(0, 255)).map(lambda named: {None: (), **dict.fromkeys(named, TAP)}),
)


@settings(max_examples=60, deadline=None)
@given(
    ids=st.sets(st.one_of(STANDARD, EXTENDED), max_size=60),
    pgns=st.dictionaries(PGNS, SOURCES, max_size=5),
    limit=st.integers(2, 40),
    others=st.lists(st.one_of(STANDARD, EXTENDED), max_size=20),
    priority=st.integers(0, 7),
)
def test_whatever_the_plan_takes_passes_and_what_passes_beyond_is_counted(
    ids: set[int],
    pgns: dict[int, dict[int | None, tuple[Tap, ...]]],
    limit: int,
    others: list[int],
    priority: int,
) -> None:
    made_plan = plan({"b": ids}, {"b": pgns})
    groups = [
        CAN_EFF_FLAG | priority << 26 | pgn << 8 | source
        for pgn, by_source in pgns.items()
        for source in {0, 0x42, *(s for s in by_source if s is not None)}
    ]

    full, made = (compile_filters(made_plan, "b", limit=n) for n in (10_000, limit))

    assert len(made.filters) <= limit
    for can_id in [*ids, *groups, *others]:
        if made_plan.taps("b", can_id):
            assert passes(made, can_id)
            assert passes(full, can_id)
        elif passes(made, can_id):
            assert made.beyond > 0
            assert not passes(full, can_id)
        assert not passes(made, can_id | CAN_RTR_FLAG)
    assert full.beyond == 0


def test_beyond_the_kernels_limit_filters_grow_wider_and_none_is_lost() -> None:
    ids = {n * n % 0x701 for n in range(800)} | {
        n**3 & 0x7FF_FFFF | CAN_EFF_FLAG for n in range(600)
    }

    made = compile_filters(plan({None: ids}), "can0")

    assert len(ids) > MAX_FILTERS
    assert len(made.filters) <= MAX_FILTERS
    assert all(passes(made, can_id) for can_id in ids)
    standard = [can_id for can_id in range(0x800) if passes(made, can_id)]
    assert made.beyond > 0
    assert len(standard) <= len(ids) + made.beyond
    assert not passes(made, 0x7FF)
