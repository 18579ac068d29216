"""Tests in the guest: root of a machine of their own, with vcan0 and vcan1 (docs/testing.md).

`make test-vm` starts them; outside of the guest nothing here is collected.
"""

import os

import pytest

ENGINE = os.environ.get("CONSENTRY_GUEST")  # uml or qemu, set by tests/vm/run.

collect_ignore_glob = [] if ENGINE else ["*"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep those that are for this engine: marked `qemu` there, the others on user-mode-linux."""
    kept = [
        item for item in items if (item.get_closest_marker("qemu") is None) == (ENGINE == "uml")
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
