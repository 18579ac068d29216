import pytest

from agent.core.ledgerevent import Event
from agent.core.rollup import RollUp

S = 10**9
NOW_NS = 1_795_468_800 * S


def sealed(rollup: RollUp, grant: str, n: int, *, rev: int = 1) -> None:
    rollup.add(NOW_NS, "sealed", grant=grant, rev=rev, n=n, envelopes=1, samples=10 * n, bytes=100)


def test_envelopes_of_a_grant_are_one_event() -> None:
    rollup = RollUp()
    for n in (5, 4, 6):
        sealed(rollup, "gr_a", n)

    assert rollup.take(NOW_NS) == [
        Event(
            NOW_NS // S,
            "sealed",
            {
                "grant": "gr_a",
                "rev": 1,
                "envelopes": 3,
                "samples": 150,
                "bytes": 300,
                "first": 4,
                "last": 6,
            },
        )
    ]
    assert rollup.take(NOW_NS) == []


def test_what_differs_stays_apart() -> None:
    rollup = RollUp()
    rollup.add(NOW_NS, "tls-failed", reason="name", times=1)
    sealed(rollup, "gr_b", 1)
    sealed(rollup, "gr_a", 1)
    sealed(rollup, "gr_a", 2, rev=2)
    rollup.add(NOW_NS, "delivered", grant="gr_a", n=1, envelopes=1, bytes=100)
    rollup.add(NOW_NS, "tls-failed", reason="expired", times=1)
    rollup.add(NOW_NS, "tls-failed", reason="name", times=2)

    taken = [(event.name, *event.facts.values()) for event in rollup.take(NOW_NS)]

    assert taken == [
        ("sealed", "gr_b", 1, 1, 10, 100, 1, 1),
        ("sealed", "gr_a", 1, 1, 10, 100, 1, 1),
        ("sealed", "gr_a", 2, 1, 20, 100, 2, 2),
        ("delivered", "gr_a", 1, 100, 1, 1),
        ("tls-failed", "name", 3),
        ("tls-failed", "expired", 1),
    ]


def test_it_is_due_a_minute_after_the_first() -> None:
    rollup = RollUp()
    assert not rollup.is_due(NOW_NS + 10**6 * S)
    sealed(rollup, "gr_a", 1)

    assert not rollup.is_due(NOW_NS + 60 * S - 1)
    assert rollup.is_due(NOW_NS + 60 * S)
    assert rollup.is_due(NOW_NS - 60 * S)  # The clock was set back.
    rollup.take(NOW_NS)
    assert not rollup.is_due(NOW_NS + 60 * S)


def test_what_the_list_does_not_allow_is_refused_at_once() -> None:
    rollup = RollUp()
    sealed(rollup, "gr_a", 1)

    with pytest.raises(ValueError, match="reason of tls-failed"):
        rollup.add(NOW_NS, "tls-failed", reason="48.137", times=1)
    with pytest.raises(ValueError, match="facts of sealed"):
        rollup.add(NOW_NS, "sealed", grant="gr_a", rev=1, envelopes=1, samples=1, bytes=1)
    with pytest.raises(ValueError, match="facts of tls-failed"):
        rollup.add(NOW_NS, "tls-failed", n=1, reason="name", times=1)
    with pytest.raises(ValueError, match="none of the ledger's"):
        rollup.add(NOW_NS, "speed", times=1)
    assert len(rollup.take(NOW_NS)) == 1
