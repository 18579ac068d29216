"""Adapters other than SocketCAN: slcan over a pty, and several kinds of bus at once."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import can
import pytest

from agent.core.bushealth import BusState
from agent.core.canfilter import exact_filter
from agent.core.model import CAN_RTR_FLAG, NS_PER_MS, Frame, Sample
from agent.demo.broker import Broker
from agent.demo.judge import Auditor
from agent.edge.logfile import read_logs
from agent.edge.pycan import PyCanReader
from tests import car
from tests.cloud import Cloud
from tests.nmea import gga, rmc
from tests.rig import Rig, data_of, wait_for
from tests.serialline import SerialDevice, SlcanAdapter, slcan_line

OPTIONS: dict[str, str | int | float | bool] = {
    "bitrate": 500_000,
    "listen_only": True,
    "sleep_after_open": 0.05,
}
GROUP, PORT = "239.74.163.7", 43_977
BODY = b"""VERSION ""
BU_: B
BO_ 100 BODY: 2 B
 SG_ Door : 0|8@1+ (1,0) [0|1] "" B
"""
TANK = b"""VERSION ""
BU_: T
BO_ 100 TANK: 2 T
 SG_ Level : 8|8@1+ (1,0) [0|100] "%" T
"""


@pytest.fixture
def adapter(tmp_path: Path) -> Iterator[SlcanAdapter]:
    with SlcanAdapter(tmp_path / "slcan0") as plugged:
        yield plugged


class Reading:
    """A reader on an adapter, and what it gave."""

    def __init__(self, adapter: SlcanAdapter) -> None:
        self.frames: list[Frame] = []
        self.reader = PyCanReader(
            "body",
            interface="slcan",
            channel=str(adapter.path),
            options=OPTIONS,
            sink=self.frames.extend,
        )

    def contents(self) -> list[tuple[int, bytes]]:
        return [(can_id, data) for _, _, can_id, data in self.frames]


@pytest.fixture
def reading(adapter: SlcanAdapter) -> Iterator[Reading]:
    made = Reading(adapter)
    made.reader.set_filters([exact_filter(0x100)])
    made.reader.start()
    wait_for("the adapter to be opened", adapter.is_open.is_set)
    yield made
    made.reader.close()
    assert made.reader.failure is None


@pytest.mark.captures
@pytest.mark.parametrize(
    "log", ["mustang/mustang_s550.log.gz", "j1939_ecm_bench/normal_operations_demo2.log.gz"]
)
def test_frames_of_a_real_log_come_through_a_serial_adapter(
    log: str, captures: Path, adapter: SlcanAdapter, reading: Reading
) -> None:
    with read_logs([captures / log]) as recording:
        frames = list(recording)[:1500]

    adapter.send(frames)
    wait_for("every frame", lambda: len(reading.frames) >= len(frames))

    wanted = [(i, b"" if i & CAN_RTR_FLAG else data) for _, _, i, data in frames]
    assert reading.contents() == wanted
    assert {bus for _, bus, _, _ in reading.frames} == {"body"}
    assert adapter.asked.count("L") >= 1
    assert "O" not in adapter.asked, "it only listens"


def test_garbage_on_the_line_is_counted_and_the_next_frame_counts(
    adapter: SlcanAdapter, reading: Reading
) -> None:
    good = slcan_line(0x123, b"\x01\x02")

    adapter.say(b"t12G2AABB\r" + good + b"T123\r" + b"t1238AABB\r" + good + b"\a" + b"zzz\r" + good)
    wait_for("the frames", lambda: len(reading.frames) == 3)

    assert reading.contents() == [(0x123, b"\x01\x02")] * 3
    assert reading.reader.health().errors == {"reported": 3}


def test_bytes_that_are_no_text_do_not_end_the_reader(
    adapter: SlcanAdapter, reading: Reading
) -> None:
    adapter.say(b"\xff\xfe\r")
    wait_for("the bus to be given up", lambda: reading.reader.health().reconnects == 1)
    wait_for("it to be back", lambda: reading.reader.health().state is BusState.ACTIVE)

    adapter.say(slcan_line(0x123, b"\x01"))
    wait_for("the frame", lambda: reading.contents() == [(0x123, b"\x01")])


def test_an_adapter_that_was_unplugged_is_read_again(
    adapter: SlcanAdapter, reading: Reading
) -> None:
    adapter.unplug()
    wait_for("the loss", lambda: reading.reader.health().state is BusState.MISSING)
    adapter.plug()
    wait_for("the adapter to be opened", adapter.is_open.is_set)
    wait_for("it to be read", lambda: reading.reader.health().state is BusState.ACTIVE)

    adapter.say(slcan_line(0x123, b"\x01"))
    wait_for("the frame", lambda: reading.contents() == [(0x123, b"\x01")])


@pytest.mark.broker
def test_four_kinds_of_bus_at_once_each_with_its_dbc_and_mapping(
    tmp_path: Path, adapter: SlcanAdapter
) -> None:
    """The same identifier means another signal on each bus."""
    cloud = Cloud()
    cloud.now_s = int(time.time())  # Serial and network adapters stamp with the clock.
    with (
        Broker(tmp_path / "broker") as broker,
        SerialDevice(tmp_path / "gnss0") as receiver,
        Auditor(port=broker.port, tls=broker.tls("auditor")) as auditor,
    ):
        rig = Rig(tmp_path / "vehicle", broker, cloud)
        rig.more_buses = buses(rig.folder, adapter, receiver)
        rig.push(
            cloud.policy(
                cloud.grant(
                    {
                        "read_odometer": {"min_interval_s": 0},
                        "read_security": {"min_interval_s": 1},
                        "read_fuel": {"min_interval_s": 0},
                        "read_location": {"min_interval_s": 1, "grid_deg": 0.01},
                    }
                )
            )
        )
        with rig.running() as daemon:
            wait_for("the grant", lambda: daemon.plan.takes)
            wait_for(
                "all buses", lambda: all(b.state is BusState.ACTIVE for b in daemon.buses.health())
            )
            rig.play([car.odometer(cloud.now_s * 1000, 4711)])
            adapter.say(slcan_line(100, b"\x01\x63"))
            with can.Bus(interface="udp_multicast", channel=GROUP, port=PORT, hop_limit=0) as udp:
                udp.send(can.Message(arbitration_id=100, data=b"\x01\x2a", is_extended_id=False))
            receiver.say(rmc() + gga())
            wait_for("every frame", lambda: daemon.capture.frames >= 4)
        with rig.running():
            wait_for("the samples", lambda: len(opened(auditor, cloud)) >= 6)

        assert {sample.path: sample.value for sample in opened(auditor, cloud)} == {
            "Vehicle.TraveledDistance": 4711,
            "Vehicle.Cabin.Door.Row1.DriverSide.IsOpen": True,
            "Vehicle.Powertrain.FuelSystem.RelativeLevel": 42,
            "Vehicle.CurrentLocation.Latitude": 1.005,
            "Vehicle.CurrentLocation.Longitude": 2.005,
            "Vehicle.CurrentLocation.Timestamp": "2026-01-02T12:00:00.000Z",
        }


def opened(auditor: Auditor, cloud: Cloud) -> list[Sample]:
    return [s for envelope in data_of(auditor) for s in cloud.open(envelope).samples("fleet")]


def buses(folder: Path, adapter: SlcanAdapter, receiver: SerialDevice) -> list[dict[str, Any]]:
    (folder / "body.dbc").write_bytes(BODY)
    (folder / "body.vspec").write_text(
        "Vehicle.Cabin.Door.Row1.DriverSide.IsOpen:\n"
        "  {type: sensor, datatype: boolean, dbc2vss: {signal: BODY.Door, on_change: true}}\n"
    )
    (folder / "tank.dbc").write_bytes(TANK)
    (folder / "tank.vspec").write_text(
        "Vehicle.Powertrain.FuelSystem.RelativeLevel:\n"
        "  {type: sensor, datatype: uint8, dbc2vss: {signal: TANK.Level, interval_ms: 0}}\n"
    )
    return [
        {
            "name": "body",
            "interface": "slcan",
            "channel": str(adapter.path),
            "options": OPTIONS,
            "dbc": ["body.dbc"],
            "mapping": "body.vspec",
        },
        {
            "name": "tank",
            "interface": "udp_multicast",
            "channel": GROUP,
            "options": {"port": PORT, "hop_limit": 0},
            "dbc": ["tank.dbc"],
            "mapping": "tank.vspec",
        },
        {
            "name": "gnss",
            "interface": "gnss",
            "channel": str(receiver.path),
            "dbc": [str(car.ROOT / "dbc" / "gnss.dbc")],
            "mapping": str(car.ROOT / "config" / "vehicles" / "gnss.vspec"),
        },
    ]


def test_the_times_of_a_serial_adapter_are_those_of_the_clock(
    adapter: SlcanAdapter, reading: Reading
) -> None:
    before_ns = time.time_ns()
    adapter.say(slcan_line(0x123, b""))
    wait_for("the frame", lambda: reading.frames)

    assert before_ns - NS_PER_MS <= reading.frames[0][0] <= time.time_ns() + NS_PER_MS
