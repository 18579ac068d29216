import copy
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.constraint import Constraints
from agent.core.policy import (
    MAX_POLICY_BYTES,
    GrantState,
    Policy,
    parse_policy,
    parse_unsigned_policy,
)
from agent.errors import PolicyRejected, WrongCatalogue
from tests.policydoc import ROOT, T0_S, VEHICLE, catalogue, encoded, example, public_p256

NS = 10**9
Place = tuple[str | int, ...]
GRANT: Place = ("grants", 0)
LATER: Place = ("grants", 2)
KEY: Place = ("recipients", "fleet-x", "keys", 0)


def parse(document: Any) -> Policy:
    return parse_policy(encoded(document), catalogue())


def parse_unsigned(document: Any) -> Policy:
    return parse_unsigned_policy(encoded(document), catalogue())


def at(root: Any, place: Place) -> Any:
    for step in place:
        root = root[step]
    return root


def changed(*place: str | int, value: Any) -> dict[str, Any]:
    document = example()
    at(document, place[:-1])[place[-1]] = value
    return document


def without(*place: str | int) -> dict[str, Any]:
    document = example()
    del at(document, place[:-1])[place[-1]]
    return document


def refusal(document: Any, read: Callable[[Any], Policy] = parse) -> PolicyRejected:
    with pytest.raises(PolicyRejected) as info:
        read(document)
    return info.value


def minimal() -> dict[str, Any]:
    """The least that replay may be given."""
    return {
        "recipients": {"a": {}},
        "grants": [{"grant_id": "g", "recipient": "a", "details": [{"scope": "read_speedometer"}]}],
    }


def test_a_policy_becomes_values() -> None:
    document = example()

    policy = parse(document)

    assert (policy.iss, policy.aud, policy.jti) == (
        "https://consent.example",
        VEHICLE,
        "7d1f8a52-4d0b-4c5e-9f7a-2f4b1f3b8c10",
    )
    assert (policy.epoch, policy.ver) == (1, 42)
    assert (policy.iat_s, policy.nbf_s, policy.exp_s) == (T0_S, T0_S, T0_S + 2_592_000)
    assert policy.catalogue_sha256 == catalogue().sha256
    assert policy.payload_sha256 == hashlib.sha256(encoded(document)).hexdigest()
    assert list(policy.recipients) == ["fleet-x", "insurer"]
    fleet = policy.recipients["fleet-x"]
    assert (fleet.recipient_id, fleet.name) == ("fleet-x", "Fleet X GmbH")
    assert [(key.kid, key.alg, dict(key.jwk)) for key in fleet.keys] == [
        ("fx-2026-11", "HPKE-7-KE", public_p256())
    ]

    grant = policy.grants[0]
    assert (grant.grant_id, grant.rev, grant.state) == ("gr_01JD", 3, GrantState.ACTIVE)
    assert (grant.recipient_id, grant.nbf_s, grant.exp_s) == ("fleet-x", T0_S, T0_S + 7_785_600)
    assert (grant.offline_s, grant.retention_s) == (86_400, 30 * 86_400)
    assert grant.purposes == ("dpv:ServiceProvision",)
    assert grant.record is not None
    assert (grant.record.record_id, grant.record.sha256) == ("cr_7", "ab" * 32)
    assert grant.combine == (("read_location", "read_speedometer"),)
    assert [(d.scope, d.constraints) for d in grant.details] == [
        ("read_location", Constraints(60 * NS, None, 0.01, precise=False, once=False)),
        ("read_odometer", Constraints(10 * NS, None, None, precise=False, once=False)),
        ("read_speedometer", Constraints(10 * NS, 5.0, None, precise=False, once=False)),
    ]


def test_state_defaults_to_active_and_rev_to_1() -> None:
    grant = parse(example()).grants[2]

    assert (grant.state, grant.rev) == (GrantState.ACTIVE, 1)


def test_a_revoked_grant_needs_its_id_alone() -> None:
    grant = parse(changed("grants", value=[{"grant_id": "g", "state": "revoked"}])).grants[0]

    assert (grant.grant_id, grant.rev, grant.recipient_id) == ("g", 1, None)
    assert grant.details == ()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("rev", -1, "range"),
        ("recipient", "nobody", "unknown-recipient"),
        ("retention", "30 days", "range"),
        ("details", [{"scope": "read_driver_state"}], "ungrantable"),
        ("details", [], "range"),
        ("combine", [["read_fuel", "read_vin"]], "unknown-scope"),
        ("exp", "never", "type"),
        ("why", "lost", "unknown-member"),
    ],
)
def test_what_a_revoked_grant_carries_is_checked(name: str, value: object, reason: str) -> None:
    assert refusal(changed("grants", 3, name, value=value)).reason == reason


LOCATIONS = ("read_location", "read_compass", "read_charge_locations")


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize(
    "combine", [[], [["read_odometer", "read_speedometer"]], [["LOCATION", "read_odometer"]]]
)
def test_speed_together_with_location_needs_a_set_in_combine(
    location: str, combine: list[list[str]]
) -> None:
    sets = [[location if name == "LOCATION" else name for name in names] for names in combine]
    details = [{"scope": name} for name in ("read_odometer", "read_speedometer", location)]
    document = changed(*GRANT, "details", value=details)
    document["grants"][0]["combine"] = sets

    refused = refusal(document)

    assert refused.reason == "combine"
    assert all(fact in refused.message for fact in ("gr_01JD", location, "read_speedometer"))
    assert refused.hint is not None
    assert f'[["{location}", "read_speedometer"]]' in refused.hint


def test_each_location_of_a_grant_needs_the_set_with_speed() -> None:
    details = [{"scope": name} for name in ("read_speedometer", *LOCATIONS)]
    document = changed(*GRANT, "details", value=details)
    document["grants"][0]["combine"] = [["read_location", "read_speedometer"]]

    assert refusal(document).reason == "combine"

    document["grants"][0]["combine"].append(["read_speedometer", *LOCATIONS[1:]])

    assert len(parse(document).grants[0].combine) == 2


def test_two_grants_may_have_speed_and_location_apart() -> None:
    document = changed(*GRANT, "details", value=[{"scope": "read_speedometer"}])
    document["grants"][0]["combine"] = []
    document["grants"][2]["details"] = [{"scope": "read_location"}]

    assert len(parse(document).grants) == 4


def test_only_active_grants_are_live_and_only_from_until() -> None:
    policy = parse(example())

    def live(now_ns: int) -> list[str]:
        return [grant.grant_id for grant in policy.live_grants(now_ns)]

    assert live(T0_S * NS - 1) == []
    assert live(T0_S * NS) == ["gr_01JD"]
    assert live((T0_S + 10) * NS - 1) == ["gr_01JD"]
    assert live((T0_S + 10) * NS) == ["gr_01JD", "gr_01JF"]
    assert live((T0_S + 100) * NS - 1) == ["gr_01JD", "gr_01JF"]
    assert live((T0_S + 100) * NS) == ["gr_01JD"]
    assert live((T0_S + 2_592_000) * NS - 1) == ["gr_01JD"]
    assert live((T0_S + 2_592_000) * NS) == []
    assert policy.grants[0].is_live((T0_S + 2_592_000) * NS)


def test_a_grant_that_ends_before_it_begins_is_never_live() -> None:
    policy = parse(changed(*GRANT, "exp", value=T0_S))

    assert "gr_01JD" not in {g.grant_id for g in policy.live_grants(T0_S * NS)}


def test_a_policy_without_grants_is_a_policy() -> None:
    policy = parse({**example(), "grants": [], "recipients": {}})

    assert policy.live_grants(T0_S * NS) == ()


def test_a_policy_cannot_be_changed() -> None:
    policy = parse(example())

    with pytest.raises(FrozenInstanceError):
        policy.ver = 43  # type: ignore[misc]
    with pytest.raises(TypeError):
        policy.recipients["x"] = policy.recipients["fleet-x"]  # type: ignore[index]
    with pytest.raises(TypeError):
        policy.recipients["fleet-x"].keys[0].jwk["x"] = "A"  # type: ignore[index]


OBJECTS: list[Place] = [
    (),
    ("catalogue",),
    ("recipients", "fleet-x"),
    KEY,
    GRANT,
    ("grants", 3),
    (*GRANT, "record"),
    (*GRANT, "details", 0),
]


@pytest.mark.parametrize("place", OBJECTS)
def test_an_unknown_member_at_any_level_refuses_the_policy(place: Place) -> None:
    refused = refusal(changed(*place, "surprise", value=None))

    assert refused.reason == "unknown-member"
    assert "unknown member 'surprise'" in refused.message
    assert refused.hint is not None
    assert refused.hint.startswith("the members are ")


def test_an_unknown_member_of_a_jwk_refuses_the_policy() -> None:
    assert refusal(changed(*KEY, "jwk", "use", value="enc")).reason == "recipient-key"


NEEDED: list[Place] = [
    *((name,) for name in ("v", "iss", "aud", "jti", "epoch", "ver", "iat", "nbf", "exp")),
    *((name,) for name in ("catalogue", "recipients", "grants")),
    *(("catalogue", name) for name in ("id", "ver", "sha256")),
    ("recipients", "insurer", "keys"),
    *((*KEY, name) for name in ("kid", "alg", "jwk")),
    *((*GRANT, name) for name in ("grant_id", "recipient", "details")),
    *((*GRANT, "record", name) for name in ("id", "sha256")),
    (*GRANT, "details", 0, "scope"),
    ("grants", 3, "grant_id"),
]


@pytest.mark.parametrize("place", NEEDED)
def test_what_a_signed_policy_needs_cannot_be_left_out(place: Place) -> None:
    refused = refusal(without(*place))

    assert refused.reason == "missing-member"
    assert f"{place[-1]} is missing" in refused.message


@pytest.mark.parametrize("name", ["nbf", "exp", "offline_s", "purposes", "retention"])
def test_a_grant_may_leave_out_what_the_policy_limits_already(name: str) -> None:
    grant = parse(without(*GRANT, name)).grants[0]

    assert getattr(grant, f"{name}_s" if name in {"nbf", "exp", "retention"} else name) in (
        None,
        (),
    )


ALL_PLACES: list[Place] = sorted(
    {
        *NEEDED,
        *((*GRANT, name) for name in ("rev", "state", "record", "combine")),
        (*GRANT, "details", 0, "constraints"),
        (*GRANT, "details", 0, "constraints", "min_interval_s"),
        (*GRANT, "purposes", 0),
        (*GRANT, "combine", 0),
        (*GRANT, "combine", 0, 0),
        (*GRANT, "details", 0),
        *((*KEY, "jwk", name) for name in ("kty", "crv", "x", "y")),
        ("grants", 0),
        KEY,
        ("recipients", "fleet-x"),
    },
    key=str,
)


FREE_TEXT: list[Place] = [
    ("iss",),
    ("jti",),
    ("recipients", "insurer", "name"),
    (*GRANT, "record", "id"),
    (*GRANT, "purposes", 0),
]


@pytest.mark.parametrize("place", ALL_PLACES)
def test_every_member_of_another_type_refuses_the_policy(place: Place) -> None:
    """Also 1.0 for 1, true for 1 and null for anything."""
    fitting = type(at(example(), place))
    for value in (None, True, 1.5, -1.0, "", "ä", [], {}, [[]], [{}], {"": 0}):
        if type(value) is fitting and value not in ("", "ä"):
            continue
        if value == "ä" and place in FREE_TEXT:
            continue
        if value == 1.5 and place[-1] == "min_interval_s":
            continue
        refused = refusal(changed(*place, value=value))
        assert refused.reason in {
            "type",
            "range",
            "id",
            "recipient-key",
            "unknown-state",
            "unknown-scope",
        }, (place, value)


@pytest.mark.parametrize("name", ["epoch", "ver", "iat", "nbf", "exp"])
@pytest.mark.parametrize(("value", "reason"), [(1.0, "type"), (True, "type"), (-1, "range")])
def test_versions_and_times_are_integers_that_are_not_negative(
    name: str, value: float, reason: str
) -> None:
    assert refusal(changed(name, value=value)).reason == reason
    if name in ("nbf", "exp"):
        assert refusal(changed(*GRANT, name, value=value)).reason == reason


def test_milliseconds_are_told_from_seconds() -> None:
    refused = refusal(changed("exp", value=T0_S * 1000))

    assert refused.reason == "range"
    assert refused.hint == "times are whole seconds since 1970, not milliseconds"


def test_versions_reach_what_a_double_can_count() -> None:
    assert parse(changed("ver", value=2**53 - 1)).ver == 2**53 - 1
    assert refusal(changed("ver", value=2**53)).reason == "json"


@pytest.mark.parametrize(
    "value", ["", " ", "a b", "a/b", "+", "#", "ä", "a" * 65, "gr\n", "gr.1", "gr\u0660"]
)
def test_an_id_that_could_be_something_else_is_refused(value: str) -> None:
    renamed = example()
    renamed["recipients"][value] = renamed["recipients"].pop("insurer")

    for document in (
        changed("aud", value=value),
        changed(*GRANT, "grant_id", value=value),
        changed(*GRANT, "recipient", value=value),
        changed(*KEY, "kid", value=value),
        renamed,
    ):
        assert refusal(document).reason == "id"


def test_the_longest_id_is_an_id() -> None:
    assert parse(changed(*GRANT, "grant_id", value="a" * 64)).grants[0].grant_id == "a" * 64


@pytest.mark.parametrize("value", ["", "a\nb", "\x1b[31m", "a" * 257, "\u202e"])
def test_text_that_could_garble_a_terminal_is_refused(value: str) -> None:
    assert refusal(changed("recipients", "fleet-x", "name", value=value)).reason == "range"


@pytest.mark.parametrize(
    ("document", "reason", "names"),
    [
        (changed("v", value=2), "version", "v 2"),
        (changed("grants", 3, "grant_id", value="gr_01JD"), "duplicate", "gr_01JD"),
        (
            changed(*GRANT, "details", 1, "scope", value="read_location"),
            "duplicate",
            "read_location",
        ),
        (changed(*GRANT, "recipient", value="fleet-y"), "unknown-recipient", "fleet-y"),
        (changed(*GRANT, "details", 1, "scope", value="read_all"), "unknown-scope", "read_all"),
        (
            changed(*LATER, "details", 0, "scope", value="read_driver_state"),
            "ungrantable",
            "biometric",
        ),
        (changed(*LATER, "state", value="pending"), "unknown-state", "pending"),
        (changed(*LATER, "state", value="ACTIVE"), "unknown-state", "active, paused, revoked"),
        (changed(*LATER, "purposes", value=[]), "range", "purposes is empty"),
        (changed(*LATER, "purposes", value=["a", "a"]), "duplicate", "'a'"),
        (changed(*LATER, "details", value=[]), "range", "details is empty"),
        (changed("recipients", "insurer", "keys", value=[]), "range", "keys is empty"),
        (changed("catalogue", "sha256", value="AB" * 32), "range", "hexadecimal"),
        (changed(*GRANT, "record", "sha256", value="ab" * 31), "range", "hexadecimal"),
        (changed(*GRANT, "combine", 0, value=["read_odometer"]), "range", "fewer than 2"),
        (
            changed(*GRANT, "combine", 0, value=["read_odometer", "read_odometer"]),
            "duplicate",
            "read_odometer",
        ),
        (
            changed(*GRANT, "combine", 0, value=["read_odometer", "read_fuel"]),
            "unknown-scope",
            "read_fuel",
        ),
        (
            changed(*GRANT, "details", 0, "constraints", value={"min_interval_s": 0.5}),
            "ceiling",
            "grant gr_01JD, scope read_location: min_interval_s 0.5",
        ),
        (
            changed("grants", 1, "details", 0, "constraints", value={"once": False}),
            "ceiling",
            "grant gr_01JE, scope read_vin: once false",
        ),
        (
            changed(*GRANT, "details", 0, "constraints", value={"windows": []}),
            "range",
            "windows has 0 elements",
        ),
        (
            changed(*GRANT, "details", 0, "constraints", value={"aggregate": {}}),
            "missing-member",
            "gr_01JD, scope read_location: aggregate: window_s is missing",
        ),
    ],
)
def test_a_fault_is_refused_for_its_reason_and_named(
    document: dict[str, Any], reason: str, names: str
) -> None:
    refused = refusal(document)

    assert refused.reason == reason
    assert names in refused.message


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("alg", "HPKE-0", "expected HPKE-7-KE"),
        ("jwk", {**public_p256(), "d": "AA"}, "private key"),
        ("jwk", {**public_p256(), "crv": "P-384"}, "crv is not P-256"),
        ("jwk", {**public_p256(), "y": public_p256()["x"]}, "no point of P-256"),
        ("jwk", {**public_p256(), "x": "AQ"}, "1 bytes long"),
        ("jwk", {"kty": "OKP", "crv": "X25519", "x": public_p256()["x"]}, "other members"),
    ],
)
def test_a_key_that_nobody_could_seal_to_is_refused(name: str, value: Any, says: str) -> None:
    refused = refusal(changed(*KEY, name, value=value))

    assert refused.reason == "recipient-key"
    assert says in refused.message
    assert public_p256()["x"] not in refused.message


def test_a_recipient_may_have_two_keys_of_different_names() -> None:
    document = example()
    keys = document["recipients"]["fleet-x"]["keys"]
    keys.append({**keys[0], "kid": "fx-2027", "jwk": public_p256(13)})
    assert [key.kid for key in parse(document).recipients["fleet-x"].keys] == [
        "fx-2026-11",
        "fx-2027",
    ]

    keys[1]["kid"] = "fx-2026-11"

    assert refusal(document).reason == "duplicate"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("P30D", 2_592_000),
        ("PT12H", 43_200),
        ("P1DT1H1M1S", 90_061),
        ("P2W", 1_209_600),
        ("P1M", 28 * 86_400),  # The shortest month.
        ("P1Y", 365 * 86_400),
        ("PT1S", 1),
        ("P100Y", 3_153_600_000),
    ],
)
def test_retention_is_an_iso_8601_duration(text: str, seconds: int) -> None:
    assert parse(changed(*GRANT, "retention", value=text)).grants[0].retention_s == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("P", "PT", "P1DT", "P0D", "PT0S", "30D", "P-1D", "-P1D", "P1.5D", "P1H", "PT1D", "p1d"),
        *("P1D ", "P1D\n", "P1D1Y", "P101Y", "P99999999999D", "P\u0663D", "2592000"),
    ],
)
def test_another_retention_is_refused(text: str) -> None:
    assert refusal(changed(*GRANT, "retention", value=text)).reason == "range"


@pytest.mark.parametrize(("name", "value"), [("id", "x"), ("ver", 9), ("sha256", "0" * 64)])
def test_a_policy_for_another_catalogue_is_refused(name: str, value: object) -> None:
    for read in (parse, parse_unsigned):
        refused = refusal(changed("catalogue", name, value=value), read)

        assert isinstance(refused, WrongCatalogue)
        assert refused.reason == "catalogue"


def test_a_policy_longer_than_64_kib_is_refused() -> None:
    data = encoded(example())
    room = MAX_POLICY_BYTES - len(data)

    assert parse_policy(data + b" " * room, catalogue()).ver == 42
    for read in (parse_policy, parse_unsigned_policy):
        with pytest.raises(PolicyRejected) as info:
            read(data + b" " * (room + 1), catalogue())
        assert info.value.reason == "too-large"


def test_an_unsigned_policy_may_leave_out_vehicle_and_time() -> None:
    policy = parse_unsigned(minimal())

    assert (policy.aud, policy.epoch, policy.ver, policy.nbf_s, policy.exp_s) == (
        "",
        0,
        0,
        None,
        None,
    )
    assert policy.catalogue_sha256 == catalogue().sha256
    assert policy.recipients["a"].keys == ()
    for now_s in (0, T0_S, 2**40):
        assert [grant.grant_id for grant in policy.live_grants(now_s * NS)] == ["g"]


def test_the_same_policy_is_refused_where_a_signed_one_is_expected() -> None:
    assert refusal(minimal()).reason == "missing-member"


def test_what_an_unsigned_policy_does_carry_is_read_and_checked() -> None:
    assert parse_unsigned(example()) == parse(example())
    for document, reason in (
        ({**minimal(), "exp": -1}, "range"),
        ({**minimal(), "exp": None}, "type"),
        ({**minimal(), "v": 2}, "version"),
        ({**minimal(), "surprise": 1}, "unknown-member"),
        ({**minimal(), "recipients": {}}, "unknown-recipient"),
        ({**minimal(), "recipients": {"a": {"keys": []}}}, "range"),
        ({}, "missing-member"),
        ({"recipients": {"a": {}}}, "missing-member"),
    ):
        assert refusal(document, parse_unsigned).reason == reason


@pytest.mark.parametrize("name", ["grant_id", "recipient", "details"])
def test_an_unsigned_grant_still_says_who_and_what(name: str) -> None:
    document = minimal()
    del document["grants"][0][name]

    assert refusal(document, parse_unsigned).reason == "missing-member"


def test_from_and_until_limit_an_unsigned_policy_where_they_stand() -> None:
    document = minimal()
    document["grants"][0]["nbf"] = 100
    document["exp"] = 200
    policy = parse_unsigned(document)

    assert [bool(policy.live_grants(t * NS)) for t in (99, 100, 199, 200)] == [
        False,
        True,
        True,
        False,
    ]


def mutate(draw: st.DrawFn, node: Any) -> Any:
    """The document with one place exchanged, removed or doubled."""
    scalar = st.sampled_from(
        [None, True, 0, -1, 1.5, 1e308, 2**53 - 1, "", "x", "read_fuel", [], {}, [[]], {"a": 1}]
    )
    if not isinstance(node, (dict, list)) or not node or draw(st.integers(0, 5)) == 0:
        return draw(scalar)
    node = copy.copy(node)
    key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
    if draw(st.integers(0, 9)) == 0:
        del node[key]
    elif isinstance(node, list) and draw(st.integers(0, 9)) == 0:
        node.append(node[key])
    else:
        node[key] = mutate(draw, node[key])
    return node


@st.composite
def mutants(draw: st.DrawFn) -> Any:
    document: Any = example()
    for _ in range(draw(st.integers(1, 3))):
        document = mutate(draw, document)
    return document


@settings(max_examples=300, deadline=None)
@given(mutants())
def test_a_mutated_policy_is_read_whole_or_refused_and_raises_nothing_else(document: Any) -> None:
    for read in (parse, parse_unsigned):
        try:
            policy = read(document)
        except PolicyRejected as refused:
            assert refused.reason in REASONS  # noqa: PT017  either outcome is right
            assert "\n" not in refused.message  # noqa: PT017
        else:
            assert len(policy.grants) == len(document["grants"])
            assert all(g.recipient_id in policy.recipients for g in policy.live_grants(T0_S * NS))


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=200)
    | st.tuples(st.integers(0, len(encoded(example())) - 1), st.binary(max_size=4)).map(
        lambda cut: encoded(example())[: cut[0]] + cut[1] + encoded(example())[cut[0] + 1 :]
    )
)
def test_arbitrary_bytes_raise_nothing_else(data: bytes) -> None:
    for read in (parse_policy, parse_unsigned_policy):
        try:
            read(data, catalogue())
        except PolicyRejected as refused:
            assert refused.reason in REASONS  # noqa: PT017  either outcome is right


DOCUMENT = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
REASONS = frozenset(
    re.findall(r"^\| `([a-z0-9-]+)` \|", DOCUMENT.partition("## Reasons")[2], re.MULTILINE)
)


def test_every_reason_in_the_code_is_in_the_document_and_no_other() -> None:
    core = ROOT / "agent" / "core"
    names = ("strictjson", "member", "recipient", "constraint", "timewindow", "aggregate")
    names += ("policy", "jws", "admission", "trust", "restrict", "expansion")
    used = {
        reason
        for name in names
        for reason in re.findall(
            r'reason(?:: str)? ?= ?"([a-z0-9-]+)"', (core / f"{name}.py").read_text()
        )
    }

    assert used == REASONS


def test_the_policies_in_the_document_are_read_as_they_stand() -> None:
    signed, unsigned = re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)
    document = json.loads(signed)
    document["catalogue"]["sha256"] = catalogue().sha256
    document["recipients"]["fleet-x"]["keys"][0]["jwk"] = public_p256()

    assert [grant.grant_id for grant in parse(document).grants] == ["gr_01JD", "gr_01JC"]
    assert len(parse_unsigned_policy(unsigned.encode(), catalogue()).grants) == 1


def taking_over(count: int) -> dict[str, Any]:
    return {**example(), "taken_over": [f"r-{index}" for index in range(count)]}


def test_a_policy_takes_over_up_to_256_restrict_documents_each_once() -> None:
    assert parse(example()).taken_over == ()
    assert len(parse(taking_over(256)).taken_over) == 256
    assert refusal(taking_over(257)).reason == "range"

    twice = refusal({**example(), "taken_over": ["r-1", "r-1"]})

    assert (twice.reason, "taken_over" in twice.message) == ("duplicate", True)
    assert refusal({**example(), "taken_over": ["r 1"]}).reason == "id"


def test_what_an_unsigned_policy_leaves_out_is_empty() -> None:
    policy = parse_unsigned(minimal())

    assert (policy.iss, policy.aud, policy.jti) == ("", "", "")
    assert (policy.epoch, policy.ver, policy.iat_s) == (0, 0, 0)
    assert (policy.nbf_s, policy.exp_s, policy.taken_over) == (None, None, ())


@pytest.mark.parametrize("path", ["Vehicle.Speed", "Vehicle.AverageSpeed"])
def test_either_speed_makes_a_scope_one_of_speed_whatever_else_is_in_it(path: str) -> None:
    """Whatever another catalogue puts together."""
    shown = catalogue()
    signals = {s.path: s for scope in shown.scopes.values() for s in scope.signals}
    mixed = replace(
        shown.scopes["read_odometer"],
        signals=(signals["Vehicle.TraveledDistance"], signals[path]),
    )
    other = replace(shown, scopes={**shown.scopes, "read_odometer": mixed})
    document = changed(
        *GRANT, "details", value=[{"scope": "read_odometer"}, {"scope": "read_location"}]
    )
    document["grants"][0]["combine"] = []

    assert len(parse(document).grants) > 0
    with pytest.raises(PolicyRejected) as info:
        parse_policy(encoded(document), other)
    assert info.value.reason == "combine"
