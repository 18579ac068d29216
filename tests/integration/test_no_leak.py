"""What lies below a constraint does not reach the plaintext, not even by its size.

Two drives that differ only inside a quantum, inside a cell of the grid, between the samples that
the interval takes, or below a millisecond give the same bytes.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from vehicle_oracle import VEHICLES, find

from agent.core.binding import Binding
from agent.core.codec import encode
from agent.core.model import NS_PER_MS, NS_PER_S, NS_PER_US, Frame
from agent.core.pipeline import Pipeline
from agent.core.plan import compile_plan
from agent.core.policy import Policy
from agent.core.seal import header_times
from tests import car, covered
from tests.covered import Reach, Vehicle

T0_MS = 1_800_000_000_000
MOST_FRAMES = 20_000
ON_CHANGE = car.MAPPING.replace(b"signal: Speed, interval_ms: 0", b"signal: Speed, on_change: true")
RAW_PER_KM_H, RAW_PER_DEG = 100, 10**7  # Of the small car's DBC.
INTERVAL_S = 7

Sealed = list[tuple[bytes, tuple[int, int]]]
Pair = tuple[int, int]


def sealed(
    binding: Binding,
    policy: Policy,
    frames: Sequence[Frame],
    *,
    taken: list[tuple[str, int]] | None = None,
) -> Sealed:
    """Return the plaintext and the header times of every batch of a drive."""
    pipeline = Pipeline(
        compile_plan(policy, car.catalogue(), binding, now_ns=frames[0][0]),
        on_sample=lambda take, t_ns, _: None if taken is None else taken.append((take.path, t_ns)),
    )
    pipeline.feed(frames)
    pipeline.tick(frames[-1][0] + 1_000 * NS_PER_S)
    pipeline.stop()
    return [(encode(batch), header_times(batch)) for batch in pipeline.drain()]


def of_car(
    grants: Mapping[str, Mapping[str, Any]], frames: Sequence[Frame], mapping: bytes = car.MAPPING
) -> Sealed:
    return sealed(car.binding(mapping), car.policy({"g1": grants}), frames)


def speeds(raws: Sequence[int], step_ms: int = 100) -> list[Frame]:
    return [car.speed(T0_MS + i * step_ms, raw / RAW_PER_KM_H) for i, raw in enumerate(raws)]


def in_cells(low: Fraction, high: Fraction) -> st.SearchStrategy[Pair]:
    """Two raw values strictly between two borders."""
    inside = st.integers(floor(low) + 1, ceil(high) - 1)
    return st.tuples(inside, inside)


@st.composite
def _in_one_quantum(draw: st.DrawFn) -> tuple[float, list[Pair]]:
    quantum = draw(st.sampled_from([0.1, 0.5, 1, 2.5, 5, 7, 30, 100]))
    size = Fraction(str(quantum)) * RAW_PER_KM_H
    cells = draw(st.lists(st.integers(1, floor(60_000 / size)), min_size=1, max_size=30))
    half = Fraction(1, 2)
    return quantum, [draw(in_cells((n - half) * size, (n + half) * size)) for n in cells]


@settings(max_examples=100, deadline=None)
@given(drives=_in_one_quantum(), mapping=st.sampled_from([car.MAPPING, ON_CHANGE]))
def test_values_inside_one_quantum_give_the_same_bytes(
    drives: tuple[float, list[Pair]], mapping: bytes
) -> None:
    """With on_change too: a change below the quantum is none."""
    quantum, pairs = drives
    grants = {"read_speedometer": {"min_interval_s": 0.1, "quantum": quantum}}

    one, other = ([pair[which] for pair in pairs] for which in (0, 1))

    assert of_car(grants, speeds(one), mapping) == of_car(grants, speeds(other), mapping)


def test_values_in_two_quanta_give_different_bytes() -> None:
    """The test above could fail."""
    grants = {"read_speedometer": {"min_interval_s": 0.1, "quantum": 5}}

    assert of_car(grants, speeds([749])) != of_car(grants, speeds([751]))


@st.composite
def _in_one_grid_cell(draw: st.DrawFn) -> tuple[float, list[tuple[Pair, Pair]]]:
    grid = draw(st.sampled_from([0.0001, 0.001, 0.01, 0.25, 1, 3, 45]))
    size = Fraction(str(grid)) * RAW_PER_DEG

    def coordinate(limit_deg: int) -> Pair:
        last = floor(limit_deg * RAW_PER_DEG / size) - 1
        n = draw(st.integers(-last - 1, last) if last > 0 else st.just(0))
        return draw(in_cells(n * size, (n + 1) * size))

    count = draw(st.integers(1, 20))
    return grid, [(coordinate(90), coordinate(180)) for _ in range(count)]


@settings(max_examples=100, deadline=None)
@given(drives=_in_one_grid_cell())
def test_positions_inside_one_cell_give_the_same_bytes(
    drives: tuple[float, list[tuple[Pair, Pair]]],
) -> None:
    grid, places = drives
    grants = {"read_location": {"min_interval_s": 1, "grid_deg": grid}}

    def drive(which: int) -> list[Frame]:
        return [
            car.position(T0_MS + i * 1000, lat[which] / RAW_PER_DEG, lon[which] / RAW_PER_DEG)
            for i, (lat, lon) in enumerate(places)
        ]

    found = of_car(grants, drive(0))

    assert found
    assert found == of_car(grants, drive(1))


def test_positions_in_two_cells_give_different_bytes() -> None:
    """The test above could fail."""
    grants = {"read_location": {"min_interval_s": 1, "grid_deg": 0.01}}

    one, other = ([car.position(T0_MS, lat, 2.005)] for lat in (1.0099, 1.0101))

    assert of_car(grants, one) != of_car(grants, other)


_ANY_SPEED = st.integers(0, 65_535)


@st.composite
def _between_samples(draw: st.DrawFn, interval_ms: int) -> tuple[list[Frame], list[Frame]]:
    """Drives with the same frames at the samples' times, and any others in between."""
    drives: tuple[list[Frame], list[Frame]] = ([], [])
    t_ms = T0_MS
    for _ in range(draw(st.integers(1, 8))):
        sample = car.speed(t_ms, draw(_ANY_SPEED) / RAW_PER_KM_H)
        for drive in drives:
            between = st.lists(st.tuples(st.integers(1, interval_ms - 1), _ANY_SPEED), max_size=5)
            drive.append(sample)
            drive += [
                car.speed(t_ms + after_ms, raw / RAW_PER_KM_H)
                for after_ms, raw in sorted(draw(between))
            ]
        t_ms += interval_ms + draw(st.integers(0, 500))
    return drives


@settings(max_examples=100, deadline=None)
@given(drives=_between_samples(1000))
def test_what_comes_between_two_samples_leaves_no_trace(
    drives: tuple[list[Frame], list[Frame]],
) -> None:
    grants = {"read_speedometer": {"min_interval_s": 1}}

    assert of_car(grants, drives[0]) == of_car(grants, drives[1])


@st.composite
def _changes_before_the_last(draw: st.DrawFn, interval_ms: int) -> tuple[list[Frame], list[Frame]]:
    """Drives whose last change in every interval is the same, whenever and after whatever."""
    drives: tuple[list[Frame], list[Frame]] = ([], [])
    t_ms, last = T0_MS, draw(_ANY_SPEED)
    for drive in drives:
        drive.append(car.speed(t_ms, last / RAW_PER_KM_H))
    for _ in range(draw(st.integers(1, 8))):
        last = draw(_ANY_SPEED.filter(lambda raw, last=last: raw != last))
        for drive in drives:
            after = draw(st.lists(st.integers(1, interval_ms - 1), min_size=1, max_size=5))
            raws = [draw(_ANY_SPEED) for _ in after[1:]] + [last]
            drive += [
                car.speed(t_ms + after_ms, raw / RAW_PER_KM_H)
                for after_ms, raw in zip(sorted(after), raws, strict=True)
            ]
        t_ms += interval_ms
    for drive in drives:
        drive.append(car.speed(t_ms + interval_ms, 0))
    return drives


@settings(max_examples=100, deadline=None)
@given(drives=_changes_before_the_last(1000))
def test_of_many_changes_only_the_last_of_each_interval_shows(
    drives: tuple[list[Frame], list[Frame]],
) -> None:
    """Neither how often a value changed nor when shows: the sample is stamped with the interval."""
    grants = {"read_speedometer": {"min_interval_s": 1}}

    found = of_car(grants, drives[0], ON_CHANGE)

    assert found == of_car(grants, drives[1], ON_CHANGE)


@settings(max_examples=100, deadline=None)
@given(
    moments=st.lists(
        st.tuples(st.integers(1, 5_000), _ANY_SPEED, st.integers(0, 999), st.integers(0, 999)),
        min_size=1,
        max_size=20,
    )
)
def test_what_lies_below_a_millisecond_leaves_no_trace(
    moments: list[tuple[int, int, int, int]],
) -> None:
    """A sample's time is that of its frame, in whole ms."""
    grants = {"read_odometer": {"min_interval_s": 0}}
    drives: tuple[list[Frame], list[Frame]] = ([], [])
    t_ms = T0_MS
    for pause_ms, metres, *micros in moments:
        t_ms += pause_ms
        for drive, below_ms in zip(drives, micros, strict=True):
            t_ns = t_ms * NS_PER_MS + below_ms * NS_PER_US
            drive.append((t_ns, *car.odometer(0, metres)[1:]))

    assert of_car(grants, drives[0]) == of_car(grants, drives[1])


@settings(max_examples=50, deadline=None)
@given(first=_ANY_SPEED, one=st.lists(_ANY_SPEED), other=st.lists(_ANY_SPEED))
def test_once_is_once(first: int, one: list[int], other: list[int]) -> None:
    grants = {"read_speedometer": {"once": True}}

    assert of_car(grants, speeds([first, *one])) == of_car(grants, speeds([first, *other]))


WINDOW_S = 10


@st.composite
def _same_results(draw: st.DrawFn, functions: list[str]) -> tuple[list[Frame], list[Frame]]:
    """Drives whose windows differ in whatever the functions do not tell."""
    drives: tuple[list[Frame], list[Frame]] = ([], [])
    for number in range(draw(st.integers(1, 9))):  # More than an open batch is old.
        raws = draw(st.lists(_ANY_SPEED, min_size=1, max_size=4))
        other = list(raws)
        if functions == ["last"]:
            other = [*draw(st.lists(_ANY_SPEED, max_size=8)), raws[-1]]
        elif functions == ["count"]:
            other = draw(st.lists(_ANY_SPEED, min_size=len(raws), max_size=len(raws)))
        elif set(functions) <= {"min", "max"}:
            between = st.integers(min(raws), max(raws))
            other = draw(st.permutations([min(raws), max(raws), *draw(st.lists(between))]))
        elif "last" in functions:
            other = [*draw(st.permutations(raws[:-1])), raws[-1]]
        else:
            other = draw(st.permutations(raws))
        for drive, values in zip(drives, (raws, other), strict=True):
            moment = st.integers(0, WINDOW_S * 1000 - 1)
            moments = draw(st.lists(moment, min_size=len(values), max_size=len(values)))
            first_ms = T0_MS - T0_MS % (WINDOW_S * 1000) + number * WINDOW_S * 1000
            drive += [
                car.speed(first_ms + after_ms, raw / RAW_PER_KM_H)
                for after_ms, raw in zip(sorted(moments), values, strict=True)
            ]
    return drives


@pytest.mark.parametrize(
    "functions",
    [
        *(["min"], ["max"], ["mean"], ["count"], ["last"], ["min", "max"]),
        ["min", "max", "mean", "count"],
        ["last", "mean", "count"],
    ],
)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_of_a_window_only_the_results_of_its_functions_leave(
    functions: list[str], data: st.DataObject
) -> None:
    """Neither what else was in it, nor in which order, nor when."""
    drives = data.draw(_same_results(functions))
    aggregate = {"window_s": WINDOW_S, "fn": functions}
    # A quantum makes means exact: a mean of floats depends on their order in the last bit.
    grants = {"read_speedometer": {"aggregate": aggregate, "quantum": 0.25}}

    one, other = (of_car(grants, drive) for drive in drives)

    assert one
    assert one == other


def test_another_result_gives_different_bytes() -> None:
    """The test above could fail."""
    for fn in ("min", "max", "mean", "last"):
        grants = {"read_speedometer": {"aggregate": {"window_s": WINDOW_S, "fn": [fn]}}}
        assert of_car(grants, speeds([700, 710])) != of_car(grants, speeds([690, 730]))


@settings(max_examples=50, deadline=None)
@given(drives=_in_one_grid_cell(), quanta=_in_one_quantum())
def test_inside_a_cell_or_a_quantum_nothing_shows_in_a_window(
    drives: tuple[float, list[tuple[Pair, Pair]]], quanta: tuple[float, list[Pair]]
) -> None:
    """Positions and numbers snap before they are compared, added up or counted."""
    grid, places = drives
    quantum, pairs = quanta
    every = {"window_s": 2, "fn": ["min", "max", "mean", "count", "last"]}
    grants = {
        "read_location": {"aggregate": every, "grid_deg": grid},
        "read_speedometer": {"aggregate": every, "quantum": quantum},
    }

    def drive(which: int) -> list[Frame]:
        return car.merged(
            [
                car.position(T0_MS + i * 500, lat[which] / RAW_PER_DEG, lon[which] / RAW_PER_DEG)
                for i, (lat, lon) in enumerate(places)
            ],
            speeds([pair[which] for pair in pairs], step_ms=300),
        )

    assert of_car(grants, drive(0)) == of_car(grants, drive(1))


def vehicle_of(name: str, captures: Path) -> tuple[Vehicle, dict[str, Any]]:
    """Return a vehicle with part of its captured drive, and its mapping as YAML has it."""
    files = VEHICLES[name]
    mapping = find(files["mapping"], captures)
    dbcs = tuple(find(dbc, captures) for dbc in files["dbc"])
    vehicle = covered.captured(find(files["log"], captures), dbcs, mapping, MOST_FRAMES)
    return vehicle, yaml.safe_load(mapping.read_text("utf-8"))


@pytest.mark.captures
@pytest.mark.parametrize("name", VEHICLES)
def test_on_captured_drives_nothing_shows_between_samples(captures: Path, name: str) -> None:
    """Every bit that only a path within its interval reads may be anything."""
    vehicle, mapping = vehicle_of(name, captures)
    grants = {
        scope: loosest if "once" in loosest else loosest | {"min_interval_s": INTERVAL_S}
        for scope, loosest in ((s, covered.loosest(s)) for s in vehicle.scopes)
    }
    policy = car.policy({"g1": grants})
    taken: list[tuple[str, int]] = []
    expected = sealed(vehicle.binding, policy, vehicle.frames, taken=taken)
    paths = [p for s in vehicle.scopes for p in covered.granted_paths(s, grants[s])]
    reaches = [vehicle.reaches[path] for path in paths if path in vehicle.reaches]
    steady = {r.path for r in reaches if not mapping[r.path]["dbc2vss"].get("on_change")}
    moments: dict[str, set[int]] = {}
    for path, t_ns in taken:
        moments.setdefault(path, set()).add(t_ns)
    rng = random.Random(name)

    other, changed = [], 0
    quiet_until: dict[str, int] = {}
    for t_ns, bus, can_id, data in vehicle.frames:
        word = int.from_bytes(data, "little")
        hot = 0
        near = [reach for reach in reaches if set(reach.keys) & set(covered.keys_of(can_id))]
        for reach in near:
            if t_ns >= quiet_until.get(reach.path, 0) or reach.path not in steady:
                hot |= reach.covers(word, len(data))
            if t_ns in moments.get(reach.path, ()):
                quiet_until[reach.path] = t_ns + INTERVAL_S * NS_PER_S
        new = word ^ (rng.getrandbits(8 * len(data) or 1) & ((1 << 8 * len(data)) - 1) & ~hot)
        changed += new != word and bool(near)
        other.append((t_ns, bus, can_id, new.to_bytes(len(data), "little")))

    assert changed > len(taken) > 0
    assert sealed(vehicle.binding, policy, other) == expected


@pytest.mark.captures
@pytest.mark.parametrize("name", VEHICLES)
def test_on_captured_drives_nothing_shows_inside_a_quantum_or_a_cell(
    captures: Path, name: str
) -> None:
    vehicle, mapping = vehicle_of(name, captures)
    quantum, grid = 10, 0.01
    grants = {
        scope: {"grid_deg": grid, "min_interval_s": 1}
        if "precise" in covered.loosest(scope)
        else covered.loosest(scope) | {"quantum": quantum}
        for scope in vehicle.scopes
        if "once" not in covered.loosest(scope)
    }
    policy = car.policy({"g1": grants})
    paths = [p for s in grants for p in covered.granted_paths(s, grants[s])]
    reaches = [vehicle.reaches[path] for path in paths if path in vehicle.reaches]
    exact = {  # What a location scope has besides positions.
        path
        for scope in grants
        if "quantum" not in grants[scope]
        for path in covered.granted_paths(scope, grants[scope])
        if not path.endswith((".Latitude", ".Longitude"))
    }
    cells = [
        _Cell(reach, Fraction(str(grid)), Fraction(0), _valid(mapping[reach.path]))
        if reach.path.endswith((".Latitude", ".Longitude"))
        else _Cell(reach, Fraction(quantum), Fraction(1, 2), _valid(mapping[reach.path]))
        for reach in reaches
        if _is_plain(reach, mapping[reach.path]) and reach.path not in exact
    ]

    other = list(_moved(vehicle.frames, cells, reaches, random.Random(name)))

    expected = sealed(vehicle.binding, policy, vehicle.frames)
    assert expected
    assert sum(a != b for a, b in zip(vehicle.frames, other, strict=True)) > len(cells) > 0
    assert sealed(vehicle.binding, policy, other) == expected


@dataclass(frozen=True, slots=True)
class _Cell:
    """Values of a path that cannot be told apart.

    Attributes:
        size: In the catalogue's unit.
        shift: What is added to value / size before it is rounded down.
        valid: The mapping's.
    """

    reach: Reach
    size: Fraction
    shift: Fraction
    valid: tuple[int, int]

    def elsewhere(self, word: int, rng: random.Random) -> int:
        """Return the payload with another raw value of the same cell, where there is one."""
        bits = self.reach.bits
        scale, offset = Fraction(str(bits.scale)), Fraction(str(bits.offset))
        least, most = sorted((Fraction(end) - offset) / scale for end in self.valid)
        raw = bits.raw(word)
        place = (raw * scale + offset) / self.size + self.shift
        ends = [(floor(place) - self.shift + end) * self.size for end in (0, 1)]
        borders = sorted((end - offset) / scale for end in ends)
        low = max(floor(borders[0]) + 1, bits.most[0], ceil(least))
        high = min(ceil(borders[1]), bits.most[-1] + 1, floor(most) + 1)
        if self.reach.keys[0][0] == "pgn" and len(bits.places) >= 8:
            high = min(high, 0xFB << (len(bits.places) - 8))  # SAE J1939-71: no measurement.
        inside = range(low, high)
        # Which cell a value on the border belongs to is for another test.
        if place == floor(place) or raw in bits.names or raw not in inside:
            return word
        new = rng.choice(inside)
        return word if new in bits.names else bits.with_raw(word, new)


def _valid(leaf: Mapping[str, Any]) -> tuple[int, int]:
    low, high = leaf["dbc2vss"].get("valid", (-(10**30), 10**30))
    return low, high


def _is_plain(reach: Reach, leaf: Mapping[str, Any]) -> bool:
    """Tell whether the DBC's value is the catalogue's, so that its cell is known here."""
    vss = next(
        signal
        for scope in covered.catalogue()["scopes"].values()
        for signal in scope["signals"]
        if signal["path"] == reach.path
    )
    return (
        vss["datatype"] not in ("boolean", "string")
        and leaf.get("unit", vss.get("unit")) == vss.get("unit")
        and "transform" not in leaf["dbc2vss"]
        and not reach.bits.is_float
    )


def _moved(
    frames: Sequence[Frame],
    cells: Sequence[_Cell],
    reaches: Sequence[Reach],
    rng: random.Random,
) -> Iterator[Frame]:
    """Yield the frames with every value that nobody else reads somewhere else in its cell."""
    cell_of = {cell.reach.path: cell for cell in cells}
    for t_ns, bus, can_id, data in frames:
        word = int.from_bytes(data, "little")
        keys = set(covered.keys_of(can_id))
        masks = {r.path: r.covers(word, len(data)) for r in reaches if keys & set(r.keys)}
        for path in sorted(masks.keys() & cell_of.keys()):
            own = cell_of[path].reach.bits.mask
            others = [mask for other, mask in masks.items() if other != path]
            if masks[path] & own and not any(mask & own for mask in others):
                word = cell_of[path].elsewhere(word, rng)
        yield t_ns, bus, can_id, word.to_bytes(len(data), "little")
