"""`consentry open` and `receive`: what a recipient does with envelopes."""

import csv
import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.cli.main import run
from agent.cloud.keys import make_device_key, make_recipient_key, public_half, save_key
from tests import sealing
from tests.broker import Broker, free_ports
from tests.columns import GEAR, SPEED, batch
from tests.desk import COMMAND, complaint
from tests.peer import Peer
from tests.pki import Pki, context

VEHICLE = "veh-0001"
TOPIC = f"consentry/v1/{VEHICLE}/data/fleet-x/gr_1"
ROWS = len(SPEED.values) + len(GEAR.values)

Capsys = pytest.CaptureFixture[str]


class Recipient:
    """A recipient's folder: its private key, the devices it accepts, and some envelopes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        save_key(folder / "my.jwk", sealing.recipient_jwk())
        save_key(folder / "device.pub.jwk", public_half(sealing.device_jwk()))
        self.write("one.cose", sealing.envelope(n=1))
        self.write("two.cose", sealing.envelope(n=2))

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def write(self, name: str, data: bytes) -> str:
        (self.folder / name).write_bytes(data)
        return self.path(name)

    @property
    def keys(self) -> list[str]:
        return ["--key", self.path("my.jwk"), "--device", self.path("device.pub.jwk")]

    def open(self, *arguments: str, files: str = "one.cose") -> int:
        return run(["open", *map(self.path, files.split()), *self.keys, *arguments])


@pytest.fixture
def me(tmp_path: Path) -> Recipient:
    folder = tmp_path / "recipient"
    folder.mkdir()
    return Recipient(folder)


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_open_prints_the_samples_as_replay_does(me: Recipient, capsys: Capsys) -> None:
    assert me.open("--recipient", "fleet-x") == 0

    captured = capsys.readouterr()
    assert captured.err == ""
    found = rows(captured.out)
    assert len(found) == ROWS
    assert list(found[0]) == ["t", "recipient", "grant", "scope", "path", "value", "unit"]
    speed, *_ = (row for row in found if row["path"] == SPEED.path)
    assert speed == {
        "t": SPEED.times_ms[0] * 1_000_000,
        "recipient": "fleet-x",
        "grant": "gr_1",
        "scope": SPEED.scope,
        "path": SPEED.path,
        "value": SPEED.values[0],
        "unit": SPEED.unit,
    }
    gears = [row["value"] for row in found if row["path"] == GEAR.path]
    assert gears == list(GEAR.values)
    assert {type(gear) for gear in gears} == {int}
    assert [row["t"] for row in found] == sorted(row["t"] for row in found)


def test_several_envelopes_are_one_table(me: Recipient, capsys: Capsys) -> None:
    assert me.open("--format", "csv", files="one.cose two.cose") == 0

    table = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert table[0] == [
        *("t", "recipient", "grant", "scope", "path", "value", "unit"),
        *("fn", "window_s"),
    ]
    assert len(table) == 1 + 2 * ROWS
    assert table.count(table[0]) == 1


def test_the_results_of_an_aggregate_have_their_function_and_window(
    me: Recipient, capsys: Capsys
) -> None:
    highest = replace(SPEED, fn="max", window_s=60)
    counted = replace(
        SPEED, fn="count", window_s=60, datatype="uint64", unit=None, values=(1, 2, 3)
    )
    me.write("windows.cose", sealing.envelope(batch(highest, counted, GEAR)))

    assert me.open(files="windows.cose") == 0

    found = rows(capsys.readouterr().out)
    told = {(row["path"], row.get("fn"), row.get("window_s"), row["unit"]) for row in found}
    assert told == {
        (SPEED.path, "max", 60, "km/h"),
        (SPEED.path, "count", 60, None),
        (GEAR.path, None, None, None),
    }


def test_out_takes_the_samples(me: Recipient, capsys: Capsys) -> None:
    assert me.open("--out", me.path("samples.jsonl")) == 0

    assert capsys.readouterr().out == ""
    assert len(rows((me.folder / "samples.jsonl").read_text("utf-8"))) == ROWS


def test_headers_are_json_too(me: Recipient, capsys: Capsys) -> None:
    assert me.open("--header", files="one.cose two.cose") == 0

    first, second = rows(capsys.readouterr().out)
    assert (first["vehicle"], first["grant_id"], first["device_kid"]) == (
        *(VEHICLE, "gr_1"),
        sealing.device().kid,
    )
    assert (first["n"], second["n"]) == (1, 2)
    assert first["ledger_root"] == "00" * 32


def _another_key(me: Recipient) -> list[str]:
    """A key of one's own that has the right name and is another one."""
    save_key(me.folder / "other.jwk", make_recipient_key(sealing.RECIPIENT_KID))
    return ["--key", me.path("other.jwk"), "--device", me.path("device.pub.jwk")]


def _another_name(me: Recipient) -> list[str]:
    save_key(me.folder / "other.jwk", make_recipient_key("somebody"))
    return ["--key", me.path("other.jwk"), "--device", me.path("device.pub.jwk")]


def _another_device(me: Recipient) -> list[str]:
    save_key(me.folder / "other.jwk", public_half(make_device_key("dev-EdDSA")))
    return ["--key", me.path("my.jwk"), "--device", me.path("other.jwk")]


def _unknown_device(me: Recipient) -> list[str]:
    save_key(me.folder / "other.jwk", public_half(make_device_key("dev-2")))
    return ["--key", me.path("my.jwk"), "--device", me.path("other.jwk")]


def _public_key(me: Recipient) -> list[str]:
    save_key(me.folder / "other.jwk", public_half(sealing.recipient_jwk()))
    return ["--key", me.path("other.jwk"), "--device", me.path("device.pub.jwk")]


def _no_key(me: Recipient) -> list[str]:
    me.write("other.jwk", b"-----BEGIN PRIVATE KEY-----")
    return ["--key", me.path("other.jwk"), "--device", me.path("device.pub.jwk")]


def _no_file(me: Recipient) -> list[str]:
    return ["--key", me.path("nowhere.jwk"), "--device", me.path("device.pub.jwk")]


@pytest.mark.parametrize(
    "keys",
    [
        *(_another_key, _another_name, _another_device, _unknown_device),
        *(_public_key, _no_key, _no_file),
    ],
)
def test_with_a_wrong_key_nothing_opens(keys: Any, me: Recipient, capsys: Capsys) -> None:
    arguments = keys(me)
    secret = sealing.recipient_jwk()["d"]

    assert run(["open", me.path("one.cose"), *arguments]) == 1

    captured = capsys.readouterr()
    complaint(captured.err)
    assert captured.out == ""
    assert secret not in captured.err


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:],
        lambda _: b"not an envelope at all",
    ],
)
def test_a_damaged_envelope_is_named_and_the_others_are_printed(
    damage: Any, me: Recipient, capsys: Capsys
) -> None:
    me.write("bad.cose", damage((me.folder / "one.cose").read_bytes()))

    assert me.open(files="one.cose bad.cose two.cose") == 1

    captured = capsys.readouterr()
    error, _ = complaint(captured.err)
    assert "bad.cose" in error
    assert len(rows(captured.out)) == 2 * ROWS


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["open"], 2),
        (["open", "one.cose"], 2),
        (["open", "nowhere.cose", "--key", "my.jwk", "--device", "device.pub.jwk"], 1),
        (["open", ".", "--key", "my.jwk", "--device", "device.pub.jwk"], 1),
        (["open", "one.cose", "--key", "my.jwk", "--device", "my.jwk"], 1),
        (["receive", "--host", "localhost"], 2),
    ],
)
def test_a_wrong_command_line_is_one_clear_error(
    arguments: list[str],
    status: int,
    me: Recipient,
    capsys: Capsys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(me.folder)

    assert run(arguments) == status

    captured = capsys.readouterr()
    complaint(captured.err)
    assert captured.out == ""


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def broker(tmp_path: Path, pki: Pki) -> Iterator[Broker]:
    with Broker(tmp_path / "broker", pki) as running:
        yield running


@pytest.fixture
def vehicle(broker: Broker, pki: Pki) -> Iterator[Peer]:
    with Peer(broker.port, context(pki.vehicle(VEHICLE)), client_id=VEHICLE) as peer:
        yield peer


def receiving(me: Recipient, pki: Pki, port: int, *more: str, name: str = "fleet-x") -> list[str]:
    files = pki.client(name, pki.recipients)
    return [
        *("receive", "--host", "localhost", "--port", str(port), "--ca", str(files.ca)),
        *("--certificate", str(files.certificate), "--private-key", str(files.private_key)),
        *("--recipient", "fleet-x", *me.keys, *more),
    ]


@pytest.mark.broker
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_receive_prints_what_comes_each_envelope_once(
    me: Recipient, broker: Broker, pki: Pki, vehicle: Peer, capsys: Capsys, *, form: str
) -> None:
    """The broker keeps what comes while the recipient is away; QoS 1 delivers twice at times."""
    first, second, third = (sealing.envelope(n=n) for n in (1, 2, 3))
    arguments = receiving(me, pki, broker.recipient_port, "--format", form)
    assert run([*arguments, "--seconds", "0.5"]) == 0
    assert "0 envelopes" in capsys.readouterr().err

    for data in (first, first, second):
        vehicle.publish(TOPIC, data)
    assert run([*arguments, "--count", "2"]) == 0
    printed = capsys.readouterr()
    vehicle.publish(TOPIC, third)
    assert run([*arguments, "--count", "1"]) == 0

    lines = printed.out.splitlines()
    if form == "csv":
        assert lines.pop(0) == "t,recipient,grant,scope,path,value,unit,fn,window_s"
    assert len(lines) == 2 * ROWS
    assert not any("recipient,grant" in line for line in lines)
    assert printed.err.splitlines()[-1] == "2 envelopes"
    assert len(capsys.readouterr().out.splitlines()) == ROWS + (form == "csv")


@pytest.mark.broker
def test_what_does_not_open_is_named_and_the_rest_goes_on(
    me: Recipient, broker: Broker, pki: Pki, vehicle: Peer, capsys: Capsys
) -> None:
    arguments = receiving(me, pki, broker.recipient_port)
    assert run([*arguments, "--seconds", "0.3"]) == 0
    capsys.readouterr()
    stranger = sealing.envelope(batch(SPEED, grant_id="gr_2"), n=1)

    for data in (b"nonsense", stranger, sealing.envelope(n=1)):
        vehicle.publish(TOPIC, data)
    assert run([*arguments, "--count", "1"]) == 1

    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == captured.err.count("hint: ") == 2
    assert all(TOPIC in line for line in errors)
    assert "another vehicle or grant" in errors[1]
    assert len(rows(captured.out)) == ROWS


@pytest.mark.broker
def test_receive_ends_in_order_when_it_is_interrupted(
    me: Recipient, broker: Broker, pki: Pki, vehicle: Peer
) -> None:
    """By Ctrl-C, or because whoever reads its output has gone."""
    process = subprocess.Popen(
        [*COMMAND, *receiving(me, pki, broker.recipient_port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(30, process.kill)
    watchdog.start()
    try:
        assert process.stderr is not None
        assert process.stdout is not None
        assert "subscribed as fleet-x" in process.stderr.readline()
        vehicle.publish(TOPIC, sealing.envelope(n=1))
        assert json.loads(process.stdout.readline())["grant"] == "gr_1"
        process.send_signal(2)
        _, err = process.communicate()
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()

    assert process.returncode == 130
    assert "Traceback" not in err


def test_a_broker_that_is_not_there_is_one_clear_error(
    me: Recipient, pki: Pki, capsys: Capsys
) -> None:
    (port,) = free_ports(1)

    assert run(receiving(me, pki, port)) == 1

    captured = capsys.readouterr()
    error, _ = complaint(captured.err)
    assert f"localhost:{port}" in error
    assert captured.out == ""


@pytest.mark.broker
def test_a_broker_that_another_authority_signed_is_not_trusted(
    me: Recipient, broker: Broker, pki: Pki, capsys: Capsys
) -> None:
    arguments = receiving(me, pki, broker.recipient_port)
    arguments[arguments.index("--ca") + 1] = str(pki.ca_file(pki.stranger))

    assert run(arguments) == 1

    error, _ = complaint(capsys.readouterr().err)
    assert "certificate" in error


@pytest.mark.broker
def test_a_certificate_of_somebody_else_reads_nothing(
    me: Recipient, broker: Broker, pki: Pki, vehicle: Peer, capsys: Capsys
) -> None:
    """The broker's access list goes by the certificate, not by what one calls oneself."""
    assert run([*receiving(me, pki, broker.recipient_port), "--seconds", "0.3"]) == 0
    vehicle.publish(TOPIC, sealing.envelope(n=1))
    capsys.readouterr()

    run([*receiving(me, pki, broker.recipient_port, name="fleet-y"), "--seconds", "1"])

    assert capsys.readouterr().out == ""
