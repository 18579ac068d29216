"""Reading a ledger that is being written meanwhile."""

import threading
from pathlib import Path

import pytest

from agent.core.ledger import Replay
from agent.core.ledgerevent import event
from agent.edge.ledger import Ledger, Limits, read_entries, replay_all
from agent.errors import LedgerError
from tests.sealing import device

S = 10**9
NOW_NS = 1_795_468_800 * S
BOOT = "0f3b6a52-1c1e-4a57-9d3e-7a2b5d1c9e00"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "ledger"
    with Ledger.open(
        place, vehicle="v", boot_id=BOOT, now_ns=NOW_NS, limits=Limits(segment_entries=3)
    ) as ledger:
        for times in range(4):
            ledger.append(event(NOW_NS, "tls-failed", reason="name", times=times), durable=False)
            ledger.checkpoint(NOW_NS, device())
    return place


def test_a_line_that_is_just_being_written_is_waited_for(place: Path) -> None:
    last = max(place.glob("segment-*"))
    whole = last.read_bytes()
    last.write_bytes(whole[:-30])

    def finish() -> None:
        with last.open("ab") as file:
            file.write(whole[-30:])

    timer = threading.Timer(0.1, finish)
    timer.start()
    entries = [entry.n for entry, _ in replay_all(place, Replay())]
    timer.join()

    assert entries == list(range(len(entries)))


def test_a_segment_that_goes_before_it_is_opened_was_retired(place: Path) -> None:
    """Seen as a name without a file: what is listed and then removed."""
    paths = sorted(place.glob("segment-*"))
    paths[0].unlink()
    paths[0].symlink_to(place / "removed")

    entries = [entry.n for entry, _ in replay_all(place, Replay())]

    assert entries[0] == int(paths[1].name[8:20])


def test_a_segment_that_is_missing_in_between_is_no_such(place: Path) -> None:
    path = sorted(place.glob("segment-*"))[1]
    path.unlink()
    path.symlink_to(place / "removed")

    with pytest.raises(LedgerError, match="cannot be read: No such file"):
        list(read_entries(place))


def test_a_ledger_that_may_not_be_read_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_bytes(b"")

    with pytest.raises(LedgerError, match="cannot be read: Not a directory"):
        list(read_entries(tmp_path / "ledger"))
