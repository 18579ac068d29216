"""An uplink driven by a test as the agent lane drives it."""

import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from agent.edge.keys import client_tls
from agent.edge.store import LiveGrant, Store, StoredPolicy
from agent.edge.uplink import Delivered, Disconnected, Uplink, UplinkConfig, UplinkEvent
from tests.peer import WAIT_S
from tests.pki import Files
from tests.storing import append

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


def tls_config(
    port: int, vehicle: str, files: Files, host: str = "127.0.0.1", **other: Any
) -> UplinkConfig:
    tls = client_tls(ca=files.ca, certificate=files.certificate, private_key=files.private_key)
    about = {"min_backoff_s": 0.05, "max_backoff_s": 0.2, "client_id": vehicle} | other
    return UplinkConfig(host, port, vehicle, tls=tls, **about)


def plain_config(port: int, **other: Any) -> UplinkConfig:
    about = {"min_backoff_s": 0.02, "max_backoff_s": 0.05} | other
    return UplinkConfig(
        "127.0.0.1", port, "veh-1", "veh-1", tls=None, plaintext_loopback=True, **about
    )


class Spooled(Driven):
    """An uplink that empties a store as the agent lane does, until told to stop."""

    def __init__(self, config: UplinkConfig, store: Store) -> None:
        super().__init__(config)
        self.store = store
        self.delivered = 0
        self.disconnects = 0

    def pump(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not until():
            assert time.monotonic() < deadline, "waited in vain"
            with suppress(queue.Empty):
                event = self.events.get(timeout=0.01)
                if isinstance(event, Delivered):
                    self.delivered += sum(
                        tally.envelopes for tally in self.store.delivered([event.row_id]).values()
                    )
                self.disconnects += isinstance(event, Disconnected)
            for row in self.store.pending(self.uplink.room(), exclude=self.uplink.in_flight()):
                self.send(row.row_id, row.envelope, grant_id=row.grant_id, n=row.n)


@contextmanager
def spool(folder: Path, count: int, *grant_ids: str) -> Iterator[Store]:
    with Store.open(folder / "state") as store:
        policy = StoredPolicy(b"j", 1, 1, b"p" * 32, b"c" * 32, 0)
        store.apply_policy(policy, [LiveGrant(grant_id, 1) for grant_id in grant_ids], [], 0)
        for index in range(count):
            append(
                store,
                grant_ids[index % len(grant_ids)],
                1,
                recipient="fleet-x",
                created_ns=0,
                expires_ns=10**18,
                seal=lambda _, index=index: b"%d" % index,  # type: ignore[misc]
            )
        yield store
