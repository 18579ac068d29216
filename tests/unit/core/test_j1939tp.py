"""J1939-21 transport, put together as it passes by, against python-can-j1939 as the sender."""

import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from j1939.j1939_21 import J1939_21

from agent.core.j1939tp import MAX_SESSIONS, J1939Reassembly

MS = 1_000_000
PGN = 0xFE_E3
OTHER = 0xFE_CA
PEER = 0xEF_00  # PDU1: the destination stands in the identifier.

Frame = tuple[int, bytes]


def identifier(pgn: int, source: int, destination: int = 0xFF, priority: int = 7) -> int:
    return 0x8000_0000 | priority << 26 | pgn << 8 | destination << 8 | source


def sent(pgn: int, source: int, destination: int, message: bytes, window: int = 255) -> list[Frame]:
    """Return what python-can-j1939 puts on the bus for a message, both sides of it."""
    bus: list[Frame] = []
    ends: dict[int, Any] = {}

    def send(can_id: int, _: bool, data: Any) -> None:  # noqa: FBT001 - the library's signature
        bus.append((can_id | 0x8000_0000, bytes(data)))

    def end(address: int) -> Any:
        return J1939_21(
            send, lambda: None, lambda *_: None, window, None, 0, lambda to: to == address
        )

    ends = {source: end(source), destination: end(destination)}
    ends[source].send_pgn(
        pgn >> 16, pgn >> 8 & 0xFF, (pgn & 0xFF) or destination, 6, source, list(message), 0, 0
    )
    seen = 0
    while True:
        while seen < len(bus):
            can_id, data = bus[seen]
            seen += 1
            ends[destination if can_id & 0xFF == source else source].notify(
                can_id & 0x1FFF_FFFF, bytearray(data), 0.0
            )
        ends[source].async_job_thread(time.monotonic())
        if seen == len(bus):
            return bus


def put_together(
    bus: J1939Reassembly, frames: list[Frame], step_ns: int = MS, start_ns: int = 0
) -> list[Frame]:
    made = [bus.feed(start_ns + i * step_ns, *frame) for i, frame in enumerate(frames)]
    return [message for message in made if message is not None]


def everything() -> J1939Reassembly:
    return J1939Reassembly(lambda _pgn, _source: True)


def number(frame: Frame) -> int:
    return frame[1][0]


def is_packet(frame: Frame) -> bool:
    return frame[0] >> 16 & 0xFF == 0xEB


@pytest.mark.parametrize("length", [9, 14, 15, 40, 255, 1785])
def test_a_broadcast_is_put_together(length: int) -> None:
    message = bytes(index * 5 & 0xFF for index in range(length))
    bus = everything()

    assert put_together(bus, sent(PGN, 0x17, 0xFF, message)) == [
        (identifier(PGN, 0x17, 0, 6), message)
    ]
    assert bus.broken == 0


@pytest.mark.parametrize("window", [1, 3, 255])
@pytest.mark.parametrize("length", [9, 40, 1785])
def test_a_connection_is_put_together(length: int, window: int) -> None:
    message = bytes(index * 5 & 0xFF for index in range(length))
    frames = sent(PEER, 0x17, 0x42, message, window)

    assert any(not is_packet(frame) and number(frame) == 17 for frame in frames)
    assert put_together(everything(), frames) == [(identifier(PEER, 0x17, 0x42, 6), message)]


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_sessions_run_side_by_side(data: st.DataObject) -> None:
    queues = []
    for index in range(data.draw(st.integers(2, 5))):
        destination = data.draw(st.sampled_from([0xFF, 0x80 + index]))
        pgn = PGN if destination == 0xFF else PEER
        size = data.draw(st.integers(9, 60))
        queues.append(sent(pgn, index, destination, bytes([index + 1]) * size))
    whole = [put_together(everything(), queue)[0] for queue in queues]
    mixed = []
    while queues:
        queue = data.draw(st.sampled_from(queues))
        mixed.append(queue.pop(0))
        queues = [queue for queue in queues if queue]

    assert sorted(put_together(everything(), mixed)) == sorted(whole)


@given(st.data())
@settings(deadline=None, max_examples=100)
def test_losses_repetitions_and_swaps_never_mix_messages(data: st.DataObject) -> None:
    """What comes out was sent; of what nobody touched everything comes out.

    Only the length may be that of the announcement before, of the same group, where one was missed.
    """
    messages = [
        bytes([index * 16 + k & 0xFF for k in range(data.draw(st.integers(9, 50)))])
        for index in range(3)
    ]
    frames: list[tuple[int, Frame]] = []
    for index, message in enumerate(messages):
        destination = data.draw(st.sampled_from([0xFF, 0x42]))
        pgn = PGN if destination == 0xFF else PEER
        frames += [(index, frame) for frame in sent(pgn, 0x17, destination, message)]
    touched = set()
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(frames) - 2))
        touched |= {frames[at][0], frames[at + 1][0]}
        match data.draw(st.sampled_from(["lose", "repeat", "swap"])):
            case "lose" if len(frames) > 2:
                frames.pop(at)
            case "repeat":
                frames.insert(at, frames[at])
            case _ if frames[at][0] == frames[at + 1][0]:  # Between messages nobody could tell.
                frames[at], frames[at + 1] = frames[at + 1], frames[at]

    got = [message for _, message in put_together(everything(), [frame for _, frame in frames])]

    padded = [message + bytes([0xFF]) * 50 for message in messages]
    assert all(any(whole.startswith(message) for whole in padded) for message in got)
    for index, message in enumerate(messages):
        if index not in touched and index - 1 not in touched and index + 1 not in touched:
            assert message in got


def test_a_packet_that_comes_twice_at_once_counts_once_whatever_is_in_it() -> None:
    """Bits that no grant covers must not decide whether there is a sample."""
    announced, *packets = sent(PGN, 0x17, 0xFF, bytes(range(20)))
    changed = (packets[0][0], packets[0][1][:-1] + b"\xee")
    for again in (packets[0], changed):
        frames = [announced, packets[0], again, *packets[1:]]
        assert [m for _, m in put_together(everything(), frames)] == [bytes(range(20))]
        assert put_together(everything(), frames, 6 * MS) == []


def test_an_older_packet_at_once_is_no_repetition() -> None:
    announced, *packets = sent(PGN, 0x17, 0xFF, bytes(range(30)))

    assert put_together(everything(), [announced, *packets[:2], packets[0], *packets[2:]]) == []


@pytest.mark.parametrize("destination", [0xFF, 0x42])
def test_packets_of_a_message_whose_announcement_was_missed_never_mix(destination: int) -> None:
    pgn = PGN if destination == 0xFF else PEER
    first = sent(pgn, 0x17, destination, b"\x01" * 30)
    second = sent(pgn, 0x17, destination, b"\x02" * 30)
    packets = [frame for frame in second if is_packet(frame)]
    for kept in range(1, 6):
        begun = [*(f for f in first if not is_packet(f)), *(f for f in first if is_packet(f))][
            :kept
        ]
        for _, message in put_together(everything(), [*begun, *packets], 50 * MS):
            assert message in (b"\x01" * 30, b"\x02" * 30)


def test_a_clear_to_send_for_another_group_ends_the_session() -> None:
    announced, cleared, *packets = sent(PEER, 0x17, 0x42, bytes(20))
    other = (cleared[0], cleared[1][:5] + b"\xca\xfe\x00")

    assert put_together(everything(), [announced, other, *packets]) == []


def test_a_broadcast_that_misses_a_packet_is_given_up() -> None:
    announced, *packets = sent(PGN, 0x17, 0xFF, bytes(30))
    bus = everything()

    assert put_together(bus, [announced, packets[0], *packets[2:]]) == []
    assert bus.broken == 1


def test_a_receiver_may_ask_for_a_packet_again() -> None:
    frames = sent(PEER, 0x17, 0x42, bytes(range(20)))
    announced, cleared, *packets = frames[:5]
    again = (cleared[0], b"\x11\x02\x02" + cleared[1][3:])
    lost = [announced, cleared, packets[0], packets[2], again, *packets[1:]]

    assert [m for _, m in put_together(everything(), lost)] == [bytes(range(20))]


def test_a_receiver_may_ask_for_one_packet_again_and_go_on_behind_what_it_has() -> None:
    """SAE J1939-21 5.10.2.4, 5.10.3: it lost the second of three and needs no other of them."""
    announced, cleared, *packets = sent(PEER, 0x17, 0x42, bytes(range(40)), window=3)[:5]
    rest = [f for f in sent(PEER, 0x17, 0x42, bytes(range(40))) if is_packet(f)][3:]
    again = (cleared[0], b"\x11\x01\x02" + cleared[1][3:])
    go_on = (cleared[0], b"\x11\x03\x04" + cleared[1][3:])
    frames = [announced, cleared, *packets[:3], again, packets[1], go_on, *rest]

    assert [m for _, m in put_together(everything(), frames)] == [bytes(range(40))]


def test_a_receiver_that_has_more_than_came_by_here_ends_the_message() -> None:
    frames = sent(PEER, 0x17, 0x42, bytes(40), window=2)
    without_first = [frame for frame in frames if not (is_packet(frame) and number(frame) == 1)]
    bus = everything()

    assert put_together(bus, without_first) == []
    assert bus.broken == 1


@pytest.mark.parametrize("by_originator", [True, False])
def test_an_abort_from_either_side_ends_the_session(by_originator: bool) -> None:  # noqa: FBT001
    announced, *packets = sent(PEER, 0x17, 0x42, bytes(20))
    ends = (0x17, 0x42) if by_originator else (0x42, 0x17)
    abort = (identifier(0xEC00, *ends), b"\xff\x03\xff\xff\xff" + announced[1][5:])
    foreign = (abort[0], abort[1][:5] + b"\xca\xfe\x00")

    assert put_together(everything(), [announced, abort, *packets]) == []
    assert len(put_together(everything(), [announced, foreign, *packets])) == 1


@pytest.mark.parametrize(("destination", "limit_ms"), [(0xFF, 750), (0x42, 1250)])
def test_a_session_ends_when_its_next_frame_is_late(destination: int, limit_ms: int) -> None:
    pgn = PGN if destination == 0xFF else PEER
    frames = sent(pgn, 0x17, destination, bytes(20))

    assert len(put_together(everything(), frames, limit_ms * MS)) == 1
    late = everything()
    assert put_together(late, frames, limit_ms * MS + 1) == []
    assert late.broken == 1


def test_a_new_announcement_ends_the_session_before_it_wanted_or_not() -> None:
    """Its packets would else count as the wanted message's."""
    wanted, other = sent(PGN, 0x17, 0xFF, b"\x01" * 20), sent(OTHER, 0x17, 0xFF, b"\x02" * 20)
    bus = J1939Reassembly(lambda pgn, _: pgn == PGN)

    assert put_together(bus, [wanted[0], *other, *wanted[1:]]) == []
    assert put_together(bus, [*other, *wanted]) == [(identifier(PGN, 0x17, 0, 6), b"\x01" * 20)]


def test_unwanted_groups_and_sources_are_not_put_together() -> None:
    bus = J1939Reassembly(lambda pgn, source: (pgn, source) == (PGN, 0x17))

    assert put_together(bus, sent(OTHER, 0x17, 0xFF, bytes(20))) == []
    assert put_together(bus, sent(PGN, 0x18, 0xFF, bytes(20))) == []
    assert bus.broken == 0


def test_who_is_not_wanted_any_more_is_forgotten_and_the_others_go_on() -> None:
    kept, gone = sent(PGN, 0x17, 0xFF, bytes(20)), sent(OTHER, 0x18, 0xFF, bytes(20))
    bus = everything()
    put_together(bus, [kept[0], gone[0]])

    bus.want(lambda pgn, _: pgn == PGN)

    assert len(put_together(bus, [*gone[1:], *kept[1:]])) == 1


def test_too_many_sessions_push_out_the_oldest() -> None:
    queues = [sent(PGN, source, 0xFF, bytes(20)) for source in range(MAX_SESSIONS + 1)]
    bus = everything()
    put_together(bus, [queue[0] for queue in queues])

    got = put_together(bus, [frame for queue in queues for frame in queue[1:]], step_ns=1)

    assert [can_id & 0xFF for can_id, _ in got] == list(range(1, MAX_SESSIONS + 1))


@pytest.mark.parametrize(
    ("size", "packets"), [(8, 2), (0, 0), (1786, 256), (1786, 255), (20, 2), (20, 4), (65535, 255)]
)
def test_an_announcement_that_does_not_add_up_opens_nothing(size: int, packets: int) -> None:
    data = bytes((32, size & 0xFF, size >> 8, packets & 0xFF, 0xFF)) + PGN.to_bytes(3, "little")
    bus = everything()

    put_together(bus, [(identifier(0xEC00, 0x17), data)])

    assert put_together(bus, sent(PGN, 0x17, 0xFF, bytes(20))[1:]) == []


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0xEC00, 0xEB00]),
            st.integers(0, 2),
            st.integers(0, 2),
            st.one_of(
                st.binary(max_size=9),
                st.builds(
                    lambda head, rest: bytes((head,)) + rest,
                    st.sampled_from([1, 2, 3, 16, 17, 19, 32, 255]),
                    st.sampled_from(
                        [b"\x0e\x00\x02\xff\xe3\xfe\x00", b"\x01\x01\xff\xff\xe3\xfe\x00"]
                    ),
                ),
            ),
        ),
        max_size=60,
    )
)
def test_any_bytes_are_borne(frames: list[tuple[int, int, int, bytes]]) -> None:
    bus = everything()

    made = put_together(bus, [(identifier(p, s, d), data) for p, s, d, data in frames])

    assert all(9 <= len(message) <= 1785 for _, message in made)


def test_the_sender_of_these_tests_sends_what_the_standard_says() -> None:
    """20 bytes are an announcement and 3 packets, numbered from 1, padded with 0xFF."""
    announced, *packets = sent(PGN, 0x17, 0xFF, bytes(20))

    assert announced[1] == bytes((32, 20, 0, 3, 255, 0xE3, 0xFE, 0))
    assert [number(packet) for packet in packets] == [1, 2, 3]
    assert packets[-1][1] == b"\x03" + bytes(6) + b"\xff"
    assert all(b[1][0] - a[1][0] == 1 for a, b in pairwise(packets))
