"""`make bench`: the spool, and the catch-up of the agent lane against paho's own publish.

Prints, each in one run:
 * envelopes/s stored, one by one and as the agent lane stores what closes at the same time, also
   in a full spool, where an older one gives way for each;
 * bytes written for each envelope by file, as the process hands them to the kernel, and fsyncs
   (both seen by strace, where it is installed), and as the kernel hands them to the disk;
 * how long the erasure of a full spool takes;
 * envelopes/s of a catch-up after an outage, from the spool to the removal of the answered row, by
   the daemon's own lanes through a real broker with TLS, against paho publishing the same payloads
   from RAM with the same window: both in turns, since machines are shared and noisy. What counts
   is the ratio inside a pair.
"""

import argparse
import logging
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import paho.mqtt.client as mqtt

from agent.control import Agent, Batches, Consent, Journal, Surroundings
from agent.core.clock import Reading
from agent.core.model import NS_PER_MS, Batch
from agent.core.pipeline import Pipeline
from agent.core.plan import Plan
from agent.edge.ledger import Ledger
from agent.edge.store import LiveGrant, SpoolLimits, Store, StoredPolicy, Tombstone
from agent.edge.uplink import PolicyArrived, PolicyToken, Uplink, UplinkConfig
from tests import car
from tests.broker import Broker
from tests.cloud import VEHICLE, Cloud
from tests.driven import plain_config, tls_config
from tests.pki import Pki, context
from tests.storing import append

ENVELOPE_BYTES = 600  # A minute of two signals and a header: docs/envelope.md.
WINDOW = 20
FULL_BYTES = 40 * ENVELOPE_BYTES
PAIRS = 3
SCOPE = {"read_odometer": {"min_interval_s": 0}}
FOREVER_NS = 1 << 62
_CALL = re.compile(r"(pwrite64|write|fdatasync|fsync)\(\d+<([^>]*)>.* = (\d+)$")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--appends", type=int, default=1_000)
    parser.add_argument("--spooled", type=int, default=100_000)
    parser.add_argument("--drained", type=int, default=3_000)
    parser.add_argument("--store", nargs=4, help=argparse.SUPPRESS)  # What runs under strace.
    given = parser.parse_args()
    logging.disable(logging.WARNING)  # That nobody subscribes to what is published here.
    if given.store:
        folder, together, rounds, most = given.store
        stored(Path(folder), int(together), int(rounds), int(most) or None)
        return
    # Not on a RAM disk, which most machines have under /tmp: there are no disk writes there.
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        for together in (1, 4, 16):
            rounds = max(1, given.appends // together)
            wear(Path(folder) / f"wear-{together}", together, rounds)
            wear(Path(folder) / f"full-{together}", together, rounds, max_bytes=FULL_BYTES)
        erasure(Path(folder) / "erasure", given.spooled)
        drain(Path(folder), given.drained)


class Vehicle:
    """The agent lane over a real store, ledger and network lane."""

    def __init__(
        self, folder: Path, cloud: Cloud, config: UplinkConfig, *, max_bytes: int | None = None
    ) -> None:
        self.plan: Plan | None = None
        self.store = Store.open(folder, limits=SpoolLimits(max_bytes=max_bytes))
        self.ledger = Ledger.open(
            folder / "ledger", vehicle=VEHICLE, boot_id="0" * 32, now_ns=time.time_ns()
        )
        self.uplink = Uplink(config, on_event=lambda event: self.agent.post(event))  # noqa: PLW0108 - made below
        self.agent = Agent(
            vehicle=VEHICLE,
            device=cloud.device,
            store=self.store,
            consent=Consent(
                self.store,
                vehicle=VEHICLE,
                catalogue=car.catalogue(),
                trust=cloud.trust,
                binding=car.binding(),
                named_buses=(),
            ),
            uplink=self.uplink,
            journal=Journal(self.ledger, publish=lambda _: None),
            swap=self._swap,
            clock=_reading,
            look=lambda: Surroundings("0.0.0", 0, (), ()),
        )
        self.agent.restore()

    def obey(self, cloud: Cloud, grants: int) -> None:
        """Put a policy of so many grants in force."""
        named = [cloud.grant(SCOPE, grant_id=f"g{n}") for n in range(grants)]
        self.agent.post(PolicyArrived(cloud.policy(*named).encode(), PolicyToken(1, 1)))
        self.agent.turn(0.0)

    def closed(self) -> list[Batch]:
        """Return a minute of one signal for each grant, as the capture lane hands it over."""
        pipeline = Pipeline(self.plan)
        now_ms = time.time_ns() / NS_PER_MS
        pipeline.feed([car.odometer(now_ms - 1000 * (60 - i), 17 * i * i) for i in range(60)])
        pipeline.stop()
        return pipeline.drain()

    def close(self) -> None:
        """End the lanes."""
        self.uplink.close()
        self.agent.finish()
        self.ledger.close()
        self.store.close()

    def _swap(self, plan: Plan) -> None:
        self.plan = plan


def wear(folder: Path, together: int, rounds: int, *, max_bytes: int | None = None) -> None:
    """Seal and store batches that close at the same time, and see what is written."""
    folder.mkdir()
    command = [sys.executable, "-m", "tests.bench.bench_spool", "--store"]
    about = [str(folder / "state"), str(together), str(rounds), str(max_bytes or 0)]
    name = f"spool: {together} at a time{', full' if max_bytes else ''}"
    plain = subprocess.run([*command, *about], check=True, capture_output=True, text=True).stdout
    rate, size, process, disk, removal = (float(word) for word in plain.split())
    print(
        f"{name}: {rate:,.0f} envelopes/s sealed and stored,"
        f" {size:,.0f} bytes each; written for each {process:,.0f} by the process,"
        f" {disk:,.0f} to the disk, and {removal:,.0f} when so many are removed together"
    )
    strace = shutil.which("strace")
    if strace is None:
        return
    about[0] = str(folder / "traced")
    calls = folder / "calls"
    trace = [strace, "-f", "-y", "-e", "trace=pwrite64,write,fdatasync,fsync", "-o", str(calls)]
    subprocess.run([*trace, *command, *about], check=True, capture_output=True)
    written, synced = _seen(calls, folder / "traced")
    count = together * rounds
    files = ", ".join(f"{file} {size / count:,.0f}" for file, size in sorted(written.items()))
    syncs = ", ".join(f"{file} {n / rounds:.2f}" for file, n in sorted(synced.items()))
    print(f"{name}: bytes for each: {files}; fsyncs a time: {syncs}")


def stored(folder: Path, together: int, rounds: int, max_bytes: int | None) -> None:
    """Seal and store, and print rate, size, and bytes written by the process and to the disk."""
    cloud = Cloud()
    cloud.now_s = int(time.time())
    vehicle = Vehicle(folder, cloud, plain_config(9), max_bytes=max_bytes)
    vehicle.obey(cloud, together)
    batches = vehicle.closed()
    assert len(batches) == together
    (folder / "begin").write_bytes(b"-")
    before, begun = _written(), time.perf_counter()
    for _ in range(rounds):
        vehicle.agent.post(Batches(batches))
        vehicle.agent.turn(0.0)
    seconds, after = time.perf_counter() - begun, _written()
    (folder / "end").write_bytes(b"-")
    count = together * rounds
    tallies = vehicle.store.counts().values()
    left = sum(tally.envelopes for tally in tallies)
    assert (left == count) == (max_bytes is None)
    size = sum(tally.size_bytes for tally in tallies) / left
    process, disk = ((b - a) / count for a, b in zip(before, after, strict=True))
    row_ids = [row.row_id for row in vehicle.store.pending(count)]
    before = _written()
    for at in range(0, count, together):
        vehicle.store.delivered(row_ids[at : at + together])
    removal = (_written()[1] - before[1]) / count
    print(count / seconds, size, process, disk, removal)
    vehicle.close()


def erasure(folder: Path, count: int) -> None:
    """A revocation with a full spool."""
    with filled(folder, count) as store:
        size = (folder / "spool.db").stat().st_size
        begun, cpu = time.perf_counter(), time.process_time()
        purged = store.end_grants([Tombstone("g0", "revoked")], 0)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    assert purged.scrubbed
    print(
        f"spool: {count:,} envelopes ({size / 1e6:.0f} MB) erased in {seconds:.2f} s"
        f" ({cpu:.2f} s of CPU)"
    )


def drain(folder: Path, count: int) -> None:
    """Catch up after an outage: with the daemon's lanes, and with paho alone; in turns."""
    pki = Pki(folder / "pki")
    cloud = Cloud()
    cloud.now_s = int(time.time())
    ours, theirs, grown, erasures = [], [], [], []
    with Broker(folder / "broker", pki) as broker:
        config = tls_config(
            broker.port, VEHICLE, pki.vehicle(VEHICLE), window=WINDOW, max_rate_per_s=1e5
        )
        files = pki.vehicle("veh-2")
        for pair in range(PAIRS):
            before = _resident()
            seconds, commits = drained(folder / f"drain-{pair}", cloud, config, count)
            grown.append(_resident() - before)
            ours.append(count / seconds)
            erasures.append(count / commits)
            theirs.append(count / published(broker.port, context(files), count))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(
        f"uplink: {statistics.median(ours):,.0f} envelopes/s drained from the spool, window"
        f" {WINDOW}, {statistics.median(erasures):,.0f} removed with each fsync"
    )
    print(f"uplink: {max(grown) / 1e6:.1f} MB more resident after a catch-up of {count:,}")
    print(
        f"paho alone: {statistics.median(theirs):,.0f} publishes/s;"
        f" ours is {statistics.median(ratios):.2f} of it ({each})"
    )


def drained(folder: Path, cloud: Cloud, config: UplinkConfig, count: int) -> tuple[float, int]:
    """Return the seconds from when publishing begins until the spool is empty, and the commits."""
    vehicle = Vehicle(folder, cloud, config)
    vehicle.obey(cloud, 1)
    fill(vehicle.store, count)
    commits = _count_removals(vehicle.store)
    vehicle.uplink.start()
    while not vehicle.agent._publisher.is_up or vehicle.agent._publisher.begins_in_s > 0:
        vehicle.agent.turn(0.05)
    begun = time.perf_counter()
    while vehicle.store.counts():
        vehicle.agent.turn()
    seconds = time.perf_counter() - begun
    vehicle.close()
    return seconds, len(commits)


def published(port: int, tls: object, count: int) -> float:
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
    payload = os.urandom(ENVELOPE_BYTES)
    begun = time.perf_counter()
    for _ in range(count):
        client.publish("consentry/v1/veh-2/data/fleet/g0", payload, qos=1)
    for _ in range(count):
        answered.acquire()
    seconds = time.perf_counter() - begun
    client.disconnect()
    client.loop_stop()
    return seconds


def filled(folder: Path, count: int) -> Store:
    """Return a store with so many envelopes of g0."""
    store = Store.open(folder)
    policy = StoredPolicy(b"j", 1, 1, b"p" * 32, b"c" * 32, 0)
    store.apply_policy(policy, [LiveGrant("g0", 1)], [], 0)
    fill(store, count)
    return store


def fill(store: Store, count: int) -> None:
    """Put envelopes of g0 into the spool, without an fsync for each."""
    spool = store._spool.spool
    assert spool is not None
    spool._db.rows("PRAGMA synchronous = OFF")
    envelope, now_ns = os.urandom(ENVELOPE_BYTES), time.time_ns()
    for _ in range(count):
        append(
            store,
            "g0",
            1,
            recipient="fleet",
            created_ns=now_ns,
            expires_ns=FOREVER_NS,
            seal=lambda _: envelope,
        )
    spool._db.rows("PRAGMA synchronous = FULL")


def _count_removals(store: Store) -> list[int]:
    """Have each removal of delivered rows leave its number of rows in the list."""
    removed: list[int] = []
    delivered = store.delivered

    def counted(row_ids: list[int]) -> object:
        removed.append(len(row_ids))
        return delivered(row_ids)

    store.delivered = counted  # type: ignore[method-assign, assignment]
    return removed


def _reading() -> Reading:
    boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return Reading(time.time_ns(), boot_ns, "0" * 32, is_synchronised=True)


def _seen(calls: Path, state: Path) -> tuple[Counter[str], Counter[str]]:
    """Return bytes written, and fsyncs, per file between the two marks in a trace."""
    written: Counter[str] = Counter()
    synced: Counter[str] = Counter()
    is_on = False
    for line in calls.read_text(encoding="utf-8", errors="replace").splitlines():
        found = _CALL.search(line)
        if found is None or not found[2].startswith(f"{state}/"):
            continue
        name = found[2].removeprefix(f"{state}/")
        if name in ("begin", "end"):
            is_on = name == "begin"
        elif is_on:
            name = "ledger" if name.startswith("ledger/") else name
            if "sync" in found[1]:
                synced[name] += 1
            else:
                written[name] += int(found[3])
    return written, synced


def _written() -> tuple[int, int]:
    """Return bytes that this process has written, and that went to the disk for it (proc(5))."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    found = {name: int(value) for name, _, value in (line.partition(": ") for line in lines)}
    return found["wchar"], found["write_bytes"]


def _resident() -> int:
    """Return the resident memory of this process in bytes (proc(5))."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
