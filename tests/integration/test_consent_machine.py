"""Random policies, stops, restrictions, clock jumps, restarts and kills, judged by a model.

What is opened at the recipient was permitted when it was taken; what was committed arrives, or has
gone with its grant. The agent lane, its store, the pipeline, the network lane, TLS and mosquitto
are the real ones; only the clocks are the test's. Each frame carries a number of its own, so each
opened value names its frame. The judge is `tests/consent_model.py`.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agent.cloud.restrict import new_restriction, sign_restriction
from agent.control import Agent, Batches, Consent, Journal, Surroundings, publisher
from agent.core.clock import Reading
from agent.core.model import NS_PER_S
from agent.core.pipeline import Pipeline
from agent.core.plan import Plan
from agent.core.restrict import RestrictionMode
from agent.demo.broker import Broker
from agent.demo.judge import Auditor
from agent.edge.ledger import Ledger
from agent.edge.store import Store
from agent.edge.uplink import PolicyArrived, PolicyToken, Uplink, UplinkEvent
from agent.parts import load_parts
from tests import car
from tests.cloud import VEHICLE, Cloud
from tests.consent_model import Model
from tests.desk import needs_mosquitto
from tests.rig import Rig, data_of, wait_for

pytestmark = pytest.mark.broker

GRANTS = ("g1", "g2", "g3")
DAY_S, YEAR_S = 86_400, 365 * 86_400
RETENTION_S = 30 * DAY_S
MAX_AGE_S = 60
FULL = {"read_odometer": {"min_interval_s": 0}}
WAIT_S = 20.0


class Vehicle:
    """The agent lane with real parts, driven step by step on the test's clocks."""

    def __init__(self, rig: Rig, state: Path, model: Model) -> None:
        self.model, self.state = model, state
        config = rig.config()
        parts = load_parts(config)
        self.store = Store.open(state)
        consent = Consent(
            self.store,
            vehicle=VEHICLE,
            catalogue=parts.catalogue,
            trust=parts.trust,
            binding=parts.binding,
            named_buses=parts.named_buses,
        )
        self.pipeline = Pipeline(
            max_age_ns=MAX_AGE_S * NS_PER_S, once_taken=self.store.once_taken()
        )
        self.uplink = Uplink(parts.uplink, on_event=self._on_event)
        self.ledger = Ledger.open(
            state / "ledger",
            vehicle=VEHICLE,
            boot_id=self.reading().boot_id,
            now_ns=self.reading().wall_ns,
        )
        self.agent = Agent(
            vehicle=VEHICLE,
            device=parts.device,
            store=self.store,
            consent=consent,
            uplink=self.uplink,
            journal=Journal(self.ledger, publish=self.uplink.publish_ledger_head),
            swap=self._swap,
            clock=self.reading,
            look=lambda: Surroundings("0.0.0", 0, (), ()),
        )
        self.consent = consent
        self.agent.restore()
        self.is_linked = False

    def reading(self) -> Reading:
        model = self.model
        return Reading(
            round(model.wall_s * NS_PER_S),
            round(model.boot_s * NS_PER_S),
            f"{model.boot:032x}",
            model.is_synced,
        )

    def link(self) -> None:
        self.uplink.start()
        self.is_linked = True

    def feed(self, number: int) -> None:
        self.pipeline.feed([car.odometer(self.model.wall_s * 1000, number)])

    def tick(self) -> None:
        self.pipeline.tick(round(self.model.wall_s * NS_PER_S))

    def settle(self) -> None:
        """Turn until nothing is left to do: what may be published is with the broker."""
        self.agent.turn(0.0)
        self._drain()
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            self.agent.turn(0.01)
            if not (self.is_linked and self.store.pending(1)):
                return
        waiting = len(self.store.pending(99))
        raise AssertionError(
            f"no rest: {waiting} wait, {self.uplink.in_flight()} in flight, {self.agent.counts}"
        )

    def close(self) -> None:
        """End as the daemon does: what was taken is sealed and stored."""
        self.pipeline.stop()
        self._drain()
        self.agent.finish()
        self.uplink.close()
        self.ledger.close()
        self.store.close()

    def kill(self, copy: Path) -> None:
        """End as kill -9 does: what is on disk at this moment is what is left."""
        shutil.copytree(self.state, copy)
        self.uplink.close()
        self.ledger.close()
        self.store.close()

    def _on_event(self, event: UplinkEvent) -> None:
        self.agent.post(event)

    def _swap(self, plan: Plan) -> None:
        self.pipeline.swap(plan)
        self._drain()

    def _drain(self) -> None:
        if batches := self.pipeline.drain():
            self.agent.post(Batches(batches))


class World:
    """What all examples share: a broker, the cloud's keys, an auditor on all topics."""

    def __init__(self, folder: Path, broker: Broker, auditor: Auditor) -> None:
        self.folder, self.broker, self.auditor = folder, broker, auditor
        self.cloud = Cloud()
        self.rig = Rig(folder / "vehicle", broker, self.cloud)
        self.opened: set[bytes] = set()

    def new_samples(self) -> list[tuple[str, int]]:
        """Return (grant, number) of every sample in envelopes that were not opened before."""
        found: list[tuple[str, int]] = []
        for envelope in data_of(self.auditor):
            if envelope not in self.opened:
                self.opened.add(envelope)
                opened = self.cloud.open(envelope)
                found += [(s.grant_id, int(s.value)) for s in opened.samples("fleet")]
        return found


WORLD: list[World] = []


class ConsentMachine(RuleBasedStateMachine):
    """The rules and their judge."""

    @initialize()
    def begin(self) -> None:
        self.world = WORLD[0]
        self.world.cloud.document = {}
        self.world.new_samples()
        self.folder = Path(tempfile.mkdtemp(dir=self.world.folder))
        self.states = 0
        self.model = Model(wall_s=float(self.world.cloud.now_s))
        self.model.observe()
        self.ver, self.epoch, self.rev = 0, 1, dict.fromkeys(GRANTS, 1)
        self.number = self.restrictions = self.delivered = self.counted = 0
        self.seen_before = len(data_of(self.world.auditor))
        self.permitted: dict[int, set[str]] = {}  # Frame → who may have it.
        self.open: set[tuple[str, int]] = set()  # Taken for certain, not known to be on disk.
        self.committed: dict[tuple[str, int], float] = {}  # On disk for certain, and since when.
        self.seen: set[tuple[str, int]] = set()
        self.latest_s: dict[str, float] = {}
        self.vehicle = Vehicle(self.world.rig, self._state(), self.model)
        self.vehicle.link()

    def _state(self) -> Path:
        self.states += 1
        return self.folder / f"state-{self.states}"

    def teardown(self) -> None:
        if not hasattr(self, "vehicle"):
            return
        try:
            self.model.observe()
            self._settle()
            missing = set(self.committed) - self.seen
            assert not missing or not self.vehicle.is_linked, f"{len(missing)} never arrived"
        finally:
            self.vehicle.close()
            shutil.rmtree(self.folder)

    def _settle(self) -> None:
        """Let the agent catch up, draw the consequences, and judge what has arrived."""
        self.model.observe()
        before = {grant for grant in GRANTS if self.model.allows(grant)}
        self.vehicle.settle()
        delivered = self.vehicle.agent.counts["delivered"]
        self.delivered += delivered - self.counted
        self.counted = delivered
        # What the broker took is on its way to the auditor: whenever it comes, it left by now.
        wait_for(
            "the auditor",
            lambda: len(data_of(self.world.auditor)) - self.seen_before >= self.delivered,
        )
        self._judge(before)

    def _judge(self, may_publish: set[str]) -> None:
        stopped = {pair for pair in self.open if pair[0] not in may_publish}
        self.open -= stopped
        for pair in [p for p in self.committed if p[0] in self.model.ended]:
            del self.committed[pair]
        now_s = self.model.now_s
        for pair in [p for p, since in self.committed.items() if since + RETENTION_S <= now_s]:
            if pair not in self.seen:
                del self.committed[pair]
        deadline = time.monotonic() + WAIT_S
        while True:
            for grant, number in self.world.new_samples():
                assert grant in self.permitted[number], "taken without consent"
                assert grant in may_publish, "published while it must not be"
                assert (grant, number) not in self.seen, "the same sample in two envelopes"
                self.seen.add((grant, number))
            due = {p for p in self.committed if p[0] in may_publish} - self.seen
            if not (due and self.vehicle.is_linked) or time.monotonic() > deadline:
                break
            time.sleep(0.005)
        assert not (due and self.vehicle.is_linked), f"{len(due)} committed samples did not arrive"

    @rule(
        names=st.lists(st.sampled_from(GRANTS), unique=True, min_size=1),
        state=st.sampled_from(["active", "active", "active", "paused", "revoked"]),
        bump=st.booleans(),
        begins_s=st.sampled_from([-DAY_S, 0, 3600]),
        ends_s=st.sampled_from([1800, 7200, YEAR_S]),
        offline_s=st.sampled_from([3600, 10 * YEAR_S]),
        valid_s=st.sampled_from([5400, YEAR_S]),
        fresh=st.booleans(),
        epoch=st.sampled_from([0, 0, 0, 1]),
        takes_over=st.booleans(),
    )
    def a_policy_comes(
        self,
        *,
        names: list[str],
        state: str,
        bump: bool,
        begins_s: int,
        ends_s: int,
        offline_s: int,
        valid_s: int,
        fresh: bool,
        epoch: int,
        takes_over: bool,
    ) -> None:
        true_s = int(self.model.wall_s if self.model.is_known else self.model.now_s)
        old = self.model.policy
        iat = true_s if fresh or old is None else old["iat"]
        self.ver, self.epoch = self.ver + 1, self.epoch + epoch
        first, grants = names[0], []
        for name in names:
            before = self.model.grant(name)
            if bump and before is not None:
                self.rev[name] += 1
            made = self.world.cloud.grant(FULL, grant_id=name, rev=self.rev[name])
            made |= {"nbf": iat + begins_s, "exp": iat + ends_s, "offline_s": offline_s}
            if before is not None and not bump:
                made = dict(before)  # Only its state may change under the same rev.
            made["state"] = state if name == first else "active"
            grants.append(made)
        over = list(self.model.restrictions) if takes_over else []
        token = self.world.cloud.policy(
            *grants,
            iat=iat,
            nbf=iat - DAY_S,
            exp=iat + valid_s,
            ver=self.ver,
            epoch=self.epoch,
            taken_over=over,
        )
        revs = {g: self.model.grant(g) for g in GRANTS}
        self._arrives(token)
        stored = self.vehicle.store.in_force()
        assert stored is not None
        assert (stored.epoch, stored.ver) == (self.epoch, self.ver), "a good policy was refused"
        self.model.apply(self.world.cloud.document)
        for name, before in revs.items():
            after = self.model.grant(name)
            if before is not None and (after is None or after["rev"] != before["rev"]):
                self._forget(name)
        if (
            not self.world.cloud.document["nbf"]
            <= self.model.now_s
            < self.world.cloud.document["exp"]
        ):
            self._forget(*GRANTS)
        self._settle()

    def _arrives(self, token: str) -> None:
        self.vehicle.agent.post(PolicyArrived(token.encode(), PolicyToken(0, 0)))
        self.vehicle.agent.turn(0.0)

    def _forget(self, *names: str) -> None:
        """What was collected under another revision, or lies there at a policy's end, is erased."""
        self.open = {p for p in self.open if p[0] not in names}
        self.committed = {
            p: t for p, t in self.committed.items() if p[0] not in names or p in self.seen
        }

    @precondition(lambda self: self.ver > 1)
    @rule(back=st.integers(0, 1))
    def an_old_policy_comes_again(self, back: int) -> None:
        before = self.vehicle.store.in_force()
        document = dict(self.world.cloud.document)
        document["ver"] -= back
        document["jti"] = "another"
        self._arrives(self.world.cloud.token(document))
        assert self.vehicle.store.in_force() == before
        self._settle()

    @rule(grant=st.sampled_from((*GRANTS, "*")), for_s=st.sampled_from([None, 60, 7200]))
    def somebody_stops_it(self, grant: str, for_s: int | None) -> None:
        for_ns = None if for_s is None else for_s * NS_PER_S
        self.vehicle.agent.local.stop(grant, 1000, for_ns)
        end_s = float("inf") if for_s is None else self.model.boot_s + for_s
        self.model.stops[grant] = max(end_s, self.model.stops.get(grant, 0.0))
        self._settle()

    @rule(
        mode=st.sampled_from(["pause", "pause", "revoke"]),
        grants=st.sampled_from([("g1",), ("g2", "g3"), ("g3",), ("*",)]),
    )
    def the_owner_restricts(self, mode: RestrictionMode, grants: tuple[str, ...]) -> None:
        self.restrictions += 1
        jti = f"r-{self.restrictions}"
        token = sign_restriction(
            new_restriction(
                vehicle=VEHICLE,
                mode=mode,
                grants=() if grants == ("*",) else grants,
                iat_s=int(self.model.now_s),
                jti=jti,
            ),
            self.world.cloud.signer,
        )
        self._arrives(token)
        self._arrives(token)  # The same one again changes nothing.
        self.model.restrictions[jti] = (mode, grants)
        self.model.observe()
        self._settle()

    @rule(grant=st.sampled_from((*GRANTS, "*")))
    def somebody_resumes(self, grant: str) -> None:
        self.vehicle.agent.local.resume(grant, 1000)
        self.model.stops.pop(grant, None)
        self._settle()

    @rule(count=st.integers(1, 5))
    def frames_come(self, count: int) -> None:
        for _ in range(count):
            self.model.passes(1.0)
            self._settle()
            self.number += 1
            may = {grant for grant in GRANTS if self.model.allows(grant)}
            self.permitted[self.number] = may
            self.vehicle.feed(self.number)
            if self.model.wall_s == self.model.now_s:  # Else its time may lie outside the plan.
                for grant in may:
                    if self.model.wall_s >= self.latest_s.get(grant, 0.0):
                        self.open.add((grant, self.number))
            for grant in may:
                self.latest_s[grant] = max(self.latest_s.get(grant, 0.0), self.model.wall_s)

    @rule()
    def batches_close(self) -> None:
        self._pass(MAX_AGE_S + 1)
        self.vehicle.tick()
        open_now, self.open = self.open, set()
        self.model.observe()
        for pair in open_now:
            if self.model.allows(pair[0]):
                self.committed[pair] = self.model.now_s
        self._settle()

    @rule(seconds=st.sampled_from([10, 600, 3600, 5 * 3600]))
    def time_passes(self, seconds: int) -> None:
        self._pass(seconds)

    def _pass(self, seconds: int) -> None:
        self.open = set()  # Some of it is committed by its age, some not yet.
        self.model.passes(seconds)
        policy = self.model.policy
        if policy is not None and not policy["nbf"] <= self.model.now_s < policy["exp"]:
            self._forget(*GRANTS)
        self._settle()

    @rule(by_s=st.sampled_from([-10 * YEAR_S, -3600, 3600, 10 * YEAR_S]), is_synced=st.booleans())
    def somebody_sets_the_clock(self, *, by_s: int, is_synced: bool) -> None:
        self.model.wall_s += by_s
        self.model.is_synced = is_synced
        self.open = set()
        self.model.observe()
        policy = self.model.policy
        if policy is not None and not policy["nbf"] <= self.model.now_s < policy["exp"]:
            self._forget(*GRANTS)
        self._settle()

    @rule(is_kill=st.booleans(), off_s=st.sampled_from([None, 5, DAY_S]), is_synced=st.booleans())
    def it_starts_again(self, *, is_kill: bool, off_s: int | None, is_synced: bool) -> None:
        """A new process, and with `off_s` a new boot."""
        self._settle()
        state = self.vehicle.state
        if is_kill:
            state = self._state()
            self.vehicle.kill(state)
            self.open = set()
        else:
            self.vehicle.close()
            self.open = set()
        kept_ns = self._kept_floor_ns(state)
        kept_s = kept_ns / NS_PER_S
        if off_s is not None:
            self.model.reboot(off_s, is_synced=is_synced, kept_floor_s=kept_s)
        else:
            iat = self.model.policy["iat"] if self.model.policy else 0
            self.model.floor_s = max(self.model.__class__(0).floor_s, kept_s, iat)
            self.model.observe()
        self._stops_last_longer(state)
        policy = self.model.policy
        if policy is not None and not policy["nbf"] <= self.model.now_s < policy["exp"]:
            self._forget(*GRANTS)
        self.vehicle = Vehicle(self.world.rig, state, self.model)
        self.counted = 0
        self.vehicle.link()
        self._settle()

    @staticmethod
    def _kept_floor_ns(state: Path) -> int:
        with Store.open(state) as store:
            return store.number("floor_ns") or 0

    def _stops_last_longer(self, state: Path) -> None:
        """How much of a timed stop is left is kept once a minute: never less than is due."""
        with Store.open(state) as store:
            left = {stop.grant_id: stop.left_ns for stop in store.local_stops()}
        for grant, end_s in list(self.model.stops.items()):
            kept_ns = left[grant]
            if kept_ns is not None:
                due_s, kept_s = end_s - self.model.boot_s, kept_ns / NS_PER_S
                assert due_s <= kept_s + 1e-6
                self.model.stops[grant] = self.model.boot_s + kept_s

    @precondition(lambda self: self.vehicle.is_linked)
    @rule()
    def the_link_goes(self) -> None:
        self._settle()
        self.vehicle.uplink.close()
        self.vehicle.is_linked = False

    @invariant()
    def what_the_agent_thinks_is_what_the_model_thinks(self) -> None:
        if not hasattr(self, "vehicle"):
            return
        live = {g.grant_id for g in self.vehicle.store.live_grants() if g.state == "active"}
        allowed = {grant for grant in GRANTS if self.model.allows(grant)}
        assert live == allowed
        assert {grant.grant_id for grant in self.vehicle.consent.plan.live} <= allowed


@contextmanager
def world(folder: Path) -> Iterator[None]:
    with (
        Broker(folder / "broker") as broker,
        Auditor(port=broker.port, tls=broker.tls("auditor")) as auditor,
    ):
        WORLD.append(World(folder, broker, auditor))
        try:
            yield
        finally:
            WORLD.clear()


def test_what_arrives_was_permitted_and_what_was_committed_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_mosquitto()
    # Policies do not come through the broker here, so there is nothing to wait for.
    monkeypatch.setattr(publisher, "POLICY_FIRST_S", 0.0)
    monkeypatch.setattr(publisher, "POLICY_NEXT_S", 0.0)
    with world(tmp_path):
        run_state_machine_as_test(
            ConsentMachine,
            settings=settings(
                max_examples=int(os.environ.get("CONSENTRY_EXAMPLES", "30")),
                stateful_step_count=30,
                deadline=None,
                phases=[Phase.explicit, Phase.reuse, Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
