"""Keys, policies, `check` and `run` from the command line, as platform and installer use them."""

import json
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cli.main import run
from agent.core.model import NS_PER_S
from agent.demo.broker import Broker
from tests import car
from tests.desk import (
    GRANT,
    RECIPIENT,
    VEHICLE,
    WAIT_S,
    CanServer,
    Desk,
    complaint,
    consentry,
    needs_mosquitto,
    wait_for,
)

FILES = ("my.jwk", "my.pub.jwk")

Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "vehicle")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    needs_mosquitto()
    with Broker(tmp_path / "broker") as running:
        yield running


@pytest.mark.broker
def test_the_whole_way_from_keys_to_samples(desk: Desk, broker: Broker) -> None:
    """keys, policy new, sign, verify, check, run, SIGTERM, run again, receive."""
    desk.new_policy(constraints={"min_interval_s": 0})
    policy = desk.sign()
    broker.write_client(VEHICLE, desk.folder)
    mine = desk.folder / "mine"
    mine.mkdir()
    broker.write_client(RECIPIENT, mine)
    start_ns = time.time_ns() // NS_PER_S * NS_PER_S
    drive = [(start_ns + i * 10**8, i) for i in (*range(10), 700)]

    with CanServer() as bus:
        desk.configure(port=broker.port, bus_port=bus.port)
        with desk.running("--policy", policy) as process:
            wait_for("the bus", lambda: "info: running" in desk.log, process)
            bus.send((t_ns, *car.odometer(0, metres)[1:]) for t_ns, metres in drive)
            # The last frame is a minute later: it closes the first batch, and its own is open.
            wait_for("the first envelope", desk.spooled, process)
            assert desk.stop(process) < 5
        with desk.running():
            received = consentry(
                *("receive", "--host", "localhost", "--port", str(broker.port)),
                *("--ca", str(mine / "ca.pem"), "--certificate", str(mine / "client.pem")),
                *("--private-key", str(mine / "client.key"), "--recipient", RECIPIENT),
                *("--key", desk.path("recipient.jwk"), "--device", desk.path("device.pub.jwk")),
                *("--count", "2", "--seconds", str(WAIT_S)),
            )

    assert received.returncode == 0, received.stderr
    assert [json.loads(line) for line in received.stdout.splitlines()] == [
        {
            "t": t_ns,
            "recipient": RECIPIENT,
            "grant": GRANT,
            "scope": "read_odometer",
            "path": "Vehicle.TraveledDistance",
            "value": metres,
            "unit": "m",
        }
        for t_ns, metres in drive
    ]
    assert "Traceback" not in desk.log


@pytest.mark.parametrize(
    ("role", "options", "shape"),
    [
        ("policy", [], {"kty": "OKP", "crv": "Ed25519"}),
        ("owner", ["--alg", "ES256"], {"kty": "EC", "crv": "P-256"}),
        ("root", [], {"kty": "OKP", "crv": "Ed25519"}),
        ("device", ["--alg", "ES256"], {"kty": "EC", "crv": "P-256"}),
        ("recipient", [], {"kty": "EC", "crv": "P-256"}),
    ],
)
def test_a_new_key_is_two_files_and_only_the_public_one_is_for_others(
    role: str, options: list[str], shape: dict[str, str], tmp_path: Path, capsys: Capsys
) -> None:
    out = tmp_path / "my.jwk"

    assert run(["keys", "new", role, "kid-1", "--out", str(out), *options]) == 0

    private, public = (json.loads((tmp_path / name).read_text()) for name in FILES)
    assert private.items() >= (shape | {"kid": "kid-1"}).items()
    assert public == {name: value for name, value in private.items() if name != "d"}
    assert "d" in private
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in FILES]
    assert modes == [0o600, 0o644]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert private["d"] not in captured.err


@pytest.mark.parametrize("there", ["my.jwk", "my.pub.jwk"])
def test_keys_are_never_overwritten(there: str, tmp_path: Path, capsys: Capsys) -> None:
    """Neither half: the other one is not made either, for it would be a key without its pair."""
    (tmp_path / there).write_text("mine")

    assert run(["keys", "new", "device", "kid-1", "--out", str(tmp_path / "my.jwk")]) == 1

    error, _ = complaint(capsys.readouterr().err)
    assert there in error
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {there: "mine"}


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["keys", "new", "driver", "kid-1", "--out", "x"], 2),
        (["keys", "new", "device", "a b", "--out", "x"], 1),
        (["keys", "new", "device", "kid-1"], 2),
        (["keys", "new", "device", "kid-1", "--out", "nowhere/x"], 1),
        (["keys", "trust", "nowhere.jwk"], 1),
        (["keys", "trust"], 2),
    ],
)
def test_a_key_that_cannot_be_made_is_one_clear_error(
    arguments: list[str],
    status: int,
    tmp_path: Path,
    capsys: Capsys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)

    assert run(arguments) == status

    captured = capsys.readouterr()
    complaint(captured.err)
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_trust_file_takes_public_halves_and_never_holds_a_private_one(desk: Desk) -> None:
    """An installer may name either file of a pair."""
    out = desk.path("again.json")

    assert run(["keys", "trust", desk.path("policy.jwk"), "--out", out]) == 0

    assert Path(out).read_bytes() == (desk.folder / "trust.json").read_bytes()
    assert "d" not in json.loads(Path(out).read_text())["keys"][0]["jwk"]


def test_a_recipients_key_signs_no_policies(desk: Desk, capsys: Capsys) -> None:
    desk.new_policy()
    capsys.readouterr()

    key = desk.path("recipient.jwk")
    assert run(["keys", "trust", key, "--out", desk.path("x")]) == 1
    complaint(capsys.readouterr().err)
    assert run(["policy", "sign", desk.path("policy.json"), "--key", key]) == 1
    captured = capsys.readouterr()
    complaint(captured.err)
    assert captured.out == ""
    assert not (desk.folder / "x").exists()


def test_a_new_policy_binds_vehicle_catalogue_and_recipients(desk: Desk) -> None:
    document = desk.new_policy("read_odometer,read_location")

    assert (document["aud"], document["ver"], document["epoch"]) == (VEHICLE, 1, 1)
    assert document["catalogue"]["sha256"] == car.catalogue().sha256
    (key,) = document["recipients"][RECIPIENT]["keys"]
    assert key["kid"] == "fx-1"
    assert "d" not in key["jwk"]
    (grant,) = document["grants"]
    assert [detail["scope"] for detail in grant["details"]] == ["read_odometer", "read_location"]
    assert grant["exp"] - grant["nbf"] == 30 * 86_400


def test_a_new_policy_says_which_scopes_may_be_joined(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [
        *("policy", "new", "--vehicle", VEHICLE),
        *("--recipient", f"{RECIPIENT}={desk.path('recipient.pub.jwk')}"),
        *("--grant", f"{GRANT}={RECIPIENT}:read_location,read_speedometer"),
    ]

    assert run(made) == 3
    assert "combine" in capsys.readouterr().err
    assert run([*made, "--combine", f"{GRANT}=read_location,read_speedometer"]) == 0

    (grant,) = json.loads(capsys.readouterr().out)["grants"]
    assert grant["combine"] == [["read_location", "read_speedometer"]]
    assert run([*made, "--combine", "gr_other=read_location,read_speedometer"]) == 2


@pytest.mark.parametrize(
    ("replaced", "status"),
    [
        ({"--grant": "gr_1=fleet-x:read_minds"}, 3),
        ({"--grant": "gr_1=fleet-x:read_driver_state"}, 3),
        ({"--grant": "gr_1=nobody:read_odometer"}, 3),
        ({"--grant": "gr 1=fleet-x:read_odometer"}, 3),
        ({"--grant": "gr_1"}, 2),
        ({"--grant": "gr_1=fleet-x"}, 2),
        ({"--recipient": "fleet-x"}, 2),
        ({"--recipient": "fleet-x=nowhere.jwk"}, 1),
        ({"--vehicle": "my car"}, 3),
        ({"--days": "0"}, 2),
        ({"--catalogue": "nowhere.json"}, 1),
    ],
)
def test_a_policy_that_no_vehicle_would_take_is_not_written(
    replaced: dict[str, str], status: int, desk: Desk, capsys: Capsys
) -> None:
    options = {
        "--vehicle": VEHICLE,
        "--recipient": f"{RECIPIENT}={desk.path('recipient.pub.jwk')}",
        "--grant": f"{GRANT}={RECIPIENT}:read_odometer",
        "--out": desk.path("policy.json"),
    } | replaced
    capsys.readouterr()

    assert run(["policy", "new", *(word for pair in options.items() for word in pair)]) == status

    complaint(capsys.readouterr().err)
    assert not (desk.folder / "policy.json").exists()


def test_verify_tells_people_and_programs_what_a_policy_grants(desk: Desk, capsys: Capsys) -> None:
    desk.new_policy("read_odometer,read_location")
    arguments = ["policy", "verify", desk.sign(), "--trust", desk.path("trust.json")]
    capsys.readouterr()

    assert run([*arguments, "--vehicle", VEHICLE]) == 0
    told = capsys.readouterr().out
    assert run([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)

    assert told.splitlines() == [
        f"policy 1.1 for vehicle {VEHICLE}: signature holds",
        "  signed by platform-1 (policy)",
        f"  {GRANT}  active (live)  {RECIPIENT}: read_odometer, read_location",
    ]
    assert (found["vehicle"], found["epoch"], found["ver"]) == (VEHICLE, 1, 1)
    assert found["signers"] == [{"kid": "platform-1", "role": "policy"}]
    assert found["live_now"] == [GRANT]
    assert found["grants"] == [
        {
            "grant_id": GRANT,
            "state": "active",
            "recipient": RECIPIENT,
            "scopes": ["read_odometer", "read_location"],
        }
    ]


def test_verify_refuses_as_the_vehicle_would(desk: Desk, capsys: Capsys) -> None:
    desk.new_policy()
    token = Path(desk.sign()).read_text()
    other = Desk(desk.folder.with_name("other"))
    wrong = {
        "another key's": (token, other.path("trust.json"), VEHICLE),
        "another vehicle's": (token, desk.path("trust.json"), "veh-2"),
        "changed": (token[:-10] + "AAAAAAAAAA", desk.path("trust.json"), VEHICLE),
        "unsigned": ((desk.folder / "policy.json").read_text(), desk.path("trust.json"), VEHICLE),
    }

    for text, trust, vehicle in wrong.values():
        capsys.readouterr()
        file = desk.write("wrong.jws", text)
        assert run(["policy", "verify", file, "--trust", trust, "--vehicle", vehicle]) == 3
        captured = capsys.readouterr()
        complaint(captured.err)
        assert captured.out == ""


def test_a_revocation_is_the_next_version_and_for_good(desk: Desk, capsys: Capsys) -> None:
    before = desk.new_policy()
    capsys.readouterr()

    assert run(["policy", "revoke", desk.path("policy.json"), GRANT]) == 0

    after = json.loads(capsys.readouterr().out)
    assert after["ver"] == before["ver"] + 1
    assert after["jti"] != before["jti"]
    assert after["grants"][0]["state"] == "revoked"
    assert run(["policy", "revoke", desk.path("policy.json"), "gr_2"]) == 1
    error, hint = complaint(capsys.readouterr().err)
    assert "gr_2" in error
    assert GRANT in hint


def test_what_a_vehicle_would_refuse_is_not_signed(desk: Desk, capsys: Capsys) -> None:
    """And the token that is there already stays."""
    document = desk.new_policy()
    signed = Path(desk.sign())
    before = signed.read_bytes()
    source = desk.write("wrong.json", json.dumps(document | {"surprise": 1}))
    capsys.readouterr()

    key = ["--key", desk.path("policy.jwk")]
    assert run(["policy", "sign", source, *key, "--out", str(signed)]) == 3

    error, _ = complaint(capsys.readouterr().err)
    assert "surprise" in error
    assert signed.read_bytes() == before


def check(desk: Desk, *arguments: str) -> int:
    return run(["check", "--config", desk.path("agent.toml"), *arguments])


@pytest.fixture
def ready(desk: Desk, tmp_path: Path) -> Desk:
    """A vehicle with certificates, and nothing running."""
    Broker(tmp_path / "broker").write_client(VEHICLE, desk.folder)
    return desk


def test_check_tells_what_a_vehicle_can_give(ready: Desk, capsys: Capsys) -> None:
    ready.new_policy("read_odometer,read_location", {"min_interval_s": 60})
    policy = ready.sign()
    capsys.readouterr()

    assert check(ready, "--strict", "--policy", policy) == 0
    told = capsys.readouterr()
    assert check(ready, "--json", "--policy", policy) == 0
    found = json.loads(capsys.readouterr().out)

    assert told.err == ""
    assert told.out.splitlines()[-2:] == ["the policy lets out 3 of them", "ok"]
    assert found["vehicle"] == VEHICLE
    assert found["catalogue"]["sha256"] == car.catalogue().sha256
    assert len(found["mapped"]) == 6
    assert found["disabled"] == {}
    assert found["taken"] == [
        "Vehicle.CurrentLocation.Latitude",
        "Vehicle.CurrentLocation.Longitude",
        "Vehicle.TraveledDistance",
    ]
    assert not (ready.folder / "state").exists(), "check starts nothing"


def test_check_warns_and_strict_makes_an_error_of_it(ready: Desk, capsys: Capsys) -> None:
    ready.write("car.vspec", car.MAPPING.replace(b"signal: Speed", b"signal: Sped"))
    capsys.readouterr()

    assert check(ready) == 0
    warned = capsys.readouterr()
    assert check(ready, "--strict") == 1
    error, _ = complaint(capsys.readouterr().err)

    (warning,) = [line for line in warned.err.splitlines() if line.startswith("warning: ")]
    assert "Sped" in warning
    assert "Speed" in warning
    assert "Sped" in error
    assert warned.out.splitlines()[-1] == "ok"


def test_every_fault_of_a_configuration_is_told_at_once(ready: Desk, capsys: Capsys) -> None:
    ready.configure(id='"my car"', max_age_s="-1", more='[log]\nlevel = "loud"\ncolour = true')
    capsys.readouterr()

    assert check(ready) == 1

    error, _ = complaint(capsys.readouterr().err)
    for key in ("vehicle.id", "batch.max_age_s", "log.level", "log.colour"):
        assert key in error
    assert ready.run().stderr.splitlines()[0] == error
