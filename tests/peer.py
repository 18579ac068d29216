"""MQTT peers that share no code with the agent: a plain paho client, and a scripted broker."""

import contextlib
import queue
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

WAIT_S = 15.0

# What a broker may send that is no answer to anything.
GARBAGE = {
    "unknown packet": b"\xf0\x00",
    "endless length": b"\x30\xff\xff\xff\xff\xff",
    "publish without a topic": b"\x32\x01\x00",
    "publish with broken properties": b"\x32\x08\x00\x01t\x00\x05\x7f\xff\xff",
    "puback cut short": b"\x40\x01\x00",
    "topic that is no UTF-8": b"\x32\x07\x00\x02\xff\xfe\x00\x05\x00",
    "suback nobody asked for": b"\x90\x03\x00\x63\x00",
    "another connack": b"\x20\x03\x00\x00\x00",
    "disconnect": b"\xe0\x02\x8b\x00",
}


def wait_until(found: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """Return what `found` returns once that is true; fails after the timeout."""
    until = time.monotonic() + timeout_s
    while not (result := found()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.005)
    return result


class Peer:
    """A client of a broker that keeps all it gets. A context manager.

    Attributes:
        messages: In the order they came.
    """

    def __init__(
        self,
        port: int,
        tls: ssl.SSLContext | None,
        *,
        client_id: str = "",
        session_s: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        self.messages: list[mqtt.MQTTMessage] = []
        self.refused: list[str] = []
        self._topics: list[str] = []
        self._subscribed: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: dict[int, int] = {}
        self._connected = threading.Event()
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTProtocolVersion.MQTTv5
        )
        if tls is not None:
            self.client.tls_set_context(tls)
        self.client.reconnect_delay_set(0.05, 0.05)  # type: ignore[arg-type] # any number works
        self.client.on_connect = self._on_connect
        self.client.on_subscribe = lambda *a: self._subscribed.put(a[3])
        self.client.on_message = lambda _, __, message: self.messages.append(message)
        self.client.on_publish = self._on_publish
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = session_s
        self.client.connect(host, port, clean_start=not session_s, properties=properties)
        self.client.loop_start()
        assert self._connected.wait(WAIT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def subscribe(self, topic: str) -> Self:
        self._topics.append(topic)
        self.client.subscribe(topic, qos=1)
        self._subscribed.get(timeout=WAIT_S)
        return self

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        """Publish with QoS 1 and return the reason code of the PUBACK."""
        info = self.client.publish(topic, payload, qos=1, retain=retain)
        return int(wait_until(lambda: self._answers.get(info.mid, -1) + 1)) - 1

    def payloads(self, topic: str = "") -> list[bytes]:
        return [m.payload for m in list(self.messages) if topic in ("", m.topic)]

    def _on_connect(self, client: mqtt.Client, _: Any, __: Any, reason: Any, ___: Any) -> None:
        if reason.is_failure:
            self.refused.append(str(reason))
        for topic in self._topics:
            client.subscribe(topic, qos=1)
        self._connected.set()

    def _on_publish(self, _: Any, __: Any, mid: int, reason: Any, ___: Any) -> None:
        self._answers[mid] = reason.value


@dataclass
class Received:
    """A PUBLISH as it came over the wire."""

    connection: int
    topic: str
    mid: int
    payload: bytes


@dataclass
class FakeBroker:
    """A broker on loopback, plaintext, that does what a test wants and writes down what it sees.

    Attributes:
        connack: Properties of the CONNACK.
        suback: Reason code of the SUBACK.
        answers: Whether publishes get a PUBACK.
        greeting: Raw bytes after the SUBACK.
        connack_code: Reason code of the CONNACK.
    """

    connack: bytes = b""
    connack_code: int = 0
    suback: int = 1
    answers: bool = True
    greeting: bytes = b""
    received: list[Received] = field(default_factory=list)
    acked: list[int] = field(default_factory=list)
    packets: list[int] = field(default_factory=list)
    connects: int = 0
    unanswered: int = 0
    most_unanswered: int = 0
    connect_packet: bytes = b""
    subscribe_packet: bytes = b""

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):  # The other side may have gone first.
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(WAIT_S)

    def puback(self, mid: int, code: int = 0) -> None:
        """Answer a publish on the newest connection."""
        self._sockets[-1].sendall(b"\x40\x04" + struct.pack("!HBB", mid, code, 0))

    def keep(self, received: Received) -> None:
        """Keep what came, before it is answered."""
        self.received.append(received)

    def send(self, data: bytes) -> None:
        """Send raw bytes on the newest connection."""
        self._sockets[-1].sendall(data)

    def drop(self) -> None:
        """End the newest connection."""
        self._sockets[-1].shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connects += 1
            self.unanswered = 0
            self._sockets.append(sock)
            thread = threading.Thread(target=self._serve, args=(sock, self.connects))
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        with sock:
            try:
                while True:
                    self._handle(sock, number)
            except OSError:
                return

    def _handle(self, sock: socket.socket, number: int) -> None:
        kind = _read(sock, 1)[0]
        size = shift = 0
        while True:
            byte = _read(sock, 1)[0]
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        body = _read(sock, size)
        self.packets.append(kind >> 4)
        match kind >> 4:
            case 1:
                self.connect_packet = body
                content = bytes([0, self.connack_code, len(self.connack)]) + self.connack
                sock.sendall(bytes([0x20, len(content)]) + content)
            case 8:
                self.subscribe_packet = body
                sock.sendall(b"\x90\x04" + body[:2] + bytes([0, self.suback]) + self.greeting)
            case 3:
                self._publish(sock, number, kind, body)
            case 4:
                self.acked.append(struct.unpack("!H", body[:2])[0])
            case 12:
                sock.sendall(b"\xd0\x00")
            case _:
                return

    def _publish(self, sock: socket.socket, number: int, kind: int, body: bytes) -> None:
        length = struct.unpack("!H", body[:2])[0]
        topic, rest = body[2 : 2 + length].decode(), body[2 + length :]
        mid = 0
        if kind & 0x06:
            mid, rest = struct.unpack("!H", rest[:2])[0], rest[2:]
        assert rest[0] < 128, "properties of the tests are short"
        self.keep(Received(number, topic, mid, rest[1 + rest[0] :]))
        if not mid:
            return
        self.unanswered += 1
        self.most_unanswered = max(self.most_unanswered, self.unanswered)
        if self.answers:
            self.unanswered -= 1
            sock.sendall(b"\x40\x02" + struct.pack("!H", mid))


def _read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise OSError("end")
        data += more
    return data
