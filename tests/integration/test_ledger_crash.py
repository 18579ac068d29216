"""The ledger under SIGKILL, on a full disk, and with any bit of it flipped."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from agent.cloud.ledger import verify_checkpoint
from agent.core.ledger import Replay, parse_line
from agent.core.ledgerevent import Event, event
from agent.core.merkle import Frontier, leaf_hash
from agent.edge.ledger import Ledger, Limits, replay_all
from agent.errors import LedgerError
from tests.sealing import device, devices

ROOT = Path(__file__).resolve().parents[2]
S = 10**9
NOW_NS = 1_795_468_800 * S
BOOT = "0f3b6a52-1c1e-4a57-9d3e-7a2b5d1c9e00"
SMALL = Limits(checkpoint_entries=8, segment_entries=20, reserve_bytes=64 * 1024)

# Appends as fast as it can and says each head that an envelope could have named by then.
WRITER = """
import sys
from pathlib import Path
from agent.core.ledgerevent import event
from agent.edge.ledger import Ledger
from tests.integration.test_ledger_crash import BOOT, NOW_NS, SMALL
from tests.sealing import device
with Ledger.open(Path(sys.argv[1]), vehicle="v", boot_id=BOOT, now_ns=NOW_NS, limits=SMALL) as it:
    for number in range(10**9):
        it.append(event(NOW_NS, "tls-failed", reason="name", times=number), durable=number % 5 == 4)
        if it.checkpoint_due(NOW_NS):
            it.checkpoint(NOW_NS, device())
        size, root = it.head
        sys.stdout.write(f"{size} {root.hex()}\\n")
        sys.stdout.flush()
"""


def opened(directory: Path, limits: Limits = SMALL) -> Ledger:
    return Ledger.open(directory, vehicle="v", boot_id=BOOT, now_ns=NOW_NS, limits=limits)


def happened(times: int = 1) -> Event:
    return event(NOW_NS, "tls-failed", reason="name", times=times)


def test_a_kill_at_any_moment_takes_back_no_head_that_was_given_out(tmp_path: Path) -> None:
    """Of many runs in one directory, each ended by SIGKILL while it appends."""
    place = tmp_path / "ledger"
    chance = random.Random(9)
    heads: dict[int, str] = {}
    for _ in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(place)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            time.sleep(chance.uniform(0.0, 0.05))
            process.send_signal(signal.SIGKILL)
            told = [first, *process.stdout]
        for line in told:
            if line.endswith("\n"):
                size, root = line.split()
                assert heads.setdefault(int(size), root) == root

    with opened(place) as ledger:
        assert ledger.set_aside is None
        assert not ledger.ended_cleanly
    replay = Replay(heads=heads)
    entries = [entry.n for entry, _ in replay_all(place, replay)]
    assert entries == list(range(len(entries)))
    assert len(entries) > 100
    assert {size: replay.heads[size].hex() for size in heads} == heads


def test_a_power_cut_after_any_byte_leaves_a_ledger_that_goes_on(tmp_path: Path) -> None:
    """As if only so much of the last segment had come to the disk, from what was on it before."""
    place, kept = tmp_path / "ledger", tmp_path / "kept"
    with opened(place) as ledger:
        ledger.append(happened(1), durable=True)
        head = ledger.head
    (path,) = place.glob("segment-*")
    durable = path.stat().st_size
    with opened(place) as ledger:
        for number in range(2, 5):
            ledger.append(happened(number), durable=False)
        shutil.copytree(place, kept)  # Before `head` is written anew.
    (path,) = kept.glob("segment-*")
    whole = path.read_bytes()

    for cut in range(durable, len(whole) + 1):
        shutil.rmtree(place)
        shutil.copytree(kept, place)
        (place / path.name).write_bytes(whole[:cut])

        with opened(place) as ledger:
            assert ledger.set_aside is None, cut
            assert ledger.head[0] >= head[0]
        lines = (place / path.name).read_bytes().splitlines()
        assert Frontier().extended(map(leaf_hash, lines[: head[0]])).root() == head[1]
        torn = whole[:cut].rpartition(b"\n")[2]
        assert (parse_line(lines[-1]).name == "line-torn") == bool(torn)


def test_every_flipped_bit_of_a_ledger_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A flipped last line feed looks like a line that is just being written.
    monkeypatch.setattr("agent.edge.ledger.reading._WAIT_S", 0.0)
    place = tmp_path / "ledger"
    with opened(place, Limits(segment_entries=2)) as ledger:
        ledger.checkpoint(NOW_NS, device())

    def verify() -> None:
        for _ in replay_all(place, Replay()):
            pass

    verify()
    paths = sorted(place.iterdir())
    assert [path.name for path in paths] == [
        "head",
        "segment-000000000000.jsonl",
        "segment-000000000002.jsonl",
    ]
    for path in paths:
        whole = path.read_bytes()
        for bit in range(8 * len(whole)):
            altered = bytearray(whole)
            altered[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bytes(altered))
            with pytest.raises(LedgerError):
                verify()
        path.write_bytes(whole)
    verify()


# In a user namespace of its own, so that it needs no root.
ON_SMALL_DISK = """
set -e
mount -t tmpfs -o size=512k tmpfs "$1"
exec "$2" -m tests.integration.test_ledger_crash "$1" "$3"
"""


@pytest.mark.parametrize("story", ["full", "read-only"])
def test_a_disk_that_takes_nothing_stops_nobody(tmp_path: Path, story: str) -> None:
    """Full: there is room for what must not be lost. In both cases the loss is told later."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, "true"], check=False).returncode
    ):
        pytest.skip("user namespaces are not allowed here")

    ended = subprocess.run(
        [*unshare, "bash", "-c", ON_SMALL_DISK, "bash", str(tmp_path), sys.executable, story],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )

    assert (ended.returncode, ended.stderr) == (0, "")


def on_read_only_disk(disk: Path) -> None:
    """Begin, turn the disk read-only, see that entries are refused, turn it back."""
    place = disk / "ledger"
    with opened(place) as ledger:
        ledger.append(happened(), durable=True)
        head = ledger.head
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)

    with opened(place) as ledger:
        assert not ledger.append(happened(), durable=True)
        assert not ledger.sync()
        assert not ledger.checkpoint_due(NOW_NS)
        assert ledger.head == head
        signed = ledger.checkpoint(NOW_NS, device())
        assert verify_checkpoint(signed, devices=devices())[1].size == head[0]
        assert (ledger.lost, ledger.fault) == (1, "EROFS")
        assert list(replay_all(place, Replay()))

        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        later = event(NOW_NS + 10 * S, "tls-failed", reason="name", times=1)
        assert ledger.append(later, durable=True)
    told = [entry for entry, _ in replay_all(place, Replay()) if entry.name == "entries-lost"]
    assert [entry.facts for entry in told] == [{"entries": 1, "reason": "read-only"}]


def on_small_disk(disk: Path) -> None:
    """Fill the disk, see what is refused, make room, see what is told."""
    place = disk / "ledger"
    with opened(place) as ledger:
        filler = os.open(disk / "filler", os.O_CREAT | os.O_WRONLY)
        fill(filler)

        assert page_left(ledger) < 100
        assert (ledger.lost, ledger.fault) == (1, "ENOSPC")
        assert all(ledger.append(happened(n), durable=True) for n in range(200))
        assert page_left(ledger) < 100
        while ledger.append(happened(), durable=True):
            pass  # Until the reserve is used up too.
        assert ledger.lost == 1
        assert ledger.checkpoint(NOW_NS, device())

        os.truncate(disk / "filler", 0)
        assert ledger.append(happened(), durable=True)
        assert ledger.lost == 0
        assert ledger.checkpoint(NOW_NS, device())
        head = ledger.head
    assert (disk / "ledger.reserve").stat().st_blocks * 512 >= SMALL.reserve_bytes
    replay = Replay()
    names = [entry.name for entry, _ in replay_all(place, replay)]
    assert (replay.tree.size, replay.tree.root()) == head
    assert names.count("entries-lost") >= 2


def page_left(ledger: Ledger) -> int:
    """Append what may be lost until the disk refuses it; return how many were taken."""
    taken = 0
    while ledger.append(happened(), durable=False):
        taken += 1
    return taken


def fill(fd: int) -> None:
    for size in (4096, 1):
        with suppress(OSError):
            while os.write(fd, bytes(size)):
                pass


if __name__ == "__main__":
    {"full": on_small_disk, "read-only": on_read_only_disk}[sys.argv[2]](Path(sys.argv[1]))
