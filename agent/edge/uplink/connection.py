"""One MQTT connection, from CONNECT to its end. Used by the network thread; `cut` by any.

Rules:
 * A paho client object lives as long as its connection. What paho still holds in RAM dies with it,
   so nothing is retransmitted that the spool no longer offers.
 * The socket is read and written in `step` only. `publish` and the others put packets into paho's
   queue, which is why they are quick enough to be called under a lock.
 * What our own callbacks raise comes out of `step`; what paho raises over the broker's bytes ends
   the connection. paho by itself would let both kill its thread and say nothing.
"""

import select
import socket
import ssl
from collections.abc import Callable
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.edge.uplink.breaker import Breaker
from agent.edge.uplink.client import (
    PahoClient,
    PublishProperties,
    auth_word,
    properties_of,
    server_reference,
)
from agent.edge.uplink.dial import ConnectionEnded, dial, tls_word
from agent.edge.uplink.message import JSON_TYPE
from agent.edge.uplink.value import UplinkConfig

MAX_POLICY_BYTES = 64 * 1024  # Design: policy. A longer one is refused without being read.
MAX_PACKET_BYTES = MAX_POLICY_BYTES + 4 * 1024  # Topic, properties, header.
RECEIVE_MAXIMUM = 4  # Policies without our acknowledgement.
UNSUPPORTED_VERSION = 0x84  # MQTT 5 section 2.4, also for CONNACK 0x01 of 3.1.1.


class Connection:
    """An MQTT connection that its owner drives.

    Attributes:
        number: Tells it from those before and after.
        came_up: The broker took us and the subscription stood.
        receive_maximum: Most QoS 1 publishes without an answer that the broker takes.
    """

    def __init__(  # noqa: PLR0913 - three callbacks among them
        self,
        config: UplinkConfig,
        *,
        number: int,
        server: tuple[str, int],
        tls: ssl.SSLContext | None,
        speaks_5: bool,
        topic: str,
        will: tuple[str, bytes],
        on_up: Callable[[], None],
        on_message: Callable[[int, bytes], None],
        on_puback: Callable[[int, int], None],
    ) -> None:
        """Prepare a connection; `open` begins it.

        Args:
            config: As whom, and how.
            number: Its name.
            server: Host and port.
            tls: None: plaintext.
            speaks_5: MQTT 5; else 3.1.1, which knows no properties and no reasons.
            topic: The only subscription.
            will: Topic and payload that the broker publishes, retained, when we are gone.
            on_up: Called once in `step` when the subscription stands.
            on_message: Called in `step` with (mid, payload) of each message on `topic`.
            on_puback: Called in `step` with (mid, reason code) of each answered publish.
        """
        self.number = number
        self.came_up = False
        self.receive_maximum = 65_535  # MQTT 5 section 3.2.2.3.3: where the broker names none.
        self.speaks_5 = speaks_5
        self._config = config
        self._topic = topic
        self._callbacks = (on_up, on_message, on_puback)
        self._max_packet = 268_435_455  # MQTT 5 section 2.1.4: the longest there is.
        self._is_taken = False
        self._ended: ConnectionEnded | None = None
        self._fault: Exception | None = None
        self._breaker = Breaker()
        self._unacknowledged: set[int] = set()
        self._retain_handling = 0
        self._client = PahoClient(
            lambda: dial(
                *server,
                tls=tls,
                proxy=config.proxy,
                silence_s=config.keepalive_s,
                on_open=self._breaker.hold,
            ),
            CallbackAPIVersion.VERSION2,
            client_id=config.client_id,
            clean_session=None if speaks_5 else False,
            protocol=MQTTProtocolVersion.MQTTv5 if speaks_5 else MQTTProtocolVersion.MQTTv311,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        self._client.max_inflight_messages_set(0)  # No limit of its own: the window is the lane's.
        about_will = properties_of(PacketTypes.WILLMESSAGE)
        about_will.ContentType = JSON_TYPE
        self._client.will_set(
            *will, qos=1, retain=True, properties=about_will if speaks_5 else None
        )
        self._client.on_connect = self._guard(self._on_connect)
        self._client.on_subscribe = self._guard(self._on_subscribe)
        self._client.on_disconnect = self._guard(self._on_disconnect)
        self._client.on_message = self._guard(self._on_message)
        self._client.on_publish = self._guard(self._on_publish)
        # Being there, it keeps paho from writing to the socket inside publish().
        self._client.on_socket_register_write = lambda *_: None

    def open(self, *, retained_again: bool) -> None:
        """Connect and queue CONNECT; blocks for the name, TCP and TLS.

        Args:
            retained_again: Ask for the retained policy although the session stands.

        Raises:
            ConnectionEnded: No connection, or TLS failed.
        """
        self._retain_handling = 0 if retained_again else 1
        about: dict[str, Any] = {}
        if self.speaks_5:
            connect = properties_of(PacketTypes.CONNECT)
            connect.SessionExpiryInterval = self._config.session_expiry_s
            connect.MaximumPacketSize = MAX_PACKET_BYTES
            connect.ReceiveMaximum = RECEIVE_MAXIMUM
            # Clean Start also off the first time, or some brokers keep no session.
            about = {"clean_start": False, "properties": connect}
        # Host and port are those of `dial`; paho wants some.
        self._client.connect(
            self._config.host, self._config.port, keepalive=self._config.keepalive_s, **about
        )

    def step(self, wake_fd: int, timeout_s: float) -> None:
        """Wait for the socket or `wake_fd`, at most `timeout_s`, and do what there is to do.

        Raises:
            ConnectionEnded: With the reason.
            Exception: What one of our callbacks raised.
        """
        sock = self._socket()
        poll = select.poll()
        poll.register(wake_fd, select.POLLIN)
        poll.register(sock, select.POLLIN | (select.POLLOUT if self._client.want_write() else 0))
        # Bytes that TLS has decrypted already do not show in poll.
        buffered = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        ready = dict(poll.poll(0 if buffered else timeout_s * 1000))
        try:
            if buffered or ready.get(sock.fileno(), 0) & ~select.POLLOUT:
                self._client.loop_read()
                self._check_incoming()
            if self._client.want_write():
                self._client.loop_write()
            self._client.loop_misc()
        except Exception as exc:  # noqa: BLE001 - paho raises anything over bytes it did not expect
            if self._fault is None:
                self._end(f"the broker breaks the protocol ({type(exc).__name__})")
        if self._fault is not None:
            raise self._fault
        if self._ended is not None or self._client.socket() is None:
            raise self._ended or self._lost()

    @property
    def quiet_s(self) -> float:
        """How long `step` may wait, or a dead link is found late."""
        return self._client.quiet_s()

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool, **about: Any) -> int:
        """Queue a message; return its mid.

        Args:
            topic: Complete topic.
            payload: As it is sent.
            qos: 0 or 1.
            retain: Whether the broker keeps it for whoever subscribes later.
            about: MQTT 5 properties, see `PublishProperties`.

        Raises:
            OverflowError: Longer than the broker takes.
            ConnectionEnded: paho does not take it.
        """
        properties = PublishProperties(**about) if self.speaks_5 else None
        # 2 bytes each for the length of the topic and the mid, 5 for the fixed header.
        size = 9 + len(topic.encode()) + len(payload)
        if size + (len(properties.pack()) if properties else 0) > self._max_packet:
            raise OverflowError
        done = self._client.publish(topic, payload, qos=qos, retain=retain, properties=properties)
        if done.rc is not MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise ConnectionEnded("the connection was lost")
        return done.mid

    def acknowledge(self, mid: int) -> None:
        """Queue the PUBACK of a message."""
        if mid in self._unacknowledged:
            self._unacknowledged.discard(mid)
            self._client.ack(mid, 1)

    def leave(self) -> None:
        """Queue DISCONNECT; under MQTT 5 the broker publishes our will (section 3.14.2.1, 0x04)."""
        reason = ReasonCode(PacketTypes.DISCONNECT, identifier=0x04) if self.speaks_5 else None
        self._client.disconnect(reason)

    def cut(self) -> None:
        """Stop all sending and receiving at once. Any thread.

        Bytes that the kernel had taken before may still arrive.
        """
        self._breaker.trip()

    def close(self) -> None:
        """Give the sockets back."""
        self._breaker.close()
        sock = self._client.socket()
        if sock is not None:
            sock.close()

    def _guard(self, callback: Callable[..., None]) -> Callable[..., None]:
        def guarded(*arguments: Any) -> None:
            try:
                callback(*arguments)
            except Exception as exc:
                self._fault = exc
                raise

        return guarded

    def _end(self, message: str, **about: Any) -> None:
        self._ended = ConnectionEnded(message, **about)

    def _lost(self) -> ConnectionEnded:
        """Say why, where TLS knows more than that the connection is gone."""
        alert = self._client.tls_fault
        if alert is None:
            return ConnectionEnded("the connection was lost")
        return ConnectionEnded(f"TLS ended the connection: {alert}", tls=tls_word(alert))

    def _on_connect(
        self, client: Client, _: Any, __: ConnectFlags, reason: ReasonCode, found: Properties
    ) -> None:
        if self._is_taken:
            self._end("the broker breaks the protocol (a second CONNACK)")
            return
        self._is_taken = True
        if reason.is_failure:
            self._end(
                f"the broker refuses us: {reason}",
                auth=auth_word(reason),
                server=server_reference(reason, found),
                too_new=self.speaks_5 and reason.value == UNSUPPORTED_VERSION,
            )
            return
        self.receive_maximum = getattr(found, "ReceiveMaximum", self.receive_maximum)
        self._max_packet = getattr(found, "MaximumPacketSize", self._max_packet)
        if getattr(found, "MaximumQoS", 1) < 1:
            self._end("the broker takes QoS 0 only, expected QoS 1")
            return
        if self.speaks_5:
            options = SubscribeOptions(qos=1, retainHandling=self._retain_handling)
            client.subscribe(self._topic, options=options)
        else:
            client.subscribe(self._topic, qos=1)

    def _on_subscribe(
        self, _: Client, __: Any, ___: int, reasons: list[ReasonCode], ____: Properties
    ) -> None:
        # Who cannot tell us that a grant has ended gets no envelope of it.
        if len(reasons) != 1 or reasons[0].is_failure:
            told = ", ".join(str(reason) for reason in reasons)
            self._end(
                f"the broker refuses the subscription to the policy: {told}",
                auth=auth_word(reasons[0]) if reasons else "",
            )
            return
        self.came_up = True
        self._callbacks[0]()

    def _on_disconnect(
        self, _: Client, __: Any, flags: DisconnectFlags, reason: ReasonCode, found: Properties
    ) -> None:
        if self._ended is not None:
            return
        if flags.is_disconnect_packet_from_server:
            self._end(
                f"the broker sent us away: {reason}",
                auth=auth_word(reason),
                server=server_reference(reason, found),
            )
        else:
            self._ended = self._lost()

    def _on_message(self, client: Client, _: Any, message: MQTTMessage) -> None:
        if message.qos != 1:
            return  # Cannot be acknowledged once it is on disk; the platform publishes with QoS 1.
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        if topic != self._topic or not message.payload:
            client.ack(message.mid, 1)  # Nobody's policy, or the retained one was removed.
            return
        self._unacknowledged.add(message.mid)
        if len(self._unacknowledged) > RECEIVE_MAXIMUM:
            self._end(f"the broker sends more than {RECEIVE_MAXIMUM} policies at once")
            return
        self._callbacks[1](message.mid, bytes(message.payload))

    def _on_publish(
        self, _: Client, __: Any, mid: int, reason: ReasonCode, ___: Properties
    ) -> None:
        self._callbacks[2](mid, reason.value)

    def _check_incoming(self) -> None:
        # paho tells the broker our Maximum Packet Size but does not hold it to it, and would take
        # 256 MiB into RAM.
        size = self._client._in_packet["remaining_length"]  # noqa: SLF001 - no public way to see it
        if size > MAX_PACKET_BYTES:
            self._end(f"the broker sends {size} bytes, expected at most {MAX_PACKET_BYTES}")

    def _socket(self) -> socket.socket:
        sock = self._client.socket()
        if sock is None:
            raise self._ended or self._lost()
        assert isinstance(sock, socket.socket)
        return sock
