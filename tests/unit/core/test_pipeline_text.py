"""Characters out of messages, under a grant of their scope alone; layouts written out by hand.

OBD-II (SAE J1979, ISO 15031-5): 49 02 01, then 17 characters, by ISO 15765-2 in three frames.
J1939 (SAE J1939-71, PGN 65260): the characters, then `*`, by a broadcast of three packets.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.binding import Binding, bind
from agent.core.codec import decode, encode
from agent.core.dbc import parse_dbc
from agent.core.mapping import parse_mapping
from agent.core.model import NS_PER_S, Frame
from agent.core.obd import questions
from agent.core.pipeline import Pipeline
from agent.core.plan import Plan, compile_plan
from agent.core.transform import Drop
from agent.errors import MappingError
from tests import car

VIN, BRAND = "Vehicle.VehicleIdentification.VIN", "Vehicle.VehicleIdentification.Brand"
SPEED = "Vehicle.Speed"
EXAMPLE = "1M8GDM9AXKP042788"  # Published; no vehicle has it.
OBD_SCOPES = {"read_vin": {}, "read_speedometer": {"min_interval_s": 0.1}}

OBD_ANSWER = """
    10 14 49 02 01 31 4D 38
    21 47 44 4D 39 41 58 4B
    22 50 30 34 32 37 38 38"""
EMPTY = "10 14 49 02 01 FF FF FF\n21" + " FF" * 7 + "\n22" + " FF" * 7
BROADCAST = """
    20 12 00 03 FF EC FE 00
    01 31 4D 38 47 44 4D 39
    02 41 58 4B 50 30 34 32
    03 37 38 38 2A FF FF FF"""


def lines(text: str, *can_ids: int) -> list[Frame]:
    """Return frames, 10 ms apart; the last identifier is that of all that are left."""
    datas = [bytes.fromhex(line) for line in text.strip().splitlines()]
    ids = [*can_ids, *[can_ids[-1]] * len(datas)]
    return [(i * 10_000_000, "obd", ids[i], data) for i, data in enumerate(datas)]


def obd(text: str = OBD_ANSWER, can_id: int = 0x7E8) -> list[Frame]:
    return lines(text, can_id)


def broadcast(text: str = BROADCAST, source: int = 0) -> list[Frame]:
    return lines(text, 0x98EC_FF00 | source, 0x98EB_FF00 | source)


@cache
def bound(mapping: str = "obd2_gnss.vspec") -> Binding:
    names = ["j1939.dbc"] if "j1939" in mapping else ["obd2.dbc", "obd2_answers.dbc"]
    return bind(
        parse_mapping((car.ROOT / "config/vehicles" / mapping).read_bytes(), name=mapping),
        [parse_dbc((car.ROOT / "dbc" / name).read_bytes(), name=name) for name in names],
        car.catalogue(),
        bus=None,
    )


def planned(binding: Binding, scopes: Any, **members: Any) -> Plan:
    policy = car.policy({"g": scopes} if scopes else {}, **members)
    return compile_plan(policy, car.catalogue(), binding, now_ns=0)


def taken(
    frames: Sequence[Frame], mapping: str = "obd2_gnss.vspec", scopes: Any = None
) -> list[tuple[str, Any]]:
    pipeline = Pipeline(planned(bound(mapping), {"read_vin": {}} if scopes is None else scopes))
    pipeline.feed(frames)
    pipeline.stop()
    return [(s.path, s.value) for batch in pipeline.drain() for s in batch.samples()]


def test_a_vin_in_an_answer_of_three_frames_is_taken() -> None:
    assert taken(obd()) == [(VIN, EXAMPLE)]
    assert taken(obd(can_id=0x98DAF110), "obd2_29bit.vspec") == [(VIN, EXAMPLE)]


def test_a_vin_in_a_j1939_broadcast_is_taken() -> None:
    assert taken(broadcast(), "j1939_truck.vspec") == [(VIN, EXAMPLE)]


def test_a_vin_in_a_j1939_connection_is_taken() -> None:
    rts, *packets = broadcast(BROADCAST.replace("20 12", "10 12").replace("03 FF EC", "03 03 EC"))
    changed = [(t, bus, can_id & ~0xFF00 | 0xF900, data) for t, bus, can_id, data in packets]

    got = taken([(*rts[:2], 0x98EC_F900, rts[3]), *changed], "j1939_truck.vspec")

    assert got == [(VIN, EXAMPLE)]


def test_it_survives_the_codec_as_text() -> None:
    pipeline = Pipeline(planned(bound(), {"read_vin": {}}))
    pipeline.feed(obd())
    pipeline.stop()
    (batch,) = pipeline.drain()

    (column,) = decode(encode(batch))

    assert (column.path, column.scope, column.datatype) == (VIN, "read_vin", "string")
    assert column.values == (EXAMPLE,)


def test_without_a_grant_of_its_scope_nothing_of_it_is_in_the_plan() -> None:
    every: dict[str, Any] = {
        name: {} for name, scope in car.catalogue().scopes.items() if name != "read_vin"
    }
    grantable = {
        name: limits
        for name, limits in every.items()
        if car.catalogue().classes[car.catalogue().scopes[name].scope_class].grantable
    }
    for scopes in (grantable, {}):
        plan = planned(bound(), scopes)
        assert VIN not in {take.path for take in plan.takes}
        assert [value for path, value in taken(obd(), scopes=scopes) if path == VIN] == []
    assert planned(bound("j1939_truck.vspec"), {"read_odometer": {}}).taps("obd", 0x98ECFF00) == ()


def test_it_is_taken_once_and_what_was_none_does_not_use_that_up() -> None:
    pipeline = Pipeline(planned(bound(), {"read_vin": {}}))
    for round_s, answer in enumerate((EMPTY, OBD_ANSWER, OBD_ANSWER)):
        pipeline.feed([(t + 5 * round_s * NS_PER_S, *rest) for t, *rest in obd(answer)])  # type: ignore[misc]

    counts = pipeline.counts()["g", VIN]

    assert (counts.taken, counts.drops) == (1, {Drop.NOT_AVAILABLE: 1})


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (OBD_ANSWER.replace("31 4D 38", "00 00 00"), Drop.NO_TEXT),  # 14 characters
        (OBD_ANSWER.replace("4D 39", "4F 39"), Drop.NO_TEXT),  # the letter O
        (EMPTY, Drop.NOT_AVAILABLE),
    ],
)
def test_what_is_no_vin_is_dropped_and_counted(answer: str, why: Drop) -> None:
    pipeline = Pipeline(planned(bound(), {"read_vin": {}}))
    pipeline.feed(obd(answer))

    counts = pipeline.counts()["g", VIN]

    assert (counts.taken, counts.drops) == (0, {why: 1})
    assert EXAMPLE[:3] not in str(counts)


@pytest.mark.parametrize(
    "answer",
    [
        OBD_ANSWER.replace("49 02", "49 04"),  # a calibration identification
        OBD_ANSWER.replace("49 02", "62 02"),
        "04 49 02 01 31 00 00 00",  # a single frame that lacks the rest
        "03 7F 09 12 00 00 00 00",  # refused
        "03 7F 09 78 00 00 00 00",  # to be answered later
        "\n".join(OBD_ANSWER.strip().splitlines()[1:]),  # its beginning was missed
    ],
)
def test_no_other_answer_passes_for_a_vin(answer: str) -> None:
    pipeline = Pipeline(planned(bound(), {"read_vin": {}}))
    pipeline.feed(obd(answer))

    counts = pipeline.counts()["g", VIN]

    assert (counts.taken, counts.drops) == (0, {})


def test_a_speed_beside_it_is_taken_too_and_neither_passes_for_the_other() -> None:
    speed: Frame = (NS_PER_S, "obd", 0x7E8, bytes.fromhex("03410D32AAAAAAAA"))

    both = taken([*obd(), speed], scopes=OBD_SCOPES)
    only_speed = taken([*obd(), speed], scopes={"read_speedometer": {"min_interval_s": 0.1}})

    assert dict(both) == {VIN: EXAMPLE, SPEED: 50}
    assert only_speed == [(SPEED, 50)]


@given(st.binary(min_size=17, max_size=17))
@settings(deadline=None, max_examples=50)
def test_bits_of_a_vin_that_is_not_granted_change_nothing(characters: bytes) -> None:
    """All but the speed's own frame, which another grant covers."""
    first = bytes.fromhex("1014490201") + characters[:3]
    frames = [first, b"\x21" + characters[3:10], b"\x22" + characters[10:]]
    answer = "\n".join(frame.hex(" ") for frame in frames)
    speed: Frame = (NS_PER_S, "obd", 0x7E8, bytes.fromhex("03410D32AAAAAAAA"))

    got = taken([*obd(answer), speed], scopes={"read_speedometer": {"min_interval_s": 0.1}})

    assert got == [(SPEED, 50)]


def test_the_poller_asks_for_it_under_its_grant_alone() -> None:
    asked = questions(planned(bound(), {"read_vin": {}}), bound(), "obd")

    assert [(q.request_id, q.answer_id, q.service, q.pid) for q in asked] == [(0x7E0, 0x7E8, 9, 2)]
    speed = questions(planned(bound(), {"read_speedometer": {}}), bound(), "obd")
    assert [(q.service, q.pid) for q in speed] == [(1, 13)]


def test_it_is_a_question_for_those_who_want_it_once() -> None:
    grants = {"g": OBD_SCOPES, "h": {"read_vin": {}}}
    plan = compile_plan(car.policy(grants), car.catalogue(), bound(), now_ns=0)

    asked = {(q.service, q.pid): q.once for q in questions(plan, bound(), "obd")}

    assert asked == {(9, 2): {("g", VIN), ("h", VIN)}, (1, 13): frozenset()}


def test_a_vin_that_a_tester_reads_by_uds_is_taken_with_the_dbc_of_the_document() -> None:
    """ISO 14229-1: 62, the identifier F190, then 17 characters."""
    document = (car.ROOT / "docs" / "mapping.md").read_text("utf-8")
    dbc, leaf = re.findall(r"```dbc\n(.*?)```.*?```yaml\n(.*?)```", document, re.DOTALL)[0]
    made = bind(
        parse_mapping(leaf.encode(), name="m"),
        [parse_dbc(dbc.encode(), name="d")],
        car.catalogue(),
        bus=None,
    )
    answer = OBD_ANSWER.replace("49 02 01", "62 F1 90")
    other = OBD_ANSWER.replace("49 02 01", "62 F1 91")
    pipeline = Pipeline(planned(made, {"read_vin": {}}))

    pipeline.feed([*obd(other, 0x7EA), *obd(OBD_ANSWER, 0x7EA), *obd(answer, 0x7EA)])
    pipeline.stop()

    (batch,) = pipeline.drain()
    assert [(s.path, s.value) for s in batch.samples()] == [(VIN, EXAMPLE)]
    assert pipeline.counts()["g", VIN].drops == {}
    assert made.warnings == ()


DBC = b"""VERSION ""
BU_: E
BO_ 100 PLATE: 8 E
 SG_ Name : 0|64@1+ (1,0) [0|0] "" E
 SG_ Motorola : 7|64@0+ (1,0) [0|0] "" E
 SG_ Signed : 0|64@1- (1,0) [0|0] "" E
 SG_ Odd : 0|60@1+ (1,0) [0|0] "" E
 SG_ Shifted : 4|56@1+ (1,0) [0|0] "" E
 SG_ Named : 0|8@1+ (1,0) [0|0] "" E
 SG_ Number : 0|8@1+ (1,0) [0|0] "" E
VAL_ 100 Named 1 "MAN" ;
"""


def plate(path: str, leaf: str) -> Binding:
    text = f"{path}: {{type: sensor, dbc: {{{leaf}}}}}".encode()
    return bind(
        parse_mapping(text, name="m"), [parse_dbc(DBC, name="d")], car.catalogue(), bus=None
    )


@pytest.mark.parametrize("signal", ["Name", "Motorola"])
def test_characters_stand_in_the_order_of_the_bytes_whatever_the_byte_order(signal: str) -> None:
    pipeline = Pipeline(
        planned(plate(BRAND, f"signal: {signal}, text: ascii"), {"read_vehicle_info": {}})
    )

    pipeline.feed([(0, "can0", 100, b"Scania\0\0"), (60 * NS_PER_S, "can0", 100, b"Sca")])
    pipeline.stop()

    (batch,) = pipeline.drain()
    assert [sample.value for sample in batch.samples()] == ["Scania"]


@pytest.mark.parametrize(
    ("path", "leaf", "why"),
    [
        (BRAND, "signal: Name", "the mapping says text: ascii"),
        (VIN, "signal: Name", "the mapping says text: vin"),
        (BRAND, "signal: Name, text: vin", "says text: vin, but this path is text: ascii"),
        (VIN, "signal: Name, text: ascii", "says text: ascii, but this path is text: vin"),
        (SPEED, "signal: Name, text: ascii", "text is given, but the path is float"),
        (BRAND, "signal: Signed, text: ascii", "Signed is no text"),
        (BRAND, "signal: Odd, text: ascii", "Odd is no text"),
        (BRAND, "signal: Shifted, text: ascii", "Shifted is no text"),
        (BRAND, "signal: Named, text: ascii", "Named is no text"),
    ],
)
def test_what_cannot_be_characters_disables_the_entry(path: str, leaf: str, why: str) -> None:
    made = plate(path, leaf)

    assert made.bound == ()
    assert why in made.disabled[path]


@pytest.mark.parametrize(
    ("leaf", "why"),
    [
        ("signal: Name, text: utf8", "text: must be ascii or vin"),
        ("signal: Name, text: true", "text: must be ascii or vin"),
        ("signal: Name, text: ascii, transform: {math: x}", "text: stands beside transform"),
    ],
)
def test_a_wrong_key_makes_the_file_wrong(leaf: str, why: str) -> None:
    with pytest.raises(MappingError, match=why):
        plate(BRAND, leaf)


def test_a_signal_may_be_a_text_for_one_path_and_a_number_for_another() -> None:
    both = plate(BRAND, "signal: Name, text: ascii")
    number = plate("Vehicle.TripMeterReading", "signal: Number, interval_ms: 0")
    merged = replace(both, bound=(*both.bound, *number.bound))
    scopes = {"read_vehicle_info": {}, "read_odometer": {"min_interval_s": 0}}
    pipeline = Pipeline(planned(merged, scopes))

    pipeline.feed([(0, "can0", 100, b"Scania\0\0")])
    pipeline.stop()

    (batch,) = pipeline.drain()
    assert {s.path: s.value for s in batch.samples()} == {
        BRAND: "Scania",
        "Vehicle.TripMeterReading": ord("S"),
    }
