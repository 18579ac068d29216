"""A state directory of version 0.1.0, written by that version, in this one."""

import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from agent.edge.store import LiveGrant, Store, Tally, Tombstone, migration
from agent.errors import StoreError
from tests.unit.edge.test_store import policy, put, traces
from tests.vectors.state.write_state import POLICY

OLD = Path(__file__).resolve().parents[2] / "vectors" / "state" / "state-1.db"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    shutil.copyfile(OLD, directory / "state.db")
    return directory


def check(store: Store) -> None:
    assert store.in_force() == POLICY
    assert store.live_grants() == (
        LiveGrant("gr_a", 2),
        LiveGrant("gr_b", 1, "paused"),
        LiveGrant("gr_c", 1),
    )
    assert store.tombstoned("gr_dead") == "revoked"
    assert store.once_taken() == {("gr_a", "Vehicle.A"), ("gr_c", "Vehicle.A")}
    assert [row.n for row in store.pending(99) if row.grant_id == "gr_a"] == [1, 2, 3, 4, 5]
    assert all(row.envelope == b"envelope %d" % row.n * 40 for row in store.pending(99))
    assert store.counts() == {"gr_a": Tally(5, 2000), "gr_c": Tally(5, 2000)}


def test_everything_is_there_and_numbers_and_row_ids_go_on(directory: Path) -> None:
    """A late PUBACK of before must not hit a new row; a receiver must see no hole."""
    with Store.open(directory) as store:
        check(store)
        assert put(store, "gr_a", rev=2) == 7
        assert max(row.row_id for row in store.pending(99)) == 13
        assert store.next_counter("ack") == 2
    with Store.open(directory) as store:
        assert sum(tally.envelopes for tally in store.counts().values()) == 11


def test_the_old_file_leaves_no_trace_of_what_is_erased_later(directory: Path) -> None:
    """Nor does it stay."""
    with Store.open(directory) as store:
        gone = [row.envelope for row in store.pending(99) if row.grant_id == "gr_a"]
        store.end_grants([Tombstone("gr_a", "revoked")], 0)
    # What the other grant holds has the same words, so only whole envelopes tell them apart.
    assert all(traces(directory, [envelope[-12:]]) != [] for envelope in gone[:1])
    assert not (directory / "state.db").exists()
    assert sorted(path.name for path in directory.iterdir()) == [
        "consent.db",
        "lock",
        "reserve",
        "spool.db",
    ]


@pytest.mark.parametrize("left", ["half", "both"])
def test_a_crash_in_between_begins_anew_or_ends_it(directory: Path, left: str) -> None:
    """consent.db gets its name last."""
    shutil.copyfile(OLD, directory.parent / "old")
    Store.open(directory).close()
    shutil.copyfile(directory.parent / "old", directory / "state.db")
    if left == "half":
        (directory / "consent.db").rename(directory / "consent.db.new")
        (directory / "spool.db").write_bytes(random.Random(1).randbytes(5000))

    with Store.open(directory) as store:
        check(store)
    assert not (directory / "state.db").exists()


def test_an_old_file_that_cannot_be_read_gives_what_it_can(directory: Path) -> None:
    """And is not in the way."""
    (directory / "state.db").write_bytes(b"\xff" * 50_000)

    with Store.open(directory) as store:
        assert store.in_force() is None
        store.apply_policy(policy(1), [LiveGrant("gr_a", 1)], [], 0)
        assert put(store, "gr_a") == 1


def test_a_state_of_a_newer_agent_is_left_alone(directory: Path) -> None:
    """A downgrade must not eat the state."""
    db = sqlite3.connect(directory / "state.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    before = (directory / "state.db").read_bytes()

    with pytest.raises(StoreError, match="schema version 99, this agent knows 2"):
        Store.open(directory)

    assert (directory / "state.db").read_bytes() == before
    assert migration.OLD_VERSIONS == (1, 2)
