"""ASC lines as CANoe and CANalyzer write them (Vector ASC logging file format)."""

from pathlib import Path

import pytest

from agent.core.model import CAN_EFF_FLAG, CAN_ERR_FLAG, CAN_RTR_FLAG
from tests.unit.edge.log_reading import MS, US, later, read, utc_ns
from tests.unit.edge.log_writers import S

ASC = """date Tue May 27 04:09:35.000 pm 2014
base hex  timestamps absolute
internal events logged
// version 9.0.0
Begin Triggerblock Tue May 27 04:09:35.000 pm 2014
   0.000000 Start of measurement
   0.015991 CAN 1 Status:chip status error passive - TxErr: 132 RxErr: 0
   0.015991 1  Statistic: D 0 R 0 XD 0 XR 0 E 0 O 0 B 0.00%
   2.501000 1  ErrorFrame
   2.501010 1  ErrorFrame  ECC: 10100010
   2.510001 2  100             Tx   r
   2.520002 3  200             Tx   r Length = 1704000 BitCount = 145 ID = 88888888x
   2.584921 4  300x            Tx   r 8 Length = 1704000 BitCount = 145 ID = 88888888x
   3.098426 1  C4              Rx   d 8 2F 0E 1F 6B 63 02 04 01  Length = 233910 ID = 196
   3.148421 1  C4              TxRq d 8 2F 0E 1F 6B 63 02 04 01
   3.197693 1  54C5638x        Tx   d 2 00 01  Length = 1704000 BitCount = 145
  17.876707 CAN 1 Status:Overrun
  17.876708 1  6F9             Rx   d f 05 0C 00 00 00 00 00 00
  20.105214 2  18EBFF00X       Rx   d 0
  21.000000 1  EngineData      Rx   d 1 07  Length = 1 BitCount = 1 ID = 419360768x
  22.000000 Li 2c              Rx     2 1E AA
  30.005021 CANFD   1 Rx        300   Generic_Name_12   1 0 8 8 01 02 03 04 05 06 07 08   102203  133   303000 e0006659 46500250 4b140250 20011736 2001040d
  30.005041 CANFD   2 Tx   1C4D80A7x                    0 1 9 12 01 02 03 04 05 06 07 08 09 0a 0b 0c   102203  133   303000 e0006659 46500250 4b140250 20011736 2001040d
  30.005071 CANFD   2 Tx       1E1                      0 0 8 0   130000  130       10  0 0 0 0 0
  30.005081 CANFD   2 Tx       1E1                      0 0 0 0   130000  130     1000  0 0 0 0 0
  30.806898 CANFD   2 Rx   ErrorFrame Not Acknowledge error, dominant error flag fffe c7 31ca Arb. 556 44 0 0 f 64
  31.000000 CANFD   3 TxRq     1E1                      0 0 1 1 05
 113.016026 J1939TP FEE3p 6 0 0 - Rx d 23 A0 0F
End TriggerBlock
"""  # noqa: E501 - lines as CANoe writes them
ASC_START_NS = utc_ns(2014, 5, 27, 16, 9, 35)
ASC_FRAMES = [
    (2_501_000 * US, "1", CAN_ERR_FLAG, b""),
    (2_501_010 * US, "1", CAN_ERR_FLAG, b""),
    (2_510_001 * US, "2", 0x100 | CAN_RTR_FLAG, b""),
    (2_520_002 * US, "3", 0x200 | CAN_RTR_FLAG, b""),
    (2_584_921 * US, "4", 0x300 | CAN_EFF_FLAG | CAN_RTR_FLAG, b""),
    (3_098_426 * US, "1", 0xC4, bytes.fromhex("2F0E1F6B63020401")),
    (3_197_693 * US, "1", 0x54C5638 | CAN_EFF_FLAG, b"\x00\x01"),
    (17_876_708 * US, "1", 0x6F9, bytes.fromhex("050C000000000000")),
    (20_105_214 * US, "2", 0x18EBFF00 | CAN_EFF_FLAG, b""),
    (21_000_000 * US, "1", 419360768 | CAN_EFF_FLAG, b"\x07"),
    (30_005_021 * US, "1", 0x300, bytes(range(1, 9))),
    (30_005_041 * US, "2", 0x1C4D80A7 | CAN_EFF_FLAG, bytes(range(1, 13))),
    (30_005_071 * US, "2", 0x1E1 | CAN_RTR_FLAG, b""),
    (30_005_081 * US, "2", 0x1E1, b""),
    (30_806_898 * US, "2", CAN_ERR_FLAG, b""),
]


def test_asc_of_canoe(tmp_path: Path) -> None:
    """Frames, events that are none, and wishes to send, which are none either."""
    frames, report = read(tmp_path, "a.asc", ASC.replace("\n", "\r\n"))

    assert frames == later(ASC_FRAMES, ASC_START_NS)
    assert report.absolute_time
    assert report.broken == 0
    assert report.errors == 3
    assert report.remote == 4
    assert report.skipped == 8


@pytest.mark.parametrize(
    ("header", "fields"),
    [
        ("date Tue May 27 04:09:35.000 pm 2014", (2014, 5, 27, 16, 9, 35)),
        ("date Tue May 27 12:09:35.000 AM 2014", (2014, 5, 27, 0, 9, 35)),
        ("date Tue May 27 12:09:35 pm 2014", (2014, 5, 27, 12, 9, 35)),
        ("date Tue May 27 16:09:35 2014", (2014, 5, 27, 16, 9, 35)),
        ("Date Die Mai 27 16:09:35.000 2014", (2014, 5, 27, 16, 9, 35)),
        ("date Sam Okt 5 16:09:35.000 2019", (2019, 10, 5, 16, 9, 35)),
        ("date Don Dez 05 04:09:35.000 PM 2019", (2019, 12, 5, 16, 9, 35)),
        ("date Sam Mär 02 16:09:35 2019", (2019, 3, 2, 16, 9, 35)),
        ("date Sam Mrz 02 16:09:35 2019", (2019, 3, 2, 16, 9, 35)),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-8-sig"])
def test_asc_dates_are_utc_in_english_and_german(
    tmp_path: Path, header: str, fields: tuple[int, int, int, int, int, int], encoding: str
) -> None:
    text = f"{header}\nbase hex  timestamps absolute\n 1.5 1 100 Rx d 1 07\n"

    frames, report = read(tmp_path, "a.asc", text.encode(encoding))

    assert frames == [(utc_ns(*fields) + 1_500 * MS, "1", 0x100, b"\x07")]
    assert report.absolute_time


def test_asc_milliseconds_of_its_date_count(tmp_path: Path) -> None:
    text = "date Tue May 27 04:09:35.123 pm 2014\nbase hex timestamps absolute\n"

    frames, _ = read(tmp_path, "a.asc", text + " 0.001 1 100 Rx d 1 07\n")

    assert frames[0][0] == ASC_START_NS + 124 * MS


@pytest.mark.parametrize(
    "header", ["", "date\n", "date Tue Foo 27 16:09:35 2014\n", "date Tue Feb 30 16:09:35 2014\n"]
)
def test_asc_without_a_date_counts_from_0(tmp_path: Path, header: str) -> None:
    text = (
        f"{header}base hex  timestamps absolute\n"
        "Begin Triggerblock Tue May 27 04:09:35 pm 2014\n 1.5 1 100 Rx d 1 07\n"
    )

    frames, report = read(tmp_path, "a.asc", text)

    assert frames == [(1_500 * MS, "1", 0x100, b"\x07")]
    assert not report.absolute_time


def test_asc_relative_times_count_from_the_line_before_frame_or_not(tmp_path: Path) -> None:
    text = (
        "date Tue May 27 04:09:35.000 pm 2014\nbase hex  timestamps relative\n"
        " 0.100000 1 100 Rx d 1 01\n 0.200000 1  Statistic: D 0\n 0.300000 1 100 Rx d 1 02\n"
    )

    frames, _ = read(tmp_path, "a.asc", text)

    assert frames == later(
        [(100 * MS, "1", 0x100, b"\1"), (600 * MS, "1", 0x100, b"\2")], ASC_START_NS
    )


def test_asc_base_dec_makes_identifiers_and_data_decimal(tmp_path: Path) -> None:
    text = (
        "base dec  timestamps absolute\n 1.0 1 256 Rx d 2 10 255\n"
        " 2.0 1 419360768x Rx d 1 99\n"
        " 3.0 CANFD 1 Rx 256 1 0 9 12 1 2 3 4 5 6 7 8 9 10 11 12 0 0 0\n"
    )

    frames, report = read(tmp_path, "a.asc", text)

    assert frames == [
        (S, "1", 0x100, b"\x0a\xff"),
        (2 * S, "1", 419360768 | CAN_EFF_FLAG, b"\x63"),
        (3 * S, "1", 0x100, bytes(range(1, 13))),
    ]
    assert report.broken == 0


@pytest.mark.parametrize(
    "line",
    [
        " 1.0 1",
        " 1.0 1 1A0",
        " 1.0 1 1A0 R",
        " 1.0 1 1A0 Rx",
        " 1.0 1 1A0 Rx d",
        " 1.0 1 1A0 Rx q 8",
        " 1.0 1 1A0 Rx d 8 00 01",
        " 1.0 1 1A0 Rx d 2 00 1FF",
        " 1.0 1 FFF Rx d 1 00",
        " 1.0 1 3FFFFFFFx Rx d 1 00",
        " 1.0 1 EngineData Rx d 1 00",
        " 1.0 CANFD 1 Rx 300 1 0 8 8 01 02",
        " 1.0 CANFD 1 Rx 300 1 0 f 65 " + "01 " * 65,
        " 1.0 CANFD one Rx 300 1 0 1 1 01",
        " 1.0 CANFD 1 Xx 300 1 0 1 1 01",
        " 1.0 CANFD 1",
        "half a line",
    ],
)
def test_a_broken_asc_line_is_counted_and_costs_nothing_else(tmp_path: Path, line: str) -> None:
    good = " 1.5 1 100 Rx d 1 07\n"

    frames, report = read(tmp_path, "a.asc", f"base hex\n{good}{line}\n{good}")

    assert frames == [(1_500 * MS, "1", 0x100, b"\x07")] * 2
    assert [broken.line for broken in report.first_broken] == [3]
