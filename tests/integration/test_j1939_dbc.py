"""Our j1939.dbc against third parties' files and a truck that says things twice."""

import gzip
from pathlib import Path
from typing import Any

import cantools
import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.captures


def _load(path: Path, *, strict: bool = False) -> Any:
    return cantools.database.load_file(path, strict=strict)


def _ours() -> Any:
    return _load(ROOT / "dbc" / "j1939.dbc", strict=True)


def _pgn(can_id: int) -> int:
    return (can_id >> 8) & 0x3FFFF


def _by_spn(database: Any) -> dict[int, tuple[Any, Any]]:
    return {
        signal.spn: (message, signal)
        for message in database.messages
        for signal in message.signals
        if signal.spn
    }


def _means(log: Path, wanted: set[str]) -> dict[str, float]:
    """Return the mean of every wanted `Message.Signal` over the log."""
    by_pgn = {_pgn(message.frame_id): message for message in _ours().messages}
    values: dict[str, list[float]] = {}
    with gzip.open(log, "rt", encoding="ascii") as lines:
        for line in lines:
            name, data = line.split()[2].split("#")
            message = by_pgn.get(_pgn(int(name, 16))) if len(name) == 8 else None
            if message is None or len(data) != 16:
                continue
            for signal, value in message.decode(bytes.fromhex(data), decode_choices=False).items():
                if f"{message.name}.{signal}" in wanted:
                    values.setdefault(f"{message.name}.{signal}", []).append(value)
    return {name: sum(found) / len(found) for name, found in values.items()}


def test_every_spn_lies_where_the_oracle_has_it(captures: Path) -> None:
    """Theirs gives position and length of each SPN, but no scale."""
    theirs = _by_spn(_load(captures / "dbc_corpus" / "canmatrix_j1939.dbc"))

    ours = _by_spn(_ours())

    assert len(ours) == sum(len(message.signals) for message in _ours().messages)
    assert set(ours) <= set(theirs)
    for spn, (message, signal) in ours.items():
        their_message, their_signal = theirs[spn]
        assert _pgn(message.frame_id) == _pgn(their_message.frame_id), signal.name
        assert (signal.start, signal.length) == (their_signal.start, their_signal.length), spn
        assert signal.byte_order == their_signal.byte_order
        assert signal.is_signed == their_signal.is_signed


def test_speed_and_engine_speed_convert_as_with_the_oracle(captures: Path) -> None:
    theirs = _by_spn(_load(captures / "dbc_corpus" / "css_j1939_demo.dbc"))

    ours = _by_spn(_ours())

    for spn in (84, 190):
        assert ours[spn][1].scale == theirs[spn][1].scale
        assert ours[spn][1].offset == theirs[spn][1].offset


def test_two_messages_of_one_truck_tell_the_same_distance(captures: Path) -> None:
    """SPN 245 counts 125 m and SPN 917 counts 5 m of the same road."""
    log = captures / "j1939_ecm_bench" / "normal_operations_demo2.log.gz"

    means = _means(log, {"VD.TotalDistance", "VDHR.TotalDistanceFine"})

    assert means["VD.TotalDistance"] * 1000 == pytest.approx(
        means["VDHR.TotalDistanceFine"], abs=125
    )


@pytest.mark.parametrize(
    ("signal", "least", "most"),
    [
        ("EEC1.EngineSpeed", 500, 900),  # It idles, its PROVENANCE says at 650 rpm.
        ("CCVS1.WheelBasedSpeed", 0, 0),
        ("ET1.CoolantTemperature", 50, 100),
        ("ET1.OilTemperature", 50, 110),
        ("AMB.AmbientAirTemperature", -20, 40),
        ("AMB.BarometricPressure", 80, 105),
        ("DD.FuelLevel1", 1, 100),
        ("VEP1.BatteryVoltage", 12, 15),
        ("LFE1.FuelRate", 1, 6),
        ("EFLP1.OilPressure", 150, 500),
    ],
)
def test_an_idling_diesel_is_plausible(
    captures: Path, signal: str, least: float, most: float
) -> None:
    log = captures / "j1939" / "11111111_idle_diesel.log.gz"

    assert least <= _means(log, {signal})[signal] <= most
