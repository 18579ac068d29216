"""The consent in force: what a policy changes, what it must not, what the passing of time does."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.cloud.policy import sign_policy
from agent.control import Change, Consent
from agent.core.admission import Admission
from agent.core.clock import Reading
from agent.core.model import NS_PER_S
from agent.edge.store import Store
from agent.errors import PolicyRejected
from tests import car
from tests.cloud import VEHICLE, Cloud
from tests.storing import append

ODOMETER = {"read_odometer": {"min_interval_s": 0}}
LOCATION: dict[str, dict[str, Any]] = {"read_location": {}}


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "state") as opened:
        yield opened


def consent_of(store: Store, cloud: Cloud) -> Consent:
    return Consent(
        store,
        vehicle=VEHICLE,
        catalogue=car.catalogue(),
        trust=cloud.trust,
        binding=car.binding(),
        named_buses=(),
    )


def at(cloud: Cloud, plus_s: int = 0) -> Reading:
    """What a synchronised clock says so many seconds from now."""
    now_ns = (cloud.now_s + plus_s) * NS_PER_S
    return Reading(now_ns, now_ns, "test", is_synchronised=True)


def granted(consent: Consent) -> set[tuple[str, str]]:
    return {(take.grant_id, take.scope) for take in consent.plan.takes}


def spool(store: Store, grant_id: str, rev: int = 1) -> None:
    append(
        store,
        grant_id,
        rev,
        recipient="fleet",
        created_ns=0,
        expires_ns=1 << 62,
        seal=lambda _: b"x" * 99,
    )


def test_without_a_policy_nothing_is_granted(store: Store, cloud: Cloud) -> None:
    consent = consent_of(store, cloud)

    change = consent.restore(at(cloud))

    assert change.plan.takes == ()
    assert granted(consent) == set()


def test_a_policy_takes_effect_and_survives_a_restart(store: Store, cloud: Cloud) -> None:
    token = cloud.policy(cloud.grant(ODOMETER))
    consent = consent_of(store, cloud)

    received = consent.receive(token.encode(), at(cloud))
    admission, change = received.admission, received.change
    restarted = consent_of(store, cloud)
    restarted.restore(at(cloud))

    assert admission is Admission.APPLY
    assert change is not None
    assert granted(consent) == granted(restarted) == {("g1", "read_odometer")}


def test_the_same_policy_again_is_acknowledged_and_changes_nothing(
    store: Store, cloud: Cloud
) -> None:
    token = cloud.policy(cloud.grant(ODOMETER)).encode()
    consent = consent_of(store, cloud)
    consent.receive(token, at(cloud))
    spool(store, "g1")

    received = consent.receive(token, at(cloud))
    admission, change = received.admission, received.change

    assert (admission, change) == (Admission.REPEAT, None)
    assert store.counts()["g1"].envelopes == 1


def test_a_revocation_empties_the_spool_and_leaves_a_tombstone(store: Store, cloud: Cloud) -> None:
    consent = consent_of(store, cloud)
    both = (cloud.grant(ODOMETER), cloud.grant(LOCATION, grant_id="g2", recipient="city"))
    consent.receive(cloud.policy(*both).encode(), at(cloud))
    spool(store, "g1")
    spool(store, "g2")

    change = consent.receive(cloud.revoke("g2").encode(), at(cloud)).change

    assert change is not None
    assert change.ended == ("g2",)
    assert change.halted == ("g2",)
    assert change.purged.erased["g2"].envelopes == 1
    assert dict(store.counts()).keys() == {"g1"}
    assert granted(consent) == {("g1", "read_odometer")}
    assert store.tombstoned("g2") == "revoked"


def test_a_grant_that_the_next_policy_does_not_name_is_revoked(store: Store, cloud: Cloud) -> None:
    consent = consent_of(store, cloud)
    first = (cloud.grant(ODOMETER), cloud.grant(LOCATION, grant_id="g2"))
    consent.receive(cloud.policy(*first).encode(), at(cloud))

    consent.receive(cloud.policy(cloud.grant(ODOMETER)).encode(), at(cloud))

    assert store.tombstoned("g2") == "revoked"


def test_nothing_leads_back_from_revoked(store: Store, cloud: Cloud) -> None:
    consent = consent_of(store, cloud)
    consent.receive(cloud.policy(cloud.grant(ODOMETER)).encode(), at(cloud))
    consent.receive(cloud.revoke("g1").encode(), at(cloud))

    consent.receive(cloud.policy(cloud.grant(ODOMETER, rev=9)).encode(), at(cloud))

    assert granted(consent) == set()
    assert store.tombstoned("g1") == "revoked"


def test_a_new_revision_drops_what_was_spooled_under_the_old_one(
    store: Store, cloud: Cloud
) -> None:
    consent = consent_of(store, cloud)
    consent.receive(cloud.policy(cloud.grant(ODOMETER)).encode(), at(cloud))
    spool(store, "g1")

    consent.receive(cloud.policy(cloud.grant(ODOMETER, rev=2)).encode(), at(cloud))

    assert dict(store.counts()) == {}
    assert granted(consent) == {("g1", "read_odometer")}


def test_a_paused_grant_keeps_its_rows_and_collects_nothing(store: Store, cloud: Cloud) -> None:
    consent = consent_of(store, cloud)
    consent.receive(cloud.policy(cloud.grant(ODOMETER)).encode(), at(cloud))
    spool(store, "g1")

    change = consent.receive(
        cloud.policy(cloud.grant(ODOMETER, state="paused")).encode(), at(cloud)
    ).change

    assert change is not None
    assert change.halted == ("g1",)
    assert granted(consent) == set()
    assert store.counts()["g1"].envelopes == 1
    assert store.pending(10) == ()


def test_a_grant_that_expires_is_purged_and_buried(store: Store, cloud: Cloud) -> None:
    consent = consent_of(store, cloud)
    ending = cloud.grant(ODOMETER, exp=cloud.now_s + 60)
    consent.receive(cloud.policy(ending).encode(), at(cloud))
    spool(store, "g1")

    early = consent.is_due(consent.moment(at(cloud, 59)))
    late = consent.is_due(consent.moment(at(cloud, 60)))
    change = consent.refresh(at(cloud, 60))

    assert (early, late) == (False, True)
    assert change.ended == change.halted == ("g1",)
    assert dict(store.counts()) == {}
    assert store.tombstoned("g1") == "expired"
    assert granted(consent) == set()


def test_an_expired_policy_is_zero_grants_and_still_guards_against_rollback(
    store: Store, cloud: Cloud
) -> None:
    consent = consent_of(store, cloud)
    old = cloud.policy(cloud.grant(ODOMETER), exp=cloud.now_s + 60)
    new = cloud.policy(cloud.grant(ODOMETER), exp=cloud.now_s + 60)
    consent.receive(new.encode(), at(cloud))
    spool(store, "g1")

    change = consent.refresh(at(cloud, 60))

    assert change.plan.takes == ()
    assert dict(store.counts()) == {}
    with pytest.raises(PolicyRejected) as caught:
        consent.receive(old.encode(), at(cloud, 61))
    assert caught.value.reason == "rollback"


def test_a_grant_that_expires_after_its_policy_is_buried_too(store: Store, cloud: Cloud) -> None:
    consent = consent_of(store, cloud)
    ending = cloud.grant(ODOMETER, exp=cloud.now_s + 120)
    consent.receive(cloud.policy(ending, exp=cloud.now_s + 60).encode(), at(cloud))
    spool(store, "g1")

    at_policy = consent.refresh(at(cloud, 60))
    at_grant = consent.refresh(at(cloud, 120))
    consent.refresh(at(cloud, 30))

    assert at_policy.purged.erased["g1"].envelopes == 1
    assert at_grant.ended == ("g1",)
    assert store.tombstoned("g1") == "expired"
    assert granted(consent) == set()


def test_a_renewed_policy_brings_the_same_grants_back(store: Store, cloud: Cloud) -> None:
    consent = consent_of(store, cloud)
    consent.receive(cloud.policy(cloud.grant(ODOMETER), exp=cloud.now_s + 60).encode(), at(cloud))
    consent.refresh(at(cloud, 60))

    consent.receive(cloud.policy(cloud.grant(ODOMETER)).encode(), at(cloud, 61))

    assert granted(consent) == {("g1", "read_odometer")}


def test_a_grant_that_is_not_due_yet_begins_when_its_time_comes(store: Store, cloud: Cloud) -> None:
    consent = consent_of(store, cloud)
    later = cloud.grant(ODOMETER, nbf=cloud.now_s + 60)
    consent.receive(cloud.policy(later).encode(), at(cloud))
    before = granted(consent)

    consent.refresh(at(cloud, 60))
    spool(store, "g1")

    assert before == set()
    assert granted(consent) == {("g1", "read_odometer")}
    assert len(store.pending(10)) == 1


def test_without_fresh_contact_a_grant_is_suspended_until_a_newer_policy(
    store: Store, cloud: Cloud
) -> None:
    consent = consent_of(store, cloud)
    leased = cloud.grant(ODOMETER, offline_s=3600)
    token = cloud.policy(leased).encode()
    consent.receive(token, at(cloud))
    spool(store, "g1")

    change = consent.refresh(at(cloud, 3600))
    consent.receive(token, at(cloud, 3601))  # The same bytes are no contact.
    still = granted(consent)
    cloud.now_s += 3602
    consent.receive(cloud.policy(leased).encode(), at(cloud))

    assert change.halted == ("g1",)
    assert change.ended == ()
    assert still == set()
    assert granted(consent) == {("g1", "read_odometer")}
    assert store.counts()["g1"].envelopes == 1


def foreign_key(cloud: Cloud) -> str:
    return sign_policy(cloud.document | {"ver": 9}, Cloud().signer)


REFUSED: dict[str, tuple[Callable[[Cloud], str], str]] = {
    "another vehicle": (
        lambda c: c.token(c.document | {"ver": 9, "aud": "veh-other"}),
        "vehicle",
    ),
    "another catalogue": (
        lambda c: c.token(
            c.document
            | {"ver": 9, "catalogue": {"id": "consentry-vss", "ver": 1, "sha256": "0" * 64}}
        ),
        "catalogue",
    ),
    "a lower version": (lambda c: c.token(c.document | {"ver": 1, "epoch": 0}), "rollback"),
    "the same version with other content": (
        lambda c: c.token(c.document | {"jti": "another"}),
        "equivocation",
    ),
    "a bad signature": (foreign_key, "signature"),
    "plain JSON": (lambda c: json.dumps(c.document | {"ver": 9}), "unsigned"),
    "an unknown member": (lambda c: c.token(c.document | {"ver": 9, "extra": 1}), "unknown-member"),
    "a constraint that is not understood": (
        lambda c: c.token(
            c.document | {"ver": 9, "grants": [c.grant({"read_odometer": {"jitter_s": 1}})]}
        ),
        "unknown-constraint",
    ),
    "garbage": (lambda _: "garbage", "token"),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda name: name.replace(" ", "-"))
def test_what_must_not_be_applied_changes_nothing(store: Store, cloud: Cloud, case: str) -> None:
    make, reason = REFUSED[case]
    consent = consent_of(store, cloud)
    consent.receive(cloud.policy(cloud.grant(ODOMETER)).encode(), at(cloud))
    spool(store, "g1")
    before = (store.in_force(), store.live_grants(), dict(store.counts()), consent.plan)

    with pytest.raises(PolicyRejected) as caught:
        consent.receive(make(cloud).encode(), at(cloud))

    assert caught.value.reason == reason
    assert (store.in_force(), store.live_grants(), dict(store.counts()), consent.plan) == before


@pytest.mark.parametrize(
    "changed",
    [{"recipient": "city"}, {"details": [{"scope": "read_location"}]}, {"rev": 2, "nbf": 1}],
    ids=["recipient", "details", "lower-rev"],
)
def test_a_changed_grant_must_raise_its_revision(
    store: Store, cloud: Cloud, changed: dict[str, Any]
) -> None:
    consent = consent_of(store, cloud)
    consent.receive(cloud.policy(cloud.grant(ODOMETER, rev=3)).encode(), at(cloud))
    spool(store, "g1", rev=3)
    before = (store.in_force(), consent.plan, dict(store.counts()))

    with pytest.raises(PolicyRejected) as caught:
        consent.receive(cloud.policy(cloud.grant(ODOMETER, rev=3) | changed).encode(), at(cloud))

    assert caught.value.reason == "rev"
    assert (store.in_force(), consent.plan, dict(store.counts())) == before


def test_a_policy_on_disk_that_cannot_be_verified_any_more_halts_everything(
    store: Store, cloud: Cloud
) -> None:
    consent_of(store, cloud).receive(cloud.policy(cloud.grant(ODOMETER)).encode(), at(cloud))
    spool(store, "g1")
    stranger = consent_of(store, Cloud())

    with pytest.raises(PolicyRejected):
        stranger.restore(at(cloud))

    assert granted(stranger) == set()
    assert store.pending(10) == ()
    assert store.counts()["g1"].envelopes == 1  # It waits; nothing is lost by a wrong file.


def booted(cloud: Cloud, plus_s: int, boot_s: int, *, synced: bool) -> Reading:
    """What the clocks say in another boot."""
    now_ns = (cloud.now_s + plus_s) * NS_PER_S
    return Reading(now_ns, boot_s * NS_PER_S, "another boot", synced)


def active(store: Store) -> list[str]:
    return [grant.grant_id for grant in store.live_grants() if grant.state == "active"]


def test_a_clock_set_back_over_a_restart_revives_no_expired_grant(
    store: Store, cloud: Cloud
) -> None:
    ending = cloud.grant(ODOMETER, exp=cloud.now_s + 60)
    consent = consent_of(store, cloud)
    consent.receive(cloud.policy(ending).encode(), at(cloud))
    consent.keep_time(consent.moment(at(cloud, 61)), force=True)

    again = consent_of(store, cloud)
    again.restore(booted(cloud, -10 * 365 * 86_400, 5, synced=False))

    assert granted(again) == set()
    assert store.tombstoned("g1") == "expired"


def test_after_a_reboot_an_offline_limit_holds_until_the_time_is_known(
    store: Store, cloud: Cloud
) -> None:
    consent = consent_of(store, cloud)
    consent.receive(cloud.policy(cloud.grant(ODOMETER, offline_s=3600)).encode(), at(cloud))

    again = consent_of(store, cloud)
    again.restore(booted(cloud, 60, 5, synced=False))
    unknown = active(store)
    assert again.is_due(again.moment(booted(cloud, 120, 65, synced=True)))
    again.refresh(booted(cloud, 120, 65, synced=True))

    assert unknown == []
    assert active(store) == ["g1"]
    again.refresh(booted(cloud, 3600, 3545, synced=True))
    assert active(store) == []


def test_within_one_boot_the_wall_clock_cannot_stretch_an_offline_limit(
    store: Store, cloud: Cloud
) -> None:
    consent = consent_of(store, cloud)
    consent.receive(cloud.policy(cloud.grant(ODOMETER, offline_s=3600)).encode(), at(cloud))

    late = at(cloud, 3600)
    consent.refresh(Reading(at(cloud).wall_ns, late.boot_ns, "test", is_synchronised=True))

    assert active(store) == []


def test_only_a_policy_whose_iat_rose_is_fresh_contact(store: Store, cloud: Cloud) -> None:
    consent = consent_of(store, cloud)
    grant = cloud.grant(ODOMETER, offline_s=3600)
    consent.receive(cloud.policy(grant).encode(), at(cloud))
    same_iat = cloud.policy(grant, iat=cloud.now_s).encode()
    newer = cloud.policy(grant, iat=cloud.now_s + 3700).encode()

    consent.receive(same_iat, at(cloud, 1800))
    consent.refresh(at(cloud, 3700))
    stale = active(store)
    consent.receive(newer, at(cloud, 3700))

    assert stale == []
    assert active(store) == ["g1"]


def test_a_higher_epoch_lowers_a_floor_that_a_wrong_date_had_lifted(
    store: Store, cloud: Cloud
) -> None:
    consent = consent_of(store, cloud)
    consent.receive(cloud.policy(cloud.grant(ODOMETER)).encode(), at(cloud))
    ahead = consent.moment(at(cloud, 300 * 86_400))
    consent.keep_time(ahead, force=True)

    consent.receive(cloud.policy(cloud.grant(ODOMETER, rev=2), epoch=2).encode(), at(cloud, 60))

    assert consent.moment(at(cloud, 61)).now_ns == (cloud.now_s + 61) * NS_PER_S
    assert consent_of(store, cloud).moment(at(cloud, 62)).now_ns == (cloud.now_s + 62) * NS_PER_S


def stop(
    consent: Consent, grant_id: str, reading: Reading, *, uid: int = 1000, for_s: int | None = None
) -> Change:
    for_ns = None if for_s is None else for_s * NS_PER_S
    now = consent.moment(reading)
    consent.stops.hold(grant_id, who=f"uid {uid}", for_ns=for_ns, now=now)
    return consent.refresh(reading)


def test_a_local_stop_closes_at_once_and_no_policy_lifts_it(store: Store, cloud: Cloud) -> None:
    consent = consent_of(store, cloud)
    consent.receive(cloud.policy(cloud.grant(ODOMETER)).encode(), at(cloud))
    spool(store, "g1")

    change = stop(consent, "*", at(cloud, 1))
    newer = cloud.policy(cloud.grant(ODOMETER, grant_id="g1"), iat=cloud.now_s + 2)
    consent.receive(newer.encode(), at(cloud, 2))
    again = consent_of(store, cloud)
    again.restore(at(cloud, 3))

    assert change.halted == ("g1",)
    assert granted(consent) == granted(again) == set()
    assert store.counts()["g1"].envelopes == 1, "a pause erases nothing"
    assert again.stops.lift("*")
    again.refresh(at(cloud, 4))
    assert granted(again) == {("g1", "read_odometer")}


def test_a_stop_of_one_grant_leaves_the_others(store: Store, cloud: Cloud) -> None:
    consent = consent_of(store, cloud)
    two = cloud.policy(cloud.grant(ODOMETER), cloud.grant(LOCATION, grant_id="g2"))
    consent.receive(two.encode(), at(cloud))

    stop(consent, "g2", at(cloud))
    assert not consent.stops.lift("*")
    consent.refresh(at(cloud))

    assert granted(consent) == {("g1", "read_odometer")}


def test_a_timed_stop_ends_by_itself_and_a_wrong_clock_does_not_shorten_it(
    store: Store, cloud: Cloud
) -> None:
    consent = consent_of(store, cloud)
    consent.receive(cloud.policy(cloud.grant(ODOMETER)).encode(), at(cloud))
    stop(consent, "*", at(cloud), for_s=7200)
    consent.keep_time(consent.moment(at(cloud, 3600)), force=True)

    again = consent_of(store, cloud)
    again.restore(booted(cloud, 86_400, 5, synced=True))
    early = granted(again)
    assert again.is_due(again.moment(booted(cloud, 90_000, 3605, synced=True)))
    change = again.refresh(booted(cloud, 90_000, 3605, synced=True))

    assert change.lifted == ("*",)
    assert early == set()
    assert granted(again) == {("g1", "read_odometer")}


def test_what_a_stop_has_left_is_told_in_whole_seconds_that_are_not_over(
    store: Store, cloud: Cloud
) -> None:
    consent = consent_of(store, cloud)
    stop(consent, "*", at(cloud), for_s=7200)
    now = consent.moment(at(cloud))

    left = [
        consent.stops.status(replace(now, boot_ns=now.boot_ns + after_ns))[0].left_s
        for after_ns in (0, 1, NS_PER_S, 7200 * NS_PER_S - 1, 7200 * NS_PER_S)
    ]

    assert left == [7200, 7200, 7199, 1, 0]


def test_the_privacy_switch_stops_everything_while_it_says_so(store: Store, cloud: Cloud) -> None:
    consent = consent_of(store, cloud)
    consent.receive(cloud.policy(cloud.grant(ODOMETER)).encode(), at(cloud))

    consent.stops.switch(consent.moment(at(cloud)), is_private=True)
    consent.refresh(at(cloud))
    private = granted(consent)
    consent.stops.switch(consent.moment(at(cloud)), is_private=False)
    consent.refresh(at(cloud))

    assert private == set()
    assert granted(consent) == {("g1", "read_odometer")}


def test_a_stop_that_holds_is_never_shortened_by_a_shorter_one(store: Store, cloud: Cloud) -> None:
    consent = consent_of(store, cloud)
    consent.receive(cloud.policy(cloud.grant(ODOMETER)).encode(), at(cloud))
    stop(consent, "*", at(cloud), uid=0, for_s=7200)
    stop(consent, "*", at(cloud), for_s=1)
    consent.refresh(at(cloud, 60))
    timed = granted(consent)
    stop(consent, "*", at(cloud, 60), uid=0)
    stop(consent, "*", at(cloud, 60), for_s=1)
    consent.refresh(at(cloud, 90_000))

    assert timed == granted(consent) == set()
