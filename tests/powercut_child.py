"""What the guest does between two power cuts: a vehicle that writes as fast as it can.

`python -m tests.powercut_child HOW AIM AFTER_S CARELESS`, in the guest. HOW is `run` (the host cuts
the power), `sysrq` (the guest does, after AFTER_S, in phase AIM) or `drain` (all that waits is
delivered, then it ends in order). CARELESS names a part whose syncs are left out, or nobody.

The state lies on the guest's disk. What is claimed of it goes to the folder `out`, which is the
host's: a line that was written there is not lost with the guest.

    state.tar   the state directory as it was found, before anything opened it
    phase       one byte: what is under way
    outside     a line of JSON for each claim, and for each message that the broker took

Rules:
 * A claim is written after the call has returned that makes it true: a commit, a sync.
 * The broker writes a message down before it acknowledges it: what the vehicle erases because it
   was delivered is outside by then.
 * What a policy says follows from its version alone (`grants_of`), so the host knows it too.
"""

import base64
import hashlib
import json
import os
import random
import shutil
import struct
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent import daemon as daemon_module
from agent.config import parse_config
from agent.daemon import Daemon
from agent.edge.ledger import Ledger
from agent.edge.ledger.tail import Tail
from agent.edge.store import Kept, NewEnvelope, Store
from agent.edge.store.database import Database
from agent.errors import StoreError
from agent.parts import load_parts
from tests.cloud import VEHICLE, Cloud
from tests.crash_child import feed
from tests.peer import FakeBroker, Received

IDLE, PUBLISH, LEDGER, SPOOL, CONSENT = range(1, 6)
CUT = "sysrq"
STATE = Path("/data/state")
SOURCE = Path("/src/car")
OUT = Path("/out")
AIM_S = 3.0  # How long a phase is waited for that does not come.
ONE_WAY_S = 0.003  # As a network takes: so that messages are on their way when the cut comes.
POLICY = f"consentry/v1/{VEHICLE}/policy"
SUBSCRIBE = 8


def grants_of(ver: int) -> dict[str, int]:
    """Return the live grants of a version with their revs: one stays, one changes, one goes."""
    return {"gr_a": 1, "gr_b": 1 + ver // 3, f"gr_x{ver // 2}": 1}


class Outside:
    """The lines on the host's side."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def tell(self, what: str, **about: Any) -> None:
        os.write(self._fd, json.dumps({"what": what} | about).encode() + b"\n")


class Phase:
    """What the agent lane does now; the host can read it too."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        self.now = IDLE

    def set(self, phase: int) -> None:
        self.now = phase
        os.pwrite(self._fd, bytes([phase]), 0)

    @contextmanager
    def during(self, phase: int) -> Iterator[None]:
        before = self.now
        self.set(phase)
        try:
            yield
        finally:
            self.set(before)


class Witness(FakeBroker):
    """A broker that writes down outside what it takes, before it acknowledges it."""

    def __init__(self, outside: Outside) -> None:
        super().__init__()
        self._outside = outside
        self.answered = 0

    def keep(self, received: Received) -> None:
        payload = base64.b64encode(received.payload).decode()
        time.sleep(ONE_WAY_S)
        self._outside.tell("came", topic=received.topic, payload=payload)
        time.sleep(ONE_WAY_S)
        self.answered += received.topic == f"{POLICY}/ack"

    def push(self, token: str) -> None:
        """Bring a policy to the vehicle, at QoS 1."""
        topic = POLICY.encode()
        body = struct.pack("!H", len(topic)) + topic + b"\x00\x01\x00" + token.encode()
        size, length = b"", len(body)
        while length > 127:
            size, length = size + bytes([length & 127 | 128]), length >> 7
        self.send(b"\x32" + size + bytes([length]) + body)


class Platform(threading.Thread):
    """Signs policy after policy; each waits for the answer to the one before."""

    def __init__(self, broker: Witness, outside: Outside) -> None:
        super().__init__(daemon=True)
        self._broker, self._outside = broker, outside
        known = json.loads((SOURCE / "platform.json").read_text())
        self._ver, self._base_s = known["ver"], known["base_s"]
        self._cloud = Cloud.load(SOURCE)

    def run(self) -> None:
        _await(lambda: SUBSCRIBE in self._broker.packets)
        while True:
            before = self._broker.answered
            self._broker.push(self._sign())
            _await(lambda: self._broker.answered > before)  # noqa: B023 - looked at in this round
            # In between the publisher waits 0.2 s for another policy, then sends.
            time.sleep(random.uniform(0.25, 0.4))

    def _sign(self) -> str:
        self._ver += 1
        self._outside.tell("signed", ver=self._ver)
        cloud, ver = self._cloud, self._ver
        cloud.now_s, cloud.document = self._base_s, {"ver": ver - 1}
        scopes = {"gr_b": {"read_odometer": {"min_interval_s": 0.01 * (1 + ver // 3 % 2)}}}
        usual = {"read_odometer": {"min_interval_s": 0.01}}
        grants = [
            cloud.grant(scopes.get(name, usual), grant_id=name, rev=rev)
            for name, rev in grants_of(ver).items()
        ]
        revoked = {"grant_id": f"gr_x{ver // 2 - 1}", "rev": 2, "state": "revoked"}
        cloud.now_s = int(time.time())
        return cloud.policy(*grants, revoked)


def claiming(outside: Outside) -> type[Store]:
    """Return a store that claims each envelope when it says that it is kept."""

    class Claiming(Store):
        def append_all(self, arrived: Sequence[NewEnvelope]) -> list[Kept | StoreError]:
            digests: dict[tuple[str, int], str] = {}

            def watched(new: NewEnvelope) -> NewEnvelope:
                def sealed(n: int) -> bytes:
                    envelope = new.seal(n)
                    digests[new.grant_id, n] = hashlib.sha256(envelope).hexdigest()
                    return envelope

                return replace(new, seal=sealed)

            kept = super().append_all([watched(new) for new in arrived])
            for new, one in zip(arrived, kept, strict=True):
                if isinstance(one, Kept):
                    digest = digests[new.grant_id, one.n]
                    outside.tell("kept", grant=new.grant_id, n=one.n, digest=digest)
            return kept

    return Claiming


def watch(phase: Phase, outside: Outside) -> None:
    """Let commits and syncs say when they are under way, and claim what they have done."""
    commit, truncate, sync, sync_ledger = (
        Database.transaction,
        Database.truncate_log,
        Tail.sync,
        Ledger.sync,
    )

    def file_of(database: Database) -> int:
        return SPOOL if database._name == "spool.db" else CONSENT

    @contextmanager
    def transaction(database: Database) -> Iterator[None]:
        before = phase.now
        try:
            with commit(database):
                yield
                phase.set(file_of(database))  # The block is over: what follows is the commit.
        finally:
            phase.set(before)

    def truncated(database: Database) -> bool:
        with phase.during(file_of(database)):
            return truncate(database)

    def synced(tail: Tail) -> None:
        with phase.during(LEDGER):
            sync(tail)

    def ledger_synced(ledger: Ledger) -> bool:
        before = ledger.head
        done = sync_ledger(ledger)
        if done and ledger.head != before:
            size, root = ledger.head
            outside.tell("head", size=size, root=root.hex())
        return done

    _replace(Database, transaction=transaction, truncate_log=truncated)
    _replace(Tail, sync=synced)
    _replace(Ledger, sync=ledger_synced)
    _replace(daemon_module, Store=claiming(outside))


def leave_out_syncs(part: str) -> None:
    """Make one part claim what is not on disk, to see that it is noticed."""
    begin = Database.__init__

    def careless(database: Database, *given: Any, **about: Any) -> None:
        begin(database, *given, **about)
        if database._name == f"{part}.db":
            database._db.execute("PRAGMA synchronous = OFF")

    def unsynced(tail: Tail) -> None:
        tail.synced = tail.tree
        tail._synced_bytes, tail._synced_crc = tail.size_bytes, tail.crc

    if part == "ledger":
        _replace(Tail, sync=unsynced)
    else:
        _replace(Database, __init__=careless)


def cut_power(phase: Phase, aim: int, after_s: float) -> None:
    time.sleep(after_s)
    until_s = time.monotonic() + AIM_S
    while phase.now != aim and time.monotonic() < until_s:
        time.sleep(0)
    with Path("/proc/sysrq-trigger").open("w") as file:
        file.write("b")


def copy_state(name: str) -> None:
    with tarfile.open(OUT / name, "w") as tar:
        tar.add(STATE, "state", filter=lambda f: None if f.name.endswith("reserve") else f)


def main(how: str, aim: int, after_s: float, careless: str) -> None:
    if STATE.exists():
        copy_state("state.tar")
    folder = Path("/run/car")  # Root's own, as key files must be.
    shutil.copytree(SOURCE, folder)
    leave_out_syncs(careless)
    phase, outside = Phase(OUT / "phase"), Outside(OUT / "outside")
    watch(phase, outside)
    with Witness(outside) as broker:
        document = json.loads((folder / "config.json").read_text())
        document["uplink"]["port"] = broker.port
        config = parse_config(document, folder)
        if how == CUT:
            threading.Thread(target=cut_power, args=(phase, aim, after_s), daemon=True).start()
        phase.set(IDLE)
        daemon = Daemon(config, load_parts(config))
        daemon.start()
        if how != "drain":
            channel = str(config.bus[0].channel)
            threading.Thread(target=feed, args=(channel,), daemon=True).start()
            Platform(broker, outside).start()
        store = daemon._store
        while how != "drain" or store.counts() or store.gaps(1) or daemon.uplink.unanswered():
            daemon.agent.turn(0.02)
            phase.set(PUBLISH if daemon.uplink.unanswered() else IDLE)
        daemon.close()
    copy_state("end.tar")


def _replace(of: object, **parts: Any) -> None:
    for name, part in parts.items():
        setattr(of, name, part)


def _await(found: Callable[[], bool]) -> None:
    while not found():
        time.sleep(0.01)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
