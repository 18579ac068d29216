"""`make bench`: a revocation arrives while a full spool waits and frames come.

Prints how long it takes from its arrival until the last sample of the grant was sealed, until the
plan is swapped and its envelopes are erased, and until the signed answer is ready.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from agent.cloud.envelope import verify_ack
from agent.control import Agent, Batches, Consent, Journal, Surroundings
from agent.control import sealer as sealer_module
from agent.core.clock import Reading
from agent.core.model import NS_PER_MS, Batch, Place
from agent.core.pipeline import Pipeline
from agent.core.plan import Plan
from agent.edge.capture import Capture
from agent.edge.ledger import Ledger
from agent.edge.store import Store
from agent.edge.uplink import PolicyArrived, PolicyToken, Uplink, UplinkConfig
from tests import car
from tests.cloud import VEHICLE, Cloud
from tests.storing import append

FULL = {"read_odometer": {"min_interval_s": 0}}
BATCH_NS = 50 * NS_PER_MS
ENVELOPE = bytes(600)
FRAMES_S = 2_000


def reading() -> Reading:
    """The machine's clocks."""
    boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return Reading(time.time_ns(), boot_ns, "0" * 32, is_synchronised=True)


class Vehicle:
    """The agent lane and the capture lane; the network lane is never started."""

    def __init__(self, folder: Path, cloud: Cloud) -> None:
        self.store = Store.open(folder / "state")
        self.ledger = Ledger.open(
            folder / "state" / "ledger", vehicle=VEHICLE, boot_id="0" * 32, now_ns=time.time_ns()
        )
        self.swapped_s = 0.0
        self.acks: list[bytes] = []
        self.capture = Capture(
            Pipeline(max_age_ns=BATCH_NS), on_batches=self._batches, clock=time.time_ns
        )
        uplink = Uplink(
            UplinkConfig("127.0.0.1", 9, VEHICLE, VEHICLE, None, plaintext_loopback=True),
            on_event=lambda _: None,
        )
        uplink.publish_ack = self.acks.append  # type: ignore[method-assign] # what is sent
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
            uplink=uplink,
            journal=Journal(self.ledger, publish=lambda _: None),
            swap=self._swap,
            clock=reading,
            look=lambda: Surroundings("0.0.0", 0, (), ()),
        )

    def arrive(self, token: str) -> None:
        """Post a policy."""
        self.agent.post(PolicyArrived(token.encode(), PolicyToken(1, 1)))

    def _swap(self, plan: Plan) -> None:
        self.capture.swap(plan)
        self.swapped_s = time.perf_counter()

    def _batches(self, batches: list[Batch], places: tuple[Place, ...]) -> None:
        self.agent.post(Batches(batches, places))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spooled", type=int, default=100_000)
    given = parser.parse_args()
    # Not on a RAM disk, which most machines have under /tmp.
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        measure(Path(folder), given.spooled)


def measure(folder: Path, spooled: int) -> None:
    """Revoke one of two grants of a driving vehicle."""
    cloud = Cloud()
    cloud.now_s = int(time.time())
    vehicle = Vehicle(folder, cloud)
    sealed: list[float] = []
    seal = sealer_module.seal

    def timed(*arguments: Any, **others: Any) -> bytes:
        envelope = seal(*arguments, **others)
        if arguments[1].grant_id == "g1":
            sealed.append(time.perf_counter())
        return envelope

    with patch.object(sealer_module, "seal", timed):
        vehicle.agent.restore()
        vehicle.arrive(cloud.policy(cloud.grant(FULL), cloud.grant(FULL, grant_id="g2")))
        vehicle.agent.turn(0.0)
        fill(vehicle.store, spooled)
        vehicle.capture.start()
        stop = threading.Event()
        driver = threading.Thread(target=drive, args=(vehicle.capture, stop))
        driver.start()
        until_s = time.perf_counter() + 3
        while time.perf_counter() < until_s:
            vehicle.agent.turn(0.05)
        token = cloud.revoke("g1")
        arrived_s = time.perf_counter()
        vehicle.arrive(token)
        while len(vehicle.acks) < 2:
            vehicle.agent.turn(0.05)
        answered_s = time.perf_counter()
        until_s = time.perf_counter() + 1
        while time.perf_counter() < until_s:
            vehicle.agent.turn(0.05)
        stop.set()
        driver.join()
        vehicle.capture.close()
        vehicle.agent.finish()
    left = vehicle.store.counts().get("g1")
    ack = verify_ack(vehicle.acks[1], devices={cloud.device.kid: cloud.device.public_half})[1]
    vehicle.ledger.close()
    vehicle.store.close()
    last_ms = max(0.0, (max(sealed) - arrived_s) * 1e3)
    print(f"revocation: {spooled:,} envelopes of the grant spooled, {FRAMES_S:,} frames/s coming")
    print(f"revocation: last sample of the grant sealed {last_ms:,.0f} ms after it arrived")
    print(f"revocation: erased and plan swapped after {vehicle.swapped_s - arrived_s:.2f} s")
    print(f"revocation: signed answer after {answered_s - arrived_s:.2f} s", end="")
    print(f", which names {ack.erased['g1'][0]:,} envelopes, {left or 'none'} left")


def fill(store: Store, count: int) -> None:
    """Put envelopes of g1 into the spool, without an fsync for each."""
    spool = store._spool.spool
    assert spool is not None
    spool._db.rows("PRAGMA synchronous = OFF")
    for n in range(count):
        append(
            store,
            "g1",
            1,
            recipient="fleet",
            created_ns=n,
            expires_ns=1 << 62,
            seal=lambda _: ENVELOPE,
        )
    spool._db.rows("PRAGMA synchronous = FULL")


def drive(capture: Capture, stop: threading.Event) -> None:
    """Feed odometer frames at FRAMES_S."""
    number = 0
    while not stop.wait(0.01):
        now_ms = time.time_ns() / NS_PER_MS
        capture.put([car.odometer(now_ms, number + i) for i in range(FRAMES_S // 100)])
        number += FRAMES_S // 100


if __name__ == "__main__":
    main()
