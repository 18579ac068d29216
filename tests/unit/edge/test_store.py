import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agent.edge.store import (
    EndState,
    GrantState,
    LiveGrant,
    LocalStop,
    Store,
    StoredPolicy,
    Tally,
    Tombstone,
)
from agent.edge.store.file import open_file
from agent.edge.store.marks import AHEAD
from agent.edge.store.tables import SPOOL
from agent.errors import StoreBusy, StoreError
from tests.storing import append

ROOT = Path(__file__).resolve().parents[3]
NEVER_NS = 10**18

GRANTS = st.sampled_from("abcd")
REVS = st.integers(1, 3)
GRANT_STATES: tuple[GrantState, ...] = ("active", "paused", "pending")
END_STATES: tuple[EndState, ...] = ("revoked", "expired")


def policy(ver: int, *, epoch: int = 1, text: str = "") -> StoredPolicy:
    return StoredPolicy(
        jws=f"jws {epoch} {ver} {text}".encode(),
        epoch=epoch,
        ver=ver,
        payload_sha256=f"{epoch} {ver} {text}".encode().ljust(32),
        catalogue_sha256=b"c" * 32,
        applied_ns=ver,
    )


def put(store: Store, grant_id: str, envelope: bytes = b"sealed", **other: Any) -> int:
    arguments = {"rev": 1, "recipient": "fleet-x", "created_ns": 1, "expires_ns": NEVER_NS} | other
    return append(store, grant_id, seal=lambda _: envelope, **arguments)


def with_grants(store: Store, *grant_ids: str, ver: int = 1) -> None:
    store.apply_policy(policy(ver), [LiveGrant(g, 1) for g in grant_ids], [], 0)


def run_child(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def traces(directory: Path, envelopes: list[bytes]) -> list[int]:
    """Indexes of envelopes of which any 12 bytes in a row lie in any file of the directory."""
    windows: set[bytes] = set()
    for path in directory.iterdir():
        data = path.read_bytes()
        if any(data):
            windows.update(data[i : i + 12] for i in range(len(data) - 11))
    return [
        index
        for index, envelope in enumerate(envelopes)
        if any(envelope[i : i + 12] in windows for i in range(len(envelope) - 11))
    ]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def store(directory: Path) -> Iterator[Store]:
    with Store.open(directory) as opened:
        yield opened


def test_a_new_store_has_no_policy_and_takes_no_envelope(store: Store) -> None:
    """Without a policy nothing is consented to."""
    with pytest.raises(StoreError, match="not live, expected active"):
        put(store, "gr_a")

    assert store.in_force() is None
    assert store.counts() == {}


def test_numbers_run_without_holes_over_revs_restarts_and_failed_seals(directory: Path) -> None:
    """The number is the receiver's only means to tell a loss."""

    def fails(_: int) -> bytes:
        raise RuntimeError("no key")

    with Store.open(directory) as store:
        with_grants(store, "gr_a", "gr_b")
        numbers = [put(store, "gr_a"), put(store, "gr_a"), put(store, "gr_b")]
        with pytest.raises(RuntimeError, match="no key"):
            append(
                store,
                "gr_a",
                1,
                recipient="r",
                created_ns=0,
                expires_ns=1,
                seal=fails,
                once=("Vehicle.A",),
            )
        store.apply_policy(policy(2), [LiveGrant("gr_a", 2), LiveGrant("gr_b", 1)], [], 0)
        numbers.append(put(store, "gr_a", rev=2))
    with Store.open(directory) as store:
        numbers.append(put(store, "gr_a", rev=2))

        assert numbers == [1, 2, 1, 3, 4]
        assert store.once_taken() == frozenset()


def test_the_seal_gets_the_number_under_which_its_envelope_is_kept(store: Store) -> None:
    """The number in the sealed header is the number of the row."""
    with_grants(store, "gr_a")
    for _ in range(3):
        append(
            store, "gr_a", 1, recipient="r", created_ns=0, expires_ns=9, seal=lambda n: b"n=%d" % n
        )

    assert [(row.n, row.envelope) for row in store.pending(9)] == [
        (1, b"n=1"),
        (2, b"n=2"),
        (3, b"n=3"),
    ]


@pytest.mark.parametrize("state", ["paused", "pending"])
def test_a_grant_that_is_not_active_takes_and_gives_nothing_but_keeps_its_rows(
    store: Store, state: Any
) -> None:
    """Paused: rows stay, nothing is collected or published."""
    with_grants(store, "gr_a", "gr_b")
    put(store, "gr_a", b"one")
    put(store, "gr_b", b"two")

    store.set_grant_state("gr_a", state)

    with pytest.raises(StoreError, match=f"is {state}, expected active"):
        put(store, "gr_a")
    assert [row.envelope for row in store.pending(9)] == [b"two"]
    assert store.counts()["gr_a"] == Tally(1, 3)
    store.set_grant_state("gr_a", "active")
    assert [row.envelope for row in store.pending(9)] == [b"one", b"two"]


def test_the_state_of_a_grant_that_is_not_live_cannot_be_set(store: Store) -> None:
    """Only a policy makes a grant."""
    with pytest.raises(StoreError, match="not live"):
        store.set_grant_state("gr_a", "active")

    assert store.live_grants() == ()


def test_pending_gives_the_oldest_first_and_leaves_out_what_is_in_flight(store: Store) -> None:
    """What is in flight is not offered twice."""
    with_grants(store, "gr_a")
    for index in range(6):
        put(store, "gr_a", b"%d" % index)
    first, second = store.pending(2)

    rest = store.pending(3, exclude={first.row_id, second.row_id, 999})

    assert [row.envelope for row in (first, second, *rest)] == [b"0", b"1", b"2", b"3", b"4"]


def test_delivered_rows_go_and_their_ids_never_come_back(store: Store) -> None:
    """A late PUBACK must not remove a younger row."""
    with_grants(store, "gr_a")
    put(store, "gr_a")
    (old,) = store.pending(1)

    assert store.delivered([old.row_id, old.row_id, 12345]) == {"gr_a": Tally(1, 6)}
    put(store, "gr_a")

    assert store.pending(1)[0].row_id > old.row_id
    assert store.delivered([]) == {}


def test_a_policy_replaces_grants_rows_and_tombstones_at_once(store: Store) -> None:
    """What the new policy does not cover is off the disk."""
    with_grants(store, "gr_keep", "gr_revoke", "gr_expire", "gr_rev", "gr_unnamed")
    for grant_id in ("gr_keep", "gr_revoke", "gr_revoke", "gr_expire", "gr_rev", "gr_unnamed"):
        put(store, grant_id)

    purged = store.apply_policy(
        policy(2),
        [LiveGrant("gr_keep", 1), LiveGrant("gr_rev", 2, "paused"), LiveGrant("gr_new", 1)],
        [Tombstone("gr_revoke", "revoked"), Tombstone("gr_expire", "expired")],
        7,
    )

    assert purged.erased == {
        "gr_revoke": Tally(2, 12),
        "gr_expire": Tally(1, 6),
        "gr_rev": Tally(1, 6),
        "gr_unnamed": Tally(1, 6),
    }
    assert purged.not_revived == ()
    assert purged.scrubbed
    assert store.in_force() == policy(2)
    assert store.counts() == {"gr_keep": Tally(1, 6)}
    assert store.live_grants() == (
        LiveGrant("gr_keep", 1),
        LiveGrant("gr_new", 1),
        LiveGrant("gr_rev", 2, "paused"),
    )
    ends = {g: store.tombstoned(g) for g in ("gr_revoke", "gr_expire", "gr_unnamed", "gr_rev")}
    assert ends == {
        "gr_revoke": "revoked",
        "gr_expire": "expired",
        "gr_unnamed": "revoked",
        "gr_rev": None,
    }


def test_nothing_leads_back_from_an_end(store: Store) -> None:
    """Renewed consent has a new grant id."""
    with_grants(store, "gr_a")
    store.end_grants([Tombstone("gr_a", "expired")], 5)

    purged = store.apply_policy(
        policy(2),
        [LiveGrant("gr_a", 9), LiveGrant("gr_b", 1)],
        [Tombstone("gr_a", "revoked"), Tombstone("gr_b", "revoked")],
        6,
    )

    assert purged.not_revived == ("gr_a", "gr_b")
    assert store.live_grants() == ()
    assert store.tombstoned("gr_a") == "expired"
    with pytest.raises(StoreError):
        put(store, "gr_a", rev=9)


def test_an_end_without_a_policy_erases_only_its_grant(store: Store) -> None:
    """Expiry needs no connection."""
    with_grants(store, "gr_a", "gr_b")
    put(store, "gr_a", once=("Vehicle.A",))
    put(store, "gr_b", once=("Vehicle.B",))

    purged = store.end_grants([Tombstone("gr_a", "expired")], 5)

    assert purged.erased == {"gr_a": Tally(1, 6)}
    assert store.counts() == {"gr_b": Tally(1, 6)}
    assert store.once_taken() == {("gr_b", "Vehicle.B")}
    assert store.in_force() == policy(1)


def test_suspending_empties_the_spool_but_buries_nothing(store: Store) -> None:
    """An expired policy is zero grants; a renewed one may name them again."""
    with_grants(store, "gr_a", "gr_b")
    put(store, "gr_a")

    purged = store.suspend(11)

    assert purged.erased == {"gr_a": Tally(1, 6)}
    assert {grant.state for grant in store.live_grants()} == {"pending"}
    store.apply_policy(policy(2), [LiveGrant("gr_a", 1)], [], 0)
    assert put(store, "gr_a") == 2
    assert store.tombstoned("gr_b") == "revoked"


@pytest.mark.parametrize(
    "other", [policy(4), policy(9, epoch=0), policy(5, text="other")], ids=["ver", "epoch", "twin"]
)
def test_a_policy_never_goes_back(store: Store, other: StoredPolicy) -> None:
    """Even where admission should have failed."""
    store.apply_policy(policy(5), [LiveGrant("gr_a", 1)], [], 0)
    put(store, "gr_a")

    with pytest.raises(StoreError, match="expected a newer one"):
        store.apply_policy(other, [], [], 0)

    assert store.in_force() == policy(5)
    assert store.counts() == {"gr_a": Tally(1, 6)}


def test_the_same_policy_may_be_applied_again(store: Store) -> None:
    """A policy that comes twice changes nothing."""
    with_grants(store, "gr_a")
    put(store, "gr_a")

    with_grants(store, "gr_a")

    assert store.counts() == {"gr_a": Tally(1, 6)}
    store.apply_policy(policy(0, epoch=2), [], [], 0)
    assert store.in_force() == policy(0, epoch=2)


def test_the_schemas_alone_keep_the_promise(directory: Path) -> None:
    """No code is needed between a row and its grant: SQLite itself refuses, in either file."""
    with Store.open(directory) as store:
        with_grants(store, "gr_a", "gr_dead")
        store.end_grants([Tombstone("gr_dead", "revoked")], 0)
        put(store, "gr_a")
    db = sqlite3.connect(directory / "spool.db")
    db.execute("PRAGMA foreign_keys = ON")
    row = "INSERT INTO spool VALUES (99, ?, ?, 9, 'r', 0, 0, 1, zeroblob(64), x'00')"

    for grant in (("gr_a", 2), ("gr_none", 1), ("gr_dead", 1)):
        with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
            db.execute(row, grant)
    db.execute("DELETE FROM live_grant WHERE grant_id = 'gr_a'")
    assert db.execute("SELECT count(*) FROM spool").fetchone() == (0,)
    db.close()
    db = sqlite3.connect(directory / "consent.db")
    with pytest.raises(sqlite3.IntegrityError, match="the grant has ended"):
        db.execute("INSERT INTO live_grant VALUES ('gr_dead', 2, 'active', '')")
    db.execute("INSERT INTO tombstone VALUES ('gr_a', 'revoked', 0)")
    assert db.execute("SELECT count(*) FROM live_grant").fetchone() == (0,)
    db.close()


@pytest.mark.parametrize("seed", range(4))
def test_not_twelve_bytes_of_an_erased_envelope_remain_in_the_directory(
    directory: Path, seed: int
) -> None:
    """Erased means erased: in every file, however the pages were rebuilt in between."""
    chance = random.Random(seed)
    gone: list[bytes] = []
    kept: list[bytes] = []
    with Store.open(directory) as store:
        with_grants(store, "gr_a", "gr_b", "gr_c")
        for _ in range(80):
            envelope = chance.randbytes(chance.choice([30, 150, 400, 900, 1100, 2000, 5000]))
            grant_id = chance.choice(["gr_a", "gr_b", "gr_c"])
            put(store, grant_id, envelope, expires_ns=chance.choice([5, NEVER_NS]))
            if chance.random() < 0.2:
                rows = chance.sample(store.pending(100), k=2) if len(store.pending(2)) == 2 else []
                store.delivered([row.row_id for row in rows])
                gone += [row.envelope for row in rows]
            kept.append(envelope)
        gone += [row.envelope for row in store.pending(200) if row.expires_ns == 5]
        store.expire(5)
        gone += [row.envelope for row in store.pending(200) if row.grant_id != "gr_a"]
        assert traces(directory, gone)

        purged = store.apply_policy(
            policy(2),
            [LiveGrant("gr_a", 1), LiveGrant("gr_c", 2)],
            [Tombstone("gr_b", "revoked")],
            0,
        )

        assert purged.scrubbed
        assert traces(directory, gone) == []
        left = [envelope for envelope in kept if envelope not in gone]
        assert sum(tally.envelopes for tally in store.counts().values()) == len(left)
        assert len(traces(directory, left)) == len(left)


@pytest.mark.parametrize("names", [("g", "r"), ("g" * 64, "r" * 64), ("gr_a", "fleet-x")])
def test_no_byte_of_an_envelope_lies_in_a_leaf_page(
    directory: Path, names: tuple[str, str]
) -> None:
    """SQLite does not clear the gaps of leaf pages that it rebuilds; other pages it does."""
    grant_id, recipient = names
    sizes = [*range(3, 1200, 7), 989, 990, 1019, 1020, 1021, 2040, 5000, 16_000, 40_000]
    with Store.open(directory) as store:
        with_grants(store, grant_id)
        for index, size in enumerate(sizes):
            when = 10**18 if index % 2 else 5
            put(store, grant_id, b"\xee" * size, recipient=recipient, created_ns=when)
    data = (directory / "spool.db").read_bytes()
    size_bytes = int.from_bytes(data[16:18])  # SQLite file format, section 1.3
    pages = [data[start : start + size_bytes] for start in range(0, len(data), size_bytes)]

    leaves = [page for page in pages if page[0] == 0x0D]
    assert b"".join(pages).count(0xEE) >= sum(sizes)
    assert len(leaves) > 20
    assert sum(page.count(b"\xee" * 3) for page in leaves) == 0


def test_expired_envelopes_are_erased_and_counted(store: Store, directory: Path) -> None:
    """Retention is kept without a connection."""
    with_grants(store, "gr_a", "gr_b")
    secret = random.Random(1).randbytes(700)
    put(store, "gr_a", secret, expires_ns=10)
    put(store, "gr_b", b"later", expires_ns=11)

    assert store.expire(9) == {}
    assert store.expire(10) == {"gr_a": Tally(1, 700)}
    assert traces(directory, [secret]) == []
    assert store.counts() == {"gr_b": Tally(1, 5)}


def test_counters_rise_over_restarts_and_numbers_are_kept(directory: Path) -> None:
    """The platform accepts only a rising acknowledgement."""
    with Store.open(directory) as store:
        assert [store.next_counter("ack"), store.next_counter("ack")] == [1, 2]
        assert store.number("floor") is None
        store.keep_numbers({"floor": 7, "other": 1})
        store.keep_numbers({"floor": 5})
    with Store.open(directory) as store:
        assert store.next_counter("ack") == 3
        assert store.next_counter("another") == 1
        assert store.number("floor") == 5


def test_once_is_remembered_with_the_envelope_it_came_in(directory: Path) -> None:
    """One sample per path and grant id, over restarts and revs."""
    with Store.open(directory) as store:
        with_grants(store, "gr_a")
        put(store, "gr_a", once=("Vehicle.A", "Vehicle.B"))
        put(store, "gr_a", once=("Vehicle.A",))
        store.apply_policy(policy(2), [LiveGrant("gr_a", 2)], [], 0)
    with Store.open(directory) as store:
        assert store.once_taken() == {("gr_a", "Vehicle.A"), ("gr_a", "Vehicle.B")}


def test_a_second_owner_is_turned_away_until_the_first_is_gone(directory: Path) -> None:
    """Two agents on one spool would number twice."""
    child = """
        import sys
        from pathlib import Path
        from agent.edge.store import Store
        from agent.errors import StoreBusy
        try:
            Store.open(Path(sys.argv[1])).close()
        except StoreBusy as exc:
            print("busy", exc.hint is not None)
        else:
            print("opened")
    """
    with Store.open(directory) as store:
        with pytest.raises(StoreBusy, match="held by another process"):
            Store.open(directory)
        busy, _ = run_child(child, directory).communicate(timeout=30)
        with_grants(store, "gr_a")
    store.close()
    free, _ = run_child(child, directory).communicate(timeout=30)

    assert (busy.strip(), free.strip()) == ("busy True", "opened")


def test_a_directory_that_others_may_enter_is_refused(directory: Path) -> None:
    """Who reads the directory learns when a grant had data."""
    directory.mkdir(mode=0o750)
    directory.chmod(0o750)

    with pytest.raises(StoreError, match="mode 0750, expected 0700") as caught:
        Store.open(directory)

    assert caught.value.hint == f"chmod 0700 {directory}"
    assert list(directory.iterdir()) == []


def test_a_directory_of_another_user_is_refused(directory: Path) -> None:
    """Its owner could put a policy there."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    directory.mkdir(mode=0o700)
    os.chown(directory, 12345, 12345)

    with pytest.raises(StoreError, match="belongs to uid 12345, expected 0") as caught:
        Store.open(directory)

    assert caught.value.hint == "run it as uid 12345", "given to root it is closed to the agent"


@pytest.mark.parametrize("name", ["lock", "reserve", "consent.db", "consent.db-wal"])
def test_a_file_that_others_may_write_or_own_is_refused(directory: Path, name: str) -> None:
    """They could have put a policy there, or stand in the way of the next one."""
    with Store.open(directory) as store:
        with_grants(store, "gr_a")
    file = directory / name
    file.touch(mode=0o600)
    file.chmod(0o666)
    with pytest.raises(StoreError, match=f"{name} has mode 0666, expected 0600") as caught:
        Store.open(directory)
    assert str(caught.value.hint).endswith(f"chmod 0600 {file}")
    file.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(file, 12345, 12345)
        with pytest.raises(StoreError, match=f"{name} belongs to uid 12345, expected 0") as caught:
            Store.open(directory)
        assert caught.value.hint == f"chown 0 {file}"
        os.chown(file, 0, 0)

    with Store.open(directory) as store:
        assert store.in_force() == policy(1)


def test_the_files_are_nobody_elses_whatever_the_umask(directory: Path) -> None:
    before = os.umask(0)
    try:
        with Store.open(directory) as store:
            with_grants(store, "gr_a")
            put(store, "gr_a")
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    finally:
        os.umask(before)

    assert {"consent.db", "consent.db-wal", "spool.db", "spool.db-wal"} < modes.keys()
    assert set(modes.values()) == {0o600}


def test_what_is_no_directory_or_has_no_parent_is_refused(tmp_path: Path) -> None:
    """A clear line, not a traceback."""
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(StoreError, match="is not a directory"):
        Store.open(tmp_path / "file")
    with pytest.raises(StoreError, match="No such file") as caught:
        Store.open(tmp_path / "none" / "state")
    assert caught.value.hint


def test_everything_in_the_directory_is_for_its_owner_only(directory: Path) -> None:
    """Whatever the umask."""
    before = os.umask(0)
    try:
        with Store.open(directory) as store:
            with_grants(store, "gr_a")
            put(store, "gr_a")
            assert directory.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


def filled(directory: Path) -> None:
    with Store.open(directory) as store:
        with_grants(store, "gr_a", "gr_dead")
        store.apply_policy(policy(7), [LiveGrant("gr_a", 1)], [Tombstone("gr_dead", "revoked")], 0)
        for index in range(40):
            put(store, "gr_a", b"%d" % index * 500, once=("Vehicle.A",))
        store.next_counter("ack")


@pytest.mark.parametrize("name", ["consent.db", "spool.db"])
def test_a_file_that_is_no_database_is_set_aside_and_the_agent_goes_on(
    directory: Path, name: str
) -> None:
    """A bad disk must not stop the vehicle's agent for good; the other file is not touched."""
    filled(directory)
    (directory / name).write_bytes(b"\xff" * 100_000)

    with Store.open(directory) as store:
        assert store.set_aside == directory / f"{name}.corrupt-1"
        assert store.set_aside.read_bytes() == b"\xff" * 100_000
        assert (store.in_force() is None) == (name == "consent.db")
        assert store.counts() == {}
        with_grants(store, "gr_a", ver=8)
        assert put(store, "gr_a") > 40, "no number is drawn twice, whichever file is lost"
    with Store.open(directory) as store:
        assert store.set_aside is None
        assert store.live_grants() == (LiveGrant("gr_a", 1),)


CONSTANT = (*range(24), *range(44, 48), *range(56, 60))  # Of a header: the same in all our files.


@pytest.mark.parametrize("at", CONSTANT)
def test_no_bit_of_a_header_brings_back_what_was_revoked(directory: Path, at: int) -> None:
    filled(directory)
    with Store.open(directory) as store:
        store.keep_local_stop(LocalStop("*", "uid 1000", 5))
    with (directory / "consent.db").open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << at % 8]))

    with Store.open(directory) as store:
        assert store.in_force() == policy(7)
        assert store.tombstoned("gr_dead") == "revoked"
        assert store.local_stops() == (LocalStop("*", "uid 1000", 5),)
        assert store.live_grants() == (LiveGrant("gr_a", 1),)
    assert not list(directory.glob("*-copy*"))


@pytest.mark.parametrize("fault", ["magic", "missing"])
def test_a_spool_that_is_lost_goes_on_above_what_it_may_have_drawn_and_says_so(
    directory: Path, fault: str
) -> None:
    """A recipient keeps envelopes apart by grant and number: one that came twice would be lost."""
    filled(directory)
    with Store.open(directory) as store:
        rows = [row.row_id for row in store.pending(99)]
    for path in directory.glob("spool.db*"):
        if fault == "missing":
            path.unlink()
    if fault == "magic":
        with (directory / "spool.db").open("r+b") as file:
            file.write(b"R")

    with Store.open(directory) as store:
        first = put(store, "gr_a")
        store.delivered(rows)  # They were on their way when it was lost; their PUBACK comes late.

        assert first > 40
        assert store.counts()["gr_a"].envelopes == 1
        (gap,) = store.gaps(9)
        assert (gap.grant_id, gap.recipient, gap.why) == ("gr_a", "fleet-x", "damaged")
        assert (gap.first_n, gap.last_n) == (1, first - 1)
    with Store.open(directory) as store:
        assert put(store, "gr_a") == first + 1
        assert len(store.gaps(9)) == 1


def test_numbers_have_no_holes_over_many_marks(directory: Path) -> None:
    drawn = []
    for _ in range(3):
        with Store.open(directory) as store:
            with_grants(store, "gr_a")
            drawn += [put(store, "gr_a") for _ in range(AHEAD // 2)]

    assert drawn == list(range(1, 3 * (AHEAD // 2) + 1))


def test_a_consent_without_marks_gets_them_when_the_new_agent_opens_it(directory: Path) -> None:
    filled(directory)
    db = sqlite3.connect(directory / "consent.db")
    db.executescript("DROP TABLE mark; PRAGMA user_version = 3;")
    db.close()

    with Store.open(directory) as store:
        assert store.in_force() == policy(7)
        assert put(store, "gr_a") == 41
    (directory / "spool.db").unlink()
    with Store.open(directory) as store:
        assert put(store, "gr_a") > 41


def test_a_bad_block_in_the_spool_leaves_policy_tombstones_and_numbers(directory: Path) -> None:
    """The guard against an old policy must not fall with a bad block."""
    filled(directory)
    path = directory / "spool.db"
    db = sqlite3.connect(path)
    (root,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'spool'").fetchone()
    (page_size,) = db.execute("PRAGMA page_size").fetchone()
    db.close()
    with path.open("r+b") as file:
        file.seek((root - 1) * page_size)
        file.write(b"\xa5" * page_size)

    with Store.open(directory) as store:
        assert store.set_aside == directory / "spool.db.corrupt-1"
        assert store.in_force() == policy(7)
        assert store.tombstoned("gr_dead") == "revoked"
        assert store.once_taken() == {("gr_a", "Vehicle.A")}
        assert store.counts() == {}
        assert put(store, "gr_a") == 41
        assert store.next_counter("ack") == 2
        (gap,) = store.gaps(9)
        assert (gap.grant_id, gap.first_n, gap.last_n, gap.why) == ("gr_a", 1, 40, "damaged")
        with pytest.raises(StoreError):
            store.apply_policy(policy(6), [], [], 0)


@pytest.mark.parametrize("name", ["consent.db", "spool.db"])
def test_a_file_is_not_set_aside_while_its_disk_takes_no_other(directory: Path, name: str) -> None:
    """SQLite says the same of a dead disk as of a broken file, and the disk may come back."""
    filled(directory)
    whole = (directory / name).read_bytes()
    (directory / name).write_bytes(b"\xff" * len(whole))
    in_the_way = directory / f"{name}.probe"  # Stands for a disk that takes no file.
    in_the_way.mkdir()

    if name == "consent.db":
        with pytest.raises(StoreError, match="its disk takes no other") as told:
            Store.open(directory)
        assert told.value.hint
        in_the_way.rmdir()
        (directory / name).write_bytes(whole)
    else:
        with Store.open(directory) as store:
            assert store.in_force() == policy(7)
            assert store.counts() == {}
            in_the_way.rmdir()
            (directory / name).write_bytes(whole)
            assert put(store, "gr_a") == 41
            assert store.counts()["gr_a"].envelopes == 41

    with Store.open(directory) as store:
        assert store.set_aside is None
        assert store.in_force() == policy(7)
        assert store.counts()["gr_a"].envelopes >= 40
    assert not list(directory.glob("*.probe"))


def test_a_file_that_can_be_read_again_is_not_set_aside(directory: Path) -> None:
    """Its disk was away, and is back."""
    filled(directory)

    opened = open_file(directory / "spool.db", SPOOL, is_corrupt=True)
    opened.db.close()

    assert opened.set_aside is None
    with Store.open(directory) as store:
        assert store.counts()["gr_a"].envelopes == 40


def test_set_aside_databases_are_few_and_go_with_the_next_erasure(directory: Path) -> None:
    """They may hold envelopes of the grant that ends; nobody can tell."""
    for _ in range(4):
        filled_again = Store.open(directory)
        filled_again.close()
        (directory / "spool.db").write_bytes(b"no database at all" * 100)
    with Store.open(directory) as store:
        names = sorted(path.name for path in directory.glob("*corrupt*"))
        assert names == ["spool.db.corrupt-3", "spool.db.corrupt-4"]
        with_grants(store, "gr_a")
        store.end_grants([Tombstone("gr_a", "revoked")], 0)

        assert list(directory.glob("*corrupt*")) == []


def test_a_state_of_a_newer_agent_is_left_alone(directory: Path) -> None:
    """A downgrade must not eat the state."""
    filled(directory)
    db = sqlite3.connect(directory / "spool.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    before = (directory / "spool.db").read_bytes()

    with pytest.raises(StoreError, match="schema version 99, this agent knows"):
        Store.open(directory)

    assert (directory / "spool.db").read_bytes() == before


KILLED_APPENDING = """
    import sys
    from pathlib import Path
    from agent.edge.store import LiveGrant, Store, StoredPolicy, Tally
    from tests.storing import append
    store = Store.open(Path(sys.argv[1]))
    policy = StoredPolicy(b"j", 1, 1, b"p" * 32, b"c" * 32, 1)
    store.apply_policy(policy, [LiveGrant("g", 1)], [], 0)
    while True:
        n = append(store, "g", 1, recipient="r", created_ns=0, expires_ns=10**18,
                   seal=lambda n: b"%d" % n * 300,
                   once=("Vehicle.P%d" % store.counts().get("g", Tally(0, 0)).envelopes,))
        print(n, flush=True)
"""


def test_what_append_returned_survives_kill_nine(directory: Path) -> None:
    """A committed envelope is there after the process was shot, whole and once."""
    for _ in range(3):
        child = run_child(KILLED_APPENDING, directory)
        assert child.stdout is not None
        printed = [int(child.stdout.readline()) for _ in range(20)]
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read()  # Not `communicate`: that forgets what `readline` has buffered.
        child.communicate(timeout=30)
        last = max([*printed, *map(int, rest.split())])

        with Store.open(directory) as store:
            assert store.set_aside is None
            rows = store.pending(10_000)
            assert [row.n for row in rows] == list(range(1, len(rows) + 1))
            assert len(rows) in (last, last + 1)
            assert all(row.envelope == b"%d" % row.n * 300 for row in rows)
            assert len(store.once_taken()) == len(rows)


KILLED_APPLYING = """
    import sys
    from pathlib import Path
    from agent.edge.store import LiveGrant, Store, StoredPolicy, Tombstone
    from tests.storing import append
    store = Store.open(Path(sys.argv[1]))
    before = store.in_force()
    ver = before.ver if before else 0
    while True:
        ver += 1
        policy = StoredPolicy(b"%d" % ver, 1, ver, b"%d" % ver, b"c" * 32, ver)
        store.apply_policy(policy, [LiveGrant(f"g{ver}", ver), LiveGrant("same", 1)],
                           [Tombstone(f"x{ver}", "revoked")], ver)
        for grant, rev in ((f"g{ver}", ver), ("same", 1)):
            append(store, grant, rev, recipient="r", created_ns=0, expires_ns=10**18,
                   seal=lambda n: b"%d" % ver * 2000)
        print(ver, flush=True)
"""


def test_kill_nine_leaves_the_old_policy_or_the_new_one_never_a_mix(directory: Path) -> None:
    """Policy, grants, tombstones and rows are of one version."""
    for shot in range(5):
        child = run_child(KILLED_APPLYING, directory)
        assert child.stdout is not None
        printed = [int(child.stdout.readline()) for _ in range(3 + shot)]
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read()  # Not `communicate`: that forgets what `readline` has buffered.
        child.communicate(timeout=30)
        last = max([*printed, *map(int, rest.split())])

        with Store.open(directory) as store:
            found = store.in_force()
            assert found is not None
            ver = found.ver
            assert ver in (last, last + 1)
            assert found.jws == b"%d" % ver
            assert store.live_grants() == (LiveGrant(f"g{ver}", ver), LiveGrant("same", 1))
            assert store.tombstoned(f"x{ver}") == "revoked"
            assert store.tombstoned(f"x{ver + 1}") is None
            assert store.tombstoned(f"g{ver - 1}") == "revoked"
            assert set(store.counts()) <= {f"g{ver}", "same"}


ON_A_FULL_DISK = """
    import os, sys
    from pathlib import Path
    from agent.edge.store import LiveGrant, Store, StoredPolicy, Tombstone
    from tests.storing import append
    from agent.errors import StoreError
    def policy(ver):
        return StoredPolicy(b"j" * 20_000, 1, ver, b"%d" % ver * 32, b"c" * 32, ver)
    root = Path(sys.argv[1])
    os.umask(0o077)
    store = Store.open(root / "state")
    store.apply_policy(policy(1), [LiveGrant("a", 1), LiveGrant("b", 1)], [], 0)
    for kept in range(900):
        append(store, "ab"[kept % 2], 1, recipient="r", created_ns=0, expires_ns=10**18,
               seal=lambda n: os.urandom(20_000))
    try:
        with (root / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        pass
    rows = store.pending(10_000)
    newest = {name: max(r.n for r in rows if r.grant_id == name) for name in "ab"}
    print("kept", 100 < len(rows) < 900, newest)
    gone = [(g.grant_id, g.first_n, g.why) for g in store.gaps(9)]
    print("told", gone, sum(g.last_n for g in store.gaps(9)) == 900 - len(rows))
    waits = {name: t.envelopes for name, t in store.counts().items()}
    print("counter", store.next_counter("ack"))
    live, ended = [LiveGrant("a", 1)], [Tombstone("b", "revoked")]
    purged = store.apply_policy(policy(2), live, ended, 0)
    is_all = purged.erased["b"].envelopes == waits["b"]
    print("purged", list(purged.erased), is_all, purged.scrubbed)
    print("in force", store.in_force().ver, store.tombstoned("b"))
    rows = store.pending(10_000)
    print("others", {row.grant_id for row in rows}, len(rows) == waits["a"])
    store.close()
    with Store.open(root / "state") as store:
        print("again", store.in_force().ver, store.set_aside, list(store.counts()))
"""


def test_on_a_full_disk_the_newest_is_kept_and_a_revocation_takes_effect(tmp_path: Path) -> None:
    """On a real file system without a free byte."""
    if shutil.which("unshare") is None:
        pytest.skip("a small file system of one's own needs unshare")
    code = f"import sys; sys.argv = ['-c', {str(tmp_path)!r}]\n" + textwrap.dedent(ON_A_FULL_DISK)
    mount = 'mount -t tmpfs -o size=16m tmpfs "$1" && exec "$2" -c "$3"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0 and "unshare:" in done.stderr + done.stdout:
        pytest.skip("a small file system of one's own needs user namespaces")

    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "kept True {'a': 450, 'b': 450}",
        "told [('a', 1, 'evicted'), ('b', 1, 'evicted')] True",
        "counter 1",
        "purged ['b'] True True",
        "in force 2 revoked",
        "others {'a'} True",
        "again 2 None ['a']",
    ]


class StoreModel(RuleBasedStateMachine):
    """The store against a model of a few dictionaries, with restarts in between."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.where = Path(self.folder.name) / "state"
        self.store = Store.open(self.where)
        self.ver = 0
        self.live: dict[str, tuple[int, GrantState]] = {}
        self.dead: dict[str, EndState] = {}
        self.last: dict[str, int] = {}
        self.rows: list[tuple[str, int, int, bytes]] = []

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @rule(
        live=st.dictionaries(GRANTS, st.tuples(REVS, st.sampled_from(GRANT_STATES)), max_size=4),
        ended=st.dictionaries(GRANTS, st.sampled_from(END_STATES), max_size=2),
    )
    def apply(self, live: dict[str, tuple[int, GrantState]], ended: dict[str, EndState]) -> None:
        self.ver += 1
        purged = self.store.apply_policy(
            policy(self.ver),
            [LiveGrant(grant_id, rev, state) for grant_id, (rev, state) in live.items()],
            [Tombstone(grant_id, state) for grant_id, state in ended.items()],
            self.ver,
        )

        unnamed: dict[str, EndState] = dict.fromkeys(set(self.live) - set(live), "revoked")
        self.dead = unnamed | ended | self.dead
        self.live = {grant_id: live[grant_id] for grant_id in set(live) - set(self.dead)}
        assert set(purged.not_revived) == set(live) & set(self.dead)
        self._forget()

    @rule(grant_id=GRANTS, state=st.sampled_from(END_STATES))
    def end(self, grant_id: str, state: EndState) -> None:
        self.store.end_grants([Tombstone(grant_id, state)], 0)

        self.dead.setdefault(grant_id, state)
        self.live.pop(grant_id, None)
        self._forget()

    @rule(grant_id=GRANTS, rev=REVS, envelope=st.binary(min_size=1, max_size=5))
    def append(self, grant_id: str, rev: int, envelope: bytes) -> None:
        try:
            n = put(self.store, grant_id, envelope, rev=rev)
        except StoreError:
            assert self.live.get(grant_id) != (rev, "active")
            return
        assert self.live[grant_id] == (rev, "active")
        self.last[grant_id] = self.last.get(grant_id, 0) + 1
        assert n == self.last[grant_id]
        self.rows.append((grant_id, rev, n, envelope))

    @rule(count=st.integers(0, 3))
    def deliver(self, count: int) -> None:
        rows = self.store.pending(count)
        self.store.delivered([row.row_id for row in rows])
        for row in rows:
            self.rows.remove((row.grant_id, row.rev, row.n, row.envelope))

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = Store.open(self.where)

    @invariant()
    def agrees(self) -> None:
        offered = [(r.grant_id, r.rev, r.n, r.envelope) for r in self.store.pending(1000)]
        assert offered == [row for row in self.rows if self.live[row[0]][1] == "active"]
        stored = {grant.grant_id: (grant.rev, grant.state) for grant in self.store.live_grants()}
        assert stored == self.live
        assert {g: e for g in "abcd" if (e := self.store.tombstoned(g))} == self.dead
        sizes: dict[str, list[int]] = {}
        for row in self.rows:
            sizes.setdefault(row[0], []).append(len(row[3]))
        assert self.store.counts() == {g: Tally(len(s), sum(s)) for g, s in sizes.items()}

    def _forget(self) -> None:
        live = {(grant_id, rev) for grant_id, (rev, _) in self.live.items()}
        self.rows = [row for row in self.rows if row[:2] in live]


TestStoreModel = StoreModel.TestCase
TestStoreModel.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
