import json
from copy import deepcopy
from typing import Any

import jwt
import pytest
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS

from agent.cloud import policy as cloud
from agent.cloud.trust import trust_file
from agent.core.admission import Admission, InForce, admit
from agent.core.jws import MAX_POLICY_BYTES, parse_trust, verify_policy_jws
from agent.core.policy import GrantState, Policy, parse_policy
from agent.errors import AgentError, KeyFileError, PolicyRejected
from tests.policydoc import T0_S, VEHICLE, catalogue, encoded, private_jwk, public_p256

FLEET = {**private_jwk("ES256", seed=11, kid="fx-1"), "use": "enc"}
ALGS = ["EdDSA", "ES256"]


def document() -> dict[str, Any]:
    return cloud.new_policy(
        vehicle=VEHICLE,
        issuer="https://consent.example",
        catalogue=catalogue(),
        recipients={"fleet-x": cloud.recipient("Fleet X GmbH", FLEET)},
        grants=[
            cloud.grant(
                "gr_1",
                "fleet-x",
                {"read_odometer": {}, "read_location": {"grid_deg": 0.1}},
                nbf_s=T0_S,
                exp_s=T0_S + 1000,
                purposes=["dpv:FleetManagement"],
                retention="P30D",
                combine=[["read_odometer", "read_location"]],
                record={"id": "cr_1", "sha256": "cd" * 32},
            ),
            cloud.grant(
                "gr_2",
                "fleet-x",
                {"read_fuel": {}},
                nbf_s=T0_S,
                exp_s=T0_S + 1000,
                purposes=["dpv:FleetManagement"],
                retention="P30D",
            ),
        ],
        iat_s=T0_S,
    )


def parsed(raw: dict[str, Any]) -> Policy:
    return parse_policy(encoded(raw), catalogue())


def live(raw: dict[str, Any], now_s: int = T0_S + 10) -> list[str]:
    return [grant.grant_id for grant in parsed(raw).live_grants(now_s * 10**9)]


def test_a_new_policy_is_what_a_vehicle_takes() -> None:
    policy = parsed(document())

    assert (policy.aud, policy.epoch, policy.ver) == (VEHICLE, 1, 1)
    assert (policy.iat_s, policy.nbf_s, policy.exp_s) == (T0_S, T0_S, T0_S + 30 * 86_400)
    assert live(document()) == ["gr_1", "gr_2"]
    grant = policy.grants[0]
    assert (grant.rev, grant.offline_s, grant.retention_s) == (1, 86_400, 30 * 86_400)
    assert [(d.scope, d.constraints.grid_deg) for d in grant.details] == [
        ("read_odometer", None),
        ("read_location", 0.1),
    ]
    assert grant.combine == (("read_odometer", "read_location"),)


def test_no_two_policies_have_one_name() -> None:
    assert document()["jti"] != document()["jti"]


def test_the_private_half_of_a_recipients_key_stays_where_it_is() -> None:
    entry = cloud.recipient("Fleet X GmbH", FLEET)["keys"][0]

    assert entry == {"kid": "fx-1", "alg": "HPKE-7-KE", "jwk": public_p256(11)}
    assert FLEET["d"] not in json.dumps(document())


@pytest.mark.parametrize("alg", ALGS)
def test_a_signed_policy_verifies_here_and_elsewhere(alg: str) -> None:
    key = private_jwk(alg)

    token = cloud.sign_policy(document(), key, catalogue=catalogue())

    trusted = parse_trust(trust_file(key))
    payload = verify_policy_jws(token.encode(), trusted)
    assert (
        admit(
            parse_policy(payload, catalogue()), vehicle=VEHICLE, in_force=None, now_ns=T0_S * 10**9
        )
        is Admission.APPLY
    )
    public = jwt.PyJWK({k: v for k, v in key.items() if k != "d"}, algorithm=alg)
    assert jwt.PyJWS().decode(token, public.key, algorithms=[alg]) == payload
    theirs = JWS()
    theirs.deserialize(token, JWK(**{k: v for k, v in key.items() if k != "d"}))
    assert theirs.payload == payload
    assert json.loads(theirs.objects["protected"]) == {
        "alg": alg,
        "kid": key["kid"],
        "typ": "consent-policy+jwt",
    }


def test_exact_bytes_are_signed_as_they_are() -> None:
    key = private_jwk("EdDSA")
    data = json.dumps(document(), indent=3).encode()

    token = cloud.sign_policy(data, key)

    assert verify_policy_jws(token.encode(), parse_trust(trust_file(key))) == data


def test_the_name_of_the_key_may_be_given_apart_from_it() -> None:
    key = private_jwk("ES256")
    bare = {name: key[name] for name in ("kty", "crv", "x", "y", "d")}

    token = cloud.sign_policy(document(), bare, kid="policy-es256", alg="ES256")

    assert verify_policy_jws(token.encode(), parse_trust(trust_file(key)))


def test_what_a_vehicle_would_refuse_is_not_signed_where_the_catalogue_is_given() -> None:
    raw = document()
    raw["grants"][0]["details"][1]["constraints"] = {"min_interval_s": 0.1}

    with pytest.raises(PolicyRejected, match="looser than the ceiling"):
        cloud.sign_policy(raw, private_jwk("EdDSA"), catalogue=catalogue())


def test_a_policy_that_no_vehicle_would_read_for_its_length_is_not_signed() -> None:
    with pytest.raises(PolicyRejected, match=f"at most {MAX_POLICY_BYTES}") as info:
        cloud.sign_policy(b" " * 50_000, private_jwk("EdDSA"))

    assert info.value.reason == "too-large"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}])
def test_what_json_cannot_say_is_not_signed(value: object) -> None:
    with pytest.raises(PolicyRejected) as info:
        cloud.sign_policy({"v": value}, private_jwk("EdDSA"))

    assert info.value.reason == "json"


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"d": None}, "no private Ed25519 key, as EdDSA needs"),
        ({"crv": "Ed448"}, "no private Ed25519 key"),
        ({"alg": "ES256"}, "no private P-256 key, as ES256 needs"),
        ({"alg": "none"}, "alg EdDSA or ES256, found 'none'"),
        ({"kid": None}, "no kid"),
        ({"kid": "a b"}, "no kid that matches"),
        ({"d": "AAAA"}, "damaged"),
    ],
)
def test_a_key_that_cannot_sign_is_refused_without_being_shown(
    members: dict[str, Any], says: str
) -> None:
    key = {k: v for k, v in {**private_jwk("EdDSA"), **members}.items() if v is not None}

    with pytest.raises(KeyFileError, match=says) as info:
        cloud.sign_policy(document(), key)

    assert private_jwk("EdDSA")["d"] not in str(info.value)


@pytest.mark.parametrize("key", [{}, {"kid": "a"}, {"kid": "a", "alg": "EdDSA"}, FLEET | {"x": 1}])
def test_a_key_that_cannot_be_trusted_is_refused(key: dict[str, Any]) -> None:
    with pytest.raises(KeyFileError):
        trust_file(key)


def test_the_trust_file_holds_no_private_key() -> None:
    keys = [private_jwk(alg) for alg in ALGS]

    data = trust_file(*keys)

    assert list(parse_trust(data).keys) == ["policy-eddsa", "policy-es256"]
    assert all(key["d"].encode() not in data for key in keys)


def test_the_next_version_follows_the_one_before() -> None:
    before = document()
    kept = deepcopy(before)

    after = cloud.next_version(before, iat_s=T0_S + 500)

    assert before == kept
    assert (after["ver"], after["iat"], after["nbf"]) == (2, T0_S + 500, T0_S + 500)
    assert after["exp"] - after["nbf"] == before["exp"] - before["nbf"]
    assert after["jti"] != before["jti"]
    applied = parsed(before)
    assert (
        admit(
            parsed(after),
            vehicle=VEHICLE,
            in_force=InForce(applied.epoch, applied.ver, applied.payload_sha256),
            now_ns=(T0_S + 500) * 10**9,
        )
        is Admission.APPLY
    )


def test_a_withdrawn_grant_stays_as_a_tombstone() -> None:
    before = document()
    kept = deepcopy(before)

    after = cloud.revoke(before, "gr_1", iat_s=T0_S + 1)

    assert before == kept
    assert after["ver"] == 2
    assert after["grants"][0] == {"grant_id": "gr_1", "rev": 2, "state": "revoked"}
    assert live(after) == ["gr_2"]


def test_a_grant_rests_and_wakes_and_keeps_what_is_stored() -> None:
    """A higher rev would erase it."""
    resting = cloud.pause(document(), "gr_2", iat_s=T0_S + 1)
    awake = cloud.resume(resting, "gr_2", iat_s=T0_S + 2)

    assert live(resting) == ["gr_1"]
    assert live(awake) == ["gr_1", "gr_2"]
    assert [parsed(p).grants[1].rev for p in (document(), resting, awake)] == [1, 1, 1]
    assert [parsed(p).ver for p in (document(), resting, awake)] == [1, 2, 3]


def test_nothing_leads_back_from_revoked() -> None:
    ended = cloud.revoke(document(), "gr_1", iat_s=T0_S + 1)

    for lead_back in (cloud.resume, cloud.pause):
        with pytest.raises(AgentError, match="gr_1 is revoked") as info:
            lead_back(ended, "gr_1", iat_s=T0_S + 2)
        assert info.value.hint == "renewed consent is a new grant with a new grant_id"
    assert parsed(ended).grants[0].state is GrantState.REVOKED


@pytest.mark.parametrize("change", [cloud.revoke, cloud.pause, cloud.resume])
def test_a_grant_that_is_not_there_cannot_change(change: Any) -> None:
    with pytest.raises(AgentError, match="the policy has no grant 'gr_9'"):
        change(document(), "gr_9", iat_s=T0_S)
