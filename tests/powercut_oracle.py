"""What must be on a disk after a power cut, from what was claimed outside of it before.

The oracle: whatever a vehicle claimed to have committed is there, or was taken by the broker, or is
told of in a gap record; consent, spool and ledger open again without damage; version, numbers and
ledger go on from where they were; nothing of a revoked grant is there or comes.
"""

import base64
import hashlib
import json
import sqlite3
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from agent.cli.main import cli
from agent.cloud.inbox import verify_gap
from agent.cloud.keys import public_half, save_key
from agent.core.ack import parse_ack
from agent.core.checkpoint import parse_checkpoint
from agent.core.cose import verify1
from agent.edge.ledger import Ledger
from agent.edge.store import Store
from tests.cloud import VEHICLE, Cloud
from tests.powercut_child import grants_of
from tests.timelapse import drawn

Number = tuple[str, int]


@dataclass
class Outside:
    """All that was claimed up to now.

    Attributes:
        kept: Number → digest of an envelope whose append has returned.
        came: Number → digest of an envelope that the broker took.
        told: Numbers of gap records that the broker took.
        heads: Size → root of a ledger that was told to somebody, or said to be on disk.
        signed: The last version that the platform signed.
        acked: The highest version that the vehicle acknowledged.
        answers: How many policies it acknowledged.
    """

    cloud: Cloud
    kept: dict[Number, str] = field(default_factory=dict)
    came: dict[Number, str] = field(default_factory=dict)
    told: set[Number] = field(default_factory=set)
    heads: dict[int, str] = field(default_factory=dict)
    signed: int = 0
    acked: int = 0
    answers: int = 0
    duplicates: int = 0
    unclaimed: set[Number] = field(default_factory=set)
    _counter: int = 0

    def read(self, path: Path) -> None:
        """Take in what one run has claimed, in its order."""
        *lines, _ = path.read_bytes().split(b"\n")  # The last one is empty, or was cut.
        for line in lines:
            item = json.loads(line)
            match item["what"]:
                case "signed":
                    self.signed = item["ver"]
                case "kept":
                    number = (item["grant"], item["n"])
                    assert number not in self.kept, f"{number} was drawn twice"
                    self._same(number, item["digest"])
                    self.kept[number] = item["digest"]
                case "head":
                    self._head(item["size"], item["root"])
                case "came":
                    self._came(item["topic"], base64.b64decode(item["payload"]))

    def judge(self, state: Path) -> int:
        """Hold a state directory, as a cut left it, against what was claimed; return its entries.

        Raises:
            AssertionError: Something is not as it must be.
        """
        key = state.parent / "device.pub"
        if not key.exists():
            save_key(key, public_half(self.cloud.device_jwk))
        with Ledger.open(
            state / "ledger", vehicle=VEHICLE, boot_id="0" * 32, now_ns=time.time_ns()
        ) as ledger:
            assert ledger.set_aside is None, "the ledger was damaged"
            size = ledger.head[0]
        told = max(self.heads, default=0)
        assert size >= told, f"the ledger has {size} entries, {told} were told of"
        heads = [word for item in self.heads.items() for word in ("--head", "{}:{}".format(*item))]
        _consentry("ledger", "verify", "--state", str(state), "--key", str(key), *heads)
        self._judge_store(state)
        _consentry("spool", "verify", "--state", str(state), "--key", str(key))
        for name in ("consent.db", "spool.db"):
            db = sqlite3.connect(state / name)
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert db.execute("PRAGMA foreign_key_check").fetchall() == []
            db.close()
        found = [path.name for word in ("corrupt", "damaged") for path in state.glob(f"*.{word}-*")]
        assert found == [], f"set aside: {found}"
        return size

    def account(self, last: dict[str, int]) -> None:
        """Hold every number that was ever drawn, nothing waiting any more, against what came."""
        lost = sorted(_numbers(last) - set(self.came) - self.told)
        assert lost == [], f"lost: {lost[:20]}"

    def _judge_store(self, state: Path) -> None:
        with Store.open(state) as store:
            assert store.set_aside is None
            assert store.spool_fault == ""
            assert store.take_damage() == (), "a file was begun anew"
            policy = store.in_force()
            ver = policy.ver if policy is not None else 0
            assert self.acked <= ver <= self.signed, f"version {ver}, {self.acked} was acknowledged"
            live = grants_of(ver) if ver else {}
            assert {grant.grant_id: grant.rev for grant in store.live_grants()} == live
            rows = {(row.grant_id, row.n): row for row in store.each()}
            waiting = store.gaps(1_000_000)
            assert all(gap.why != "damaged" for gap in waiting), "nobody knows what is in a gap"
            gaps = {
                (gap.grant_id, n) for gap in waiting for n in range(gap.first_n, gap.last_n + 1)
            }
            for grant_id in {grant_id for grant_id, _ in self.kept} - set(live):
                assert store.tombstoned(grant_id), f"{grant_id} has no tombstone"
        for number, row in rows.items():
            assert live.get(row.grant_id) == row.rev, f"{number} of an ended grant is back"
            self._same(number, hashlib.sha256(row.envelope).hexdigest())
        last = drawn(state)
        numbers = _numbers(last)
        missing = sorted(set(self.kept) - numbers)
        assert missing == [], f"committed, and drawn anew: {missing[:20]}"
        lost = sorted(numbers - set(rows) - set(self.came) - gaps - self.told)
        assert lost == [], f"lost: {lost[:20]} of {len(numbers)}"
        self.unclaimed |= set(rows) - set(self.kept)

    def _came(self, topic: str, payload: bytes) -> None:
        devices = {self.cloud.device.kid: self.cloud.device.public_half}
        match topic.split("/")[3:]:
            case ["data", _, grant_id]:
                header = self.cloud.open(payload).header
                number = (header.grant_id, header.n)
                assert header.grant_id == grant_id
                assert not self.acked or grant_id in grants_of(max(self.acked, header.ver)), (
                    f"{number} came after its grant was revoked"
                )
                digest = hashlib.sha256(payload).hexdigest()
                self._same(number, digest)
                self.duplicates += number in self.came
                self.came[number] = digest
                self._head(header.ledger_size, header.ledger_root.hex())
            case ["gap", _, _]:
                gap = verify_gap(payload, devices=devices)
                assert gap.why != "damaged", "the vehicle does not know what is in a gap"
                self.told |= {(gap.grant_id, n) for n in range(gap.first_n, gap.last_n + 1)}
            case ["policy", "ack"]:
                ack = parse_ack(verify1(payload, devices)[1])
                assert ack.outcome in ("applied", "repeated"), ack
                assert ack.counter > self._counter, "an answer was counted twice"
                assert ack.ver >= self.acked, f"version {ack.ver} after {self.acked}"
                self.answers += 1
                self._counter, self.acked = ack.counter, ack.ver
                self._head(ack.ledger_size, ack.ledger_root.hex())
            case ["ledger", "head"]:
                checkpoint = parse_checkpoint(verify1(payload, devices)[1])
                assert checkpoint.generation == 0, "a ledger was begun anew"
                self._head(checkpoint.size, checkpoint.root.hex())

    def _head(self, size: int, root: str) -> None:
        assert self.heads.setdefault(size, root) == root, f"two ledgers of {size} entries"

    def _same(self, number: Number, digest: str) -> None:
        for known in (self.kept, self.came):
            assert known.get(number, digest) == digest, f"{number} stands for two envelopes"


def _numbers(last: dict[str, int]) -> set[Number]:
    return {(grant_id, n) for grant_id, top in last.items() for n in range(1, top + 1)}


def _consentry(*words: str) -> None:
    done: Any = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, f"consentry {words[0]} {words[1]}: {done.output}{done.exception}"
