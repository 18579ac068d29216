"""What is on its way to the broker over one connection. Not thread-safe: the lane holds its lock.

Rules:
 * Acknowledgements of policies and the newest ledger head outlive a connection, and so does the
   memory of a refusal; everything else dies with it.
 * What the broker refuses is held back with all of its grant, so that a grant keeps its order, and
   takes no place in the window, so that it does not starve the others.
 * What is small and waits for nobody (acks, status, health, PUBACKs) goes before envelopes.
 * Unanswered publishes never exceed what the broker takes, envelopes never exceed the window, and
   a backlog leaves at a limited rate. As many envelopes again may wait for their turn, so that the
   line need not stand while the agent lane writes to the disk.
"""

from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from agent.core.model import NS_PER_S
from agent.edge.uplink.connection import Connection
from agent.edge.uplink.message import Message, Stream
from agent.edge.uplink.value import Delivered, PolicyToken, Refused, UplinkEvent

HELD_S = 60.0  # How long a refused grant is held back at first; doubled by each refusal ...
MAX_HELD_S = 3600.0  # ... up to this.
MANY_ROWS = 100  # Single rows held back at once; further ones hold their grant.
MAX_ACKS = 8  # Acknowledgements kept until the broker has them; the oldest go first.
PACKET_TOO_LARGE = 0x95  # MQTT 5 section 2.4
NO_MATCHING_SUBSCRIBERS = 0x10
FAILURE = 0x80  # Codes from here on.
OF_THE_ROW = (PACKET_TOO_LARGE, 0x99)  # The next envelope of the grant may pass: size, format.


@dataclass(slots=True)
class Hold:
    """A stream that the broker refused."""

    until_ns: int
    wait_s: float


class Outbox:
    """Controls, envelopes and unanswered publishes."""

    def __init__(self, *, window: int, max_rate_per_s: float) -> None:
        """Start empty.

        Args:
            window: Most envelopes without an answer.
            max_rate_per_s: Most envelopes a second, after a first `window` of them.
        """
        self._window = window
        self._rate = max_rate_per_s
        self._credit = float(window)
        self._credited_ns = 0
        self._acks: deque[Message] = deque(maxlen=MAX_ACKS)
        self._controls: deque[Message | PolicyToken] = deque()
        self._rows: deque[Message] = deque()
        self._sent: dict[int, Message] = {}  # mid -> publish without an answer
        self._flying: set[int | None] = set()
        self._head: Message | None = None
        self._held_rows: dict[int, int] = {}  # row id -> until when, monotonic ns
        self._holds: dict[Stream, Hold] = {}
        # Answered, but the agent lane may not have read of it yet, and would offer them again.
        self._answered: deque[int] = deque(maxlen=4 * window)

    def begin(self) -> None:
        """Take up what outlives a connection."""
        self._controls.extend(self._acks)
        if self._head is not None:
            self._controls.append(self._head)
        self._answered.clear()

    def forget(self) -> None:
        """Give up what dies with a connection."""
        # Not what was refused: mosquitto 2.0.11 ends the connection after a refusal by its ACL, and
        # the same row would end the next one.
        for waiting in (self._controls, self._rows, self._sent, self._flying):
            waiting.clear()

    def room(self, receive_maximum: int) -> int:
        """Return how many more envelopes may be added."""
        return max(0, min(self._window, receive_maximum) - len(self._rows))

    def held_grants(self, now_ns: int) -> frozenset[str]:
        """Return the grants whose envelopes are held back."""
        return frozenset(
            grant_id
            for (grant_id, is_gap), hold in self._holds.items()
            if hold.until_ns > now_ns and not is_gap
        )

    def is_held(self, message: Message, now_ns: int) -> bool:
        """Whether the broker refused this row, or its grant, a moment ago."""
        hold = self._holds.get(message.stream)
        if hold is not None and hold.until_ns > now_ns:
            return True
        for row_id in [row_id for row_id, until in self._held_rows.items() if until <= now_ns]:
            del self._held_rows[row_id]
        return message.row_id in self._held_rows

    def busy_rows(self) -> frozenset[int]:
        """Return the rows that are unanswered, or were answered or refused just before."""
        flying = {row_id for row_id in self._flying if row_id is not None}
        return frozenset(flying | self._held_rows.keys() | set(self._answered))

    def unanswered(self) -> int:
        """Return how many envelopes wait for their turn or for the broker's answer."""
        return sum(1 for row_id in self._flying if row_id is not None and row_id > 0)

    def is_busy(self, row_id: int | None) -> bool:
        """Whether `busy_rows` has this one."""
        return row_id in self._flying or row_id in self._held_rows or row_id in self._answered

    def add_row(self, message: Message) -> None:
        """Let an envelope wait for its turn."""
        self._flying.add(message.row_id)
        self._rows.append(message)

    def drop_rows(self) -> None:
        """Forget every envelope that waits for its turn."""
        self._rows.clear()

    def add_control(self, control: Message | PolicyToken) -> None:
        """Let something small wait for its turn."""
        self._controls.append(control)

    def keep_ack(self, ack: Message) -> None:
        """Remember an acknowledgement until it is answered."""
        self._acks.append(ack)

    def keep_head(self, head: Message) -> None:
        """Remember a ledger head, in the place of an older one, until it is answered."""
        self._head = head

    def withdraw(self, grant_id: str) -> bool:
        """Forget the waiting envelopes of a grant; return whether others are unanswered."""
        for message in [message for message in self._rows if message.grant_id == grant_id]:
            self._rows.remove(message)
            self._flying.discard(message.row_id)
        return any(message.grant_id == grant_id for message in self._sent.values())

    def oldest_ns(self) -> int | None:
        """Return when the publish that waits longest for its answer was handed over."""
        return min((message.sent_ns for message in self._sent.values()), default=None)

    def hand_over(self, connection: Connection, now_ns: int) -> tuple[float, list[UplinkEvent]]:
        """Give a connection what it may send now.

        Returns:
            For how long nothing more may be sent for the rate's sake, in s, and what could not be
            sent at all.
        """
        events: list[UplinkEvent] = []
        while self._controls and len(self._sent) < connection.receive_maximum:
            control = self._controls.popleft()
            if isinstance(control, PolicyToken):
                if control.connection == connection.number:
                    connection.acknowledge(control.mid)
            else:
                events += self._send(connection, control, now_ns)
        earned = (now_ns - self._credited_ns) / NS_PER_S * self._rate
        self._credit = min(float(self._window), self._credit + earned)
        self._credited_ns = now_ns
        while self._rows and self._may_send(connection):
            if self._credit < 1.0:
                return (1.0 - self._credit) / self._rate, events
            self._credit -= 1.0
            events += self._send(connection, self._rows.popleft(), now_ns)
        return float("inf"), events

    def _may_send(self, connection: Connection) -> bool:
        """Whether one more envelope would be within the window, and what the broker takes."""
        is_within = len(self._flying) - len(self._rows) < self._window
        return is_within and len(self._sent) < connection.receive_maximum

    def answered(self, mid: int, reason_code: int, now_ns: int) -> list[UplinkEvent]:
        """Take note of an answer; return what is to be told."""
        message = self._sent.pop(mid, None)
        return [] if message is None else self._settle(message, reason_code, now_ns)

    def _send(self, connection: Connection, message: Message, now_ns: int) -> list[UplinkEvent]:
        try:
            mid = connection.publish(
                message.topic,
                message.payload,
                qos=message.qos,
                retain=message.retain,
                **message.about,
            )
        except OverflowError:
            return self._settle(message, PACKET_TOO_LARGE, now_ns)
        if message.qos:
            message.sent_ns = now_ns
            self._sent[mid] = message
        return []

    def _settle(self, message: Message, reason_code: int, now_ns: int) -> list[UplinkEvent]:
        if message.row_id is None:
            # Also when refused: what the broker does not take now it will not take later.
            with suppress(ValueError):  # A status; or an ack that newer ones have pushed out.
                self._acks.remove(message)
            if self._head is message:
                self._head = None
            return []
        self._flying.discard(message.row_id)
        if reason_code < FAILURE:
            self._holds.pop(message.stream, None)
            self._answered.append(message.row_id)
            return [Delivered(message.row_id, heard=reason_code != NO_MATCHING_SUBSCRIBERS)]
        if reason_code in OF_THE_ROW and len(self._held_rows) < MANY_ROWS:
            self._held_rows[message.row_id] = now_ns + int(MAX_HELD_S * NS_PER_S)
        else:
            self._hold(message.stream, now_ns)
        return [Refused(message.row_id, reason_code)]

    def _hold(self, stream: Stream, now_ns: int) -> None:
        before = self._holds.get(stream)
        if before is not None and before.until_ns > now_ns:
            return  # One of several that were on their way together.
        wait_s = HELD_S if before is None else min(2 * before.wait_s, MAX_HELD_S)
        self._holds[stream] = Hold(now_ns + int(wait_s * NS_PER_S), wait_s)
        for message in [message for message in self._rows if message.stream == stream]:
            self._rows.remove(message)
            self._flying.discard(message.row_id)
