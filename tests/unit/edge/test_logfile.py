"""Opening, recognising, unpacking, merging and reporting; the formats have files of their own."""

import gzip
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from agent.core.model import CAN_EFF_FLAG, CAN_ERR_FLAG, CAN_RTR_FLAG, Frame
from agent.edge.logfile import BrokenLine, open_log, read_log, read_logs
from agent.errors import LogError
from tests.unit.edge.log_writers import HAS_CHANNELS, KEEPS, START_NS, WRITERS, S, candump

FRAMES: list[Frame] = [
    (START_NS, "1", 0x100, bytes(range(8))),
    (START_NS + 1_000, "2", 0x100 | CAN_EFF_FLAG, b"\xff"),
    (START_NS + 2_000, "1", 0x7FF, b""),
    (START_NS + 250_003_000, "1", 0x123 | CAN_RTR_FLAG, b""),
    (START_NS + 250_004_000, "2", 0x1FFFFFFF | CAN_EFF_FLAG | CAN_RTR_FLAG, b""),
    (START_NS + 999_999_000, "1", CAN_ERR_FLAG, b""),
    (START_NS + S, "1", 0x0, bytes(range(12))),
    (START_NS + S, "2", 0x18FEF100 | CAN_EFF_FLAG, bytes(range(64))),
    (START_NS + 3600 * S, "1", 0x100, b"\x00\x01"),
]


def as_read(name: str, frames: Sequence[Frame]) -> list[Frame]:
    kept = [frame for frame in frames if KEEPS[name](frame)]
    if HAS_CHANNELS[name]:
        return kept
    return [(t_ns, "1", can_id, data) for t_ns, _, can_id, data in kept]


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_the_same_frames_come_out_of_every_format(
    tmp_path: Path, name: str, *, is_packed: bool
) -> None:
    """To the µs, which each of these formats keeps; gzip is known by content, not by name."""
    path = tmp_path / f"drive.{name}"
    WRITERS[name](FRAMES, path)
    if is_packed:
        path.write_bytes(gzip.compress(path.read_bytes()))

    with open_log(path) as log:
        frames = list(log)

    expected = as_read(name, FRAMES)
    # python-can writes $STARTTIME as a float of days, which loses up to 1 µs.
    lost_ns = frames[0][0] - START_NS if name == "trc" else 0
    assert abs(lost_ns) <= 1000
    assert [(t_ns - lost_ns, *rest) for t_ns, *rest in frames] == expected
    assert log.report.frames == len(expected)
    assert log.report.remote == sum(bool(frame[2] & CAN_RTR_FLAG) for frame in expected)
    assert log.report.errors == sum(bool(frame[2] & CAN_ERR_FLAG) for frame in expected)
    assert log.report.broken == 0
    assert log.report.absolute_time


@pytest.mark.parametrize("name", WRITERS)
def test_content_tells_the_format_whatever_the_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "recording.bin"
    WRITERS[name](FRAMES, tmp_path / f"drive.{name}")
    (tmp_path / f"drive.{name}").rename(path)

    with open_log(path) as log:
        assert sum(1 for _ in log) == len(as_read(name, FRAMES))


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Los_Angeles", "Asia/Kolkata"])
def test_the_zone_of_the_machine_never_enters(tmp_path: Path, zone: str) -> None:
    paths = []
    for name in WRITERS:
        paths.append(tmp_path / f"drive.{name}")
        WRITERS[name](FRAMES, paths[-1])
    program = (
        "import sys, pathlib, agent.edge.logfile as l;"
        "print([frame for path in sys.argv[1:] for frame in l.read_log(pathlib.Path(path))])"
    )

    there = subprocess.run(
        [sys.executable, "-c", program, *paths],
        env={**os.environ, "TZ": zone},
        capture_output=True,
        check=True,
        text=True,
    )

    here = [frame for path in paths for frame in read_log(path)]
    assert there.stdout.strip() == str(here)
    assert all(abs(frame[0] - START_NS) <= 3600 * S + 1000 for frame in here)


def test_several_logs_are_one_recording_merged_by_time(tmp_path: Path) -> None:
    """Of equal times the log named first comes first; the formats may differ."""
    first, second = tmp_path / "a.log", tmp_path / "b.asc"
    first.write_text(candump(FRAMES, prefix="can"))
    WRITERS["asc"](FRAMES, second)

    with read_logs([first, second]) as recording:
        frames = list(recording)

    named = [(t_ns, f"can{channel}", *rest) for t_ns, channel, *rest in FRAMES]
    assert frames == sorted(named + FRAMES, key=lambda frame: frame[0])  # Stable.
    assert [report.frames for report in recording.reports] == [len(FRAMES)] * 2
    assert recording.absolute_time
    assert recording.progress == 1.0


def test_where_time_runs_backwards_frames_come_as_they_stand(tmp_path: Path) -> None:
    back = [FRAMES[0], FRAMES[6], FRAMES[1], FRAMES[7]]
    path, other = tmp_path / "back.log", tmp_path / "other.log"
    path.write_text(candump(back))
    other.write_text(candump([FRAMES[2]], prefix="can"))

    with read_logs([path, other]) as recording:
        frames = list(recording)

    assert list(read_log(path)) == back
    assert [frame for frame in frames if not frame[1].startswith("can")] == back


def test_a_recording_is_absolute_only_if_each_of_its_logs_is(tmp_path: Path) -> None:
    first, second = tmp_path / "a.log", tmp_path / "b.log"
    first.write_text("(1597243084.254287) can0 118#00\n")
    second.write_text("(820.298000) can0 118#00\n")

    with read_logs([first, second]) as recording:
        assert not recording.absolute_time
        assert [report.absolute_time for report in recording.reports] == [True, False]


def test_progress_runs_from_the_beginning_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "long.log"
    path.write_text("(1597243084.254287) can0 118#5003851817800000\n" * 30_000)

    with open_log(path) as log:
        seen = [log.progress for _ in log.blocks()]

    assert seen == sorted(seen)
    assert 0 < seen[0] < 0.5
    assert seen[-1] == 1.0


def test_a_log_closes_twice_without_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text(candump(FRAMES))

    log = open_log(path)
    log.close()
    log.close()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\x7fELF" + bytes(100), "neither its content nor its name"),
        (b"Dear diary\n", "neither its content nor its name"),
        (gzip.compress(b"Dear diary\n", mtime=0), "neither its content nor its name"),
        (b"MDF     3.30    " + bytes(200), "another version than 4"),
        (b"LOGG" + bytes(10), "ends within its header"),
    ],
)
def test_a_file_that_is_no_log_is_an_error_with_a_hint(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "thing.dat"
    path.write_bytes(content)

    with pytest.raises(LogError, match=reason) as caught:
        list(read_log(path))

    assert caught.value.hint
    assert caught.value.file == str(path)


def test_a_missing_file_and_a_folder_are_errors_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no such file") as missing:
        open_log(tmp_path / "nothing.log")
    with pytest.raises(LogError, match="a folder") as folder:
        open_log(tmp_path)

    assert missing.value.hint
    assert folder.value.hint


def test_one_log_that_cannot_be_opened_closes_the_others(tmp_path: Path) -> None:
    """An unclosed file would be a ResourceWarning, which is an error here."""
    path = tmp_path / "a.log"
    path.write_text(candump(FRAMES))

    with pytest.raises(LogError, match="no such file"):
        read_logs([path, tmp_path / "b.log"])


def test_a_log_without_one_readable_line_is_an_error_that_says_why(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("(1597243084.254287) can0 118#1\n(1597243084.254287) can0 118#2\n")

    with pytest.raises(LogError, match="no frame of it can be read as candump") as caught:
        list(read_log(path))

    assert caught.value.line == 1


def test_a_broken_line_costs_that_line_and_no_other(tmp_path: Path) -> None:
    lines = candump(FRAMES, prefix="can").splitlines()
    lines[3] = lines[3][:25]
    lines.insert(6, "")
    lines[7] = "garbage \x00\xff"
    path = tmp_path / "a.log"
    path.write_text("\n".join(lines), encoding="latin-1")

    with open_log(path) as log:
        frames = list(log)

    assert [frame[0] for frame in frames] == [
        frame[0] for at, frame in enumerate(FRAMES) if at not in (3, 6)
    ]
    assert log.report.broken == 2
    assert [broken.line for broken in log.report.first_broken] == [4, 8]


def test_no_more_than_the_first_broken_lines_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text(candump(FRAMES) + "garbage\n" * 5000)

    with open_log(path) as log:
        list(log)

    assert log.report.broken == 5000
    assert len(log.report.first_broken) == 10
    assert log.report.first_broken[0].line == len(FRAMES) + 1


@pytest.mark.parametrize("cut", [1, 8, 9, 40, 400])
def test_a_cut_gzip_gives_what_was_readable_and_says_so(tmp_path: Path, cut: int) -> None:
    many = [(START_NS + n * 1_000_000, "can0", 0x100 + n % 7, os.urandom(8)) for n in range(3000)]
    path = tmp_path / "a.log.gz"
    path.write_bytes(gzip.compress(candump(many).encode())[:-cut])

    with open_log(path) as log:
        frames = list(log)

    assert frames == many[: len(frames)]
    assert len(frames) > 2900
    assert log.report.first_broken == [
        BrokenLine(line=len(frames) + 1, reason="the gzip data end early")
    ]


def test_damaged_gzip_gives_what_was_readable_and_says_so(tmp_path: Path) -> None:
    many = [(START_NS + n * 1_000_000, "can0", 0x100 + n % 7, os.urandom(8)) for n in range(3000)]
    packed = bytearray(gzip.compress(candump(many).encode()))
    packed[-8] ^= 1  # The checksum: everything was unpacked by then.
    path = tmp_path / "a.log.gz"
    path.write_bytes(packed)

    with open_log(path) as log:
        frames = list(log)

    assert frames == many
    assert log.report.first_broken[0].reason == "the gzip data are damaged"


def test_a_gzip_of_several_members_is_read_to_its_end(tmp_path: Path) -> None:
    text = candump(FRAMES).encode()
    path = tmp_path / "a.log"
    path.write_bytes(gzip.compress(text) + gzip.compress(text) + bytes(512))

    with open_log(path) as log:
        assert list(log) == FRAMES * 2
    assert log.report.broken == 0


def test_bytes_after_gzip_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(gzip.compress(candump(FRAMES).encode()) + b"PK\3\4")

    with open_log(path) as log:
        assert list(log) == FRAMES
    assert log.report.first_broken[0].reason == "other bytes follow the gzip data"


def test_a_file_without_newlines_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(candump(FRAMES).encode() + b"x" * 3_000_000)

    with open_log(path) as log:
        assert list(log) == FRAMES
    assert log.report.broken >= 1


def test_no_reason_repeats_what_stands_in_the_line(tmp_path: Path) -> None:
    """A line may hold a position or a VIN."""
    secret = "5756575A5A5A"
    for name, text in {
        "a.log": f"(1.000000) can0 118#{secret}Z\n(1.0) can0 {secret}#00\n({secret}) can0 1#00\n",
        "a.asc": f"date x\nbase hex\n 1.0 1 100 Rx d 8 {secret}\n 1.0 1 {secret}x Rx d 1 00\n",
        "a.trc": f";$FILEVERSION=1.1\n 1) 1.0 Rx 0100 8 {secret}\n 1) {secret} Rx 0100 1 00\n",
        "a.csv": "timestamp,arbitration_id,extended,remote,error,dlc,data\n"
        f"1.0,0x{secret}Z,0,0,0,8,AA==\n1.0,0x100,0,0,0,8,{secret}!\n",
    }.items():
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(LogError) as caught:
            list(read_log(path))
        assert secret not in str(caught.value)
        with open_log(path) as log, pytest.raises(LogError):
            list(log)
        assert log.report.broken >= 2
        assert not any(secret in broken.reason for broken in log.report.first_broken)
