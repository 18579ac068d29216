"""What the commands that ask the agent take, refuse, and draw; no agent is needed for that.

What they do to a running one is in test_running_agent.py.
"""

import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest

from agent.cli.asking import span_of, stop_told
from agent.cli.main import run
from agent.cli.restrict import command as restrict
from agent.cli.status import _COUNTS, drawn
from agent.core.status import StopStatus
from tests.car import ROOT
from tests.desk import complaint
from tests.unit.core.test_status import REPORT

Capsys = pytest.CaptureFixture[str]
OF_ANOTHER_VERSION = b'{"answer": {"something": "else"}}\n'


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Path]:
    """A socket on which something answers that is no agent of this version."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def answer() -> None:
            link, _ = listener.accept()
            with link:
                link.recv(4096)
                link.sendall(OF_ANOTHER_VERSION)

        thread = threading.Thread(target=answer)
        thread.start()
        yield tmp_path / "s"
        thread.join(10)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15min", 900), ("15m", 900), ("2h", 7_200), ("1d12h", 129_600)],
)
def test_a_span_is_written_as_people_write_it(text: str, seconds: int) -> None:
    assert span_of(click.Context(restrict), restrict.params[0], text) == seconds


@pytest.mark.parametrize("span", ["", "2", "h", "2x", "-2h", "2h30", "0s", "1.5h", "400d", "2 h"])
def test_a_span_that_is_none_is_an_error_of_usage(
    span: str, tmp_path: Path, capsys: Capsys
) -> None:
    assert run(["pause", "--for", span, "--socket", str(tmp_path / "s")]) == 2
    complaint(capsys.readouterr().err)


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"x" * 200_000])
def test_a_file_that_is_no_document_is_not_handed_over(
    tmp_path: Path, data: bytes, capsys: Capsys
) -> None:
    (tmp_path / "r.jws").write_bytes(data)

    assert run(["restrict", str(tmp_path / "r.jws"), "--socket", str(tmp_path / "s")]) == 1

    assert "is no restrict document" in complaint(capsys.readouterr().err)[0]


@pytest.mark.parametrize("command", ["pause", "resume", "status", "top", "explain", "restrict"])
def test_an_answer_of_another_version_is_one_clear_error(
    stranger: Path, tmp_path: Path, command: str, capsys: Capsys
) -> None:
    (tmp_path / "r.jws").write_text("a.b.c")
    what = {"explain": ["Vehicle.Speed"], "restrict": [str(tmp_path / "r.jws")]}.get(command, [])

    assert run([command, *what, "--socket", str(stranger)]) == 1
    complaint(capsys.readouterr().err)


def test_a_stop_says_what_since_when_and_until_when() -> None:
    stops = (
        StopStatus("*", "uid 0", 1_795_476_000, None),
        StopStatus("gr_1", "uid 1000", 1_795_476_000, 7_200),
        StopStatus("*", "switch", 1_795_476_000, None),
    )

    assert [stop_told(stop) for stop in stops] == [
        "all grants, by uid 0 since 2026-11-23 23:20 UTC, until resumed",
        "grant gr_1, by uid 1000 since 2026-11-23 23:20 UTC, for another 2 h",
        "all grants, by switch since 2026-11-23 23:20 UTC, until the switch says otherwise",
    ]


def test_the_picture_has_all_that_a_person_asks_for() -> None:
    out = "\n".join(click.unstyle(line) for line in drawn(REPORT))

    for part in (
        "consentry 0.1.0, vehicle veh-7Q2K, running for 2 h 5 min",
        "epoch 1, version 42, until 2026-12-23 ",
        "grant gr_city, by uid 1000",
        "pause of all grants since",
        "up, 1 envelope in flight",
        "121 envelopes waiting, 1.2 MB",
        "capture still for 20 s, network dead",
        "130 envelopes sealed, 1 batch dropped with the grant",
    ):
        assert part in out, part
    assert re.search(r"powertrain +active +1,234,567 +30 +4 \(bus-error 4\) +2 +3 s ago", out)
    assert re.search(r"body +idle +0 +0 +0 +0 +never", out)
    assert re.search(r"gr_fleet r3 +fleet-x +active +2026-12-23 .* 120 +read_odometer, read", out)
    assert re.search(r"gr_city r1 +city +paused +without end +1 +read_location \(restricted", out)
    assert max(len(line) for line in out.splitlines()) <= 120


def test_a_count_that_this_version_does_not_know_is_told_by_its_name() -> None:
    (line,) = (
        line for line in drawn(replace(REPORT, counts={"new": 2, "old": 0})) if "so far" in line
    )

    assert line == "so far     2 new"


def test_every_count_is_explained_to_who_reads_the_picture() -> None:
    document = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")

    counts = dict.fromkeys(_COUNTS, 2)
    (line,) = (line for line in drawn(replace(REPORT, counts=counts)) if "so far" in line)

    for told in line.removeprefix("so far").strip().split(", "):
        assert told.removeprefix("2 ") in document


def test_before_the_first_policy_the_picture_says_so() -> None:
    empty = replace(REPORT, policy=None, grants=(), stops=(), restrictions=(), counts={})

    out = "\n".join(drawn(empty))

    assert "nothing is collected before the first one has come" in out
    assert out.endswith("no grants")


def test_an_expired_policy_is_told_as_such() -> None:
    out = "\n".join(click.unstyle(line) for line in drawn(replace(REPORT, now_s=1_798_060_800)))

    assert "until 2026-12-23 21:20 UTC, expired" in out
