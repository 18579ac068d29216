"""`once`: one sample per path and grant id, over swaps, revisions and restarts; real store."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.core.model import NS_PER_S, Batch
from agent.core.pipeline import Pipeline
from agent.core.plan import compile_plan
from agent.core.policy import Policy
from agent.edge.store import LiveGrant, Store, StoredPolicy, Tombstone
from tests import car
from tests.storing import append

VIN = "Vehicle.VehicleIdentification.VIN"
NEVER_NS = 10**18
START_S = 1_800_000_000  # 08:00 UTC, a Friday.


class Vehicle:
    """Pipeline and store, put together as the agent does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ver = 0
        self.now_s = START_S
        self.rev = 1
        self.state = "active"
        self.windows: list[dict[str, str]] = []
        self.given: list[tuple[str, int]] = []
        self.start()

    def start(self) -> None:
        self.store = Store.open(self.folder)
        self.pipeline = Pipeline(once_taken=self.store.once_taken())
        self.apply()

    def policy(self) -> Policy:
        constraints: dict[str, Any] = {"windows": self.windows} if self.windows else {}
        grants = {"g": {"read_vin": constraints, "read_odometer": {"min_interval_s": 0}}}
        return car.policy(grants, g={"rev": self.rev, "state": self.state})

    def apply(self) -> None:
        """Take up a policy: persist, then swap."""
        self.ver += 1
        stored = StoredPolicy(b"jws", 1, self.ver, bytes(32), bytes(32), self.ver)
        ended = [Tombstone("g", "revoked")] if self.state == "revoked" else []
        live: Any = [] if ended else [LiveGrant("g", self.rev, self.state)]  # type: ignore[arg-type]
        self.store.apply_policy(stored, live, ended, self.now_s * NS_PER_S)
        self.swap()

    def swap(self) -> None:
        binding = car.binding()
        now_ns = self.now_s * NS_PER_S
        plan = compile_plan(self.policy(), car.catalogue(), binding, now_ns=now_ns)
        self.pipeline.swap(plan)
        self.keep(self.pipeline.drain())

    def drive(self) -> None:
        self.now_s += 20
        if self.now_s * NS_PER_S >= self.pipeline.plan.until_ns:
            self.swap()
        t_ms = self.now_s * 1000
        self.pipeline.feed([car.door(t_ms, 0, vin=1), car.odometer(t_ms, self.now_s % 1000)])

    def close(self) -> None:
        """A minute without frames: what is open closes by age."""
        self.now_s += 70
        self.pipeline.tick(self.now_s * NS_PER_S)
        self.keep(self.pipeline.drain())

    def keep(self, batches: list[Batch]) -> None:
        for batch in batches:
            if (batch.rev, self.state) != (self.rev, "active"):
                continue  # The agent lane drops what was collected under an older consent.
            once = tuple(column.path for column in batch.columns if column.path == VIN)
            append(
                self.store,
                "g",
                batch.rev,
                recipient=batch.recipient,
                created_ns=self.now_s,
                expires_ns=NEVER_NS,
                seal=lambda n: b"%d" % n,
                once=once,
            )
            self.given += [(path, batch.rev) for path in once]

    def kill(self) -> None:
        """Lose what is in memory, as a power cut does."""
        self.store.close()
        self.start()

    def stop(self) -> None:
        self.pipeline.stop()
        self.keep(self.pipeline.drain())
        self.kill()

    def set(self, **members: Any) -> None:
        for name, value in members.items():
            setattr(self, name, value)
        self.apply()


@pytest.fixture
def vehicle(tmp_path: Path) -> Iterator[Vehicle]:
    (tmp_path / "state").mkdir(mode=0o700)
    made = Vehicle(tmp_path / "state")
    yield made
    made.store.close()


def test_what_was_given_once_is_not_given_under_a_higher_rev_or_after_a_restart(
    vehicle: Vehicle,
) -> None:
    vehicle.drive()
    vehicle.close()
    assert vehicle.store.once_taken() == {("g", VIN)}

    vehicle.set(rev=2)
    vehicle.drive()
    vehicle.stop()
    vehicle.drive()
    vehicle.set(rev=3)
    vehicle.drive()
    vehicle.close()

    assert vehicle.given == [(VIN, 1)]
    assert vehicle.store.once_taken() == {("g", VIN)}


@pytest.mark.parametrize("change", ["rev", "pause"])
def test_what_was_dropped_before_it_left_is_given_later(vehicle: Vehicle, change: str) -> None:
    """The open batch goes with a change of its grant; its single sample was never given."""
    vehicle.drive()

    if change == "rev":
        vehicle.set(rev=2)
    else:
        vehicle.set(state="paused")
        vehicle.set(state="active")
    vehicle.drive()
    vehicle.close()

    assert vehicle.given == [(VIN, vehicle.rev)]


def test_hours_that_close_and_open_again_do_not_give_it_again(vehicle: Vehicle) -> None:
    vehicle.set(windows=[{"days": "1-7", "from": "08:00", "to": "08:01", "tz": "UTC"}], rev=2)
    vehicle.drive()
    vehicle.close()
    assert vehicle.pipeline.plan.until_ns // NS_PER_S == START_S + 60

    vehicle.swap()
    vehicle.now_s += 86_400 - 90
    for _ in range(3):
        vehicle.drive()
    vehicle.close()

    assert vehicle.given == [(VIN, 2)]


def test_a_new_grant_id_is_a_new_consent(vehicle: Vehicle) -> None:
    vehicle.drive()
    vehicle.close()

    vehicle.set(state="revoked")

    assert vehicle.store.once_taken() == frozenset()


_STEPS = st.sampled_from(["drive", "close", "kill", "stop", "swap", "rev", "pause", "go on"])


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(_STEPS, max_size=25))
def test_whatever_happens_it_is_given_at_most_once_and_in_the_end_it_is(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    vehicle = Vehicle(tmp_path_factory.mktemp("state"))
    try:
        for step in steps:
            match step:
                case "rev":
                    vehicle.set(rev=vehicle.rev + 1)
                case "pause":
                    vehicle.set(state="paused")
                case "go on":
                    vehicle.set(state="active")
                case _:
                    getattr(vehicle, step)()
        assert len(vehicle.given) <= 1

        vehicle.set(state="active")
        vehicle.drive()
        vehicle.close()

        assert len(vehicle.given) == 1
    finally:
        vehicle.store.close()
