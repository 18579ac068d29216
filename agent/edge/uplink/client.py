"""paho's client, and MQTT 5 properties, as the connection needs them."""

import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

ELSEWHERE = (0x9C, 0x9D)  # MQTT 5 section 2.4: use another server; server moved.

# MQTT 5 section 2.4; of 3.1.1 paho makes the same of CONNACK 2, 4 and 5.
_AUTH = {
    0x85: "client-id",
    0x86: "credentials",
    0x87: "not-authorized",
    0x8A: "banned",
    0x8C: "method",
}


class PahoClient(Client):
    """paho's client over a socket of our making, which remembers what TLS said at the end.

    paho makes its own, but leaves it open when the handshake fails, asks the environment for
    proxies, and falls back to a handshake without the broker's name.
    """

    def __init__(
        self, dialled: Callable[[], socket.socket], *arguments: Any, **others: Any
    ) -> None:
        super().__init__(*arguments, **others)
        self._dialled = dialled
        self.tls_fault: str | None = None

    def quiet_s(self) -> float:
        """Return how long there is nothing to do for the keep-alive: no ping, and no verdict."""
        last_s = min(float(self._last_bytes_received), float(self._last_msg_out))
        return max(0.0, last_s + self.keepalive - time.monotonic())

    def _create_socket(self) -> socket.socket:
        return self._dialled()

    def _sock_recv(self, bufsize: int) -> bytes:
        # With TLS 1.3 a broker refuses our certificate after the handshake: as an alert that comes
        # with the first read, of which paho says nothing.
        try:
            return bytes(super()._sock_recv(bufsize))
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as exc:
            self.tls_fault = (exc.reason or type(exc).__name__).lower().replace("_", " ")
            raise


def auth_word(reason: ReasonCode) -> str:
    """Return a word for a reason that says that we may not, or "" for another reason."""
    return _AUTH.get(reason.value, "")


def server_reference(reason: ReasonCode, found: Properties | None) -> str | None:
    """Return the Server Reference of MQTT 5 (section 4.13), or None where there is none."""
    if reason.value not in ELSEWHERE:
        return None
    named = getattr(found, "ServerReference", None)
    return named if isinstance(named, str) else None


class PublishProperties(Properties):
    """The properties of a PUBLISH, packed here.

    paho's own class looks each one up by its name, which took two thirds of the time of a publish.
    """

    _packed: bytes

    def __init__(
        self, content_type: str, *, expiry_s: int | None = None, n: int | None = None
    ) -> None:
        """Pack them as MQTT 5 section 3.3.2.3 says.

        Args:
            content_type: Media type of the payload.
            expiry_s: How long the broker may keep it.
            n: The envelope's number in its grant, a user property.
        """
        body = b"\x03" + _text(content_type)
        if expiry_s is not None:
            body += b"\x02" + expiry_s.to_bytes(4, "big")
        if n is not None:
            body += b"\x26" + _text("n") + _text(str(n))
        assert len(body) < 1 << 7, "so its length is one byte"
        # paho's takes no attribute that is no property.
        object.__setattr__(self, "_packed", bytes((len(body),)) + body)

    def pack(self) -> bytes:
        """Return their length and themselves."""
        return self._packed


def properties_of(packet_type: int) -> Properties:
    """Return empty properties for a kind of packet."""
    return Properties(packet_type)  # type: ignore[no-untyped-call] # paho leaves it without types


def _text(value: str) -> bytes:
    """Return a UTF-8 string as MQTT has it (section 1.5.4)."""
    data = value.encode()
    return len(data).to_bytes(2, "big") + data
