"""BLF, against python-can's writer and reader, and objects byte by byte."""

import random
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import can
import pytest

from agent.core.model import CAN_EFF_FLAG, CAN_ERR_FLAG, CAN_RTR_FLAG, Frame
from agent.edge.logfile import open_log
from agent.errors import LogError
from tests.unit.edge.log_reading import MS, US, read, utc_ns
from tests.unit.edge.log_writers import START_NS, S, frame, message

MANY: list[Frame] = [
    (
        START_NS + n * MS + n * US,
        str(1 + n % 3),
        (0x100 + n % 50) | (CAN_EFF_FLAG if n % 2 else 0),
        bytes([n % 256]) * (64 if n % 7 == 0 else n % 9),
    )
    for n in range(2000)
]


def written(path: Path, frames: Sequence[Frame], *, container: int = 4096) -> bytes:
    """Return a file of small containers, so that many objects go over from one to the next."""
    writer = can.BLFWriter(path, max_container_size=container)
    for one in frames:
        writer.on_message_received(message(one))
    writer.stop()
    return path.read_bytes()


def file(objects: bytes, *, start: tuple[int, ...] = (2020, 8, 3, 12, 14, 38, 4, 250)) -> bytes:
    """Return a BLF file of objects that lie in it without a container."""
    header = struct.pack("<4sL32x8H", b"LOGG", 144, *start)
    return header.ljust(144, b"\0") + objects


def made(kind: int, body: bytes, *, time: int, flags: int = 2, version: int = 1) -> bytes:
    """Return an object; version 2 of its header has 8 bytes more."""
    extra = bytes(8) if version == 2 else b""
    size = 32 + len(extra) + len(body)
    head = struct.pack("<4sHHLL", b"LOBJ", 32 + len(extra), version, size, kind)
    return head + struct.pack("<L4xQ", flags, time) + extra + body + bytes(size % 4)


def container(objects: bytes, *, method: int = 2) -> bytes:
    packed = zlib.compress(objects) if method == 2 else objects
    size = 32 + len(packed)
    head = struct.pack("<4sHHLLH6xL4x", b"LOBJ", 16, 1, size, 10, method, len(objects))
    return head + packed + bytes(size % 4)


CLASSIC = struct.pack("<HBBL8s", 2, 1, 3, 0x18FEF100 | 1 << 31, b"\1\2\3")
FILE_START_NS = utc_ns(2020, 8, 12, 14, 38, 4) + 250 * MS


def test_blf_is_read_as_python_can_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.blf"
    written(path, MANY)

    with open_log(path) as log, can.BLFReader(path) as other:
        assert list(log) == [frame(one) for one in other] == MANY
    assert log.report.broken == 0


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        (1, CLASSIC, ("2", 0x18FEF100 | CAN_EFF_FLAG, b"\1\2\3")),
        (86, CLASSIC + bytes(8), ("2", 0x18FEF100 | CAN_EFF_FLAG, b"\1\2\3")),
        (1, struct.pack("<HBBL8s", 1, 0x80, 8, 0x7FF, b""), ("1", 0x7FF | CAN_RTR_FLAG, b"")),
        (1, struct.pack("<HBBL8s", 1, 0, 15, 0x7FF, b"12345678"), ("1", 0x7FF, b"12345678")),
        (2, struct.pack("<HHL", 3, 0, 0), ("3", CAN_ERR_FLAG, b"")),
        (73, struct.pack("<HHLBBBxLLH2x8s", 4, *[0] * 8, b""), ("4", CAN_ERR_FLAG, b"")),
        (
            100,
            struct.pack("<HBBLLBBB5x64s", 1, 0, 9, 0x123, 0, 0, 7, 12, bytes(range(12))),
            ("1", 0x123, bytes(range(12))),
        ),
        (
            101,
            struct.pack("<BBBBLLLLLLLHBBL", 5, 9, 12, 0, 0x123, 0, 0x3000, *[0] * 8)
            + bytes(range(12)),
            ("5", 0x123, bytes(range(12))),
        ),
        (
            101,
            struct.pack("<BBBBLLLLLLLHBBL", 5, 8, 0, 0, 0x123, 0, 0x10, *[0] * 8),
            ("5", 0x123 | CAN_RTR_FLAG, b""),
        ),
        (
            # Fewer bytes stored than valid: Vector's own reader fills up with zeros.
            101,
            struct.pack("<BBBBLLLLLLLHBBL", 5, 9, 12, 0, 0x123, 0, 0x3000, *[0] * 8) + b"\1\2",
            ("5", 0x123, b"\1\2" + bytes(10)),
        ),
        (
            # Extra data begin at an offset from the object's start, 32 + 40 + 8 here.
            101,
            struct.pack("<BBBBLLLLLLLHBBL", 5, 8, 8, 0, 0x123, 0, 0x1000, *[0] * 6, 80, 0)
            + b"12345678"
            + b"\xee" * 12,
            ("5", 0x123, b"12345678"),
        ),
        (104, struct.pack("<B47x", 6), ("6", CAN_ERR_FLAG, b"")),
    ],
)
def test_every_kind_of_frame_object(
    tmp_path: Path, kind: int, body: bytes, expected: tuple[str, int, bytes]
) -> None:
    objects = made(kind, body, time=5 * S + 499) + made(65, b"application text", time=0)

    for shape in (objects, container(objects), container(objects, method=0)):
        frames, report = read(tmp_path, "a.blf", file(shape))
        assert frames == [(FILE_START_NS + 5 * S, *expected)]
        assert (report.broken, report.skipped) == (0, 1)


@pytest.mark.parametrize(
    ("flags", "time", "version", "expected_ns"),
    [(1, 123, 1, 1230 * US), (2, 1500, 1, 2 * US), (2, 2500, 2, 2 * US), (0, 2501, 2, 3 * US)],
)
def test_times_are_in_10_us_or_in_ns_and_come_rounded_to_us(
    tmp_path: Path, flags: int, time: int, version: int, expected_ns: int
) -> None:
    frames, _ = read(
        tmp_path, "a.blf", file(made(1, CLASSIC, time=time, flags=flags, version=version))
    )

    assert frames[0][0] == FILE_START_NS + expected_ns


@pytest.mark.parametrize("start", [(0,) * 8, (2020, 13, 3, 12, 14, 38, 4, 250)])
def test_without_a_start_the_log_counts_from_0(tmp_path: Path, start: tuple[int, ...]) -> None:
    frames, report = read(tmp_path, "a.blf", file(made(1, CLASSIC, time=S), start=start))

    assert frames[0][0] == S
    assert not report.absolute_time


@pytest.mark.parametrize("part", [0.999, 0.6, 0.3])
def test_a_cut_file_gives_what_was_readable_and_says_so(tmp_path: Path, part: float) -> None:
    whole = written(tmp_path / "whole.blf", MANY)

    frames, report = read(tmp_path, "a.blf", whole[: int(len(whole) * part)])

    assert frames == MANY[: len(frames)]
    assert len(frames) > 2000 * part * 0.9
    assert [broken.reason for broken in report.first_broken] == ["the file ends within an object"]


def test_a_damaged_container_costs_its_frames_and_no_other(tmp_path: Path) -> None:
    objects = [made(1, CLASSIC, time=n * S) for n in range(6)]
    bad = bytearray(container(objects[2] + objects[3]))
    bad[34:40] = b"\xff" * 6
    raw = container(objects[0] + objects[1]) + bytes(bad) + container(objects[4] + objects[5])

    frames, report = read(tmp_path, "a.blf", file(raw))

    assert [(one[0] - FILE_START_NS) // S for one in frames] == [0, 1, 4, 5]
    assert report.broken == 1


def test_garbage_between_objects_costs_no_object(tmp_path: Path) -> None:
    raw = made(1, CLASSIC, time=0) + b"garbage! " * 3 + made(1, CLASSIC, time=S)

    frames, report = read(tmp_path, "a.blf", file(raw))

    assert len(frames) == 2
    assert report.broken == 1


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (1, CLASSIC[:6]),
        (1, struct.pack("<HBBL8s", 1, 0, 8, 0x8FF, b"")),
        (101, struct.pack("<BBBBLLLLLLLHBBL", 5, 9, 99, 0, 0x123, 0, 0x3000, *[0] * 8)),
    ],
)
def test_a_broken_object_is_counted_and_costs_nothing_else(
    tmp_path: Path, kind: int, body: bytes
) -> None:
    good = made(1, CLASSIC, time=0)

    frames, report = read(tmp_path, "a.blf", file(good + made(kind, body, time=0) + good))

    assert len(frames) == 2
    assert report.broken == 1


@pytest.mark.parametrize("size", [0, 8, 1 << 31])
def test_an_object_of_an_impossible_size_is_passed_over(tmp_path: Path, size: int) -> None:
    good = made(1, CLASSIC, time=0)
    bad = bytearray(good)
    bad[8:12] = struct.pack("<L", size)

    frames, report = read(tmp_path, "a.blf", file(good + bytes(bad) + good))

    assert len(frames) == 2
    assert report.broken >= 1


def test_an_unknown_compression_is_reported(tmp_path: Path) -> None:
    good = made(1, CLASSIC, time=0)

    frames, report = read(tmp_path, "a.blf", file(container(good, method=7) + good))

    assert len(frames) == 1
    assert "unknown compression" in report.first_broken[0].reason


def test_a_file_that_ends_in_its_header_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="within its header"):
        read(tmp_path, "a.blf", file(b"")[:40])


def test_random_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    draw = random.Random(6)
    packed = written(tmp_path / "whole.blf", MANY[:100], container=512)
    plain = file(b"".join(made(1, CLASSIC, time=n) for n in range(50)))

    for n in range(250):
        raw = bytearray((packed, plain)[n % 2])
        for _ in range(draw.choice((1, 1, 4))):
            raw[draw.randrange(4, len(raw))] = draw.randrange(256)
        try:
            read(tmp_path, "a.blf", bytes(raw))
        except LogError:
            continue
