"""The control socket of the installed unit: who may stop it, who may not, and what then leaves."""

import time
from collections.abc import Iterator

import pytest

from tests.vm.guest.test_unit import first, installed, vehicle
from tests.vm.guest.vehicle import Numbers, Vehicle, sh, wait_for

__all__ = ["first", "installed", "vehicle"]  # Fixtures.

QUIET_S = 3.0  # Longer than a batch is open, and than it takes to arrive.


@pytest.fixture(autouse=True)
def _people(installed: None) -> Iterator[None]:  # noqa: ARG001
    """A driver, who is in the group, and a stranger, who is not."""
    sh("id driver || useradd -G consentry driver; id stranger || useradd stranger")
    yield
    sh("consentry resume", check=False)


def as_user(name: str, command: str) -> str:
    return sh(f"runuser -u {name} -- /usr/bin/consentry {command} 2>&1; echo status $?")


def sent(vehicle: Vehicle, first: int) -> list[int]:
    """Send for a while and return what reached the recipient of it."""
    with Numbers(first, per_s=200):
        time.sleep(1.0)
    time.sleep(QUIET_S)
    return vehicle.numbers(first)


def test_a_stranger_may_do_nothing(vehicle: Vehicle, first: int) -> None:
    for command in ("pause", "resume", "status", "explain Vehicle.Speed"):
        told = as_user("stranger", command)
        assert "error: " in told
        assert told.endswith("status 1")
    for line in ('{"verb":"pause"}', '{"verb":"resume"}'):
        told = sh(
            "runuser -u stranger -- python3 -c 'import socket,sys; s=socket.socket(1); "
            f"s.connect(\"/run/consentry/control.sock\"); s.send(sys.argv[1].encode())' '{line}'",
            check=False,
        )
        assert "PermissionError" in told

    assert sent(vehicle, first)


def test_a_driver_stops_everything_and_only_root_starts_it_again(
    vehicle: Vehicle, first: int
) -> None:
    """Not a frame that came after the command's end, also not after a restart."""
    assert sent(vehicle, first)

    assert as_user("driver", "pause").startswith("stopped: all grants, by uid ")
    assert sent(vehicle, first + 100_000) == []
    told = as_user("driver", "resume")
    assert "may not resume" in told
    assert "stopped at the vehicle" in as_user("driver", "status")
    assert "does not leave the vehicle" in as_user("driver", "explain Vehicle.TraveledDistance")
    sh("systemctl restart consentry")
    assert sent(vehicle, first + 200_000) == []

    assert "nothing is stopped at the vehicle" in sh("consentry resume")
    assert sent(vehicle, first + 300_000)


def test_a_short_stop_of_a_driver_does_not_lift_a_long_one_of_root(
    vehicle: Vehicle, first: int
) -> None:
    sh("consentry pause")
    as_user("driver", "pause --for 1s")
    time.sleep(3)

    assert sent(vehicle, first) == []


def test_a_stop_ends_by_itself(vehicle: Vehicle, first: int) -> None:
    as_user("driver", "pause --for 5s")
    assert sent(vehicle, first) == []

    wait_for("the end of the stop", lambda: "stopped" not in sh("consentry status"))
    assert sent(vehicle, first + 100_000)
