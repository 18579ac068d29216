import errno
import os
import resource
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from agent.cloud.ledger import verify_checkpoint
from agent.core.ledger import Entry, Replay, parse_line
from agent.core.ledgerevent import Event, event
from agent.core.merkle import EMPTY_ROOT, Frontier, leaf_hash
from agent.edge.ledger import Ledger, Limits
from agent.errors import LedgerError, StoreBusy
from tests.sealing import device, devices

S = 10**9
NOW_NS = 1_795_468_800 * S
DAY_NS = 86_400 * S
BOOT = "0f3b6a52-1c1e-4a57-9d3e-7a2b5d1c9e00"


def opened(directory: Path, now_ns: int = NOW_NS, **limits: Any) -> Ledger:
    return Ledger.open(
        directory, vehicle="veh-0001", boot_id=BOOT, now_ns=now_ns, limits=Limits(**limits)
    )


def happened(times: int = 1, now_ns: int = NOW_NS) -> Event:
    return event(now_ns, "tls-failed", reason="name", times=times)


def lines(directory: Path) -> list[bytes]:
    return b"".join(p.read_bytes() for p in sorted(directory.glob("segment-*"))).splitlines()


def entries(directory: Path) -> list[Entry]:
    return [parse_line(line) for line in lines(directory)]


def names(directory: Path) -> list[str]:
    return [entry.name for entry in entries(directory)]


def root(directory: Path, size: int | None = None) -> bytes:
    return Frontier().extended(map(leaf_hash, lines(directory)[:size])).root()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger"


def test_a_new_ledger_says_that_it_is_the_first(place: Path) -> None:
    with opened(place) as ledger:
        assert ledger.head == (1, root(place))
        assert ledger.ended_cleanly

    (entry,) = entries(place)
    assert entry.name == "ledger-begun"
    assert entry.facts == {
        "generation": 0,
        "reason": "first",
        "size": 0,
        "root": EMPTY_ROOT.hex(),
    }


def test_only_the_agent_s_user_can_read_it(place: Path) -> None:
    with opened(place) as ledger:
        ledger.checkpoint(NOW_NS, device())

    modes = {stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()}
    assert modes == {0o600}
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_entries_are_there_after_a_restart_and_the_tree_goes_on(place: Path) -> None:
    with opened(place) as ledger:
        assert ledger.append(happened(1), durable=False)
        assert ledger.append(happened(2), durable=True)
        head = ledger.head

    with opened(place) as ledger:
        assert ledger.head == head == (3, root(place))
        ledger.append(happened(3), durable=True)
        assert ledger.head == (4, root(place))
    assert [entry.n for entry in entries(place)] == [0, 1, 2, 3]


def test_the_head_names_only_what_is_on_disk(place: Path) -> None:
    """A power cut must not take back what an envelope has named."""
    with opened(place) as ledger:
        before = ledger.head
        ledger.append(happened(), durable=False)
        assert ledger.head == before

        assert ledger.sync()
        assert ledger.head == (2, root(place))
        assert ledger.sync()  # Nothing to do is done.


def test_the_end_of_the_last_run_is_told(place: Path) -> None:
    with opened(place) as ledger:
        ledger.append(happened(), durable=True)
    with opened(place) as ledger:
        assert not ledger.ended_cleanly
        ledger.append(event(NOW_NS, "stopped", reason="signal"), durable=True)
        ledger.checkpoint(NOW_NS, device())
    with opened(place) as ledger:
        assert ledger.ended_cleanly


@pytest.mark.parametrize("name", ["stopped", "crash-noticed"])
def test_the_end_of_the_last_run_is_told_across_segments(place: Path, name: str) -> None:
    with opened(place, segment_entries=1) as ledger:
        ledger.append(event(NOW_NS, name, reason="signal"), durable=True)
        ledger.checkpoint(NOW_NS, device())
        ledger.checkpoint(NOW_NS, device())
    assert names(place)[-1] == "segment-begun"

    with opened(place) as ledger:
        assert ledger.ended_cleanly == (name == "stopped")


def test_a_second_process_is_kept_out(place: Path) -> None:
    with opened(place), pytest.raises(StoreBusy, match="held by another process"):
        opened(place)
    opened(place).close()


def test_closing_twice_is_harmless(place: Path) -> None:
    ledger = opened(place)
    ledger.close()
    ledger.close()


def test_a_checkpoint_signs_what_is_on_disk_and_stands_in_the_ledger(place: Path) -> None:
    with opened(place) as ledger:
        ledger.append(happened(), durable=False)
        signed = ledger.checkpoint(NOW_NS, device())
        assert ledger.head == (3, root(place))

    kid, checkpoint = verify_checkpoint(signed, devices=devices())
    assert kid == device().kid
    assert (checkpoint.size, checkpoint.root) == (2, root(place, 2))
    assert (checkpoint.vehicle, checkpoint.boot_id) == ("veh-0001", BOOT)
    assert checkpoint.time_s == NOW_NS // S
    replay = Replay(devices=devices())
    for line in lines(place):
        replay.feed(line)
    assert replay.checkpoint == checkpoint


def test_a_checkpoint_is_due_after_so_many_entries_or_so_long(place: Path) -> None:
    with opened(place, checkpoint_entries=5) as ledger:
        ledger.checkpoint(NOW_NS, device())
        assert not ledger.checkpoint_due(NOW_NS + DAY_NS)  # There is nothing new.
        for number in range(4):
            ledger.append(happened(number), durable=False)
        assert not ledger.checkpoint_due(NOW_NS)
        assert not ledger.checkpoint_due(NOW_NS + 3_599 * S)
        assert ledger.checkpoint_due(NOW_NS + 3_600 * S)
        assert ledger.checkpoint_due(NOW_NS - 3_600 * S)  # The clock was set back.
        ledger.append(happened(), durable=False)
        assert ledger.checkpoint_due(NOW_NS)
    with opened(place, checkpoint_entries=5) as ledger:
        assert ledger.checkpoint_due(NOW_NS)
        ledger.checkpoint(NOW_NS, device())
    with opened(place, checkpoint_entries=5) as ledger:
        assert not ledger.checkpoint_due(NOW_NS + DAY_NS)


@pytest.mark.parametrize("tail", [b'{"c":"0', b"x", b"\0" * 4096, b'{"c":"12\0\0\0'])
def test_a_torn_last_line_is_cut_off_and_recorded(place: Path, tail: bytes) -> None:
    with opened(place) as ledger:
        ledger.append(happened(), durable=True)
        head = ledger.head
    (path,) = place.glob("segment-*")
    with path.open("ab") as file:
        file.write(tail)

    with opened(place) as ledger:
        assert ledger.set_aside is None
        assert ledger.head[0] == head[0] + 1
        assert root(place, 2) == head[1]
    assert entries(place)[-1].facts == {"bytes": len(tail)}
    assert names(place)[-1] == "line-torn"


def test_a_last_line_cut_anywhere_is_cut_off(place: Path) -> None:
    with opened(place) as ledger:
        ledger.append(happened(), durable=True)
        ledger.append(happened(), durable=False)
    (path,) = place.glob("segment-*")
    whole = path.read_bytes()
    (place / "head").unlink()
    last = len(whole.splitlines(keepends=True)[-1])

    for cut in range(1, last):
        path.write_bytes(whole[:-cut])
        with opened(place) as ledger:
            assert ledger.set_aside is None
        assert names(place) == ["ledger-begun", "tls-failed", "line-torn"]
        (place / "head").unlink()


def filled(place: Path) -> tuple[int, bytes]:
    """A ledger of three segments; return its head."""
    with opened(place, segment_entries=4) as ledger:
        for number in range(9):
            ledger.append(happened(number), durable=True)
            if number % 3 == 2:
                ledger.checkpoint(NOW_NS, device())
        return ledger.head


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_a_missing_segment_is_noticed_and_the_rest_kept_as_evidence(
    place: Path, which: int
) -> None:
    size, head_root = filled(place)
    paths = sorted(place.glob("segment-*"))
    assert len(paths) == 4
    paths[which].unlink()

    with opened(place) as ledger:
        if which == 0:  # As if it had been retired.
            assert ledger.set_aside is None
            return
        assert ledger.set_aside == place.with_name("ledger.damaged-1")
        assert ledger.generation == 1

    (entry,) = entries(place)
    assert entry.facts["reason"] == "damaged"
    assert (entry.facts["size"], entry.facts["root"]) == (size, head_root.hex())
    kept = {path.name for path in place.with_name("ledger.damaged-1").iterdir()}
    assert kept == {path.name for path in paths if path != paths[which]} | {"head"}


def test_a_flipped_bit_in_the_last_segment_is_noticed(place: Path) -> None:
    size, head_root = filled(place)
    path = max(place.glob("segment-*"))
    whole = path.read_bytes()
    shutil.copytree(place, kept := place.with_name("kept"))
    for bit in range(0, 8 * (len(whole) - 1), 31):
        altered = bytearray(whole)
        altered[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(altered))

        with opened(place) as ledger:
            assert ledger.set_aside is not None, bit
        facts = entries(place)[0].facts
        assert (facts["size"], facts["root"]) == (size, head_root.hex())

        shutil.rmtree(ledger.set_aside)
        shutil.rmtree(place)
        shutil.copytree(kept, place)


def test_segments_that_are_all_gone_are_noticed_by_the_head(place: Path) -> None:
    size, head_root = filled(place)
    for path in place.glob("segment-*"):
        path.unlink()

    with opened(place) as ledger:
        assert ledger.set_aside is not None
    (entry,) = entries(place)
    assert (entry.facts["size"], entry.facts["root"]) == (size, head_root.hex())
    assert entry.facts["generation"] == 1


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_flipped_bit_in_an_older_segment_is_found_on_the_way(place: Path, which: int) -> None:
    """The tree does not need it any more: the ledger goes on, and says so."""
    filled(place)
    path = sorted(place.glob("segment-*"))[which]
    altered = bytearray(path.read_bytes())
    altered[-20] ^= 1
    path.write_bytes(bytes(altered))

    with opened(place) as ledger:
        assert ledger.set_aside is None
        assert not ledger.ended_cleanly
        for _ in range(3):
            ledger.append(happened(), durable=False)
            ledger.checkpoint(NOW_NS, device())
        head = ledger.head
    told = [e.facts["first"] for e in readable(place) if e.name == "segment-damaged"]
    assert told == [int(path.name[8:20])]
    assert root_of_tail(place) == head


def readable(place: Path) -> Iterator[Entry]:
    for line in lines(place):
        with suppress(LedgerError):
            yield parse_line(line)


def root_of_tail(place: Path) -> tuple[int, bytes]:
    replay = Replay()
    for line in max(place.glob("segment-*")).read_bytes().splitlines():
        replay.feed(line)
    return replay.tree.size, replay.tree.root()


def test_a_segment_under_another_name_is_noticed(place: Path) -> None:
    filled(place)
    path = sorted(place.glob("segment-*"))[1]
    path.rename(place / "segment-000000000006.jsonl")

    with opened(place) as ledger:
        assert ledger.set_aside is not None


def test_each_ledger_that_is_begun_is_the_next_generation(place: Path) -> None:
    """Also where `head` is gone: the segments' first lines say it too."""
    for generation in (1, 2, 3):
        filled(place)
        (place / "head").unlink()
        path = max(place.glob("segment-*"))
        path.write_bytes(b"x" + path.read_bytes())

        with opened(place) as ledger:
            assert ledger.generation == generation
            assert ledger.set_aside == place.with_name(f"ledger.damaged-{generation}")
        assert entries(place)[0].facts["generation"] == generation


def test_a_damaged_head_file_is_damage(place: Path) -> None:
    filled(place)
    (place / "head").write_bytes(b"{}\n")

    with opened(place) as ledger:
        assert ledger.set_aside is not None


def test_an_older_head_file_is_none(place: Path) -> None:
    """A crash comes between the lines and the head that names them."""
    with opened(place) as ledger:
        ledger.append(happened(), durable=True)
    older = (place / "head").read_bytes()
    with opened(place) as ledger:
        ledger.append(happened(), durable=True)
    (place / "head").write_bytes(older)

    with opened(place) as ledger:
        assert ledger.set_aside is None
        assert ledger.head[0] == 3


def test_a_segment_that_a_power_cut_kept_from_its_first_line_is_removed(place: Path) -> None:
    filled(place)
    stillborn = place / "segment-000000000999.jsonl"
    stillborn.write_bytes(b'{"c":"')

    with opened(place) as ledger:
        assert ledger.set_aside is None
    assert not stillborn.exists()


def test_a_crash_between_setting_aside_and_the_new_name_is_made_good(place: Path) -> None:
    filled(place)
    place.rename(place.with_name("ledger.new"))

    with opened(place) as ledger:
        assert ledger.set_aside is None
        assert ledger.head[0] > 1


def test_an_empty_directory_is_a_place_for_a_ledger(place: Path) -> None:
    place.mkdir(parents=True)

    with opened(place) as ledger:
        assert ledger.set_aside is None
        assert ledger.head[0] == 1


@contextmanager
def no_room(path: Path) -> Iterator[None]:
    """No file of ours may grow beyond the size of this one: a full disk without being root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_stops_nobody_and_what_was_lost_is_told_afterwards(place: Path) -> None:
    with opened(place) as ledger:
        ledger.append(happened(1), durable=True)
        head = ledger.head
        (path,) = place.glob("segment-*")
        with no_room(path):
            assert not ledger.append(happened(2), durable=False)
            assert not ledger.append(happened(3), durable=True)
            assert ledger.lost == 2
            assert ledger.fault == errno.errorcode[errno.EFBIG]
            assert ledger.head == head
            signed = ledger.checkpoint(NOW_NS, device())
            assert verify_checkpoint(signed, devices=devices())[1].size == head[0]
            assert ledger.lost == 2

        assert ledger.append(happened(4), durable=True)
        assert (ledger.lost, ledger.fault) == (0, None)
        assert ledger.head == (4, root(place))

    assert names(place) == ["ledger-begun", "tls-failed", "entries-lost", "tls-failed"]
    assert entries(place)[2].facts == {"entries": 2, "reason": "disk-full"}


def test_a_ledger_that_cannot_be_begun_is_begun_later(place: Path) -> None:
    place.parent.mkdir(parents=True)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        ledger = opened(place)
        assert not ledger.append(happened(1), durable=True)
        assert ledger.head == (0, EMPTY_ROOT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    assert not ledger.append(happened(2), durable=True)  # It was tried a moment ago.
    assert ledger.append(happened(3, NOW_NS + 10 * S), durable=True)
    ledger.close()
    assert names(place) == ["ledger-begun", "entries-lost", "tls-failed"]
    assert entries(place)[1].facts == {"entries": 2, "reason": "disk-full"}


def test_lines_that_did_not_reach_the_disk_are_taken_back(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed fsync the kernel may have dropped them, and says so once only."""

    def refuses(_: int) -> None:
        raise OSError(errno.EIO, "the disk")

    with opened(place) as ledger:
        head = ledger.head
        ledger.append(happened(1), durable=False)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", refuses)
            assert not ledger.append(happened(2), durable=True)
            assert ledger.lost == 2
            # What tells of the loss is lost too, and told again.
            assert not ledger.append(happened(3), durable=True)
            assert ledger.lost == 3
        assert ledger.head == head
        assert ledger.append(happened(4), durable=True)

    assert names(place) == ["ledger-begun", "entries-lost", "tls-failed"]
    assert entries(place)[1].facts == {"entries": 3, "reason": "disk-fault"}


def test_segments_are_retired_whole_after_180_days(place: Path) -> None:
    """With a clock of our own: three entries a day, a checkpoint when it is due."""
    sizes = []
    heads = []
    with opened(place) as ledger:
        for number in range(3 * 200):
            now_ns = NOW_NS + number * DAY_NS // 3
            ledger.append(happened(number, now_ns), durable=False)
            if ledger.checkpoint_due(now_ns):
                ledger.checkpoint(now_ns, device())
            sizes.append(len(list(place.glob("segment-*"))))
            heads.append(ledger.head)
        head = ledger.head
        now_s = now_ns // S

    assert max(sizes) <= 183
    assert sizes[3 * 100] == 101
    assert [size for size, _ in heads] == sorted(size for size, _ in heads)
    kept = entries(place)
    assert kept[0].name == "segment-begun"
    assert kept[0].n > 100
    oldest = min(entry.t_s for entry in kept)
    assert 180 * 86_400 <= now_s - oldest <= 182 * 86_400
    replay = Replay()
    for path in sorted(place.glob("segment-*")):
        replay.begin_segment()
        for line in path.read_bytes().splitlines():
            replay.feed(line)
    assert (replay.tree.size, replay.tree.root()) == head
    retired = [entry.facts for entry in kept if entry.name == "segment-retired"]
    assert retired[-1]["first"] + retired[-1]["entries"] == kept[0].n
    with opened(place, now_ns) as again:
        assert again.head == head


def test_a_clock_set_far_ahead_takes_one_segment_at_a_time(place: Path) -> None:
    filled(place)
    with opened(place) as ledger:
        ledger.append(happened(now_ns=NOW_NS + 4_000 * DAY_NS), durable=True)
        ledger.checkpoint(NOW_NS + 4_000 * DAY_NS, device())

    assert len(list(place.glob("segment-*"))) == 4  # One more, one less.


def test_the_oldest_segment_goes_earlier_where_all_are_too_long(place: Path) -> None:
    filled(place)
    with opened(place, total_bytes=1_000, segment_entries=10_000) as ledger:
        for number in range(5):
            ledger.append(happened(number), durable=False)
            ledger.checkpoint(NOW_NS, device())

    assert len(list(place.glob("segment-*"))) == 1
    reasons = [e.facts["reason"] for e in entries(place) if e.name == "segment-retired"]
    assert set(reasons) == {"space"}


def test_evidence_is_removed_after_the_retention(place: Path) -> None:
    filled(place)
    (place / "head").write_bytes(b"{}\n")
    with opened(place) as ledger:
        aside = ledger.set_aside
    assert aside is not None
    for path in aside.iterdir():
        written_s = NOW_NS // S - (0 if path.name == "head" else 10 * 86_400)
        os.utime(path, (written_s, written_s))

    opened(place, NOW_NS + 179 * DAY_NS).close()
    assert aside.exists()
    opened(place, NOW_NS + 181 * DAY_NS).close()
    assert not aside.exists()


def test_memory_does_not_grow_with_the_ledger(place: Path) -> None:
    """Of thousands of lines the tree keeps a dozen hashes."""
    with opened(place) as ledger:
        for number in range(5_000):
            ledger.append(happened(number), durable=False)
        assert ledger._tail is not None
        assert len(ledger._tail.tree.peaks) <= 13
