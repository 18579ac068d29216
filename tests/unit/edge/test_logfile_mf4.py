"""MDF 4 in the shapes of CANedge and CANoe, against asammdf, cut and damaged."""

import gzip
import io
import random
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import pytest

from agent.core.model import CAN_EFF_FLAG, CAN_ERR_FLAG, CAN_RTR_FLAG, Frame
from agent.edge.logfile import open_log
from agent.errors import LogError
from tests.unit.edge.log_reading import MS, US, read
from tests.unit.edge.log_writers import START_NS, S
from tests.unit.edge.mdf4_writer import mdf4

SHAPES = ("fixed", "variable", "unsorted")


def drive(count: int) -> list[Frame]:
    draw = random.Random(4)
    frames: list[Frame] = [
        (
            START_NS + n * MS + draw.randrange(1000) * US,
            draw.choice("12"),
            draw.choice((0x100, 0x7FF, 0x18FEF100 | CAN_EFF_FLAG)),
            draw.randbytes(draw.choice((0, 1, 8, 8, 12, 64))),
        )
        for n in range(count)
    ]
    frames[5] = (*frames[5][:2], 0x123 | CAN_EFF_FLAG | CAN_RTR_FLAG, b"")
    frames[7] = (*frames[7][:2], CAN_ERR_FLAG, b"")
    return frames


MANY = drive(1500)


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("is_float", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_mf4_of_every_shape(tmp_path: Path, shape: str, *, is_float: bool, is_packed: bool) -> None:
    raw = mdf4(MANY, start_ns=START_NS, shape=shape, is_float=is_float)

    frames, report = read(tmp_path, "a.mf4", gzip.compress(raw) if is_packed else raw)

    assert frames == MANY
    assert (report.broken, report.remote, report.errors) == (0, 1, 1)
    assert report.absolute_time


@pytest.mark.parametrize("shape", SHAPES)
def test_the_test_files_are_mdf4_for_asammdf_too(shape: str) -> None:
    """The writer of these tests is ours; another reader must find the same frames in its files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from asammdf import MDF  # noqa: PLC0415 - slow, and only here

        mdf = MDF(io.BytesIO(mdf4(MANY, start_ns=START_NS, shape=shape)))
        found = []
        for index, group in enumerate(mdf.groups):
            if not any(channel.name == "CAN_DataFrame" for channel in group.channels):
                continue
            rows = mdf.get("CAN_DataFrame", group=index)
            found += [
                (round(t * 1e6) * US, int(row["CAN_DataFrame.ID"]), bytes(row[payload][:length]))
                for t, row in zip(rows.timestamps, rows.samples, strict=True)
                for payload in ["CAN_DataFrame.DataBytes"]
                for length in [int(row["CAN_DataFrame.DataLength"])]
            ]
        mdf.close()

    assert sorted(found) == sorted(
        (t_ns - START_NS, can_id & 0x1FFFFFFF, data)
        for t_ns, _, can_id, data in MANY
        if not can_id & (CAN_RTR_FLAG | CAN_ERR_FLAG)
    )


@pytest.mark.parametrize(("time_flags", "zone_min"), [(0, 0), (1, 0), (2, 360), (3, -90)])
def test_the_header_gives_the_instant_whatever_it_says_of_zones(
    tmp_path: Path, time_flags: int, zone_min: int
) -> None:
    raw = mdf4(MANY[:3], start_ns=START_NS, time_flags=time_flags, zone_min=zone_min)

    assert read(tmp_path, "a.mf4", raw)[0] == MANY[:3]


def test_times_are_exact_to_the_us_for_any_tick(tmp_path: Path) -> None:
    """A float of seconds since the epoch would lose a µs now and then."""
    frames = [(START_NS + n * 86_399_999_937 * US, "1", 0x100, b"\1") for n in range(200)]

    for tick in (1e-6, 5e-7, 1e-9):
        got, _ = read(tmp_path, "a.mf4", mdf4(frames, start_ns=START_NS, tick=tick))
        assert got == frames


def test_a_header_without_an_instant_counts_from_0(tmp_path: Path) -> None:
    frames = [(S, "1", 0x100, b"\1")]

    got, report = read(tmp_path, "a.mf4", mdf4(frames, start_ns=0))

    assert got == frames
    assert not report.absolute_time


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("part", [0.999, 0.6, 0.3])
def test_a_cut_recording_gives_what_was_readable_and_says_so(
    tmp_path: Path, part: float, *, is_packed: bool
) -> None:
    raw = mdf4(MANY, start_ns=START_NS, shape="unsorted")
    raw = raw[: int(len(raw) * part)]

    frames, report = read(tmp_path, "a.mf4", gzip.compress(raw) if is_packed else raw)

    assert frames == MANY[: len(frames)]
    assert len(frames) > 1500 * part * 0.7
    assert report.broken == 1


def test_a_cut_gzip_of_a_recording_gives_what_was_readable(tmp_path: Path) -> None:
    packed = gzip.compress(mdf4(MANY, start_ns=START_NS, shape="unsorted"))

    frames, report = read(tmp_path, "a.mf4.gz", packed[: len(packed) // 2])

    assert frames == MANY[: len(frames)]
    assert len(frames) > 500
    assert "the gzip data end early" in [broken.reason for broken in report.first_broken]


def deflated(raw: bytes, *, columns: int) -> bytes:
    """Return the file with its last data block deflated, transposed where columns are given."""
    at = raw.rindex(b"##DT")
    (size,) = struct.unpack_from("<Q", raw, at + 8)
    data = raw[at + 24 : at + size]
    stored = data
    if columns:
        rows = len(data) // columns
        stored = b"".join(data[column : rows * columns : columns] for column in range(columns))
        stored += data[rows * columns :]
    packed = zlib.compress(stored)
    head = struct.pack("<2sBxIQQ", b"DT", 1 if columns else 0, columns, len(data), len(packed))
    block = struct.pack("<4s4xQQ", b"##DZ", 24 + len(head) + len(packed), 0) + head + packed
    # Shorter than before: filled up, so that the addresses of what follows stay right.
    return raw[:at] + block.ljust(size, b"\0") + raw[at + size :]


@pytest.mark.parametrize("columns", [0, 27])
def test_compressed_blocks_transposed_or_not(tmp_path: Path, columns: int) -> None:
    frames = [(START_NS + n * MS, "1", 0x100, bytes([n % 5]) * 8) for n in range(300)]
    raw = mdf4(frames, start_ns=START_NS)

    got, report = read(tmp_path, "a.mf4", deflated(raw, columns=columns))

    assert got == frames
    assert report.broken == 0


def test_nothing_of_the_log_is_written_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another reader, asammdf, copies an unfinished file: plain data on a disk when killed."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    path = tmp_path / "a.mf4"
    path.write_bytes(mdf4(MANY, start_ns=START_NS, shape="unsorted"))

    program = (
        "import os, pathlib, sys; from agent.edge.logfile import open_log;"
        "log = open_log(pathlib.Path(sys.argv[1])); next(iter(log));"
        "os._exit(len(os.listdir(sys.argv[2])))"
    )
    killed = subprocess.run([sys.executable, "-c", program, path, folder], check=False)

    assert killed.returncode == 0
    assert not list(folder.iterdir())


def test_without_ide_the_identifier_tells_and_without_a_length_the_code(tmp_path: Path) -> None:
    """Members by names that say nothing to a reader are members that are missing."""
    frames = [
        (START_NS, "1", 0x7FF, bytes(range(8))),
        (START_NS + US, "1", 0x800 | CAN_EFF_FLAG, bytes(range(12))),
        (START_NS + MS, "1", 0x100, b"\1\2"),
    ]
    raw = mdf4(frames, start_ns=START_NS)
    for name in (b"CAN_DataFrame.IDE", b"CAN_DataFrame.DataLength"):
        assert name in raw
        raw = raw.replace(name + b"\0", name[:-1] + b"?\0")

    got, report = read(tmp_path, "a.mf4", raw)

    assert got == frames
    assert report.broken == 0


@pytest.mark.parametrize("name", [b"CAN_DataFrame.ID\0", b"CAN_DataFrame.DataBytes\0"])
def test_data_frames_without_identifier_or_data_are_reported(tmp_path: Path, name: bytes) -> None:
    raw = mdf4(MANY[:20], start_ns=START_NS).replace(name, name[:-2] + b"?\0")

    frames, report = read(tmp_path, "a.mf4", raw)

    assert all(one[2] & (CAN_RTR_FLAG | CAN_ERR_FLAG) for one in frames)
    assert "a group of" in report.first_broken[0].reason


def test_random_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    draw = random.Random(5)
    files = [mdf4(MANY[:40], start_ns=START_NS, shape=shape) for shape in SHAPES]

    for n in range(250):
        raw = bytearray(files[n % len(files)])
        for _ in range(draw.choice((1, 1, 4))):
            at = draw.randrange(16, len(raw))
            raw[at] = draw.randrange(256)
        path = tmp_path / "a.mf4"
        path.write_bytes(raw)
        try:
            with open_log(path) as log:
                for _ in log:
                    pass
        except LogError:
            continue


def test_a_measurement_without_frames_is_refused(tmp_path: Path) -> None:
    raw = mdf4(MANY[:3], start_ns=START_NS).replace(b"CAN_DataFrame", b"Engine_Values")

    with pytest.raises(LogError, match="no frames of a CAN bus") as caught:
        read(tmp_path, "a.mf4", raw)

    assert caught.value.hint
