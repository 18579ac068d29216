"""What happens in the agent lane is found in the ledger: each event by what makes it happen."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.cloud.restrict import new_restriction, sign_restriction
from agent.control import Switched
from agent.control.keys import tell_certificate
from agent.core.ask import Pause, Restrict, Resume
from agent.core.jws import unsafe_unverified_payload
from agent.core.model import NS_PER_S
from agent.core.permission import Peer
from agent.edge.control_socket import Ask
from agent.edge.store import SpoolLimits
from tests.cloud import VEHICLE, Cloud
from tests.unit.control.test_agent import ODOMETER, Lane, collected

DAY_NS = 86_400 * NS_PER_S
PEER = Peer(1, 1000, frozenset({1000}))


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


@pytest.fixture
def lane(tmp_path: Path, cloud: Cloud) -> Iterator[Lane]:
    made = Lane(tmp_path / "state", cloud)
    yield made
    made.ledger.close()
    made.store.close()


def digest(token: str) -> str:
    return hashlib.sha256(unsafe_unverified_payload(token.encode())).hexdigest()


def seal(lane: Lane, count: int = 1) -> None:
    """Have batches of the grant sealed as they would be under the plan in force."""
    batches = collected(lane.plans[-1], lane.now_ns)
    for _ in range(count):
        lane.agent.post(batches)
    lane.agent.turn(0.0)


def minute(lane: Lane) -> None:
    """Let a minute pass, after which what was counted is written."""
    lane.now_ns += 61 * NS_PER_S
    lane.agent.turn(0.0)


def restriction(cloud: Cloud, mode: str, *grants: str, vehicle: str = VEHICLE) -> str:
    document = new_restriction(vehicle=vehicle, mode=mode, grants=grants, iat_s=cloud.now_s)
    return sign_restriction(document, cloud.signer)


def test_a_policy_is_received_applied_repeated_and_refused(lane: Lane, cloud: Cloud) -> None:
    first = cloud.policy(cloud.grant(ODOMETER), cloud.grant(ODOMETER, grant_id="g2"))
    second = cloud.policy(cloud.grant(ODOMETER, rev=2), cloud.grant(ODOMETER, grant_id="g3"))
    for token in (first, second, second, first):
        lane.arrive(token)

    assert [e["sha256"] for e in lane.events("policy-received")] == [digest(first), digest(second)]
    assert lane.events("policy-applied") == [
        {
            "sha256": digest(first),
            "epoch": 1,
            "ver": 1,
            "added": {"g1": 1, "g2": 1},
            "changed": {},
            "ended": {},
        },
        {
            "sha256": digest(second),
            "epoch": 1,
            "ver": 2,
            "added": {"g3": 1},
            "changed": {"g1": 2},
            "ended": {"g2": 1},
        },
    ]
    assert lane.events("policy-repeated") == [{"sha256": digest(second), "epoch": 1, "ver": 2}]
    assert lane.events("policy-refused") == [{"sha256": digest(first), "reason": "rollback"}]


def test_a_restriction_is_applied_or_refused(lane: Lane, cloud: Cloud) -> None:
    lane.arrive(cloud.policy(cloud.grant(ODOMETER)))
    good = restriction(cloud, "pause", "g1")
    bad = restriction(cloud, "revoke", vehicle="another")
    lane.arrive(good)
    lane.arrive(bad)

    (applied,) = lane.events("restriction-applied")
    assert (applied["mode"], applied["grants"]) == ("pause", ["g1"])
    (refused,) = lane.events("restriction-refused")
    assert refused["sha256"] == digest(bad)
    assert lane.events("grant-state")[-1] == {"grant": "g1", "rev": 1, "state": "paused"}


def test_a_lowered_floor_and_a_clock_that_jumps_are_told_in_seconds(
    lane: Lane, cloud: Cloud
) -> None:
    lane.arrive(cloud.policy(cloud.grant(ODOMETER), iat=cloud.now_s + 600))
    lane.arrive(cloud.policy(cloud.grant(ODOMETER, rev=2), epoch=2))
    reading = lane.now_reading
    lane.now_ns += 2 * NS_PER_S
    jumped = replace(reading(), wall_ns=lane.now_ns + 500 * NS_PER_S)
    lane.agent._clock = lambda: jumped
    lane.agent.turn(0.0)

    assert lane.events("floor-lowered") == [{"epoch": 2, "by": 600}]
    assert lane.events("clock-stepped") == [{"by": 500}]


@pytest.mark.parametrize("why", ["policy", "restriction", "time", "a policy that ran out"])
def test_an_end_tells_what_it_erased_and_that_nothing_is_left(
    lane: Lane, cloud: Cloud, why: str
) -> None:
    ends: Any = {"exp": cloud.now_s + 60, "nbf": cloud.now_s - 60}
    whole = ends if why == "a policy that ran out" else {}
    grant = cloud.grant(ODOMETER, **(ends if why == "time" else {}))
    lane.arrive(cloud.policy(grant, **whole))
    seal(lane, 3)
    match why:
        case "policy":
            lane.arrive(cloud.revoke("g1"))
        case "restriction":
            lane.arrive(restriction(cloud, "revoke", "g1"))
        case _:
            minute(lane)

    (purged,) = lane.events("purged")
    reason = "time" if whole else why
    assert (purged["grant"], purged["envelopes"], purged["reason"]) == ("g1", 3, reason)
    states = [event["state"] for event in lane.events("grant-state")]
    ended = "expired" if why == "time" else "revoked"
    assert states[1:] == (["pending"] if whole else [ended, "purged"])


def test_what_is_sealed_evicted_and_outlives_its_retention_is_counted_by_the_minute(
    tmp_path: Path, cloud: Cloud
) -> None:
    lane = Lane(tmp_path / "small", cloud, limits=SpoolLimits(max_bytes=1500))
    lane.arrive(cloud.policy(cloud.grant(ODOMETER)))
    seal(lane, 9)
    minute(lane)
    left = lane.store.counts()["g1"].envelopes
    lane.now_ns += 31 * DAY_NS
    lane.agent.turn(0.0)
    minute(lane)

    (sealed,) = lane.events("sealed")
    assert (sealed["envelopes"], sealed["first"], sealed["last"]) == (9, 1, 9)
    assert sealed["samples"] == 9
    assert [e["envelopes"] for e in lane.events("evicted")] == [9 - left]
    assert [e["envelopes"] for e in lane.events("expired")] == [left]
    assert 0 < left < 9
    lane.ledger.close()
    lane.store.close()


def test_batches_that_are_not_stored_are_counted_with_the_reason(lane: Lane, cloud: Cloud) -> None:
    lane.arrive(cloud.policy(cloud.grant(ODOMETER)))
    batches = collected(lane.plans[-1], lane.now_ns)
    lane.store.set_grant_state("g1", "paused")
    lane.agent.post(batches)
    lane.agent.turn(0.0)
    lane.arrive(cloud.policy(cloud.grant(ODOMETER, rev=2)))
    lane.agent.post(batches)
    lane.agent.turn(0.0)
    minute(lane)

    assert [(e["reason"], e["batches"], e["samples"]) for e in lane.events("dropped")] == [
        ("store", 1, 1),
        ("ended", 1, 1),
    ]


def test_who_stopped_resumed_and_handed_over_is_told(lane: Lane, cloud: Cloud) -> None:
    lane.arrive(cloud.policy(cloud.grant(ODOMETER)))
    answers: list[dict[str, Any]] = []
    for verb in (
        Pause("g1", 60),
        Resume("g1"),
        Pause(None, None),
        Restrict(restriction(cloud, "pause")),
    ):
        lane.agent.post(Ask(verb, PEER, answers.append))
    lane.agent.post(Switched(is_private=True))
    lane.agent.post(Switched(is_private=False))
    lane.agent.turn(0.0)

    assert [set(answer) for answer in answers] == [{"answer"}] * 4
    assert lane.events("admin") == [{"verb": "restrict", "uid": 1000}]
    assert [
        (e["state"], e["by"], e["grants"], e["seconds"]) for e in lane.events("local-stop")
    ] == [
        ("on", 1000, ["g1"], 60),
        ("off", 1000, ["g1"], 0),
        ("on", 1000, [], 0),
        ("on", "switch", [], 0),
        ("off", "switch", [], 0),
    ]


def test_another_certificate_is_told_once_also_over_a_restart(lane: Lane) -> None:
    journal = lane.agent._journal
    for ends_s in (1_900_000_000, 1_900_000_000, 2_000_000_000):
        tell_certificate(lane.store, journal, ends_s=ends_s, now_ns=lane.now_ns)

    assert [e["ends"] for e in lane.events("certificate-changed")] == [1_900_000_000, 2_000_000_000]
