"""The commands that ask the running agent, over a real socket, as seen at the vehicle."""

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.cli.main import run
from agent.core.ask import Pause, Restrict, Resume, Status, Verb
from agent.core.permission import People, Permissions
from agent.edge.control_socket import Ask, ControlSocket
from tests.desk import Desk, complaint
from tests.unit.core.test_status import REPORT

ME = People(frozenset({0, *[int(Path("/proc/self").stat().st_uid)]}))
Capsys = pytest.CaptureFixture[str]
FOREVER = {"grant_id": "*", "who": "uid 0", "since_s": 1_795_476_000, "left_s": None}
TWO_HOURS = {"grant_id": "gr_1", "who": "uid 1000", "since_s": 1_795_476_000, "left_s": 7_200}


class Answering:
    """An agent's end of the socket: says what it is told to, and keeps what was asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[Verb] = []
        self.reply: Mapping[str, Any] | Callable[[Ask], None] = {}
        self.lane = ControlSocket(path, permissions=Permissions(ME, ME, ME), on_ask=self._hear)

    def _hear(self, ask: Ask) -> None:
        self.asked.append(ask.verb)
        if isinstance(self.reply, Mapping):
            ask.answer(self.reply)
        else:
            self.reply(ask)


@pytest.fixture
def agent() -> Iterator[Answering]:
    with tempfile.TemporaryDirectory() as folder:
        answering = Answering(Path(folder) / "s")
        answering.lane.start()
        yield answering
        answering.lane.close()


def at(agent: Answering, *arguments: str) -> int:
    return run([*arguments, "--socket", str(agent.path)])


@pytest.mark.parametrize(
    ("arguments", "verb"),
    [
        ([], Pause()),
        (["--grant", "gr_1"], Pause("gr_1")),
        (["--for", "90s"], Pause(None, 90)),
        (["--for", "15min"], Pause(None, 900)),
        (["--for", "15m"], Pause(None, 900)),
        (["--for", "2h", "--grant", "gr_1"], Pause("gr_1", 7_200)),
        (["--for", "1d12h"], Pause(None, 129_600)),
    ],
)
def test_pause_asks_for_what_was_said(
    agent: Answering, arguments: list[str], verb: Verb, capsys: Capsys
) -> None:
    agent.reply = {"stops": [FOREVER]}

    assert at(agent, "pause", *arguments) == 0

    assert agent.asked == [verb]
    assert capsys.readouterr().out == (
        "stopped: all grants, by uid 0 since 2026-11-23 23:20 UTC, until resumed\n"
    )


@pytest.mark.parametrize("span", ["", "2", "h", "2x", "-2h", "2h30", "0s", "1.5h", "400d", "2 h"])
def test_a_span_that_is_none_is_an_error_of_usage(
    agent: Answering, span: str, capsys: Capsys
) -> None:
    assert at(agent, "pause", "--for", span) == 2
    complaint(capsys.readouterr().err)
    assert agent.asked == []


def test_resume_says_what_is_still_stopped(agent: Answering, capsys: Capsys) -> None:
    agent.reply = {"stops": [TWO_HOURS]}
    assert at(agent, "resume") == 0
    agent.reply = {"stops": []}
    assert at(agent, "resume", "--grant", "gr_1") == 0

    out = capsys.readouterr().out.splitlines()
    assert agent.asked == [Resume(), Resume("gr_1")]
    assert out[0].startswith("still stopped: grant gr_1, by uid 1000 since ")
    assert out[0].endswith("for another 2 h")
    assert out[1] == "nothing is stopped at the vehicle"


def test_status_shows_all_that_a_person_asks_for(agent: Answering, capsys: Capsys) -> None:
    agent.reply = REPORT.members()

    assert at(agent, "status") == 0

    out = capsys.readouterr().out
    assert agent.asked == [Status()]
    for part in (
        "consentry 0.1.0, vehicle veh-7Q2K, running for 2 h 5 min",
        "epoch 1, version 42, until 2026-12-23 ",
        "grant gr_city, by uid 1000",
        "for another 1 h 20 min",
        "all grants, by switch since",
        "until the switch says otherwise",
        "pause of all grants since",
        "up, 1 envelope in flight",
        "121 envelopes, 1.2 MB",
        "capture ok, network dead",
        "sealed 130",
        "without end",
    ):
        assert part in out, part
    assert re.search(r"powertrain +active +1,234,567 +30 +4 +2 +3 s ago", out)
    assert re.search(r"body +idle +0 +0 +0 +0 +never", out)
    assert re.search(r"gr_fleet r3 +fleet-x +active +2026-12-23 .* 120 +read_odometer, read", out)
    assert re.search(r"gr_city r1 +city +paused +without end +1 +read_location \(restricted", out)
    assert "\x1b" not in out, "no colours where the output is no terminal"
    assert max(len(line) for line in out.splitlines()) <= 120


def test_status_before_the_first_policy_says_so(agent: Answering, capsys: Capsys) -> None:
    empty = {"policy": None, "grants": [], "stops": [], "restrictions": [], "counts": {}}
    agent.reply = REPORT.members() | empty

    assert at(agent, "status") == 0

    out = capsys.readouterr().out
    assert "nothing is collected before the first one has come" in out
    assert "no grants" in out


def test_status_of_an_expired_policy_says_so(agent: Answering, capsys: Capsys) -> None:
    agent.reply = REPORT.members() | {"now_s": 1_798_060_800}

    assert at(agent, "status") == 0

    assert "until 2026-12-23 21:20 UTC, expired" in capsys.readouterr().out


def test_top_shows_what_moved_between_two_pictures(agent: Answering, capsys: Capsys) -> None:
    members = REPORT.members()
    frames = iter((1_000, 3_000))

    def reply(ask: Ask) -> None:
        buses = [members["buses"][0] | {"frames": next(frames)}]
        ask.answer(members | {"buses": buses, "counts": {"samples": 5, "refused": 1}})

    agent.reply = reply

    assert at(agent, "top", "--count", "2", "--seconds", "0.1") == 0

    first, second = capsys.readouterr().out.split("\n\nconsentry 0.1.0, ")
    assert "per second" not in first
    found = re.search(r"per second ([\d,.]+) frames on powertrain, 0\.0 samples\n", second)
    assert found, second
    assert 2_000 < float(found[1].replace(",", "")) <= 20_000


@pytest.mark.parametrize("command", ["status", "pause", "resume"])
def test_programs_get_the_answer_as_it_is(agent: Answering, command: str, capsys: Capsys) -> None:
    agent.reply = {"stops": [TWO_HOURS], "anything": [1]}

    assert at(agent, command, "--json") == 0

    assert json.loads(capsys.readouterr().out) == agent.reply


def test_restrict_hands_the_document_over(agent: Answering, tmp_path: Path, capsys: Capsys) -> None:
    (tmp_path / "r.jws").write_text("aGVhZA.cGF5.c2ln\n")
    agent.reply = {"outcome": "applied", "mode": "pause", "grants": ["gr_1", "*"]}

    assert at(agent, "restrict", str(tmp_path / "r.jws")) == 0

    assert agent.asked == [Restrict("aGVhZA.cGF5.c2ln")]
    assert capsys.readouterr().out == "applied: pause of gr_1, all grants\n"


def test_a_document_that_the_agent_refuses_ends_with_the_status_of_a_refused_policy(
    agent: Answering, tmp_path: Path, capsys: Capsys
) -> None:
    (tmp_path / "r.jws").write_text("a.b.c")
    agent.reply = lambda ask: ask.refuse("no trusted key", hint="see trust", reason="unknown-kid")

    assert at(agent, "restrict", str(tmp_path / "r.jws")) == 3

    assert complaint(capsys.readouterr().err) == ("error: no trusted key", "hint: see trust")


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"x" * 200_000, b"{}"])
def test_a_file_that_is_no_document_is_not_handed_over_or_refused(
    agent: Answering, tmp_path: Path, data: bytes, capsys: Capsys
) -> None:
    (tmp_path / "r.jws").write_bytes(data)

    assert at(agent, "restrict", str(tmp_path / "r.jws")) == 1
    complaint(capsys.readouterr().err)
    assert agent.asked == []


def test_what_the_agent_refuses_is_told_with_its_hint(agent: Answering, capsys: Capsys) -> None:
    agent.reply = lambda ask: ask.refuse("there is no stop of gr_9", hint="see status")

    assert at(agent, "resume", "--grant", "gr_9") == 1

    assert complaint(capsys.readouterr().err) == (
        "error: there is no stop of gr_9",
        "hint: see status",
    )


@pytest.mark.parametrize("command", ["pause", "resume", "status", "top"])
def test_an_answer_of_another_version_is_one_clear_error(
    agent: Answering, command: str, capsys: Capsys
) -> None:
    agent.reply = {"something": "else"}

    assert at(agent, command) == 1
    complaint(capsys.readouterr().err)


def test_the_configuration_says_where_the_agent_listens(
    agent: Answering, tmp_path: Path, capsys: Capsys
) -> None:
    desk = Desk(tmp_path / "vehicle")
    desk.socket = agent.path
    desk.configure()
    agent.reply = {"stops": []}

    assert run(["resume", "--config", desk.path("agent.toml")]) == 0
    assert "nothing is stopped" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["pause", "resume", "status", "top"])
def test_without_an_agent_each_says_how_to_start_one(
    command: str, tmp_path: Path, capsys: Capsys
) -> None:
    assert run([command, "--socket", str(tmp_path / "s")]) == 1

    error, hint = complaint(capsys.readouterr().err)
    assert "no agent listens on" in error
    assert "`consentry run`" in hint
