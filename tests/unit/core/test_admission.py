import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agent import errors
from agent.core.admission import Admission, InForce, admit, check_revisions
from agent.core.catalogue import parse_catalogue
from agent.core.jws import parse_trust, verify_policy_jws
from agent.core.policy import Policy, parse_policy, parse_unsigned_policy
from agent.errors import PolicyRejected, Rollback, WrongVehicle
from tests.policydoc import T0_S, VEHICLE, catalogue, encoded, example

VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "policy"
CASES = json.loads((VECTORS / "cases.json").read_bytes())
NOW_NS = T0_S * 10**9
DAY_NS = 86_400 * 10**9


def by_name(case: dict[str, Any]) -> str:
    return str(case["name"])


def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_vectors", VECTORS / "write_vectors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def take(token: str) -> Admission:
    """All that the vehicle asks of a policy before it changes anything."""
    trust = parse_trust((VECTORS / "trust.json").read_bytes())
    payload = verify_policy_jws(token.encode("latin-1"), trust)
    policy = parse_policy(payload, parse_catalogue((VECTORS / "catalogue.json").read_bytes()))
    return admit(
        policy,
        vehicle=CASES["vehicle"],
        in_force=InForce(**CASES["in_force"]),
        now_ns=CASES["now_s"] * 10**9,
    )


def test_the_vectors_are_what_their_script_writes() -> None:
    for name, data in writer().files().items():
        assert (VECTORS / name).read_bytes() == data, name


def test_there_are_many_forged_tokens_and_no_two_are_equal() -> None:
    tokens = [case["token"] for case in CASES["forged"]]

    assert len(set(tokens)) == len(tokens) >= 50


@pytest.mark.parametrize("case", CASES["accepted"], ids=by_name)
def test_a_good_token_is_admitted(case: dict[str, str]) -> None:
    assert take(case["token"]) is Admission[case["outcome"]]


@pytest.mark.parametrize("case", CASES["forged"], ids=by_name)
def test_a_forged_token_is_refused_for_its_reason(case: dict[str, str]) -> None:
    with pytest.raises(PolicyRejected) as info:
        take(case["token"])

    assert (info.value.reason, type(info.value)) == (
        case["reason"],
        getattr(errors, case["error"]),
    )


def policy(**members: Any) -> Policy:
    return parse_policy(encoded({**example(), **members}), catalogue())


def offer(
    offered: Policy, in_force: Policy | None = None, now_ns: int | None = NOW_NS
) -> Admission:
    applied = in_force and InForce(in_force.epoch, in_force.ver, in_force.payload_sha256)
    return admit(offered, vehicle=VEHICLE, in_force=applied, now_ns=now_ns)


def test_a_first_policy_of_any_version_is_applied() -> None:
    assert offer(policy(epoch=0, ver=0)) is Admission.APPLY


def test_versions_are_compared_epoch_first() -> None:
    pairs = [(0, 9), (1, 0), (1, 1), (1, 2), (2, 0), (2, 7)]
    for before in pairs:
        for after in pairs:
            applied = policy(epoch=before[0], ver=before[1])
            offered = policy(epoch=after[0], ver=after[1])
            if after < before:
                with pytest.raises(Rollback, match=f"{after[0]}.{after[1]} is older than") as info:
                    offer(offered, applied)
                assert info.value.reason == "rollback"
            else:
                expected = Admission.REPEAT if after == before else Admission.APPLY
                assert offer(offered, applied) is expected


def test_the_same_version_with_another_content_is_refused() -> None:
    with pytest.raises(PolicyRejected, match="another content") as info:
        offer(policy(grants=[]), policy())

    assert info.value.reason == "equivocation"


def test_a_policy_for_another_vehicle_is_refused_before_anything_else() -> None:
    with pytest.raises(WrongVehicle, match=f"other, this is {VEHICLE}") as info:
        offer(policy(aud="other", ver=1), policy())

    assert info.value.reason == "vehicle"


def test_an_iat_may_be_a_day_ahead_of_the_clock_and_no_more() -> None:
    assert offer(policy(), now_ns=NOW_NS - DAY_NS) is Admission.APPLY
    with pytest.raises(PolicyRejected, match="more than a day ahead") as info:
        offer(policy(), now_ns=NOW_NS - DAY_NS - 1)

    assert info.value.reason == "future"


def test_without_a_synchronised_clock_no_date_is_from_the_future() -> None:
    assert offer(policy(), now_ns=None) is Admission.APPLY


def test_a_repetition_is_acknowledged_whatever_the_clock_says() -> None:
    assert offer(policy(), policy(), now_ns=0) is Admission.REPEAT


def test_an_expired_policy_is_applied_and_guards_against_rollback() -> None:
    late_ns = NOW_NS + 10_000 * DAY_NS
    expired = policy(ver=43)

    assert offer(expired, policy(), now_ns=late_ns) is Admission.APPLY
    assert expired.live_grants(late_ns) == ()
    with pytest.raises(Rollback):
        offer(policy(), expired, now_ns=late_ns)


def test_an_unsigned_policy_is_for_no_vehicle() -> None:
    bare = parse_unsigned_policy(b'{"grants":[]}', catalogue())

    with pytest.raises(WrongVehicle):
        offer(bare)


def revised(**members: Any) -> Policy:
    document = example()
    document["grants"][0].update(members)
    return parse_policy(encoded(document), catalogue())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("recipient", "insurer"),
        ("nbf", T0_S + 1),
        ("exp", T0_S + 7_785_599),
        ("offline_s", 86_399),
        ("purposes", ["dpv:Marketing"]),
        ("retention", "P29D"),
        ("record", {"id": "cr_8", "sha256": "ab" * 32}),
        ("combine", [["read_speedometer", "read_location"]]),
        (
            "details",
            [
                {"scope": "read_location"},
                {"scope": "read_odometer"},
                {"scope": "read_speedometer", "constraints": {"quantum": 10}},
            ],
        ),
    ],
)
def test_whatever_a_grant_says_anew_needs_a_higher_rev(name: str, value: object) -> None:
    with pytest.raises(PolicyRejected, match=f"gr_01JD changed \\({name}\\), .* 3 after 3") as info:
        check_revisions(revised(**{name: value}), before=revised())

    assert info.value.reason == "rev"
    check_revisions(revised(**{name: value}, rev=4), before=revised())
    check_revisions(revised(**{name: value}), before=None)


def test_a_rev_never_falls() -> None:
    with pytest.raises(PolicyRejected, match="changed \\(rev\\), but its rev is 2 after 3"):
        check_revisions(revised(rev=2), before=revised())


def test_the_state_of_a_grant_changes_under_its_rev() -> None:
    """So that a pause keeps what is stored, and an end needs no number."""
    for state in ("paused", "revoked"):
        check_revisions(revised(state=state), before=revised())
        check_revisions(revised(), before=revised(state=state))
