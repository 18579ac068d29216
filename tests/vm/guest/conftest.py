"""Tests in the guest: root of a machine of their own, with vcan0 and vcan1 (docs/testing.md).

`make test-vm` starts them; outside of the guest nothing here is collected.
"""

import os
from pathlib import Path

import pytest

ENGINE = os.environ.get("CONSENTRY_GUEST")  # uml or qemu, set by tests/vm/run.

collect_ignore_glob = [] if ENGINE else ["*"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep those that are for this engine: marked `qemu` there, the others on user-mode-linux.

    Those marked `long` are kept when they are asked for: `-m long`.
    """
    if ENGINE is None:
        return  # Outside of the guest; pytest hands over the tests of all folders.
    is_long = "long" in config.option.markexpr
    kept = [
        item
        for item in items
        if (item.get_closest_marker("qemu") is None) == (ENGINE == "uml")
        and (is_long or item.get_closest_marker("long") is None)
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.fixture(scope="session", autouse=True)
def _receive_buffers() -> None:
    """Let sockets have the buffers that the shipped sysctl file gives them."""
    Path("/proc/sys/net/core/rmem_max").write_text("16777216")
