"""Where the real captures are, what their absence means, and a process as before each test."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Who runs tests in the background may have it ignored, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
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


@pytest.fixture(autouse=True)
def _process_as_before() -> Iterator[None]:
    """Undo what a command that ran within a test made of log and signals: others need theirs."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    heard = {number: signal.getsignal(number) for number in _SIGNALS}
    yield
    for number, handler in heard.items():
        signal.signal(number, handler)
    root.setLevel(level)
    for handler in set(root.handlers) - set(handlers):
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
