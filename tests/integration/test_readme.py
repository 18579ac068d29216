"""The README shows what really comes: its commands are run, their output is compared."""

import re
import subprocess
from pathlib import Path

import pytest

from tests import docs
from tests.desk import needs_mosquitto

TEXT = docs.README.read_text(encoding="utf-8")
LONGEST_S = 30.0


def shown(name: str) -> list[tuple[str, str]]:
    (block,) = docs.blocks(docs.part(TEXT, name))
    return docs.transcript(block)


def without_what_varies(output: str) -> list[str]:
    """Return lines with times and counts made equal; nothing (0) stays nothing."""
    output = re.sub(r"^ *\d+\.\d s", "T s", output, flags=re.MULTILINE)
    output = re.sub(r"(?<!policy )\b[1-9]\d*\b", "N", output)
    return [" ".join(line.split()) for line in output.strip().splitlines()]


def test_the_replay_prints_what_the_readme_shows(tmp_path: Path) -> None:
    """Byte for byte: the drive, the mapping, the policy and the rules give nothing else."""
    for command, output in shown("transcript: replay"):
        assert docs.run_shown(command, folder=tmp_path) == output, "run: python -m tests.docs"


@pytest.mark.broker
def test_the_demo_prints_what_the_readme_shows(tmp_path: Path) -> None:
    needs_mosquitto()
    ((command, output),) = shown("transcript: demo")

    found = docs.run_shown(docs.SHOWN_BY[command], folder=tmp_path)

    assert without_what_varies(found) == without_what_varies(output), (
        "run: python -m tests.docs demo"
    )
    assert "BROKEN" not in found
    assert max(float(t) for t in re.findall(r"^ *(\d+\.\d) s", found, re.MULTILINE)) < LONGEST_S


def test_make_demo_is_the_demo() -> None:
    planned = subprocess.run(
        ["make", "-n", "demo"], cwd=docs.ROOT, capture_output=True, text=True, check=True
    ).stdout

    assert planned.splitlines()[-1] == docs.SHOWN_BY["make demo"]


def test_what_varies_is_told_apart_from_what_must_not() -> None:
    lines = without_what_varies("  1.2 s  policy 1\n saw 0 of 24\n 12  Vehicle.Speed")

    assert lines == ["T s policy 1", "saw 0 of N", "N Vehicle.Speed"]
