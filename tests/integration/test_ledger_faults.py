"""Random lives of a ledger: a disk that refuses, kills, power cuts. What was promised stays."""

import errno
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.ledger import Entry, Replay
from agent.core.ledgerevent import event
from agent.edge.ledger import Ledger, Limits, replay_all
from tests.sealing import device, devices

S = 10**9
NOW_NS = 1_795_468_800 * S
BOOT = "0f3b6a52-1c1e-4a57-9d3e-7a2b5d1c9e00"
LIMITS = Limits(segment_entries=6, reserve_bytes=4096)

STEPS = st.lists(
    st.sampled_from(
        [
            *("append",) * 4,
            *("durable",) * 3,
            "sync",
            "checkpoint",
            "no room",
            "no sync",
            "restart",
            "kill",
            "power cut",
        ]
    ),
    max_size=30,
)


@contextmanager
def faulty(place: Path, fault: str) -> Iterator[None]:
    """Have the disk refuse to grow files, or to sync them, or neither."""
    with pytest.MonkeyPatch.context() as patch:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if fault == "no room":
            size = max(path.stat().st_size for path in place.glob("segment-*"))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        elif fault == "no sync":
            patch.setattr(os, "fdatasync", _refuse)
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _refuse(_: int) -> None:
    raise OSError(errno.EIO, "the disk")


class Life:
    """One ledger directory through all that happens to it, and what must be true of it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.heads: dict[int, bytes] = {}
        self.promised: set[int] = set()  # Events that were said to be on disk.
        self.number = 0  # Of events that were appended.
        self.checkpoints = 0
        self.has_died = False
        self.ledger = self.open()

    def open(self) -> Ledger:
        opened = Ledger.open(self.place, vehicle="v", boot_id=BOOT, now_ns=NOW_NS, limits=LIMITS)
        assert opened.set_aside is None
        return opened

    def step(self, step: str) -> None:
        if step in ("append", "durable"):
            self.number += 1
            told = event(NOW_NS, "tls-failed", reason="name", times=self.number)
            if self.ledger.append(told, durable=step == "durable") and step == "durable":
                self.promised.add(self.number)
        elif step == "sync":
            self.ledger.sync()
        elif step == "checkpoint":
            self.checkpoints += 1
            self.ledger.checkpoint(NOW_NS, device())
        elif step in ("restart", "kill", "power cut"):
            self.end(step)
        size, root = self.ledger.head
        assert self.heads.setdefault(size, root) == root
        assert size == max(self.heads)

    def end(self, how: str) -> None:
        path = max(self.place.glob("segment-*"))
        tail = self.ledger._tail
        assert tail is not None
        synced = tail._synced_bytes
        head = self.place / "head"
        before = head.read_bytes() if head.exists() else b""
        self.ledger.close()  # What it does more than a kill is undone below.
        if how != "restart":
            head.write_bytes(before)
            if not before:
                head.unlink()
        if how == "power cut":
            whole = path.read_bytes()
            path.write_bytes(whole[: (synced + len(whole) + 1) // 2])
        self.ledger = self.open()
        self.has_died = True

    def check(self) -> None:
        replay = Replay(heads=self.heads, devices=devices())
        entries = [entry for entry, _ in replay_all(self.place, replay)]
        for size, root in self.heads.items():
            assert replay.heads[size] == root
        numbers = [entry.facts["times"] for entry in entries if entry.name == "tls-failed"]
        assert numbers == sorted(numbers, key=int)
        assert self.promised <= set(numbers)
        if not self.has_died:  # Each is there or told to be lost; a checkpoint may be lost too.
            told = len(numbers) + lost(entries) + self.ledger.lost
            assert self.number <= told <= self.number + self.checkpoints


def lost(entries: list[Entry]) -> int:
    counts = [entry.facts["entries"] for entry in entries if entry.name == "entries-lost"]
    return sum(count for count in counts if isinstance(count, int))


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_what_was_promised_stays_whatever_the_disk_does(steps: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        life = Life(Path(folder) / "ledger")
        fault = ""
        for step in steps:
            if step.startswith("no "):
                fault = "" if fault == step else step
                continue
            if step in ("restart", "kill", "power cut"):
                fault = ""
            with faulty(life.place, fault):
                life.step(step)
        life.ledger.sync()
        life.check()
        life.ledger.close()
