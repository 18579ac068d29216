"""Every real capture, against counts of its makers and against other readers."""

import gzip
import warnings
from collections.abc import Iterable
from pathlib import Path

import can
import pytest

from agent.core.model import CAN_EFF_FLAG, CAN_RTR_FLAG, Frame
from agent.edge.logfile import open_log, read_log, read_logs
from tests.unit.edge.log_writers import frame, message

pytestmark = pytest.mark.captures

US = 1_000
# File: frames and channels, from the captures' README.md and PROVENANCE.md, and `zcat | wc -l`.
CAPTURES = {
    "obd2_gnss_drive/drive_all.log.gz": (640_067, {"can1", "can2"}),
    "obd2_gnss_drive/00000165-00000001-60FEB68B.MF4": (45_096, {"1", "2"}),
    "obd2_request_response/7512BE4D.log.gz": (72_009, {"can1", "can9"}),
    "mustang/mustang_s550.log.gz": (87_212, {"can0"}),
    "giulia/exp3.log.gz": (33_005, {"can0"}),
    "tesla_model3/it-candump0.log": (10_000, {"vcan0"}),
    "j1939/11111111_idle_diesel.log.gz": (57_849, {"can1", "can2"}),
    "j1939/11111111_idle_diesel.MF4": (57_849, {"1", "2"}),
    "j1939/FCBF0606_j1939_tp.MF4": (1_815, {"1", "2"}),
    "j1939_ecm_bench/normal_operations_demo2.log.gz": (39_740, {"can1"}),
    "ev_uds/kia_ev6_2.MF4": (3_587, {"1", "2"}),
    "ev_uds/nissan_leaf_uds.MF4": (5_588, {"1", "2"}),
    "canfd/srr520_canfd.log": (97, {"can0"}),
}
MF4 = [name for name in CAPTURES if name.endswith(".MF4")]


@pytest.mark.parametrize("name", CAPTURES)
def test_a_capture_gives_all_its_frames(captures: Path, name: str) -> None:
    count, channels = CAPTURES[name]

    seen: set[str] = set()
    with open_log(captures / name) as log:
        for block in log.blocks():
            seen.update(one[1] for one in block)

    assert log.report.frames == count
    assert log.report.broken == 0
    assert seen == channels
    assert log.report.absolute_time == (not name.startswith("mustang"))
    assert log.progress == 1.0


def test_no_capture_is_left_out(captures: Path) -> None:
    found = {
        str(path.relative_to(captures))
        for pattern in ("*/*.log", "*/*.log.gz", "*/*.MF4")
        for path in captures.glob(pattern)
        if path.parent.name != "gnss" and not path.name.startswith("SYNTHETIC")
    }

    assert found == set(CAPTURES)


@pytest.mark.parametrize(
    "name", ["tesla_model3/it-candump0.log", "j1939_ecm_bench/normal_operations_demo2.log.gz"]
)
def test_candump_is_read_as_python_can_reads_it(captures: Path, tmp_path: Path, name: str) -> None:
    path = captures / name
    if name.endswith(".gz"):
        path = tmp_path / "a.log"
        path.write_bytes(gzip.decompress((captures / name).read_bytes()))

    with can.CanutilsLogReader(path) as other:
        expected = [(one[0], *one[2:]) for one in map(frame, other)]

    assert [(one[0], *one[2:]) for one in read_log(captures / name)] == expected


def test_the_remote_frame_of_the_bench_is_one(captures: Path) -> None:
    with open_log(captures / "j1939_ecm_bench/normal_operations_demo2.log.gz") as log:
        first = next(iter(log))

    assert first[2:] == (0x1F8A3FB7 | CAN_EFF_FLAG | CAN_RTR_FLAG, b"")


def test_an_mf4_gives_what_was_derived_from_it_as_candump(captures: Path) -> None:
    folder = captures / "j1939"

    derived = list(read_log(folder / "11111111_idle_diesel.log.gz"))

    assert named(read_log(folder / "11111111_idle_diesel.MF4")) == derived


def test_an_mf4_is_the_part_of_the_drive_that_was_derived_from_it(captures: Path) -> None:
    folder = captures / "obd2_gnss_drive"
    part = named(read_log(folder / "00000165-00000001-60FEB68B.MF4"))
    first, last = part[0][0], part[-1][0]

    derived = [one for one in read_log(folder / "drive_all.log.gz") if first <= one[0] <= last]

    # The drive was put in order by time alone: of equal times the order may differ.
    assert sorted(part) == sorted(derived)


@pytest.mark.parametrize("name", MF4)
def test_mf4_is_read_as_asammdf_reads_it(captures: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with can.MF4Reader(captures / name) as other:
            expected = sorted(
                (round(one.timestamp * 1e6) * US, str(one.channel), *frame(one)[2:])
                for one in other
            )

    assert sorted(read_log(captures / name)) == expected


def test_a_drive_cut_into_logs_is_one_recording(captures: Path, tmp_path: Path) -> None:
    lines = (captures / "tesla_model3/it-candump0.log").read_text().splitlines(keepends=True)
    paths = [tmp_path / name for name in ("c.log", "a.log", "b.log.gz")]
    paths[0].write_text("".join(lines[6000:]))
    paths[1].write_text("".join(lines[:3000]))
    paths[2].write_bytes(gzip.compress("".join(lines[3000:6000]).encode()))

    with read_logs(paths) as recording:
        together = list(recording)

    assert together == list(read_log(captures / "tesla_model3/it-candump0.log"))


@pytest.mark.parametrize("suffix", ["blf", "asc"])
def test_a_capture_comes_back_from_vectors_formats(
    captures: Path, tmp_path: Path, suffix: str
) -> None:
    """Written by python-can, whose ASC header holds the moment of writing: offsets are compared."""
    frames = [
        (t_ns, "1", can_id, data)
        for t_ns, _, can_id, data in read_log(captures / "canfd/srr520_canfd.log")
    ] + [
        (t_ns, channel.removeprefix("can"), can_id, data)
        for t_ns, channel, can_id, data in list(
            read_log(captures / "j1939/11111111_idle_diesel.log.gz")
        )[:5000]
    ]
    frames.sort(key=lambda one: one[0])
    path = tmp_path / f"a.{suffix}"
    writer = {"blf": can.BLFWriter, "asc": can.ASCWriter}[suffix](path)
    for one in frames:
        writer.on_message_received(message(one))
    writer.stop()

    got = list(read_log(path))

    assert offsets(got) == offsets(frames)


def named(frames: Iterable[Frame]) -> list[Frame]:
    """Return the frames with the channel names of the derived candump files."""
    return [(t_ns, f"can{channel}", can_id, data) for t_ns, channel, can_id, data in frames]


def offsets(frames: list[Frame]) -> list[Frame]:
    start_ns = frames[0][0]
    return [(t_ns - start_ns, *rest) for t_ns, *rest in frames]
