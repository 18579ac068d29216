"""The hostile corpus of two-signature policies, restrict documents, trust documents and files."""

import base64
import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from joserfc import jws as joserfc_jws
from joserfc.jwk import ECKey, OKPKey
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS

from agent import errors
from agent.core.admission import Admission
from agent.core.catalogue import parse_catalogue
from agent.core.expansion import check_owner_signature
from agent.core.jws import POLICY_TYP, RESTRICT_TYP, TRUST_TYP, Verified, verify_document
from agent.core.policy import parse_policy
from agent.core.restrict import admit_restriction, parse_restriction
from agent.core.trust import Role, parse_trust, parse_trust_document, renewed
from agent.errors import KeyFileError, PolicyRejected
from tests.vectors.document import write_vectors as writer
from tests.vectors.policy.write_vectors import NOW_S, VEHICLE

VECTORS = Path(__file__).resolve().parents[2] / "vectors"
CASES = {path.stem: json.loads(path.read_bytes()) for path in (VECTORS / "document").glob("*.json")}
CATALOGUE = parse_catalogue((VECTORS / "policy" / "catalogue.json").read_bytes())
TRUST = parse_trust((VECTORS / "document" / "trust.json").read_bytes(), classes=CATALOGUE.classes)
SIGNED = ("two_signatures", "restrict", "trust_document")
NOW_NS = NOW_S * 10**9


def accepted(name: str) -> Any:
    return pytest.mark.parametrize("case", CASES[name]["accepted"], ids=lambda c: c["name"])


def verified(case: dict[str, str], typ: str) -> Verified:
    found = verify_document(case["token"].encode("latin-1"), TRUST)
    assert found.typ == typ
    return found


def take_policy(case: dict[str, str]) -> Verified:
    """All that a vehicle with another policy in force asks of who signed this one."""
    found = verified(case, POLICY_TYP)
    check_owner_signature(
        parse_policy(found.payload, CATALOGUE),
        before=parse_policy(CASES["two_signatures"]["before"].encode(), CATALOGUE),
        roles=found.roles,
        trust=TRUST,
        catalogue=CATALOGUE,
        now_ns=NOW_NS,
    )
    return found


def take_restriction(case: dict[str, str]) -> Admission:
    known = [
        parse_restriction(json.dumps(document).encode()) for document in CASES["restrict"]["known"]
    ]
    return admit_restriction(
        parse_restriction(verified(case, RESTRICT_TYP).payload),
        vehicle=VEHICLE,
        known=known,
        taken_over=CASES["restrict"]["taken_over"],
        now_ns=NOW_NS,
    )


def take_renewal(case: dict[str, str]) -> list[str]:
    after = renewed(TRUST, parse_trust_document(verified(case, TRUST_TYP).payload))
    return sorted(kid for kid, key in after.keys.items() if key.role is Role.POLICY)


TAKE = {
    "two_signatures": take_policy,
    "restrict": take_restriction,
    "trust_document": take_renewal,
}


def test_the_vectors_are_what_their_script_writes() -> None:
    for name, data in writer.files().items():
        assert (VECTORS / "document" / name).read_bytes() == data, name


@pytest.mark.parametrize("name", [*SIGNED, "trust_file"])
def test_there_are_many_forgeries_and_no_two_are_equal(name: str) -> None:
    forged = CASES[name]["forged"]
    texts = [case.get("token", case.get("data")) for case in forged]

    assert len(set(texts)) == len({case["name"] for case in forged}) == len(texts) >= 50


@pytest.mark.parametrize(
    ("kind", "case"),
    [(kind, case) for kind in SIGNED for case in CASES[kind]["forged"]],
    ids=lambda value: value if isinstance(value, str) else value["name"],
)
def test_a_forgery_is_refused_for_its_reason(kind: str, case: dict[str, str]) -> None:
    with pytest.raises(PolicyRejected) as info:
        TAKE[kind](case)

    assert (info.value.reason, type(info.value)) == (
        case["reason"],
        getattr(errors, case["error"]),
    )
    assert "\n" not in info.value.message


@pytest.mark.parametrize("case", CASES["trust_file"]["forged"], ids=lambda c: c["name"])
def test_a_forged_trust_file_is_refused_and_says_why(case: dict[str, str]) -> None:
    with pytest.raises(KeyFileError) as info:
        parse_trust(case["data"].encode("latin-1"), classes=CATALOGUE.classes)

    assert case["says"] in info.value.message
    assert "the trust file" in info.value.message


@accepted("two_signatures")
def test_a_policy_that_those_who_may_have_signed_is_taken(case: dict[str, Any]) -> None:
    assert sorted(take_policy(case).roles) == case["roles"]


@accepted("restrict")
def test_a_restriction_takes_effect_or_changes_nothing(case: dict[str, str]) -> None:
    assert take_restriction(case) is Admission[case["outcome"]]


@accepted("trust_document")
def test_a_trust_document_renews_the_platforms_keys(case: dict[str, Any]) -> None:
    assert take_renewal(case) == case["kids"]


@accepted("trust_file")
def test_a_trust_file_is_read(case: dict[str, str]) -> None:
    assert parse_trust(case["data"].encode(), classes=CATALOGUE.classes).keys


def by_pyjwt(token: str, alg: str, jwk: dict[str, str]) -> bytes:
    key = jwt.PyJWK({**jwk, "alg": alg})
    payload: bytes = jwt.PyJWS().decode(token, key.key, algorithms=[alg])
    return payload


def by_jwcrypto(token: str, _: str, jwk: dict[str, str]) -> bytes:
    found = JWS()
    found.deserialize(token, JWK(**jwk))
    payload: bytes = found.payload
    return payload


def by_joserfc(token: str, alg: str, jwk: dict[str, str]) -> bytes:
    kind = OKPKey if alg == "EdDSA" else ECKey
    return joserfc_jws.deserialize_compact(token, kind.import_key(jwk), algorithms=[alg]).payload


@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")  # RFC 9864: the name EdDSA.
@pytest.mark.parametrize("library", [by_pyjwt, by_jwcrypto, by_joserfc])
def test_each_signature_of_the_good_ones_holds_elsewhere(library: Any) -> None:
    """The second one once the payload is put back between its dots (RFC 7515 appendix F)."""
    keys = {key["kid"]: key for key in CASES["trust"]["keys"]}
    seen = set()
    for kind in SIGNED:
        for case in CASES[kind]["accepted"]:
            first, *rest = case["token"].split("~")
            body = first.split(".")[1]
            payload = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
            for token in (first, *(text.replace("..", f".{body}.") for text in rest)):
                header = jwt.get_unverified_header(token)
                key = keys[header["kid"]]
                assert library(token, key["alg"], key["jwk"]) == payload
                seen.add(header["kid"])

    assert seen == set(keys)
