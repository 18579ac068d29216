"""candump lines as can-utils and python-can write them."""

from pathlib import Path

import can
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.model import CAN_EFF_FLAG, CAN_ERR_FLAG, CAN_RTR_FLAG, Frame
from agent.edge.logfile import open_log
from tests.unit.edge.log_reading import US, read
from tests.unit.edge.log_writers import START_NS, S, candump, frame


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("(1.000001) can0 123#11", (S + US, "can0", 0x123, b"\x11")),
        (
            "(1.000001) can0 123#11223344556677",
            (S + US, "can0", 0x123, bytes.fromhex("11223344556677")),
        ),
        ("(1.000001) vcan-1.a 00000123#11 R", (S + US, "vcan-1.a", 0x123 | CAN_EFF_FLAG, b"\x11")),
        (
            "(1.000001) can0 1fffffff#aBcD T",
            (S + US, "can0", 0x1FFFFFFF | CAN_EFF_FLAG, b"\xab\xcd"),
        ),
        ("(1.000001) can0 123#", (S + US, "can0", 0x123, b"")),
        ("(1.000001) can0 123#R", (S + US, "can0", 0x123 | CAN_RTR_FLAG, b"")),
        ("(1.000001) can0 123#R3", (S + US, "can0", 0x123 | CAN_RTR_FLAG, b"")),
        ("(1.000001) can0 123#R8_E T", (S + US, "can0", 0x123 | CAN_RTR_FLAG, b"")),
        ("(1.000001) can0 123##0", (S + US, "can0", 0x123, b"")),
        ("(1.000001) can0 123##31122 R", (S + US, "can0", 0x123, b"\x11\x22")),
        ("(1.000001) can0 123##5" + "AB" * 64, (S + US, "can0", 0x123, b"\xab" * 64)),
        ("(1.000001) can0 123#11.22.33", (S + US, "can0", 0x123, b"\x11\x22\x33")),
        ("(1.000001) can0 123#11_22", (S + US, "can0", 0x123, b"\x11\x22")),
        ("(1.000001) can0 123#" + "00" * 8 + "_E", (S + US, "can0", 0x123, bytes(8))),
        ("(1.000001) can0 20000080#" + "00" * 8, (S + US, "can0", CAN_ERR_FLAG | 0x80, bytes(8))),
        ("(1.123456789) can0 123#11", (S + 123_457 * US, "can0", 0x123, b"\x11")),
        ("(1.0000005) can0 123#11", (S, "can0", 0x123, b"\x11")),
        ("(1.0000015) can0 123#11", (S + 2 * US, "can0", 0x123, b"\x11")),
        (" (1.000001)  can0  123   [3]  11 22 33", (S + US, "can0", 0x123, b"\x11\x22\x33")),
        ("(1.000001)  can0  00000123  [00]", (S + US, "can0", 0x123 | CAN_EFF_FLAG, b"")),
        ("(1.000001) can0 RX - -  123  [2]  30 31   '01'", (S + US, "can0", 0x123, b"01")),
        ("(1.000001) can0 TX B E  123 [16] " + " 0F" * 16, (S + US, "can0", 0x123, b"\x0f" * 16)),
        (
            "(1.000001)  can0  123   [0]  remote request",
            (S + US, "can0", 0x123 | CAN_RTR_FLAG, b""),
        ),
        (
            "(1.000001)  can0  20000004   [8]  00 20 00 00 00 00 00 00   ERRORFRAME",
            (S + US, "can0", CAN_ERR_FLAG | 4, b""),
        ),
        (
            "(2020-08-12 14:38:04.254287)  can0  123   [1]  11",
            (START_NS + 254_287 * US, "can0", 0x123, b"\x11"),
        ),
    ],
)
def test_a_candump_line(tmp_path: Path, line: str, expected: Frame) -> None:
    frames, report = read(tmp_path, "a.log", line + "\r\n")

    assert frames == [expected]
    assert report.broken == 0


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("(1.000001) can0 123#1", "pairs"),
        ("(1.000001) can0 123#1122334455667788AA", "at most 8"),
        ("(1.000001) can0 123##0" + "AB" * 65, "at most 64"),
        ("(1.000001) can0 123##", "flags"),
        ("(1.000001) can0 123##Z00", "flags"),
        ("(1.000001) can0 123#R3#00", "remote frame with data"),
        ("(1.000001) can0 800#11", "above 7FF"),
        ("(1.000001) can0 12345#11", "5 digits"),
        ("(1.000001) can0 5FFFFFFF#11", "29 bits"),
        ("(1.000001) can0 123", "ends after the identifier"),
        ("(1.000001) can0", "expected"),
        ("(1.0000", "expected"),
        ("1.000001 can0 123#11", "no time in parentheses"),
        ("can0  123   [1]  11", "record with candump"),
        ("(1.000001) can0 123 [3]  11 22", "2 bytes of data where 3"),
        ("(1.000001) can0 123 [2]  11 222", "pairs"),
        ("(1.000001) can0 123 [99]  11 22", "at most 64"),
        ("(2020-02-30 14:38:04.254287) can0 123 [1] 11", "does not exist"),
        ("(1.000001) can0 45123#81:00:12345678#11223344", "CAN XL"),
    ],
)
def test_a_broken_candump_line_is_counted_with_its_reason(
    tmp_path: Path, line: str, reason: str
) -> None:
    good = "(1.000000) can0 118#00\n"

    frames, report = read(tmp_path, "a.log", f"{good}{line}\n{good}")

    assert frames == [(S, "can0", 0x118, b"\0")] * 2
    assert report.broken == 1
    assert report.first_broken[0].line == 2
    assert reason in report.first_broken[0].reason


frames_of_any_kind = st.lists(
    st.tuples(
        st.integers(0, 2**41).map(lambda us: us * US),
        st.sampled_from(["can0", "vcan1"]),
        st.one_of(
            st.integers(0, 0x7FF),
            st.integers(0, 0x1FFFFFFF).map(lambda n: n | CAN_EFF_FLAG),
        ),
        st.binary(max_size=8),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(frames=frames_of_any_kind, suffix=st.sampled_from(["", " R", " T"]), spoil=st.booleans())
def test_candump_is_read_as_a_whole_or_line_by_line_with_the_same_result(
    tmp_path_factory: pytest.TempPathFactory,
    frames: list[Frame],
    suffix: str,
    *,
    spoil: bool,
) -> None:
    """A blank line is enough to have every line looked at by itself."""
    text = candump(frames, suffix=suffix) + ("\n" if spoil else "")
    if not text:
        return

    got, report = read(tmp_path_factory.mktemp("log"), "a.log", text)

    assert got == frames
    assert report.broken == 0


def test_candump_is_read_as_python_can_reads_it(tmp_path: Path) -> None:
    lines = "".join(
        f"({1597243084 + n}.{n:06d}) can0 {line} {'RT'[n % 2]}\n"
        for n, line in enumerate(
            ["123#0011", "00000123#", "7FF##1AABB", "123#R", "1F334455#01020304"]
        )
    )
    path = tmp_path / "a.log"
    path.write_text(lines)

    with open_log(path) as log, can.CanutilsLogReader(path) as other:
        assert [(f[0], *f[2:]) for f in log] == [(f[0], *f[2:]) for f in map(frame, other)]


def test_half_a_byte_in_many_lines_costs_those_lines_only(tmp_path: Path) -> None:
    good = "(1.000000) can0 118#0011\n(1.000000) can0 118##1001122\n"
    bad = "(1.000000) can0 118#001\n"

    frames, report = read(tmp_path, "a.log", good + (bad + good) * 3000)

    assert len(frames) == 6002
    assert report.broken == 3000
    assert [broken.line for broken in report.first_broken][:3] == [3, 6, 9]
