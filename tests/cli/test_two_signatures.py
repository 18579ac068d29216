"""The owner beside the platform, from the command line: trust, diff, countersign, restrict."""

import json
from pathlib import Path
from typing import Any

import pytest

from agent.cli.main import run
from agent.core.jws import parse_trust, verify_document
from agent.core.restrict import parse_restriction
from agent.core.trust import parse_trust_document, renewed
from tests.desk import GRANT, RECIPIENT, VEHICLE, Desk, complaint

Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def desk(tmp_path: Path, capsys: Capsys) -> Desk:
    """A vehicle that needs its owner for location."""
    desk = Desk(tmp_path / "vehicle")
    for role in ("owner", "root"):
        assert run(["keys", "new", role, f"{role}-1", "--out", desk.path(f"{role}.jwk")]) == 0
    assert trust(desk, "--owner-needed-for", "location") == 0
    capsys.readouterr()
    return desk


def trust(desk: Desk, *more: str) -> int:
    owner, root = desk.path("owner.pub.jwk"), desk.path("root.pub.jwk")
    keys = [desk.path("policy.pub.jwk"), "--owner", owner, "--root", root]
    return run(["keys", "trust", *keys, *more, "--out", desk.path("trust.json")])


def countersign(desk: Desk, token: str, name: str) -> str:
    key = ["--key", desk.path("owner.jwk")]
    assert run(["policy", "countersign", token, *key, "--out", desk.path(name)]) == 0
    return desk.path(name)


def verify(desk: Desk, document: str, *more: str) -> int:
    return run(["policy", "verify", document, "--trust", desk.path("trust.json"), *more])


def wider(document: dict[str, Any]) -> dict[str, Any]:
    """The next version, with positions twice as often and the odometer as it was."""
    grant = document["grants"][0]
    details = [{"scope": "read_location", "constraints": {"min_interval_s": 30}}]
    details += grant["details"][1:]
    return {**document, "ver": 2, "grants": [{**grant, "rev": 2, "details": details}]}


def test_a_trust_file_names_roles_and_what_needs_the_owner(desk: Desk) -> None:
    written = json.loads((desk.folder / "trust.json").read_bytes())

    assert written["owner_needed_for"] == ["location"]
    assert [(key["kid"], key["role"]) for key in written["keys"]] == [
        *(("platform-1", "policy"), ("owner-1", "owner"), ("root-1", "root"))
    ]


def test_a_class_that_nobody_can_grant_needs_no_owner(desk: Desk, capsys: Capsys) -> None:
    assert trust(desk, "--owner-needed-for", "lokation") == 1

    error, hint = complaint(capsys.readouterr().err)
    assert "lokation" in error
    assert "location" in hint


def test_more_of_the_location_waits_for_the_owner(desk: Desk, capsys: Capsys) -> None:
    first = desk.new_policy("read_location,read_odometer")
    before = countersign(desk, desk.sign(), "before.jws")
    after = desk.sign(wider(first), "after.jws")
    capsys.readouterr()

    assert verify(desk, after) == 0
    assert "--before" in capsys.readouterr().err
    assert verify(desk, after, "--before", before) == 3
    error, hint = complaint(capsys.readouterr().err)
    both = countersign(desk, after, "both.jws")
    told = capsys.readouterr()
    assert verify(desk, both, "--before", before) == 0
    verified = capsys.readouterr().out.splitlines()

    assert f"grant {GRANT}, scope read_location" in error
    assert "policy countersign" in hint
    assert told.out == ""
    assert told.err.splitlines() == [
        f"countersigned: policy 1.2 for vehicle {VEHICLE}",
        f"  {GRANT}  active (live)  {RECIPIENT}: read_location, read_odometer",
    ]
    assert verified[1] == "  signed by platform-1 (policy), owner-1 (owner)"
    assert verified[-2:] == [
        f"more than policy 1.1: {GRANT} read_location (min_interval_s)",
        "it needs the owner's signature, which is there",
    ]


def test_programs_learn_who_signed_and_what_is_more(desk: Desk, capsys: Capsys) -> None:
    first = desk.new_policy("read_location,read_odometer")
    before = countersign(desk, desk.sign(), "before.jws")
    renewal = desk.sign({**first, "ver": 2, "exp": first["exp"] + 9}, "renewal.jws")
    both = countersign(desk, desk.sign(wider(first), "after.jws"), "both.jws")
    capsys.readouterr()

    found = []
    for document in (renewal, both):
        assert verify(desk, document, "--before", before, "--json") == 0
        found.append(json.loads(capsys.readouterr().out))

    assert [len(one["signers"]) for one in found] == [1, 2]
    assert [(one["more"], one["owner_needed"]) for one in found] == [
        ([], False),
        (
            [
                {
                    "grant_id": GRANT,
                    "scope": "read_location",
                    "class": "location",
                    "members": ["min_interval_s"],
                }
            ],
            True,
        ),
    ]


@pytest.mark.parametrize(
    ("members", "says"),
    [({"ver": 0}, "is older than"), ({"iss": "x"}, "another content")],
)
def test_with_the_policy_in_force_verify_refuses_what_cannot_follow_it(
    members: dict[str, Any], says: str, desk: Desk, capsys: Capsys
) -> None:
    first = desk.new_policy()
    before = desk.sign()
    after = desk.sign({**first, **members}, "after.jws")
    unraised = {**first, "ver": 2, "grants": [{**first["grants"][0], "purposes": ["x"]}]}
    capsys.readouterr()

    assert verify(desk, after, "--before", before) == 3
    assert says in complaint(capsys.readouterr().err)[0]
    assert verify(desk, desk.sign(unraised, "same-rev.jws"), "--before", before) == 3
    assert "(purposes), but its rev is 1" in complaint(capsys.readouterr().err)[0]


def test_diff_shows_what_is_more_and_what_is_less(desk: Desk, capsys: Capsys) -> None:
    first = desk.new_policy("read_location,read_odometer")
    second = wider(first)
    second["grants"][0]["details"][1]["constraints"] = {"quantum": 1000}
    second["grants"].append({**first["grants"][0], "grant_id": "gr_2"})
    old, new = desk.sign(), desk.write("new.json", json.dumps(second))
    gone = desk.write("gone.json", json.dumps({**second, "ver": 3, "grants": []}))
    capsys.readouterr()

    shown = []
    for pair in ((old, new), (new, gone), (new, new)):
        assert run(["policy", "diff", *pair]) == 0
        shown.append(capsys.readouterr().out.splitlines())
    assert run(["policy", "diff", old, new, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)

    assert shown == [
        [
            f"{GRANT}: changed (rev 1 -> 2)",
            "  + read_location (location): min_interval_s 60 -> 30",
            "  - read_odometer (usage): quantum none -> 1000",
            "gr_2: new (rev - -> 1)",
            "  + read_location (location)",
            "  + read_odometer (usage)",
        ],
        [
            f"{GRANT}: gone (rev 2 -> -)",
            "  - read_location (location)",
            "  - read_odometer (usage)",
            "gr_2: gone (rev 1 -> -)",
            "  - read_location (location)",
            "  - read_odometer (usage)",
        ],
        ["no grant differs"],
    ]
    assert [told["from"], told["to"]] == [[1, 1], [1, 2]]
    assert told["grants"][0] == {
        "grant_id": GRANT,
        "change": "changed",
        "rev": [1, 2],
        "more": [{"scope": "read_location", "class": "location", "members": ["min_interval_s"]}],
        "less": [{"scope": "read_odometer", "class": "usage", "members": ["quantum"]}],
        "other": [],
    }


def test_lint_warns_of_what_may_not_be_meant(desk: Desk, capsys: Capsys) -> None:
    document = desk.new_policy("read_location")
    fine = desk.sign()
    (grant,) = document["grants"]
    odd = {k: v for k, v in grant.items() if k not in {"exp", "offline_s", "purposes"}}
    odd["details"] = [{"scope": "read_location", "constraints": {"precise": True}}]
    odd_file = desk.write("odd.json", json.dumps({**document, "grants": [odd]}))
    bad_file = desk.write("bad.json", json.dumps({**document, "more": 1}))
    capsys.readouterr()

    assert run(["policy", "lint", fine, "--strict"]) == 0
    assert capsys.readouterr().out == "no vehicle refuses it\n"
    assert run(["policy", "lint", odd_file]) == 0
    told = capsys.readouterr().out.splitlines()
    assert run(["policy", "lint", odd_file, "--strict", "--json"]) == 1
    captured = capsys.readouterr()
    assert run(["policy", "lint", bad_file]) == 3

    assert [line.split(":")[0] for line in told] == [*["warning"] * 4, "4 warnings"]
    assert all(any(word in line for line in told) for word in ("exp", "offline_s", "a grid"))
    assert len(json.loads(captured.out)["warnings"]) == 4
    complaint(captured.err)


def test_the_owner_restricts_alone(desk: Desk, capsys: Capsys) -> None:
    key = ["--key", desk.path("owner.jwk"), "--out", desk.path("r.jws")]
    made = ["policy", "restrict", "--vehicle", VEHICLE, "--mode"]

    assert run([*made, "pause", "--grant", GRANT, "--grant", "gr_9", *key]) == 0
    told = capsys.readouterr()
    assert verify(desk, desk.path("r.jws"), "--vehicle", VEHICLE) == 0
    shown = capsys.readouterr().out.splitlines()
    assert verify(desk, desk.path("r.jws"), "--vehicle", "veh-2") == 3
    complaint(capsys.readouterr().err)
    assert run([*made, "revoke", *key]) == 0
    everything = capsys.readouterr().err

    assert f"pause of {GRANT}, gr_9" in told.err
    assert told.out == ""
    assert shown[0].startswith(f"restrict document: pause of {GRANT}, gr_9 for vehicle {VEHICLE}")
    assert shown[1] == "  signed by owner-1 (owner)"
    assert "revoke of every grant" in everything
    token = (desk.folder / "r.jws").read_bytes().strip()
    trusted = parse_trust((desk.folder / "trust.json").read_bytes())
    assert parse_restriction(verify_document(token, trusted).payload).grants == ("*",)


def test_the_platforms_keys_are_renewed_from_afar(desk: Desk, capsys: Capsys) -> None:
    desk.new_policy()
    assert run(["keys", "new", "policy", "platform-2", "--out", desk.path("policy2.jwk")]) == 0
    made = ["keys", "trust", desk.path("policy2.pub.jwk"), "--ver", "1"]
    signed = [*made, "--sign", desk.path("root.jwk"), "--out", desk.path("t.jws")]
    capsys.readouterr()

    assert run(signed) == 0
    assert verify(desk, desk.path("t.jws")) == 0
    shown = capsys.readouterr().out.splitlines()
    assert run([*signed, "--owner", desk.path("owner.pub.jwk")]) == 2
    complaint(capsys.readouterr().err)

    assert shown == [
        "trust document 1: platform-2 may sign policies: signature holds",
        "  signed by root-1 (root)",
    ]
    trusted = parse_trust((desk.folder / "trust.json").read_bytes())
    token = (desk.folder / "t.jws").read_bytes().strip()
    after = renewed(trusted, parse_trust_document(verify_document(token, trusted).payload))
    assert sorted(after.keys) == ["owner-1", "platform-2", "root-1"]


def test_only_a_policy_is_countersigned(desk: Desk, capsys: Capsys) -> None:
    desk.new_policy()
    both = countersign(desk, desk.sign(), "both.jws")
    key = ["--key", desk.path("owner.jwk")]
    capsys.readouterr()

    for document in (both, desk.path("policy.json"), desk.path("trust.json")):
        assert run(["policy", "countersign", document, *key]) == 3
        captured = capsys.readouterr()
        complaint(captured.err)
        assert captured.out == ""
