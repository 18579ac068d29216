"""Messages of several frames through the gate: only where granted, and like any other frame."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.binding import Binding, bind, merge
from agent.core.canfilter import compile_filters
from agent.core.dbc import parse_dbc
from agent.core.j1939tp import PGN_CM, PGN_DT
from agent.core.mapping import parse_mapping
from agent.core.model import NS_PER_S, Frame, Sample
from agent.core.pipeline import Pipeline
from agent.core.plan import Plan, compile_plan, empty_plan
from agent.core.policy import Policy
from agent.core.replay import Replay
from tests import car
from tests.unit.core.test_isotp import frames_of
from tests.unit.core.test_j1939tp import sent

UDS_ID, PGN = 0x7EC, 0xFEE3
DBC = b"""VERSION ""
BU_: E
BO_ 2028 ANSWER: 30 E
 SG_ Service M : 0|8@1+ (1,0) [0|0] "" E
 SG_ Charge m98 : 160|8@1+ (0.5,0) [0|0] "%" E
 SG_ Secret m98 : 80|8@1+ (1,0) [0|0] "" E
BO_ 2029 COUNTED: 30 E
 SG_ Odo : 168|16@1+ (1,0) [0|0] "m" E
BO_ 2566841342 EC1: 40 E
 SG_ Rpm : 96|16@1+ (0.125,0) [0|8031.875] "rpm" E
BO_ 100 DOOR: 1 E
 SG_ Door : 0|1@1+ (1,0) [0|1] "" E
BA_DEF_ BO_ "VFrameFormat" ENUM "StandardCAN","ExtendedCAN","reserved","J1939PG";
BA_DEF_DEF_ "VFrameFormat" "StandardCAN";
BA_ "VFrameFormat" BO_ 2566841342 3;
"""
CHARGE = "Vehicle.Powertrain.TractionBattery.StateOfCharge.Displayed"
RPM = "Vehicle.Powertrain.CombustionEngine.Speed"
DISTANCE = "Vehicle.TraveledDistance"
DOOR = "Vehicle.Cabin.Door.Row1.DriverSide.IsOpen"
LEAVES = {
    CHARGE: "signal: ANSWER.Charge, interval_ms: 0, transport: isotp",
    DISTANCE: "signal: COUNTED.Odo, interval_ms: 0, transport: isotp-length",
    RPM: "signal: EC1.Rpm, interval_ms: 0",
    DOOR: "signal: DOOR.Door, on_change: true",
}
EVERYTHING = {
    "read_battery": {"min_interval_s": 0},
    "read_odometer": {"min_interval_s": 0},
    "read_powertrain": {"min_interval_s": 0.1},
    "read_security": {"min_interval_s": 10},
}


def bound(**changed: str) -> Binding:
    leaves = LEAVES | changed
    text = "".join(f"{path}: {{type: sensor, dbc: {{{leaf}}}}}\n" for path, leaf in leaves.items())
    mapping = parse_mapping(text.encode(), name="m")
    return bind(mapping, [parse_dbc(DBC, name="d")], car.catalogue(), bus=None, any_bus=True)


def plan(policy: Policy, binding: Binding | None = None, now_s: int = 0) -> Plan:
    return compile_plan(policy, car.catalogue(), binding or bound(), now_ns=now_s * NS_PER_S)


def at(start_ms: float, datas: Sequence[bytes], can_id: int = UDS_ID) -> list[Frame]:
    """Return the frames of a message, 10 ms apart."""
    return [
        (round((start_ms + 10 * i) * 1e6), "can0", can_id, data) for i, data in enumerate(datas)
    ]


def answer(charge: float, secret: int = 7) -> bytes:
    data = bytearray(30)
    data[0], data[10], data[20] = 0x62, secret, round(charge * 2)
    return bytes(data)


def group(rpm: float, pgn: int = PGN, source: int = 0x17) -> list[Frame]:
    data = bytearray(b"\xff" * 40)
    data[12:14] = round(rpm * 8).to_bytes(2, "little")
    return [
        (round(10e6 * i), "can0", can_id, packet)
        for i, (can_id, packet) in enumerate(sent(pgn, source, 0xFF, bytes(data)))
    ]


def samples(pipeline: Pipeline) -> list[tuple[str, int, Any]]:
    pipeline.stop()
    got: list[Sample] = [s for batch in pipeline.drain() for s in batch.samples()]
    return sorted((s.path, s.t_ns // 10**6, s.value) for s in got)


def taken(frames: Sequence[Frame], policy: Policy | None = None) -> list[tuple[str, int, Any]]:
    pipeline = Pipeline(plan(policy or car.policy({"g": EVERYTHING})))
    pipeline.feed(frames)
    return samples(pipeline)


def test_an_iso_tp_answer_is_taken_at_the_time_of_its_last_frame() -> None:
    frames = at(1000, frames_of(answer(55.5)))

    assert taken(frames) == [(CHARGE, 1040, 55.5)]


def test_a_layout_that_counts_the_length_byte_is_one_byte_further() -> None:
    message = bytearray(30)
    message[20:22] = (4711).to_bytes(2, "little")

    assert taken(at(0, frames_of(bytes(message)), 0x7ED)) == [(DISTANCE, 40, 4711)]


def test_a_single_frame_is_a_message_too_and_what_it_lacks_is_absent() -> None:
    assert taken(at(0, [b"\x07\x62" + bytes(6)])) == []


def test_a_j1939_group_is_taken_from_its_packets() -> None:
    assert taken(group(800.0)) == [(RPM, 60, 800.0)]
    assert taken(group(800.0, pgn=0xFECA)) == []


def test_a_group_of_another_source_than_the_mapping_names_is_not_put_together() -> None:
    binding = bound(**{RPM: "signal: EC1.Rpm, source: 0x17"})
    made = plan(car.policy({"g": EVERYTHING}), binding)
    for source, count in ((0x17, 1), (0x18, 0)):
        pipeline = Pipeline(made)
        pipeline.feed(group(800.0, source=source))
        assert len(samples(pipeline)) == count


def test_frames_are_never_taken_for_the_message_nor_the_message_for_a_frame() -> None:
    """A raw frame with the right bits at the right place is no message."""
    raw = bytearray(64)
    raw[0], raw[20] = 0x62, 100

    assert taken(at(0, [bytes(raw)])) == []
    plain = bound(**{CHARGE: "signal: ANSWER.Charge, interval_ms: 0"})
    pipeline = Pipeline(plan(car.policy({"g": EVERYTHING}), plain))
    pipeline.feed(at(0, frames_of(answer(50))))
    assert samples(pipeline) == []


def test_only_what_a_live_grant_needs_of_transport_is_in_the_plan_and_in_the_filters() -> None:
    def keys(*scopes: str) -> tuple[set[int], set[int]]:
        made = plan(car.policy({"g": {scope: EVERYTHING[scope] for scope in scopes}}))
        return set(made.exact.get(None, {})), set(made.pgns.get(None, {}))

    assert keys("read_security") == ({100}, set())
    assert keys("read_battery") == ({UDS_ID}, set())
    assert keys("read_powertrain") == (set(), {PGN, PGN_CM, PGN_DT})
    filters = compile_filters(plan(car.policy({"g": {"read_powertrain": {}}})), "can0").filters
    for can_id, _ in sent(PGN, 0x17, 0xFF, bytes(40)):
        assert any(each.passes(can_id) for each in filters)
    assert not any(each.passes(0x7EC) for each in filters)


def test_a_message_goes_on_over_a_new_policy_that_wants_it_too() -> None:
    policy = car.policy({"g": EVERYTHING})
    more = car.policy({"g": EVERYTHING, "h": {"read_battery": {"min_interval_s": 0}}})
    uds, long = at(0, frames_of(answer(50))), group(800.0)
    pipeline = Pipeline(plan(policy))
    pipeline.feed([*uds[:2], *long[:2]])

    pipeline.swap(plan(more))

    pipeline.feed([*uds[2:], *long[2:]])
    assert [path for path, _, _ in samples(pipeline)] == [RPM, CHARGE, CHARGE]


def test_what_was_collected_before_a_revocation_or_a_grant_completes_nothing() -> None:
    policy = car.policy({"g": EVERYTHING})
    uds, long = at(0, frames_of(answer(50))), group(800.0)
    pipeline = Pipeline(plan(policy))
    pipeline.feed([*uds[:2], *long[:2]])

    pipeline.swap(empty_plan())
    pipeline.swap(plan(policy))

    pipeline.feed([*uds[2:], *long[2:]])
    assert samples(pipeline) == []


def test_a_swap_that_leaves_other_messages_lets_go_of_those_that_it_ends() -> None:
    """On the same identifier, or in the same bus's sessions."""
    dbc = DBC.replace(
        b"BO_ 100 DOOR",
        b'BO_ 2566842110 ODO: 20 E\n SG_ Long : 96|16@1+ (1,0) [0|0] "m" E\nBO_ 100 DOOR',
    )
    dbc = dbc + b'BA_ "VFrameFormat" BO_ 2566842110 3;\n'
    assert b"ODO" in dbc
    both = {"read_battery": {"min_interval_s": 0}, "read_powertrain": {"min_interval_s": 0.1}}
    for distance in ("ANSWER.Secret, transport: isotp-length", "ODO.Long"):
        leaves = {
            CHARGE: "signal: ANSWER.Charge, interval_ms: 0, transport: isotp",
            RPM: "signal: EC1.Rpm, interval_ms: 0",
            DISTANCE: f"signal: {distance}, interval_ms: 0",
        }
        text = "".join(f"{p}: {{type: sensor, dbc: {{{leaf}}}}}\n" for p, leaf in leaves.items())
        made = bind(
            parse_mapping(text.encode(), name="m"),
            [parse_dbc(dbc, name="d")],
            car.catalogue(),
            bus=None,
            any_bus=True,
        )
        assert made.disabled == {}
        all_of_it = car.policy({"g": both, "h": {"read_odometer": {"min_interval_s": 0}}})
        rest = car.policy({"h": {"read_odometer": {"min_interval_s": 0}}})
        uds, long = at(0, frames_of(answer(50))), group(800.0)
        pipeline = Pipeline(plan(all_of_it, made))
        pipeline.feed([*uds[:2], *long[:2]])

        pipeline.swap(plan(rest, made))
        pipeline.swap(plan(all_of_it, made))

        pipeline.feed([*uds[2:], *long[2:]])
        assert [row for row in samples(pipeline) if row[0] != DISTANCE] == []


def test_messages_that_could_not_be_put_together_are_counted_over_a_swap_too() -> None:
    pipeline = Pipeline(plan(car.policy({"g": EVERYTHING})))
    uds, long = at(0, frames_of(answer(50))), group(800.0)
    pipeline.feed([*uds[:2], uds[3], *long[:2], long[4]])
    assert pipeline.given_up == 2

    pipeline.swap(empty_plan())
    assert pipeline.given_up == 2
    pipeline.swap(plan(car.policy({"g": EVERYTHING})))
    pipeline.feed([*uds[:2], uds[3]])
    assert pipeline.given_up == 3


def test_the_part_of_a_message_that_comes_before_the_grant_begins_does_not_count() -> None:
    policy = car.policy({"g": EVERYTHING}, nbf=1)
    frames = at(980, frames_of(answer(50)))
    pipeline = Pipeline(plan(policy, now_s=1))

    pipeline.feed(frames)

    assert samples(pipeline) == []


def test_a_frame_of_a_message_under_way_does_not_make_time_pass() -> None:
    """Only a granted message shows that a held change is due, or a foreign packet would."""
    door = [(0, "can0", 100, b"\0"), (10**9, "can0", 100, b"\1")]
    late = at(11_000, frames_of(answer(50)))
    pipeline = Pipeline(plan(car.policy({"g": EVERYTHING})))

    pipeline.feed([*door, *late[:-1]])
    before = {path: counts.taken for (_, path), counts in pipeline.counts().items()}
    pipeline.feed(late[-1:])
    after = {path: counts.taken for (_, path), counts in pipeline.counts().items()}

    assert (before[DOOR], after[DOOR]) == (1, 2)


@given(st.data())
@settings(deadline=None, max_examples=20)
def test_bits_that_no_grant_covers_change_nothing(data: st.DataObject) -> None:
    """In the message itself, in other groups' packets between two messages, in foreign frames."""
    flips = data.draw(st.lists(st.integers(0, 255), min_size=30, max_size=30))
    noise = data.draw(st.binary(min_size=8, max_size=8))
    plain = answer(50)
    changed = bytearray(b ^ f for b, f in zip(plain, flips, strict=True))
    changed[0], changed[20] = plain[0], plain[20]
    own = group(800.0)
    foreign = [
        (round(1e9 + t_ns), bus, can_id, packet[:1] + noise[1:] if packet[0] < 32 else packet)
        for t_ns, bus, can_id, packet in group(1.0, pgn=0xFECA)
    ]

    one = [*at(0, frames_of(plain)), *own]
    two = [*at(0, frames_of(bytes(changed))), *own, *foreign, (0, "can0", 0x7EB, noise)]

    assert taken(one) == taken(two)
    assert len(taken(one)) == 2


def test_replay_counts_the_announced_groups_as_frames_of_the_path() -> None:
    replay = Replay(car.policy({"g": EVERYTHING}), car.catalogue(), bound())
    replay.feed(group(800.0))
    replay.finish()

    (row,) = [row for row in replay.report() if row.path == RPM]
    assert (row.frames, row.taken) == (1, 1)


@pytest.mark.parametrize(
    ("leaf", "why"),
    [
        ("signal: EC1.Rpm, transport: isotp", "transport is given, but EC1 is a J1939 message"),
    ],
)
def test_transport_that_cannot_be_disables_the_entry(leaf: str, why: str) -> None:
    assert bound(**{RPM: leaf}).disabled[RPM] == why


def test_a_message_longer_than_any_frame_without_transport_is_told() -> None:
    dbc = DBC.replace(b"ANSWER: 30", b"ANSWER: 65")
    text = f"{CHARGE}: {{type: sensor, dbc: {{signal: ANSWER.Charge{{}}}}}}"
    notes = [
        merge(
            [
                bind(
                    parse_mapping(text.replace("{}", more).encode(), name="m"),
                    [parse_dbc(dbc, name="d")],
                    car.catalogue(),
                    bus=None,
                )
            ]
        ).warnings
        for more in ("", ", transport: isotp")
    ]

    assert any("more than any frame" in note for note in notes[0])
    assert not any("more than any frame" in note for note in notes[1])
