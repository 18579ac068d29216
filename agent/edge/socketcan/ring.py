"""Frames that were read from a socket and are not stored yet, in memory that outlives the process.

    page       how far frames came, and up to where they are stored
    landing    where recvmmsg(2) puts what comes: `MAX_FRAMES` rows of payload and control messages
    columns    of the last `RING_FRAMES` frames: seconds, ns, and the payload's words of eight bytes

Rules:
 * It is an anonymous file in RAM (memfd_create(2)). systemd keeps it as it keeps the socket, and
   after a kill the next process hands over again what was not stored, before it reads the socket.
 * A frame that came is in the landing or in the columns: its row is cleared when it has been
   copied, and a row that bears a time holds a frame.
 * What is stored, or let go with its consent, is overwritten with zeros.
 * Up to where frames are about to be stored is announced together with the spool's row that will
   tell that they are: of a process that was killed behind the commit, nothing is stored twice.
 * A ring is of one interface: what a bus of the same name read from another one is not taken up.
 * It bears the consent under which the frames in it were taken: what came under another one is let
   go and not handed over, for of what was not granted then nothing may be taken now.
 * When frames come faster than they are stored the oldest are overwritten, which matters to nobody
   but a process that is killed then.
 * What was handed over three times and never stored is let go: it may be what ends the process.

The reader's thread adds, the agent lane settles. Each number of the page changes by one store of
eight bytes, which no kill cuts in half.
"""

import mmap
import os
import struct
import sys
import threading
from collections.abc import Iterator, Sequence

from agent.core.model import CAN_ERR_FLAG, CAN_RTR_FLAG, NS_PER_S, NS_PER_US, Frame, Place

MAX_FRAMES = 256  # Of one call of recvmmsg; some 30 ms of a saturated bus.
RING_FRAMES = 1 << 17  # 16 s of a saturated bus at 1 Mbit/s, in 3 MiB; 10 with long CAN FD frames.
MOST_TRIES = 3
PAYLOAD_BYTES = 72  # struct canfd_frame: canid_t, length, 3 bytes, data; struct can_frame: 16
CONTROL_BYTES = 64
CMSG = struct.Struct("@Nii0N")  # struct cmsghdr: size_t and two ints; data is aligned (cmsg(3)).

_LAYOUT = b"frames 2"  # The page begins with it,
_CHANNEL_BYTES = 16  # and with the interface's name (linux/if.h: IFNAMSIZ).
# Words of the page behind that.
_ID, _HEAD, _LANDED, _TAIL, _CLEARED, _ANNOUNCED, _ROW, _TRIES, _IS_LONG, _CONSENT = range(3, 13)
_NO_ROW = (1 << 64) - 1
_PAYLOAD_WORDS = PAYLOAD_BYTES // 8
_SHORT_WORDS = 2  # Of a classic frame.
_SHORT_BYTES = 8
_HEAD_PART = struct.Struct("=IB3x")
_LOW = 0 if sys.byteorder == "little" else 1  # Which half of a 64-bit time is the lower one.
_CONTROL_HALVES = CONTROL_BYTES // 4
_SECONDS = CMSG.size // 4 + _LOW  # Place in a row of control messages, in halves of a word.
_NS = _SECONDS + 2
_PAGE = 4096
_PAYLOADS_AT = _PAGE
_CONTROLS_AT = _PAYLOADS_AT + MAX_FRAMES * PAYLOAD_BYTES
_TIMES_AT = -(-(_CONTROLS_AT + MAX_FRAMES * CONTROL_BYTES) // _PAGE) * _PAGE
_WORDS_AT = _TIMES_AT + 2 * RING_FRAMES * 4
_SIZE = _WORDS_AT + _PAYLOAD_WORDS * RING_FRAMES * 8

_NO_PAYLOADS = bytes(MAX_FRAMES * PAYLOAD_BYTES)
_NO_CONTROLS = bytes(MAX_FRAMES * CONTROL_BYTES)
_ZEROED = 4096  # Frames at a time.
_ZEROS_32 = memoryview(bytes(4 * _ZEROED)).cast("I")
_ZEROS_64 = memoryview(bytes(8 * _ZEROED)).cast("Q")


class FrameRing:
    """The memory of one bus.

    Attributes:
        payloads: Of the landing, `PAYLOAD_BYTES` for each row.
        controls: Of the landing, `CONTROL_BYTES` for each row; all zero between two calls.
    """

    def __init__(self, bus: str, channel: str, descriptor: int | None = None) -> None:
        """Make a ring, or take up one that was kept.

        Args:
            bus: The bus's name in frames.
            channel: The interface that they come from.
            descriptor: Ours from now on. If it is no ring of this layout and interface it is
                closed, and a new one is made.
        """
        self.bus = bus
        self._lock = threading.Lock()  # Between who adds and who clears what is stored.
        kind = _LAYOUT + channel.encode()[:_CHANNEL_BYTES].ljust(_CHANNEL_BYTES, b"\0")
        is_kept = descriptor is not None and _is_ring(descriptor, kind)
        if descriptor is not None and not is_kept:
            os.close(descriptor)
        if descriptor is None or not is_kept:
            descriptor = os.memfd_create(f"frames-{bus}", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, _SIZE)
        self.descriptor = descriptor
        whole = memoryview(mmap.mmap(descriptor, _SIZE))
        self._page = whole[:_PAGE].cast("Q")
        self.payloads = whole[_PAYLOADS_AT:_CONTROLS_AT]
        self.controls = whole[_CONTROLS_AT : _CONTROLS_AT + MAX_FRAMES * CONTROL_BYTES]
        self._landed_words = self.payloads.cast("Q")
        self._landed_halves = self.controls.cast("I")
        self._times = _columns(whole[_TIMES_AT:_WORDS_AT].cast("I"), 2)
        self._words = _columns(whole[_WORDS_AT:_SIZE].cast("Q"), _PAYLOAD_WORDS)
        if not is_kept:
            self._page[_ID] = int.from_bytes(os.urandom(8), sys.byteorder)
            self._page[_ROW] = _NO_ROW
            whole[: len(kind)] = kind

    @property
    def consent(self) -> int:
        """Which consent the frames that are not stored came under; 0: not known."""
        return self._page[_CONSENT]

    @consent.setter
    def consent(self, consent: int) -> None:
        self._page[_CONSENT] = consent

    @property
    def place(self) -> Place:
        """Behind the last frame that came."""
        return Place(self.bus, self._page[_ID], self._page[_HEAD])

    def take_up(self, last_row: int) -> tuple[int, int]:
        """Find out what the process before us read and did not store.

        Args:
            last_row: Of the spool, as it is on disk.

        Returns:
            How many frames `rest` will yield, and how many are lost: overwritten, or let go.
        """
        self._forget(self._page[_ANNOUNCED] if self._page[_ROW] <= last_row else 0)
        self._page[_ROW] = _NO_ROW
        if self._page[_LANDED] == self._page[_HEAD]:
            self.keep_rows([row for row in range(MAX_FRAMES) if self._is_frame(row)])
        else:
            self._clear_landing(MAX_FRAMES)
        left = self._page[_HEAD] - self._start
        overwritten = self._start - self._page[_TAIL]
        if self._page[_TRIES] >= MOST_TRIES:
            self.clear()
            return 0, overwritten + left
        self._page[_TRIES] += bool(left)
        return left, overwritten

    def rest(self) -> Iterator[tuple[list[Frame], Place]]:
        """Yield the frames that are not stored, in chunks of `MAX_FRAMES`, each with its end.

        What is let go meanwhile is passed over.
        """
        identity, first, end = self._page[_ID], self._start, self._page[_HEAD]
        while first < end:
            last = min(first + MAX_FRAMES, end)
            frames = [self._frame(position % RING_FRAMES) for position in range(first, last)]
            yield frames, Place(self.bus, identity, last)
            first = max(last, self._start)

    def keep(self, count: int) -> None:
        """Take over the first rows of the landing, all of them frames, and clear them."""
        lengths = self.payloads[4 : count * PAYLOAD_BYTES : PAYLOAD_BYTES]
        self._note_long(is_long=max(lengths) > _SHORT_BYTES)
        with self._lock:
            head, done = self._page[_HEAD], 0
            while done < count:
                slot = (head + done) % RING_FRAMES
                many = min(count - done, RING_FRAMES - slot)
                self._copy(done, slot, many)
                done += many
            self._page[_HEAD] = head + count
        self._clear_landing(count)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Take over some rows of the landing, and clear all."""
        self._note_long(
            is_long=any(self.payloads[row * PAYLOAD_BYTES + 4] > _SHORT_BYTES for row in rows)
        )
        with self._lock:
            head = self._page[_HEAD]
            for position, row in enumerate(rows, head):
                self._copy(row, position % RING_FRAMES, 1)
            self._page[_HEAD] = head + len(rows)
        self._clear_landing(MAX_FRAMES)

    def announce(self, place: Place, row: int) -> None:
        """Tell whoever comes after a kill: if the spool has this row, all up to here is stored."""
        if place.ring == self._page[_ID]:
            self._page[_ROW] = _NO_ROW  # No moment in which the old row vouches for the new place.
            self._page[_ANNOUNCED] = place.position
            self._page[_ROW] = row

    def settle(self, place: Place) -> None:
        """Let go what came up to here: it is stored, or nobody may have it."""
        if place.ring == self._page[_ID]:
            self._forget(place.position)

    def clear(self) -> None:
        """Let go all."""
        self._forget(self._page[_HEAD])

    def close(self) -> None:
        """Close the descriptor; the memory is this object's until nobody refers to it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    @property
    def _start(self) -> int:
        """Position of the oldest frame that is not stored and still there."""
        return max(self._page[_TAIL], self._page[_HEAD] - RING_FRAMES)

    def _forget(self, position: int) -> None:
        """Let go what came before a position; overwrite it, and what a kill left of before."""
        with self._lock:
            end = min(position, self._page[_HEAD])
            if end > self._page[_TAIL]:
                self._page[_TAIL] = end
                self._page[_TRIES] = 0
            start, end = (
                max(self._page[_CLEARED], self._page[_HEAD] - RING_FRAMES),
                self._page[_TAIL],
            )
            while start < end:
                slot = start % RING_FRAMES
                many = min(end - start, RING_FRAMES - slot, _ZEROED)
                for column in self._times:
                    column[slot : slot + many] = _ZEROS_32[:many]
                for column in self._words[: self._word_count]:
                    column[slot : slot + many] = _ZEROS_64[:many]
                start += many
            self._page[_CLEARED] = end

    def _note_long(self, *, is_long: bool) -> None:
        """Remember that more than eight bytes came in a frame: without, columns stay unused."""
        if is_long:
            self._page[_IS_LONG] = 1

    @property
    def _word_count(self) -> int:
        return _PAYLOAD_WORDS if self._page[_IS_LONG] else _SHORT_WORDS

    def _copy(self, row: int, slot: int, count: int) -> None:
        """Copy rows of the landing, from `row` on, into the columns."""
        first, end = row * _CONTROL_HALVES, (row + count) * _CONTROL_HALVES
        for column, half in zip(self._times, (_SECONDS, _NS), strict=True):
            column[slot : slot + count] = self._landed_halves[first + half : end : _CONTROL_HALVES]
        first, end = row * _PAYLOAD_WORDS, (row + count) * _PAYLOAD_WORDS
        for word, column in enumerate(self._words[: self._word_count]):
            column[slot : slot + count] = self._landed_words[first + word : end : _PAYLOAD_WORDS]

    def _clear_landing(self, count: int) -> None:
        """Empty the first rows, and let the landing be that of the next frames."""
        self.controls[: count * CONTROL_BYTES] = _NO_CONTROLS[: count * CONTROL_BYTES]
        self.payloads[: count * PAYLOAD_BYTES] = _NO_PAYLOADS[: count * PAYLOAD_BYTES]
        self._page[_LANDED] = self._page[_HEAD]

    def _is_frame(self, row: int) -> bool:
        (can_id, _) = _HEAD_PART.unpack_from(self.payloads, row * PAYLOAD_BYTES)
        seconds = self._landed_halves[row * _CONTROL_HALVES + _SECONDS]
        return seconds != 0 and not can_id & CAN_ERR_FLAG

    def _frame(self, slot: int) -> Frame:
        words = [column[slot] for column in self._words[: self._word_count]]
        payload = struct.pack(f"={len(words)}Q", *words)
        can_id, length = _HEAD_PART.unpack_from(payload)
        ns = self._times[1][slot]
        return (
            self._times[0][slot] * NS_PER_S + ns - ns % NS_PER_US,
            self.bus,
            can_id,
            b"" if can_id & CAN_RTR_FLAG else payload[_HEAD_PART.size : _HEAD_PART.size + length],
        )


def _columns(words: "memoryview[int]", count: int) -> "list[memoryview[int]]":
    return [words[n * RING_FRAMES : (n + 1) * RING_FRAMES] for n in range(count)]


def _is_ring(descriptor: int, kind: bytes) -> bool:
    """Tell whether it is the memory of a ring that begins like this."""
    try:
        return os.fstat(descriptor).st_size == _SIZE and os.pread(descriptor, len(kind), 0) == kind
    except OSError:
        return False
