"""The network lane: keeps a connection to the broker and moves envelopes over it.

    consentry/v1/{vehicle}/policy                       in, retained, QoS 1
    consentry/v1/{vehicle}/policy/ack                   out, QoS 1
    consentry/v1/{vehicle}/data/{recipient}/{grant}     out, QoS 1
    consentry/v1/{vehicle}/gap/{recipient}/{grant}      out, QoS 1
    consentry/v1/{vehicle}/status                       out, QoS 1, retained; last will
    consentry/v1/{vehicle}/health                       out, QoS 0
    consentry/v1/{vehicle}/ledger/head                  out, QoS 1

Rules:
 * Here stands what the agent's thread may ask for; what both threads share is in `Exchange`, what
   the network's own does in `Lane`.
 * An envelope is taken only where it may be sent now; nothing queues here.
 * Once `cancel` has returned nothing of that grant is sent any more.
"""

from collections.abc import Callable

from agent.edge.uplink.exchange import Exchange
from agent.edge.uplink.lane import Lane
from agent.edge.uplink.message import Messages
from agent.edge.uplink.route import blocked_classes, default_interface
from agent.edge.uplink.value import PolicyToken, UplinkConfig, UplinkEvent


class Uplink:
    """The network lane. Its methods may be called from the agent thread while its own runs."""

    def __init__(self, config: UplinkConfig, *, on_event: Callable[[UplinkEvent], None]) -> None:
        """Prepare the lane; `start` begins it.

        Args:
            config: Where to and as whom.
            on_event: Called in the network thread. If it raises, the lane dies.
        """
        self._when = config.when
        self._messages = Messages(config.vehicle)
        self._exchange = Exchange(window=config.window, max_rate_per_s=config.max_rate_per_s)
        self._lane = Lane(config, self._exchange, self._messages, on_event)

    @property
    def is_alive(self) -> bool:
        """Whether the network thread runs."""
        return self._lane.is_alive

    @property
    def last_moved_ns(self) -> int:
        """When the thread last went round its loop, on the monotonic clock in ns."""
        return self._lane.last_moved_ns

    @property
    def certificate_ends_s(self) -> int | None:
        """When our certificate ends, s since the epoch; None: not known, or no TLS."""
        return self._lane.certificate_ends_s

    def blocked_classes(self) -> frozenset[str]:
        """Return the classes of scopes that may not be sent over the interface in use."""
        return blocked_classes(self._when, default_interface()) if self._when else frozenset()

    def held_grants(self) -> frozenset[str]:
        """Return the grants that the broker refused a while ago; `publish` takes none of them."""
        return self._exchange.held_grants()

    def start(self) -> None:
        """Start the network thread."""
        self._lane.start()

    def close(self, timeout_s: float = 3.0) -> None:
        """Say goodbye and end the thread; what is in flight stays in the spool. Twice is harmless.

        Args:
            timeout_s: How long to wait for the broker, or for a name lookup.
        """
        self._exchange.release(is_idle=self._lane.stop(timeout_s))

    def room(self) -> int:
        """Return how many more envelopes may be published now; 0 without a connection."""
        return self._exchange.room()

    def in_flight(self) -> frozenset[int]:
        """Return the rows that are not to be offered now.

        They have no answer yet, or had one so recently that its event may still be on its way.
        """
        return self._exchange.busy_rows()

    def unanswered(self) -> int:
        """Return how many envelopes are on their way without the broker's answer."""
        return self._exchange.unanswered()

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
        return self._exchange.offer(
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
        return self._exchange.offer(self._messages.gap(gap_id, recipient, grant_id, record))

    def cancel(self, grant_id: str) -> None:
        """Make sure that no envelope of this grant is sent from now on.

        Envelopes that wait are forgotten. If one was handed to the connection and has no answer,
        the connection is cut, and paho's memory of it goes with it. What the kernel had taken
        before may still reach the broker.
        """
        self._exchange.cancel(grant_id)

    def acknowledge(self, token: PolicyToken) -> None:
        """Tell the broker that the outcome of a policy message is on disk.

        On another connection than the message came by it does nothing: the broker brings the
        message again.
        """
        self._exchange.acknowledge(token)

    def publish_ack(self, data: bytes) -> None:
        """Send a signed acknowledgement; it is kept, over connections, until the broker has it."""
        self._exchange.keep_ack(self._messages.ack(data))

    def publish_ledger_head(self, data: bytes) -> None:
        """Send a signed head of the ledger; the newest is kept until the broker has it."""
        self._exchange.keep_head(self._messages.head(data))

    def publish_status(self, state: str) -> bool:
        """Publish a word such as `online`, retained; False without a connection.

        When we are gone the broker publishes `offline` by itself.
        """
        return self._exchange.send(self._messages.status(state))

    def publish_health(self, data: bytes) -> bool:
        """Publish counters (JSON), once and without an answer; False without a connection."""
        return self._exchange.send(self._messages.health(data))
