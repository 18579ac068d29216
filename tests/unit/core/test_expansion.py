"""Growth is judged against a naive model that reads the policies as plain JSON."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cloud.trust import trust_file
from agent.core import expansion
from agent.core.expansion import check_owner_signature, expands, narrowed
from agent.core.policy import Policy, parse_policy
from agent.core.standing import Overlays
from agent.core.trust import Role, Trust, parse_trust
from agent.errors import PolicyRejected
from tests.policydoc import T0_S, catalogue, encoded, example, private_jwk, public_p256

Document = dict[str, Any]
Change = Callable[[Document], object]
NOW_NS = (T0_S + 20) * 10**9
LOCATION, VIN, FUEL = (
    ("gr_01JD", "read_location"),
    ("gr_01JE", "read_vin"),
    ("gr_01JF", "read_fuel"),
)


def parse(document: Document) -> Policy:
    return parse_policy(encoded(document), catalogue())


def changed(*changes: Change) -> Document:
    document = example()
    for change in changes:
        change(document)
    return document


def grew(before: Document | None, after: Document, **more: Any) -> dict[tuple[str, str], Any]:
    found = expands(before and parse(before), parse(after), catalogue(), **more)
    return {(one.grant_id, one.scope): one.grew for one in found}


def of_grant(index: int, **members: Any) -> Change:
    return lambda document: document["grants"][index].update(members)


def of_scope(scope: str, **constraints: Any) -> Change:
    def change(document: Document) -> None:
        for grant in document["grants"]:
            for detail in grant.get("details", ()):
                if detail["scope"] == scope:
                    detail["constraints"] = constraints

    return change


def test_nothing_before_makes_all_of_it_new() -> None:
    assert grew(None, example()) == {
        LOCATION: ("grant",),
        ("gr_01JD", "read_odometer"): ("grant",),
        ("gr_01JD", "read_speedometer"): ("grant",),
        FUEL: ("grant",),
    }
    assert [e.scope_class for e in expands(None, parse(example()), catalogue())] == [
        *("location", "usage", "driver_behaviour", "usage")
    ]


def test_a_policy_gives_no_more_than_itself_and_than_its_renewal() -> None:
    """The lease of a policy is the platform's to renew; the terms of the grants stay."""
    renewed = changed(
        lambda d: d.update(ver=43, iat=T0_S + 9, nbf=T0_S + 9, exp=T0_S + 9_999_999, jti="next")
    )

    assert grew(example(), example()) == {}
    assert grew(example(), renewed) == {}


def every_scope(*words: str) -> dict[tuple[str, str], Any]:
    return {
        ("gr_01JD", scope): words
        for scope in ("read_location", "read_odometer", "read_speedometer")
    }


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (of_grant(0, recipient="insurer"), every_scope("recipient", "keys")),
        (lambda d: d["recipients"]["fleet-x"].update(name="Fleet Y"), every_scope("recipient")),
        (
            lambda d: d["recipients"]["fleet-x"]["keys"].append(
                {"kid": "fx-2", "alg": "HPKE-7-KE", "jwk": public_p256(13)}
            ),
            every_scope("keys"),
        ),
        (
            lambda d: d["recipients"]["fleet-x"]["keys"][0].update(jwk=public_p256(13)),
            every_scope("keys"),
        ),
        (of_grant(0, exp=T0_S + 7_785_601), every_scope("exp")),
        (lambda d: d["grants"][0].pop("exp") and d.update(exp=T0_S + 10**8), every_scope("exp")),
        (lambda d: d.update(nbf=T0_S - 1), {}),
        (of_grant(0, nbf=T0_S - 1), every_scope("nbf")),
        (
            lambda d: (d.update(nbf=T0_S - 1), d["grants"][0].pop("nbf")),
            every_scope("nbf"),
        ),
        (of_grant(0, retention="P31D"), every_scope("retention")),
        (of_grant(0, offline_s=86_401), every_scope("offline_s")),
        (lambda d: d["grants"][0].pop("offline_s"), every_scope("offline_s")),
        (
            of_grant(0, purposes=["dpv:ServiceProvision", "dpv:Marketing"]),
            every_scope("purposes"),
        ),
        (lambda d: d["grants"][0].pop("purposes"), every_scope("purposes")),
        (
            of_grant(0, combine=[["read_location", "read_speedometer", "read_odometer"]]),
            every_scope("combine"),
        ),
        (
            of_grant(
                0,
                combine=[["read_location", "read_speedometer"], ["read_location", "read_odometer"]],
            ),
            {
                LOCATION: ("combine",),
                ("gr_01JD", "read_odometer"): ("combine",),
            },
        ),
        (
            lambda d: d["grants"][0]["details"].append({"scope": "read_vin"}),
            {("gr_01JD", "read_vin"): ("scope",)},
        ),
        (of_grant(1, state="active"), {VIN: ("state",)}),
        (
            lambda d: d["grants"].append({**d["grants"][2], "grant_id": "gr_9"}),
            {("gr_9", "read_fuel"): ("grant",)},
        ),
        (of_scope("read_location", min_interval_s=59), {LOCATION: ("min_interval_s",)}),
        (of_scope("read_location", grid_deg=0.009), {LOCATION: ("grid_deg",)}),
        (of_scope("read_location", precise=True), {LOCATION: ("grid_deg", "precise")}),
        (
            of_scope("read_speedometer", quantum=4.9),
            {("gr_01JD", "read_speedometer"): ("quantum",)},
        ),
        (of_scope("read_speedometer"), {("gr_01JD", "read_speedometer"): ("quantum",)}),
        (of_scope("read_fuel"), {FUEL: ("once",)}),
        (
            of_scope("read_odometer", aggregate={"window_s": 60, "fn": ["last"]}),
            {("gr_01JD", "read_odometer"): ("aggregate",)},
        ),
    ],
)
def test_what_is_more_is_named(change: Change, expected: dict[tuple[str, str], Any]) -> None:
    assert grew(example(), changed(change)) == expected


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (of_grant(0, exp=T0_S + 5), ()),
        (of_grant(0, nbf=T0_S + 5), ()),
        (of_grant(0, offline_s=1), ()),
        (lambda d: d.update(nbf=T0_S + 5, exp=T0_S + 6), ()),
        (of_grant(0, state="paused"), ()),
        (of_grant(0, state="revoked"), ()),
        (lambda d: d["grants"].pop(0), ()),
        (of_grant(0, rev=4, record={"id": "cr_8", "sha256": "0" * 64}), ()),
        (of_grant(0, retention="P29D"), ("gr_01JD",)),
        (of_grant(2, purposes=["dpv:Insurance"]), ()),
        (of_grant(0, details=[{"scope": "read_odometer"}], combine=[]), ("gr_01JD",)),
        (of_scope("read_location", min_interval_s=600, grid_deg=0.1), ("gr_01JD",)),
        (of_scope("read_odometer", once=True), ("gr_01JD",)),
        (of_scope("read_fuel", once=True, min_interval_s=11), ("gr_01JF",)),
        (of_scope("read_speedometer", quantum=10), ("gr_01JD",)),
    ],
)
def test_less_is_no_more_and_what_was_collected_under_more_is_named(
    change: Change, lost: tuple[str, ...]
) -> None:
    after = changed(change)

    assert grew(example(), after) == {}
    assert narrowed(parse(example()), parse(after), catalogue()) == lost


def test_one_of_several_sets_that_may_be_joined_is_less() -> None:
    sets = [["read_location", "read_speedometer"], ["read_speedometer", "read_odometer"]]

    assert grew(changed(of_grant(0, combine=sets)), example()) == {}


def window(days: str, start: str, end: str, zone: str = "Europe/Berlin") -> Document:
    return {"days": days, "from": start, "to": end, "tz": zone}


def aggregate(window_s: int, *functions: str) -> Document:
    return {"aggregate": {"window_s": window_s, "fn": list(functions)}}


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({}, {"windows": [window("1-5", "07:00", "19:00")]}, ()),
        ({"windows": [window("1-5", "07:00", "19:00")]}, {}, ("windows",)),
        (
            {"windows": [window("1-5", "07:00", "19:00")]},
            {"windows": [window("1,3", "07:00", "12:00"), window("5", "12:00", "19:00")]},
            (),
        ),
        (
            {"windows": [window("1-5", "07:00", "19:00")]},
            {"windows": [window("1-5", "07:00", "19:01")]},
            ("windows",),
        ),
        (
            {"windows": [window("1-5", "07:00", "19:00")]},
            {"windows": [window("1-5", "09:00", "12:00", "Europe/Paris")]},
            ("windows",),
        ),
        (
            {"windows": [window("5", "22:00", "06:00")]},
            {"windows": [window("6", "00:00", "06:00")]},
            (),
        ),
        ({}, aggregate(60, "last"), ("aggregate",)),
        ({}, aggregate(5, "last"), ("min_interval_s", "aggregate")),
        (aggregate(60, "last"), {}, ("min_interval_s", "aggregate")),
        (aggregate(60, "max", "last"), aggregate(120, "last"), ()),
        (aggregate(60, "max"), aggregate(120, "max", "last"), ("aggregate",)),
        (aggregate(60, "max"), aggregate(90, "max"), ("aggregate",)),
        (aggregate(60, "max"), aggregate(30, "max"), ("aggregate",)),
    ],
)
def test_hours_and_aggregates_are_more_where_they_tell_more(
    before: Document, after: Document, words: tuple[str, ...]
) -> None:
    expected = {("gr_01JD", "read_odometer"): words} if words else {}

    found = grew(
        changed(of_scope("read_odometer", **before)), changed(of_scope("read_odometer", **after))
    )

    assert found == expected


def test_another_recipient_is_both_more_and_less() -> None:
    after = changed(of_grant(0, recipient="insurer"))

    assert narrowed(parse(example()), parse(after), catalogue()) == ("gr_01JD",)
    assert narrowed(None, parse(after), catalogue()) == ()


def test_a_key_that_was_taken_away_is_less() -> None:
    two = changed(
        lambda d: d["recipients"]["fleet-x"]["keys"].append(
            {"kid": "fx-2", "alg": "HPKE-7-KE", "jwk": public_p256(13)}
        )
    )

    assert grew(two, example()) == {}
    assert narrowed(parse(two), parse(example()), catalogue()) == ("gr_01JD",)


def test_a_grant_without_an_end_of_its_own_is_prolonged_by_the_policy() -> None:
    before, after = (
        changed(lambda d: d["grants"][0].pop("exp"), lambda d, e=end: d.update(exp=e))
        for end in (T0_S + 100, T0_S + 101)
    )

    assert grew(before, after) == every_scope("exp")
    assert grew(after, before) == {}


def test_the_default_retention_is_as_long_as_it_says() -> None:
    without = changed(lambda d: d["grants"][0].pop("retention"))

    assert grew(example(), without) == grew(without, example()) == {}


def test_what_a_restriction_holds_is_nothing_and_what_it_lets_go_is_more() -> None:
    paused = Overlays(paused=frozenset({"gr_01JF"}))
    every = Overlays(paused=frozenset({"*"}))

    assert grew(example(), example(), overlays_before=paused) == {FUEL: ("state",)}
    assert grew(example(), example(), overlays_before=every, overlays_after=paused) == every_scope(
        "state"
    )
    assert grew(None, example(), overlays_after=every) == {}
    assert grew(None, example(), overlays_after=Overlays(revoked=frozenset({"*"}))) == {}
    assert FUEL not in grew(None, example(), ended=frozenset({"gr_01JF"}))


def test_a_stop_at_the_vehicle_is_no_term_of_consent() -> None:
    """Else a policy that only renews would need the owner after each stop."""
    stopped = Overlays(stopped=frozenset({"*"}), lapsed=frozenset({"gr_01JD"}))

    assert grew(example(), example(), overlays_before=stopped) == {}


def test_a_member_that_nobody_judges_is_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a later version brings must not go past the owner."""
    other = changed(of_grant(0, record={"id": "cr_8", "sha256": "0" * 64}))
    assert grew(example(), other) == {}

    monkeypatch.setattr(expansion, "_KNOWN", expansion._KNOWN - {"record"})

    assert grew(example(), other) == every_scope("record")


def test_a_constraint_that_nobody_judges_is_more(monkeypatch: pytest.MonkeyPatch) -> None:
    narrower = changed(of_scope("read_fuel", once=True, min_interval_s=99))
    assert grew(example(), narrower) == {}

    monkeypatch.setattr(expansion, "_IS_LOOSER", {})

    assert grew(example(), narrower) == {FUEL: ("min_interval_s",)}


def test_another_catalogue_may_mean_other_things() -> None:
    before = parse(example())
    other = replace(before, catalogue_sha256="0" * 64)

    assert {e.grew for e in expands(other, before, catalogue())} == {("catalogue",)}


def trust(*classes: str) -> Trust:
    owner = private_jwk("EdDSA", seed=21, kid="owner-1")
    return parse_trust(
        trust_file(private_jwk("EdDSA"), owners=[owner], owner_needed_for=classes),
        classes=catalogue().classes,
    )


def check(after: Document, before: Document | None, *classes: str, roles: Any = None) -> None:
    check_owner_signature(
        parse(after),
        before=before and parse(before),
        roles=frozenset(roles or {Role.POLICY}),
        trust=trust(*classes),
        catalogue=catalogue(),
        now_ns=NOW_NS,
    )


def test_more_of_a_class_that_needs_the_owner_needs_the_owner() -> None:
    wider = changed(of_scope("read_location", min_interval_s=59))

    with pytest.raises(PolicyRejected) as info:
        check(wider, example(), "location", "identity")

    assert info.value.reason == "owner-signature"
    assert info.value.message == (
        "grant gr_01JD, scope read_location: it gives more than before (min_interval_s), and for "
        "class location that needs the owner's signature"
    )
    check(wider, example(), "location", roles={Role.POLICY, Role.OWNER})
    check(wider, example(), "driver_behaviour", "identity")
    check(wider, example())


def test_less_and_the_same_need_nobody_else() -> None:
    classes = tuple(catalogue().classes)
    narrower = changed(of_scope("read_location", min_interval_s=61), of_grant(2, state="revoked"))

    check(narrower, example(), *classes)
    check(example(), example(), *classes)


def test_after_an_expired_policy_everything_is_new() -> None:
    expired = changed(lambda d: d.update(exp=T0_S + 20))

    with pytest.raises(PolicyRejected, match="read_location: it gives more than before \\(grant"):
        check(example(), expired, "location")
    check(expired, None)
    with pytest.raises(PolicyRejected):
        check(example(), None, "location")


# The naive model. A question is one sample that somebody wants: does the policy permit it? Where no
# purpose is named, that is a purpose of its own.

SCOPES = {
    "read_location": {"min_interval_s": 60, "grid_deg": 0.01},
    "read_odometer": {"min_interval_s": 10},
    "read_fuel": {"min_interval_s": 10},
    "read_vin": {"once": True},
}
POOLS: dict[str, list[Any]] = {
    "recipient": ["fleet-x", "insurer"],
    "state": ["active", "paused", "revoked"],
    "nbf": [T0_S, T0_S + 50, T0_S + 100],
    "exp": [T0_S + 200, T0_S + 300, T0_S + 10**7],
    "offline_s": [0, 60, 3_600],
    "retention": ["P1D", "P30D", "P60D"],
    "purposes": [["a"], ["b"], ["a", "b"]],
    "combine": [
        [],
        [["read_location", "read_odometer"]],
        [["read_location", "read_odometer", "read_fuel"]],
        [["read_odometer", "read_fuel"]],
    ],
}
ASKED_AT = (*range(0, 320, 50), 10**6 - 1, 10**7 - 1)
DAYS = {"P1D": 1, "P30D": 30, "P60D": 60}
WINDOWS = [
    {"days": days, "from": f"{start:02}:00", "to": f"{end:02}:00", "tz": zone}
    for days, start, end, zone in (
        ("1-5", 7, 19, "Europe/Berlin"),
        ("1-5", 8, 19, "Europe/Berlin"),
        ("5-7", 22, 4, "Europe/Berlin"),
        ("7", 22, 0, "Europe/Berlin"),
        ("1", 0, 4, "Europe/Berlin"),
        ("1-5", 7, 19, "Asia/Tokyo"),
    )
]
CONSTRAINTS: dict[str, list[dict[str, Any]]] = {
    "read_location": [
        {},
        {"precise": True},
        {"grid_deg": 0.1},
        {"min_interval_s": 10, "grid_deg": 0.02},
        {"min_interval_s": 600},
    ],
    "read_odometer": [
        *({}, {"quantum": 1000}, {"quantum": 100, "min_interval_s": 0}, {"once": True}),
        *({"aggregate": {"window_s": length, "fn": ["max"]}} for length in (60, 90, 120)),
        {"aggregate": {"window_s": 60, "fn": ["count", "max"]}},
    ],
    "read_fuel": [
        *({}, {"quantum": 5}, {"min_interval_s": 5}),
        *({"windows": [window]} for window in WINDOWS),
        {"windows": WINDOWS[:2]},
        {"windows": WINDOWS[2:]},
    ],
    "read_vin": [{}],
}


@st.composite
def grants(draw: st.DrawFn, grant_id: str) -> Document:
    scopes = draw(st.lists(st.sampled_from(sorted(SCOPES)), min_size=1, max_size=4, unique=True))
    made: Document = {"grant_id": grant_id, "details": []}
    for scope in scopes:
        limits = draw(st.sampled_from(CONSTRAINTS[scope]))
        made["details"].append({"scope": scope, **({"constraints": limits} if limits else {})})
    for name, pool in POOLS.items():
        if name == "recipient" or draw(st.integers(0, 2)):
            made[name] = draw(st.sampled_from(pool))
    made["combine"] = [s for s in made.get("combine", ()) if set(s) <= set(scopes)]
    return made


@st.composite
def policies(draw: st.DrawFn) -> Document:
    document = example()
    document["recipients"]["fleet-x"]["name"] = draw(st.sampled_from(["Fleet X", "Fleet Y"]))
    if draw(st.booleans()):
        document["recipients"]["fleet-x"]["keys"].append(
            {"kid": "fx-2", "alg": "HPKE-7-KE", "jwk": public_p256(13)}
        )
    document["exp"] = draw(st.sampled_from([T0_S + 250, T0_S + 10**6]))
    ids = draw(st.lists(st.sampled_from(["g1", "g2"]), max_size=2, unique=True))
    document["grants"] = [draw(grants(grant_id)) for grant_id in ids]
    return document


@st.composite
def followers(draw: st.DrawFn, before: Document) -> Document:
    """The policy with some places exchanged, so that what follows is often no more."""
    after = copy.deepcopy(before)
    if draw(st.booleans()):
        after["exp"] = draw(st.sampled_from([T0_S + 250, T0_S + 10**6]))
    if draw(st.integers(0, 4)) == 0:
        after["recipients"] = draw(policies())["recipients"]
    for grant in after["grants"]:
        for _ in range(draw(st.integers(0, 2))):
            name = draw(st.sampled_from([*POOLS, "details", "details", "scope"]))
            if name == "details":
                detail = draw(st.sampled_from(grant["details"]))
                detail["constraints"] = draw(st.sampled_from(CONSTRAINTS[detail["scope"]]))
            elif name == "scope" and len(grant["details"]) > 1:
                grant["details"].pop()
            elif name in POOLS:
                grant[name] = draw(st.sampled_from(POOLS[name]))
        kept = {detail["scope"] for detail in grant["details"]}
        grant["combine"] = [s for s in grant.get("combine", ()) if set(s) <= kept]
    if draw(st.integers(0, 4)) == 0 and after["grants"]:
        after["grants"].pop()
    return after


def permits(document: Document) -> set[Any]:
    """Every question that the policy answers with yes, out of a grid of them."""
    return {question for grant in document["grants"] for question in answers(document, grant)}


def answers(document: Document, grant: Document) -> Iterator[Any]:
    if grant.get("state", "active") != "active":
        return
    recipient = document["recipients"][grant["recipient"]]
    readers = [(recipient["name"], key["kid"], key["jwk"]["x"]) for key in recipient["keys"]]
    start = grant.get("nbf", document["nbf"])
    end = grant.get("exp", document["exp"])
    days = DAYS[grant.get("retention", "P30D")]
    whens = [
        *(("at", T0_S + t) for t in ASKED_AT if start <= T0_S + t < end),
        *(("kept", d) for d in DAYS.values() if d <= days),
        *(("silent", s) for s in (0, 59, 3_599, 10**6) if s <= grant.get("offline_s", 10**9)),
        *(("for", p) for p in ("a", "b", "anything") if p in grant.get("purposes", ["anything"])),
    ]
    for detail in grant["details"]:
        scope = detail["scope"]
        limits = {**SCOPES[scope], **detail.get("constraints", {})}
        if limits.pop("precise", False):
            limits.pop("grid_deg", None)
        if aggregate := limits.get("aggregate"):
            limits["min_interval_s"] = aggregate["window_s"]
        hows = [
            *(("every", s) for s in (0, 5, 10, 60, 600) if s >= limits.get("min_interval_s", 0)),
            *(("step", q) for q in (0, 5, 100, 1000) if q >= limits.get("quantum", 0)),
            *(("cell", g) for g in (0, 0.01, 0.02, 0.1) if g >= limits.get("grid_deg", 0)),
            *(("again",) for _ in range(not limits.get("once", False))),
            *(
                ("with", frozenset(pair))
                for names in grant.get("combine", ())
                for pair in product(names, names)
                if scope in pair
            ),
            *(("on", moment) for moment in open_at(limits.get("windows"))),
            *(("sample",) for _ in range(aggregate is None)),
            *(
                ("window", fn, length)
                for fn in (aggregate or {"fn": ()})["fn"]
                for length in (60, 90, 120, 180, 360)
                if length % aggregate["window_s"] == 0
            ),
            ("at all",),
        ]
        for reader, how in product(readers, [*whens, *hows]):
            yield (grant["grant_id"], *reader, scope, how)


def open_at(windows: list[Any] | None) -> Iterator[Any]:
    """Yield (zone, weekday, hour) of each hour that is open; without windows it is every one."""
    for zone, day, hour in product(("Europe/Berlin", "Asia/Tokyo"), range(1, 8), range(24)):
        for window in windows or [{"days": "1-7", "from": "00:00", "to": "00:00", "tz": zone}]:
            first, _, last = window["days"].partition("-")
            days = range(int(first), int(last or first) + 1)
            start, end = int(window["from"][:2]), int(window["to"][:2])
            yesterday = (day - 2) % 7 + 1
            if window["tz"] == zone and (
                (day in days and start <= hour < (end if end > start else 24))
                or (yesterday in days and end <= start and hour < end)
            ):
                yield zone, day, hour


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_growth_is_said_exactly_where_something_more_is_permitted(data: st.DataObject) -> None:
    """Unsaid, it would go past the owner; said without need, it costs the owner a signature."""
    before = data.draw(policies())
    after = data.draw(st.one_of(followers(before), followers(before), policies()))

    assert bool(grew(before, after)) == (not permits(after) <= permits(before))
