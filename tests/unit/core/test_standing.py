"""Where a grant stands, word by word: the strictest wins, and each second is told apart."""

import pytest

from agent.core.model import NS_PER_S
from agent.core.policy import Policy
from agent.core.standing import (
    EVERY_GRANT,
    NO_OVERLAYS,
    Overlays,
    Standing,
    lapsed,
    standing,
    standings,
)
from tests import car

PENDING, ACTIVE, PAUSED = Standing.PENDING, Standing.ACTIVE, Standing.PAUSED
REVOKED, EXPIRED = Standing.REVOKED, Standing.EXPIRED


def one(**members: object) -> Policy:
    return car.policy({"g": {"read_odometer": {}}}, g=members)


def where(policy: Policy, now_s: float, overlays: Overlays = NO_OVERLAYS) -> Standing:
    return standing(policy.grants[0], policy, overlays, round(now_s * NS_PER_S))


def test_a_grant_begins_and_ends_with_its_very_seconds() -> None:
    policy = one(nbf=100, exp=200)

    assert where(policy, 100 - 1e-9) is PENDING
    assert where(policy, 100) is ACTIVE
    assert where(policy, 200 - 1e-6) is ACTIVE
    assert where(policy, 200) is EXPIRED


def test_an_expired_policy_ends_nothing() -> None:
    policy = car.policy({"g": {"read_odometer": {}}}, nbf=100, exp=200)

    assert [where(policy, now) for now in (99, 100, 199, 200)] == [PENDING, ACTIVE, ACTIVE, PENDING]


@pytest.mark.parametrize(
    ("state", "overlays", "expected"),
    [
        ("active", NO_OVERLAYS, ACTIVE),
        ("paused", NO_OVERLAYS, PAUSED),
        ("revoked", NO_OVERLAYS, REVOKED),
        ("active", Overlays(revoked=frozenset({"g"})), REVOKED),
        ("paused", Overlays(revoked=frozenset({EVERY_GRANT})), REVOKED),
        ("active", Overlays(paused=frozenset({"g"})), PAUSED),
        ("active", Overlays(stopped=frozenset({"g"})), PAUSED),
        ("active", Overlays(lapsed=frozenset({"g"})), PAUSED),
        ("active", Overlays(stopped=frozenset({EVERY_GRANT})), PAUSED),
        ("revoked", Overlays(stopped=frozenset({"g"})), REVOKED),
        ("active", Overlays(*[frozenset({"another"})] * 4), ACTIVE),
    ],
)
def test_the_strictest_word_wins(state: str, overlays: Overlays, expected: Standing) -> None:
    policy = one(state=state)

    assert where(policy, 0, overlays) is expected
    assert standings(policy, overlays, 0) == {"g": expected}


def test_an_end_wins_over_a_pause_and_a_revocation_over_an_expiry() -> None:
    policy = one(state="paused", exp=200)
    stopped, revoked = Overlays(stopped=frozenset({"g"})), Overlays(revoked=frozenset({"g"}))

    assert where(policy, 199, stopped) is PAUSED
    assert where(policy, 200, stopped) is EXPIRED
    assert where(policy, 200, revoked) is REVOKED


def test_only_what_is_revoked_or_expired_is_an_end() -> None:
    assert [one for one in Standing if one.is_end] == [REVOKED, EXPIRED]


def test_a_grant_lapses_when_its_time_without_contact_is_full() -> None:
    """Where nobody knows how long it was, it was too long; a grant without a limit never lapses."""
    policy = car.policy(
        {name: {"read_odometer": {}} for name in ("a", "b", "c")},
        a={"offline_s": 10},
        b={"offline_s": 20},
    )

    assert lapsed(policy.grants, 10 * NS_PER_S - 1) == frozenset()
    assert lapsed(policy.grants, 10 * NS_PER_S) == {"a"}
    assert lapsed(policy.grants, None) == {"a", "b"}
