"""The spool's limits, its gaps, and that it follows the consent whatever happens to it."""

import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent.core.model import NS_PER_S
from agent.edge.store import (
    ClassLimit,
    Kept,
    LiveGrant,
    NewEnvelope,
    SpoolLimits,
    Store,
    StoredPolicy,
    Tally,
    Tombstone,
    grants,
)
from agent.edge.store.database import Database
from agent.edge.store.directory import StateDirectory
from agent.edge.store.tables import CONSENT
from agent.errors import StoreError
from tests.unit.edge.test_store import policy, put, traces, with_grants


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def store(directory: Path) -> Iterator[Store]:
    with Store.open(directory) as opened:
        yield opened


def numbers(store: Store) -> list[tuple[str, int]]:
    return [(row.grant_id, row.n) for row in store.pending(999)]


def noted(store: Store) -> list[tuple[str, int, int, str]]:
    return [(gap.grant_id, gap.first_n, gap.last_n, gap.why) for gap in store.gaps(999)]


def classed(store: Store, *, ver: int = 1, **classes: str) -> None:
    live = [LiveGrant(name, 1, classes=(found,)) for name, found in sorted(classes.items())]
    store.apply_policy(policy(ver), live, [], 0)


def test_a_full_spool_lets_its_oldest_go_and_notes_the_gap(directory: Path) -> None:
    """The newest data counts; what went is told, as one record for a long outage."""
    with Store.open(directory, limits=SpoolLimits(max_bytes=100)) as store:
        with_grants(store, "gr_a", "gr_b")
        for _ in range(5):
            assert put(store, "gr_a", b"x" * 40)
        assert numbers(store) == [("gr_a", 4), ("gr_a", 5)]
        put(store, "gr_b", b"x" * 60)

        assert numbers(store) == [("gr_a", 5), ("gr_b", 1)]
        assert store.counts() == {"gr_a": Tally(1, 40), "gr_b": Tally(1, 60)}
        assert store.take_evicted() == {"gr_a": Tally(4, 160)}
        assert store.take_evicted() == {}
    with Store.open(directory, limits=SpoolLimits(max_bytes=100)) as store:
        put(store, "gr_b", b"x" * 99)
        assert numbers(store) == [("gr_b", 2)]
        assert noted(store) == [("gr_a", 1, 5, "evicted"), ("gr_b", 1, 1, "evicted")]


def test_an_envelope_that_no_other_may_go_for_is_a_gap_itself(directory: Path) -> None:
    """Its number is used, or the receiver could not tell it from one that never was."""
    with Store.open(directory, limits=SpoolLimits(max_bytes=100)) as store:
        with_grants(store, "gr_a")
        assert put(store, "gr_a", b"x" * 101) == 1
        assert store.take_evicted() == {"gr_a": Tally(1, 101)}
        assert put(store, "gr_a", b"x" * 100) == 2

        assert numbers(store) == [("gr_a", 2)]
        assert noted(store) == [("gr_a", 1, 1, "evicted")]


def test_nothing_goes_for_an_envelope_that_does_not_fit_then_either(directory: Path) -> None:
    """Neither one that is longer than the limit, nor one that must leave others where they are."""
    limits = SpoolLimits(
        max_bytes=100,
        evict_first=("location", "usage", "identity"),
        classes={"cabin": ClassLimit(max_bytes=30)},
    )
    with Store.open(directory, limits=limits) as store:
        classed(store, gr_l="location", gr_u="usage", gr_i="identity", gr_x="cabin")
        for grant_id in ("gr_l", "gr_l", "gr_i", "gr_u", "gr_x"):
            put(store, grant_id, b"x" * 20)
        waiting = numbers(store)

        for grant_id, size in (("gr_i", 101), ("gr_u", 81), ("gr_l", 61), ("gr_x", 31)):
            put(store, grant_id, b"x" * size)
            assert numbers(store) == waiting, grant_id
        put(store, "gr_u", b"x" * 80)

        assert numbers(store) == [("gr_i", 1), ("gr_u", 3)]


def test_classes_go_in_the_order_of_the_configuration(directory: Path) -> None:
    """Then by age; what is worth more never goes for what is worth less."""
    limits = SpoolLimits(max_bytes=100, evict_first=("location", "usage"))
    with Store.open(directory, limits=limits) as store:
        classed(store, gr_l="location", gr_u="usage", gr_x="other")
        for grant_id in ("gr_u", "gr_l", "gr_x", "gr_l"):
            put(store, grant_id, b"x" * 25)
        put(store, "gr_u", b"x" * 50)
        assert numbers(store) == [("gr_u", 1), ("gr_l", 2), ("gr_u", 2)]
        put(store, "gr_u", b"x" * 25)
        assert numbers(store) == [("gr_u", 1), ("gr_u", 2), ("gr_u", 3)]
        put(store, "gr_l", b"x" * 25)

        assert numbers(store) == [("gr_u", 1), ("gr_u", 2), ("gr_u", 3)]
        assert set(noted(store)) == {("gr_x", 1, 1, "evicted"), ("gr_l", 1, 3, "evicted")}


def test_a_class_has_limits_of_its_own(directory: Path) -> None:
    """In bytes and in age, beside those of all; a grant of two classes obeys both."""
    classes = {"location": ClassLimit(max_bytes=50, max_age_s=10)}
    with Store.open(directory, limits=SpoolLimits(max_age_s=100, classes=classes)) as store:
        live = [LiveGrant("gr_l", 1, classes=("location", "usage")), LiveGrant("gr_u", 1)]
        store.apply_policy(policy(1), live, [], 0)
        put(store, "gr_u", b"x" * 500, created_ns=0)
        for _ in range(3):
            put(store, "gr_l", b"x" * 25, created_ns=0)

        assert numbers(store) == [("gr_u", 1), ("gr_l", 2), ("gr_l", 3)]
        assert store.expire(10 * NS_PER_S) == {"gr_l": Tally(2, 50)}
        assert store.expire(99 * NS_PER_S) == {}
        assert store.expire(100 * NS_PER_S) == {"gr_u": Tally(1, 500)}
        assert noted(store) == [
            ("gr_l", 1, 1, "evicted"),
            ("gr_l", 2, 3, "expired"),
            ("gr_u", 1, 1, "expired"),
        ]


def test_room_is_left_to_others_on_the_disk(directory: Path) -> None:
    """One envelope goes for one that comes; a disk that others filled does not empty the spool."""
    with Store.open(directory) as store:
        with_grants(store, "gr_a")
        for _ in range(10):
            put(store, "gr_a", b"x" * 100)
    with Store.open(directory, limits=SpoolLimits(min_free_bytes=1 << 60)) as store:
        put(store, "gr_a", b"x" * 100)

        assert numbers(store) == [("gr_a", n) for n in range(2, 12)]


def test_what_is_free_in_the_file_is_used_before_others_give_way(directory: Path) -> None:
    """After an outage the file has pages enough, though the disk has not."""
    with Store.open(directory) as store:
        with_grants(store, "gr_a")
        for _ in range(30):
            put(store, "gr_a", b"x" * 3000)
        store.delivered([row.row_id for row in store.pending(20)])
    with Store.open(directory, limits=SpoolLimits(min_free_bytes=1 << 60)) as store:
        for _ in range(18):
            put(store, "gr_a", b"x" * 3000)
        assert numbers(store) == [("gr_a", n) for n in range(21, 49)]
        size = (directory / "spool.db").stat().st_size
        for _ in range(30):
            put(store, "gr_a", b"x" * 3000)
        store.scrub()

        assert len(numbers(store)) == 30 - 1
        assert (directory / "spool.db").stat().st_size == size


@contextmanager
def no_room() -> Iterator[None]:
    """Let no file of this process be written, which SQLite reports as it does a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_full_disk_refuses_altogether_is_a_gap_as_soon_as_one_can_be_noted(
    store: Store, directory: Path
) -> None:
    """Of a grant that has ended meanwhile no number was drawn, so none is missing."""
    with_grants(store, "gr_a", "gr_b", "gr_c")
    for name in ("gr_a", "gr_b", "gr_c"):
        put(store, name)
    with no_room():
        for name in ("gr_a", "gr_a", "gr_b", "gr_c"):
            with pytest.raises(StoreError, match=r"SQLITE_(FULL|IOERR_WRITE)"):
                put(store, name, created_ns=7)
        assert store.expire(8) == {}
    assert noted(store) == []
    assert put(store, "gr_b") == 3
    store.end_grants([Tombstone("gr_c", "expired")], 9)

    store.expire(10)

    evicted = [gap for gap in store.gaps(9) if gap.why == "evicted"]
    assert [(g.grant_id, g.first_n, g.last_n, g.at_ns) for g in evicted] == [
        *(("gr_b", 2, 2, 7), ("gr_a", 2, 3, 7))
    ]
    store.close()
    with Store.open(directory) as again:
        assert [put(again, name) for name in ("gr_a", "gr_b")] == [4, 4]


def test_no_limit_is_no_eviction(store: Store) -> None:
    """What the disk allows."""
    with_grants(store, "gr_a")
    for _ in range(50):
        put(store, "gr_a", b"x" * 100)

    assert len(numbers(store)) == 50
    assert store.gaps(9) == ()


def test_a_gap_is_kept_until_it_was_told_and_then_grows_no_more(directory: Path) -> None:
    """Ids below zero go the way of rows; another of its kind begins behind it."""
    with Store.open(directory) as store:
        with_grants(store, "gr_a")
        for _ in range(3):
            put(store, "gr_a", expires_ns=5)
        store.expire(5)
    with Store.open(directory) as store:
        (gap,) = store.gaps(9)
        assert gap.gap_id < 0
        assert store.gaps(9, exclude={gap.gap_id}) == ()
        put(store, "gr_a", expires_ns=6)
        store.expire(6)
        assert noted(store) == [("gr_a", 1, 3, "expired"), ("gr_a", 4, 4, "expired")]
        assert store.delivered([gap.gap_id]) == {}
        assert noted(store) == [("gr_a", 4, 4, "expired")]


def test_the_end_of_a_grant_leaves_a_gap_for_its_recipient_and_nothing_else(
    directory: Path,
) -> None:
    """Erased is told from lost; of the envelopes there is no trace."""
    secret = random.Random(3).randbytes(300)
    with Store.open(directory) as store:
        with_grants(store, "gr_a", "gr_b")
        for _ in range(4):
            put(store, "gr_a", secret)
        store.delivered([row.row_id for row in store.pending(1)])
        put(store, "gr_b")

        store.end_grants([Tombstone("gr_a", "revoked")], 9)

        (gap,) = store.gaps(9)
        assert (gap.grant_id, gap.recipient, gap.first_n, gap.last_n) == ("gr_a", "fleet-x", 2, 4)
        assert (gap.why, gap.at_ns) == ("erased", 9)
        assert traces(directory, [secret]) == []
        store.suspend(11)
        assert noted(store)[1:] == [("gr_b", 1, 1, "erased")]


def test_every_number_is_an_envelope_or_in_a_gap(directory: Path) -> None:
    """Whatever happens, in whatever order."""
    for seed in range(2):
        chance = random.Random(seed)
        where = directory.parent / f"state{seed}"
        seen: set[tuple[str, int]] = set()
        told: set[tuple[str, int]] = set()
        drawn: set[tuple[str, int]] = set()
        store = Store.open(where, limits=SpoolLimits(max_bytes=600))
        with_grants(store, "gr_a", "gr_b")
        now_ns, rev = 0, 1
        for now_ns in range(1, 100):
            grant_id = chance.choice(["gr_a", "gr_b"])
            grant_rev = rev if grant_id == "gr_a" else 1
            match chance.choice("aaaaaadegrv"):
                case "a":
                    size = chance.randrange(1, 150)
                    about = {"rev": grant_rev, "expires_ns": now_ns + chance.randrange(1, 40)}
                    drawn.add((grant_id, put(store, grant_id, bytes(size), **about)))
                case "d":
                    rows = store.pending(chance.randrange(3))
                    store.delivered([row.row_id for row in rows])
                    seen |= {(row.grant_id, row.n) for row in rows}
                case "e":
                    store.expire(now_ns)
                case "g":
                    gaps = store.gaps(2)
                    store.delivered([gap.gap_id for gap in gaps])
                    told |= {(g.grant_id, n) for g in gaps for n in range(g.first_n, g.last_n + 1)}
                case "r":
                    store.close()
                    store = Store.open(where, limits=SpoolLimits(max_bytes=600))
                case "v":
                    rev += 1
                    live = [LiveGrant("gr_a", rev), LiveGrant("gr_b", 1)]
                    store.apply_policy(policy(rev), live, [], 0)
        waits = {(row.grant_id, row.n) for row in store.pending(999)}
        told |= {(g.grant_id, n) for g in store.gaps(999) for n in range(g.first_n, g.last_n + 1)}
        store.close()

        assert drawn == seen | told | waits
        assert not waits & told


def behind(directory: Path, live: list[LiveGrant], ended: list[Tombstone], ver: int) -> None:
    """Write consent alone, as a process does that is killed before the spool has followed."""
    held = StateDirectory(directory)
    db = Database(held, "consent.db", CONSENT)
    new = StoredPolicy(b"new", 1, ver, b"n" * 32, b"c" * 32, ver)
    with db.transaction():
        grants.replace(db, new, live, ended, 5)
    db.close()
    held.close()


def test_a_crash_between_the_two_files_ends_in_the_new_policy(directory: Path) -> None:
    """The spool follows when it is opened, before anything else."""
    secret = random.Random(2).randbytes(400)
    with Store.open(directory) as store:
        with_grants(store, "gr_a", "gr_b", "gr_c", "gr_d")
        for grant_id in ("gr_a", "gr_b", "gr_c", "gr_d"):
            put(store, grant_id, secret if grant_id in ("gr_a", "gr_b") else b"other")
    live = [LiveGrant("gr_b", 2), LiveGrant("gr_c", 1, "paused"), LiveGrant("gr_d", 1)]
    behind(directory, live, [Tombstone("gr_a", "revoked")], 2)

    with Store.open(directory) as store:
        assert store.counts() == {"gr_c": Tally(1, 5), "gr_d": Tally(1, 5)}
        assert numbers(store) == [("gr_d", 1)]
        assert traces(directory, [secret]) == []
        assert put(store, "gr_b", rev=2) == 2
        assert {(gap.why, gap.at_ns) for gap in store.gaps(9)} == {("erased", 2)}


def damage(directory: Path) -> None:
    """Destroy the pages behind the first one while the store is open."""
    path = directory / "spool.db"
    with path.open("r+b") as file:
        file.seek(1024)
        file.write(b"\xa5" * (path.stat().st_size - 1024))


def test_a_spool_that_breaks_does_not_hinder_a_revocation(directory: Path) -> None:
    """It is set aside, and goes with the erasure: nobody can say whose envelopes lie in it."""
    secret = random.Random(2).randbytes(400)
    with Store.open(directory) as store:
        with_grants(store, "gr_a", "gr_b")
        for _ in range(40):
            put(store, "gr_a", secret)
            put(store, "gr_b", secret)
        store.scrub()
        damage(directory)
        store._spool.spool._db.rows("PRAGMA shrink_memory")  # type: ignore[union-attr] # drops its cache

        purged = store.apply_policy(
            policy(2), [LiveGrant("gr_b", 1)], [Tombstone("gr_a", "revoked")], 0
        )

        assert store.tombstoned("gr_a") == "revoked"
        assert purged.scrubbed
        assert list(directory.glob("*corrupt*")) == []
        assert traces(directory, [secret]) == []
        assert put(store, "gr_b") >= 1
        with pytest.raises(StoreError, match="not live"):
            put(store, "gr_a")


@pytest.mark.parametrize("broken", ["a folder in its place", "no way to open it"])
def test_without_a_spool_the_consent_still_works(directory: Path, broken: str) -> None:
    """Refusing, revoking and pausing need no spool; it comes back by itself."""
    with Store.open(directory) as store:
        with_grants(store, "gr_a", "gr_b")
        put(store, "gr_a")
    kept = directory.parent / "kept"
    (directory / "spool.db").rename(kept)
    (directory / "spool.db").mkdir()
    with Store.open(directory) as store:
        assert store.in_force() == policy(1)
        assert store.pending(9) == ()
        assert store.gaps(9) == ()
        assert store.expire(1 << 61) == {}
        with pytest.raises(StoreError, match="the spool cannot be used"):
            store.delivered([1])
        with pytest.raises(StoreError, match="the spool cannot be used"):
            put(store, "gr_a")
        purged = store.apply_policy(
            policy(2), [LiveGrant("gr_b", 1)], [Tombstone("gr_a", "revoked")], 0
        )
        assert not purged.scrubbed
        store.set_grant_state("gr_b", "paused")
        assert store.next_counter("ack") == 1
        (directory / "spool.db").rmdir()
        if broken == "a folder in its place":
            kept.rename(directory / "spool.db")

        assert store.scrub()
        store.set_grant_state("gr_b", "active")
        assert store.counts() == {}
        assert put(store, "gr_b") == 1


def test_a_spool_that_others_may_write_is_not_used_until_it_is_put_right(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The consent works; what to do is said."""
    with Store.open(directory) as store:
        with_grants(store, "gr_a", "gr_b")
        put(store, "gr_b")
    (directory / "spool.db").chmod(0o666)
    with Store.open(directory) as store:
        with pytest.raises(StoreError, match=r"spool\.db has mode 0666, expected 0600"):
            put(store, "gr_a")
        store.end_grants([Tombstone("gr_a", "revoked")], 0)
        assert store.tombstoned("gr_a") == "revoked"
        (record,) = caplog.records
        assert f"chmod 0600 {directory / 'spool.db'}" in record.__dict__["hint"]
        (directory / "spool.db").chmod(0o600)

        assert numbers(store) == [("gr_b", 1)]


def test_a_grant_with_many_envelopes_does_not_starve_another(store: Store) -> None:
    """Each has its share of what may be sent; one that may not be sent now has none."""
    with_grants(store, "gr_a", "gr_b", "gr_c")
    for _ in range(50):
        put(store, "gr_a")
    put(store, "gr_b")
    put(store, "gr_c")

    assert [row.grant_id for row in store.pending(6)] == ["gr_a"] * 4 + ["gr_b", "gr_c"]
    assert {row.grant_id for row in store.pending(6, without={"gr_a"})} == {"gr_b", "gr_c"}


def test_the_newest_may_go_first(directory: Path) -> None:
    """Where the present counts more than the past."""
    with Store.open(directory, newest_first=True) as store:
        with_grants(store, "gr_a")
        for index in range(5):
            put(store, "gr_a", b"%d" % index)

        assert [row.envelope for row in store.pending(3)] == [b"4", b"3", b"2"]


@pytest.mark.parametrize(("max_bytes", "pages"), [(None, 7), (20 * 500, 9)])
def test_an_append_is_one_commit_of_few_pages(
    directory: Path, max_bytes: int | None, pages: int
) -> None:
    """Flash wears by what is written: six pages of 1 KiB for a short envelope, more when full."""
    with Store.open(directory, limits=SpoolLimits(max_bytes=max_bytes)) as store:
        with_grants(store, "gr_a")
        for _ in range(20):
            put(store, "gr_a", bytes(500))
        store.scrub()
        for _ in range(20):
            put(store, "gr_a", bytes(500))
        spool = store._spool.spool
        assert spool is not None
        ((_, frames, _),) = spool._db.rows("PRAGMA wal_checkpoint")

        assert frames / 20 < pages
        assert (directory / "consent.db-wal").stat().st_size == 0


def test_what_closes_together_is_one_commit(directory: Path) -> None:
    """The pages that every commit writes are written once for all of them."""
    with Store.open(directory) as store:
        with_grants(store, "gr_a", "gr_b")
        put_together(store, "gr_a", "gr_b")
        store.scrub()
        kept = put_together(store, *["gr_a", "gr_b"] * 8)
        log = (directory / "spool.db-wal").read_bytes().rstrip(bytes(1))

    commits = [log[at + 4 : at + 8] for at in range(32, len(log), 1024 + 24)]
    assert sum(size != bytes(4) for size in commits) == 1, "SQLite's file format, section 4.1"
    assert len(log) / 16 < 2 * (1024 + 24)
    assert [found.n for found in kept if isinstance(found, Kept)] == [
        n for n in range(2, 10) for _ in "ab"
    ]


def test_what_cannot_be_kept_does_not_take_the_others_with_it(store: Store) -> None:
    """Each is tried by itself then; numbers have no holes all the same."""
    with_grants(store, "gr_a", "gr_b")

    first, gone, third = put_together(store, "gr_a", "gr_c", "gr_b")

    assert (first, third) == (Kept(1, 500), Kept(1, 500))
    assert isinstance(gone, StoreError)
    assert "gr_c rev 1 is not live" in gone.message
    assert put(store, "gr_a") == 2


def test_of_what_comes_together_nothing_is_kept_when_a_seal_fails(directory: Path) -> None:
    """Neither on disk nor in what is counted; what gave way for it is back."""

    def fails(_: int) -> bytes:
        raise RuntimeError("no key")

    with Store.open(directory, limits=SpoolLimits(max_bytes=1000)) as store:
        with_grants(store, "gr_a")
        put(store, "gr_a", bytes(900))
        with pytest.raises(RuntimeError, match="no key"):
            store.append_all([new("gr_a"), replace(new("gr_a"), seal=fails)])
        counted = store.counts()
        rows = [(row.n, len(row.envelope)) for row in store.pending(9)]
        evicted = store.take_evicted()

    assert counted == {"gr_a": Tally(1, 900)}
    assert rows == [(1, 900)]
    assert evicted == {}


def test_what_comes_together_has_no_more_room_than_one_by_one(directory: Path) -> None:
    """The later ones see what the earlier ones took."""
    with Store.open(directory, limits=SpoolLimits(max_bytes=1100)) as store:
        with_grants(store, "gr_a")
        put_together(store, *["gr_a"] * 5)

        assert numbers(store) == [("gr_a", 4), ("gr_a", 5)]
        assert noted(store) == [("gr_a", 1, 3, "evicted")]
        assert store.take_evicted() == {"gr_a": Tally(3, 1500)}


def new(grant_id: str) -> NewEnvelope:
    return NewEnvelope(grant_id, 1, "fleet-x", 1, 10**18, seal=lambda _: bytes(500))


def put_together(store: Store, *grant_ids: str) -> list[Kept | StoreError]:
    return store.append_all([new(grant_id) for grant_id in grant_ids])
