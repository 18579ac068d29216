"""What a drive takes: a broker, the cloud's side, a vehicle, and an eye on all that is published.

Modules that need a part of another kind (a broker with a CA of their own, say) have it themselves.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.demo.broker import Broker
from agent.demo.judge import Auditor
from tests.cloud import Cloud
from tests.desk import needs_mosquitto
from tests.rig import Rig


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A mosquitto with TLS and client certificates."""
    needs_mosquitto()
    with Broker(tmp_path / "broker") as running:
        yield running


@pytest.fixture
def cloud() -> Cloud:
    """Who signs this vehicle's policies, and opens what it seals."""
    return Cloud()


@pytest.fixture
def rig(tmp_path: Path, broker: Broker, cloud: Cloud) -> Rig:
    """The vehicle, which knows both."""
    return Rig(tmp_path / "vehicle", broker, cloud)


@pytest.fixture
def auditor(broker: Broker) -> Iterator[Auditor]:
    """A subscriber on all topics."""
    with Auditor(port=broker.port, tls=broker.tls("auditor")) as listening:
        yield listening


@pytest.fixture(scope="session")
def strace() -> None:
    """Skip where strace is missing; in CI it must not be."""
    if shutil.which("strace") is None:
        if os.environ.get("CI"):
            pytest.fail("strace must be installed in CI")
        pytest.skip("strace is not installed")
    probe = subprocess.run(["strace", "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        if os.environ.get("CI"):
            pytest.fail("strace may not trace here")
        pytest.skip("strace may not trace here")
