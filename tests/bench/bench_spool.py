"""`make bench`: the spool, and the uplink against paho's own publish, in one run.

Prints envelopes/s stored, bytes written to disk for each (as the process and as the block layer
count them), how long the erasure of a full spool takes, and envelopes/s and memory of a catch-up
after an outage, through a real broker with TLS, against paho publishing the same payloads with the
same window. Machines are shared and noisy: what counts are the ratios inside one run.
"""

import argparse
import os
import queue
import tempfile
import threading
import time
from pathlib import Path

import paho.mqtt.client as mqtt

from agent.edge.store import LiveGrant, Store, StoredPolicy, Tombstone
from agent.edge.uplink import Connected, Delivered, Uplink, UplinkEvent
from tests.broker import Broker
from tests.driven import tls_config
from tests.pki import Pki, context

ENVELOPE_BYTES = 600  # A minute of two signals and a header: docs/envelope.md.
WINDOW = 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--appends", type=int, default=2_000)
    parser.add_argument("--spooled", type=int, default=100_000)
    parser.add_argument("--drained", type=int, default=3_000)
    given = parser.parse_args()
    # Not on a RAM disk, which most machines have under /tmp: there are no disk writes there.
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        appends(Path(folder) / "appends", given.appends)
        erasure(Path(folder) / "erasure", given.spooled)
        drain(Path(folder), given.drained)


def appends(folder: Path, count: int) -> None:
    """One envelope, one commit, one fsync."""
    with filled(folder, 0) as store:
        before, begun = written(), time.perf_counter()
        fill(store, count)
        seconds, after = time.perf_counter() - begun, written()
    process, disk = ((b - a) / count for a, b in zip(before, after, strict=True))
    print(f"spool: {count / seconds:,.0f} envelopes/s stored, {ENVELOPE_BYTES} bytes each")
    print(f"spool: {process:,.0f} bytes written for each by the process, {disk:,.0f} to the disk")


def erasure(folder: Path, count: int) -> None:
    """A revocation with a full spool."""
    with filled(folder, count) as store:
        size = (folder / "spool.db").stat().st_size
        begun, cpu = time.perf_counter(), time.process_time()
        purged = store.end_grants([Tombstone("gr_a", "revoked")], 0)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    assert purged.scrubbed
    print(
        f"spool: {count:,} envelopes ({size / 1e6:.0f} MB) erased in {seconds:.2f} s"
        f" ({cpu:.2f} s of CPU)"
    )


def drain(folder: Path, count: int) -> None:
    """Catch up after an outage: through the spool and the uplink, and with paho alone."""
    pki = Pki(folder / "pki")
    with Broker(folder / "broker", pki) as broker, filled(folder / "drain", count) as store:
        config = tls_config(
            broker.port, "veh-1", pki.vehicle("veh-1"), window=WINDOW, max_rate_per_s=1e5
        )
        before = resident()
        ours = count / drained(store, Uplink, config)
        grown = resident() - before
        files = pki.vehicle("veh-2")
        theirs = count / published(broker.port, context(files), count)
    print(f"uplink: {ours:,.0f} envelopes/s from spool to PUBACK, window {WINDOW}")
    print(f"uplink: {grown / 1e6:.1f} MB more resident after the catch-up of {count:,}")
    print(f"paho alone: {theirs:,.0f} publishes/s; ours is {ours / theirs:.2f} of it")


def drained(store: Store, make: type[Uplink], config: object) -> float:
    """Return the seconds from the connection until the spool is empty."""
    events: queue.SimpleQueue[UplinkEvent] = queue.SimpleQueue()
    uplink = make(config, on_event=events.put)  # type: ignore[arg-type]
    uplink.start()
    while not isinstance(events.get(), Connected):
        pass
    begun = time.perf_counter()
    left = sum(tally.envelopes for tally in store.counts().values())
    while left:
        done: list[int] = []
        try:
            event = events.get(timeout=0.001)
            while True:
                done += [event.row_id] if isinstance(event, Delivered) else []
                event = events.get_nowait()
        except queue.Empty:
            pass
        if done:
            left -= sum(tally.envelopes for tally in store.delivered(done).values())
        for row in store.pending(uplink.room(), exclude=uplink.in_flight()):
            uplink.publish(
                row.row_id,
                recipient=row.recipient,
                grant_id=row.grant_id,
                n=row.n,
                envelope=row.envelope,
                expiry_s=3600,
            )
    seconds = time.perf_counter() - begun
    uplink.close()
    return seconds


def published(
    port: int,
    tls: object,
    count: int,
    *,
    topic: str = "consentry/v1/veh-2/data/fleet-x/gr_a",
    size: int = ENVELOPE_BYTES,
) -> float:
    """Return the seconds that paho takes to publish as many from RAM."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="veh-2", protocol=mqtt.MQTTv5)
    client.tls_set_context(tls)  # type: ignore[arg-type]
    client.max_inflight_messages_set(WINDOW)
    connected, answered = threading.Event(), threading.Semaphore(0)
    client.on_connect = lambda *_: connected.set()
    client.on_publish = lambda *_: answered.release()
    client.connect("127.0.0.1", port)
    client.loop_start()
    connected.wait(10)
    payload = os.urandom(size)
    begun = time.perf_counter()
    for _ in range(count):
        client.publish(topic, payload, qos=1)
    for _ in range(count):
        answered.acquire()
    seconds = time.perf_counter() - begun
    client.disconnect()
    client.loop_stop()
    return seconds


def filled(folder: Path, count: int) -> Store:
    """Return a store with so many envelopes, put there without an fsync each."""
    store = Store.open(folder)
    policy = StoredPolicy(b"j", 1, 1, b"p" * 32, b"c" * 32, 0)
    store.apply_policy(policy, [LiveGrant("gr_a", 1)], [], 0)
    if count:
        store._spool._db.rows("PRAGMA synchronous = OFF")  # type: ignore[union-attr]
        fill(store, count)
        store.close()
        store = Store.open(folder)
    return store


def fill(store: Store, count: int) -> None:
    envelope = os.urandom(ENVELOPE_BYTES)
    for index in range(count):
        store.append(
            "gr_a",
            1,
            recipient="fleet-x",
            created_ns=1_795_468_800_000_000_000 + index,
            expires_ns=1_898_060_800_000_000_000 + index,
            seal=lambda _: envelope,
        )


def written() -> tuple[int, int]:
    """Return bytes that this process has written, and that went to the disk for it (proc(5))."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    found = {name: int(value) for name, _, value in (line.partition(": ") for line in lines)}
    return found["wchar"], found["write_bytes"]


def resident() -> int:
    """Return the resident memory of this process in bytes (proc(5))."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
