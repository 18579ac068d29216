"""A GNSS receiver under the installed unit, with the drop-in that is shipped."""

import os
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import docs
from tests.cloud import VEHICLE
from tests.nmea import gst, rmc
from tests.vm.guest.vehicle import (
    MAX_AGE_S,
    SETTINGS,
    SOURCE,
    TOML,
    Vehicle,
    documented,
    install,
    push,
    sh,
    wait_for,
)

DROP_IN = Path("/etc/systemd/system/consentry.service.d/serial.conf")
BUS = """
[[bus]]
name = "gnss"
interface = "gnss"
channel = "{device}"
dbc = ["gnss.dbc"]
mapping = "gnss.vspec"
"""


class Navigated(Vehicle):
    """A vehicle with a receiver at the far end of a pty."""

    def __init__(self, folder: Path) -> None:
        self.line, self._device = os.openpty()
        tty.setraw(self._device)
        os.fchmod(self._device, 0o666)  # A pty belongs to nobody's group but tty.
        super().__init__(folder)

    @property
    def device(self) -> str:
        return os.ttyname(self._device)

    def configure(self) -> None:
        for name in ("dbc/gnss.dbc", "config/vehicles/gnss.vspec"):
            (SETTINGS / Path(name).name).write_bytes((SOURCE / name).read_bytes())
        text = TOML.format(vehicle=VEHICLE, port=self.broker.port, max_age_s=MAX_AGE_S)
        (SETTINGS / "agent.toml").write_text(text + BUS.format(device=self.device))


@pytest.fixture
def vehicle(tmp_path: Path) -> Iterator[Navigated]:
    install()
    made = Navigated(tmp_path)
    (example,) = [b for b in docs.blocks((SOURCE / "docs/gnss.md").read_text()) if "cp " in b]
    sh(example)
    DROP_IN.write_text(DROP_IN.read_text().replace("/dev/ttyACM0", made.device))
    sh("systemctl daemon-reload")
    sh(documented("Start"))
    yield made
    print(made.log())  # noqa: T201 - shown when a test failed
    made.close()
    DROP_IN.unlink()
    sh("systemctl daemon-reload")


def test_a_position_reaches_its_recipient_through_the_sandbox(vehicle: Navigated) -> None:
    wanted = {"min_interval_s": 1, "grid_deg": 0.01}
    push(vehicle.broker, vehicle.cloud.policy(vehicle.cloud.grant({"read_location": wanted})))

    def has_come() -> bool:
        # The device is opened once something of it is granted, and what came before is lost.
        moment = f"1200{next(vehicle.millions) % 60:02d}.00"
        os.write(vehicle.line, rmc(moment) + gst(moment))
        return bool(vehicle.samples())

    wait_for("a position", has_come)

    got = {(sample.path, sample.value) for sample in vehicle.samples()}
    assert ("Vehicle.CurrentLocation.Latitude", 1.005) in got
    assert ("Vehicle.CurrentLocation.Longitude", 2.005) in got
    assert ("Vehicle.CurrentLocation.HorizontalAccuracy", 5.0) in got
    exposure = sh("systemd-analyze security consentry.service --no-pager | tail -1")
    assert float(exposure.split(": ")[1].split()[0]) <= 1.6, exposure
