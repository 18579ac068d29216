"""What is installed beside the program, and what the unit says of itself."""

import configparser
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "systemd"
UNIT = (UNITS / "consentry.service").read_text(encoding="utf-8")


def values(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", UNIT, re.MULTILINE)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    subprocess.run(
        [ROOT / "scripts" / "install", "--root", tmp_path, "--only-files"], check=True, timeout=60
    )
    return tmp_path


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_the_exposure_of_the_unit_is_at_most_13() -> None:
    """The guest's systemd is asked, too, for the unit as it is installed."""
    told = subprocess.run(
        [
            *("systemd-analyze", "security", "--offline=true", "--threshold=13", "--no-pager"),
            str(UNITS / "consentry.service"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LANG": "C.UTF-8"},
    )

    assert told.returncode == 0, told.stdout[-2000:]
    assert "Overall exposure level for consentry.service: 1.3" in told.stdout


def test_an_image_gets_every_file_that_the_document_names(image: Path) -> None:
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(/(?:usr|etc)/[\w./-]+)", text))
    later = {  # Made by the administrator, or by the part that is left out here.
        *("/usr/bin/consentry", "/etc/systemd/network/"),
        *("/etc/systemd/system/consentry.service.d", "/etc/consentry/"),
        "/etc/systemd/system/consentry.service.d/broker.conf",
    }

    missing = {path for path in named - later if not (image / path[1:]).exists()}

    assert len(named) > 8
    assert missing == set()


def test_settings_that_are_there_are_not_overwritten(image: Path) -> None:
    settings = image / "etc" / "consentry" / "agent.toml"
    settings.write_text("mine")

    subprocess.run(
        [ROOT / "scripts" / "install", "--root", image, "--only-files"], check=True, timeout=60
    )

    assert settings.read_text() == "mine"


def test_an_unknown_option_shows_the_usage() -> None:
    told = subprocess.run(
        [ROOT / "scripts" / "install", "--help"], capture_output=True, text=True, check=False
    )

    assert told.returncode == 2
    assert "--wheels DIR" in told.stderr
    assert "set -euo" not in told.stderr


def test_the_keys_of_the_example_are_those_that_the_unit_hands_over() -> None:
    example = tomllib.loads((ROOT / "config" / "agent.toml").read_text(encoding="utf-8"))
    asked = {Path(example["keys"]["device"]).name, Path(example["uplink"]["private_key"]).name}

    assert {line.partition(":")[0] for line in values("LoadCredential")} == asked | {"boot_id"}


def test_the_unit_makes_the_folders_that_the_example_names() -> None:
    example = tomllib.loads((ROOT / "config" / "agent.toml").read_text(encoding="utf-8"))

    assert example["state"]["directory"] == f"/var/lib/{values('StateDirectory')[0]}"
    assert Path(example["control"]["socket"]).parent == Path("/run", values("RuntimeDirectory")[0])
    assert values("StateDirectoryMode") == ["0700"]


def test_there_is_room_for_the_socket_of_each_bus() -> None:
    assert int(values("FileDescriptorStoreMax")[0]) >= 8


def test_every_bus_is_only_listened_to() -> None:
    files = sorted((UNITS / "network").glob("*.network"))

    for file in files:
        network = configparser.ConfigParser()
        network.read(file)
        assert network["CAN"]["ListenOnly"] == "yes"
        assert network["CAN"]["BitRate"]
        assert network["CAN"]["RestartSec"] == "100ms"
    assert files
