"""Rules of the consent in force that no everyday policy shows: owner, trust, time, losses."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.cloud.keys import make_policy_key
from agent.cloud.trust import sign_trust, trust_file
from agent.control import Consent
from agent.control.consent import KEEP_TIME_NS
from agent.core.clock import Reading
from agent.core.model import NS_PER_S
from agent.core.standing import Standing
from agent.core.trust import Trust, parse_trust
from agent.edge.store import FLOOR_NS, Floor, LiveGrant, Store, Tombstone
from agent.errors import PolicyRejected, Rollback
from tests import car
from tests.cloud import VEHICLE, Cloud

ODOMETER = {"read_odometer": {"min_interval_s": 0}}
LOCATION: dict[str, dict[str, Any]] = {"read_location": {}}


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "state") as opened:
        yield opened


def consent_of(store: Store, cloud: Cloud, trust: Trust | None = None) -> Consent:
    return Consent(
        store,
        vehicle=VEHICLE,
        catalogue=car.catalogue(),
        trust=trust or cloud.trust,
        binding=car.binding(),
        named_buses=(),
    )


def at(cloud: Cloud, plus_s: float = 0, *, synced: bool = True) -> Reading:
    """What the clocks say so many seconds from now, in the one boot of these tests."""
    now_ns = cloud.now_s * NS_PER_S + int(plus_s * NS_PER_S)
    return Reading(now_ns, now_ns, "test", synced)


def granted(consent: Consent) -> set[str]:
    return {take.grant_id for take in consent.plan.takes}


class TestOwner:
    """A policy that gives more of a class that is the owner's to give."""

    def consent(self, store: Store, cloud: Cloud) -> Consent:
        owner = make_policy_key("owner-1")
        data = trust_file(cloud.signer, owners=[owner], owner_needed_for=["location"])
        return consent_of(store, cloud, parse_trust(data))

    def test_without_the_owners_signature_it_changes_nothing(
        self, store: Store, cloud: Cloud
    ) -> None:
        """Not even what time it is, which its `iat` would have raised."""
        consent = self.consent(store, cloud)
        first = cloud.policy(cloud.grant(ODOMETER)).encode()
        consent.receive(first, at(cloud))
        more = cloud.policy(
            cloud.grant(ODOMETER), cloud.grant(LOCATION, grant_id="g2"), iat=cloud.now_s + 5000
        )

        with pytest.raises(PolicyRejected, match="owner"):
            consent.receive(more.encode(), at(cloud))

        assert granted(consent) == {"g1"}
        assert store.live_grants() == (LiveGrant("g1", 1, "active", ("usage",)),)
        assert consent.moment(at(cloud, 1)).now_ns == at(cloud, 1).wall_ns

    def test_a_grant_that_has_ended_gives_nothing_more(self, store: Store, cloud: Cloud) -> None:
        consent = self.consent(store, cloud)
        store.end_grants([Tombstone("g2", "revoked")], 0)

        consent.receive(
            cloud.policy(cloud.grant(ODOMETER), cloud.grant(LOCATION, grant_id="g2")).encode(),
            at(cloud),
        )

        assert granted(consent) == {"g1"}


class TestTrust:
    """New keys of the platform."""

    def test_a_policy_whose_key_is_gone_grants_nothing_until_another_comes(
        self, store: Store, cloud: Cloud
    ) -> None:
        root, new = make_policy_key("root-1"), make_policy_key("platform-2")
        cloud.roots = [root]
        consent = consent_of(store, cloud)
        consent.receive(cloud.policy(cloud.grant(ODOMETER)).encode(), at(cloud))
        document = sign_trust([new], root, ver=1, iat_s=cloud.now_s).encode()

        received = [consent.receive(document, at(cloud, 1)) for _ in range(2)]

        assert [item.change is not None for item in received] == [True, False]
        assert (granted(consent), consent.policy) == (set(), None)
        assert [item.before is not None for item in received] == [True, False]
        assert [grant.state for grant in store.live_grants()] == ["pending"]
        cloud.signer = new
        consent.receive(cloud.policy(cloud.grant(ODOMETER)).encode(), at(cloud, 2))
        assert granted(consent) == {"g1"}

    def test_a_policy_that_did_not_hold_is_taken_up_when_it_comes_again_and_does(
        self, store: Store, cloud: Cloud
    ) -> None:
        """It is no repetition of what is in force, for nothing is."""
        token = cloud.policy(cloud.grant(ODOMETER)).encode()
        consent_of(store, cloud).receive(token, at(cloud))
        again = consent_of(store, cloud)

        assert again.receive(token, at(cloud, 1)).change is not None
        assert granted(again) == {"g1"}
        assert again.receive(token, at(cloud, 2)).change is None


class TestTime:
    """What is known about time."""

    def test_a_policy_from_the_future_is_refused_where_the_time_is_known(
        self, store: Store, cloud: Cloud
    ) -> None:
        consent = consent_of(store, cloud)
        token = cloud.policy(cloud.grant(ODOMETER), iat=cloud.now_s + 90_000).encode()

        with pytest.raises(PolicyRejected) as refused:
            consent.receive(token, at(cloud))
        assert refused.value.reason == "future"

        consent.receive(token, at(cloud, synced=False))
        assert store.in_force() is not None

    def test_only_a_higher_epoch_lowers_the_floor_and_that_is_told_once(
        self, store: Store, cloud: Cloud
    ) -> None:
        consent = consent_of(store, cloud)
        consent.receive(cloud.policy(cloud.grant(ODOMETER)).encode(), at(cloud))
        falls = [consent.take_fall_ns()]
        consent.receive(cloud.policy(cloud.grant(ODOMETER)).encode(), at(cloud, 1000))
        falls.append(consent.take_fall_ns())

        consent.receive(cloud.policy(cloud.grant(ODOMETER), epoch=2).encode(), at(cloud, 1000))

        assert falls == [0, 0]
        assert [consent.take_fall_ns() for _ in range(2)] == [1000 * NS_PER_S, 0]

    def test_the_floor_goes_to_disk_once_a_minute_or_when_it_must(
        self, store: Store, cloud: Cloud
    ) -> None:
        consent = consent_of(store, cloud)
        kept = []
        for plus_s, force in ((0, False), (59, False), (59, True), (118, False), (119, False)):
            consent.keep_time(consent.moment(at(cloud, plus_s)), force=force)
            kept.append((store.number(FLOOR_NS) or 0) // NS_PER_S - cloud.now_s)

        assert KEEP_TIME_NS == 60 * NS_PER_S
        assert kept == [0, 0, 59, 59, 119]

    @pytest.mark.parametrize(
        ("plus_s", "synced", "is_due"),
        [(9, True, False), (10, True, True), (9, False, True)],
    )
    def test_a_stop_that_is_over_and_a_time_that_is_known_or_not_make_a_new_plan_due(
        self, store: Store, cloud: Cloud, plus_s: int, *, synced: bool, is_due: bool
    ) -> None:
        consent = consent_of(store, cloud)
        consent.receive(cloud.policy(cloud.grant(ODOMETER)).encode(), at(cloud))
        consent.stops.hold("g1", who="uid 1", for_ns=10 * NS_PER_S, now=consent.moment(at(cloud)))
        consent.refresh(at(cloud))

        assert consent.is_due(consent.moment(at(cloud, plus_s, synced=synced))) is is_due

    @pytest.mark.parametrize(("plus_s", "is_due"), [(3599, False), (3600, True)])
    def test_want_of_contact_makes_a_new_plan_due(
        self, store: Store, cloud: Cloud, plus_s: int, *, is_due: bool
    ) -> None:
        consent = consent_of(store, cloud)
        consent.receive(cloud.policy(cloud.grant(ODOMETER, offline_s=3600)).encode(), at(cloud))

        assert consent.is_due(consent.moment(at(cloud, plus_s))) is is_due

    def test_contact_outlives_a_restart_within_one_boot_though_the_time_is_not_known(
        self, store: Store, cloud: Cloud
    ) -> None:
        grant = cloud.grant(ODOMETER, offline_s=3600)
        consent_of(store, cloud).receive(cloud.policy(grant).encode(), at(cloud))

        again = consent_of(store, cloud)
        again.restore(at(cloud, 1800, synced=False))

        assert [grant.state for grant in store.live_grants()] == ["active"]

    def test_each_grant_is_buried_at_its_own_end(self, store: Store, cloud: Cloud) -> None:
        consent = consent_of(store, cloud)
        ends = [cloud.grant(ODOMETER, grant_id=f"g{n}", exp=cloud.now_s + 100 * n) for n in (1, 2)]
        consent.receive(cloud.policy(*ends).encode(), at(cloud))

        for plus_s in (100, 200):
            consent.refresh(at(cloud, plus_s))

        assert [store.tombstoned(grant_id) for grant_id in ("g1", "g2")] == ["expired"] * 2


class TestRestart:
    """What a start says, and what was lost with the consent."""

    def test_a_start_moves_and_halts_nothing_that_stays_as_it_was(
        self, store: Store, cloud: Cloud
    ) -> None:
        grants = [
            cloud.grant(ODOMETER),
            cloud.grant(ODOMETER, grant_id="g2", state="paused"),
        ]
        consent_of(store, cloud).receive(cloud.policy(*grants).encode(), at(cloud))

        change = consent_of(store, cloud).restore(at(cloud, 1))

        assert (change.moved, change.halted, change.ended) == ((), (), ())

    def test_only_what_was_active_is_halted(self, store: Store, cloud: Cloud) -> None:
        consent = consent_of(store, cloud)
        grants = [
            cloud.grant(ODOMETER),
            cloud.grant(ODOMETER, grant_id="g2", state="paused"),
        ]
        consent.receive(cloud.policy(*grants).encode(), at(cloud))
        now = consent.moment(at(cloud, 1))
        consent.stops.hold("*", who="uid 1", for_ns=None, now=now)

        change = consent.refresh(at(cloud, 1))

        assert change.halted == ("g1",)
        assert change.moved == (("g1", 1, Standing.PAUSED),)

    @pytest.mark.parametrize(("floor_ver", "holds"), [(1, True), (2, False)])
    def test_a_policy_below_the_one_that_was_lost_is_not_taken_up(
        self, store: Store, cloud: Cloud, floor_ver: int, *, holds: bool
    ) -> None:
        token = cloud.policy(cloud.grant(ODOMETER)).encode()
        first = consent_of(store, cloud).receive(token, at(cloud))
        assert first.change is not None
        store.end_beginning(Floor(1, floor_ver, "ab" * 32), last_s=cloud.now_s)

        consent = consent_of(store, cloud)
        consent.restore(at(cloud, 1))

        assert granted(consent) == ({"g1"} if holds else set())
        if holds:
            assert consent.receive(token, at(cloud, 2)).change is None
        else:
            with pytest.raises(Rollback):
                consent.receive(token, at(cloud, 2))
            cloud.policy(cloud.grant(ODOMETER))
            consent.receive(cloud.policy(cloud.grant(ODOMETER)).encode(), at(cloud, 3))
            assert granted(consent) == {"g1"}

    def test_the_view_knows_which_grants_have_ended(self, store: Store, cloud: Cloud) -> None:
        consent = consent_of(store, cloud)
        assert consent.view(at(cloud), facts={}).ended == frozenset()
        grants = [cloud.grant(ODOMETER), cloud.grant(ODOMETER, grant_id="g2")]
        consent.receive(cloud.policy(*grants).encode(), at(cloud))

        consent.receive(cloud.revoke("g2").encode(), at(cloud, 1))

        view = consent.view(at(cloud, 2), facts={})
        assert (view.ended, view.policy) == (frozenset({"g2"}), consent.policy)
