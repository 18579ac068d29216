"""What a ledger tells of a consent that was lost, against a plain list of what took away."""

from collections.abc import Mapping

import pytest

from agent.core.ledger import Entry
from agent.core.ledgerevent import EVENTS, Fact
from agent.core.recall import RestrictionSeen, StopSeen, recall
from agent.core.standing import EVERY_GRANT
from agent.errors import LedgerError

SHA = "ab" * 32


def entries(*told: tuple[str, Mapping[str, Fact]]) -> list[Entry]:
    for name, facts in told:
        assert facts.keys() == EVENTS[name].keys(), "as the ledger writes it"
    return [Entry(n, 100 + n, name, facts) for n, (name, facts) in enumerate(told)]


def applied(ver: int, ended: dict[str, int] | None = None) -> tuple[str, Mapping[str, Fact]]:
    facts = {"sha256": SHA, "epoch": 1, "ver": ver, "added": {}, "changed": {}}
    return "policy-applied", {**facts, "ended": ended or {}}


def state(grant: str, stand: str) -> tuple[str, Mapping[str, Fact]]:
    return "grant-state", {"grant": grant, "rev": 1, "state": stand}


def stop(on: str, by: int | str, *grants: str, seconds: int = 0) -> tuple[str, Mapping[str, Fact]]:
    return "local-stop", {"state": on, "by": by, "grants": list(grants), "seconds": seconds}


def test_it_knows_the_last_version_and_every_end() -> None:
    known = recall(
        entries(
            applied(1),
            state("g1", "active"),
            state("g2", "expired"),
            state("g3", "paused"),
            applied(2, {"g4": 1, "g2": 1}),
            state("g1", "revoked"),
            state("g1", "purged"),
        )
    )

    assert known.version == (1, 2, SHA)
    assert known.ended == {"g1": "revoked", "g2": "expired", "g4": "revoked"}
    assert known.last_s == 106
    assert known.is_whole


def test_a_stop_holds_unless_it_was_lifted_and_the_switch_is_asked_itself() -> None:
    known = recall(
        entries(
            stop("on", 1000),
            stop("on", 1000, "g1", seconds=60),
            stop("on", 0, "g2"),
            stop("off", "timer", "g1"),
            stop("off", 0),
            stop("on", "switch"),
            stop("on", 1000, "g3", seconds=7200),
        )
    )

    assert known.stops == {"g2": StopSeen(0, 102, None), "g3": StopSeen(1000, 106, 7200)}


def test_restrictions_come_in_their_order() -> None:
    known = recall(
        entries(
            ("restriction-applied", {"jti": "a", "mode": "pause", "grants": []}),
            ("restriction-applied", {"jti": "b", "mode": "revoke", "grants": ["g1"]}),
        )
    )

    assert known.restrictions == [
        RestrictionSeen("a", 100, "pause", (EVERY_GRANT,)),
        RestrictionSeen("b", 101, "revoke", ("g1",)),
    ]


@pytest.mark.parametrize(
    ("name", "facts", "is_whole"),
    [
        ("ledger-begun", {"generation": 0, "reason": "new", "size": 0, "root": SHA}, True),
        ("ledger-begun", {"generation": 1, "reason": "damaged", "size": 9, "root": SHA}, False),
        ("segment-retired", {"first": 0, "entries": 9, "reason": "age"}, False),
        ("segment-damaged", {"first": 0, "entries": 9}, False),
        ("entries-lost", {"entries": 1, "reason": "full"}, False),
        ("trust-applied", {"ver": 2}, False),
        ("clock-stepped", {"by": 9}, True),
    ],
)
def test_it_knows_when_it_does_not_know_all(
    name: str, facts: Mapping[str, Fact], *, is_whole: bool
) -> None:
    assert recall(entries((name, facts))).is_whole == is_whole


def test_a_line_that_cannot_be_read_is_a_hole() -> None:
    assert not recall([*entries(applied(1)), LedgerError("the check value is wrong")]).is_whole
