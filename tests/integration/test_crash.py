"""Kill -9 at every moment, with a broker that is killed, restarted, paused and cut off too."""

import sys
from pathlib import Path

import pytest

from tests.crash import NAMES, run

pytestmark = pytest.mark.broker

KILLS = 50  # `make test-long` does a thousand.


def test_every_number_ever_drawn_is_accounted_for_after_fifty_kills(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Delivered once and in order, or told of as erased; nothing of a revoked grant arrives."""
    figures = run(tmp_path, kills=KILLS, seed=1)

    with capsys.disabled():
        sys.stdout.write(f"\n{figures.told()}")
    assert set(figures.moments) == set(NAMES.values())
    assert figures.opened > KILLS
    assert figures.faults.total() > 5
