"""Which questions a plan asks for: what a live grant covers, and nothing else."""

from functools import cache
from pathlib import Path
from typing import Any

import cantools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.binding import Binding, bind, merge
from agent.core.dbc import parse_dbc
from agent.core.mapping import parse_mapping
from agent.core.model import CAN_EFF_FLAG, NS_PER_S
from agent.core.obd import Answer, Heard, Question, questions, request_id
from agent.core.plan import compile_plan
from tests import car

ROOT = Path(__file__).resolve().parents[3]
ORACLE: Any = cantools.database.load_file(ROOT / "dbc" / "obd2.dbc")
SCOPES = {
    "read_speedometer": {"min_interval_s": 0.5},
    "read_fuel": {"min_interval_s": 30},
    "read_powertrain": {"min_interval_s": 0.1},
    "read_odometer": {"min_interval_s": 0},
    "read_thermometer": {"min_interval_s": 0},
    "read_location": {"min_interval_s": 60, "grid_deg": 0.01},
}


@cache
def bound(mapping: str = "obd2_gnss.vspec", bus: str = "obd") -> Binding:
    return bind(
        parse_mapping((ROOT / "config/vehicles" / mapping).read_bytes(), name=mapping),
        [parse_dbc((ROOT / "dbc/obd2.dbc").read_bytes(), name="obd2.dbc")],
        car.catalogue(),
        bus=bus,
    )


def asked(binding: Binding, *scopes: str, bus: str = "obd", now_s: int = 0) -> tuple[Question, ...]:
    policy = car.policy({"g": {scope: SCOPES[scope] for scope in scopes}}) if scopes else None
    plan = compile_plan(
        policy, car.catalogue(), binding, now_ns=now_s * NS_PER_S, named_buses=["obd", "other"]
    )
    return questions(plan, binding, bus)


def test_a_granted_speed_is_asked_for_by_its_pid_and_nothing_else_is() -> None:
    (question,) = asked(bound(), "read_speedometer")

    assert (question.request_id, question.answer_id) == (0x7E0, 0x7E8)
    assert (question.service, question.pid) == (1, 13)
    assert question.interval_ns == NS_PER_S // 2
    assert question.data == b"\x02\x01\x0d\xcc\xcc\xcc\xcc\xcc"


def test_a_path_that_two_may_have_is_asked_for_as_the_one_that_wants_it_more_often() -> None:
    for first, second in ((0.5, 30), (30, 0.5)):
        policy = car.policy(
            {
                "g": {"read_speedometer": {"min_interval_s": first}},
                "h": {"read_speedometer": {"min_interval_s": second}},
            }
        )
        plan = compile_plan(policy, car.catalogue(), bound(), now_ns=0, named_buses=["obd"])
        (question,) = questions(plan, bound(), "obd")
        assert question.interval_ns == NS_PER_S // 2


def test_29_bit_answers_are_asked_for_with_29_bits() -> None:
    (question,) = asked(bound("obd2_29bit.vspec"), "read_speedometer")

    assert question.request_id == CAN_EFF_FLAG | 0x18DA10F1
    assert question.answer_id == CAN_EFF_FLAG | 0x18DAF110


@settings(deadline=None, max_examples=30)
@given(st.sets(st.sampled_from(sorted(SCOPES))))
def test_each_question_is_that_of_a_granted_signal_as_cantools_has_it(scopes: set[str]) -> None:
    binding = bound()
    granted = {
        item.field.name
        for item in binding.bound
        if item.scope.name in scopes and item.message.startswith("OBD_")
    }
    message = ORACLE.get_message_by_name("OBD_ECM_11BIT")
    wanted = set()
    for name in granted:
        signal = message.get_signal_by_name(name)
        service = {"Pid": 1, "InfoType": 9}[signal.multiplexer_signal]
        wanted |= {(service, pid) for pid in signal.multiplexer_ids}

    got = asked(binding, *sorted(scopes))

    assert {(question.service, question.pid) for question in got} == wanted
    assert len(got) == len(wanted)


def test_without_a_policy_or_on_another_bus_nothing_is_asked() -> None:
    assert asked(bound()) == ()
    assert asked(bound(), "read_speedometer", bus="other") == ()
    both = merge([bound(bus="obd"), bound(bus="other")])
    assert len(asked(both, "read_speedometer", bus="other")) == 1


@pytest.mark.parametrize(
    "signal",
    [
        'Open m65 : 31|8@0+ (1,0) [0|0] "" T',  # no PID
        'Open : 31|8@0+ (1,0) [0|0] "" T',
    ],
)
def test_a_signal_whose_pid_the_dbc_leaves_open_is_not_asked_for(signal: str) -> None:
    text = (
        f'VERSION ""\nBU_: T\nBO_ 2024 A: 8 T\n SG_ Service M : 8|8@1+ (1,0) [0|0] "" T\n'
        f" SG_ {signal}\n"
    )
    binding = bind(
        parse_mapping(b"Vehicle.Speed: {type: sensor, dbc: {signal: A.Open}}", name="m"),
        [parse_dbc(text.encode(), name="d")],
        car.catalogue(),
        bus="obd",
    )

    assert binding.bound
    assert asked(binding, "read_speedometer") == ()


@pytest.mark.parametrize(
    ("service", "is_asked"), [(0x41, True), (0x49, True), (0x62, False), (0x44, False)]
)
@pytest.mark.parametrize("transport", ["", ", transport: isotp-length", ", transport: isotp"])
def test_only_services_that_read_are_asked_whatever_carries_the_answer(
    service: int,
    is_asked: bool,  # noqa: FBT001 - drawn
    transport: str,
) -> None:
    first = 0 if transport.endswith("isotp") else 8
    text = (
        f'VERSION ""\nBU_: T\nBO_ 2024 A: 60 T\n SG_ Service M : {first}|8@1+ (1,0) [0|0] "" T\n'
        f' SG_ Pid m{service}M : {first + 8}|8@1+ (1,0) [0|0] "" T\n'
        f' SG_ V m5 : {first + 16}|8@1+ (1,0) [0|0] "" T\nSG_MUL_VAL_ 2024 V Pid 5-5;\n'
        f"SG_MUL_VAL_ 2024 Pid Service {service}-{service};\n"
    )
    leaf = f"Vehicle.Speed: {{type: sensor, dbc: {{signal: A.V{transport}}}}}"
    binding = bind(
        parse_mapping(leaf.encode(), name="m"),
        [parse_dbc(text.encode(), name="d")],
        car.catalogue(),
        bus="obd",
    )

    got = [(q.service, q.pid) for q in asked(binding, "read_speedometer")]
    assert got == ([(service - 0x40, 5)] if is_asked else [])


def test_only_answers_of_obd_have_a_request() -> None:
    assert [request_id(i) for i in (0x7E7, 0x7E8, 0x7EF, 0x7F0)] == [None, 0x7E0, 0x7E7, None]
    assert request_id(CAN_EFF_FLAG | 0x18DAF110) == CAN_EFF_FLAG | 0x18DA10F1
    assert request_id(0x18DAF110) is None
    assert request_id(CAN_EFF_FLAG | 0x7E8) is None


ASKED = Question(0x7E0, 0x7E8, 1, 0x0D, 0)
VIN_ASKED = Question(0x7E0, 0x7E8, 9, 2, 0)


def heard(question: Question, *frames: str) -> list[Heard]:
    answer = Answer(question)
    return [answer.hear(bytes.fromhex(frame)) for frame in frames]


@pytest.mark.parametrize(
    ("frames", "meanings"),
    [
        (["03410D32AAAAAAAA"], [Heard.WHOLE]),
        (["06410D320C1AF8AA"], [Heard.WHOLE]),  # Other PIDs are in it too.
        (["0441" + "0C1AF8" + "AAAAAA"], [Heard.NOTHING]),  # Another PID,
        (["03490D3200000000"], [Heard.NOTHING]),  # another service,
        (["21410D3200000000"], [Heard.NOTHING]),  # a part of another answer,
        (["1014490201314D38"], [Heard.NOTHING]),  # and the beginning of one.
        (["037F0112AAAAAAAA"], [Heard.REFUSED]),
        (["037F0912AAAAAAAA"], [Heard.NOTHING]),
        (["037F0978AAAAAAAA"], [Heard.NOTHING]),
        (["037F0178AAAAAAAA", "03410D32AAAAAAAA"], [Heard.PENDING, Heard.WHOLE]),
        (["037F0178AAAAAAAA"] * 6, [Heard.PENDING] * 5 + [Heard.REFUSED]),
        (["", "03", "0341"], [Heard.NOTHING] * 3),
    ],
)
def test_only_its_own_answer_answers_a_question(frames: list[str], meanings: list[Heard]) -> None:
    """Frames as SAE J1979 and ISO 15765-2 have them, written out by hand."""
    assert heard(ASKED, *frames) == meanings


def test_an_answer_of_several_frames_is_whole_with_its_last_one() -> None:
    frames = ["1014490201314D38", "2147444D3941584B", "30000A", "2250303432373838"]

    assert heard(VIN_ASKED, *frames) == [Heard.BEGUN, Heard.NOTHING, Heard.NOTHING, Heard.WHOLE]
    assert heard(VIN_ASKED, *frames[1:]) == [Heard.NOTHING] * 3
    assert heard(VIN_ASKED, frames[0], frames[0]) == [Heard.BEGUN, Heard.NOTHING]


@given(st.lists(st.binary(max_size=8), max_size=30))
def test_any_frames_are_borne(frames: list[bytes]) -> None:
    answer = Answer(ASKED)

    for frame in frames:
        meaning = answer.hear(frame)
        assert meaning is not Heard.WHOLE or frame[1:3] == b"\x41\x0d" or answer.is_begun
