"""Where the result goes: stdout as it is, whole files, and what is no plain file."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from tests import car

SCRIPT = Path(sys.executable).with_name("consentry")
DETAILS = [{"scope": "read_vin"}, {"scope": "read_odometer"}]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A replay that prints a VIN which is no ASCII, and an odometer."""
    policy = {
        "recipients": {"fleet": {"name": "Fleet"}},
        "grants": [{"grant_id": "g", "recipient": "fleet", "details": DETAILS}],
    }
    files = {
        "drive.log": b"(1800000000.000000) can0 190#0001\n(1800000000.500000) can0 0C8#07000000\n",
        "car.dbc": car.DBC.replace(b"WTEST", "WÜST".encode()),
        "car.vspec": car.MAPPING,
        "policy.json": json.dumps(policy).encode(),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    log, dbc, mapping, rules = (str(tmp_path / name) for name in files)
    return ["replay", log, "--dbc", dbc, "--mapping", mapping, "--policy", rules]


def consentry(
    arguments: list[str], *, stdout: int | IO[bytes] = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [SCRIPT, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=os.environ | environment,
        check=False,
    )


def test_what_is_no_plain_file_is_written_to_and_not_replaced(
    arguments: list[str], tmp_path: Path
) -> None:
    """`--out /dev/null` as root must not make a file of it."""
    target, link = tmp_path / "target.jsonl", tmp_path / "link.jsonl"
    target.write_text("old")
    link.symlink_to(target)

    done = consentry([*arguments, "--out", str(link)])

    assert (done.returncode, done.stdout) == (0, b"")
    assert link.is_symlink()
    assert "Vehicle.TraveledDistance" in target.read_text(encoding="utf-8")


def test_a_file_is_replaced_as_a_whole_and_leaves_nothing_beside_it(
    arguments: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    out.write_text("old" * 10_000)

    done = consentry([*arguments, "--out", str(out)])

    assert done.returncode == 0
    assert len(out.read_text(encoding="utf-8").splitlines()) == 2
    assert list(tmp_path.glob("*.part")) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_standard_output_is_one_clear_error(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = consentry(arguments, stdout=full)

    assert done.returncode == 1
    assert b"error: the standard output cannot be written" in done.stderr
    assert b"hint: " in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_stdout_is_utf_8_whatever_the_machines_language(arguments: list[str]) -> None:
    done = consentry(arguments, PYTHONIOENCODING="ascii")

    assert done.returncode == 0
    assert "WÜST" in done.stdout.decode("utf-8")
