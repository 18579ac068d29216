"""The uplink over a wire between two network namespaces, which are made for it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.broker

HERE = Path(__file__).resolve().parent


def test_a_wire_between_two_namespaces_that_comes_and_goes(tmp_path: Path) -> None:
    """Nothing lost, in order, and noticed in time: see netns_uplink.py."""
    if not all(shutil.which(name) for name in ("unshare", "nsenter", "ip")):
        pytest.skip("namespaces need util-linux and iproute2")
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode:
        pytest.skip("namespaces of one's own are not allowed here")
    done = subprocess.run(
        [
            *("unshare", "-rn", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("--basetemp", str(tmp_path / "inner"), str(HERE / "netns_uplink.py")),
        ],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-3000:]
    assert "1 passed" in done.stdout
