"""The privacy switch on CAN: what one signal says, and nothing else does."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.dbc import parse_dbc
from agent.core.model import CAN_EFF_FLAG, CAN_RTR_FLAG, NS_PER_MS, NS_PER_S, Frame
from agent.core.switch import SignalSwitch, SwitchSignal, find_switch
from agent.errors import ConfigError
from tests import car

MAX_AGE_NS = 10 * NS_PER_S
TRUCK = b"""VERSION ""
BU_: E
BO_ 2566834942 PRIVACY: 8 E
 SG_ Wish : 0|8@1+ (0.5,0) [0|0] "" E
BA_DEF_ BO_ "VFrameFormat" ENUM "StandardCAN","ExtendedCAN","reserved","J1939PG";
BA_DEF_DEF_ "VFrameFormat" "J1939PG";
"""


def counter(private: tuple[float, ...] = (1, 3)) -> SwitchSignal:
    """The counter in the speed's frame, as a switch."""
    return find_switch([car.dbc()], bus="can0", signal="SPEED.Counter", private=private)


def switch(*, on_fault: bool = True, signal: SwitchSignal | None = None) -> SignalSwitch:
    return SignalSwitch(signal or counter(), private_on_fault=on_fault, max_age_ns=MAX_AGE_NS)


def says(t_ms: int, raw: int, *, bus: str = "can0", can_id: int = car.SPEED_ID) -> Frame:
    return t_ms * NS_PER_MS, bus, can_id, struct.pack("<HBB", 0, raw, 0)


def test_until_it_is_heard_it_says_what_holds_for_a_fault() -> None:
    assert switch().is_private
    assert not switch(on_fault=False).is_private
    assert switch().cuts([car.odometer(0, 1), car.foreign(1)]) == []


def test_it_turns_at_the_very_frame_and_only_when_it_changes() -> None:
    made = switch()

    turns = made.cuts([says(0, 0), says(1, 0), says(2, 1), says(3, 3), says(4, 2), says(5, 1)])

    assert turns == [(0, False), (2, True), (4, False), (5, True)]
    assert made.is_private
    assert made.cuts([says(6, 1)]) == []


@pytest.mark.parametrize(
    "frame",
    {
        "another bus": says(1, 1, bus="can1"),
        "another id": says(1, 1, can_id=car.ODOMETER_ID),
        "the extended id of that number": says(1, 1, can_id=car.SPEED_ID | CAN_EFF_FLAG),
        "a remote frame": says(1, 1, can_id=car.SPEED_ID | CAN_RTR_FLAG),
        "a payload that is too short": (NS_PER_MS, "can0", car.SPEED_ID, b"\x01\x01"),
        "an empty payload": (NS_PER_MS, "can0", car.SPEED_ID, b""),
    }.items(),
    ids=lambda item: item[0],
)
def test_what_does_not_carry_it_says_nothing(frame: tuple[str, Frame]) -> None:
    made = switch()
    made.cuts([says(0, 0)])

    assert made.cuts([frame[1]]) == []
    assert not made.is_private


@pytest.mark.parametrize("on_fault", [True, False])
def test_what_was_not_heard_for_too_long_is_not_known(on_fault: bool) -> None:  # noqa: FBT001
    made = switch(on_fault=on_fault)
    made.cuts([says(0, 1 if not on_fault else 0)])
    late = 10_001

    turns = made.cuts([car.odometer(10_000, 1), car.odometer(late, 2), car.odometer(late + 1, 3)])

    assert turns == [(1, on_fault)]


def test_hearing_it_keeps_it_known() -> None:
    made = switch()
    made.cuts([says(0, 0)])

    assert made.cuts([says(9_000, 0), car.odometer(18_000, 1), says(19_000, 0)]) == []


def test_silence_is_noticed_without_frames() -> None:
    made = switch()
    made.cuts([says(0, 0)])

    assert not made.tick(MAX_AGE_NS)
    assert made.tick(MAX_AGE_NS + 1)
    assert made.is_private
    assert not made.tick(MAX_AGE_NS + 2)


def test_a_clock_that_was_set_back_is_no_reason_to_believe_it() -> None:
    made = switch()
    made.cuts([says(100_000, 0)])

    assert made.cuts([car.odometer(1_000, 1)]) == [(0, True)]
    assert made.cuts([says(1_001, 0)]) == [(0, False)]


def test_a_parameter_group_is_heard_from_every_source_and_not_available_is_a_fault() -> None:
    signal = find_switch(
        [parse_dbc(TRUCK, name="t.dbc")], bus="can0", signal="PRIVACY.Wish", private=[0.5]
    )
    made = switch(signal=signal)

    def wish(t_ms: int, raw: int, source: int = 0x21, pgn: int = 0xFEC1) -> Frame:
        can_id = CAN_EFF_FLAG | 6 << 26 | pgn << 8 | source
        return t_ms * NS_PER_MS, "can0", can_id, bytes([raw]) + bytes(7)

    pgn = 2566834942 >> 8 & 0xFFFF
    heard = [
        (wish(0, 0, pgn=pgn), (0, False)),
        (wish(1, 1, source=0x99, pgn=pgn), (1, True)),
        (wish(2, 0, pgn=pgn), (2, False)),
        (wish(3, 0xFE, pgn=pgn), (3, True)),
        (wish(4, 0xFA, pgn=pgn), (4, False)),
        (wish(5, 0xFB, pgn=pgn), (5, True)),
    ]

    assert made.cuts([frame for frame, _ in heard]) == [turn for _, turn in heard]
    assert signal.is_carried_by(heard[1][0][2])
    assert not signal.is_carried_by(wish(0, 0, pgn=0xFEC1)[2] & ~CAN_EFF_FLAG)


@given(
    st.lists(
        st.tuples(st.integers(0, 30_000), st.sampled_from([0x64, 0xC8]), st.integers(0, 4)),
        max_size=30,
    ),
    st.lists(st.integers(1, 5), max_size=10),
    st.booleans(),
)
def test_it_says_the_same_however_the_frames_are_cut_into_chunks(
    raws: list[tuple[int, int, int]],
    sizes: list[int],
    on_fault: bool,  # noqa: FBT001
) -> None:
    """And the same as a slow reader of each frame by itself."""
    frames = [says(t_ms, raw, can_id=can_id) for t_ms, can_id, raw in raws]
    made, seen = switch(on_fault=on_fault), []
    rest = list(frames)
    for size in [*sizes, len(frames)]:
        chunk, rest = rest[:size], rest[size:]
        state = made.is_private
        turns = dict(made.cuts(chunk))
        for index in range(len(chunk)):
            state = turns.get(index, state)
            seen.append(state)

    expected, heard, state = [], None, on_fault
    for t_ms, can_id, raw in raws:
        if heard is not None and abs(t_ms - heard) > 10_000:
            heard, state = None, on_fault
        if can_id == 0x64:
            heard, state = t_ms, raw in (1, 3)
        expected.append(state)
    assert seen == expected


def test_a_name_that_no_dbc_has_is_an_error_that_names_close_ones() -> None:
    with pytest.raises(ConfigError, match=r"no DBC file of bus can0 has SPEED\.Countr") as refused:
        find_switch([car.dbc()], bus="can0", signal="SPEED.Countr", private=[1])

    assert "SPEED.Counter" in (refused.value.hint or "")


def test_a_name_with_several_meanings_is_an_error() -> None:
    other = parse_dbc(car.DBC.replace(b"16|8@1+", b"24|8@1+"), name="other.dbc")

    with pytest.raises(ConfigError, match="2 times"):
        find_switch([car.dbc(), other], bus="can0", signal="SPEED.Counter", private=[1])
    assert find_switch([car.dbc(), car.dbc()], bus="b", signal="SPEED.Counter", private=[1])
