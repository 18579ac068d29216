"""The network lane: keeps a connection to the broker and moves envelopes over it.

    consentry/v1/{vehicle}/policy                       in, retained, QoS 1
    consentry/v1/{vehicle}/policy/ack                   out, QoS 1
    consentry/v1/{vehicle}/data/{recipient}/{grant}     out, QoS 1
    consentry/v1/{vehicle}/gap/{recipient}/{grant}      out, QoS 1
    consentry/v1/{vehicle}/status                       out, QoS 1, retained; last will
    consentry/v1/{vehicle}/health                       out, QoS 0
    consentry/v1/{vehicle}/ledger/head                  out, QoS 1

Rules:
 * The spool is the only queue. An envelope that the broker has not answered when the connection
   ends is forgotten here and offered again from the spool.
 * An envelope is handed to a connection under the lock that `cancel` takes, so once `cancel` has
   returned nothing of that grant is sent any more.
 * Nothing is published before the subscription to the policy stands.
 * What the lane tells is bounded: envelopes by the window, policies by those that were not
   acknowledged to it, over connections too.
 * If the thread fails it says so and stays dead; whoever looks at `is_alive` ends the process.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from agent.core.model import NS_PER_S
from agent.edge.uplink.connection import RECEIVE_MAXIMUM, Connection
from agent.edge.uplink.dial import ConnectionEnded
from agent.edge.uplink.message import Message, Messages, status
from agent.edge.uplink.outbox import Outbox
from agent.edge.uplink.route import blocked_classes, default_interface
from agent.edge.uplink.server import Server
from agent.edge.uplink.value import (
    Connected,
    Disconnected,
    PolicyArrived,
    PolicyToken,
    UplinkConfig,
    UplinkEvent,
)
from agent.edge.uplink.wake import Wake

MOVE_S = 5.0  # The thread moves at least this often.
LATE_S = 0.01  # Not earlier than a moment at which something is due.
ATTEMPT_S = 60.0  # A name lookup cannot be interrupted; so long it counts as moving.
CONNACK_S = 20.0  # From the end of the TLS handshake until the subscription stands.
ANSWER_S = 60.0  # A broker that leaves a publish unanswered for longer is left.
STABLE_S = 30.0  # A connection that held so long starts the backoff anew.
MAX_UNREAD = 2 * RECEIVE_MAXIMUM  # Policies told and not acknowledged; no new connection with more.

_log = logging.getLogger(__name__)


class Uplink:
    """The network lane. Its methods may be called from the agent thread while its own runs."""

    def __init__(self, config: UplinkConfig, *, on_event: Callable[[UplinkEvent], None]) -> None:
        """Prepare the lane; `start` begins it.

        Args:
            config: Where to and as whom.
            on_event: Called in the network thread. If it raises, the lane dies.
        """
        self._config = config
        self._on_event = on_event
        self._messages = Messages(config.vehicle)
        self._waker = Wake()
        self._thread = threading.Thread(target=self._main, name="uplink", daemon=True)
        self._closing = False
        self._dead = False
        self._generation = 0  # Names the connection.
        self._server = Server(config)
        self._attempt_ns = 0
        self._opening: Connection | None = None  # While TCP, proxy and TLS take their time.
        self._moved_ns = time.monotonic_ns()
        self._news: deque[UplinkEvent] = deque()  # Told outside the lock.
        self._lock = threading.Lock()  # Guards the three below, and closing the descriptor.
        self._unread: set[PolicyToken] = set()
        self._connection: Connection | None = None  # While it is up.
        self._outbox = Outbox(window=config.window, max_rate_per_s=config.max_rate_per_s)

    @property
    def is_alive(self) -> bool:
        """Whether the network thread runs."""
        return self._thread.is_alive() and not self._dead

    @property
    def last_moved_ns(self) -> int:
        """When the thread last went round its loop, on the monotonic clock in ns."""
        now_ns = time.monotonic_ns()
        attempt_ns = self._attempt_ns
        if attempt_ns and now_ns - attempt_ns < ATTEMPT_S * NS_PER_S:
            return now_ns
        return self._moved_ns

    @property
    def certificate_ends_s(self) -> int | None:
        """When our certificate ends, s since the epoch; None: not known, or no TLS."""
        return self._server.certificate_ends_s

    def blocked_classes(self) -> frozenset[str]:
        """Return the classes of scopes that may not be sent over the interface in use."""
        when = self._config.when
        return blocked_classes(when, default_interface()) if when else frozenset()

    def held_grants(self) -> frozenset[str]:
        """Return the grants that the broker refused a while ago; `publish` takes none of them."""
        with self._lock:
            return self._outbox.held_grants(time.monotonic_ns())

    def start(self) -> None:
        """Start the network thread."""
        self._thread.start()

    def close(self, timeout_s: float = 3.0) -> None:
        """Say goodbye and end the thread; what is in flight stays in the spool. Twice is harmless.

        Args:
            timeout_s: How long to wait for the broker, or for a name lookup.
        """
        self._closing = True
        if (opening := self._opening) is not None:
            opening.cut()
        self._wake()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        with self._lock:
            if self._connection is not None:
                self._connection.cut()
            if not self._thread.is_alive():
                self._waker.close()

    def room(self) -> int:
        """Return how many more envelopes may be published now; 0 without a connection."""
        with self._lock:
            return self._room()

    def in_flight(self) -> frozenset[int]:
        """Return the rows that are not to be offered now.

        They have no answer yet, or had one so recently that its event may still be on its way.
        """
        with self._lock:
            return self._outbox.busy_rows()

    def unanswered(self) -> int:
        """Return how many envelopes are on their way without the broker's answer."""
        with self._lock:
            return self._outbox.unanswered()

    def publish(  # noqa: PLR0913 - the columns of a spool row, by keyword
        self,
        row_id: int,
        *,
        recipient: str,
        grant_id: str,
        n: int,
        envelope: bytes,
        expiry_s: int,
    ) -> bool:
        """Send an envelope; `Delivered` or `Refused` follows, or nothing if the connection ends.

        Args:
            row_id: The row of the spool.
            recipient: Part of the topic.
            grant_id: Part of the topic.
            n: The envelope's number in its grant.
            envelope: The payload.
            expiry_s: For how long the broker may keep it, at least 1.

        Returns:
            False if it cannot be sent now; the row stays in the spool.

        Raises:
            ConfigError: An id that cannot stand in a topic.
        """
        return self._offer(
            self._messages.envelope(row_id, recipient, grant_id, n, envelope, expiry_s)
        )

    def publish_gap(self, gap_id: int, *, recipient: str, grant_id: str, record: bytes) -> bool:
        """Send a signed record of numbers that will not come; answered as `publish` is.

        Args:
            gap_id: Below zero, so that it is no row of the spool.
            recipient: Part of the topic.
            grant_id: Part of the topic; the grant may have ended.
            record: The payload.

        Raises:
            ConfigError: An id that cannot stand in a topic.
        """
        assert gap_id < 0
        return self._offer(self._messages.gap(gap_id, recipient, grant_id, record))

    def cancel(self, grant_id: str) -> None:
        """Make sure that no envelope of this grant is sent from now on.

        Envelopes that wait are forgotten. If one was handed to the connection and has no answer,
        the connection is cut, and paho's memory of it goes with it. What the kernel had taken
        before may still reach the broker.
        """
        with self._lock:
            if self._outbox.withdraw(grant_id):
                self._cut()
        self._wake()

    def acknowledge(self, token: PolicyToken) -> None:
        """Tell the broker that the outcome of a policy message is on disk.

        On another connection than the message came by it does nothing: the broker brings the
        message again.
        """
        with self._lock:
            self._unread.discard(token)
            # It may have come before the subscription stood: the session brought it.
            self._outbox.add_control(token)
        self._wake()

    def publish_ack(self, data: bytes) -> None:
        """Send a signed acknowledgement; it is kept, over connections, until the broker has it."""
        ack = self._messages.ack(data)
        with self._lock:
            self._outbox.keep_ack(ack)
            if self._connection is not None:
                self._outbox.add_control(ack)
        self._wake()

    def publish_ledger_head(self, data: bytes) -> None:
        """Send a signed head of the ledger; the newest is kept until the broker has it."""
        head = self._messages.head(data)
        with self._lock:
            self._outbox.keep_head(head)
            if self._connection is not None:
                self._outbox.add_control(head)
        self._wake()

    def publish_status(self, state: str) -> bool:
        """Publish a word such as `online`, retained; False without a connection.

        When we are gone the broker publishes `offline` by itself.
        """
        return self._control(self._messages.status(state))

    def publish_health(self, data: bytes) -> bool:
        """Publish counters (JSON), once and without an answer; False without a connection."""
        return self._control(self._messages.health(data))

    def _offer(self, message: Message) -> bool:
        with self._lock:
            if (
                self._room() <= 0
                or self._outbox.is_busy(message.row_id)
                or self._outbox.is_held(message, time.monotonic_ns())
            ):
                return False
            self._outbox.add_row(message)
            self._waker.set()
        return True

    def _control(self, message: Message) -> bool:
        with self._lock:
            if self._connection is None:
                return False
            self._outbox.add_control(message)
        self._wake()
        return True

    def _room(self) -> int:
        if self._connection is None or self._closing:
            return 0
        return self._outbox.room(self._connection.receive_maximum)

    def _cut(self) -> None:
        """Give up the connection and all that it carried; the lock is held."""
        if self._connection is not None:
            self._connection.cut()
            self._connection = None
        self._outbox.forget()

    def _wake(self) -> None:
        with self._lock:
            self._waker.set()

    def _main(self) -> None:
        try:
            self._serve()
        except Exception as exc:  # noqa: BLE001 - the top of a thread
            self._dead = True
            _log.exception("network lane died")
            with suppress(Exception):  # It may be what failed; `is_alive` tells it all the same.
                self._on_event(Disconnected(f"the network thread died: {type(exc).__name__}"))
        finally:
            with self._lock:
                self._cut()

    def _serve(self) -> None:
        """Connect again and again until closed."""
        attempt = 0
        met = False
        least, most = self._config.min_backoff_s, self._config.max_backoff_s
        chance = random.SystemRandom()
        while not self._closing:
            while len(self._unread) >= MAX_UNREAD and not self._closing:
                self._pause(MOVE_S)  # A broker that floods us waits until the agent lane has read.
            opened_ns = time.monotonic_ns()
            # A new process may have lost what the session has brought before.
            came_up, at_once = self._live_once(retained_again=not met)
            met = met or came_up
            if at_once:
                continue
            if came_up and time.monotonic_ns() - opened_ns >= STABLE_S * NS_PER_S:
                attempt = 0
            self._pause(backoff_s(attempt, least, most, chance))
            attempt += 1

    def _live_once(self, *, retained_again: bool) -> tuple[bool, bool]:
        """Live through one connection; return whether it came up, and whether no pause follows."""
        self._generation += 1
        speaks_5 = self._server.speaks_5
        connection = Connection(
            self._config,
            number=self._generation,
            server=self._server.target,
            tls=self._server.tls(),
            speaks_5=speaks_5,
            topic=self._messages.policy_topic,
            will=(self._messages.status_topic, status("offline")),
            on_up=lambda: self._up(connection),
            on_message=self._policy,
            on_puback=self._answered,
        )
        try:
            self._open(connection, retained_again=retained_again)
            deadline_ns = time.monotonic_ns() + int(CONNACK_S * NS_PER_S)
            while not self._closing:
                self._turn(connection, deadline_ns)
            self._leave(connection)
        except ConnectionEnded as exc:
            with self._lock:
                by_us = self._closing or (connection.came_up and self._connection is None)
                self._cut()
            at_once = by_us or self._server.learn(exc, came_up=connection.came_up)
            told = Disconnected(exc.message, tls=exc.tls, auth=exc.auth)
            self._tell([Disconnected("closed by us") if by_us else told])
            return connection.came_up, at_once
        finally:
            connection.close()
        return connection.came_up, True

    def _open(self, connection: Connection, *, retained_again: bool) -> None:
        self._attempt_ns = time.monotonic_ns()
        self._opening = connection
        try:
            connection.open(retained_again=retained_again)
        finally:
            self._opening = None
            self._attempt_ns = 0

    def _turn(self, connection: Connection, deadline_ns: int) -> None:
        """Hand over what may be sent, wait for the network, tell what came of it."""
        self._moved_ns = now_ns = time.monotonic_ns()
        if not connection.came_up and now_ns > deadline_ns:
            raise ConnectionEnded(f"the broker did not take us within {CONNACK_S:g} s")
        if connection.came_up and self._server.has_new_certificate():
            with self._lock:
                self._cut()
        self._server.look_at_certificate()
        wait_s = min(MOVE_S, connection.quiet_s + LATE_S)
        if not connection.came_up:
            wait_s = min(wait_s, (deadline_ns - now_ns) / NS_PER_S + LATE_S)
        with self._lock:
            if self._connection is connection:
                oldest_ns = self._outbox.oldest_ns()
                if oldest_ns is not None and now_ns - oldest_ns > ANSWER_S * NS_PER_S:
                    raise ConnectionEnded(f"the broker gave no answer for {ANSWER_S:g} s")
                rate_s, events = self._outbox.hand_over(connection, now_ns)
                self._news.extend(events)
                wait_s = min(wait_s, rate_s)
            elif connection.came_up:
                raise ConnectionEnded("cut")
        self._tell()
        connection.step(self._waker.fd, wait_s)
        self._waker.clear()
        self._tell()

    def _leave(self, connection: Connection) -> None:
        """Send what waits besides envelopes, and DISCONNECT; wait for no answer."""
        with self._lock:
            self._outbox.drop_rows()
            if not connection.speaks_5 and self._connection is connection:
                # Under 3.1.1 the broker forgets our will when we say goodbye.
                self._outbox.add_control(self._messages.status("offline"))
            if self._connection is connection:
                self._outbox.hand_over(connection, time.monotonic_ns())
        connection.leave()
        until_ns = time.monotonic_ns() + NS_PER_S
        while time.monotonic_ns() < until_ns:
            connection.step(self._waker.fd, 0.1)
            self._waker.clear()

    def _tell(self, more: Iterable[UplinkEvent] = ()) -> None:
        self._news.extend(more)
        while self._news:
            self._on_event(self._news.popleft())

    def _up(self, connection: Connection) -> None:
        with self._lock:
            self._connection = connection
            self._outbox.begin()
        self._news.append(Connected())

    def _policy(self, mid: int, data: bytes) -> None:
        token = PolicyToken(self._generation, mid)
        with self._lock:
            self._unread.add(token)
        self._news.append(PolicyArrived(data, token))

    def _answered(self, mid: int, reason_code: int) -> None:
        with self._lock:
            self._news.extend(self._outbox.answered(mid, reason_code, time.monotonic_ns()))

    def _pause(self, wait_s: float) -> None:
        until_ns = time.monotonic_ns() + int(wait_s * NS_PER_S)
        while not self._closing and (now_ns := time.monotonic_ns()) < until_ns:
            self._moved_ns = now_ns
            self._waker.wait(min(MOVE_S, (until_ns - now_ns) / NS_PER_S + 0.001))


def backoff_s(attempt: int, least_s: float, most_s: float, chance: random.Random) -> float:
    """Return how long to wait before the next attempt: full jitter.

    A fleet that lost its broker must not come back in step.

    Args:
        attempt: How many have failed since a connection last held.
        least_s: The bound of the first wait; each attempt doubles it ...
        most_s: ... up to this.
        chance: Draws evenly between nothing and the bound.
    """
    return chance.uniform(0.0, min(most_s, least_s * 2.0 ** min(attempt, 32)))
