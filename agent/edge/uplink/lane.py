"""The network thread: one connection after another, and what is told of each.

Rules:
 * The spool is the only queue. An envelope that the broker has not answered when the connection
   ends is forgotten here and offered again from the spool.
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
from agent.edge.uplink.connection import Connection
from agent.edge.uplink.dial import ConnectionEnded
from agent.edge.uplink.exchange import Exchange
from agent.edge.uplink.message import Messages, status
from agent.edge.uplink.server import Server
from agent.edge.uplink.value import (
    Connected,
    Disconnected,
    PolicyArrived,
    PolicyToken,
    UplinkConfig,
    UplinkEvent,
)

MOVE_S = 5.0  # The thread moves at least this often.
LATE_S = 0.01  # Not earlier than a moment at which something is due.
ATTEMPT_S = 60.0  # A name lookup cannot be interrupted; so long it counts as moving.
CONNACK_S = 20.0  # From the end of the TLS handshake until the subscription stands.
STABLE_S = 30.0  # A connection that held so long starts the backoff anew.

_log = logging.getLogger(__name__)


class Lane:
    """The thread. `start`, `stop` and the properties are for others."""

    def __init__(
        self,
        config: UplinkConfig,
        exchange: Exchange,
        messages: Messages,
        on_event: Callable[[UplinkEvent], None],
    ) -> None:
        self._config = config
        self._exchange = exchange
        self._messages = messages
        self._on_event = on_event
        self._thread = threading.Thread(target=self._main, name="uplink", daemon=True)
        self._dead = False
        self._generation = 0  # Names the connection.
        self._server = Server(config)
        self._attempt_ns = 0
        self._opening: Connection | None = None  # While TCP, proxy and TLS take their time.
        self._moved_ns = time.monotonic_ns()
        self._news: deque[UplinkEvent] = deque()  # Told outside the lock.

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
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

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End the thread; return whether it has ended within that time."""
        self._exchange.close()
        if (opening := self._opening) is not None:
            opening.cut()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _main(self) -> None:
        try:
            self._serve()
        except Exception as exc:  # noqa: BLE001 - the top of a thread
            self._dead = True
            _log.exception("network lane died")
            with suppress(Exception):  # It may be what failed; `is_alive` tells it all the same.
                self._on_event(Disconnected(f"the network thread died: {type(exc).__name__}"))
        finally:
            self._exchange.cut()

    def _serve(self) -> None:
        """Connect again and again until closed."""
        attempt = 0
        met = False
        least, most = self._config.min_backoff_s, self._config.max_backoff_s
        chance = random.SystemRandom()
        while not self._exchange.is_closing:
            while self._exchange.is_flooded and not self._exchange.is_closing:
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
        connection = Connection(
            self._config,
            number=self._generation,
            server=self._server.target,
            tls=self._server.tls(),
            speaks_5=self._server.speaks_5,
            topic=self._messages.policy_topic,
            will=(self._messages.status_topic, status("offline")),
            on_up=lambda: self._up(connection),
            on_message=self._policy,
            on_puback=self._answered,
        )
        try:
            self._open(connection, retained_again=retained_again)
            deadline_ns = time.monotonic_ns() + int(CONNACK_S * NS_PER_S)
            while not self._exchange.is_closing:
                self._turn(connection, deadline_ns)
            self._leave(connection)
        except ConnectionEnded as exc:
            by_us = self._exchange.end(connection)
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
            self._exchange.cut()
        self._server.look_at_certificate()
        wait_s = min(MOVE_S, connection.quiet_s + LATE_S)
        if not connection.came_up:
            wait_s = min(wait_s, (deadline_ns - now_ns) / NS_PER_S + LATE_S)
        rate_s, events = self._exchange.hand_over(connection, now_ns)
        self._tell(events)
        connection.step(self._exchange.waker.fd, min(wait_s, rate_s))
        self._exchange.waker.clear()
        self._tell()

    def _leave(self, connection: Connection) -> None:
        """Send what waits besides envelopes, and DISCONNECT; wait for no answer."""
        # Under 3.1.1 the broker forgets our will when we say goodbye.
        farewell = None if connection.speaks_5 else self._messages.status("offline")
        self._exchange.hand_over_last(connection, farewell)
        connection.leave()
        until_ns = time.monotonic_ns() + NS_PER_S
        while time.monotonic_ns() < until_ns:
            connection.step(self._exchange.waker.fd, 0.1)
            self._exchange.waker.clear()

    def _tell(self, more: Iterable[UplinkEvent] = ()) -> None:
        self._news.extend(more)
        while self._news:
            self._on_event(self._news.popleft())

    def _up(self, connection: Connection) -> None:
        self._exchange.up(connection)
        self._news.append(Connected())

    def _policy(self, mid: int, data: bytes) -> None:
        token = PolicyToken(self._generation, mid)
        self._exchange.arrived(token)
        self._news.append(PolicyArrived(data, token))

    def _answered(self, mid: int, reason_code: int) -> None:
        self._news.extend(self._exchange.answered(mid, reason_code))

    def _pause(self, wait_s: float) -> None:
        until_ns = time.monotonic_ns() + int(wait_s * NS_PER_S)
        while not self._exchange.is_closing and (now_ns := time.monotonic_ns()) < until_ns:
            self._moved_ns = now_ns
            self._exchange.waker.wait(min(MOVE_S, (until_ns - now_ns) / NS_PER_S + 0.001))


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
