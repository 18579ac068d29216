"""TRC lines as PCAN-View and PCAN-Explorer write them (PEAK CAN TRC file format)."""

from pathlib import Path

import pytest

from agent.core.model import CAN_EFF_FLAG, CAN_ERR_FLAG, CAN_RTR_FLAG, Frame
from agent.errors import LogError
from tests.unit.edge.log_reading import MS, US, later, read, utc_ns

TRC_10 = """;##########################################################################
;   C:\\Test.trc
;
;    CAN activities recorded by PCAN Explorer
;    Start time: 11.09.2002 15:46:12.112
;---+--   ----+----  ----+--- + -+ -- -- -- -- -- -- --
     1)      1841     0001 8  00 00 00 00 00 00 00 00
     2)      1842 00000002 3  11 22 33
     3)      1843     0004 0
     4)      1844     0005 8  RTR
     5)      1845 FFFFFFFF 4  00 00 00 04 -- -- -- -- BUSLIGHT
"""
TRC_11 = """;$FILEVERSION=1.1
;$STARTTIME=37704.5364870833
;
     1)      1059.9  Rx         0300  7  00 00 00 00 04 00 00
     2)      1283.2  Rx         0300  7  00 00 00 00 04 00 00
     3)      1298.9  Tx     00000400  2  00 00
     4)      1323.0  Rx         0300  4  RTR
     5)      1334.0  Warng  FFFFFFFF  4  00 00 00 08  BUSHEAVY
     6)      1334.2  Error      0008  4  00 19 08 08
"""
TRC_13 = """;$FILEVERSION=1.3
;$STARTTIME=37704.5364870833
     1)      1059.9 1  Rx    0300 -  7    00 00 00 00 04 00 00
     2)      1283.2 2  Tx 00000400 -  2    00 00
"""
TRC_20 = """;$FILEVERSION=2.0
;$STARTTIME=43008.920986006946
;$COLUMNS=N,O,T,I,d,l,D
      1      1059.900 DT     0300 Rx 7  00 00 00 00 04 00 00
      2      1283.231 FB     0400 Rx 12 00 01 02 03 04 05 06 07 08 09 0A 0B
      3      1298.945 RR     0300 Rx 4
      4      1305.012 ST     Rx 00 00 00 08
      5      1305.013 ER     -   Rx 5  04 00 02 00 00
      6      1305.014 EC     -   Rx 2  02 03
"""
TRC_21 = """;$FILEVERSION=2.1
;$STARTTIME=43008.920986006946
;$COLUMNS=N,O,T,B,I,d,R,L,D
      1      1059.900 DT 1      0300 Rx -  7    00 00 00 00 04 00 00
      2      1283.231 FD 2  00000300 Tx -  9    00 01 02 03 04 05 06 07 08 09 0A 0B
      3      1298.945 RR 1      0300 Rx -  4
      4      1300.000 DT 1      0300 Rx -  15   00 01 02 03 04 05 06 07
"""
# Days since 1899-12-30; the fraction of the day times 86,400 s, worked out by hand.
TRC_11_START_NS = utc_ns(2003, 3, 24) + 46_352_483_997 * US
TRC_2_START_NS = utc_ns(2017, 9, 30) + 79_573_191_000 * US
SEVEN = bytes.fromhex("00000000040000")


@pytest.mark.parametrize(
    ("text", "start_ns", "expected"),
    [
        (
            TRC_10,
            0,
            [
                (1841 * MS, "1", 1, bytes(8)),
                (1842 * MS, "1", 2 | CAN_EFF_FLAG, b"\x11\x22\x33"),
                (1843 * MS, "1", 4, b""),
                (1844 * MS, "1", 5 | CAN_RTR_FLAG, b""),
            ],
        ),
        (
            TRC_11,
            TRC_11_START_NS,
            [
                (1059_900 * US, "1", 0x300, SEVEN),
                (1283_200 * US, "1", 0x300, SEVEN),
                (1298_900 * US, "1", 0x400 | CAN_EFF_FLAG, bytes(2)),
                (1323_000 * US, "1", 0x300 | CAN_RTR_FLAG, b""),
                (1334_200 * US, "1", CAN_ERR_FLAG, b""),
            ],
        ),
        (
            TRC_13,
            TRC_11_START_NS,
            [
                (1059_900 * US, "1", 0x300, SEVEN),
                (1283_200 * US, "2", 0x400 | CAN_EFF_FLAG, bytes(2)),
            ],
        ),
        (
            TRC_20,
            TRC_2_START_NS,
            [
                (1059_900 * US, "1", 0x300, SEVEN),
                (1283_231 * US, "1", 0x400, bytes(range(12))),
                (1298_945 * US, "1", 0x300 | CAN_RTR_FLAG, b""),
                (1305_013 * US, "1", CAN_ERR_FLAG, b""),
            ],
        ),
        (
            TRC_21,
            TRC_2_START_NS,
            [
                (1059_900 * US, "1", 0x300, SEVEN),
                (1283_231 * US, "2", 0x300 | CAN_EFF_FLAG, bytes(range(12))),
                (1298_945 * US, "1", 0x300 | CAN_RTR_FLAG, b""),
                (1300_000 * US, "1", 0x300, bytes(range(8))),
            ],
        ),
    ],
    ids=["1.0", "1.1", "1.3", "2.0", "2.1"],
)
def test_trc_of_every_version(
    tmp_path: Path, text: str, start_ns: int, expected: list[Frame]
) -> None:
    frames, report = read(tmp_path, "a.trc", text.replace("\n", "\r\n"))

    assert frames == later(expected, start_ns)
    assert report.broken == 0
    assert report.absolute_time == bool(start_ns)


def test_trc_without_start_time_counts_from_0(tmp_path: Path) -> None:
    text = ";$FILEVERSION=1.1\n 1)  1059.9  Rx  0300  1  07\n"

    frames, report = read(tmp_path, "a.trc", text)

    assert frames == [(1059_900 * US, "1", 0x300, b"\x07")]
    assert not report.absolute_time


def test_trc_of_an_unknown_version_is_read_by_its_columns_or_refused(tmp_path: Path) -> None:
    text = ";$FILEVERSION=2.9\n;$COLUMNS=N,O,I,T,l,D\n 1  1.0  0300 DT 1  07\n"

    assert read(tmp_path, "a.trc", text)[0] == [(MS, "1", 0x300, b"\x07")]
    with pytest.raises(LogError, match="version") as caught:
        read(tmp_path, "b.trc", ";$FILEVERSION=2.9\n 1  1.0  0300 DT 1  07\n")
    assert caught.value.hint


@pytest.mark.parametrize(
    "line",
    [
        " 1)",
        " 1)  1059.9  Rx",
        " 1)  1059.9  Rx  0300",
        " 1)  1059.9  Rx  0300  8  00",
        " 1)  1059.9  Rx  0300  2  00 1",
        " 1)  1059.9  Rx  0FFF  1  00",
        " 1)  10x9.9  Rx  0300  1  00",
        " 1)  1059.9  Ab  0300  1  00",
    ],
)
def test_a_broken_trc_line_is_counted_and_costs_nothing_else(tmp_path: Path, line: str) -> None:
    good = " 1)  1059.9  Rx  0300  1  07\n"

    frames, report = read(tmp_path, "a.trc", f";$FILEVERSION=1.1\n{good}{line}\n{good}")

    assert frames == [(1059_900 * US, "1", 0x300, b"\x07")] * 2
    assert [broken.line for broken in report.first_broken] == [3]


@pytest.mark.parametrize(
    ("code", "length"),
    [(8, 8), (9, 12), (10, 16), (11, 20), (12, 24), (13, 32), (14, 48), (15, 64)],
)
def test_trc_length_codes_of_can_fd_are_those_of_iso_11898(
    tmp_path: Path, code: int, length: int
) -> None:
    header = ";$FILEVERSION=2.0\n;$COLUMNS=N,O,T,I,d,L,D\n"
    data = bytes(range(length))

    frames, report = read(tmp_path, "a.trc", f"{header} 1 1.0 FD 0300 Rx {code} {data.hex(' ')}\n")

    assert frames == [(MS, "1", 0x300, data)]
    assert report.broken == 0


def test_trc_start_time_may_have_a_decimal_comma(tmp_path: Path) -> None:
    text = ";$FILEVERSION=1.1\n;$STARTTIME=43008,5\n 1)  1.0  Rx  0300  1  07\n"

    frames, report = read(tmp_path, "a.trc", text)

    assert frames == [(utc_ns(2017, 9, 30, 12) + MS, "1", 0x300, b"\x07")]
    assert report.absolute_time


def test_trc_skips_a_j1939_message_of_several_packets(tmp_path: Path) -> None:
    header = ";$FILEVERSION=2.0\n;$COLUMNS=N,O,T,I,d,l,D\n"
    message = f" 1 1.0 DT 18FECA00 Rx 10 {bytes(10).hex(' ')}\n"
    frame = " 2 2.0 DT 18FECA00 Rx 1 07\n"

    frames, report = read(tmp_path, "a.trc", header + message + frame)

    assert frames == [(2 * MS, "1", 0x18FECA00 | CAN_EFF_FLAG, b"\x07")]
    assert (report.skipped, report.broken) == (1, 0)
