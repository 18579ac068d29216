"""Erasing while grants live: the policy has expired, somebody at the vehicle asks; and looking."""

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.core.model import NS_PER_S
from agent.edge.store import (
    FLOOR_NS,
    ClassLimit,
    LiveGrant,
    Purged,
    SpoolLimits,
    SpoolTally,
    Store,
    Tally,
    Tombstone,
)
from agent.errors import StoreError
from tests.unit.edge.test_store import NEVER_NS, filled, policy, put, traces, with_grants
from tests.unit.edge.test_store_spool import damage

SECRET = bytes(range(200))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def store(directory: Path) -> Iterator[Store]:
    with Store.open(directory) as opened:
        yield opened


def noted(store: Store) -> list[tuple[str, int, int, str, int]]:
    return [(g.grant_id, g.first_n, g.last_n, g.why, g.at_ns) for g in store.gaps(99)]


def test_what_an_expired_policy_left_is_erased_each_time_and_without_traces(
    store: Store, directory: Path
) -> None:
    """Each time another generation: a spool that missed one must notice that it did."""
    with_grants(store, "gr_a")

    for ver in (2, 3, 4):
        put(store, "gr_a", SECRET)

        purged = store.suspend(7)

        assert purged == Purged(erased={"gr_a": Tally(1, 200)}, scrubbed=True)
        assert traces(directory, [SECRET]) == []
        assert store.number("spool_erasures") == ver - 1
        store.apply_policy(policy(ver), [LiveGrant("gr_a", 1)], [], 0)


def test_suspending_twice_changes_nothing_the_second_time(store: Store) -> None:
    with_grants(store, "gr_a")
    store.suspend(7)

    assert store.suspend(7) == Purged()
    assert store.number("spool_erasures") == 1


def test_the_record_of_a_gap_bears_the_time_of_what_made_it(store: Store) -> None:
    """Its recipient is told when consent ended, never 1970."""
    with_grants(store, "gr_a", "gr_b", "gr_c")
    for grant_id in ("gr_a", "gr_b", "gr_c"):
        put(store, grant_id)

    store.end_grants([Tombstone("gr_a", "expired")], 30)
    store.apply_policy(policy(2), [LiveGrant("gr_b", 2), LiveGrant("gr_c", 1)], [], 40)
    store.suspend(50)

    assert noted(store) == [
        ("gr_a", 1, 1, "erased", 30),
        ("gr_b", 1, 1, "erased", 40),
        ("gr_c", 1, 1, "erased", 50),
    ]


def test_a_lower_time_counts_after_a_clock_that_was_wrong(store: Store) -> None:
    """What a policy of a higher epoch has lowered."""
    with_grants(store, "gr_a", "gr_b")
    put(store, "gr_a")
    store.keep_numbers({FLOOR_NS: 900})
    store.end_grants([Tombstone("gr_b", "expired")], 900)

    store.apply_policy(policy(1, epoch=2), [], [], 40, numbers={FLOOR_NS: 30})

    assert noted(store) == [("gr_a", 1, 1, "erased", 40)]


@pytest.mark.parametrize(
    ("numbers", "at_ns"),
    [({}, 60), ({FLOOR_NS: 75}, 75)],
    ids=["of the suspension", "that the clock came to since"],
)
def test_a_spool_that_follows_late_notes_the_latest_time_on_disk(
    directory: Path, numbers: dict[str, int], at_ns: int
) -> None:
    with Store.open(directory) as store:
        with_grants(store, "gr_a")
        put(store, "gr_a")
    kept = directory.parent / "kept"
    (directory / "spool.db").rename(kept)
    (directory / "spool.db").mkdir()
    with Store.open(directory) as store:
        store.suspend(60)
        store.keep_numbers(numbers)
        (directory / "spool.db").rmdir()
        kept.rename(directory / "spool.db")

        assert noted(store) == [("gr_a", 1, 1, "erased", at_ns)]


def test_where_consent_was_lost_with_all_that_it_knew_of_time_the_newest_envelope_tells_it(
    store: Store, directory: Path
) -> None:
    with_grants(store, "gr_a")
    put(store, "gr_a", created_ns=70)
    put(store, "gr_a", created_ns=80)
    store.close()
    (directory / "consent.db").unlink()

    with Store.open(directory) as begun:
        assert noted(begun) == [("gr_a", 1, 2, "erased", 80)]


def test_what_may_be_lost_with_a_damaged_spool_bears_the_latest_time_on_disk(
    directory: Path,
) -> None:
    filled(directory)
    with Store.open(directory) as store:
        store.keep_numbers({FLOOR_NS: 88})
    with (directory / "spool.db").open("r+b") as file:
        file.write(b"\xa5" * 4096)

    with Store.open(directory) as store:
        assert {(gap.why, gap.at_ns) for gap in store.gaps(9)} == {("damaged", 88)}


@pytest.mark.parametrize("state", ["active", "paused"])
def test_suspending_makes_grants_pending_though_nothing_waits(store: Store, state: str) -> None:
    with_grants(store, "gr_a", "gr_b")
    store.set_grant_state("gr_a", state)  # type: ignore[arg-type] # drawn
    store.set_grant_state("gr_b", "pending")

    store.suspend(7)

    assert [grant.state for grant in store.live_grants()] == ["pending"] * 2


def test_suspending_empties_the_spool_of_grants_that_pend_already(store: Store) -> None:
    with_grants(store, "gr_a")
    put(store, "gr_a")
    store.set_grant_state("gr_a", "pending")

    assert store.suspend(7).erased == {"gr_a": Tally(1, 6)}
    assert store.counts() == {}


def test_a_spool_set_aside_goes_with_an_erasure_under_living_grants(directory: Path) -> None:
    filled(directory)
    with (directory / "spool.db").open("r+b") as file:
        file.write(b"\xa5" * 4096)
    with Store.open(directory) as store:
        assert list(directory.glob("*corrupt*")) != []

        assert store.suspend(7).scrubbed
        assert list(directory.glob("*corrupt*")) == []


def test_one_grant_or_all_are_erased_on_request_and_consent_stays(
    store: Store, directory: Path
) -> None:
    with_grants(store, "gr_a", "gr_b", "gr_c")
    for grant_id in ("gr_a", "gr_a", "gr_b"):
        put(store, grant_id, SECRET)

    assert store.purge("gr_a", 7) == {"gr_a": Tally(2, 400)}
    assert store.counts() == {"gr_b": Tally(1, 200)}
    assert [row.grant_id for row in store.pending(9)] == ["gr_b"]
    assert store.purge(None, 8) == {"gr_b": Tally(1, 200)}
    assert store.purge(None, 9) == {}

    assert store.counts() == {}
    assert noted(store) == [("gr_a", 1, 2, "erased", 7), ("gr_b", 1, 1, "erased", 8)]
    assert traces(directory, [SECRET]) == []
    assert len(store.live_grants()) == 3
    assert put(store, "gr_a") == 3


def test_what_waits_is_told_per_grant_with_numbers_and_times(store: Store) -> None:
    with_grants(store, "gr_b", "gr_a")
    put(store, "gr_b", b"12345", created_ns=20, expires_ns=70)
    put(store, "gr_b", b"1234", created_ns=10, expires_ns=60)
    put(store, "gr_a", b"123", created_ns=30, expires_ns=50)
    store.set_grant_state("gr_a", "paused")

    assert store.tallies() == (
        SpoolTally("gr_a", 1, "paused", 1, 3, 1, 1, 30, 30, 50),
        SpoolTally("gr_b", 1, "active", 2, 9, 1, 2, 10, 20, 60),
    )
    assert [(row.grant_id, row.n, row.envelope) for row in store.each()] == [
        *(("gr_b", 1, b"12345"), ("gr_b", 2, b"1234"), ("gr_a", 1, b"123"))
    ]


def test_a_number_that_was_given_twice_is_a_fault(directory: Path) -> None:
    filled(directory)
    with Store.open(directory) as store:
        assert store.faults() == ()
    db = sqlite3.connect(directory / "spool.db")
    db.execute("UPDATE spool SET n = 1")
    db.commit()
    db.close()
    with Store.open(directory) as store:
        assert any("has number 1 twice" in fault for fault in store.faults())


def test_whoever_could_not_open_the_store_does_not_hold_it(directory: Path) -> None:
    """While the error is being told, another may try."""
    filled(directory)
    db = sqlite3.connect(directory / "spool.db")
    db.execute("PRAGMA user_version = 99")
    db.close()

    for _ in range(2):
        try:
            Store.open(directory)
        except StoreError as exc:
            assert "schema version 99" in exc.message  # noqa: PT017 - both live at once
            with pytest.raises(StoreError, match="schema version 99"):
                Store.open(directory)


def test_what_a_crash_left_in_the_log_is_gone_when_the_store_is_opened(directory: Path) -> None:
    """Between an erasure and the truncation of the log the process may die."""
    with Store.open(directory) as store:
        with_grants(store, "gr_a")
        put(store, "gr_a", SECRET)
        spool = store._spool.spool
        assert spool is not None
        for row in store.pending(9):
            spool._db.rows("DELETE FROM spool WHERE row_id = ?", row.row_id)
        copies = {path: path.read_bytes() for path in directory.iterdir() if path.is_file()}
        assert traces(directory, [SECRET]) == [0]
    for path, data in copies.items():
        path.touch(mode=0o600)
        path.write_bytes(data)

    with Store.open(directory):
        assert traces(directory, [SECRET]) == []


def test_an_envelope_fits_that_fills_the_last_byte_of_its_class(directory: Path) -> None:
    limits = SpoolLimits(classes={"usage": ClassLimit(max_bytes=100)})
    with Store.open(directory, limits=limits) as store:
        live = [LiveGrant(name, 1, classes=("usage",)) for name in ("gr_a", "gr_b")]
        store.apply_policy(policy(1), live, [], 0)
        put(store, "gr_a", b"x" * 40)
        put(store, "gr_b", b"x" * 60)

        assert [row.grant_id for row in store.pending(9)] == ["gr_a", "gr_b"]
        put(store, "gr_b", b"x")
        assert store.counts() == {"gr_b": Tally(2, 61)}


def test_a_spool_that_cannot_be_used_is_told_once_and_comes_back_by_itself(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried at every turn, so the log would be full of it."""
    filled(directory)
    (directory / "spool.db").rename(directory.parent / "kept")
    (directory / "spool.db").mkdir()
    with Store.open(directory) as store:
        assert not store.scrub()
        assert store.pending(9) == ()
        assert store.counts() == {}
        assert [r.message for r in caplog.records] == ["spool unusable"]
        (directory / "spool.db").rmdir()
        (directory.parent / "kept").rename(directory / "spool.db")

        assert store.counts() == {"gr_a": Tally(40, store.counts()["gr_a"].size_bytes)}
        assert store.scrub()
        assert len(store.pending(99)) == 40


def test_an_older_or_unknown_rev_takes_no_envelope(store: Store) -> None:
    store.apply_policy(policy(1), [LiveGrant("gr_a", 2)], [], 0)

    for grant_id, rev in (("gr_a", 1), ("gr_a", 3), ("gr_b", 2)):
        with pytest.raises(StoreError, match="is not live, expected active"):
            put(store, grant_id, rev=rev)
    store.set_grant_state("gr_a", "paused")
    with pytest.raises(StoreError, match="is paused, expected active"):
        put(store, "gr_a", rev=2)


def test_of_grants_that_go_alike_the_oldest_envelope_goes(directory: Path) -> None:
    """Whoever comes first in the list of grants; and one of another rank in between is passed."""
    limits = SpoolLimits(max_bytes=100, evict_first=("location",))
    with Store.open(directory, limits=limits) as store:
        live = [LiveGrant("gr_a", 1, classes=("location",))]
        live += [LiveGrant(name, 1) for name in ("gr_b", "gr_c")]
        store.apply_policy(policy(1), live, [], 0)
        for grant_id in ("gr_a", "gr_c", "gr_b", "gr_a"):
            put(store, grant_id, b"x" * 25)

        put(store, "gr_a", b"x" * 25)
        assert [(row.grant_id, row.n) for row in store.each()] == [
            *(("gr_a", 1), ("gr_b", 1), ("gr_a", 2), ("gr_a", 3))
        ]


def test_nothing_changes_in_a_spool_that_has_followed_already(store: Store) -> None:
    with_grants(store, "gr_a")
    put(store, "gr_a")

    again = store.apply_policy(policy(2), [LiveGrant("gr_a", 1)], [], 0)

    assert again == Purged(scrubbed=True)
    assert store.counts() == {"gr_a": Tally(1, 6)}


@pytest.mark.parametrize("which", ["consent", "spool"])
def test_an_erasure_whose_traces_remain_in_either_log_does_not_say_that_they_are_gone(
    store: Store, which: str
) -> None:
    """A read that is not at its end holds up the truncation of that file's log."""
    with_grants(store, "gr_a", "gr_b", "gr_c")
    for grant_id in ("gr_a", "gr_b", "gr_c"):
        put(store, grant_id)
    spool = store._spool.spool
    assert spool is not None
    reading = (store._db if which == "consent" else spool._db).each("SELECT * FROM live_grant")
    next(reading)

    ended = store.end_grants([Tombstone("gr_a", "expired")], 0)
    suspended = store.suspend(7)

    assert (set(ended.erased), ended.scrubbed) == ({"gr_a"}, False)
    assert (set(suspended.erased), suspended.scrubbed) == ({"gr_b", "gr_c"}, False)
    assert not store.scrub()
    reading.close()
    assert store.scrub()


def test_what_gave_way_is_told_once(directory: Path) -> None:
    with Store.open(directory, limits=SpoolLimits(max_bytes=100)) as store:
        with_grants(store, "gr_a")
        for _ in range(3):
            put(store, "gr_a", b"x" * 60)

        assert store.take_evicted() == {"gr_a": Tally(2, 120)}
        assert store.take_evicted() == {}
    (directory / "spool.db").unlink()
    (directory / "spool.db").mkdir()
    with Store.open(directory) as store:
        assert store.take_evicted() == {}


def test_a_spool_that_refuses_one_thing_is_told_and_goes_on_with_others(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with_grants(store, "gr_a")
    put(store, "gr_a")
    spool = store._spool.spool
    assert spool is not None
    spool._db.rows("DROP TABLE gap")

    assert (store.gaps(9), store.expire(NEVER_NS)) == ((), {})
    assert [record.message for record in caplog.records] == ["spool unusable"] * len(caplog.records)
    assert len(caplog.records) >= 1
    assert store.counts() == {"gr_a": Tally(1, 6)}
    assert len(store.pending(9)) == 1


def test_nothing_gives_way_while_the_disk_has_room(directory: Path) -> None:
    with Store.open(directory, limits=SpoolLimits(min_free_bytes=1)) as store:
        with_grants(store, "gr_a")
        for _ in range(3):
            put(store, "gr_a")

        assert len(store.pending(9)) == 3


def test_an_empty_spool_takes_an_envelope_though_others_filled_the_disk(directory: Path) -> None:
    with Store.open(directory, limits=SpoolLimits(min_free_bytes=1 << 60)) as store:
        with_grants(store, "gr_a")
        put(store, "gr_a")

        assert store.counts() == {"gr_a": Tally(1, 6)}


def test_a_class_without_a_limit_hides_no_other_of_the_same_grant(directory: Path) -> None:
    limits = SpoolLimits(classes={"location": ClassLimit(max_bytes=10), "usage": ClassLimit()})
    with Store.open(directory, limits=limits) as store:
        live = [LiveGrant("gr_a", 1, classes=("cabin", "usage", "location"))]
        store.apply_policy(policy(1), live, [], 0)
        put(store, "gr_a", b"x" * 6)
        put(store, "gr_a", b"x" * 6)

        assert [row.n for row in store.pending(9)] == [2]


def test_a_spool_without_room_to_follow_is_kept_and_follows_when_there_is(
    store: Store, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk is no corruption: nothing is set aside, and until it has followed it is mute."""
    with_grants(store, "gr_a")
    put(store, "gr_a")
    spool = store._spool.spool
    assert spool is not None
    ((pages,),) = spool._db.rows("PRAGMA page_count")
    spool._db.rows(f"PRAGMA max_page_count = {pages}")
    many = [LiveGrant("gr_a", 1), *(LiveGrant(f"gr_{index:060}", 1) for index in range(100))]

    assert not store.apply_policy(policy(2), many, [], 0).scrubbed
    assert (store.in_force(), len(store.live_grants())) == (policy(2), 101)
    assert (store.pending(9), store.counts(), store.scrub()) == ((), {}, False)
    assert [record.message for record in caplog.records] == ["spool unusable"]
    spool._db.rows(f"PRAGMA max_page_count = {pages + 999}")

    assert store.scrub()
    assert store.counts() == {"gr_a": Tally(1, 6)}
    assert list(directory.glob("*corrupt*")) == []


def test_a_spool_that_turns_out_broken_while_it_is_read_begins_anew(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Store.open(directory) as store:
        with_grants(store, "gr_a")
        for _ in range(40):
            put(store, "gr_a", SECRET)
        store.scrub()
        damage(directory)
        store._spool.spool._db.rows("PRAGMA shrink_memory")  # type: ignore[union-attr] # drops its cache

        assert store.pending(9) == ()
        assert "spool was corrupt" in [record.message for record in caplog.records]
        assert put(store, "gr_a") >= 1
        assert len(store.pending(9)) == 1


def test_what_comes_after_an_erasure_stays(store: Store, directory: Path) -> None:
    """The spool remembers which erasures it has followed, also over a restart."""
    with_grants(store, "gr_a")
    store.suspend(7)
    store.apply_policy(policy(2), [LiveGrant("gr_a", 1)], [], 0)
    put(store, "gr_a")

    store.set_grant_state("gr_a", "paused")
    store.set_grant_state("gr_a", "active")
    assert len(store.pending(9)) == 1
    store.close()

    with Store.open(directory) as again:
        assert len(again.pending(9)) == 1


def test_what_gave_way_or_was_delivered_leaves_traces_for_a_minute_at_most(
    directory: Path,
) -> None:
    """Its consent lives; the log is not emptied for each envelope."""
    minute = 60 * NS_PER_S
    with Store.open(directory, limits=SpoolLimits(max_bytes=300)) as store:
        with_grants(store, "gr_a", "gr_b")
        store.expire(minute)
        put(store, "gr_a", SECRET)
        put(store, "gr_a", b"x" * 200)
        assert store.counts() == {"gr_a": Tally(1, 200)}
        store.expire(2 * minute - 1)
        assert traces(directory, [SECRET]) == [0]
        store.expire(2 * minute)
        assert traces(directory, [SECRET]) == []

        put(store, "gr_a", SECRET)
        store.delivered([row.row_id for row in store.pending(9)])
        store.expire(minute)  # The clock was set back.
        assert traces(directory, [SECRET]) == []


def test_what_gave_way_leaves_no_traces_when_a_grant_ends_or_the_agent_starts(
    directory: Path,
) -> None:
    limits = SpoolLimits(max_bytes=300)
    with Store.open(directory, limits=limits) as store:
        with_grants(store, "gr_a", "gr_b")
        put(store, "gr_a", SECRET)
        put(store, "gr_b", b"x" * 200)
        assert traces(directory, [SECRET]) == [0]
        store.end_grants([Tombstone("gr_a", "expired")], 0)
        assert traces(directory, [SECRET]) == []

        put(store, "gr_b", SECRET)
        put(store, "gr_b", b"x" * 200)
        copied = directory.parent / "killed"
        shutil.copytree(directory, copied)
    assert traces(copied, [SECRET]) == [0]
    with Store.open(copied, limits=limits):
        assert traces(copied, [SECRET]) == []


def test_a_file_in_which_nothing_waits_any_more_gives_its_pages_back(directory: Path) -> None:
    with Store.open(directory) as store:
        with_grants(store, "gr_a")
        store.expire(0)
        for _ in range(50):
            put(store, "gr_a", bytes(100_000))
        store.scrub()
        long = (directory / "spool.db").stat().st_size
        store.delivered([row.row_id for row in store.pending(49)])
        store.expire(60 * NS_PER_S)
        assert (directory / "spool.db").stat().st_size == long

        store.delivered([row.row_id for row in store.pending(9)])
        store.expire(120 * NS_PER_S)

        assert (directory / "spool.db").stat().st_size < 100_000 < long
        assert put(store, "gr_a") == 51
        assert store.faults() == ()
