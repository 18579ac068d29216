"""Messages that ISO 15765-2 splits over CAN frames, put together as they pass by.

    first byte   frame
    0L           single: L bytes follow; 00 and a length byte in a CAN FD frame of more than 8 bytes
    1L LL        first: 12 bits of length; 10 00 and 4 bytes of length where there are more
    2N           consecutive: number N, counting 1 to 15 and then from 0
    3.           flow control, which the receiver sends: nothing for us

Rules:
 * Passive: nothing is answered. What the true receiver accepts is what is put together here.
 * A consecutive frame with another number than the next one ends its message, as the standard's
   receiver does (ISO 15765-2 9.6.5.3); nothing is made of the rest.
 * Time is that of the frames. A message whose next frame is later than N_Bs and N_Cr together has
   ended: so long the receiver may take to let the sender go on, and the sender to do so. Where it
   asks the sender to wait, longer than that is given up here; flow controls are not seen.
 * No more is kept than somebody wants: the rest of a long message is counted, not stored.
"""

from agent.core.model import NS_PER_MS

# ISO 15765-2 table 16: time until a flow control, and from it until the next consecutive frame.
N_BS_NS = 1000 * NS_PER_MS
N_CR_NS = 1000 * NS_PER_MS
LONGEST_GAP_NS = N_BS_NS + N_CR_NS
_CLASSIC_BYTES = 8
_LONG_LENGTH = 4095  # The most that 12 bits of length can say.


class IsoTpReassembly:
    """The messages of one identifier, and of one address in the frames where there is one."""

    __slots__ = (
        *("_address", "_at", "_chunk", "_keep", "_kept", "_last_ns", "_length", "_next"),
        *("_with_length", "broken"),
    )

    def __init__(self, *, keep: int, address: int | None = None, with_length: bool = False) -> None:
        """Start between two messages.

        Args:
            keep: Bytes of a message that somebody wants.
            address: With extended addressing the target address, with mixed addressing the address
                extension: the first byte of the frames that count.
            with_length: A message begins with the low byte of its length, so that its bytes stand
                where they stand in a single frame; that byte counts for `keep`.
        """
        self._keep = keep
        self._address = address
        self._with_length = with_length
        self._kept = bytearray()
        self._length = 0  # Of the message that is open; 0 where none is.
        self._at = 0
        self._next = 0
        self._chunk = 0
        self._last_ns = 0
        self.broken = 0

    def feed(self, t_ns: int, data: bytes) -> bytes | None:
        """Take a frame; return the message that it completes, cut to what is kept, or None.

        Args:
            t_ns: The frame's time.
            data: Its payload.
        """
        if self._address is not None:
            if data[:1] != bytes((self._address,)):
                return None
            start = 1
        else:
            start = 0
        if len(data) <= start:
            return None
        kind = data[start] >> 4
        if kind == 2:
            return self._consecutive(t_ns, data, start)
        if kind == 0:
            return self._single(data, start)
        if kind == 1:
            self._first(t_ns, data, start)
        return None

    def _single(self, data: bytes, start: int) -> bytes | None:
        if len(data) <= _CLASSIC_BYTES:
            begin, length = start + 1, data[start] & 0xF
        elif data[start] == 0:
            begin, length = start + 2, data[start + 1]
        else:
            return None  # ISO 15765-2 table 9: more than 8 bytes need the other form.
        if length == 0 or begin + length > len(data):
            return None
        self._end()
        self._open(length)
        self._length = 0
        self._kept += data[begin : begin + length]
        return self._given()

    def _first(self, t_ns: int, data: bytes, start: int) -> None:
        length, begin = (data[start] & 0xF) << 8, start + 2
        length |= data[start + 1] if len(data) > start + 1 else 0
        if length == 0 and len(data) >= start + 6:
            length, begin = int.from_bytes(data[start + 2 : start + 6], "big"), start + 6
            if length <= _LONG_LENGTH:
                return  # ISO 15765-2 9.6.3.2: the short form was to be used.
        fits = _CLASSIC_BYTES - 1 if len(data) <= _CLASSIC_BYTES else len(data) - 2
        if len(data) < _CLASSIC_BYTES or length <= fits - start:
            return  # It would have been a single frame.
        self._end()
        self._open(length)
        self._at = len(data) - begin
        self._kept += data[begin:]
        self._next, self._chunk, self._last_ns = 1, len(data) - start - 1, t_ns

    def _consecutive(self, t_ns: int, data: bytes, start: int) -> bytes | None:
        if self._length == 0:
            return None
        chunk = data[start + 1 : start + 1 + self._length - self._at]
        whole = len(chunk) >= min(self._chunk, self._length - self._at)
        in_time = t_ns - self._last_ns <= LONGEST_GAP_NS
        if not in_time or data[start] & 0xF != self._next or not whole:
            self._end()
            return None
        self._at += len(chunk)
        if len(self._kept) < self._keep:
            self._kept += chunk
        self._next, self._last_ns = (self._next + 1) & 0xF, t_ns
        if self._at < self._length:
            return None
        self._length = 0
        return self._given()

    def _open(self, length: int) -> None:
        self._length = length
        self._kept = bytearray((length & 0xFF,)) if self._with_length else bytearray()

    def _end(self) -> None:
        """Give up the message that is open, if there is one."""
        if self._length:
            self.broken += 1
        self._length = 0
        self._kept = bytearray()

    def _given(self) -> bytes:
        made = bytes(self._kept[: self._keep])
        self._kept = bytearray()
        return made
