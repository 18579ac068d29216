"""An uplink driven by a test as the agent lane drives it."""

import queue
import time
from typing import Any, Self, TypeVar

from agent.edge.keys import client_tls
from agent.edge.uplink import Uplink, UplinkConfig, UplinkEvent
from tests.peer import WAIT_S
from tests.pki import Files

Kind = TypeVar("Kind", bound=UplinkEvent)


class Driven:
    """An uplink with the queue that an agent lane would have. A context manager."""

    def __init__(self, config: UplinkConfig) -> None:
        self.events: queue.Queue[UplinkEvent] = queue.Queue()
        self.seen: list[UplinkEvent] = []
        self.uplink = Uplink(config, on_event=self.events.put)

    def __enter__(self) -> Self:
        self.uplink.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.uplink.close()
        assert not self.uplink.is_alive

    def wait(self, kind: type[Kind], *, timeout_s: float = WAIT_S) -> Kind:
        """Return the next event of a kind; events before it are kept in `seen`."""
        until = time.monotonic() + timeout_s
        while True:
            event = self.events.get(timeout=max(0.001, until - time.monotonic()))
            self.seen.append(event)
            if isinstance(event, kind):
                return event

    def send(self, row_id: int, payload: bytes = b"sealed", **other: Any) -> bool:
        about = {"recipient": "fleet-x", "grant_id": "gr_a", "n": row_id, "expiry_s": 60} | other
        return self.uplink.publish(row_id, envelope=payload, **about)


def tls_config(port: int, vehicle: str, files: Files, **other: Any) -> UplinkConfig:
    tls = client_tls(ca=files.ca, certificate=files.certificate, private_key=files.private_key)
    about = {"min_backoff_s": 0.05, "max_backoff_s": 0.2, "client_id": vehicle} | other
    return UplinkConfig("127.0.0.1", port, vehicle, tls=tls, **about)


def plain_config(port: int, **other: Any) -> UplinkConfig:
    about = {"min_backoff_s": 0.02, "max_backoff_s": 0.05} | other
    return UplinkConfig(
        "127.0.0.1", port, "veh-1", "veh-1", tls=None, plaintext_loopback=True, **about
    )
