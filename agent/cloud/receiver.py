"""Receive from a broker: a recipient's envelopes, opened and de-duplicated; and push policies.

Rules:
 * A message is acknowledged to the broker only after it was handed over, so a receiver that dies
   gets it again; what comes twice is told apart by (vehicle, grant, n).
 * What does not open is reported with its topic, acknowledged and left: it would never open.
"""

import logging
import queue
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.cloud.envelope import Devices, Opened, RecipientKeys, open_envelope
from agent.errors import EnvelopeRejected, UplinkError

PREFIX = "consentry/v1"
SESSION_S = 7 * 86_400
_CONNECT_S = 15.0
_ANSWER_S = 15.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where the broker is; TLS always, but to loopback."""

    host: str
    port: int
    tls: ssl.SSLContext | None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A message that is no envelope for us."""

    topic: str
    error: EnvelopeRejected


class Receiver:
    """A recipient's subscription. Iterating gives what arrives, until `close`."""

    def __init__(
        self,
        broker: BrokerAddress,
        *,
        recipient: str,
        recipient_keys: RecipientKeys,
        devices: Devices,
        client_id: str | None = None,
    ) -> None:
        """Connect and subscribe.

        Args:
            broker: Where.
            recipient: Our id in policies, a topic level.
            recipient_keys: kid -> our private keys.
            devices: kid -> public keys of enrolled devices.
            client_id: Names the session that the broker keeps; default: the recipient's id.

        Raises:
            UplinkError: The broker is not there, or does not let us in.
        """
        self._keys = recipient_keys
        self._devices = devices
        self._seen: set[tuple[str, str, int]] = set()
        self._queue: queue.SimpleQueue[Opened | Rejected | None] = queue.SimpleQueue()
        self.duplicates = 0
        self._client = _connect(broker, client_id or f"recipient-{recipient}", self._arrived)
        _subscribe(self._client, f"{PREFIX}/+/data/{recipient}/#")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Opened | Rejected]:
        while (item := self._queue.get()) is not None:
            yield item

    def close(self) -> None:
        """End; the broker keeps what arrives meanwhile. Harmless when called twice."""
        self._client.disconnect()
        self._client.loop_stop()
        self._queue.put(None)

    def _arrived(self, message: mqtt.MQTTMessage) -> None:
        try:
            opened = open_envelope(
                bytes(message.payload), recipient_keys=self._keys, devices=self._devices
            )
        except EnvelopeRejected as exc:
            self._queue.put(Rejected(message.topic, exc))
            return
        header = opened.header
        name = (header.vehicle, header.grant_id, header.n)
        if name in self._seen:
            self.duplicates += 1
            return
        self._seen.add(name)
        self._queue.put(opened)


def publish_policy(vehicle: str, token: str, broker: BrokerAddress) -> None:
    """Put a signed policy on a vehicle's topic, retained: it waits there for the vehicle.

    Raises:
        UplinkError: The broker is not there, or does not take it.
    """
    client = _connect(broker, f"platform-{vehicle}", lambda _: None)
    try:
        info = client.publish(f"{PREFIX}/{vehicle}/policy", token, qos=1, retain=True)
        info.wait_for_publish(_ANSWER_S)
        if not info.is_published():
            raise UplinkError("the broker did not take the policy in time")
    finally:
        client.disconnect()
        client.loop_stop()


def _connect(
    broker: BrokerAddress, client_id: str, arrived: Callable[[mqtt.MQTTMessage], None]
) -> mqtt.Client:
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        protocol=MQTTProtocolVersion.MQTTv5,
        manual_ack=True,
    )
    if broker.tls is not None:
        client.tls_set_context(broker.tls)
    connected = threading.Event()
    refused: list[str] = []

    def on_connect(
        _client: object, _data: object, _flags: object, code: object, *_: object
    ) -> None:
        if getattr(code, "is_failure", False):
            refused.append(str(code))
        connected.set()

    def on_message(client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        try:
            arrived(message)
        except Exception:  # noqa: BLE001 - paho's thread would die of it without a word
            _log.exception("message not handled")
            return
        client.ack(message.mid, message.qos)

    client.on_connect = on_connect
    client.on_message = on_message
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho's
    properties.SessionExpiryInterval = SESSION_S
    try:
        client.connect(broker.host, broker.port, clean_start=False, properties=properties)
    except (OSError, ValueError) as exc:
        raise UplinkError(
            f"the broker {broker.host}:{broker.port} cannot be reached: {exc}",
            hint="check host, port and certificates",
        ) from exc
    client.loop_start()
    if not connected.wait(_CONNECT_S) or refused:
        client.loop_stop()
        raise UplinkError(
            f"the broker {broker.host}:{broker.port} does not let us in: "
            f"{refused[0] if refused else 'no answer'}",
            hint="check the client certificate and the broker's access list",
        )
    return client


def _subscribe(client: mqtt.Client, topic: str) -> None:
    answered = threading.Event()
    codes: list[object] = []

    def on_subscribe(_client: object, _data: object, _mid: int, found: Any, *_: object) -> None:
        codes.extend(found)
        answered.set()

    client.on_subscribe = on_subscribe
    client.subscribe(topic, qos=1)
    if not answered.wait(_ANSWER_S) or any(getattr(code, "is_failure", True) for code in codes):
        client.loop_stop()
        raise UplinkError(
            f"the broker does not let us subscribe to {topic}",
            hint="the access list in docs/mqtt.md shows what a recipient may read",
        )
