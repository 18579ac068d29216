"""Numbers that will not come: runs of neighbours, per grant and recipient; few records of many."""

from pathlib import Path

from agent.edge.store import Store
from agent.edge.store.gaps import MANY, islands
from tests.unit.edge.test_store import NEVER_NS, put, with_grants


def noted(store: Store) -> list[tuple[str, str, int, int, str, int]]:
    return [(g.grant_id, g.recipient, g.first_n, g.last_n, g.why, g.at_ns) for g in store.gaps(99)]


def test_neighbours_of_one_grant_and_recipient_are_one_run() -> None:
    rows = [("b", "r", 4), ("a", "r", 3), ("a", "r", 1), ("a", "r", 2), ("a", "r", 5)]
    rows += [("b", "s", 5), ("c", "s", 6)]

    assert islands(rows) == [
        ("a", "r", 1, 3),
        ("a", "r", 5, 5),
        ("b", "r", 4, 4),
        ("b", "s", 5, 5),
        ("c", "s", 6, 6),
    ]
    assert islands([]) == []


def test_of_more_runs_than_many_one_span_is_left_of_each_grant() -> None:
    """It says that those between them that did come have come."""
    few = [("a", "r", 2 * index) for index in range(MANY - 1)] + [("b", "r", 9)]

    assert len(islands(few)) == MANY
    assert islands([*few, ("b", "r", 7)]) == [("a", "r", 0, 2 * MANY - 4), ("b", "r", 7, 9)]


def test_what_expired_is_noted_as_the_runs_that_it_was(tmp_path: Path) -> None:
    with Store.open(tmp_path / "state") as store:
        with_grants(store, "gr_a", "gr_b")
        for expires_ns in (5, 5, NEVER_NS, 5):
            put(store, "gr_a", expires_ns=expires_ns)
        put(store, "gr_b", expires_ns=5, recipient="insurer")

        store.expire(6)

        assert noted(store) == [
            ("gr_a", "fleet-x", 1, 2, "expired", 6),
            ("gr_a", "fleet-x", 4, 4, "expired", 6),
            ("gr_b", "insurer", 1, 1, "expired", 6),
        ]


def test_a_gap_grows_with_its_neighbour_of_the_same_recipient_and_reason_only(
    tmp_path: Path,
) -> None:
    with Store.open(tmp_path / "state") as store:
        with_grants(store, "gr_a")
        for n, recipient in enumerate(("x", "x", "y", "y", "y"), 1):
            put(store, "gr_a", expires_ns=n, recipient=recipient)
        for now_ns in (1, 2, 3):
            store.expire(now_ns)
        store.purge("gr_a", 9)

        assert noted(store) == [
            ("gr_a", "x", 1, 2, "expired", 1),
            ("gr_a", "y", 3, 3, "expired", 3),
            ("gr_a", "y", 4, 5, "erased", 9),
        ]


def test_a_gap_that_was_handed_out_stays_as_it_was_told(tmp_path: Path) -> None:
    with Store.open(tmp_path / "state") as store:
        with_grants(store, "gr_a")
        for n in (1, 2, 3):
            put(store, "gr_a", expires_ns=n)
        store.expire(1)
        told = store.gaps(9)
        store.expire(2)
        store.expire(3)

        assert [(g.first_n, g.last_n) for g in store.gaps(9)] == [(1, 1), (2, 3)]
        assert store.gaps(9, exclude={told[0].gap_id})[0].first_n == 2
        store.delivered([told[0].gap_id])
        assert [g.first_n for g in store.gaps(9)] == [2]


def test_what_still_waits_in_between_parts_two_gaps_and_the_last_one_grows(tmp_path: Path) -> None:
    with Store.open(tmp_path / "state") as store:
        with_grants(store, "gr_a")
        for expires_ns in (1, NEVER_NS, 2, 3):
            put(store, "gr_a", expires_ns=expires_ns)
        for now_ns in (1, 2, 3):
            store.expire(now_ns)

        assert [gap[2:4] for gap in noted(store)] == [(1, 1), (3, 4)]
