"""CSV as python-can and SavvyCAN write it."""

import base64
import gzip
from pathlib import Path

import pytest

from agent.core.model import CAN_EFF_FLAG, CAN_ERR_FLAG, CAN_RTR_FLAG
from agent.errors import LogError
from tests.unit.edge.log_reading import MS, US, read
from tests.unit.edge.log_writers import S


def test_csv_of_python_can(tmp_path: Path) -> None:
    text = (
        "timestamp,arbitration_id,extended,remote,error,dlc,data\n"
        "1483389946.197,0x00dadada,1,0,0,6,WzQyLCA5XQ==\n"
        "1483389946.197001,0x123,0,1,0,4,\n"
        "1483389946.197002,0x0,1,0,1,0,\n"
    )
    start_ns = 1_483_389_946_197 * MS

    frames, report = read(tmp_path, "a.csv", text)

    assert frames == [
        (start_ns, "1", 0xDADADA | CAN_EFF_FLAG, b"[42, 9]"),
        (start_ns + US, "1", 0x123 | CAN_RTR_FLAG, b""),
        (start_ns + 2 * US, "1", CAN_ERR_FLAG, b""),
    ]
    assert report.absolute_time


@pytest.mark.parametrize(
    ("header", "direction"),
    [
        ("Time Stamp,ID,Extended,Dir,Bus,LEN,D1,D2,D3,D4,D5,D6,D7,D8", "Rx,"),
        ("Time Stamp,ID,Extended,Bus,LEN,D1,D2,D3,D4,D5,D6,D7,D8", ""),
    ],
)
def test_csv_of_savvycan_old_and_new(tmp_path: Path, header: str, direction: str) -> None:
    text = (
        f"{header}\n166064000,0000021A,false,{direction}0,8,FE,36,12,FE,69,05,07,AD,\n"
        f"166064001,18FEF100,true,{direction}1,2,01,02,\n"
    )

    frames, report = read(tmp_path, "a.csv", text)

    assert frames == [
        (166_064_000 * US, "0", 0x21A, bytes.fromhex("FE3612FE690507AD")),
        (166_064_001 * US, "1", 0x18FEF100 | CAN_EFF_FLAG, b"\1\2"),
    ]
    assert not report.absolute_time


def test_csv_with_other_columns_is_refused_with_the_ones_that_are_read(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="other columns") as caught:
        read(tmp_path, "a.csv", "time;id;data\n1;2;3\n")

    assert "arbitration_id" in (caught.value.hint or "")
    assert "Time Stamp" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "line",
    [
        "1483389946.197,0x123,0,0,0",
        "1483389946.197,0x123,0,0,0,6,WzQ",
        "1483389946.197,0x923,0,0,0,0,",
        "1483389946.197,zz,0,0,0,0,",
        "when,0x123,0,0,0,0,",
        "nan,0x123,0,0,0,0,",
        "1483389946.197,0x123,2,0,0,0,",
        f"1483389946.197,0x123,0,0,0,15,{base64.b64encode(bytes(65)).decode()}",
    ],
)
def test_a_broken_csv_line_is_counted_and_costs_nothing_else(tmp_path: Path, line: str) -> None:
    good = "1.0,0x123,0,0,0,1,Bw==\n"
    header = "timestamp,arbitration_id,extended,remote,error,dlc,data\n"

    frames, report = read(tmp_path, "a.csv", f"{header}{good}{line}\n{good}")

    assert frames == [(S, "1", 0x123, b"\x07")] * 2
    assert [broken.line for broken in report.first_broken] == [3]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("5,21A,false,Rx,0,2,01", "fewer bytes"),
        ("5,21A,false,Rx,0,2,01,,,,,,,,", "fewer bytes"),
        (f"5,21A,false,Rx,0,65,{','.join(['00'] * 65)}", "at most 64"),
        ("5,21A,perhaps,Rx,0,1,01", "neither true nor false"),
        ("5,21A,false,Rx,can0,1,01", "bus is not a number"),
        ("5,92A,false,Rx,0,1,01", "too many bits"),
        ("5,21A,false,Rx,0,4,RTR", "remote frame"),
    ],
)
def test_a_broken_savvycan_line_is_counted_with_its_reason(
    tmp_path: Path, line: str, reason: str
) -> None:
    good = "7,123,0,Rx,0,1,07\n8,123,1,Rx,0,1,07\n"
    header = "Time Stamp,ID,Extended,Dir,Bus,LEN,D1,D2,D3,D4,D5,D6,D7,D8\n"

    frames, report = read(tmp_path, "a.csv", f"{header}{good}{line}\n")

    assert frames == [(7 * US, "0", 0x123, b"\7"), (8 * US, "0", 0x123 | CAN_EFF_FLAG, b"\7")]
    assert [broken.line for broken in report.first_broken] == [4]
    assert reason in report.first_broken[0].reason


def test_a_packed_csv_with_other_columns_is_known_by_the_suffix_before_gz(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="other columns"):
        read(tmp_path, "a.csv.gz", gzip.compress(b"time;id;data\n1;2;3\n"))
