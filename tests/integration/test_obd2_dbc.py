"""Our obd2.dbc against a third party's, on two recorded drives."""

import gzip
from pathlib import Path
from typing import Any

import cantools
import pytest

ROOT = Path(__file__).resolve().parents[2]
LOGS = {
    "obd2_gnss_drive/drive_all.log.gz": 60_000,
    "obd2_request_response/7512BE4D.log.gz": 6_281,
}
ANSWER_ID = "7E8"
SAME = 1e-5  # Theirs has 100/255 rounded to five digits for some PIDs.
# PID 0x01: theirs is the four bytes as one number. 0xA4: theirs has no such PID.
DIFFERENT = {0x01, 0xA4}

pytestmark = pytest.mark.captures


def _ours() -> Any:
    return cantools.database.load_file(ROOT / "dbc" / "obd2.dbc", strict=True)


def _theirs(captures: Path) -> Any:
    return cantools.database.load_file(captures / "dbc_corpus" / "css_OBD-v4.4.dbc", strict=False)


def _answers(log: Path) -> list[bytes]:
    with gzip.open(log, "rt", encoding="ascii") as lines:
        frames = (line.split()[2].split("#") for line in lines)
        return [bytes.fromhex(data) for can_id, data in frames if can_id == ANSWER_ID]


def _value(database: Any, data: bytes, control: set[str]) -> list[float]:
    decoded = database.decode_message(0x7E8, data, decode_choices=False)
    return [value for name, value in decoded.items() if name not in control]


@pytest.mark.parametrize("name", LOGS)
def test_every_single_answer_to_service_01_decodes_as_with_the_oracle(
    captures: Path, name: str
) -> None:
    """Their control signals differ in name; what is left is the value of the PID."""
    ours, theirs = _ours(), _theirs(captures)
    our_control = {"FrameType", "Length", "Service", "Pid"}
    their_control = {"Length", "S", "S01PID"}
    compared, unknown_pids = 0, set()

    for data in _answers(captures / name):
        if data[0] >> 4 or data[1] != 0x41 or data[2] in DIFFERENT:
            continue
        try:
            our_values = _value(ours, data, our_control)
        except cantools.database.DecodeError:
            unknown_pids.add(data[2])
            continue
        their_values = _value(theirs, data, their_control)
        if data[2] == 0x03:  # Fuel system status: two bytes with us, one number with them.
            our_values = [our_values[0] * 256 + our_values[1]]
        assert our_values == pytest.approx(their_values, rel=SAME), f"PID 0x{data[2]:02X}"
        compared += 1

    assert compared >= LOGS[name]
    assert unknown_pids <= {0x13, 0x15, 0x34, 0x53}  # Oxygen sensors, vapour: not in our set.


def test_both_know_each_pid_of_ours_with_one_conversion(captures: Path) -> None:
    """Also for PIDs that no capture holds: every byte pattern gives the same number."""
    ours, theirs = _ours(), _theirs(captures)
    message = ours.get_message_by_name("OBD_ECM_11BIT")
    pids = {
        pid
        for signal in message.signals
        if signal.multiplexer_signal == "Pid"
        for pid in signal.multiplexer_ids
    }
    bitmaps = {0x00, 0x20, 0x40, 0x60, 0x80, 0xA0}  # Theirs are 32 signals each.

    for pid in sorted(pids - DIFFERENT - bitmaps - {0x03}):
        for pattern in ("00000000", "7F3A5580", "FFFFFFFF"):
            data = bytes.fromhex(f"0641{pid:02X}{pattern}00")
            our_values = _value(ours, data, {"FrameType", "Length", "Service", "Pid"})
            their_values = _value(theirs, data, {"Length", "S", "S01PID"})
            assert our_values == pytest.approx(their_values, rel=SAME), f"PID 0x{pid:02X}"


def test_what_the_oracle_does_not_know_is_plausible(captures: Path) -> None:
    """PID 0xA4: a gear within those of a car, always announced as supported."""
    message = _ours().get_message_by_name("OBD_ECM_11BIT")

    answers = _answers(captures / "obd2_request_response" / "7512BE4D.log.gz")
    gears = [message.decode(data) for data in answers if data[1:3] == b"\x41\xa4"]

    assert len(gears) == 273
    assert {answer["ActualGearSupported"] for answer in gears} == {1}
    assert {answer["ActualGear"] for answer in gears} <= set(range(9))
    assert len({answer["ActualGear"] for answer in gears}) > 3
