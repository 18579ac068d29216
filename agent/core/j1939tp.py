"""Parameter groups of more than 8 bytes (SAE J1939-21 5.10), put together as they pass by.

    TP.CM  PGN 0xEC00   16 size size n max .. pgn   RTS: originator -> destination
                        17 n next .. .. .. pgn      CTS: destination -> originator; n = 0: wait
                        19 size size n .. .. pgn    end of message acknowledged: as CTS
                        32 size size n .. .. pgn    BAM: originator -> all
                        255 reason .. .. .. .. pgn  abort, from either side
    TP.DT  PGN 0xEB00   number, 7 bytes             originator -> destination; numbers from 1

Rules:
 * Passive: nothing is answered. A message is whole once all its packets have passed by.
 * A session is (source, destination). Sessions of different pairs run side by side; a new
   announcement between the same two ends the old one (5.10.3.1), wanted or not: the packets that
   follow are its own.
 * Only announcements of wanted groups open a session; packets without one are not looked at.
 * What a receiver lets the sender go on from, or asks for again, is a packet that came by or the
   next one; beyond that a packet was missed here.
 * A broadcast that misses a packet cannot be completed. In a connection the receiver may ask for
   packets again, and what is sent again counts.
 * A packet that comes twice at once counts once; any other out of turn ends a broadcast. So packets
   of two messages never mix, even where the announcement of the second was missed.
 * Time is that of the frames: a session ends when its next frame is later than the standard lets it
   be. A session is given up for another one only where there are too many.
"""

from collections.abc import Callable

from agent.core.model import CAN_EFF_FLAG, NS_PER_MS
from agent.core.pgn import is_pdu1

PGN_CM = 0xEC00
PGN_DT = 0xEB00
MAX_BYTES = 1785  # 255 packets of 7 bytes.
MAX_SESSIONS = 64  # On one bus; 110 KiB at the most.

_RTS, _CTS, _END_OF_MESSAGE, _BAM, _ABORT = 16, 17, 19, 32, 255
_T1_NS = 750 * NS_PER_MS  # 5.10.2.4: between two packets of a broadcast.
_REPEAT_NS = (
    5 * NS_PER_MS
)  # A controller may deliver a frame twice (ISO 11898-1); nobody is faster.
_T3_NS = 1250 * NS_PER_MS  # The longest wait in a connection, T2 and T3.
_PACKET = 7
_FRAME = 8
_FIRST_SIZE = 9  # What fits a frame is sent as one.

Wanted = Callable[[int, int], bool]  # (PGN, source address)


def announced(can_id: int, data: bytes) -> int | None:
    """Return the identifier that a group would have in one frame, where a frame announces it."""
    if can_id >> 8 & 0x3FF00 != PGN_CM or len(data) != _FRAME or data[0] not in (_RTS, _BAM):
        return None
    return _identifier(int.from_bytes(data[5:8], "little"), can_id, can_id >> 26 & 7)


def _identifier(pgn: int, can_id: int, priority: int) -> int:
    """Return the identifier of a group from the source (and to the destination) of a frame."""
    low = can_id & 0xFFFF if is_pdu1(pgn) else can_id & 0xFF
    return CAN_EFF_FLAG | priority << 26 | (pgn & 0x3FFFF) << 8 | low


class _Session:
    """One announced message."""

    __slots__ = (
        *("came", "data", "expected", "is_broadcast", "last_ns", "packets", "pgn", "priority"),
    )

    def __init__(self, t_ns: int, pgn: int, size: int, *, priority: int, broadcast: bool) -> None:
        self.pgn = pgn
        self.priority = priority
        self.is_broadcast = broadcast
        self.data = bytearray(size)
        self.packets = -(-size // _PACKET)
        self.expected = 1
        self.came = 0  # Packets from the first one on that came by without a gap.
        self.last_ns = t_ns

    def is_late(self, t_ns: int) -> bool:
        return t_ns - self.last_ns > (_T1_NS if self.is_broadcast else _T3_NS)


class J1939Reassembly:
    """The sessions on one bus."""

    __slots__ = ("_sessions", "_wanted", "broken")

    def __init__(self, wanted: Wanted) -> None:
        """Start without a session.

        Args:
            wanted: Whether a group from a source is to be put together.
        """
        self._wanted = wanted
        self._sessions: dict[tuple[int, int], _Session] = {}
        self.broken = 0

    def want(self, wanted: Wanted) -> None:
        """Want other groups from now on: sessions of those that still are wanted go on."""
        self._wanted = wanted
        self._sessions = {
            key: session for key, session in self._sessions.items() if wanted(session.pgn, key[0])
        }

    def feed(self, t_ns: int, can_id: int, data: bytes) -> tuple[int, bytes] | None:
        """Take a frame of TP.CM or TP.DT; return the message that it completes, or None.

        Args:
            t_ns: The frame's time.
            can_id: Its extended identifier as canid_t.
            data: Its payload.

        Returns:
            The identifier that the group would have had in one frame, and its bytes.
        """
        source, destination = can_id & 0xFF, can_id >> 8 & 0xFF
        if len(data) < 2:
            return None
        if can_id >> 8 & 0x3FF00 == PGN_DT:
            return self._packet(t_ns, can_id, (source, destination), data)
        if len(data) == _FRAME:
            self._managed(t_ns, source, destination, data, priority=can_id >> 26 & 7)
        return None

    def _managed(
        self, t_ns: int, source: int, destination: int, data: bytes, *, priority: int
    ) -> None:
        control, pgn = data[0], int.from_bytes(data[5:8], "little")
        if control in (_RTS, _BAM):
            self._announced(t_ns, (source, destination), data, pgn, priority)
        elif control == _CTS:
            self._cleared(t_ns, (destination, source), pgn, count=data[1], first=data[2])
        elif control == _END_OF_MESSAGE:
            self._give_up((destination, source), pgn)
        elif control == _ABORT:
            self._give_up((source, destination), pgn)
            self._give_up((destination, source), pgn)

    def _announced(
        self, t_ns: int, key: tuple[int, int], data: bytes, pgn: int, priority: int
    ) -> None:
        self._give_up(key, None)
        size = int.from_bytes(data[1:3], "little")
        fits = _FIRST_SIZE <= size <= MAX_BYTES and data[3] == -(-size // _PACKET)
        if not fits or not self._wanted(pgn, key[0]):
            return
        if len(self._sessions) >= MAX_SESSIONS:
            self._give_up(min(self._sessions, key=lambda k: self._sessions[k].last_ns), None)
        self._sessions[key] = _Session(
            t_ns, pgn, size, priority=priority, broadcast=data[0] == _BAM
        )

    def _cleared(
        self, t_ns: int, key: tuple[int, int], pgn: int, *, count: int, first: int
    ) -> None:
        session = self._sessions.get(key)
        if session is None or session.is_broadcast:
            return
        # Another group: its announcement was missed. A later packet: one did not come by here.
        if session.pgn != pgn or session.is_late(t_ns) or (count and first > session.came + 1):
            self._give_up(key, None)
            return
        session.last_ns = t_ns
        if count and first:
            session.expected = first

    def _packet(
        self, t_ns: int, can_id: int, key: tuple[int, int], data: bytes
    ) -> tuple[int, bytes] | None:
        session = self._sessions.get(key)
        if session is None:
            return None
        number = data[0]
        at = (number - 1) * _PACKET
        if session.is_late(t_ns) or not 1 <= number <= session.packets:
            self._give_up(key, None)
            return None
        packet = data[1 : 1 + min(_PACKET, len(session.data) - at)]
        if number != session.expected:
            self._out_of_turn(t_ns, key, session, number)
            return None
        if len(packet) < min(_PACKET, len(session.data) - at):
            self._give_up(key, None)
            return None
        session.data[at : at + len(packet)] = packet
        session.came = max(session.came, number)
        session.expected += 1
        session.last_ns = t_ns
        if session.came < session.packets:
            return None
        del self._sessions[key]
        return _identifier(session.pgn, can_id, session.priority), bytes(session.data)

    def _out_of_turn(self, t_ns: int, key: tuple[int, int], session: _Session, number: int) -> None:
        """Let a packet pass that came twice, or that a receiver can ask for; else give up."""
        # What is in it does not count: bits that nobody may have decide nothing.
        came_twice = number == session.expected - 1 and t_ns - session.last_ns <= _REPEAT_NS
        if not came_twice and (session.is_broadcast or number < session.expected):
            self._give_up(key, None)

    def _give_up(self, key: tuple[int, int], pgn: int | None) -> None:
        """End a session, if there is one (for this group)."""
        session = self._sessions.get(key)
        if session is not None and pgn in (None, session.pgn):
            del self._sessions[key]
            self.broken += 1
