import base64
import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jws as joserfc_jws
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OKPKey
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS

from agent.core.jws import (
    MAX_POLICY_BYTES,
    Trust,
    parse_trust,
    unsafe_unverified_payload,
    verify_policy_jws,
)
from agent.errors import BadSignature, KeyFileError, PolicyRejected
from tests.policydoc import encoded, example, private_jwk

PAYLOAD = encoded(example())
ALGS = ["EdDSA", "ES256"]


def trust_document(*algs: str) -> dict[str, Any]:
    keys = []
    for alg in algs or ALGS:
        key = private_jwk(alg)
        public = {name: key[name] for name in ("kty", "crv", "x", "y") if name in key}
        keys.append({"kid": key["kid"], "alg": alg, "role": "policy", "jwk": public})
    return {"v": 1, "keys": keys}


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
    assert info.value.hint == "the trust file has policy-eddsa"


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


TOKEN = st.builds(
    lambda parts, end: b".".join(parts) + end,
    st.lists(
        st.binary(max_size=40).map(lambda b: base64.urlsafe_b64encode(b).rstrip(b"="))
        | st.sampled_from([*by_pyjwt("EdDSA").encode().split(b"."), b""]),
        min_size=2,
        max_size=4,
    ),
    st.sampled_from([b"", b"", b"=", b"\n"]),
)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | TOKEN)
def test_arbitrary_bytes_are_refused_and_raise_nothing_else(data: bytes) -> None:
    trusted = trust()
    if data == by_pyjwt("EdDSA").encode():
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


def change_key(**members: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["keys"][0].update(members)


def change_jwk(**members: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["keys"][0]["jwk"].update(members)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(v=2), "v is not 1"),
        (lambda d: d.update(more=1), "unknown member 'more'"),
        (lambda d: d.update(keys=[]), "keys is empty"),
        (lambda d: d.pop("keys"), "keys is missing"),
        (lambda d: d["keys"].append(d["keys"][0]), "kid 'policy-eddsa' stands twice"),
        (change_key(alg="none"), "alg 'none', expected EdDSA or ES256"),
        (change_key(alg="HS256"), "alg 'HS256'"),
        (change_key(alg="ES256"), "jwk: it has other members"),
        (change_key(role="root"), "role 'root', expected policy"),
        (change_key(kid="a b"), "does not match"),
        (change_key(jwk="x"), "a JWK is a JSON object"),
        (change_jwk(d="AAAA"), "private key"),
        (change_jwk(crv="Ed448"), "crv is not Ed25519"),
        (change_jwk(x="AAAA"), "x is 3 bytes long, expected 32"),
        (change_jwk(x="A" * 42 + "B"), "x: base64url is not canonical"),
        (change_jwk(x="A" * 43 + "="), "no padding"),
        (change_jwk(x="A" * 41), "cannot be 41 characters long"),
        (change_jwk(x=None), "x is not text"),
        (lambda d: d["keys"][1]["jwk"].update(x="A" * 43), "no point of P-256"),
    ],
)
def test_a_trust_file_with_a_fault_is_refused(
    change: Callable[[dict[str, Any]], object], says: str
) -> None:
    document = trust_document()
    parse_trust(encoded(document))

    change(document)

    with pytest.raises(KeyFileError, match=says):
        parse_trust(encoded(document))


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b'{"v":1,"v":1,"keys":[]}', b"\xff"])
def test_bytes_that_are_no_trust_file_are_refused(data: bytes) -> None:
    with pytest.raises(KeyFileError, match="the trust file"):
        parse_trust(data)
