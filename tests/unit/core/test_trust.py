from collections.abc import Callable
from typing import Any

import pytest

from agent.cloud.trust import sign_trust, trust_file
from agent.core.jws import verify_document
from agent.core.trust import (
    Key,
    Role,
    Trust,
    key_changes,
    parse_trust,
    parse_trust_document,
    renewed,
)
from agent.errors import BadSignature, KeyFileError, PolicyRejected, Rollback
from tests.policydoc import T0_S, catalogue, encoded, private_jwk, trust_document

Change = Callable[[dict[str, Any]], object]


def change_key(**members: Any) -> Change:
    return lambda document: document["keys"][0].update(members)


def change_jwk(**members: Any) -> Change:
    return lambda document: document["keys"][0]["jwk"].update(members)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(v=2), "v is 2, expected 1"),
        (lambda d: d.update(v="1"), "v is text, expected an integer"),
        (lambda d: d.update(ver=-1), "ver is negative"),
        (lambda d: d.update(more=1), "unknown member 'more'"),
        (lambda d: d.update(keys=[]), "keys is empty"),
        (lambda d: d.pop("keys"), "keys is missing"),
        (lambda d: d["keys"].append(d["keys"][0]), "kid 'policy-eddsa' stands twice"),
        (change_key(alg="none"), "alg 'none', expected EdDSA or ES256"),
        (change_key(alg="HS256"), "alg 'HS256'"),
        (change_key(alg="ES256"), "jwk: it has other members"),
        (change_key(role="admin"), "role 'admin', expected policy or owner or root"),
        (change_key(role="Policy"), "role 'Policy'"),
        (change_key(kid="a b"), "does not match"),
        (change_key(jwk="x"), "a JWK is a JSON object"),
        (change_key(exp=1), "unknown member 'exp'"),
        (change_jwk(d="AAAA"), "private key"),
        (change_jwk(crv="Ed448"), "crv is not Ed25519"),
        (change_jwk(x="AAAA"), "x is 3 bytes long, expected 32"),
        (change_jwk(x="A" * 42 + "B"), "x: base64url is not canonical"),
        (change_jwk(x="A" * 43 + "="), "no padding"),
        (change_jwk(x="A" * 41), "cannot be 41 characters long"),
        (change_jwk(x=None), "x is not text"),
        (lambda d: d["keys"][1]["jwk"].update(x="A" * 43), "no point of P-256"),
        (lambda d: d.update(owner_needed_for="location"), "owner_needed_for is text"),
        (lambda d: d.update(owner_needed_for=["a b"]), "does not match"),
        (lambda d: d.update(owner_needed_for=["location"]), "no key of role owner"),
        (lambda d: [key.update(role="owner") for key in d["keys"]], "no key may sign policies"),
    ],
)
def test_a_trust_file_with_a_fault_is_refused(change: Change, says: str) -> None:
    document = trust_document()
    parse_trust(encoded(document))

    change(document)

    with pytest.raises(KeyFileError, match=says):
        parse_trust(encoded(document))


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b'{"v":1,"v":1,"keys":[]}', b"\xff"])
def test_bytes_that_are_no_trust_file_are_refused(data: bytes) -> None:
    with pytest.raises(KeyFileError, match="the trust file"):
        parse_trust(data)


OWNER = private_jwk("ES256", seed=21, kid="owner-1")
ROOT = private_jwk("EdDSA", seed=31, kid="root-1")
OLD = private_jwk("EdDSA", seed=7, kid="p-1")
NEW = private_jwk("EdDSA", seed=8, kid="p-2")


def whole_file(**options: Any) -> bytes:
    return trust_file(OLD, owners=[OWNER], roots=[ROOT], **options)


def test_a_trust_file_says_who_may_sign_what() -> None:
    data = whole_file(owner_needed_for=["location", "identity"], ver=4)

    trust = parse_trust(data, classes=catalogue().classes)

    assert {kid: (key.alg, key.role) for kid, key in trust.keys.items()} == {
        "p-1": ("EdDSA", Role.POLICY),
        "owner-1": ("ES256", Role.OWNER),
        "root-1": ("EdDSA", Role.ROOT),
    }
    assert trust.owner_needed_for == {"location", "identity"}
    assert trust.ver == 4
    assert all(key["d"].encode() not in data for key in (OLD, OWNER, ROOT))


def test_a_trust_file_of_the_first_version_needs_no_owner() -> None:
    trust = parse_trust(encoded(trust_document()), classes=catalogue().classes)

    assert (trust.owner_needed_for, trust.ver) == (frozenset(), 0)


def test_an_owner_is_needed_only_for_classes_that_there_are() -> None:
    data = whole_file(owner_needed_for=["location", "lokation"])

    with pytest.raises(KeyFileError, match="lokation, which is no class") as info:
        parse_trust(data, classes=catalogue().classes)

    assert info.value.hint is not None
    assert "driver_behaviour" in info.value.hint


def test_a_class_needs_the_owner_once() -> None:
    with pytest.raises(KeyFileError, match="class 'location' stands twice"):
        whole_file(owner_needed_for=["location", "location"])


def take(trust: Trust, token: str, above: int | None = None) -> Trust:
    document = parse_trust_document(verify_document(token.encode(), trust).payload)
    return renewed(trust, document, above=above)


def test_the_platforms_keys_are_renewed_step_by_step_without_touching_the_vehicle() -> None:
    trust = parse_trust(whole_file(owner_needed_for=["location"]))

    both = take(trust, sign_trust([OLD, NEW], ROOT, ver=1, iat_s=T0_S))
    alone = take(trust, sign_trust([NEW], ROOT, ver=2, iat_s=T0_S), above=both.ver)

    assert [sorted(t.keys) for t in (both, alone)] == [
        ["owner-1", "p-1", "p-2", "root-1"],
        ["owner-1", "p-2", "root-1"],
    ]
    for after in (both, alone):
        assert after.owner_needed_for == {"location"}
        assert (after.keys["owner-1"], after.keys["root-1"]) == (
            trust.keys["owner-1"],
            trust.keys["root-1"],
        )


def test_a_vehicle_that_missed_some_takes_the_newest() -> None:
    trust = parse_trust(whole_file())

    assert "p-1" not in take(trust, sign_trust([NEW], ROOT, ver=9, iat_s=T0_S)).keys


@pytest.mark.parametrize("ver", [0, 4, 5])
def test_trust_never_goes_back(ver: int) -> None:
    """Not behind a document, and not behind a file that an installer put there since."""
    by_file, old_file = (parse_trust(whole_file(ver=ver)) for ver in (5, 1))
    token = sign_trust([OLD], ROOT, ver=ver, iat_s=T0_S)

    for trust, above in ((by_file, None), (by_file, 2), (old_file, 5)):
        with pytest.raises(Rollback, match=f"ver {ver}, in force is 5") as info:
            take(trust, token, above)
        assert info.value.reason == "rollback"


@pytest.mark.parametrize("signer", [OLD, OWNER])
def test_only_a_root_key_renews(signer: dict[str, Any]) -> None:
    with pytest.raises(BadSignature) as info:
        take(parse_trust(whole_file()), sign_trust([NEW], signer, ver=1, iat_s=T0_S))

    assert info.value.reason == "role"


def test_a_root_key_that_the_file_does_not_have_renews_nothing() -> None:
    stranger = private_jwk("EdDSA", seed=32, kid="root-2")

    with pytest.raises(BadSignature) as info:
        take(parse_trust(whole_file()), sign_trust([NEW], stranger, ver=1, iat_s=T0_S))

    assert info.value.reason == "unknown-key"


@pytest.mark.parametrize("kid", ["p-1", "owner-1", "root-1"])
def test_a_kid_never_names_a_second_key(kid: str) -> None:
    with pytest.raises(PolicyRejected, match=f"the kid {kid} names another key") as info:
        take(
            parse_trust(whole_file()),
            sign_trust([{**NEW, "kid": kid}], ROOT, ver=1, iat_s=T0_S),
        )

    assert info.value.reason == "duplicate"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.update(v=2), "version"),
        (lambda d: d.update(owner_needed_for=[]), "unknown-member"),
        (lambda d: d.pop("ver"), "missing-member"),
        (lambda d: d.pop("iat"), "missing-member"),
        (lambda d: d.update(ver=1.5), "type"),
        (lambda d: d.update(iat=-1), "range"),
        (lambda d: d.update(keys=[]), "range"),
        (change_key(role="owner"), "role"),
        (change_key(role="root"), "role"),
        (change_key(alg="RS256"), "algorithm"),
        (change_jwk(d="AAAA"), "trusted-key"),
        (lambda d: d["keys"].append(d["keys"][0]), "duplicate"),
    ],
)
def test_a_trust_document_with_a_fault_is_refused(change: Change, reason: str) -> None:
    document = trust_document() | {"ver": 1, "iat": T0_S}
    assert parse_trust_document(encoded(document)).ver == 1

    change(document)

    with pytest.raises(PolicyRejected) as info:
        parse_trust_document(encoded(document))
    assert info.value.reason == reason


def test_what_became_of_keys_is_told_by_role_and_kid() -> None:
    """The same kid in another role is another key; a new key under an old kid was rotated."""
    before = {Key("policy", "a"): "1", Key("policy", "b"): "1", Key("owner", "c"): "1"}
    after = {Key("policy", "a"): "1", Key("policy", "b"): "2", Key("root", "c"): "1"}

    assert key_changes(before, after) == [
        (Key("owner", "c"), "removed"),
        (Key("policy", "b"), "rotated"),
        (Key("root", "c"), "enrolled"),
    ]
    assert key_changes(after, after) == []
