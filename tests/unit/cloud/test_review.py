import copy
from collections.abc import Callable
from typing import Any

import pytest

from agent.cloud.review import differences, value_of, warnings
from agent.core.policy import Policy, parse_policy, parse_unsigned_policy
from tests.policydoc import T0_S, catalogue, encoded, example, public_p256

Document = dict[str, Any]
NOW_NS = (T0_S + 20) * 10**9
WINDOW = {"days": "1-5", "from": "07:00", "to": "19:30", "tz": "Europe/Berlin"}


def parse(document: Document) -> Policy:
    return parse_policy(encoded(document), catalogue())


def good() -> Document:
    """The example without what is worth a warning."""
    document = example()
    document["grants"] = [document["grants"][0], document["grants"][3]]
    del document["recipients"]["insurer"]
    return document


def said(change: Callable[[Document], object], now_ns: int = NOW_NS) -> tuple[str, ...]:
    document = good()
    change(document)
    return warnings(parse(document), catalogue(), now_ns=now_ns)


def of_grant(**members: Any) -> Callable[[Document], object]:
    return lambda document: document["grants"][0].update(members)


def test_a_policy_as_it_should_be_has_no_warning() -> None:
    assert said(lambda _: None) == ()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: d.update(exp=T0_S + 20), "the policy has expired"),
        (lambda d: d.update(nbf=T0_S + 21), "the policy is not valid yet"),
        (lambda d: d.update(nbf=T0_S + 99, exp=T0_S + 99), "the policy is never valid"),
        (lambda d: d["grants"][0].pop("exp"), "gr_01JD: no exp of its own"),
        (of_grant(nbf=T0_S + 99, exp=T0_S + 99), "gr_01JD: never live"),
        (of_grant(exp=T0_S + 20), "gr_01JD: expired"),
        (lambda d: d["grants"][0].pop("offline_s"), "gr_01JD: no offline_s"),
        (of_grant(offline_s=3_599), "gr_01JD: offline_s is 3599 s"),
        (lambda d: d["grants"][0].pop("purposes"), "gr_01JD: no purposes"),
        (
            lambda d: d["grants"][0]["details"][0].update(constraints={"precise": True}),
            "gr_01JD, scope read_location: positions without a grid",
        ),
        (
            lambda d: d["recipients"].update(a=copy.deepcopy(d["recipients"]["fleet-x"])),
            "recipient a has no grant",
        ),
    ],
)
def test_what_may_not_be_meant_is_said(change: Callable[[Document], object], expected: str) -> None:
    assert any(expected in sentence for sentence in said(change))


@pytest.mark.parametrize(
    "change",
    [
        of_grant(offline_s=3_600),
        lambda d: d["grants"][0]["details"][1].update(constraints={"precise": True}),
        lambda d: d["grants"].append({"grant_id": "gr_0", "state": "revoked", "purposes": ["x"]}),
    ],
)
def test_what_is_meant_is_not_warned_of(change: Callable[[Document], object]) -> None:
    assert said(change) == ()


def test_a_recipient_of_a_revoked_grant_alone_has_no_grant() -> None:
    assert said(of_grant(state="revoked")) == ("recipient fleet-x has no grant",)


def test_differences_are_told_grant_by_grant() -> None:
    before, after = example(), example()
    changed, paused, _, revoked = after["grants"]
    changed |= {"rev": 4, "exp": T0_S + 8_000_000, "record": {"id": "cr_9", "sha256": "0" * 64}}
    changed["details"][2]["constraints"] = {"quantum": 10}
    paused["state"] = "active"
    after["grants"] = [{**after["grants"][2], "grant_id": "gr_9"}, revoked, paused, changed]

    found = differences(parse(before), parse(after), catalogue())

    assert [(one.grant_id, one.change, one.rev) for one in found] == [
        ("gr_9", "new", (None, 1)),
        ("gr_01JE", "active", (1, 1)),
        ("gr_01JD", "changed", (3, 4)),
        ("gr_01JF", "gone", (1, None)),
    ]
    new, woken, other, gone = found
    assert [(m.scope, m.grew) for m in (*new.more, *woken.more, *gone.less)] == [
        ("read_fuel", ("grant",)),
        ("read_vin", ("state",)),
        ("read_fuel", ("grant",)),
    ]
    assert {m.grew for m in other.more} == {("exp",)}
    assert [(m.scope, m.grew) for m in other.less] == [("read_speedometer", ("quantum",))]
    assert other.other == ("record",)
    assert (new.less, woken.less, gone.more, new.other) == ((), (), (), ())


def test_equal_policies_do_not_differ() -> None:
    assert differences(parse(example()), parse(example()), catalogue()) == ()


def test_a_renewed_lease_is_no_difference_and_a_pause_is_one() -> None:
    renewed, paused = example(), example()
    renewed.update(ver=43, iat=T0_S + 5, nbf=T0_S + 5, exp=T0_S + 9_000_000)
    paused["grants"][0]["state"] = "paused"

    assert differences(parse(example()), parse(renewed), catalogue()) == ()
    (one,) = differences(parse(example()), parse(paused), catalogue())
    assert (one.change, one.more, {m.grew for m in one.less}) == ("paused", (), {("state",)})


def test_what_is_neither_more_nor_less_is_told_too() -> None:
    after = example()
    del after["grants"][0]["record"]

    (one,) = differences(parse(example()), parse(after), catalogue())

    assert (one.change, one.more, one.less, one.other) == ("changed", (), (), ("record",))


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        ("recipient", "fleet-x (Fleet X GmbH)"),
        ("keys", "fx-2026-11"),
        ("exp", "2027-02-22T00:00:00Z"),
        ("nbf", "2026-11-23T21:20:00Z"),
        ("offline_s", "86400"),
        ("retention", "2592000 s"),
        ("purposes", "dpv:ServiceProvision"),
        ("combine", "read_location + read_speedometer"),
        ("min_interval_s", "60"),
        ("grid_deg", "0.01"),
        ("quantum", "none"),
        ("precise", "false"),
        ("once", "false"),
        ("windows", "1,2,3,4,5 07:00-19:30 Europe/Berlin"),
    ],
)
def test_values_are_shown_as_a_person_reads_them(member: str, expected: str) -> None:
    document = example()
    document["grants"][0]["details"][0]["constraints"]["windows"] = [WINDOW]

    assert value_of(parse(document), "gr_01JD", "read_location", member) == expected


def test_what_is_not_there_has_no_value() -> None:
    policy = parse(example())

    assert value_of(policy, "gr_9", "read_location", "exp") == "-"
    assert value_of(policy, "gr_01JD", "read_vin", "exp") == "-"
    assert value_of(policy, "gr_01JD", "read_location", "colour") == "-"


def test_an_unsigned_policy_can_be_reviewed() -> None:
    bare = parse_unsigned_policy(
        encoded(
            {
                "recipients": {"a": {}},
                "grants": [
                    {"grant_id": "g", "recipient": "a", "details": [{"scope": "read_fuel"}]}
                ],
            }
        ),
        catalogue(),
    )

    assert len(warnings(bare, catalogue(), now_ns=NOW_NS)) == 3
    assert value_of(bare, "g", "read_fuel", "exp") == "none"
    assert value_of(bare, "g", "read_fuel", "keys") == "none"
    assert public_p256()["x"] not in value_of(parse(example()), "gr_01JD", "read_location", "keys")
