"""Three quarters of an hour of driving in half a minute; `make test-long` drives a day."""

import sys
from pathlib import Path

import pytest

from tests.growth import told
from tests.soak import run

pytestmark = [pytest.mark.broker, pytest.mark.captures]

ROUNDS = 4
BLOCKS_MORE = 1_000  # Less than one for each envelope between the two quarters.


def test_nothing_grows_while_a_drive_goes_on_and_everything_happens_meanwhile(
    tmp_path: Path, captures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Memory, descriptors, threads, files: the last quarter is as the second; nothing is lost."""
    figures = run(
        tmp_path,
        captures,
        hours=0.8,
        seed=1,
        pace=120,
        every_s=0.1,
        rounds=ROUNDS,
        batch_s=2.0,
        collects=True,
    )

    with capsys.disabled():
        sys.stdout.write(f"\n{told(figures)}")
    assert figures.grown() == []
    second, last = figures.growth()["blocks"]
    assert last < second + BLOCKS_MORE
    assert set(figures.done.values()) == {ROUNDS}
    assert figures.counts["envelopes opened at the recipient, once each"] > 1_000
    assert figures.counts["frames that the capture lane could not take"] == 0
