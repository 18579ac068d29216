"""What the agent's thread and the network thread share: the outbox, and the connection in use.

Rules:
 * One lock guards all of it, and closing the descriptor. Nobody waits while holding it.
 * An envelope is handed to a connection under the lock that `cancel` takes, so once `cancel` has
   returned nothing of that grant is sent any more.
 * Nothing is published before the subscription to the policy stands: until then there is no
   connection here.
"""

import threading
import time

from agent.core.model import NS_PER_S
from agent.edge.uplink.connection import RECEIVE_MAXIMUM, Connection
from agent.edge.uplink.dial import ConnectionEnded
from agent.edge.uplink.message import Message
from agent.edge.uplink.outbox import Outbox
from agent.edge.uplink.value import PolicyToken, UplinkEvent
from agent.edge.uplink.wake import Wake

ANSWER_S = 60.0  # A broker that leaves a publish unanswered for longer is left.
MAX_UNREAD = 2 * RECEIVE_MAXIMUM  # Policies told and not acknowledged; no new connection with more.


class Exchange:
    """Where both threads meet. Each method may be called from either.

    Attributes:
        waker: Wakes the network thread.
        is_closing: No connection is wanted any more.
    """

    def __init__(self, *, window: int, max_rate_per_s: float) -> None:
        """Begin without a connection; for the arguments see `Outbox`."""
        self.waker = Wake()
        self.is_closing = False
        self._lock = threading.Lock()
        self._unread: set[PolicyToken] = set()
        self._connection: Connection | None = None
        self._outbox = Outbox(window=window, max_rate_per_s=max_rate_per_s)

    @property
    def is_flooded(self) -> bool:
        """Whether more policies wait to be acknowledged to us than one connection may bring."""
        return len(self._unread) >= MAX_UNREAD

    def room(self) -> int:
        """Return how many more envelopes may be offered now; 0 without a connection."""
        with self._lock:
            return self._room()

    def busy_rows(self) -> frozenset[int]:
        """Return the rows that are not to be offered now; see `Outbox`."""
        with self._lock:
            return self._outbox.busy_rows()

    def held_grants(self) -> frozenset[str]:
        """Return the grants that the broker refused a while ago; `offer` takes none of them."""
        with self._lock:
            return self._outbox.held_grants(time.monotonic_ns())

    def unanswered(self) -> int:
        """Return how many envelopes are on their way without the broker's answer."""
        with self._lock:
            return self._outbox.unanswered()

    def offer(self, message: Message) -> bool:
        """Let an envelope wait for its turn; False if it cannot be sent now."""
        with self._lock:
            if (
                self._room() <= 0
                or self._outbox.is_busy(message.row_id)
                or self._outbox.is_held(message, time.monotonic_ns())
            ):
                return False
            self._outbox.add_row(message)
            self.waker.set()
        return True

    def send(self, message: Message) -> bool:
        """Send something small; False without a connection."""
        with self._lock:
            if self._connection is None:
                return False
            self._outbox.add_control(message)
            self.waker.set()
        return True

    def keep_ack(self, ack: Message) -> None:
        """Send an acknowledgement; it is kept, over connections, until the broker has it."""
        with self._lock:
            self._outbox.keep_ack(ack)
            if self._connection is not None:
                self._outbox.add_control(ack)
            self.waker.set()

    def keep_head(self, head: Message) -> None:
        """Send a head of the ledger; the newest is kept until the broker has it."""
        with self._lock:
            self._outbox.keep_head(head)
            if self._connection is not None:
                self._outbox.add_control(head)
            self.waker.set()

    def cancel(self, grant_id: str) -> None:
        """Forget the envelopes of a grant; cut the connection that was handed one, unanswered."""
        with self._lock:
            if self._outbox.withdraw(grant_id):
                self._cut()
            self.waker.set()

    def arrived(self, token: PolicyToken) -> None:
        """Note that a policy came; it is told, and not acknowledged to us."""
        with self._lock:
            self._unread.add(token)

    def acknowledge(self, token: PolicyToken) -> None:
        """Tell the broker that the outcome of a policy message is on disk."""
        with self._lock:
            self._unread.discard(token)
            # It may have come before the subscription stood: the session brought it.
            self._outbox.add_control(token)
            self.waker.set()

    def up(self, connection: Connection) -> None:
        """Let a connection carry what waits from now on."""
        with self._lock:
            self._connection = connection
            self._outbox.begin()

    def hand_over(self, connection: Connection, now_ns: int) -> tuple[float, list[UplinkEvent]]:
        """Give a connection what it may send now; see `Outbox`.

        Raises:
            ConnectionEnded: It was cut, or the broker leaves a publish without an answer.
        """
        with self._lock:
            if self._connection is not connection:
                if connection.came_up:
                    raise ConnectionEnded("cut")
                return float("inf"), []
            oldest_ns = self._outbox.oldest_ns()
            if oldest_ns is not None and now_ns - oldest_ns > ANSWER_S * NS_PER_S:
                raise ConnectionEnded(f"the broker gave no answer for {ANSWER_S:g} s")
            return self._outbox.hand_over(connection, now_ns)

    def hand_over_last(self, connection: Connection, farewell: Message | None) -> None:
        """Give a connection what waits besides envelopes, and a last message of ours."""
        with self._lock:
            self._outbox.drop_rows()
            if self._connection is not connection:
                return
            if farewell is not None:
                self._outbox.add_control(farewell)
            self._outbox.hand_over(connection, time.monotonic_ns())

    def answered(self, mid: int, reason_code: int) -> list[UplinkEvent]:
        """Take note of the broker's answer; return what is to be told."""
        with self._lock:
            return self._outbox.answered(mid, reason_code, time.monotonic_ns())

    def cut(self) -> None:
        """Give up the connection and all that it carried."""
        with self._lock:
            self._cut()

    def end(self, connection: Connection) -> bool:
        """Give up a connection that has ended; return whether that was our doing."""
        with self._lock:
            by_us = self.is_closing or (connection.came_up and self._connection is None)
            self._cut()
        return by_us

    def close(self) -> None:
        """Want no connection any more."""
        self.is_closing = True
        with self._lock:
            self.waker.set()

    def release(self, *, is_idle: bool) -> None:
        """Cut what is left, and give the descriptor back where the network thread is idle."""
        with self._lock:
            if self._connection is not None:
                self._connection.cut()
            if is_idle:
                self.waker.close()

    def _room(self) -> int:
        if self._connection is None or self.is_closing:
            return 0
        return self._outbox.room(self._connection.receive_maximum)

    def _cut(self) -> None:
        if self._connection is not None:
            self._connection.cut()
            self._connection = None
        self._outbox.forget()
