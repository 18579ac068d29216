"""What the files of a configuration amount to, and what is told of those that are wrong."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.config import Config, parse_config
from agent.core.permission import People
from agent.errors import AgentError, ConfigError, DbcError
from agent.parts import load_parts
from tests import car
from tests.cloud import VEHICLE, Cloud


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "car.dbc").write_bytes(car.DBC)
    (tmp_path / "car.vspec").write_bytes(car.MAPPING)
    Cloud().write_files(tmp_path)
    return tmp_path


def config(folder: Path, **bus: Any) -> Config:
    return parse_config(
        {
            "vehicle": {"id": VEHICLE, "trust": "trust.json"},
            "keys": {"device": "device.jwk"},
            "bus": [
                {"name": "can0", "channel": "c", "dbc": ["car.dbc"], "mapping": "car.vspec", **bus}
            ],
            "uplink": {"host": "127.0.0.1", "plaintext_loopback": True},
        },
        folder,
    )


def test_good_files_amount_to_what_the_vehicle_can_give(folder: Path) -> None:
    parts = load_parts(config(folder))

    assert parts.named_buses == ("can0",)
    assert "Vehicle.TraveledDistance" in {bound.vss.path for bound in parts.binding.bound}


def test_one_wrong_file_is_told_as_the_fault_that_it_is(folder: Path) -> None:
    (folder / "car.dbc").write_bytes(b"no DBC at all")

    with pytest.raises(DbcError, match=r"car\.dbc"):
        load_parts(config(folder))


def test_everything_that_is_wrong_is_told_at_once(folder: Path) -> None:
    """Whoever installs an agent mends it in one go."""
    (folder / "car.dbc").write_bytes(b"no DBC at all")
    (folder / "trust.json").unlink()
    (folder / "device.jwk").chmod(0o644)

    with pytest.raises(ConfigError) as told:
        load_parts(config(folder, dbc=["car.dbc", "gone.dbc"], mapping="gone.vspec"))

    message = told.value.message
    assert message.startswith("5 things cannot be used: ")
    for name in ("car.dbc", "gone.dbc", "gone.vspec", "trust.json", "device.jwk"):
        assert name in message
    assert "chmod 600" in (told.value.hint or "")


def test_a_file_that_two_buses_share_is_told_once(folder: Path) -> None:
    (folder / "car.vspec").unlink()
    (folder / "trust.json").unlink()
    one = config(folder)
    two = one.model_copy(
        update={"bus": (one.bus[0], one.bus[0].model_copy(update={"name": "can1"}))}
    )

    with pytest.raises(AgentError) as told:
        load_parts(two)

    assert told.value.message.startswith("2 things")


def test_the_privacy_switch_is_looked_for_on_its_bus(folder: Path) -> None:
    switch = {"signal": "SPEED.Counter", "bus": "can0", "private": [1]}

    found = load_parts(with_sections(folder, switch=switch)).switch

    assert found is not None
    assert (found.bus, found.can_id, found.private) == ("can0", car.SPEED_ID, {1})
    assert load_parts(config(folder)).switch is None


def test_who_may_ask_and_the_group_of_the_socket_are_numbers(folder: Path) -> None:
    control = {"may_pause": ["root", "@daemon"], "may_look": [], "group": "daemon"}

    parts = load_parts(with_sections(folder, control=control))

    assert parts.permissions.may_pause == People(frozenset({0}), frozenset({1}))
    assert parts.permissions.may_look == People()
    assert 0 in parts.permissions.may_resume.uids
    assert parts.control_group == 1


def test_names_that_nobody_has_are_told_with_the_other_faults(folder: Path) -> None:
    with pytest.raises(ConfigError) as told:
        load_parts(
            with_sections(
                folder,
                control={"may_pause": ["no-such-user"], "group": "no-such-group"},
                switch={"signal": "SPEED.Gear", "bus": "can0", "private": [1]},
            )
        )

    for part in ("no user no-such-user", "no group no-such-group", "has SPEED.Gear"):
        assert part in told.value.message


def with_sections(folder: Path, **sections: Any) -> Config:
    made = config(folder).model_dump(exclude={"control", "switch", "time", "state"}, mode="json")
    return parse_config(made | sections, folder)


def test_files_are_read_before_the_lanes_modules_are_imported() -> None:
    """What reading a large DBC has freed is room for them: 4 MiB less (docs/operate.md)."""
    told = subprocess.run(
        [sys.executable, "-c", "import sys, agent.cli.run, agent.life; print(*sys.modules)"],
        capture_output=True,
        check=True,
    )

    assert b"agent.parts" in told.stdout.split()
    late = {b"agent.daemon", b"agent.control", b"agent.edge.uplink", b"agent.edge.store", b"paho"}
    assert late.isdisjoint(told.stdout.split())


@pytest.mark.parametrize(
    ("bus", "fault"),
    [
        ({"interface": "slcam"}, r"found slcam, expected one of .*gs_usb.*slcan.*socketcan"),
        ({"channel": ""}, r"bus\.0\.channel: String should have at least 1 character"),
        ({"interface": "gnss", "options": {"baudrate": "fast"}}, "baudrate, a whole number"),
        ({"options": {"bitrate": 500_000}}, "socketcan has none, found bitrate"),
    ],
)
def test_a_bus_that_nobody_could_ever_read_is_an_error_of_the_configuration(
    folder: Path, bus: dict[str, Any], fault: str
) -> None:
    """An empty channel would be every CAN interface of the machine (linux/can.h: ifindex 0)."""
    with pytest.raises(ConfigError, match=fault):
        config(folder, **bus)


@pytest.mark.parametrize("interface", ["slcan", "pcan", "gs_usb", "virtual"])
def test_an_adapter_that_python_can_knows_may_be_named_where_its_library_is_missing(
    folder: Path, interface: str
) -> None:
    assert config(folder, interface=interface).bus[0].interface == interface
