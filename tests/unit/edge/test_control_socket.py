"""The control socket, with real sockets, real peers and hostile ones."""

import json
import os
import queue
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from agent.core.ask import MAX_ASK_BYTES, Explain, Pause, Restrict, Resume, Status, to_line
from agent.core.permission import People, Permissions
from agent.edge.control_client import ask
from agent.edge.control_socket import Ask, ControlSocket
from agent.edge.control_socket import lane as lane_module
from agent.edge.people import find_group, find_permissions
from agent.errors import AgentError, AskRefused, ConfigError, NotRunning

ME = People(frozenset({os.getuid()}))
EVERYTHING = Permissions(may_pause=ME, may_resume=ME, may_look=ME)
OTHER_UID, OTHER_GID, GROUP = 12_345, 12_346, 54_321

# What another user runs, who might not get at this Python: it becomes that user by itself.
OTHER = f"""
import os, socket, sys
os.setgroups([int(group) for group in sys.argv[3:]])
os.setgid({OTHER_GID})
os.setuid({OTHER_UID})
link = socket.socket(socket.AF_UNIX)
try:
    link.connect(sys.argv[1])
    link.sendall(sys.argv[2].encode() + b"\\n")
except PermissionError:
    sys.exit("not let in by the file")
except BrokenPipeError:
    pass
print(link.makefile().readline())
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users reach, with a short name."""
    with tempfile.TemporaryDirectory() as made:
        path = Path(made)
        path.chmod(0o755)
        yield path


@contextmanager
def listening(
    path: Path,
    on_ask: Callable[[Ask], None] = lambda ask: ask.answer({"uid": ask.peer.uid}),
    permissions: Permissions = EVERYTHING,
    **more: Any,
) -> Iterator[ControlSocket]:
    lane = ControlSocket(path, permissions=permissions, on_ask=on_ask, **more)
    lane.start()
    try:
        yield lane
        assert lane.failure is None
        assert lane.is_alive
    finally:
        lane.close()


def connected(path: Path) -> socket.socket:
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(10)
    link.connect(str(path))
    return link


def said(link: socket.socket) -> dict[str, Any]:
    """Return the one line that comes."""
    with link, link.makefile("rb") as file:
        reply: dict[str, Any] = json.loads(file.readline())
        with suppress(ConnectionResetError):  # What we sent was not read to its end.
            assert file.read() == b""
    return reply


def answered(path: Path, line: bytes) -> dict[str, Any]:
    link = connected(path)
    with suppress(BrokenPipeError):
        link.sendall(line)
    return said(link)


def needs_root() -> None:
    if os.getuid() != 0:
        assert not os.environ.get("CI"), "CI runs as root, so that this is tried"
        pytest.skip("only root can be another user")


def ask_as_other(path: Path, line: str, *groups: int) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", OTHER, str(path), line, *map(str, groups)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.mark.parametrize(
    "verb", [Pause("gr_1", 60), Resume(), Status(), Explain("Vehicle.Speed"), Restrict("a.b.c")]
)
def test_each_verb_comes_to_the_agent_and_its_answer_back(folder: Path, verb: Any) -> None:
    heard: list[Any] = []

    def on_ask(asked: Ask) -> None:
        heard.append((asked.verb, asked.peer.pid, asked.peer.uid))
        asked.answer({"is": "done", "deep": [{"x": None}]})

    with listening(folder / "s", on_ask):
        answer = ask(folder / "s", verb)

    assert answer == {"is": "done", "deep": [{"x": None}]}
    assert heard == [(verb, os.getpid(), os.getuid())]


def test_the_agent_answers_from_its_own_thread_and_only_once(folder: Path) -> None:
    events: queue.SimpleQueue[Ask] = queue.SimpleQueue()

    def agent() -> None:
        asked = events.get()
        asked.answer({"n": 1})
        asked.answer({"n": 2})
        asked.refuse("too late")

    thread = threading.Thread(target=agent)
    thread.start()
    with listening(folder / "s", events.put):
        reply = answered(folder / "s", to_line(Status()))
        thread.join()

    assert reply == {"answer": {"n": 1}}


def test_a_refusal_of_the_agent_is_an_error_with_its_hint(folder: Path) -> None:
    with (
        listening(folder / "s", lambda a: a.refuse("no such grant", hint="see status")),
        pytest.raises(AskRefused, match="no such grant") as refused,
    ):
        ask(folder / "s", Pause("gr_9"))

    assert refused.value.hint == "see status"


def test_a_silent_agent_is_told_of_and_its_late_answer_ignored(folder: Path) -> None:
    late: list[Ask] = []
    with listening(folder / "s", late.append, answer_s=0.05):
        with pytest.raises(AskRefused, match="does not answer"):
            ask(folder / "s", Status())
        late[0].answer({"late": True})
        assert "error" in answered(folder / "s", b"{}\n")
    late[0].answer({"later": True})  # The lane is closed: nothing happens.


@pytest.mark.parametrize("members", [{"a": object()}, {"a": float("nan")}, {(1, 2): "a"}])
def test_an_answer_that_is_no_json_is_told_as_our_fault_and_nobody_dies(
    folder: Path, members: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        listening(folder / "s", lambda a: a.answer(members)),
        pytest.raises(AskRefused, match="cannot be told"),
    ):
        ask(folder / "s", Status())

    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_an_answer_larger_than_the_socket_buffer_arrives_whole(folder: Path) -> None:
    text = "x" * 2_000_000
    with listening(folder / "s", lambda a: a.answer({"text": text})):
        assert ask(folder / "s", Status()) == {"text": text}


def test_who_shuts_down_its_writing_side_is_answered(folder: Path) -> None:
    """As `socat` does at the end of its input."""
    with listening(folder / "s", lambda a: threading.Timer(0.05, a.answer, [{}]).start()):
        link = connected(folder / "s")
        link.sendall(to_line(Status()))
        link.shutdown(socket.SHUT_WR)

        assert said(link) == {"answer": {}}


def test_the_file_belongs_to_owner_and_group_alone_and_goes_at_the_end(folder: Path) -> None:
    path = folder / "s"
    before = os.umask(0)
    try:
        with listening(path):
            mode = path.stat().st_mode
    finally:
        os.umask(before)

    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660
    assert not path.exists()


def test_another_user_is_refused_by_file_and_by_list(folder: Path) -> None:
    """The file keeps strangers out; who is let in by a wider file is still judged by itself."""
    needs_root()
    path = folder / "s"
    with listening(path):
        by_file = ask_as_other(path, '{"verb":"pause"}')
        path.chmod(0o666)
        by_list = [
            ask_as_other(path, line, 0, 27)
            for line in ('{"verb":"pause"}', '{"verb":"resume"}', '{"verb":"status"}', "garbage")
        ]

    assert "not let in by the file" in by_file.stderr
    for result in by_list:
        assert json.loads(result.stdout)["error"] == f"user {OTHER_UID} may not ask anything"


def test_a_member_of_the_group_may_pause_and_not_resume(folder: Path) -> None:
    """By a supplementary group, as the kernel knows it and no file does."""
    needs_root()
    members = People(frozenset(), frozenset({GROUP}))
    lists = Permissions(may_pause=members, may_resume=ME, may_look=ME)
    heard: list[Ask] = []

    def on_ask(asked: Ask) -> None:
        heard.append(asked)
        asked.answer({})

    with listening(folder / "s", on_ask, lists, group_id=GROUP):
        paused = ask_as_other(folder / "s", '{"verb":"pause"}', 77, GROUP)
        resumed = ask_as_other(folder / "s", '{"verb":"resume"}', GROUP)
        looked = ask_as_other(folder / "s", '{"verb":"status"}', GROUP)

    assert json.loads(paused.stdout) == {"answer": {}}
    assert json.loads(resumed.stdout)["error"] == f"user {OTHER_UID} may not resume"
    assert json.loads(looked.stdout)["error"] == f"user {OTHER_UID} may not status"
    assert [(a.verb, a.peer.uid, a.peer.gids) for a in heard] == [
        (Pause(), OTHER_UID, {OTHER_GID, 77, GROUP})
    ]


@pytest.mark.parametrize(
    ("name", "line"),
    {
        "no JSON": b"\x00\xff\xfe\n",
        "an empty line": b"\n",
        "another verb": b'{"verb":"shutdown"}\n',
        "two lines": to_line(Status()) * 2,
        "a line and a half": to_line(Status()) + b"{",
        "a line of a megabyte": b"x" * 1_000_000 + b"\n",
        "a megabyte without a line": b"x" * 1_000_000,
        "nested brackets": b"[" * 100_000 + b"\n",
        "one byte too much": b" " * (MAX_ASK_BYTES + 1) + b"\n",
    }.items(),
)
def test_what_is_no_ask_is_refused_and_the_next_one_served(
    folder: Path, name: str, line: bytes
) -> None:
    heard: list[Ask] = []
    with listening(folder / "s", heard.append, answer_s=0.05):
        assert "error" in answered(folder / "s", line), name
        assert heard == []
        assert "does not answer" in answered(folder / "s", to_line(Status()))["error"]


def test_who_goes_early_disturbs_nobody(folder: Path) -> None:
    waiting: list[Ask] = []
    with listening(folder / "s", waiting.append, answer_s=0.2):
        connected(folder / "s").close()
        half = connected(folder / "s")
        half.sendall(b'{"verb":')
        half.close()
        asked = connected(folder / "s")
        asked.sendall(to_line(Status()))
        deadline = time.monotonic() + 5
        while not waiting and time.monotonic() < deadline:
            time.sleep(0.005)
        asked.close()
        waiting[0].answer({"text": "x" * 1_000_000})

        assert "does not answer" in answered(folder / "s", to_line(Status()))["error"]


def test_a_slow_writer_is_cut_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "READ_S", 0.1)
    with listening(folder / "s"):
        link = connected(folder / "s")
        began_s = time.monotonic()
        with suppress(BrokenPipeError):
            while time.monotonic() < began_s + 5:
                link.sendall(b" ")
                time.sleep(0.01)

        assert time.monotonic() - began_s < 4
        assert "no whole line" in said(link)["error"]


def test_a_reader_that_does_not_read_is_cut_off(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_module, "WRITE_S", 0.1)
    text = "x" * 4_000_000
    with listening(folder / "s", lambda a: a.answer({"text": text})):
        link = connected(folder / "s")
        link.sendall(to_line(Status()))
        time.sleep(0.3)

        assert ask(folder / "s", Status())["text"] == text
        with link, link.makefile("rb") as file:
            assert len(file.read()) < len(text)


def test_a_hundred_connections_take_nothing_but_their_own_places(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_module, "READ_S", 0.4)
    path = folder / "s"
    with listening(path) as lane:
        links = []
        for _ in range(100):
            link = socket.socket(socket.AF_UNIX)
            link.settimeout(10)
            link.connect(str(path))
            links.append(link)
        began_s = time.monotonic()
        replies = [said(link)["error"] for link in links]

        assert time.monotonic() - began_s < 5
        assert sum("too many" in reply for reply in replies) == 97
        assert len(lane._clients) == 0
        assert ask(path, Status()) == {"uid": os.getuid()}


def test_one_user_cannot_keep_another_out(folder: Path) -> None:
    needs_root()
    path = folder / "s"
    everybody = People(frozenset({0, OTHER_UID}))
    lists = Permissions(everybody, everybody, everybody)
    with listening(path, permissions=lists):
        path.chmod(0o666)
        mine = [connected(path) for _ in range(20)]
        other = ask_as_other(path, '{"verb":"status"}')
        for link in mine:
            link.close()

    assert json.loads(other.stdout) == {"answer": {"uid": OTHER_UID}}


def test_a_socket_file_that_was_left_behind_is_replaced(folder: Path) -> None:
    path = folder / "s"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()

    with listening(path):
        assert ask(path, Status()) == {"uid": os.getuid()}


def test_a_socket_that_somebody_listens_on_is_left_alone(folder: Path) -> None:
    path = folder / "s"
    with listening(path):
        second = ControlSocket(path, permissions=EVERYTHING, on_ask=lambda _: None)
        with pytest.raises(AgentError, match="another process listens"):
            second.start()
        second.close()

        assert ask(path, Status()) == {"uid": os.getuid()}


def test_a_file_that_is_no_socket_is_left_alone(folder: Path) -> None:
    path = folder / "s"
    path.write_text("mine")
    lane = ControlSocket(path, permissions=EVERYTHING, on_ask=lambda _: None)

    with pytest.raises(ConfigError, match="no socket"):
        lane.start()
    lane.close()

    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["missing/s", "x" * 120])
def test_a_place_where_no_socket_can_be_is_an_error_of_the_configuration(
    folder: Path, name: str
) -> None:
    lane = ControlSocket(folder / name, permissions=EVERYTHING, on_ask=lambda _: None)

    with pytest.raises(ConfigError, match="cannot be") as refused:
        lane.start()
    lane.close()

    assert refused.value.hint


def test_the_lane_ends_when_its_file_is_gone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An agent that nobody can stop must not go on."""
    monkeypatch.setattr(lane_module, "IDLE_S", 0.02)
    lane = ControlSocket(folder / "s", permissions=EVERYTHING, on_ask=lambda _: None)
    lane.start()
    (folder / "s").unlink()
    (folder / "s").write_text("another's")
    lane._thread.join(5)

    assert not lane.is_alive
    assert isinstance(lane.failure, AgentError)
    lane.close()
    assert (folder / "s").read_text() == "another's"
    assert "control socket died" in caplog.text


def test_the_lane_shows_that_it_lives_and_can_be_closed_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_module, "IDLE_S", 0.01)
    lane = ControlSocket(folder / "s", permissions=EVERYTHING, on_ask=lambda _: None)
    lane.start()
    before = lane.turns
    deadline = time.monotonic() + 5
    while lane.turns < before + 3 and time.monotonic() < deadline:
        time.sleep(0.01)

    assert lane.turns >= before + 3
    lane.close()
    lane.close()
    assert not lane.is_alive


def test_refusals_are_logged_once_in_a_while_with_their_number(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(folder / "s") as lane:
        for _ in range(5):
            answered(folder / "s", b"?\n")
        lane._told_s -= lane_module.REFUSAL_LOGGED_S
        answered(folder / "s", b'{"verb":"x"}\n')

    lines = [record for record in caplog.records if record.message == "ask refused"]
    assert [vars(line)["held_back"] for line in lines] == [0, 4]
    assert vars(lines[0])["uid"] == os.getuid()


def test_without_an_agent_the_client_says_how_to_start_one(folder: Path) -> None:
    with pytest.raises(NotRunning, match="no agent listens") as refused:
        ask(folder / "s", Status())

    assert "consentry run" in (refused.value.hint or "")


@pytest.mark.parametrize(
    "reply", [b"", b"hello\n", b"[]\n", b"{}\n", b'{"answer": 1}\n', b"\xff\n"]
)
def test_whatever_listens_the_client_ends_with_one_clear_error(folder: Path, reply: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()

        def serve() -> None:
            link, _ = listener.accept()
            with link:
                link.recv(1000)
                link.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(AgentError):
            ask(folder / "s", Status())
        thread.join()


def test_a_client_does_not_wait_for_ever(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        with pytest.raises(AgentError, match="no answer"):
            ask(folder / "s", Status(), timeout_s=0.05)


def test_names_of_users_and_groups_become_numbers() -> None:
    found = find_permissions(
        {"may_pause": ["root", "@daemon"], "may_resume": [], "may_look": ["daemon"]},
        written=["may_pause", "may_resume", "may_look"],
    )

    assert found.may_pause == People(frozenset({0}), frozenset({1}))
    assert found.may_resume == People()
    assert found.may_look == People(frozenset({1}))
    assert find_group("root") == 0


def test_every_unknown_name_is_told_unless_it_is_a_default() -> None:
    names = ["no-such-user", "@no-such-group", "nobody", "root"]
    with pytest.raises(ConfigError) as refused:
        find_permissions({"may_pause": names}, written=["may_pause"])
    for word in ("no user no-such-user", "no group no-such-group", "nobody stands for"):
        assert word in refused.value.message

    default = find_permissions({"may_pause": names}, written=[])
    assert default.may_pause == People(frozenset({0}))


def test_an_unknown_group_of_the_file_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no group no-such-group"):
        find_group("no-such-group")


def test_the_numbers_of_the_peer_are_those_of_the_kernel(folder: Path) -> None:
    """SO_PEERGROUPS is not in Python's socket module: 59 must mean what we think."""
    with listening(folder / "s") as lane:
        link = connected(folder / "s")
        groups = struct.iter_unpack("I", link.getsockopt(socket.SOL_SOCKET, 59, 1024))
        link.close()

    assert {number for (number,) in groups} == set(os.getgroups())
    assert lane.turns >= 0
