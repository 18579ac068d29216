"""MQTT 5 over TLS, with paho behind a narrow interface; the network lane.

    consentry/v1/{vehicle}/policy                    cloud -> vehicle, retained
    consentry/v1/{vehicle}/policy/ack                signed answers
    consentry/v1/{vehicle}/data/{recipient}/{grant}  envelopes
    consentry/v1/{vehicle}/status                    retained; last will "offline"
    consentry/v1/{vehicle}/health                    counters, never vehicle data

Rules:
 * One paho client per connection. What paho keeps in RAM dies with the connection; everything
   without an answer is offered again from the spool. Nothing is published while offline (paho
   would queue it without bound and send it later, whatever was revoked meanwhile).
 * An own window: the broker's Receive Maximum bounds it (paho ignores that).
 * A policy message is acknowledged only when the agent says so (`acknowledge`).
 * Back-off is exponential with full jitter (paho's has none).
 * A callback that raises ends the connection, is logged, and the lane connects anew: paho alone
   would leave a dead thread in a living process.
 * Plaintext only to loopback, and only when the configuration says so.
"""

import contextlib
import ipaddress
import logging
import random
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.core.seal import CONTENT_TYPE
from agent.errors import UplinkError

PREFIX: Final = "consentry/v1"
SESSION_S = 7 * 86_400  # How long the broker keeps our subscription and undelivered policies.
MAX_INCOMING_BYTES = 80 * 1024  # A policy of 64 KiB and its packet.
CONNECT_TIMEOUT_S = 15.0
RECEIVE_MAXIMUM_DEFAULT = 65_535  # MQTT 5.0 section 3.2.2.3.3.
GOODBYE_S = 1.0
MAX_INFLIGHT = 1000
PACKET_OVERHEAD_BYTES = 128  # Fixed header, topic length, packet id and properties.
PACKET_TOO_LARGE = 0x95  # MQTT 5.0 section 2.4, as the broker would say it.
NO_SUBSCRIBERS = 0x10  # MQTT 5.0 section 3.4.2.1: accepted, and nobody gets it now.
FAILURE = 0x80  # Reason codes from here on are failures.

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UplinkConfig:
    """Where the broker is and how to talk to it.

    Attributes:
        vehicle: The vehicle's pseudonym, a topic level.
        client_id: MQTT client identifier; stays the same, so that the session does.
        tls: None only with `plaintext_loopback`.
        window: Most publishes without an answer.
        plaintext_loopback: Speak without TLS to a broker on loopback.
    """

    host: str
    port: int
    vehicle: str
    client_id: str
    tls: ssl.SSLContext | None
    keepalive_s: int = 30
    window: int = 20
    min_backoff_s: float = 1.0
    max_backoff_s: float = 300.0
    plaintext_loopback: bool = False


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker let us in."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is gone, or could not be made."""

    reason: str


@dataclass(frozen=True, slots=True)
class PolicyArrived:
    """A message on the policy topic; `token` names it for `acknowledge`."""

    data: bytes
    token: "Token"


@dataclass(frozen=True, slots=True)
class Delivered:
    """The broker took over an envelope."""

    row_id: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The broker refused an envelope; it stays in the spool."""

    row_id: int
    reason_code: int


UplinkEvent = Connected | Disconnected | PolicyArrived | Delivered | Refused


@dataclass(frozen=True, slots=True)
class Token:
    """A message that waits for its acknowledgement, on one connection."""

    connection: int
    mid: int
    qos: int


@dataclass(slots=True)
class _Connection:
    """One paho client and what is in flight on it.

    The lock guards the two dicts only. It is never held while paho is called: paho holds its own
    lock while it calls back, so holding both would be a deadlock in waiting.
    """

    number: int
    client: mqtt.Client
    lock: threading.Lock = field(default_factory=threading.Lock)
    flights: dict[int, tuple[int, str]] = field(default_factory=dict)  # mid -> (row, grant)
    early: dict[int, int] | None = None  # mid -> reason code that came before `publish` returned
    window: int = 0
    max_packet: int = 2**28
    was_up: bool = False
    end: str | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def is_up(self) -> bool:
        return self.was_up and not self.ended.is_set()

    def finish(self, reason: str) -> None:
        """End the connection; the first reason counts."""
        if self.end is None:
            self.end = reason
        self.ended.set()


class Uplink:
    """The network lane. Its methods are called by the agent lane, its events come from its own."""

    def __init__(self, config: UplinkConfig, *, on_event: Callable[[UplinkEvent], None]) -> None:
        """Prepare; `start` begins.

        Args:
            config: Where and how.
            on_event: Called in the network lane's threads.

        Raises:
            UplinkError: Neither TLS nor an allowed plaintext connection is configured.
        """
        if config.tls is None and not (config.plaintext_loopback and _is_loopback(config.host)):
            raise UplinkError(
                f"no TLS for the broker {config.host}",
                hint="name ca, certificate and private_key; plaintext is for loopback only, with "
                "plaintext_loopback = true",
            )
        self._config = config
        self._on_event = on_event
        self._connection: _Connection | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self._topic = f"{PREFIX}/{config.vehicle}"
        self.connections = 0
        self.no_subscribers = 0

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def close(self, timeout_s: float = 3.0) -> None:
        """Say goodbye and end the lane. Harmless when called twice."""
        self._stop.set()
        connection = self._connection
        if connection is not None:
            connection.finish("stopped")
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def is_alive(self) -> bool:
        """Whether the lane's thread runs."""
        return self._thread.is_alive()

    def room(self) -> int:
        """Return how many more envelopes may be published now; 0 while offline."""
        connection = self._connection
        if connection is None or not connection.is_up:
            return 0
        with connection.lock:
            return max(0, connection.window - len(connection.flights))

    def in_flight(self) -> frozenset[int]:
        """Return the rows that wait for the broker's answer."""
        connection = self._connection
        if connection is None:
            return frozenset()
        with connection.lock:
            return frozenset(row_id for row_id, _ in connection.flights.values())

    def publish(  # noqa: PLR0913 - what the topic and the properties need, by keyword
        self,
        row_id: int,
        *,
        recipient: str,
        grant_id: str,
        n: int,
        envelope: bytes,
        expiry_s: int,
    ) -> bool:
        """Send one envelope; False while offline: it stays in the spool.

        Args:
            row_id: Names it in `Delivered` and `Refused`.
            recipient: A topic level.
            grant_id: A topic level.
            n: The envelope's number in its grant, a user property.
            envelope: The payload.
            expiry_s: How long the broker may keep it, s.
        """
        connection = self._connection
        if connection is None or not connection.is_up:
            return False
        topic = f"{self._topic}/data/{recipient}/{grant_id}"
        if len(envelope) + len(topic) + PACKET_OVERHEAD_BYTES > connection.max_packet:
            self._on_event(Refused(row_id, PACKET_TOO_LARGE))
            return False
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call] # paho's
        properties.ContentType = CONTENT_TYPE
        properties.MessageExpiryInterval = min(expiry_s, 2**32 - 1)
        properties.UserProperty = [("n", str(n))]
        with connection.lock:
            connection.early = {}
        info = connection.client.publish(topic, envelope, qos=1, properties=properties)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            # paho keeps it all the same; the connection ends, so that it cannot be sent later.
            connection.finish(mqtt.error_string(info.rc))
            return False
        with connection.lock:
            code = (connection.early or {}).get(info.mid)
            connection.early = None
            if code is None:
                connection.flights[info.mid] = (row_id, grant_id)
        if code is not None:
            self._settled(row_id, code)
        return True

    def acknowledge(self, token: Token) -> None:
        """Tell the broker that a policy message is dealt with, when its outcome is on disk."""
        connection = self._connection
        if connection is not None and connection.number == token.connection:
            connection.client.ack(token.mid, token.qos)

    def cancel(self, grant_id: str) -> None:
        """Make sure that nothing of a grant is sent any more.

        What is in flight of it may be retransmitted by paho at any time, so the connection is
        dropped with everything that paho holds; other grants' envelopes come again from the spool.
        """
        connection = self._connection
        if connection is None:
            return
        with connection.lock:
            concerned = any(grant == grant_id for _, grant in connection.flights.values())
        if concerned:
            _cut(connection.client)
            connection.finish("dropped, so that nothing of an ended grant is sent again")

    def publish_ack(self, data: bytes) -> None:
        """Send a signed answer to a policy, if connected."""
        self._send("policy/ack", data)

    def publish_status(self, text: str) -> None:
        """Send the retained status, if connected."""
        self._send("status", text.encode(), retain=True)

    def publish_health(self, data: bytes) -> None:
        """Send counters, if connected."""
        self._send("health", data)

    def _send(self, leaf: str, data: bytes, *, retain: bool = False) -> None:
        connection = self._connection
        if connection is not None and connection.is_up:
            connection.client.publish(f"{self._topic}/{leaf}", data, qos=1, retain=retain)

    def _run(self) -> None:
        backoff_s = self._config.min_backoff_s
        while not self._stop.is_set():
            self.connections += 1
            connection = self._open(self.connections)
            self._connection = connection
            try:
                self._serve(connection)
            finally:
                self._connection = None
                _cut(connection.client)
                connection.client.loop_stop()
            if self._stop.is_set():
                return
            self._on_event(Disconnected(connection.end or "unknown"))
            if connection.was_up:
                backoff_s = self._config.min_backoff_s
            # Full jitter: a fleet that lost its broker does not come back in one moment.
            self._stop.wait(random.uniform(0, backoff_s))  # noqa: S311 - spreads load, no secret
            backoff_s = min(backoff_s * 2, self._config.max_backoff_s)

    def _serve(self, connection: _Connection) -> None:
        """Hold one connection from beginning to end."""
        client = connection.client
        try:
            client.connect(
                self._config.host,
                self._config.port,
                keepalive=self._config.keepalive_s,
                clean_start=False,
                properties=_session(),
            )
        except (OSError, ValueError) as exc:
            connection.finish(_told(exc))
            return
        client.loop_start()
        connection.ended.wait(CONNECT_TIMEOUT_S)
        if not connection.was_up:
            connection.finish("the broker did not let us in in time")
            return
        connection.ended.wait()
        if self._stop.is_set():
            info = client.publish(f"{self._topic}/status", b"offline", qos=1, retain=True)
            with contextlib.suppress(RuntimeError, ValueError):
                info.wait_for_publish(GOODBYE_S)
            client.disconnect()

    def _open(self, number: int) -> _Connection:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._config.client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        connection = _Connection(number, client)
        if self._config.tls is not None:
            client.tls_set_context(self._config.tls)
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_queued_messages_set(0)
        client.max_inflight_messages_set(MAX_INFLIGHT)  # The window is ours, see `room`.
        client.will_set(f"{self._topic}/status", b"offline", qos=1, retain=True)

        def guarded(step: Callable[..., None]) -> Callable[..., None]:
            def callback(*args: Any) -> None:
                try:
                    step(*args)
                except Exception as exc:  # noqa: BLE001 - paho would go on with a dead thread
                    _log.exception("uplink callback failed")
                    connection.finish(f"a callback failed: {type(exc).__name__}")
                    _cut(client)

            return callback

        client.on_connect = guarded(
            lambda _client, _data, _flags, code, properties: self._on_connect(
                connection, code, properties
            )
        )
        client.on_disconnect = guarded(
            lambda _client, _data, _flags, code, _properties: connection.finish(str(code))
        )
        client.on_publish = guarded(
            lambda _client, _data, mid, code, _properties: self._on_publish(connection, mid, code)
        )
        client.on_message = guarded(
            lambda _client, _data, message: self._on_event(
                PolicyArrived(bytes(message.payload), Token(number, message.mid, message.qos))
            )
        )
        return connection

    def _on_connect(
        self, connection: _Connection, code: ReasonCode, properties: Properties | None
    ) -> None:
        if code.is_failure:
            connection.finish(f"the broker refused the connection: {code}")
            return
        maximum = getattr(properties, "ReceiveMaximum", RECEIVE_MAXIMUM_DEFAULT)
        connection.max_packet = getattr(properties, "MaximumPacketSize", connection.max_packet)
        connection.window = min(self._config.window, maximum)
        connection.client.subscribe(f"{self._topic}/policy", qos=1)
        connection.was_up = True
        self._on_event(Connected())

    def _on_publish(self, connection: _Connection, mid: int, code: ReasonCode) -> None:
        with connection.lock:
            flight = connection.flights.pop(mid, None)
            if flight is None and connection.early is not None:
                connection.early[mid] = code.value
        if flight is not None:
            self._settled(flight[0], code.value)

    def _settled(self, row_id: int, code: int) -> None:
        if code >= FAILURE:
            self._on_event(Refused(row_id, code))
            return
        if code == NO_SUBSCRIBERS:
            self.no_subscribers += 1
        self._on_event(Delivered(row_id))


def _session() -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho's
    properties.SessionExpiryInterval = SESSION_S
    properties.MaximumPacketSize = MAX_INCOMING_BYTES
    return properties


def _cut(client: mqtt.Client) -> None:
    """Close the socket under paho, without a word: nothing that it still holds may go out."""
    sock = client.socket()
    if sock is not None:
        if isinstance(sock, socket.socket):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            sock.close()


def _told(error: Exception) -> str:
    """Say why a connection could not be made, as a person would."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the broker's certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason}"
    return str(error) or type(error).__name__


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
