import base64
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jws as joserfc_jws
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OKPKey
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS

from agent.cloud.signing import countersign, sign
from agent.core.jws import (
    MAX_POLICY_BYTES,
    POLICY_TYP,
    RESTRICT_TYP,
    TRUST_TYP,
    Signer,
    Trust,
    parse_trust,
    unsafe_unverified_payload,
    unsafe_unverified_typ,
    verify_document,
    verify_policy_jws,
)
from agent.core.trust import Role
from agent.errors import BadSignature, PolicyRejected
from tests.policydoc import encoded, example, private_jwk, trust_document

PAYLOAD = encoded(example())
ALGS = ["EdDSA", "ES256"]


@cache
def trust(*algs: str) -> Trust:
    return parse_trust(encoded(trust_document(*algs)))


def header(alg: str) -> dict[str, str]:
    return {"alg": alg, "kid": f"policy-{alg.lower()}", "typ": "consent-policy+jwt"}


def by_joserfc(alg: str) -> str:
    raw = {k: v for k, v in private_jwk(alg).items() if k not in ("kid", "alg")}
    key = (OKPKey if alg == "EdDSA" else ECKey).import_key(raw)
    if alg == "ES256":
        return joserfc_jws.serialize_compact(header(alg), PAYLOAD, key, algorithms=[alg])
    with pytest.warns(SecurityWarning, match="RFC 9864"):
        return joserfc_jws.serialize_compact(header(alg), PAYLOAD, key, algorithms=[alg])


def by_pyjwt(alg: str) -> str:
    key = jwt.PyJWK(private_jwk(alg), algorithm=alg)
    return jwt.PyJWS().encode(PAYLOAD, key.key, algorithm=alg, headers=header(alg))


def by_jwcrypto(alg: str) -> str:
    token = JWS(PAYLOAD)
    token.add_signature(JWK(**private_jwk(alg)), protected=json.dumps(header(alg)))
    return str(token.serialize(compact=True))


@pytest.mark.parametrize("alg", ALGS)
@pytest.mark.parametrize("sign", [by_joserfc, by_pyjwt, by_jwcrypto])
def test_a_policy_that_another_library_signed_verifies(
    sign: Callable[[str], str], alg: str
) -> None:
    assert verify_policy_jws(sign(alg).encode(), trust()) == PAYLOAD


@pytest.mark.parametrize("alg", ALGS)
def test_every_flipped_bit_of_a_token_is_refused(alg: str) -> None:
    """Also in the last characters, where careless decoders drop bits."""
    token, trusted = by_jwcrypto(alg).encode(), trust()
    head, body, _ = token.split(b".")
    places = [*range(len(head) + 3), *range(len(head) + len(body) - 2, len(token))]
    for place in places:
        for bit in range(8):
            forged = bytearray(token)
            forged[place] ^= 1 << bit
            with pytest.raises(PolicyRejected):
                verify_policy_jws(bytes(forged), trusted)


def test_a_key_that_is_not_trusted_cannot_sign() -> None:
    with pytest.raises(BadSignature, match="no trusted key has the kid 'policy-es256'") as info:
        verify_policy_jws(by_pyjwt("ES256").encode(), trust("EdDSA"))

    assert info.value.reason == "unknown-key"
    assert info.value.hint == "trusted are policy-eddsa"


def test_the_kid_pins_the_key() -> None:
    """A trusted key cannot sign under the name of another one."""
    token = JWS(PAYLOAD)
    token.add_signature(JWK(**private_jwk("EdDSA", seed=9)), protected=json.dumps(header("EdDSA")))

    document = trust_document("EdDSA")
    other = private_jwk("EdDSA", seed=9, kid="second")
    document["keys"].append(
        {
            "kid": "second",
            "alg": "EdDSA",
            "role": "policy",
            "jwk": {name: other[name] for name in ("kty", "crv", "x")},
        }
    )

    with pytest.raises(BadSignature) as info:
        verify_policy_jws(token.serialize(compact=True).encode(), parse_trust(encoded(document)))

    assert info.value.reason == "signature"


@pytest.mark.parametrize("length", [0, 63, 65])
@pytest.mark.parametrize("alg", ALGS)
def test_a_signature_of_another_length_is_refused_by_its_length(alg: str, length: int) -> None:
    signed, _, _ = by_pyjwt(alg).rpartition(".")
    signature = base64.urlsafe_b64encode(bytes(length)).rstrip(b"=").decode()

    with pytest.raises(BadSignature, match=f"is {length} bytes long, expected 64"):
        verify_policy_jws(f"{signed}.{signature}".encode(), trust())


def test_an_unsigned_policy_is_told_apart_with_advice() -> None:
    for data in (PAYLOAD, b"\n  " + PAYLOAD):
        with pytest.raises(PolicyRejected, match="plain JSON, expected a signed one") as info:
            verify_policy_jws(data, trust())

        assert info.value.reason == "unsigned"
        assert info.value.hint == "sign it with `consentry policy sign`"


def test_the_size_is_checked_before_anything_is_decoded() -> None:
    for data in (b"\xff" * (MAX_POLICY_BYTES + 1), b"{" * (MAX_POLICY_BYTES + 1)):
        with pytest.raises(PolicyRejected, match="65537 bytes long, at most 65536") as info:
            verify_policy_jws(data, trust())

        assert info.value.reason == "too-large"


def test_a_payload_can_be_read_without_its_signature_only_by_an_ugly_name() -> None:
    token = by_pyjwt("EdDSA")
    stranger = token[:-8] + "AAAAAAAA"[:7] + "A"

    assert unsafe_unverified_payload(stranger.encode()) == PAYLOAD
    with pytest.raises(BadSignature):
        verify_policy_jws(stranger.encode(), trust())
    with pytest.raises(PolicyRejected, match="plain JSON"):
        unsafe_unverified_payload(PAYLOAD)


SIGNED = by_pyjwt("EdDSA").encode()
TOKEN = st.builds(
    lambda parts, end: b".".join(parts) + end,
    st.lists(
        st.binary(max_size=40).map(lambda b: base64.urlsafe_b64encode(b).rstrip(b"="))
        | st.sampled_from([*SIGNED.split(b"."), b""]),
        min_size=2,
        max_size=4,
    ),
    st.sampled_from([b"", b"", b"=", b"\n"]),
)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | TOKEN)
def test_arbitrary_bytes_are_refused_and_raise_nothing_else(data: bytes) -> None:
    trusted = trust()
    if data == SIGNED:
        return

    with pytest.raises(PolicyRejected) as info:
        verify_policy_jws(data, trusted)

    assert info.value.reason in {
        "too-large",
        "unsigned",
        "token",
        "header",
        "unknown-key",
        "algorithm",
        "signature",
    }


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit"]), st.text() | st.none()))
def test_a_mutated_header_is_refused_and_raises_nothing_else(changes: dict[str, Any]) -> None:
    raw = {**header("ES256"), **changes}
    if raw == header("ES256"):
        return
    head = base64.urlsafe_b64encode(encoded(raw)).rstrip(b"=")
    _, body, signature = by_pyjwt("ES256").encode().split(b".")

    with pytest.raises(PolicyRejected):
        verify_policy_jws(b".".join([head, body, signature]), trust())


EVERYBODY = trust_document()
for _role, _seed in (("owner", 21), ("root", 31)):
    for _alg in ALGS:
        _key = private_jwk(_alg, seed=_seed, kid=f"{_role}-{_alg.lower()}")
        EVERYBODY["keys"].append(
            {
                "kid": _key["kid"],
                "alg": _alg,
                "role": _role,
                "jwk": {k: _key[k] for k in ("kty", "crv", "x", "y") if k in _key},
            }
        )
WHOLE = parse_trust(encoded(EVERYBODY))


def key_of(role: str, alg: str = "EdDSA") -> dict[str, Any]:
    seed = {"policy": 7, "owner": 21, "root": 31}[role]
    return private_jwk(alg, seed=seed, kid=f"{role}-{alg.lower()}")


def signed(role: str, typ: str, alg: str = "EdDSA") -> str:
    return sign(PAYLOAD, key_of(role, alg), typ=typ)


def other_b64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


MAY_SIGN = {POLICY_TYP: {"policy"}, RESTRICT_TYP: {"policy", "owner"}, TRUST_TYP: {"root"}}


@pytest.mark.parametrize("typ", MAY_SIGN)
@pytest.mark.parametrize("role", ["policy", "owner", "root"])
def test_the_kind_of_document_says_who_may_sign_it(typ: str, role: str) -> None:
    token = signed(role, typ).encode()

    assert unsafe_unverified_typ(token) == typ
    if role in MAY_SIGN[typ]:
        found = verify_document(token, WHOLE)
        assert (found.typ, found.payload) == (typ, PAYLOAD)
        assert found.signers == (Signer(f"{role}-eddsa", Role(role)),)
        assert found.roles == {role}
        return
    with pytest.raises(BadSignature, match=f"has the role {role}") as info:
        verify_document(token, WHOLE)
    assert info.value.reason == "role"


@pytest.mark.parametrize("first", ALGS)
@pytest.mark.parametrize("second", ALGS)
def test_the_owner_signs_beside_the_platform_over_the_same_payload(first: str, second: str) -> None:
    """Each half, with the payload put back, is a JWS that other libraries verify."""
    token = countersign(signed("policy", POLICY_TYP, first), key_of("owner", second))

    found = verify_document(token.encode(), WHOLE)

    assert found.payload == PAYLOAD == verify_policy_jws(token.encode(), WHOLE)
    assert [signer.role for signer in found.signers] == [Role.POLICY, Role.OWNER]
    assert found.roles == {Role.POLICY, Role.OWNER}
    platform, owner = token.split("~")
    attached = owner.replace("..", f".{platform.split('.')[1]}.")
    for text, key in ((platform, key_of("policy", first)), (attached, key_of("owner", second))):
        public = jwt.PyJWK({k: v for k, v in key.items() if k != "d"}, algorithm=key["alg"])
        assert jwt.PyJWS().decode(text, public.key, algorithms=[key["alg"]]) == PAYLOAD
    theirs = JWS()
    theirs.deserialize(owner)
    theirs.objects["payload"] = PAYLOAD
    theirs.verify(JWK(**{k: v for k, v in key_of("owner", second).items() if k != "d"}))
    assert json.loads(other_b64(owner.split(".")[0])) == {
        "alg": second,
        "kid": f"owner-{second.lower()}",
        "typ": POLICY_TYP,
    }


def test_every_flipped_bit_of_the_second_signature_is_refused() -> None:
    platform, owner = countersign(signed("policy", POLICY_TYP), key_of("owner")).split("~")
    for place in range(len(owner)):
        for bit in range(8):
            forged = bytearray(owner.encode())
            forged[place] ^= 1 << bit
            with pytest.raises(PolicyRejected):
                verify_document(platform.encode() + b"~" + forged, WHOLE)


def test_a_second_signature_is_for_one_policy_only() -> None:
    other = sign(PAYLOAD + b" ", key_of("policy"), typ=POLICY_TYP)
    owner = countersign(other, key_of("owner")).split("~")[1]

    with pytest.raises(BadSignature) as info:
        verify_document(f"{signed('policy', POLICY_TYP)}~{owner}".encode(), WHOLE)

    assert info.value.reason == "signature"


@pytest.mark.parametrize("second", ["policy", "root"])
def test_only_an_owner_signs_beside_the_platform(second: str) -> None:
    key = {**key_of(second), "kid": f"{second}-es256"} if second == "policy" else key_of(second)
    if second == "policy":
        key = key_of("policy", "ES256")
    token = countersign(signed("policy", POLICY_TYP), key)

    with pytest.raises(BadSignature) as info:
        verify_document(token.encode(), WHOLE)

    assert info.value.reason == "role"


def test_the_platform_cannot_stand_behind_the_owner() -> None:
    token = countersign(signed("owner", POLICY_TYP), key_of("policy"))

    with pytest.raises(BadSignature) as info:
        verify_document(token.encode(), WHOLE)

    assert info.value.reason == "role"


def test_a_restrict_document_is_no_policy() -> None:
    with pytest.raises(PolicyRejected, match="expected consent-policy") as info:
        verify_policy_jws(signed("policy", RESTRICT_TYP).encode(), WHOLE)

    assert info.value.reason == "header"


def test_only_a_policy_with_one_signature_is_countersigned() -> None:
    twice = countersign(signed("policy", POLICY_TYP), key_of("owner"))

    for token in (twice, signed("policy", RESTRICT_TYP), signed("root", TRUST_TYP)):
        with pytest.raises(PolicyRejected, match="only a policy with one signature"):
            countersign(token, key_of("owner", "ES256"))


def hand_signed(head: bytes, payload: bytes) -> bytes:
    """A token with a header as it is, by the EdDSA policy key."""
    parts = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (head, payload))
    seed = other_b64(key_of("policy")["d"])
    signature = Ed25519PrivateKey.from_private_bytes(seed).sign(parts)
    return parts + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")


def test_the_longest_document_and_the_longest_header_are_read() -> None:
    head = encoded(header("EdDSA"))
    around = len(hand_signed(head, b""))
    longest = hand_signed(head, b" " * ((MAX_POLICY_BYTES - around) * 3 // 4))
    wide = hand_signed(head + b" " * (512 - len(head)), PAYLOAD)

    assert len(longest) == MAX_POLICY_BYTES
    assert verify_document(longest, WHOLE).payload.isspace()
    assert verify_document(wide, WHOLE).payload == PAYLOAD
    with pytest.raises(PolicyRejected) as info:
        verify_document(hand_signed(head + b" " * (513 - len(head)), PAYLOAD), WHOLE)
    assert info.value.reason == "header"


def test_nothing_with_three_signatures_is_a_document_even_unchecked() -> None:
    twice = countersign(signed("policy", POLICY_TYP), key_of("owner"))
    third = countersign(signed("policy", POLICY_TYP), key_of("owner", "ES256")).split("~")[1]

    with pytest.raises(PolicyRejected, match="it has 3 signatures, expected 1 or 2"):
        unsafe_unverified_payload(f"{twice}~{third}".encode())
