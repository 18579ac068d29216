"""Where the real captures are, and what their absence means."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _captures() -> Path:
    named = os.environ.get("CONSENTRY_CAPTURES")
    return Path(named) if named else ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def captures() -> Path:
    """Folder of real captures; skipped with a reason where absent, a failure in CI."""
    folder = _captures()
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail("the captures must be there in CI; set CONSENTRY_CAPTURES")
        pytest.skip("real captures not found; set CONSENTRY_CAPTURES to their folder")
    return folder
