"""The power goes while a vehicle writes; what it had claimed is there when it comes back."""

import os
import sys
from pathlib import Path

import pytest

from tests.powercut import absence, run

CUTS = 5  # `make test-long` does fifty.


@pytest.mark.timeout(600)  # On a machine that has to build the guest first.
def test_whatever_was_committed_outlives_five_power_cuts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is lost or drawn twice, nothing revoked comes back, no file is damaged."""
    if why := absence():
        if os.environ.get("CI"):
            pytest.fail(f"{why}, and in CI it must be there")
        pytest.skip(why)

    figures = run(tmp_path, cuts=CUTS, seed=1)

    with capsys.disabled():
        sys.stdout.write(f"\n{figures.as_text()}")
    assert figures.moments.total() == CUTS
    assert figures.claimed > CUTS
    assert figures.heads > CUTS
    assert figures.versions > 0
