"""The demo's independent eye: it trusts no word of the agent.

It sees what a curious broker sees (a subscriber on all topics, with paho alone) and what a thief
sees (the bytes of the state directory), and holds them against what was consented.
"""

import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from agent.errors import UplinkError

# What unsealed data would show: a path as it is, or the head of the codec's LZMA stream
# (docs/envelope.md), behind which no path can be seen.
PLAINTEXT = {
    "plaintext paths": b"Vehicle.",
    "unsealed batches": b"\x00\x00\x00\x08\x00" + b"\xff" * 8,
}

_CONNECT_S = 10


@dataclass(frozen=True, slots=True)
class Seen:
    """A message as the broker passed it on.

    Attributes:
        at_s: Monotonic seconds.
    """

    at_s: float
    topic: str
    payload: bytes


class Auditor:
    """A subscriber on all topics that keeps every message. A context manager."""

    def __init__(self, *, port: int, tls: Any, host: str = "localhost") -> None:
        """Connect and subscribe.

        Args:
            port: Of the broker.
            tls: An `ssl.SSLContext` with the auditor's certificate.
            host: Of the broker.

        Raises:
            UplinkError: The broker does not let it in.
        """
        self._seen: list[Seen] = []
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"auditor-{uuid.uuid4()}",
            protocol=MQTTProtocolVersion.MQTTv5,
        )
        self._client.tls_set_context(tls)
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._keep
        self._client.connect(host, port)
        self._client.loop_start()
        if not self._ready.wait(_CONNECT_S):
            raise UplinkError("the demo's auditor was not let in by the broker")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def seen(self) -> list[Seen]:
        """Return every message so far, in the order of the broker."""
        with self._lock:
            return list(self._seen)

    def first(self, suffix: str, *, count: int = 1, timeout_s: float) -> Seen | None:
        """Wait for the `count`-th message on a topic that ends so; None when it does not come."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = [item for item in self.seen() if item.topic.endswith(suffix)]
            if len(found) >= count:
                return found[count - 1]
            time.sleep(0.02)
        return None

    def _keep(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        with self._lock:
            self._seen.append(Seen(time.monotonic(), message.topic, bytes(message.payload)))


def find_bytes(directory: Path, needles: Mapping[str, bytes]) -> dict[str, int]:
    """Count in how many places each needle lies in the files of a directory.

    Args:
        directory: Looked through with everything below it.
        needles: Label -> bytes to look for.

    Returns:
        Label -> number of places, 0 where there is none.
    """
    found = dict.fromkeys(needles, 0)
    for path in directory.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            for label, needle in needles.items():
                found[label] += data.count(needle)
    return found
