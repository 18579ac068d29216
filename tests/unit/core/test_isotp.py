"""ISO 15765-2 messages put together as they pass by, against can-isotp on both ends of the line."""

import logging
from collections import deque
from typing import Any

import isotp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.isotp import LONGEST_GAP_NS, N_BS_NS, N_CR_NS, IsoTpReassembly

MS = 1_000_000
EVERYTHING = 10**6
PARAMS: dict[str, Any] = {"stmin": 0, "blocksize": 0, "max_frame_size": 20_000}
WAYS: list[tuple[int | None, int]] = [(None, 8), (0xF1, 8), (None, 64), (0xF1, 24)]

logging.getLogger("isotp").setLevel(logging.CRITICAL)


class Line:
    """can-isotp at both ends; keeps the payloads that the sender put on the bus."""

    def __init__(self, address: int | None, tx_dl: int) -> None:
        self.sent: list[bytes] = []
        to_receiver: deque[isotp.CanMessage] = deque()
        to_sender: deque[isotp.CanMessage] = deque()
        params = PARAMS | {"tx_data_length": tx_dl, "can_fd": tx_dl > 8}

        def put(message: isotp.CanMessage) -> None:
            self.sent.append(bytes(message.data))
            to_receiver.append(message)

        def end(inbox: deque[isotp.CanMessage], send: Any, near: int, far: int) -> Any:
            kind = isotp.AddressingMode.Normal_11bits
            more: dict[str, int] = {}
            if address is not None:
                kind = isotp.AddressingMode.Extended_11bits
                more = {"source_address": 0x10, "target_address": address}
                if near == 0x7E0:
                    more = {"source_address": address, "target_address": 0x10}
            where = isotp.Address(kind, txid=near, rxid=far, **more)
            return isotp.TransportLayerLogic(
                lambda _=0: inbox.popleft() if inbox else None, send, where, params=params
            )

        self.sender = end(to_sender, put, 0x7E8, 0x7E0)
        self.receiver = end(to_receiver, to_sender.append, 0x7E0, 0x7E8)

    def send(self, message: bytes) -> bytes:
        self.sender.send(message)
        for _ in range(200):
            self.sender.process()
            self.receiver.process()
            if self.receiver.available():
                break
        return bytes(self.receiver.recv())


def received_by_can_isotp(frames: list[bytes]) -> list[bytes]:
    inbox = deque(isotp.CanMessage(arbitration_id=0x7E8, data=data) for data in frames)
    receiver = isotp.TransportLayerLogic(
        lambda _=0: inbox.popleft() if inbox else None,
        lambda _: None,
        isotp.Address(isotp.AddressingMode.Normal_11bits, txid=0x7E0, rxid=0x7E8),
        params=PARAMS,
    )
    got = []
    while inbox:
        receiver.process()
        while receiver.available():
            got.append(bytes(receiver.recv()))
    return got


def put_together(line: IsoTpReassembly, frames: list[bytes], step_ns: int = MS) -> list[bytes]:
    made = [line.feed(index * step_ns, data) for index, data in enumerate(frames)]
    return [message for message in made if message is not None]


def frames_of(message: bytes) -> list[bytes]:
    line = Line(None, 8)
    line.send(message)
    return line.sent


@pytest.mark.parametrize(("address", "tx_dl"), WAYS)
@pytest.mark.parametrize("length", [1, 6, 7, 8, 12, 62, 63, 255, 256, 4095])
def test_what_can_isotp_sends_is_put_together(address: int | None, tx_dl: int, length: int) -> None:
    message = bytes(index * 7 & 0xFF for index in range(length))
    line = Line(address, tx_dl)

    assert line.send(message) == message
    ours = IsoTpReassembly(keep=EVERYTHING, address=address)
    assert put_together(ours, line.sent) == [message]
    assert ours.broken == 0


def test_a_length_of_32_bits_is_read_and_only_what_is_wanted_is_kept() -> None:
    message = bytes(index & 0xFF for index in range(10_000))
    line = Line(None, 64)
    line.send(message)

    assert put_together(IsoTpReassembly(keep=EVERYTHING), line.sent) == [message]
    assert put_together(IsoTpReassembly(keep=100), line.sent) == [message[:100]]


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_a_line_that_loses_repeats_and_swaps_frames_gives_what_can_isotp_receives(
    data: st.DataObject,
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 150), min_size=1, max_size=4))
    frames = [f for i, n in enumerate(lengths) for f in frames_of(bytes([i + 1]) * n)]
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(frames) - 1))
        match data.draw(st.sampled_from(["lose", "repeat", "swap"])):
            case "lose":
                frames = frames[:at] + frames[at + 1 :] or frames
            case "repeat":
                frames = frames[: at + 1] + frames[at:]
            case _:
                frames = frames[:at] + frames[at : at + 2][::-1] + frames[at + 2 :]

    assert put_together(IsoTpReassembly(keep=EVERYTHING), frames) == received_by_can_isotp(frames)


@given(st.lists(st.binary(max_size=64), max_size=40), st.sampled_from([None, 0x10]))
def test_any_bytes_are_borne(frames: list[bytes], address: int | None) -> None:
    line = IsoTpReassembly(keep=16, address=address)

    assert all(0 < len(message) <= 16 for message in put_together(line, frames))


def test_a_message_whose_next_frame_is_late_has_ended() -> None:
    frames = frames_of(bytes(range(20)))

    assert put_together(IsoTpReassembly(keep=99), frames, LONGEST_GAP_NS) == [bytes(range(20))]
    late = IsoTpReassembly(keep=99)
    assert put_together(late, frames, LONGEST_GAP_NS + 1) == []
    assert late.broken == 1


@pytest.mark.parametrize("slow_frame", [1, 2])
def test_a_receiver_may_let_the_sender_wait_after_the_first_frame_and_after_a_block(
    slow_frame: int,
) -> None:
    """ISO 15765-2 table 16: N_Cr begins with the flow control, which comes before N_Bs is over."""
    line = IsoTpReassembly(keep=99)
    t_ns, made = 0, []
    for index, frame in enumerate(frames_of(bytes(range(20)))):
        t_ns += N_BS_NS - MS + N_CR_NS - MS if index == slow_frame else 10 * MS
        made.append(line.feed(t_ns, frame))

    assert made[-1] == bytes(range(20))


@pytest.mark.parametrize("length", [1, 6, 7, 20, 4095])
@pytest.mark.parametrize("kind", ["Mixed_11bits", "Mixed_29bits", "NormalFixed_29bits"])
def test_what_can_isotp_sends_with_other_addressing_is_put_together(kind: str, length: int) -> None:
    mode = isotp.AddressingMode[kind]
    extension = None if kind == "NormalFixed_29bits" else 0x3A
    addresses: dict[str, Any] = {"target_address": 0xF1, "source_address": 0x10}
    if kind == "Mixed_11bits":
        addresses = {"txid": 0x7E8, "rxid": 0x7E0}
    if extension is not None:
        addresses["address_extension"] = extension
    message = bytes(index * 7 & 0xFF for index in range(length))
    sent: list[isotp.CanMessage] = []
    inbox: deque[isotp.CanMessage] = deque()
    where = isotp.Address(mode, **addresses)
    sender = isotp.TransportLayerLogic(
        lambda _=0: inbox.popleft() if inbox else None, sent.append, where, params=PARAMS
    )
    sender.send(message)
    sender.process()
    if length > 6:  # Let it go on, as the receiver does.
        answer_id = 0x7E0 if kind == "Mixed_11bits" else where.get_rx_arbitration_id()
        go_on = bytes([*([extension] if extension is not None else []), 0x30, 0, 0])
        inbox.append(
            isotp.CanMessage(
                arbitration_id=answer_id, data=go_on, extended_id=kind != "Mixed_11bits"
            )
        )
    for _ in range(700):
        sender.process()

    ours = IsoTpReassembly(keep=EVERYTHING, address=extension)

    assert put_together(ours, [bytes(frame.data) for frame in sent]) == [message]


def test_a_consecutive_frame_that_lacks_bytes_ends_the_message() -> None:
    first, second, last = frames_of(bytes(range(15)))
    padded = last.ljust(8, b"\xcc")

    assert put_together(IsoTpReassembly(keep=99), [first, second[:-1], padded]) == []
    assert put_together(IsoTpReassembly(keep=99), [first, second, last[:2]]) == []
    for end in (last, padded):
        assert put_together(IsoTpReassembly(keep=99), [first, second, end]) == [bytes(range(15))]


def test_no_more_is_stored_than_is_kept() -> None:
    line = IsoTpReassembly(keep=10)
    for index, data in enumerate(frames_of(bytes(4000))):
        line.feed(index, data)
        assert len(line._kept) <= 10 + 7


def test_flow_control_between_the_frames_changes_nothing() -> None:
    first, *others = frames_of(bytes(range(20)))

    assert put_together(IsoTpReassembly(keep=99), [first, b"\x30\0\0", *others]) == [
        bytes(range(20))
    ]


def test_frames_of_another_target_address_do_not_count() -> None:
    ours, theirs = Line(0xF1, 8), Line(0xF2, 8)
    ours.send(bytes(20))
    theirs.send(b"\xff" * 20)
    mixed = [frame for pair in zip(ours.sent, theirs.sent, strict=True) for frame in pair]

    assert put_together(IsoTpReassembly(keep=99, address=0xF1), mixed) == [bytes(20)]


def test_with_its_length_a_message_looks_like_a_single_frame() -> None:
    line = IsoTpReassembly(keep=999, with_length=True)

    assert put_together(line, [b"\x03\x41\x0d\x20\0\0\0\0"]) == [b"\x03\x41\x0d\x20"]
    assert put_together(line, frames_of(b"\x62" * 300)) == [bytes((300 & 0xFF,)) + b"\x62" * 300]


@pytest.mark.parametrize(
    "frame",
    [
        b"\x00\x01\x02",  # no length
        b"\x05\x01\x02",  # longer than the frame
        b"\x02" + bytes(11),  # CAN FD without the escape
        b"\x10\x07" + bytes(6),  # would fit a single frame
        b"\x10\x08" + bytes(5),  # a first frame is full
        b"\x10\x00\x00\x00\x0f\xff\x00\x00",  # the long form of a short length
        b"\x40" + bytes(7),
    ],
)
def test_what_the_standard_ignores_makes_no_message_and_ends_none(frame: bytes) -> None:
    first, *others = frames_of(bytes(range(20)))

    assert put_together(IsoTpReassembly(keep=99), [first, frame, *others]) == [bytes(range(20))]
    assert put_together(IsoTpReassembly(keep=99), [frame, b"\x21" + bytes(7)]) == []
