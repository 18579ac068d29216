"""The ring of frames against a list that never forgets, and against what a kill may cut short."""

import os
import struct
import threading
import time
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from agent.core.canfilter import exact_filter
from agent.core.model import CAN_EFF_FLAG, CAN_ERR_FLAG, CAN_RTR_FLAG, NS_PER_S, Frame, Place
from agent.edge.socketcan import RING_FRAMES, FrameRing, SocketCanReader
from agent.edge.socketcan.ring import (
    _LANDED,
    _TAIL,
    CMSG,
    CONTROL_BYTES,
    MAX_FRAMES,
    MOST_TRIES,
    PAYLOAD_BYTES,
)

START_S = 1_800_000_000
NO_ROW = 0

payloads = st.one_of(st.binary(max_size=8), st.sampled_from([bytes(12), b"\xa5" * 64]))
can_ids = st.sampled_from([0x123, 0x123 | CAN_EFF_FLAG, 0x123 | CAN_RTR_FLAG])
frames = st.tuples(st.integers(0, 10**15), st.just("b"), can_ids, payloads).map(
    lambda f: (
        START_S * NS_PER_S + f[0] * 1000,
        f[1],
        f[2],
        b"" if f[2] & CAN_RTR_FLAG else f[3],
    )
)


def land(ring: FrameRing, arrived: Sequence[Frame]) -> None:
    """Write rows as the kernel does: struct canfd_frame; struct cmsghdr and a 64-bit timespec."""
    for row, (t_ns, _, can_id, data) in enumerate(arrived):
        head = struct.pack("=IB3x", can_id, len(data))
        at = row * PAYLOAD_BYTES
        ring.payloads[at : at + len(head) + len(data)] = head + data
        stamp = CMSG.pack(CMSG.size + 16, 1, 64) + struct.pack("=qq", *divmod(t_ns, NS_PER_S))
        ring.controls[row * CONTROL_BYTES : row * CONTROL_BYTES + len(stamp)] = stamp


def add(ring: FrameRing, arrived: Sequence[Frame]) -> Place:
    for first in range(0, len(arrived), MAX_FRAMES):
        chunk = arrived[first : first + MAX_FRAMES]
        land(ring, chunk)
        ring.keep(len(chunk))
    return ring.place


def rest(ring: FrameRing) -> list[Frame]:
    return [frame for chunk, _ in ring.rest() for frame in chunk]


def after_a_kill(ring: FrameRing) -> FrameRing:
    """Take the ring up as the next process does: the descriptor is all that is left."""
    return FrameRing("b", "can0", os.dup(ring.descriptor))


def numbered(count: int, *, since: int = 0) -> list[Frame]:
    return [
        (START_S * NS_PER_S + n * 1000, "b", 0x123, struct.pack("<Q", n))
        for n in range(since, since + count)
    ]


@given(st.lists(st.one_of(st.lists(frames, min_size=1, max_size=4), st.integers(0, 8))))
def test_what_was_not_settled_is_there_after_a_kill(steps: list[list[Frame] | int]) -> None:
    """A step is a chunk that comes, or how many places back from the end is settled."""
    ring = FrameRing("b", "can0")
    came: list[Frame] = []
    settled = 0
    for step in steps:
        if isinstance(step, int):
            settled = max(settled, len(came) - step)
            ring.settle(ring.place.earlier(step))
        else:
            came += step
            add(ring, step)

    found = after_a_kill(ring)

    assert found.take_up(NO_ROW) == (len(came) - settled, 0)
    assert rest(found) == came[settled:]
    assert found.place == ring.place
    found.close()
    ring.close()


def test_a_ring_goes_round_and_keeps_the_newest() -> None:
    ring = FrameRing("b", "can0")
    came = numbered(RING_FRAMES + 1000)
    add(ring, came)

    found = after_a_kill(ring)

    assert found.take_up(NO_ROW) == (RING_FRAMES, 1000)
    assert rest(found) == came[1000:]
    assert [place.position for _, place in found.rest()][-1] == len(came)


def test_a_settled_ring_goes_on_beyond_its_end() -> None:
    ring = FrameRing("b", "can0")
    ring.settle(add(ring, numbered(RING_FRAMES - 100)))
    came = numbered(700, since=RING_FRAMES - 100)
    add(ring, came)

    found = after_a_kill(ring)

    assert found.take_up(NO_ROW) == (700, 0)
    assert rest(found) == came


def test_rows_that_were_not_copied_yet_are_found_and_error_frames_are_none() -> None:
    """Killed behind recvmmsg: what left the socket lies in the landing."""
    ring = FrameRing("b", "can0")
    came = numbered(5)
    add(ring, came[:2])
    error: Frame = (START_S * NS_PER_S, "b", CAN_ERR_FLAG | 4, bytes(8))
    land(ring, [came[2], error, came[3], came[4]])

    found = after_a_kill(ring)

    assert found.take_up(NO_ROW) == (5, 0)
    assert rest(found) == came
    assert after_a_kill(found).take_up(NO_ROW) == (5, 0)


def test_rows_that_were_copied_and_not_cleared_are_not_taken_twice() -> None:
    """Killed between the copy and the clearing of the landing."""
    ring = FrameRing("b", "can0")
    came = numbered(3)
    add(ring, came)
    land(ring, came[:2])
    ring._page[_LANDED] = 1  # The landing is that of the frames from the second on.

    found = after_a_kill(ring)

    assert found.take_up(NO_ROW) == (3, 0)
    assert rest(found) == came
    assert after_a_kill(found).take_up(NO_ROW) == (3, 0)


def test_the_row_of_the_spool_tells_whether_what_was_announced_is_stored() -> None:
    for last_row, expected in ((6, 8), (7, 3), (9, 3)):
        ring = FrameRing("b", "can0")
        place = add(ring, numbered(5))
        add(ring, numbered(3, since=5))
        ring.announce(place, 7)

        found = after_a_kill(ring)

        assert found.take_up(last_row) == (expected, 0)
        assert rest(found) == numbered(8)[-expected:]
        # What was announced then is not believed once more.
        add(found, numbered(1))
        assert after_a_kill(found).take_up(last_row + 100) == (expected + 1, 0)


def test_places_of_another_ring_mean_nothing() -> None:
    """A bus was configured anew, and its batches of before are stored only now."""
    ring, other = FrameRing("b", "can0"), FrameRing("b", "can0")
    foreign = add(other, numbered(5))
    add(ring, numbered(3))

    ring.settle(foreign)
    ring.announce(foreign, 1)

    assert after_a_kill(ring).take_up(1) == (3, 0)


def test_nothing_of_what_was_settled_is_left_in_memory() -> None:
    """Neither in the columns nor in the landing, of classic and of long frames."""
    ring = FrameRing("b", "can0")
    secrets = [b"secret-1", b"secret-2" * 8]
    for data in secrets:
        add(ring, [(START_S * NS_PER_S, "b", 0x123, data)])
    land(ring, [(START_S * NS_PER_S, "b", 0x123, secrets[1])])
    ring.keep_rows([0])
    before = os.pread(ring.descriptor, 1 << 24, 0)

    ring.clear()

    after = os.pread(ring.descriptor, 1 << 24, 0)
    assert b"secret-2" in before
    assert b"secret-1" in before
    assert b"secret" not in after
    assert START_S.to_bytes(4, "little") in before
    assert START_S.to_bytes(4, "little") not in after
    assert not any(ring.controls)


def test_what_was_found_too_often_and_never_stored_is_let_go() -> None:
    """It may be what ends the process: a vehicle must not fail for ever over one frame."""
    ring = FrameRing("b", "can0")
    add(ring, numbered(5))
    for _ in range(MOST_TRIES):
        ring = after_a_kill(ring)
        assert ring.take_up(NO_ROW) == (5, 0)

    ring = after_a_kill(ring)

    assert ring.take_up(NO_ROW) == (0, 5)
    assert rest(ring) == []
    add(ring, numbered(2))
    assert after_a_kill(ring).take_up(NO_ROW) == (2, 0)


def test_what_is_no_ring_is_closed_and_a_new_one_made() -> None:
    kept, other = os.pipe()
    file = os.memfd_create("other")
    os.ftruncate(file, 100)

    for descriptor in (kept, file):
        ring = FrameRing("b", "can0", descriptor)
        assert os.fstat(ring.descriptor).st_size > 1 << 20
        add(ring, numbered(2))
        assert after_a_kill(ring).take_up(NO_ROW) == (2, 0)
        ring.close()
    os.close(other)


def test_what_came_from_another_interface_is_not_taken_up() -> None:
    """A bus was given another one while nobody ran: its frames would be read as those of this."""
    for other in ("can1", "can", "can00"):
        ring = FrameRing("b", other)
        add(ring, numbered(5))

        found = after_a_kill(ring)

        assert found.take_up(NO_ROW) == (0, 0)
        assert rest(found) == []


def test_what_a_kill_kept_from_being_overwritten_is_overwritten_by_the_next_process() -> None:
    ring = FrameRing("b", "can0")
    add(ring, [(START_S * NS_PER_S, "b", 0x123, b"secret-1")])
    ring._page[_TAIL] = 1

    found = after_a_kill(ring)
    taken_up = found.take_up(NO_ROW)

    assert taken_up == (0, 0)
    assert b"secret" not in os.pread(ring.descriptor, 1 << 24, 0)


def test_what_is_let_go_while_the_rest_is_handed_over_is_passed_over() -> None:
    ring = FrameRing("b", "can0")
    add(ring, numbered(600))

    found = after_a_kill(ring)
    found.take_up(NO_ROW)
    chunks = found.rest()
    first, _ = next(chunks)
    found.clear()

    assert len(first) == MAX_FRAMES
    assert list(chunks) == []


def test_a_pause_while_the_rest_of_a_killed_process_is_handed_over_lets_go_what_is_left() -> None:
    """Also when it was ended before the reader's thread looked again."""
    ring = FrameRing("b", "none-such")
    count = 3 * MAX_FRAMES
    add(ring, numbered(count))
    came: list[Frame] = []
    room = threading.Semaphore(1)
    reader = SocketCanReader(
        "b",
        channel="none-such",
        sink=lambda frames, _: came.extend(frames),
        has_room=lambda _: room.acquire(blocking=False),
    )
    reader.adopt_frames(os.dup(ring.descriptor), last_row=NO_ROW)
    reader.set_filters([exact_filter(1)])
    reader.start()
    until = time.monotonic() + 5
    while len(came) < MAX_FRAMES and time.monotonic() < until:
        time.sleep(0.001)

    reader.set_filters(())
    reader.set_filters([exact_filter(1)])
    room.release(count)
    while reader.health().reconnects < 3 and time.monotonic() < until:
        time.sleep(0.001)
    reader.close()

    assert came == numbered(count)[:MAX_FRAMES]
    assert reader.failure is None
