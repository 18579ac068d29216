"""Kill -9 at every moment, with a broker that is killed, restarted, paused and cut off too."""

import sys
from pathlib import Path

import pytest

from tests.crash import NAMES, run

pytestmark = [pytest.mark.broker, pytest.mark.captures]

KILLS = 50  # `make test-long` does a thousand.


def test_every_number_ever_drawn_is_accounted_for_after_fifty_kills(
    tmp_path: Path, captures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Delivered once and in order, or told of why not; nothing of a revoked grant arrives."""
    figures = run(tmp_path, kills=KILLS, seed=1, captures=captures)

    with capsys.disabled():
        sys.stdout.write(f"\n{figures.told()}")
    assert set(figures.moments) == set(NAMES.values())
    assert figures.opened > KILLS
    assert figures.faults.total() > 5
    assert figures.told_of["expired"] + figures.told_of["evicted"] > 0
