"""The parts of the consent in force, each by itself."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.cloud.keys import make_policy_key
from agent.cloud.restrict import new_restriction
from agent.cloud.trust import sign_trust, trust_file
from agent.control import contact
from agent.control.livegrant import live_grants, live_state, moved, tombstones
from agent.control.restrictions import Restrictions
from agent.control.signers import Signers, trust_in_force
from agent.control.stops import Stops
from agent.core.admission import Admission
from agent.core.clock import Moment
from agent.core.jws import verify_document
from agent.core.model import NS_PER_S
from agent.core.policy import Policy, parse_policy
from agent.core.standing import EVERY_GRANT, Overlays, Standing
from agent.core.status import StopStatus
from agent.core.trust import Trust, parse_trust
from agent.edge.store import LiveGrant, Store, StoredPolicy, Tombstone
from agent.errors import PolicyRejected, Rollback
from tests import car
from tests.cloud import VEHICLE, Cloud

SCOPES: dict[str, dict[str, Any]] = {
    name: {}
    for name in (
        "read_vehicle_info",
        "read_odometer",
        "read_location",
        "read_tires",
        "read_climate",
    )
}
CLASSES = ("cabin", "condition", "location", "static", "usage")


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "state") as opened:
        yield opened


def policy_of(cloud: Cloud, *grants: dict[str, Any], **members: Any) -> Policy:
    cloud.policy(*grants, **members)
    return parse_policy(json.dumps(cloud.document).encode(), car.catalogue())


def moment(cloud: Cloud, plus_s: float, boot_s: float, boot: str = "b1", *, known: bool) -> Moment:
    """So many seconds after the policy was signed, and after the board was started."""
    now_ns = cloud.now_s * NS_PER_S + int(plus_s * NS_PER_S)
    return Moment(now_ns, int(boot_s * NS_PER_S), boot, known)


class TestContact:
    """The last fresh signed contact, and what its age suspends; an hour is allowed here."""

    @pytest.mark.parametrize(
        ("since", "now", "is_lapsed"),
        [
            # Within a boot its clock counts, whatever the wall clock says.
            ((0, 100, "b1", True), (0, 3699, "b1", True), False),
            ((0, 100, "b1", True), (0, 3700, "b1", True), True),
            ((0, 100, "b1", False), (9999, 3699, "b1", False), False),
            # Over a reboot the wall clock, but at least the time since the boot.
            ((0, 100, "b1", True), (3599, 5, "b2", True), False),
            ((0, 100, "b1", True), (3600, 5, "b2", True), True),
            ((0, 100, "b1", True), (60, 3600, "b2", True), True),
            ((0, 100, "b1", True), (60, 5, "b2", False), True),
            # Where nobody knows when it was, not before the policy was signed.
            ((0, 100, "b1", False), (3599, 5, "b2", True), False),
            ((0, 100, "b1", False), (3600, 5, "b2", True), True),
            (None, (3599, 5, "b2", True), False),
            (None, (3600, 5, "b2", True), True),
            (None, (-5, 5, "b2", True), False),
            (None, (0, 5, "b2", False), True),
        ],
    )
    def test_its_age_is_the_worst_that_can_be(
        self, cloud: Cloud, since: Any, now: Any, *, is_lapsed: bool
    ) -> None:
        policy = policy_of(cloud, cloud.grant(SCOPES, offline_s=3600))
        last = since and moment(cloud, *since[:3], known=since[3])

        found = contact.lapsed_grants(policy, last, moment(cloud, *now[:3], known=now[3]))

        assert found == ({"g1"} if is_lapsed else frozenset())

    def test_without_a_policy_nothing_lapses(self, cloud: Cloud) -> None:
        found = contact.lapsed_grants(None, None, moment(cloud, 0, 5, known=False))

        assert found == frozenset()

    @pytest.mark.parametrize("known", [True, False])
    def test_it_comes_back_from_the_disk_with_the_boot_that_it_was_in(
        self, store: Store, cloud: Cloud, *, known: bool
    ) -> None:
        last = moment(cloud, 7, 100, known=known)
        store.keep_numbers(contact.numbers(last))

        assert contact.kept(store, moment(cloud, 9, 102, known=True)) == last
        elsewhere = contact.kept(store, moment(cloud, 9, 5, "b2", known=True))
        assert elsewhere is not None
        assert elsewhere.boot_id not in {"b1", "b2"}
        assert (elsewhere.now_ns, elsewhere.is_known) == (last.now_ns, known)

    @pytest.mark.parametrize("left", [[], ["contact_ns"], ["contact_boot_ns"]])
    def test_what_is_not_on_disk_whole_is_not_known(
        self, store: Store, cloud: Cloud, left: list[str]
    ) -> None:
        now = moment(cloud, 7, 100, known=True)
        store.keep_numbers({name: contact.numbers(now)[name] for name in left})

        assert contact.kept(store, now) is None


class TestLiveGrants:
    """Where grants stand, in the store's words."""

    def test_what_has_not_ended_is_live_with_its_state_and_its_classes_in_order(
        self, cloud: Cloud
    ) -> None:
        stands = {
            "g1": Standing.ACTIVE,
            "g2": Standing.PAUSED,
            "g3": Standing.PENDING,
            "g4": Standing.REVOKED,
            "g5": Standing.EXPIRED,
        }
        grants = [cloud.grant(SCOPES, grant_id=grant_id, rev=3) for grant_id in stands]

        found = live_grants(policy_of(cloud, *grants), stands, car.catalogue())

        assert found == [
            LiveGrant("g1", 3, "active", CLASSES),
            LiveGrant("g2", 3, "paused", CLASSES),
            LiveGrant("g3", 3, "pending", CLASSES),
        ]
        assert live_state(Standing.PAUSED) == "paused"

    def test_each_end_is_buried_also_of_a_grant_that_is_not_known_yet(self) -> None:
        stands = {"g1": Standing.EXPIRED, "g2": Standing.REVOKED, "g3": Standing.ACTIVE}
        overlays = Overlays(revoked={"g1", "g9", EVERY_GRANT}, paused={"g3", "g8"})

        assert tombstones(stands, overlays) == [
            Tombstone("g1", "expired"),
            Tombstone("g2", "revoked"),
            Tombstone("g9", "revoked"),
        ]

    def test_what_moved_is_told_with_its_rev(self, cloud: Cloud) -> None:
        """A grant that came with an end has not moved; one that is not named any more has."""
        policy = policy_of(
            cloud, *(cloud.grant(SCOPES, grant_id=f"g{n}", rev=n) for n in (2, 3, 4, 5))
        )
        old = {"g1": Standing.ACTIVE, "g2": Standing.ACTIVE, "g3": Standing.PENDING}
        stands = {
            "g1": Standing.REVOKED,
            "g2": Standing.EXPIRED,
            "g3": Standing.PENDING,
            "g4": Standing.REVOKED,
            "g5": Standing.ACTIVE,
            "g9": Standing.PAUSED,
        }

        found = moved(old, stands, [LiveGrant("g1", 7), LiveGrant("g2", 1)], policy)

        assert found == (
            ("g1", 7, Standing.REVOKED),
            ("g2", 2, Standing.EXPIRED),
            ("g5", 5, Standing.ACTIVE),
            ("g9", 0, Standing.PAUSED),
        )
        assert moved(old, stands, [LiveGrant("g1", 7)], None)[0] == ("g1", 7, Standing.REVOKED)


class TestSigners:
    """Who may sign, and what a trust document changes of it."""

    def renewed(self, trust: Trust, signers: Signers, token: str) -> bool:
        return signers.renew(token.encode(), verify_document(token.encode(), trust).payload)

    def test_a_trust_document_counts_from_the_disk_on_and_once(
        self, store: Store, cloud: Cloud
    ) -> None:
        root, new = make_policy_key("root-1"), make_policy_key("platform-2")
        trust = parse_trust(trust_file(cloud.signer, roots=[root]))
        token = sign_trust([new], root, ver=1, iat_s=cloud.now_s)
        signers = Signers(store, trust)
        signers.restore()
        assert signers.trust == trust

        assert [self.renewed(trust, signers, token) for _ in range(2)] == [True, False]

        assert set(signers.trust.keys) == {"root-1", "platform-2"}
        again = Signers(store, trust)
        again.restore()
        assert again.trust == signers.trust == trust_in_force(store, trust)
        with pytest.raises(Rollback):
            self.renewed(trust, again, sign_trust([new], root, ver=1, iat_s=cloud.now_s + 1))

    def test_a_newer_trust_file_is_the_word_of_whoever_stands_at_the_vehicle(
        self, store: Store, cloud: Cloud
    ) -> None:
        root = make_policy_key("root-1")
        trust = parse_trust(trust_file(cloud.signer, roots=[root]))
        signers = Signers(store, trust)
        self.renewed(trust, signers, sign_trust([cloud.signer], root, ver=1, iat_s=cloud.now_s))
        newer = parse_trust(trust_file(cloud.signer, roots=[root], ver=1))
        other = parse_trust(trust_file(cloud.signer, roots=[make_policy_key("root-1")]))

        assert trust_in_force(store, newer) == newer
        assert trust_in_force(store, other) == other


class TestRestrictions:
    """What restrict documents take away beside the policy."""

    def payload(self, cloud: Cloud, jti: str, mode: Any, *grants: str, iat_s: int = 0) -> bytes:
        document = new_restriction(
            vehicle=VEHICLE, mode=mode, grants=grants, iat_s=iat_s or cloud.now_s, jti=jti
        )
        return json.dumps(document).encode()

    def test_only_what_a_policy_takes_over_restricts_no_more(
        self, store: Store, cloud: Cloud
    ) -> None:
        restrictions, now = Restrictions(store, VEHICLE), moment(cloud, 0, 5, known=True)
        for jti, mode, grant_id in (("r1", "pause", "g1"), ("r2", "revoke", "g2")):
            document, admission = restrictions.receive(
                self.payload(cloud, jti, mode, grant_id), now
            )
            assert (document.jti, admission) == (jti, Admission.APPLY)
        both = restrictions.in_force()
        store.apply_policy(
            StoredPolicy(b"j", 1, 1, b"p" * 32, b"c" * 32, 0), [], [], 0, taken_over=["r1"]
        )

        assert both == Overlays(revoked=frozenset({"g2"}), paused=frozenset({"g1"}))
        assert restrictions.in_force() == Overlays(revoked=frozenset({"g2"}))
        assert restrictions.under(policy_of(cloud, taken_over=["r2"])) == Overlays()

    def test_one_that_is_known_changes_nothing(self, store: Store, cloud: Cloud) -> None:
        restrictions, now = Restrictions(store, VEHICLE), moment(cloud, 0, 5, known=True)

        found = [
            restrictions.receive(self.payload(cloud, "r1", "pause", "g1"), now)[1] for _ in range(2)
        ]

        assert found == [Admission.APPLY, Admission.REPEAT]

    def test_one_from_the_future_is_refused_where_the_time_is_known(
        self, store: Store, cloud: Cloud
    ) -> None:
        restrictions = Restrictions(store, VEHICLE)
        ahead = self.payload(cloud, "r1", "pause", "g1", iat_s=cloud.now_s + 86_401)

        with pytest.raises(PolicyRejected, match="a day ahead"):
            restrictions.receive(ahead, moment(cloud, 0, 5, known=True))
        assert restrictions.in_force() == Overlays()

        assert restrictions.receive(ahead, moment(cloud, 0, 5, known=False))[1] is Admission.APPLY


class TestStops:
    """What people at the vehicle have stopped."""

    def hold(self, stops: Stops, cloud: Cloud, for_s: int | None, boot_s: float) -> None:
        for_ns = None if for_s is None else for_s * NS_PER_S
        now = moment(cloud, boot_s, boot_s, known=True)
        stops.hold("g1", who="uid 1000", for_ns=for_ns, now=now)

    @pytest.mark.parametrize(
        ("first_s", "then_s", "left_s"),
        [(100, 50, 90), (100, 500, 500), (100, None, None), (None, 50, None)],
    )
    def test_of_two_stops_the_longer_holds(
        self,
        store: Store,
        cloud: Cloud,
        first_s: int | None,
        then_s: int | None,
        left_s: int | None,
    ) -> None:
        stops = Stops(store)
        self.hold(stops, cloud, first_s, boot_s=1000)

        self.hold(stops, cloud, then_s, boot_s=1010)

        (told,) = stops.status(moment(cloud, 1010, 1010, known=True))
        assert told == StopStatus("g1", "uid 1000", cloud.now_s + 1010, left_s)

    def test_one_that_is_over_has_nothing_left_on_disk(self, store: Store, cloud: Cloud) -> None:
        stops = Stops(store)
        self.hold(stops, cloud, 100, boot_s=1000)

        left_ns = []
        for boot_s in (1099, 1100, 1200):
            stops.keep(moment(cloud, 0, boot_s, known=True))
            left_ns += [stop.left_ns for stop in store.local_stops()]

        assert left_ns == [NS_PER_S, 0, 0]

    def test_the_switch_is_told_as_a_stop_of_everything(self, store: Store, cloud: Cloud) -> None:
        stops = Stops(store)
        stops.switch(moment(cloud, 3.5, 5, known=True), is_private=True)
        stops.switch(moment(cloud, 9, 11, known=True), is_private=True)

        told = stops.status(moment(cloud, 20, 22, known=True))

        assert told == (StopStatus(EVERY_GRANT, "switch", cloud.now_s + 3, None),)
        stops.switch(moment(cloud, 30, 32, known=True), is_private=False)
        assert stops.status(moment(cloud, 30, 32, known=True)) == ()
