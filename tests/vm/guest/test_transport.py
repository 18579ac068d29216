"""Messages of several frames through the kernel's filters, and questions over a real socket."""

import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.core.binding import Binding, bind
from agent.core.canfilter import compile_filters
from agent.core.dbc import parse_dbc
from agent.core.mapping import parse_mapping
from agent.core.model import CAN_EFF_FLAG, Frame
from agent.core.obd import Question, questions
from agent.core.pipeline import Pipeline
from agent.core.plan import Plan, compile_plan
from agent.core.replay import Replay
from agent.edge.logfile import read_log
from agent.edge.obd import ObdPoller
from tests import car
from tests.vm.guest.tap import Tap

BUS = "vcan0"
FRAME = struct.Struct("<IB3x8s")  # linux/can.h: struct can_frame
VEHICLES = car.ROOT / "config" / "vehicles"
OBD_DBCS = ("obd2.dbc", "obd2_answers.dbc")
EXAMPLE = "1M8GDM9AXKP042788"  # Published; no vehicle has it.
CHARGE = "Vehicle.Powertrain.TractionBattery.StateOfCharge.Displayed"
CASES = {
    "ev_uds/nissan_leaf_uds.MF4": (
        "ev_uds/tp_uds_nissan.dbc",
        "signal: SoC_Temp.SoC, interval_ms: 0, transport: isotp-length",
        {0x7BB},
    ),
    "j1939/FCBF0606_j1939_tp.MF4": (
        "j1939/tp_j1939.dbc",
        "signal: EngineSpeedAtPoint5, interval_ms: 0, transform: {math: 'x/100'}",
        {CAN_EFF_FLAG | 0x1CECFF00, CAN_EFF_FLAG | 0x1CEBFF00},
    ),
}


def bound(dbc: Path, leaf: str) -> Binding:
    # The J1939 file calls its message an extended frame.
    text = dbc.read_bytes().replace(b"2566841342 1;", b"2566841342 4;")
    mapping = parse_mapping(f"{CHARGE}: {{type: sensor, dbc: {{{leaf}}}}}".encode(), name="m")
    return bind(mapping, [parse_dbc(text, name="d")], car.catalogue(), bus=BUS)


def granted(binding: Binding) -> Plan:
    return compile_plan(
        car.policy({"g": {"read_battery": {"min_interval_s": 0}}}),
        car.catalogue(),
        binding,
        now_ns=time.time_ns(),
        named_buses=[BUS],
    )


def values(plan: Plan, frames: list[Frame]) -> list[Any]:
    pipeline = Pipeline(plan)
    pipeline.feed(frames)
    pipeline.stop()
    return [value for b in pipeline.drain() for column in b.columns for value in column.values]


@pytest.mark.captures
@pytest.mark.parametrize("log", CASES)
def test_a_played_capture_gives_what_replay_says_and_only_its_frames_reach_the_process(
    log: str, captures: Path
) -> None:
    dbc, leaf, ids = CASES[log]
    binding = bound(captures / dbc, leaf)
    plan = granted(binding)
    replay = Replay(
        car.policy({"g": {"read_battery": {"min_interval_s": 0}}}),
        car.catalogue(),
        binding,
        named_buses=[BUS],
    )
    replay.feed([(t, BUS, can_id, data) for t, _, can_id, data in read_log(captures / log)])
    replay.finish()
    wanted = [sample.value for sample in replay.samples()]

    with Tap(BUS) as tap:
        tap.reader.set_filters(compile_filters(plan, BUS).filters)
        done = subprocess.run(
            ["consentry", "play", captures / log, "--bus", BUS, "--speed", "20"],
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        time.sleep(0.5)

    assert tap.ids() == ids
    assert values(plan, tap.frames) == wanted
    assert len(wanted) >= 3


@pytest.fixture
def unit() -> Iterator[list[bytes]]:
    """A control unit that answers every question; it keeps what it was asked."""
    asked: list[bytes] = []
    stop = threading.Event()

    def answer() -> None:
        with socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW) as sock:
            sock.bind((BUS,))
            sock.settimeout(0.1)
            while not stop.is_set():
                try:
                    can_id, _, data = FRAME.unpack(sock.recv(16))
                except TimeoutError:
                    continue
                if can_id == 0x7E0:
                    asked.append(data)
                    reply = bytes((3, data[1] + 0x40, data[2], 50, 0, 0, 0, 0))
                    sock.send(FRAME.pack(0x7E8, 8, reply))

    thread = threading.Thread(target=answer)
    thread.start()
    yield asked
    stop.set()
    thread.join()


def test_questions_go_onto_the_bus_and_end_at_once(unit: list[bytes]) -> None:
    poller = ObdPoller("obd", interface="socketcan", channel=BUS, options={}, max_per_s=20)
    poller.start()
    try:
        poller.ask([Question(0x7E0, 0x7E8, 1, 13, 0)], 1 << 62)
        deadline_s = time.monotonic() + 20
        while len(unit) < 5 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        poller.ask((), 1 << 62)
        time.sleep(0.2)
        settled = len(unit)
        time.sleep(1)
    finally:
        poller.close()

    assert settled >= 5
    assert len(unit) == settled
    assert set(unit) == {b"\x02\x01\x0d\xcc\xcc\xcc\xcc\xcc"}
    assert (poller.unanswered, poller.failure) == (0, None)


@pytest.fixture
def kernels_unit() -> Iterator[list[bytes]]:
    """A control unit that says its VIN through the kernel's own ISO-TP; keeps what it was asked."""
    asked: list[bytes] = []
    stop = threading.Event()
    sock = socket.socket(socket.AF_CAN, socket.SOCK_DGRAM, socket.CAN_ISOTP)
    sock.bind((BUS, 0x7E0, 0x7E8))
    sock.settimeout(0.1)

    def answer() -> None:
        while not stop.is_set():
            try:
                asked.append(sock.recv(64))
            except TimeoutError:
                continue
            sock.send(b"\x49\x02\x01" + EXAMPLE.encode())

    thread = threading.Thread(target=answer)
    thread.start()
    yield asked
    stop.set()
    thread.join()
    sock.close()


@pytest.mark.qemu
def test_a_vin_is_asked_for_and_let_go_on_as_the_kernels_iso_tp_wants_it(
    kernels_unit: list[bytes],
) -> None:
    """Three frames, of which the kernel sends two only after our flow control."""
    made = bind(
        parse_mapping((VEHICLES / "obd2_gnss.vspec").read_bytes(), name="m"),
        [parse_dbc((car.ROOT / "dbc" / name).read_bytes(), name=name) for name in OBD_DBCS],
        car.catalogue(),
        bus=BUS,
    )
    plan = compile_plan(
        car.policy({"g": {"read_vin": {}}}),
        car.catalogue(),
        made,
        now_ns=time.time_ns(),
        named_buses=[BUS],
    )
    poller = ObdPoller("obd", interface="socketcan", channel=BUS, options={}, max_per_s=20)
    with Tap(BUS) as tap:
        tap.reader.set_filters(compile_filters(plan, BUS).filters)
        poller.start()
        try:
            poller.ask(questions(plan, made, BUS), 1 << 62)
            deadline_s = time.monotonic() + 20
            while len(tap.frames) < 3 and time.monotonic() < deadline_s:
                time.sleep(0.05)
        finally:
            poller.close()

    assert values(plan, tap.frames) == [EXAMPLE]
    assert tap.ids() == {0x7E8}
    assert set(kernels_unit) == {b"\x09\x02"}
    assert (poller.unanswered, poller.failure) == (0, None)
