"""The OBD-II poller on python-can's virtual bus, with a control unit that answers."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import can
import pytest

from agent.config import Config, parse_config
from agent.core.binding import Binding, bind
from agent.core.dbc import parse_dbc
from agent.core.mapping import parse_mapping
from agent.core.model import NS_PER_S, Batch, Column, Frame
from agent.core.obd import Question, questions
from agent.core.pipeline import Pipeline
from agent.core.plan import Plan, compile_plan
from agent.demo.judge import Auditor
from agent.edge.obd import ASLEEP_AFTER, TESTER_PAUSE_S, ObdPoller
from agent.edge.pycan import PyCanReader
from agent.errors import ConfigError
from tests import car
from tests.cloud import Cloud
from tests.rig import Rig, data_of, wait_for

SPEED, RPM, FUEL = 0x0D, 0x0C, 0x2F
VIN = "Vehicle.VehicleIdentification.VIN"
EXAMPLE = "1M8GDM9AXKP042788"  # Published; no vehicle has it.
FOREVER_NS = 1 << 62
DBC = (car.ROOT / "dbc/obd2.dbc").read_bytes()


class ControlUnit:
    """An engine's control unit: answers what it knows, and keeps what it was asked."""

    def __init__(self, channel: str, *, knows: dict[tuple[int, int], bytes]) -> None:
        self.knows = knows
        self.scripted: dict[tuple[int, int], list[bytes]] = {}  # Frames, 0.3 s apart.
        self.asked: list[tuple[float, bytes]] = []
        self._bus = can.Bus(interface="virtual", channel=channel)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.waiting: list[bytes] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._bus.shutdown()

    def requests(self) -> list[tuple[int, int]]:
        return [(data[1], data[2]) for _, data in self.asked if data[0] == 2]

    def _run(self) -> None:
        while not self._stop.is_set():
            message = self._bus.recv(timeout=0.02)
            if message is None or message.arbitration_id != 0x7E0:
                continue
            data = bytes(message.data)
            self.asked.append((time.monotonic(), data))
            if data[0] >> 4 == 3:
                for frame in self.waiting:
                    self._answer(frame)
                self.waiting = []
            elif (frames := self.scripted.get((data[1], data[2]))) is not None:
                for index, frame in enumerate(frames):
                    time.sleep(0.3 if index else 0)
                    self._answer(frame)
            elif (known := self.knows.get((data[1], data[2]))) is not None:
                self._say(bytes((data[1] + 0x40, data[2])) + known)

    def _say(self, message: bytes) -> None:
        if len(message) <= 7:
            self._answer(bytes((len(message),)) + message)
            return
        self._answer(bytes((0x10 | len(message) >> 8, len(message) & 0xFF)) + message[:6])
        rest = message[6:]
        self.waiting = [
            bytes((0x20 | (i + 1) & 0xF,)) + rest[7 * i : 7 * i + 7]
            for i in range(-(-len(rest) // 7))
        ]

    def _answer(self, data: bytes) -> None:
        self._bus.send(
            can.Message(arbitration_id=0x7E8, is_extended_id=False, data=data.ljust(8, b"\x55"))
        )


@pytest.fixture
def channel(request: pytest.FixtureRequest) -> str:
    return f"obd-{request.node.name}"


@pytest.fixture
def unit(channel: str) -> Iterator[ControlUnit]:
    knows = {(1, SPEED): b"\x32", (1, RPM): b"\x0c\x80", (9, 6): b"\x02" + bytes(range(8))}
    with ControlUnit(channel, knows=knows) as answering:
        yield answering


@pytest.fixture
def poller(channel: str) -> Iterator[ObdPoller]:
    made = ObdPoller("obd", interface="virtual", channel=channel, options={}, max_per_s=20)
    made.start()
    yield made
    made.close()
    assert made.failure is None
    assert not made.is_alive


def question(pid: int, *, service: int = 1, interval_s: float = 0.0) -> Question:
    return Question(0x7E0, 0x7E8, service, pid, int(interval_s * NS_PER_S))


def test_only_what_is_asked_for_goes_onto_the_bus(unit: ControlUnit, poller: ObdPoller) -> None:
    poller.ask([question(SPEED), question(RPM)], FOREVER_NS)
    wait_for("ten requests", lambda: len(unit.asked) >= 10)

    assert set(unit.requests()) == {(1, SPEED), (1, RPM)}
    assert {len(data) for _, data in unit.asked} == {8}


def test_asking_ends_before_the_call_returns(unit: ControlUnit, poller: ObdPoller) -> None:
    """Nothing is sent after a revocation, however often it is tried."""
    for _ in range(20):
        before = len(unit.asked)
        poller.ask([question(SPEED)], FOREVER_NS)
        wait_for("a request", lambda before=before: len(unit.asked) > before)
        poller.ask((), FOREVER_NS)
        time.sleep(0.03)
        settled = len(unit.asked)
        time.sleep(0.05)
        assert len(unit.asked) == settled
        poller._due.clear()


def test_a_permission_that_has_run_out_is_none(unit: ControlUnit, poller: ObdPoller) -> None:
    poller.ask([question(SPEED)], time.time_ns())
    time.sleep(0.3)

    assert unit.asked == []


def test_a_question_that_was_withdrawn_meanwhile_is_not_sent(channel: str) -> None:
    """The thread has chosen it already; the plan changes; then it sends."""
    poller = ObdPoller("obd", interface="virtual", channel=channel, options={}, max_per_s=20)
    gone, kept = question(SPEED), question(RPM)
    with (
        can.Bus(interface="virtual", channel=channel) as bus,
        can.Bus(interface="virtual", channel=channel) as listener,
    ):
        poller.ask([gone, kept], FOREVER_NS)
        poller.ask([kept], FOREVER_NS)

        assert not poller._send(bus, gone, gone.data)
        assert listener.recv(timeout=0) is None
        assert poller._send(bus, kept, kept.data)


def test_no_more_is_asked_in_a_second_than_is_allowed(channel: str, unit: ControlUnit) -> None:
    poller = ObdPoller("obd", interface="virtual", channel=channel, options={}, max_per_s=5)
    poller.start()
    poller.ask([question(pid) for pid in (SPEED, RPM)], FOREVER_NS)
    wait_for("requests", lambda: len(unit.asked) >= 8)
    poller.close()

    times = [t_s for t_s, _ in unit.asked]
    assert times[7] - times[0] > 7 * 0.2 - 0.1


def test_the_interval_of_the_grant_is_kept(unit: ControlUnit, poller: ObdPoller) -> None:
    poller.ask([question(SPEED, interval_s=0.3), question(RPM, interval_s=60)], FOREVER_NS)
    wait_for("requests", lambda: unit.requests().count((1, SPEED)) >= 4)

    times = [t_s for t_s, data in unit.asked if data[2] == SPEED]
    assert min(b - a for a, b in pairwise(times)) > 0.25
    assert unit.requests().count((1, RPM)) == 1


def test_an_answer_of_several_frames_is_let_go_on(unit: ControlUnit, poller: ObdPoller) -> None:
    poller.ask([question(6, service=9)], FOREVER_NS)
    wait_for("the answer", lambda: any(data[0] == 0x30 for _, data in unit.asked))
    wait_for("the next question", lambda: unit.requests().count((9, 6)) >= 2)

    assert poller.unanswered == 0
    assert {data[0] for _, data in unit.asked} == {2, 0x30}


def test_what_is_said_to_somebody_else_gets_no_flow_control(
    unit: ControlUnit, poller: ObdPoller
) -> None:
    unit.scripted[1, SPEED] = [b"\x10\x14\x49\x02\x011M8"]
    poller.ask([question(SPEED)], FOREVER_NS)
    wait_for("the next question", lambda: len(unit.asked) >= 2)

    assert poller.unanswered >= 1
    assert {data[0] for _, data in unit.asked} == {2}


def test_an_answer_that_is_to_follow_is_waited_for(unit: ControlUnit, poller: ObdPoller) -> None:
    """And nothing else is asked until it has come."""
    pending = b"\x03\x7f\x01\x78"
    unit.scripted[1, SPEED] = [pending, pending, b"\x03\x41\x0d\x32"]
    poller.ask([question(SPEED, interval_s=5), question(RPM)], FOREVER_NS)
    wait_for("both questions", lambda: len(unit.asked) >= 2)

    assert unit.requests()[:2] == [(1, SPEED), (1, RPM)]
    assert unit.asked[1][0] - unit.asked[0][0] > 0.6
    assert poller.unanswered == 0


def test_who_only_promises_an_answer_is_not_waited_for_once_the_question_is_withdrawn(
    unit: ControlUnit, poller: ObdPoller
) -> None:
    unit.scripted[1, SPEED] = [b"\x03\x7f\x01\x78"]
    poller.ask([question(SPEED)], FOREVER_NS)
    wait_for("the question", lambda: unit.asked)

    poller.ask([question(RPM)], FOREVER_NS)

    wait_for("the other", lambda: len(unit.asked) >= 2)
    assert unit.asked[1][0] - unit.asked[0][0] < 2


def test_who_does_not_answer_is_asked_ever_more_seldom(
    unit: ControlUnit, poller: ObdPoller
) -> None:
    unit.knows = {}
    poller.ask([question(SPEED)], FOREVER_NS)
    wait_for("requests", lambda: len(unit.asked) >= 3)

    times = [t_s for t_s, _ in unit.asked]
    assert times[2] - times[1] > 1.5 * (times[1] - times[0])
    assert poller.unanswered >= 2


def test_a_vehicle_that_sleeps_is_not_kept_awake(unit: ControlUnit, poller: ObdPoller) -> None:
    unit.knows = {}
    poller.ask([question(pid) for pid in range(30)], FOREVER_NS)
    wait_for("the pause", lambda: poller._silent >= ASLEEP_AFTER)
    time.sleep(0.5)

    assert len(unit.asked) == ASLEEP_AFTER


def test_another_tester_goes_first(unit: ControlUnit, poller: ObdPoller, channel: str) -> None:
    poller.ask([question(SPEED)], FOREVER_NS)
    wait_for("a request", lambda: len(unit.asked) >= 1)
    with can.Bus(interface="virtual", channel=channel) as tester:
        tester.send(can.Message(arbitration_id=0x7DF, data=b"\x02\x01\x00", is_extended_id=False))
    time.sleep(0.3)
    settled = len(unit.asked)
    time.sleep(0.6)

    assert len(unit.asked) == settled


@pytest.mark.parametrize(
    ("can_id", "is_extended", "is_foreign"),
    [
        (0x7DF, False, True),  # ISO 15765-4: functional,
        (0x7E3, False, True),  # to one unit,
        (0x18DB33F1, True, True),  # and the same with 29 bits.
        (0x18DA10F1, True, True),
        (0x7DF, True, False),
        (0x7EB, False, False),
        (0x18DAF110, True, False),
        (0x18DB10F1, True, False),
    ],
)
def test_requests_of_others_are_told_from_answers(
    can_id: int,
    is_extended: bool,  # noqa: FBT001 - pytest's call
    is_foreign: bool,  # noqa: FBT001 - pytest's call
) -> None:
    poller = ObdPoller("obd", interface="virtual", channel="none", options={}, max_per_s=5)

    poller._heed(can.Message(arbitration_id=can_id, is_extended_id=is_extended, data=b"\x02\x01"))

    assert (poller._free_s > time.monotonic() + TESTER_PAUSE_S - 1) == is_foreign


def test_a_bus_that_cannot_be_opened_is_told_and_does_not_end_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    poller = ObdPoller("obd", interface="socketcan", channel="none7", options={}, max_per_s=5)
    poller.start()
    poller.ask([question(SPEED)], FOREVER_NS)
    wait_for("the failure", lambda: any(r.message == "obd request failed" for r in caplog.records))

    assert poller.is_alive
    poller.close()
    assert not poller.is_alive


def binding() -> Binding:
    leaves = (
        "Vehicle.Speed: {type: sensor, dbc: {signal: OBD_ECM_11BIT.VehicleSpeed, interval_ms: 0}}\n"
        "Vehicle.Powertrain.CombustionEngine.Speed: {type: sensor, dbc: "
        "{signal: OBD_ECM_11BIT.EngineSpeed, interval_ms: 0}}\n"
        "Vehicle.TraveledDistance: {type: sensor, unit: m, dbc: "
        "{signal: OBD_ECM_11BIT.CalibrationVerificationNumber, interval_ms: 0, "
        "transport: isotp-length}}\n"
    )
    return bind(
        parse_mapping(leaves.encode(), name="m"),
        [parse_dbc(DBC, name="obd2.dbc")],
        car.catalogue(),
        bus="obd",
    )


def plan(**scopes: dict[str, Any]) -> Plan:
    policy = car.policy({"g": scopes})
    return compile_plan(
        policy, car.catalogue(), binding(), now_ns=time.time_ns(), named_buses=["obd"]
    )


def test_answers_pass_the_gate_as_frames_of_the_bus(
    channel: str, unit: ControlUnit, poller: ObdPoller
) -> None:
    """A granted speed and, in several frames, a number of service 09; the engine speed is not."""
    granted = plan(read_speedometer={"min_interval_s": 0.1}, read_odometer={"min_interval_s": 0})
    frames: list[Frame] = []
    reader = PyCanReader(
        "obd", interface="virtual", channel=channel, options={}, sink=frames.extend
    )
    reader.set_filters([object()])  # type: ignore[list-item] # python-can's readers take all
    reader.start()
    wait_for("the reader", lambda: reader.health().state == "active")

    poller.ask(questions(granted, binding(), "obd"), granted.until_ns)
    wait_for("the answers", lambda: len([f for f in frames if f[2] == 0x7E8]) >= 8)
    poller.ask((), FOREVER_NS)
    reader.close()

    pipeline = Pipeline(granted)
    pipeline.feed(frames)
    pipeline.stop()
    got = {(s.path, s.value) for batch in pipeline.drain() for s in batch.samples()}
    number = int.from_bytes(bytes(range(4)), "big")
    assert got == {("Vehicle.Speed", 50.0), ("Vehicle.TraveledDistance", number)}
    assert set(unit.requests()) == {(1, SPEED), (9, 6)}


def vin_batch(grant_id: str) -> Batch:
    column = Column("read_vin", VIN, "string", None, 1, 0, (0,), (EXAMPLE,))
    return Batch(grant_id, 1, "r", (column,))


def test_what_is_wanted_once_is_asked_for_until_it_was_given(
    unit: ControlUnit, poller: ObdPoller
) -> None:
    """Ever more seldom, though it is answered, and no more once everybody has it."""
    unit.knows[9, 2] = b"\x01" + EXAMPLE.encode()
    once = replace(question(2, service=9), once=frozenset({("g", VIN), ("h", VIN)}))
    asked = [once, question(SPEED)]
    poller.ask(asked, FOREVER_NS)
    wait_for("other requests", lambda: unit.requests().count((1, SPEED)) >= 8)
    times = [t_s for t_s, data in unit.asked if data[1:3] == b"\x09\x02"]
    assert 2 <= len(times) <= 4
    assert times[-1] - times[-2] > 1.5 * 0.2 * 2 ** (len(times) - 2)

    poller.give([vin_batch("g")])
    assert once in poller._questions
    poller.give([vin_batch("h")])
    assert poller._questions == (asked[1],)
    poller.ask(asked, FOREVER_NS)
    assert poller._questions == (asked[1],)
    other = replace(once, once=frozenset({("i", VIN)}))
    poller.ask([other], FOREVER_NS)
    assert poller._questions == (other,)


def test_what_was_given_before_a_restart_is_not_asked_for(channel: str) -> None:
    once = replace(question(2, service=9), once=frozenset({("g", VIN)}))
    poller = ObdPoller(
        "obd",
        interface="virtual",
        channel=channel,
        options={},
        max_per_s=5,
        given={("g", VIN)},
    )

    poller.ask([once], FOREVER_NS)

    assert poller._questions == ()


@pytest.mark.broker
def test_the_daemon_asks_for_the_vin_and_gives_it_once_also_over_a_restart(
    rig: Rig, cloud: Cloud, auditor: Auditor, caplog: pytest.LogCaptureFixture
) -> None:
    rig.dbcs = [car.ROOT / "dbc" / name for name in ("obd2.dbc", "obd2_answers.dbc")]
    rig.mapping = car.ROOT / "config" / "vehicles" / "obd2_gnss.vspec"
    rig.obd = {"poll": True, "bus": "can0", "max_per_s": 20}
    rig.max_age_s = 1.0
    knows = {(1, SPEED): b"\x32", (9, 2): b"\x01" + EXAMPLE.encode()}
    cloud.now_s = int(time.time())
    rig.push(cloud.policy(cloud.grant({"read_vin": {}, "read_speedometer": {"min_interval_s": 1}})))

    def opened() -> list[Any]:
        rig.clock.now_ns = time.time_ns()
        columns = [column for data in data_of(auditor) for column in cloud.open(data).columns]
        return [value for column in columns if column.path == VIN for value in column.values]

    with ControlUnit(rig.channel, knows=knows) as unit:
        with rig.running() as daemon:
            wait_for("the request", lambda: (9, 2) in unit.requests())
            wait_for("the value", opened)
            asked = unit.requests().count((9, 2))
            assert daemon.capture.given_up == 0
        with rig.running():
            before = len(unit.asked)
            wait_for("other requests", lambda: len(unit.asked) >= before + 5)
        assert unit.requests().count((9, 2)) == asked

    assert opened() == [EXAMPLE]
    assert EXAMPLE[:8] not in caplog.text
    kept = b"".join(p.read_bytes() for p in rig.state.rglob("*") if p.is_file())
    assert EXAMPLE.encode() not in kept


def config_of(folder: Path, **obd: Any) -> Config:
    return parse_config(
        {
            "vehicle": {"id": "v", "trust": "t"},
            "bus": [
                {"name": "a", "channel": "c", "dbc": ["d"], "mapping": "m"},
                {"name": "b", "interface": "slcan", "channel": "c", "dbc": ["d"], "mapping": "m"},
            ],
            "uplink": {"host": "127.0.0.1", "plaintext_loopback": True},
            "obd": obd,
        },
        folder,
    )


@pytest.mark.parametrize("bus", [{}, {"bus": "x"}, {"bus": "b"}])
def test_a_bus_that_is_not_there_or_that_two_cannot_open_is_refused(
    bus: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"obd\.bus is"):
        config_of(tmp_path, poll=True, **bus)
    assert config_of(tmp_path, poll=True, bus="a").obd.max_per_s == 5
    assert not config_of(tmp_path).obd.poll


@pytest.mark.broker
@pytest.mark.parametrize("poll", [False, True])
def test_the_daemon_asks_only_when_it_is_told_to_and_only_while_it_is_granted(
    poll: bool,  # noqa: FBT001 - drawn
    rig: Rig,
    cloud: Cloud,
) -> None:
    rig.dbcs = [car.ROOT / "dbc" / "obd2.dbc"]
    rig.mapping = car.ROOT / "config" / "vehicles" / "obd2_gnss.vspec"
    rig.obd = {"poll": poll, "bus": "can0", "max_per_s": 20}
    with ControlUnit(rig.channel, knows={(1, SPEED): b"\x32"}) as unit, rig.running() as daemon:
        time.sleep(0.3)
        assert unit.asked == []
        rig.push(cloud.policy(cloud.grant({"read_speedometer": {"min_interval_s": 0.1}})))
        wait_for("the grant", lambda: daemon.plan.takes)
        if not poll:
            time.sleep(0.5)
            assert unit.asked == []
            return
        wait_for("requests", lambda: len(unit.asked) >= 3)
        assert set(unit.requests()) == {(1, SPEED)}
        rig.push(cloud.policy())
        wait_for("the revocation", lambda: not daemon.plan.takes)
        time.sleep(0.1)
        settled = len(unit.asked)
        time.sleep(0.5)
        assert len(unit.asked) == settled
        assert [lane.name for lane in daemon.lanes()][-1] == "obd"
