from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cloud.restrict import new_restriction, sign_restriction
from agent.core.admission import Admission
from agent.core.jws import parse_trust, verify_document
from agent.core.restrict import MAX_GRANTS, Restriction, admit_restriction, parse_restriction
from agent.errors import PolicyRejected, WrongVehicle
from tests.policydoc import T0_S, VEHICLE, encoded, private_jwk, trust_document

NOW_NS = T0_S * 10**9
DAY_S = 86_400


def document(**members: Any) -> dict[str, Any]:
    made = new_restriction(vehicle=VEHICLE, mode="pause", grants=["g1", "g2"], iat_s=T0_S, jti="r1")
    return {**made, **members}


def parse(**members: Any) -> Restriction:
    return parse_restriction(encoded(document(**members)))


def offer(
    restriction: Restriction,
    known: Sequence[Restriction] = (),
    taken_over: Sequence[str] = (),
    now_ns: int | None = NOW_NS,
) -> Admission:
    return admit_restriction(
        restriction, vehicle=VEHICLE, known=known, taken_over=taken_over, now_ns=now_ns
    )


def test_a_restrict_document_becomes_values() -> None:
    assert parse() == Restriction(VEHICLE, "r1", T0_S, "pause", ("g1", "g2"))
    assert parse(mode="revoke", grants="*") == Restriction(VEHICLE, "r1", T0_S, "revoke", ("*",))


def test_what_the_platform_writes_is_what_the_vehicle_reads() -> None:
    made = new_restriction(vehicle=VEHICLE, mode="revoke", iat_s=T0_S)
    token = sign_restriction(made, private_jwk("EdDSA"))
    verified = verify_document(token.encode(), parse_trust(encoded(trust_document())))

    restriction = parse_restriction(verified.payload)

    assert (restriction.mode, restriction.grants) == ("revoke", ("*",))
    assert made["jti"] != new_restriction(vehicle=VEHICLE, mode="revoke", iat_s=T0_S)["jti"]
    with pytest.raises(PolicyRejected):
        sign_restriction(made | {"mode": "erase"}, private_jwk("EdDSA"))


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"v": 2}, "version"),
        ({"v": True}, "type"),
        ({"mode": "resume"}, "unknown-mode"),
        ({"mode": "Revoke"}, "unknown-mode"),
        ({"mode": None}, "type"),
        ({"grants": []}, "range"),
        ({"grants": ["*"]}, "id"),
        ({"grants": "g1"}, "type"),
        ({"grants": ["g1", "g1"]}, "duplicate"),
        ({"grants": [1]}, "type"),
        ({"grants": [f"g{i}" for i in range(MAX_GRANTS + 1)]}, "range"),
        ({"jti": "a b"}, "id"),
        ({"jti": ""}, "id"),
        ({"aud": "+"}, "id"),
        ({"iat": 1.5}, "type"),
        ({"iat": T0_S * 1000}, "range"),
        ({"exp": T0_S}, "unknown-member"),
    ],
)
def test_a_restrict_document_with_a_fault_is_refused(members: dict[str, Any], reason: str) -> None:
    with pytest.raises(PolicyRejected) as info:
        parse(**members)

    assert info.value.reason == reason


@pytest.mark.parametrize("name", sorted(document()))
def test_every_member_is_needed(name: str) -> None:
    with pytest.raises(PolicyRejected, match=f"{name} is missing"):
        parse_restriction(encoded({k: v for k, v in document().items() if k != name}))


def test_the_most_grants_are_read() -> None:
    assert len(parse(grants=[f"g{i}" for i in range(MAX_GRANTS)]).grants) == MAX_GRANTS


def test_a_new_one_takes_effect_and_the_same_again_changes_nothing() -> None:
    assert offer(parse()) is Admission.APPLY
    assert offer(parse(), known=[parse(jti="r0"), parse()]) is Admission.REPEAT


def test_one_that_was_taken_over_never_takes_effect_again() -> None:
    """Also where it arrives only after the policy that took it over."""
    assert offer(parse(), known=[parse()], taken_over=["r1"]) is Admission.REPEAT
    assert offer(parse(), taken_over=["r0", "r1"]) is Admission.REPEAT
    assert offer(parse(), taken_over=["r0"]) is Admission.APPLY


@pytest.mark.parametrize(
    "members", [{"mode": "revoke"}, {"grants": ["g1"]}, {"grants": "*"}, {"iat": T0_S + 1}]
)
def test_another_content_under_a_known_name_is_noticed(members: dict[str, Any]) -> None:
    with pytest.raises(PolicyRejected, match="another content") as info:
        offer(parse(**members), known=[parse()])

    assert info.value.reason == "equivocation"


def test_one_for_another_vehicle_is_refused() -> None:
    with pytest.raises(WrongVehicle, match=f"other, this is {VEHICLE}"):
        offer(parse(aud="other"))


def test_one_may_be_a_day_ahead_of_the_clock_and_no_more() -> None:
    assert offer(parse(iat=T0_S + DAY_S)) is Admission.APPLY
    assert offer(parse(iat=T0_S + 9 * DAY_S), now_ns=None) is Admission.APPLY
    with pytest.raises(PolicyRejected) as info:
        offer(parse(iat=T0_S + DAY_S + 1))
    assert info.value.reason == "future"


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=100)
    | st.dictionaries(
        st.sampled_from([*document(), "x"]),
        st.none() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3)),
    ).map(lambda members: encoded({**document(), **members}))
)
def test_arbitrary_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        parse_restriction(data)
    except PolicyRejected as refused:
        assert "\n" not in refused.message  # noqa: PT017  either outcome is right
