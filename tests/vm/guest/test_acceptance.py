"""Captured drives on two buses, the installed unit, a broker: what the recipients open is right.

The judge is `consentry replay` on what candump wrote in the guest at the same time, with the same
kernel's time stamps; and, for what is taken of every frame, the original recording.
"""

import gzip
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cloud import VEHICLE
from tests.vm.guest.bus import Sender, candump, listened
from tests.vm.guest.vehicle import SETTINGS, SOURCE, Vehicle, push, sh, wait_for

pytestmark = [pytest.mark.qemu, pytest.mark.captures]

SECONDS = 20  # Of each recording.
EXACT = 0xC00007FF  # The mask of one standard identifier: no remote frame, none extended.
FOREIGN = 0x7FF  # In no DBC of ours; its time tells `replay` when the recording ends.

TOML = """
[vehicle]
id = "{vehicle}"
trust = "trust.json"
[keys]
device = "/etc/consentry/device.jwk"
[[bus]]
name = "car"
interface = "socketcan"
channel = "vcan0"
dbc = ["car.dbc"]
mapping = "car.vspec"
[[bus]]
name = "truck"
interface = "socketcan"
channel = "vcan1"
dbc = ["truck.dbc"]
mapping = "truck.vspec"
[batch]
max_age_s = 5.0
[uplink]
host = "localhost"
port = {port}
ca = "broker-ca.pem"
certificate = "vehicle.pem"
private_key = "vehicle.key"
max_backoff_s = 2.0
[time]
synchronised = "always"
"""


class TwoBuses(Vehicle):
    """A vehicle with a car's bus and a truck's, each with its own DBC file and mapping."""

    def configure(self) -> None:
        for name, dbc, mapping in files():
            (SETTINGS / f"{name}.dbc").write_bytes(dbc)
            (SETTINGS / f"{name}.vspec").write_text(yaml.safe_dump(mapping))
        (SETTINGS / "agent.toml").write_text(TOML.format(vehicle=VEHICLE, port=self.broker.port))

    def opened(self) -> list[dict[str, Any]]:
        """Return what reached the recipients, as `consentry replay` would print it."""
        rows = []
        envelopes = {i.payload: i.topic for i in self.auditor.seen() if "/data/" in i.topic}
        for envelope, topic in envelopes.items():
            for sample in self.cloud.open(envelope).samples(topic.split("/")[-2]):
                row = {name: getattr(sample, name) for name in ("recipient", "scope", "path")}
                row |= {"t": sample.t_ns, "grant": sample.grant_id}
                rows.append(row | {"value": sample.value, "unit": sample.unit})
        return in_order(rows)


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["t"], row["recipient"], row["path"]))


CAPTURES = Path(os.environ.get("CONSENTRY_CAPTURES", ""))
VEHICLES = Path("/src/config/vehicles")
WITHOUT_INTERVAL = {
    "Vehicle.TraveledDistance",
    "Vehicle.Powertrain.CombustionEngine.EngineCoolant.Temperature",
    "Vehicle.LowVoltageBattery.CurrentVoltage",
}
TRUCKS = {"Vehicle.LowVoltageBattery.CurrentVoltage"}  # Both have it; the truck's is taken.
RECORDINGS = {
    "vcan0": CAPTURES / "mustang" / "mustang_s550.log.gz",
    "vcan1": CAPTURES / "j1939" / "11111111_idle_diesel.log.gz",
}


def files() -> list[tuple[str, bytes, dict[str, Any]]]:
    """Return (bus, DBC file, mapping); no path is mapped on both."""
    car = yaml.safe_load((VEHICLES / "ford_mustang_s550.vspec").read_text())
    truck = yaml.safe_load((VEHICLES / "j1939_truck.vspec").read_text())
    car = {path: leaf for path, leaf in car.items() if path not in TRUCKS}
    truck = {path: leaf for path, leaf in truck.items() if path not in car}
    for mapping in (car, truck):
        for path in WITHOUT_INTERVAL & mapping.keys():
            mapping[path]["dbc2vss"] |= {"interval_ms": 0}
    return [
        ("car", (CAPTURES / "mustang" / "ford_lincoln_base_pt.dbc").read_bytes(), car),
        ("truck", Path("/src/dbc/j1939.dbc").read_bytes(), truck),
    ]


@pytest.fixture(scope="module")
def vehicle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoBuses]:
    install_what_is_there()
    made = TwoBuses(tmp_path_factory.mktemp("vehicle"))
    sh("systemctl start consentry")
    yield made
    sys.stdout.write(made.log())  # Shown when a test failed.
    made.close()


def install_what_is_there() -> None:
    """As scripts/install, but without pip, which takes minutes in emulation."""
    sh(
        "cd /src; scripts/install --only-files; cp -a /opt/venv /opt/consentry;"
        "sed -i '1s|.*|#!/opt/consentry/bin/python|' /opt/consentry/bin/consentry;"
        "ln -sfn /opt/consentry/bin/consentry /usr/bin/consentry"
    )


def beginning(bus: str, folder: Path) -> Path:
    """Write the first seconds of a bus's recording; return the file."""
    path = folder / f"{bus}-original.log"
    with gzip.open(RECORDINGS[bus], "rt") as recorded:
        lines = recorded.readlines()
    times = [float(line[1 : line.index(")")]) for line in lines]
    path.write_text("".join(x for x, t in zip(lines, times, strict=True) if t < times[0] + SECONDS))
    return path


def replay(bus: str, log: Path, policy: Path) -> list[dict[str, Any]]:
    """Return what `consentry replay` prints for one bus."""
    name = {"vcan0": "car", "vcan1": "truck"}[bus]
    done = subprocess.run(
        [
            *("consentry", "replay", log, "--policy", policy, "--dbc", SETTINGS / f"{name}.dbc"),
            *("--mapping", SETTINGS / f"{name}.vspec"),
        ],
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def identifiers(bus: str, vehicle: TwoBuses) -> set[int]:
    """Return the ids of the messages that hold what is granted, read off DBC file and mapping."""
    scopes = json.loads((SOURCE / "config" / "catalogue.json").read_text())["scopes"]
    granted = {
        signal["path"]
        for grant in vehicle.cloud.document["grants"]
        for detail in grant["details"]
        for signal in scopes[detail["scope"]]["signals"]
    }
    (dbc,) = [dbc.decode("latin-1") for name, dbc, _ in files() if name == bus]
    (mapping,) = [mapping for name, _, mapping in files() if name == bus]
    ids = {
        name: int(can_id) for can_id, name in re.findall(r"^BO_ (\d+) (\w+):", dbc, re.MULTILINE)
    }
    return {
        ids[leaf["dbc2vss"]["signal"].split(".")[0]]
        for path, leaf in mapping.items()
        if path in granted
    }


def undated(document: dict[str, Any]) -> dict[str, Any]:
    """Return a policy that holds at the time of any recording."""
    kept = {key: document[key] for key in ("recipients", "grants")}
    kept["grants"] = [
        {key: value for key, value in grant.items() if key not in ("nbf", "exp")}
        for grant in kept["grants"]
    ]
    return kept


def test_what_the_recipients_open_is_what_replay_computes_from_a_capture_of_the_same_time(
    vehicle: TwoBuses, tmp_path: Path
) -> None:
    every = {"min_interval_s": 0}
    token = vehicle.cloud.policy(
        vehicle.cloud.grant(
            {
                "read_odometer": every,
                "read_diagnostics": every,
                "read_fuel": {},
                "read_tires": {"min_interval_s": 2},
                "read_security": {"min_interval_s": 1},
            },
        ),
        vehicle.cloud.grant(
            {
                "read_powertrain": {"min_interval_s": 0.1},
                "read_speedometer": {"min_interval_s": 1, "quantum": 5},
            },
            grant_id="g2",
            recipient="city",
        ),
    )
    (tmp_path / "policy.jws").write_text(token)
    (tmp_path / "undated.json").write_text(json.dumps(undated(vehicle.cloud.document)))
    assert listened("vcan0") == listened("vcan1") == {}
    push(vehicle.broker, token)
    wait_for("the answer", lambda: vehicle.answers() > 0)
    filtered = {bus: listened(bus) for bus in RECORDINGS}

    logs = {bus: tmp_path / f"{bus}.log" for bus in RECORDINGS}
    originals = {bus: beginning(bus, tmp_path) for bus in RECORDINGS}
    with candump(logs["vcan0"], "vcan0"), candump(logs["vcan1"], "vcan1"):
        players = [
            subprocess.Popen(["canplayer", "-I", originals["vcan0"], "vcan0=can0"]),
            subprocess.Popen(["canplayer", "-I", originals["vcan1"], "vcan1=can1"]),
        ]
        assert [player.wait(timeout=SECONDS * 5) for player in players] == [0, 0]
        time.sleep(3)  # Longer than any interval: what is held comes due.
        for bus in RECORDINGS:
            with Sender(bus) as sender:
                sender.send(FOREIGN)
    expected = in_order(
        [row for bus in RECORDINGS for row in replay(bus, logs[bus], tmp_path / "policy.jws")]
    )
    wait_for("every sample", lambda: len(vehicle.opened()) >= len(expected))
    opened = vehicle.opened()

    assert opened == expected
    assert {row["recipient"] for row in opened} == {"fleet", "city"}
    assert len({row["path"] for row in opened}) >= 20
    judged = 0
    for bus in RECORDINGS:
        original = replay(bus, originals[bus], tmp_path / "undated.json")
        for path in WITHOUT_INTERVAL:
            values = [row["value"] for row in original if row["path"] == path]
            if values:
                judged += 1
                assert [row["value"] for row in opened if row["path"] == path] == values
    assert judged == len(WITHOUT_INTERVAL)
    assert {bus: set(lists) for bus, lists in filtered.items()} == {
        "vcan0": {"sff", "err"},
        "vcan1": {"fil", "err"},
    }
    assert filtered["vcan0"]["sff"] == {(can_id, EXACT) for can_id in identifiers("car", vehicle)}


def test_after_the_last_grant_no_can_socket_is_open(vehicle: TwoBuses) -> None:
    for grant_id in ("g1", "g2"):
        push(vehicle.broker, vehicle.cloud.revoke(grant_id))
    wait_for("the answers", lambda: vehicle.answers() >= 3)

    assert listened("vcan0") == listened("vcan1") == {}
    assert vehicle.show("NFileDescriptorStore") == "0"
    assert vehicle.show("SubState") == "running"
