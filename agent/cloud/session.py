"""A connection to a broker, for a recipient or the platform.

Rules:
 * Every message is acknowledged by hand, on the connection that it came by, or at once.
 * The connection comes back by itself, and so does the subscription.
 * TLS with the caller's context; the broker's name is checked by it.
"""

import ipaddress
import logging
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.errors import UplinkError

RECEIVE_MAXIMUM = 100  # Messages in memory that are not handled yet.
ANSWER_S = 15.0
AGAIN_S = 1.0  # Before the next attempt, where the broker broke the protocol.

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where the broker is, and the TLS settings of the client; None only to loopback."""

    host: str
    port: int
    tls: ssl.SSLContext | None


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message, and the connection on which it may be acknowledged."""

    topic: str
    payload: bytes
    mid: int
    connection: int


class Session:
    """A connected client.

    Attributes:
        subscriptions: How often its subscriptions were taken.
    """

    def __init__(
        self,
        broker: BrokerAddress,
        *,
        client_id: str,
        session_s: int = 0,
        topics: Sequence[str] = (),
        arrived: Callable[[Arrived], None] = lambda _: None,
    ) -> None:
        """Connect and subscribe.

        Args:
            broker: Where.
            client_id: Names the session.
            session_s: How long the broker keeps it; 0: messages are acknowledged at once.
            topics: The subscriptions.
            arrived: Called with each message in paho's thread.

        Raises:
            UplinkError: The broker is not there, does not let us in, or would be spoken to in the
                clear over a network.
        """
        if broker.tls is None and not _is_loopback(broker.host):
            raise UplinkError(
                f"{broker.host} would be spoken to without TLS, expected loopback",
                hint="give the broker's CA and your certificate",
            )
        self._topics = [(topic, 1) for topic in topics]
        self._arrived = arrived
        self._connection = 0
        self.subscriptions = 0
        self._outcome: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[ReasonCode] = queue.SimpleQueue()
        self._client = _Client(
            broker,
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            manual_ack=session_s > 0,
        )
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        self._client.on_publish = self._on_publish
        connect = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho's
        connect.SessionExpiryInterval = session_s
        connect.ReceiveMaximum = RECEIVE_MAXIMUM
        place = f"the broker {broker.host}:{broker.port}"
        try:
            self._client.connect(
                broker.host, broker.port, clean_start=not session_s, properties=connect
            )
        except (OSError, ValueError) as exc:
            raise UplinkError(
                f"{place} cannot be reached: {exc}", hint="check host, port and certificates"
            ) from exc
        self._client.loop_start()
        try:
            refusal = self._outcome.get(timeout=ANSWER_S)
        except queue.Empty:
            refusal = "no answer"
        if refusal is not None:
            self.close()
            raise UplinkError(
                f"{place} does not let us in: {refusal}",
                hint="check the client certificate and the broker's access list (docs/mqtt.md)",
            )

    def acknowledge(self, message: Arrived) -> None:
        """Tell the broker that a message has been handled."""
        # On a later connection the same mid may be another message; that one comes again instead.
        if message.connection == self._connection:
            self._client.ack(message.mid, 1)

    def publish(self, topic: str, payload: str | bytes, *, retain: bool) -> None:
        """Put a message on a topic, for good or for who listens now or has a lasting session.

        Raises:
            UplinkError: The broker does not take it.
        """
        self._client.publish(topic, payload, qos=1, retain=retain)
        try:
            reason = self._answers.get(timeout=ANSWER_S)
        except queue.Empty as exc:
            raise UplinkError(f"the broker did not answer a publish to {topic}") from exc
        if reason.is_failure:
            raise UplinkError(
                f"the broker does not take a publish to {topic}: {reason}",
                hint="check the client certificate and the broker's access list (docs/mqtt.md)",
            )

    def close(self) -> None:
        """End the connection; twice is harmless."""
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(
        self,
        client: Client,
        _: Any,
        __: ConnectFlags,
        reason: ReasonCode,
        ___: Properties | None,
    ) -> None:
        self._connection += 1
        if reason.is_failure:
            self._outcome.put(str(reason))
        elif not self._topics:
            self._outcome.put(None)
        else:
            client.subscribe(self._topics)

    def _on_subscribe(
        self,
        _: Client,
        __: Any,
        ___: int,
        reasons: list[ReasonCode],
        ____: Properties | None,
    ) -> None:
        refused = [str(reason) for reason in reasons if reason.is_failure]
        self.subscriptions += not refused
        self._outcome.put(refused[0] if refused else None)

    def _on_disconnect(self, *arguments: Any) -> None:
        self._connection += 1
        self._outcome.put(str(arguments[3]))

    def _on_message(self, _: Client, __: Any, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            self._client.ack(message.mid, message.qos)  # Nobody's: it would come again for ever.
            return
        try:
            self._arrived(Arrived(topic, bytes(message.payload), message.mid, self._connection))
        except Exception:  # noqa: BLE001 - out of here it would end paho's thread, unseen
            _log.exception("message not handled")

    def _on_publish(self, *arguments: Any) -> None:
        self._answers.put(arguments[3])


def _is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name or address alone."""
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


class _Client(Client):
    """paho's client over a socket of our making; its own is left open when a handshake fails."""

    def __init__(self, broker: BrokerAddress, *arguments: Any, **others: Any) -> None:
        super().__init__(*arguments, **others)
        self._broker = broker
        self._closing = threading.Event()

    def _thread_main(self) -> None:
        # What paho raises over the broker's bytes would end its thread, and nobody would hear.
        is_over = False
        while not is_over:
            try:
                self.loop_forever(retry_first_connection=True)
                is_over = True
            except Exception:  # noqa: BLE001 - paho raises anything over bytes it did not expect
                _log.exception("broker breaks the protocol")
                is_over = not self._connect_anew()

    def _connect_anew(self) -> bool:
        """Connect again and again until that is done; False: the session was closed meanwhile."""
        while not self._closing.wait(AGAIN_S):
            with suppress(OSError, ValueError):
                self.reconnect()
                return True
        return False

    def disconnect(self, *arguments: Any, **others: Any) -> MQTTErrorCode:
        """Say goodbye; the thread ends."""
        self._closing.set()
        return super().disconnect(*arguments, **others)

    def _create_socket(self) -> socket.socket:
        broker = self._broker
        sock = socket.create_connection((broker.host, broker.port), timeout=ANSWER_S)
        if broker.tls is None:
            return sock
        try:
            return broker.tls.wrap_socket(sock, server_hostname=broker.host)
        except BaseException:
            sock.close()
            raise
