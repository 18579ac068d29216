"""Restrictions and local stops: kept over restarts, lifted only by whom it is due."""

from pathlib import Path

from agent.edge.store import (
    EVERY_GRANT,
    LiveGrant,
    LocalStop,
    Store,
    StoredPolicy,
    StoredRestriction,
)

PAUSE = StoredRestriction("r-1", 100, "pause", ("a", "b"))
REVOKE = StoredRestriction("r-2", 50, "revoke", (EVERY_GRANT,))


def policy(ver: int) -> StoredPolicy:
    return StoredPolicy(b"jws %d" % ver, 1, ver, b"%032d" % ver, b"c" * 32, ver)


def test_restrictions_outlive_a_restart_and_come_oldest_first(tmp_path: Path) -> None:
    with Store.open(tmp_path / "state") as store:
        store.keep_restriction(PAUSE)
        store.keep_restriction(REVOKE)
    with Store.open(tmp_path / "state") as store:
        assert store.restrictions() == (REVOKE, PAUSE)


def test_a_restriction_that_comes_again_changes_nothing(tmp_path: Path) -> None:
    with Store.open(tmp_path / "state") as store:
        store.keep_restriction(PAUSE)
        store.keep_restriction(StoredRestriction("r-1", 999, "revoke", (EVERY_GRANT,)))
        assert store.restrictions() == (PAUSE,)


def test_a_policy_takes_over_what_it_lists_for_good(tmp_path: Path) -> None:
    with Store.open(tmp_path / "state") as store:
        store.keep_restriction(PAUSE)
        store.keep_restriction(REVOKE)
        store.apply_policy(policy(1), [LiveGrant("a", 1)], [], 0, taken_over=["r-1", "unknown"])
        store.keep_restriction(PAUSE)
        assert {r.jti: r.taken_over for r in store.restrictions()} == {"r-1": True, "r-2": False}


def test_local_stops_outlive_a_restart_and_no_policy_lifts_them(tmp_path: Path) -> None:
    everything = LocalStop(EVERY_GRANT, "uid 1000", 7)
    timed = LocalStop("a", "switch", 8, left_ns=9)
    with Store.open(tmp_path / "state") as store:
        store.keep_local_stop(LocalStop("a", "uid 1", 1))
        store.keep_local_stop(timed)
        store.keep_local_stop(everything)
    with Store.open(tmp_path / "state") as store:
        store.apply_policy(policy(1), [LiveGrant("a", 1)], [], 0)
        assert store.local_stops() == (everything, timed)
        assert store.lift_local_stop("a")
        assert not store.lift_local_stop("a")
        assert store.local_stops() == (everything,)


def test_what_was_taken_over_before_it_came_is_without_effect(tmp_path: Path) -> None:
    with Store.open(tmp_path / "state") as store:
        store.apply_policy(policy(1), [LiveGrant("a", 1)], [], 0, taken_over=["r-1"])
        assert store.restrictions() == ()
        store.keep_restriction(PAUSE)
        assert [r.taken_over for r in store.restrictions()] == [True]
        assert store.taken_over() == {"r-1"}


def test_a_document_is_kept_in_the_place_of_the_one_before(tmp_path: Path) -> None:
    with Store.open(tmp_path / "state") as store:
        assert store.document("trust") is None
        store.keep_document("trust", b"one")
        store.keep_document("trust", b"two")
    with Store.open(tmp_path / "state") as store:
        assert store.document("trust") == b"two"
