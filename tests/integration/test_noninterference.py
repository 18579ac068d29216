"""Nothing that no live grant covers changes a byte of what is sealed.

Two drives that agree in the bits that the live grants cover, and differ in whatever else frames can
differ in, must give the same samples, batches, plaintext bytes, header times and counts.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vehicle_oracle import VEHICLES, find

from agent.core.codec import encode
from agent.core.model import (
    CAN_EFF_FLAG,
    CAN_EFF_MASK,
    CAN_ERR_FLAG,
    CAN_RTR_FLAG,
    CAN_SFF_MASK,
    NS_PER_S,
    Batch,
    Frame,
)
from agent.core.pipeline import Pipeline, TakeCounts
from agent.core.plan import compile_plan
from agent.core.policy import Policy
from agent.core.seal import header_times
from tests import car, covered
from tests.covered import Cover, Reach, Vehicle

MOST_FRAMES = 40_000
FEWER_FRAMES = 4_000
KINDS = ("some", "two", "default", "loosest", "ending", "coarse", "once", "aggregates", "hours")
MIDDLE_S = 1_800_000_000  # 08:00 UTC: where the middle of a drive is put for windows.
MORNING, LATER = (
    {"days": "1-7", "from": begin, "to": end, "tz": "UTC"}
    for begin, end in (("07:00", "08:00"), ("08:00", "09:00"))
)
FUNCTIONS = ["min", "max", "mean", "count", "last"]
CAR_SCOPES = {
    "read_speedometer": {"min_interval_s": 0.1},
    "read_odometer": {"min_interval_s": 0},
    "read_location": {"min_interval_s": 1, "grid_deg": 0.5},
    "read_security": {"min_interval_s": 1},
    "read_vin": {"once": True},
}
CAR_WINDOWS: dict[str, dict[str, Any]] = {
    "read_speedometer": {"aggregate": {"window_s": 0.5, "fn": FUNCTIONS}, "quantum": 7},
    "read_odometer": {"aggregate": {"window_s": 10, "fn": FUNCTIONS}},
    "read_location": {"aggregate": {"window_s": 1, "fn": ["last", "mean"]}, "windows": [LATER]},
    "read_security": {"aggregate": {"window_s": 3, "fn": FUNCTIONS}},
    "read_vin": {"windows": [MORNING]},
}
T0_S = 1_800_000_000

Step = Frame | int  # A frame, or the moment of a tick in ns.


@dataclass(frozen=True, slots=True)
class Case:
    """A policy, and what it covers of a vehicle."""

    policy: Policy
    cover: Cover


@dataclass(frozen=True, slots=True)
class Outcome:
    """All of a drive that leaves the vehicle, or is counted for a grant."""

    samples: list[tuple[str, str, str | None, int, Any]]
    batches: list[Batch]
    plaintexts: list[bytes]
    header_times: list[tuple[int, int]]
    counts: dict[tuple[str, str], TakeCounts]

    def by_grant(self) -> dict[str, list[bytes]]:
        grants: dict[str, list[bytes]] = {}
        for batch, plaintext in zip(self.batches, self.plaintexts, strict=True):
            grants.setdefault(batch.grant_id, []).append(plaintext)
        return grants


def run(vehicle: Vehicle, case: Case, drive: Sequence[Step], from_ns: int) -> Outcome:
    """Run a drive through the pipeline; a plan that has run out is replaced at the next tick."""
    samples: list[tuple[str, str, str | None, int, Any]] = []
    pipeline = Pipeline(
        on_sample=lambda take, t_ns, value: samples.append(
            (take.grant_id, take.path, take.fn, t_ns, value)
        )
    )
    batches: list[Batch] = []
    counts: dict[tuple[str, str], TakeCounts] = {}

    def swap(now_ns: int) -> None:
        plan = compile_plan(case.policy, car.catalogue(), vehicle.binding, now_ns=now_ns)
        pipeline.swap(plan)

    def count() -> None:
        counts.update(pipeline.counts())

    swap(from_ns)
    portion: list[Frame] = []
    for step in drive:
        if not isinstance(step, int):
            portion.append(step)
            continue
        pipeline.feed(portion)
        portion = []
        pipeline.tick(step)
        count()
        if step >= pipeline.plan.until_ns:
            swap(step)
        batches += pipeline.drain()
    pipeline.feed(portion)
    count()
    pipeline.stop()
    batches += pipeline.drain()
    return Outcome(
        samples,
        batches,
        [encode(batch) for batch in batches],
        [header_times(batch) for batch in batches],
        counts,
    )


def with_ticks(frames: Sequence[Frame]) -> list[Step]:
    """Put a tick behind every second of a drive, and some behind its end."""
    made: list[Step] = list(frames[:1])
    for before, frame in pairwise(frames):
        if before[0] // NS_PER_S < frame[0] // NS_PER_S:
            made.append(frame[0] // NS_PER_S * NS_PER_S)
        made.append(frame)
    end_ns = max(frame[0] for frame in frames)
    return [*made, *(end_ns + second * NS_PER_S for second in (1, 61, 121))]


def disturbed(drive: Sequence[Step], cover: Cover, rng: random.Random) -> list[Step]:
    """Change whatever the live grants do not cover."""
    made: list[Step] = []
    for step in drive:
        if isinstance(step, int):
            made.append(step)
            continue
        mask = cover.of(step)
        new = _strangers(step, rng) if rng.random() < 0.2 else []
        if mask is None:
            new += _changed(step, rng)
        made += [frame for frame in new if cover.of(frame) is None]
        if mask is not None:
            made.append(_same_where_covered(step, mask, cover, rng))
    return made


def _changed(frame: Frame, rng: random.Random) -> list[Frame]:
    """Keep, drop, flip, truncate, lengthen, move, double or rename a frame that nobody may have."""
    t_ns, bus, can_id, data = frame
    flipped = t_ns, bus, can_id, bytes(byte ^ rng.getrandbits(8) for byte in data)
    made: list[list[Frame]] = [
        [],
        [frame],
        [flipped],
        [frame, flipped],
        [(t_ns, bus, can_id, data[: rng.randrange(len(data) + 1)])],
        [(t_ns, bus, can_id, data + rng.randbytes(rng.randrange(57)))],
        [(t_ns + rng.randrange(-(10**12), 10**12), bus, can_id, data)],
        [(t_ns, "elsewhere", can_id, data)],
    ]
    return rng.choice(made)


def _strangers(frame: Frame, rng: random.Random) -> list[Frame]:
    """Frames that were not there, among them all that looks like this one and is another."""
    t_ns, bus, can_id, data = frame
    ids = [can_id | CAN_RTR_FLAG, can_id | CAN_ERR_FLAG, can_id ^ CAN_EFF_FLAG]
    ids += [rng.getrandbits(11), rng.getrandbits(29) | CAN_EFF_FLAG]
    if can_id & CAN_EFF_FLAG:
        ids.append(can_id & CAN_SFF_MASK)
        ids.append(can_id ^ (1 << rng.randrange(8, 26)))  # Another parameter group.
    return [(t_ns, bus, rng.choice(ids), data) for _ in range(2)]


def _same_where_covered(frame: Frame, mask: int, cover: Cover, rng: random.Random) -> Frame:
    """Change a granted frame where no grant covers it: payload bits, its bus, J1939's address."""
    t_ns, bus, can_id, data = frame
    word = int.from_bytes(data, "little") ^ (rng.getrandbits(8 * len(data) or 1) & ~mask)
    payload = (word & ((1 << 8 * len(data)) - 1)).to_bytes(len(data), "little")
    if cover.is_carrier(can_id):
        return t_ns, bus, can_id, payload
    if cover.is_pgn(can_id):
        free = 0x1C00_0000  # The priority.
        if not cover.named_sources(can_id):
            free |= 0xFF
        if can_id >> 16 & 0xFF < 240:  # PDU1: the next byte is a destination.
            free |= 0xFF00
        can_id ^= rng.getrandbits(29) & free & CAN_EFF_MASK
    made = t_ns, rng.choice((bus, "elsewhere")), can_id, payload
    assert cover.of(made) == mask, "what is covered follows from covered bits alone"
    return made


@cache
def vehicle_of(name: str, captures: Path, most_frames: int = MOST_FRAMES) -> Vehicle:
    files = VEHICLES[name]
    dbcs = tuple(find(dbc, captures) for dbc in files["dbc"])
    return covered.captured(
        find(files["log"], captures), dbcs, find(files["mapping"], captures), most_frames
    )


@cache
def small_car() -> Vehicle:
    return covered.load({"car.dbc": car.DBC}, car.MAPPING)


def case_of(vehicle: Vehicle, kind: str) -> Case:
    """Make a policy of a kind for a vehicle, with grants that are not live beside the live ones."""
    scopes = vehicle.scopes
    loosest = {scope: covered.loosest(scope) for scope in scopes}
    half, others = scopes[::2], scopes[1::2]
    middle_s = vehicle.frames[len(vehicle.frames) // 2][0] // NS_PER_S
    dead: dict[str, Any] = {
        "paused": {"state": "paused"},
        "revoked": {"state": "revoked"},
        "over": {"exp": vehicle.frames[0][0] // NS_PER_S},
    }
    everybody: dict[str, Any] = dict.fromkeys(dead, loosest)
    ended: dict[str, int] = {}
    match kind:
        case "some":
            grants: dict[str, Any] = {"g1": {scope: {} for scope in half}}
        case "two":
            grants = {
                "g1": {scope: loosest[scope] for scope in half},
                "g2": {half[0]: loosest[half[0]] | {"quantum": 7}}
                | {scope: loosest[scope] for scope in others},
            }
        case "default":
            grants = {"g1": {scope: {} for scope in scopes}}
        case "loosest":
            grants = {"g1": loosest}
        case "coarse":
            grants = {"g1": {scope: _coarse(scope) for scope in scopes}}
        case "once":
            grants = {"g1": {scope: {"once": True} for scope in scopes}}
        case "aggregates":
            grants = {
                "g1": {scope: _aggregate(loosest[scope], 1) for scope in scopes},
                "g2": {scope: _aggregate(_coarse(scope), 7) for scope in half},
            }
        case "hours":
            # Scopes that close for both, that open for both, and that pass from one to the other.
            hours = ([MORNING, LATER, MORNING], [MORNING, LATER, LATER])
            first, second = (
                {scope: {"windows": [which[n % 3]]} for n, scope in enumerate(scopes)}
                for which in hours
            )
            grants = {
                "g1": {scope: loosest[scope] | first[scope] for scope in scopes},
                "g2": {scope: _aggregate(loosest[scope], 7) | second[scope] for scope in scopes},
            }
        case _:
            grants = {"g1": loosest, "g2": {scope: {} for scope in half}}
            ended["g1"] = dead.setdefault("g1", {"exp": middle_s})["exp"]
    policy = car.policy(everybody | grants, **dead)
    return Case(policy, vehicle.cover(grants, ended=ended))


def _coarse(scope: str) -> dict[str, Any]:
    loosest = covered.loosest(scope)
    grid = {"grid_deg": 0.05} if loosest.pop("precise", False) else {}
    return loosest if "once" in loosest else loosest | grid | {"quantum": 3}


def _aggregate(constraints: dict[str, Any], window_s: float) -> dict[str, Any]:
    """Give what leaves under these constraints in windows; what is given once stays so."""
    if "once" in constraints:
        return constraints
    rest = {name: value for name, value in constraints.items() if name != "min_interval_s"}
    return rest | {"aggregate": {"window_s": window_s, "fn": FUNCTIONS}}


def _moved_to_a_minute(vehicle: Vehicle) -> Vehicle:
    """Move a drive in time so that windows open and close in the middle of it."""
    middle_ns = vehicle.frames[len(vehicle.frames) // 2][0]
    later_ns = MIDDLE_S * NS_PER_S - middle_ns
    frames = [(t_ns + later_ns, *rest) for t_ns, *rest in vehicle.frames]
    return replace(vehicle, frames=frames)


@pytest.mark.captures
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", VEHICLES)
def test_what_no_live_grant_covers_changes_nothing(captures: Path, name: str, kind: str) -> None:
    """Flipped bits, and added, dropped, truncated and moved frames of ids that nobody may have."""
    vehicle = vehicle_of(name, captures)
    if kind == "hours":
        vehicle = _moved_to_a_minute(vehicle)
    case = case_of(vehicle, kind)
    drive = with_ticks(vehicle.frames)
    start_ns = vehicle.frames[0][0]
    other = disturbed(drive, case.cover, random.Random(f"{name} {kind}"))
    assert len(set(drive) - set(other)) > len(drive) / 4, "the drives differ"

    outcome = run(vehicle, case, drive, start_ns)

    assert outcome.samples
    assert run(vehicle, case, other, start_ns) == outcome


@pytest.mark.captures
@pytest.mark.parametrize("name", VEHICLES)
def test_every_granted_path_depends_on_its_own_bits(captures: Path, name: str) -> None:
    """The test above could fail: flip one covered bit in all frames, and the plaintext differs."""
    vehicle = vehicle_of(name, captures, FEWER_FRAMES)
    case = case_of(vehicle, "loosest")
    start_ns = vehicle.frames[0][0]
    before = run(vehicle, case, with_ticks(vehicle.frames), start_ns)
    sampled = sorted({sample[1] for sample in before.samples})
    assert sampled

    for path in sampled:
        reach = vehicle.reaches[path]
        assert any(
            run(
                vehicle, case, with_ticks(_flipped(vehicle.frames, reach, place)), start_ns
            ).plaintexts
            != before.plaintexts
            for place in reach.bits.places
        ), f"no bit of {path} matters"


def _flipped(frames: Sequence[Frame], reach: Reach, place: int) -> list[Frame]:
    made = []
    for t_ns, bus, can_id, data in frames:
        payload = data
        if set(reach.keys) & set(covered.keys_of(can_id)):
            word = int.from_bytes(data, "little")
            if reach.covers(word, len(data)) >> place & 1:
                payload = (word ^ 1 << place).to_bytes(len(data), "little")
        made.append((t_ns, bus, can_id, payload))
    return made


def _small_drives() -> st.SearchStrategy[list[Step]]:
    """Drives of the small car: any payload of its ids and of others, and ticks anywhere."""
    ids = (car.SPEED_ID, car.ODOMETER_ID, car.POSITION_ID, car.DOOR_ID, car.FOREIGN_ID)
    frame = st.tuples(st.sampled_from(ids), st.binary(max_size=9))
    moment = st.tuples(st.integers(0, 3_000), frame | st.none())

    def placed(moments: list[tuple[int, tuple[int, bytes] | None]]) -> list[Step]:
        made: list[Step] = []
        t_ns = T0_S * NS_PER_S
        for pause_ms, what in moments:
            t_ns += pause_ms * 1_000_000
            made.append(t_ns if what is None else (t_ns, "can0", *what))
        return [*made, t_ns + 100 * NS_PER_S]

    return st.lists(moment, min_size=1, max_size=60).map(placed)


def _small_cases() -> st.SearchStrategy[Case]:
    scopes = st.lists(st.sampled_from(sorted(CAR_SCOPES)), unique=True, max_size=4)

    def made(first: list[str], second: list[str], limits: Mapping[str, Any]) -> Case:
        grants = {
            name: {scope: limits.get(scope, {}) for scope in scopes}
            for name, scopes in (("g1", first), ("g2", second))
            if scopes
        }
        return Case(car.policy(grants), small_car().cover(grants))

    return st.builds(made, scopes, scopes, st.sampled_from([{}, CAR_SCOPES, CAR_WINDOWS]))


@settings(max_examples=150, deadline=None)
@given(drive=_small_drives(), case=_small_cases(), rng=st.integers().map(random.Random))
def test_random_frames_do_not_interfere(drive: list[Step], case: Case, rng: random.Random) -> None:
    start_ns = T0_S * NS_PER_S
    other = disturbed(drive, case.cover, rng)

    assert run(small_car(), case, other, start_ns) == run(small_car(), case, drive, start_ns)


@settings(max_examples=150, deadline=None)
@given(drive=_small_drives(), case=_small_cases())
def test_when_the_clock_is_looked_at_changes_no_batch(drive: list[Step], case: Case) -> None:
    """In the daemon that moment depends on how busy the bus is, so it must not matter."""
    start_ns = T0_S * NS_PER_S
    end_ns = drive[-1]
    frames = [step for step in drive if not isinstance(step, int)]
    often = [step for frame in frames for step in (frame, frame[0])]

    expected = run(small_car(), case, [*frames, end_ns], start_ns)

    assert run(small_car(), case, drive, start_ns).by_grant() == expected.by_grant()
    assert run(small_car(), case, [*often, end_ns], start_ns).by_grant() == expected.by_grant()


def test_a_flood_of_unknown_ids_changes_nothing() -> None:
    """More ids than the gate remembers, before and between the granted frames."""
    vehicle = small_car()
    grants = {"g1": {"read_odometer": {"min_interval_s": 0}, "read_location": {}}}
    case = Case(car.policy(grants), vehicle.cover(grants))
    start_ms = T0_S * 1000
    frames = car.merged(
        [car.odometer(start_ms + i * 1000, i) for i in range(200)],
        [car.position(start_ms + i * 1000, 1 + i / 100, 2) for i in range(200)],
    )
    flood = [
        (frames[0][0] + i * 10_000_000, "can0", CAN_EFF_FLAG | 0x1000 + i, b"\xff" * 8)
        for i in range(20_000)
    ]
    flooded = [*flood[:9000], *car.merged(frames, flood[9000:])]

    expected = run(vehicle, case, [*frames, frames[-1][0] + NS_PER_S], frames[0][0])

    assert len(expected.samples) > 200
    assert run(vehicle, case, [*flooded, frames[-1][0] + NS_PER_S], frames[0][0]) == expected
