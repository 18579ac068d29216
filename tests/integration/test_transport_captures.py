"""Messages of several frames in real captures, against can-isotp, cantools and a naive reading."""

import logging
import random
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cantools
import isotp
import pytest

from agent.core.binding import Binding, bind
from agent.core.dbc import parse_dbc
from agent.core.isotp import IsoTpReassembly
from agent.core.j1939tp import PGN_CM, PGN_DT, J1939Reassembly
from agent.core.mapping import parse_mapping
from agent.core.model import CAN_EFF_FLAG, Frame
from agent.core.replay import Replay
from agent.edge.logfile import read_log
from tests import car

pytestmark = pytest.mark.captures

LEAF, EV6 = "ev_uds/nissan_leaf_uds.MF4", "ev_uds/kia_ev6_2.MF4"
OBD = "obd2_request_response/7512BE4D.log.gz"
TRUCKS = [
    "j1939/FCBF0606_j1939_tp.MF4",
    "j1939/11111111_idle_diesel.log.gz",
    "j1939_ecm_bench/normal_operations_demo2.log.gz",
]
CHARGE = "Vehicle.Powertrain.TractionBattery.StateOfCharge.Displayed"
VIN = "Vehicle.VehicleIdentification.VIN"
RPM = "Vehicle.Powertrain.CombustionEngine.Speed"

logging.getLogger("isotp").setLevel(logging.CRITICAL)


def of_id(captures: Path, log: str, can_id: int) -> list[Frame]:
    return [frame for frame in read_log(captures / log) if frame[2] == can_id]


def by_can_isotp(frames: Iterable[Frame]) -> list[bytes]:
    inbox = deque(isotp.CanMessage(arbitration_id=1, data=data) for _, _, _, data in frames)
    receiver = isotp.TransportLayerLogic(
        lambda _=0: inbox.popleft() if inbox else None,
        lambda _: None,
        isotp.Address(isotp.AddressingMode.Normal_11bits, txid=2, rxid=1),
    )
    got = []
    while inbox:
        receiver.process()
        while receiver.available():
            got.append(bytes(receiver.recv()))
    return got


@pytest.mark.parametrize(
    ("log", "can_id", "at_least"),
    [
        *((LEAF, can_id, 10) for can_id in (0x7BB, 0x79B)),
        *((EV6, can_id, 3) for can_id in (0x7EC, 0x7BB, 0x7A8, 0x7B3)),
        (OBD, 0x7E8, 7000),
    ],
)
def test_answers_are_put_together_as_can_isotp_does(
    log: str, can_id: int, at_least: int, captures: Path
) -> None:
    frames = of_id(captures, log, can_id)
    line = IsoTpReassembly(keep=4095)

    ours = [m for t, _, _, data in frames if (m := line.feed(t, data)) is not None]

    theirs = by_can_isotp(frames)
    assert (len(ours), ours == theirs) == (len(theirs), True)
    assert len(ours) >= at_least


def naive_groups(frames: Iterable[Frame]) -> list[tuple[int, int, int, bytes]]:
    """Return (t, PGN, source, data): each announcement with the packets that follow it in time.

    All that these captures hold are broadcasts (some to one address), so T1 is the only limit.
    """
    found = []
    log = [f for f in frames if f[2] & CAN_EFF_FLAG and f[2] >> 16 & 0xFF in (0xEB, 0xEC)]
    for index, (t_first, bus, can_id, data) in enumerate(log):
        if can_id >> 16 & 0xFF != 0xEC or data[0] not in (16, 32):
            continue
        size, parts, t_last = int.from_bytes(data[1:3], "little"), {}, t_first
        for t_ns, other, packet_id, packet in log[index + 1 :]:
            if other != bus or packet_id & 0xFFFF != can_id & 0xFFFF:
                continue
            if packet_id >> 16 & 0xFF == 0xEC and packet[0] in (16, 32):
                break
            if t_ns - t_last > 750_000_000:
                break
            if packet_id >> 16 & 0xFF == 0xEB:
                parts[packet[0]] = packet[1:]
                t_last = t_ns
            if len(parts) == data[3]:
                break
        if sorted(parts) == list(range(1, data[3] + 1)):
            whole = b"".join(parts[number] for number in sorted(parts))[:size]
            found.append((t_last, int.from_bytes(data[5:8], "little"), can_id & 0xFF, whole))
    return sorted(found)


@pytest.mark.parametrize(("log", "count"), list(zip(TRUCKS, (16, 150, 170), strict=True)))
def test_groups_are_put_together_as_a_naive_reading_does(
    log: str, count: int, captures: Path
) -> None:
    frames = list(read_log(captures / log))
    buses: dict[str, J1939Reassembly] = {}
    ours = []
    for t_ns, bus, can_id, data in frames:
        if can_id & CAN_EFF_FLAG and can_id >> 8 & 0x3FF00 in (PGN_CM, PGN_DT):
            on_bus = buses.setdefault(bus, J1939Reassembly(lambda _pgn, _source: True))
            whole = on_bus.feed(t_ns, can_id, data)
            if whole is not None:
                pgn = whole[0] >> 8 & 0x3FFFF
                ours.append(
                    (
                        t_ns,
                        pgn & 0x3FF00 if pgn >> 8 & 0xFF < 240 else pgn,
                        whole[0] & 0xFF,
                        whole[1],
                    )
                )

    naive = naive_groups(frames)
    assert (len(ours), sorted(ours) == naive) == (len(naive), True)
    assert len(ours) >= count


def replayed(binding: Binding, frames: Iterable[Frame]) -> list[tuple[int, float]]:
    policy = car.policy(
        {"g": {"read_battery": {"min_interval_s": 0}, "read_powertrain": {"min_interval_s": 0.1}}}
    )
    replay = Replay(policy, car.catalogue(), binding)
    replay.feed(list(frames))
    replay.finish()
    got = []
    for sample in replay.samples():
        assert isinstance(sample.value, (int, float))
        got.append((sample.t_ns, sample.value))
    return got


def bound(dbc: Path, path: str, leaf: str) -> Binding:
    return bind(
        parse_mapping(f"{path}: {{type: sensor, dbc: {{{leaf}}}}}".encode(), name="m"),
        [parse_dbc(dbc.read_bytes(), name=dbc.name)],
        car.catalogue(),
        bus=None,
        any_bus=True,
    )


@pytest.mark.parametrize(
    ("log", "can_id", "dbc", "signal"),
    [
        (LEAF, 0x7BB, "tp_uds_nissan.dbc", "SoC_Temp.SoC"),
        (EV6, 0x7EC, "tp_uds.dbc", "Battery.M_SID_0x220101_StateOfChargeBMS"),
    ],
)
def test_a_charge_in_an_answer_of_several_frames_is_what_cantools_reads(
    log: str, can_id: int, dbc: str, signal: str, captures: Path
) -> None:
    file = captures / "ev_uds" / dbc
    database: Any = cantools.database.load_file(file, strict=False)
    message, name = signal.split(".")
    wanted = []
    for answer in by_can_isotp(of_id(captures, log, can_id)):
        data = bytes((len(answer) & 0xFF,)) + answer
        try:
            told = database.get_message_by_name(message).decode(
                data, decode_choices=False, allow_truncated=True
            )
        except cantools.database.DecodeError:
            continue  # The answer to another question.
        if name in told:
            wanted.append(told[name])
    leaf = f"signal: {signal}, interval_ms: 0, transport: isotp-length"

    got = replayed(bound(file, CHARGE, leaf), read_log(captures / log))

    assert [value for _, value in got] == pytest.approx(wanted)
    assert len(got) >= 3
    without = leaf.replace(", transport: isotp-length", "")
    assert replayed(bound(file, CHARGE, without), read_log(captures / log)) == []


def test_a_speed_in_a_group_of_40_bytes_is_what_cantools_reads(
    captures: Path, tmp_path: Path
) -> None:
    """The file as it is calls its message an extended frame and not J1939: nothing is guessed."""
    file = captures / "j1939" / "tp_j1939.dbc"
    said = tmp_path / "said.dbc"
    said.write_bytes(file.read_bytes().replace(b"2566841342 1;", b"2566841342 4;"))
    message: Any = cantools.database.load_file(said).messages[0]
    wanted = [
        (
            t_ns // 10**6 * 10**6,
            message.decode(data, allow_truncated=True)["EngineSpeedAtPoint5"],
        )
        for t_ns, pgn, _, data in naive_groups(read_log(captures / TRUCKS[0]))
        if pgn == message.frame_id >> 8 & 0x3FFFF
    ]
    leaf = "signal: EngineSpeedAtPoint5, interval_ms: 0"

    assert replayed(bound(said, RPM, leaf), read_log(captures / TRUCKS[0])) == wanted
    assert len(wanted) >= 10
    assert replayed(bound(file, RPM, leaf), read_log(captures / TRUCKS[0])) == []


@pytest.mark.parametrize(
    ("log", "mapping", "dbcs"),
    [
        (OBD, "obd2_gnss.vspec", ["obd2.dbc", "obd2_answers.dbc"]),
        (TRUCKS[2], "j1939_truck.vspec", ["j1939.dbc"]),
    ],
)
def test_a_recorded_vin_is_what_a_naive_reading_finds(
    log: str, mapping: str, dbcs: list[str], captures: Path
) -> None:
    """Under its grant; under all others nothing. The numbers are real: none is printed."""
    made = bind(
        parse_mapping((car.ROOT / "config/vehicles" / mapping).read_bytes(), name=mapping),
        [parse_dbc((car.ROOT / "dbc" / name).read_bytes(), name=name) for name in dbcs],
        car.catalogue(),
        bus=None,
        any_bus=True,
    )
    if log == OBD:
        answers = by_can_isotp(of_id(captures, log, 0x7E8))
        wanted = {answer[3:].decode() for answer in answers if answer[:3] == b"\x49\x02\x01"}
    else:
        groups = naive_groups(read_log(captures / log))
        wanted = {data.split(b"*")[0].decode() for _, pgn, _, data in groups if pgn == 65260}
    taken = []
    for scope in ("read_vin", "read_vehicle_info"):
        replay = Replay(car.policy({"g": {scope: {}}}), car.catalogue(), made)
        replay.feed(list(read_log(captures / log)))
        replay.finish()
        taken.append([s.value for s in replay.samples() if s.path == VIN])

    is_the_same = set(taken[0]) == wanted
    assert (is_the_same, len(wanted), list(map(len, taken))) == (True, 1, [1, 0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("log", "path", "leaf", "carriers"),
    [
        (LEAF, CHARGE, "signal: SoC_Temp.SoC, interval_ms: 0, transport: isotp-length", {0x7BB}),
        (
            TRUCKS[0],
            RPM,
            "signal: EngineSpeedAtPoint5, interval_ms: 0",
            {CAN_EFF_FLAG | 0x1CECFF00, CAN_EFF_FLAG | 0x1CEBFF00},
        ),
    ],
)
def test_frames_that_carry_nothing_granted_change_nothing(
    *, log: str, path: str, leaf: str, carriers: set[int], seed: int, captures: Path, tmp_path: Path
) -> None:
    """They are changed in every bit, moved to other identifiers, dropped and sent twice."""
    source = captures / ("ev_uds/tp_uds_nissan.dbc" if log == LEAF else "j1939/tp_j1939.dbc")
    said = tmp_path / "said.dbc"
    said.write_bytes(source.read_bytes().replace(b"2566841342 1;", b"2566841342 4;"))
    made = bound(said, path, leaf)
    drawn = random.Random(seed)
    frames = list(read_log(captures / log))
    changed: list[Frame] = []
    for t_ns, bus, can_id, data in frames:
        if can_id in carriers:
            changed.append((t_ns, bus, can_id, data))
            continue
        other = drawn.choice([can_id, can_id ^ 1 << drawn.randrange(8), 0x98EBFF01, 0x98ECFF01])
        if other not in carriers:
            noise = (t_ns, bus, other, drawn.randbytes(drawn.randrange(9)))
            changed += [noise] * drawn.randrange(3)

    assert replayed(made, changed) == replayed(made, frames)
    assert len(replayed(made, frames)) >= 3
