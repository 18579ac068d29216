"""The control socket: who stands at the vehicle may stop the agent, look at it, and lift the stop.

Rules:
 * A Unix stream socket, never TCP. Who asks is what the kernel says of the peer.
 * Deny by default: a user or group that no list names may do nothing, and is told so before a byte
   of its is read. A restrict document only restricts, so who may pause may hand one over.
 * One connection is one line in and one line out. Length, time and number of connections are
   bounded, the number also for each user: one cannot keep the others out.
 * What was permitted is posted to the agent lane, which answers from its own thread. When it stays
   silent, who asked hears so.
 * When the socket file goes, or is no more this lane's, the lane ends: an agent that nobody can
   stop must not go on.
"""

import json
import logging
import os
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.core.ask import MAX_ASK_BYTES, Verb, name_of, parse_ask
from agent.core.permission import Peer, Permissions
from agent.edge.control_socket.file import listen, peer_of
from agent.errors import AgentError, AskRefused

MAX_CLIENTS = 8
MAX_CLIENTS_PER_USER = 3
READ_S = 2.0  # From connect to the end of the line.
ANSWER_S = 5.0  # For the agent lane.
WRITE_S = 2.0
IDLE_S = 4.0  # Between looks at the socket file; `turns` moves so often, for the watchdog.
REFUSAL_LOGGED_S = 10.0  # One line about refusals in so long, with the number of the others.

_CHUNK = 64 * 1024

_log = logging.getLogger(__name__)


class Ask:
    """What a permitted peer asked. Answered once, from any thread; what comes later is ignored."""

    def __init__(self, verb: Verb, peer: Peer, reply: Callable[[dict[str, Any]], None]) -> None:
        self.verb = verb
        self.peer = peer
        self._reply = reply

    def answer(self, members: Mapping[str, Any]) -> None:
        """Send an answer: a JSON object."""
        self._reply({"answer": dict(members)})

    def refuse(self, message: str, *, hint: str | None = None, reason: str | None = None) -> None:
        """Send an error in place of an answer.

        Args:
            message: What was found and what was expected.
            hint: What to do about it.
            reason: That of a refused document (docs/policy.md).
        """
        self._reply({"error": message, "hint": hint, "reason": reason})


@dataclass(slots=True)
class _Client:
    """One connection. Reads until `asked`, writes once `left` is not empty."""

    link: socket.socket
    peer: Peer
    until_s: float
    line: bytearray
    left: bytes = b""
    asked: str = ""


class ControlSocket:
    """Listens in a thread of its own. `start` once, `close` as often as you like."""

    def __init__(  # noqa: PLR0913 - what two other lanes want of it
        self,
        path: Path,
        *,
        permissions: Permissions,
        on_ask: Callable[[Ask], None],
        group_id: int | None = None,
        answer_s: float = ANSWER_S,
        on_turn: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            path: The socket file.
            permissions: Who may ask what.
            on_ask: Gets what was permitted, in this lane's thread; must not block.
            group_id: The file's group, or None: that of the process.
            answer_s: How long `on_ask`'s side may take.
            on_turn: Called in this lane's thread, at least every `IDLE_S`; must not block.
        """
        self._path = path
        self._permissions = permissions
        self._on_ask = on_ask
        self._group_id = group_id
        self._answer_s = answer_s
        self._on_turn = on_turn
        self._clients: dict[int, _Client] = {}
        self._replies: queue.SimpleQueue[tuple[_Client, bytes]] = queue.SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._inode = 0
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._told_s = -REFUSAL_LOGGED_S
        self._held_back = 0
        self._lock = threading.Lock()  # Of _wake_fd, which a late answer may find closed.
        self.turns = 0
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Make the socket file and begin.

        Raises:
            AgentError: Somebody listens there already.
            ConfigError: The file cannot be made there, or not for that group.
        """
        self._listener = listen(self._path, group_id=self._group_id)
        self._inode = os.stat(self._path).st_ino  # noqa: PTH116 - beside os.eventfd and os.write
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_fd, selectors.EVENT_READ)
        self._thread.start()

    def close(self) -> None:
        """End the thread, drop every connection and remove the socket file."""
        self._stop.set()
        self._wake()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self._drop_all()
        self._selector.close()
        with self._lock:
            if self._wake_fd >= 0:
                os.close(self._wake_fd)
            self._wake_fd = -1
        if self._listener is not None:
            self._listener.close()
            if self._is_ours():
                self._path.unlink()
            self._listener = None

    @property
    def is_alive(self) -> bool:
        """Whether the lane's thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._turn()
        except Exception as exc:  # noqa: BLE001 - the thread's top, see below
            # The thread's top: the daemon sees the dead lane and ends the process.
            self.failure = exc
            _log.exception("control socket died")

    def _turn(self) -> None:
        now_s = time.monotonic()
        waits = [client.until_s - now_s for client in self._clients.values()]
        for key, _ in self._selector.select(max(0.0, min([IDLE_S, *waits]))):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fd == self._wake_fd:
                os.eventfd_read(self._wake_fd)
            elif key.fd in self._clients:
                self._move(self._clients[key.fd])
        while not self._replies.empty():
            client, reply = self._replies.get_nowait()
            if self._clients.get(client.link.fileno()) is client and not client.left:
                self._begin_to_write(client, reply)
        self._look_at_the_time()
        self._on_turn()
        if not self._is_ours():
            raise AgentError(f"the control socket {self._path} is gone, or another's now")
        self.turns += 1

    def _accept(self) -> None:
        assert self._listener is not None, "only a listener can be ready"
        try:
            link, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # Who asked has gone.
        link.setblocking(False)
        client = _Client(link, peer_of(link), time.monotonic() + READ_S, bytearray())
        of_user = sum(other.peer.uid == client.peer.uid for other in self._clients.values())
        is_full = len(self._clients) >= MAX_CLIENTS or of_user >= MAX_CLIENTS_PER_USER
        self._clients[link.fileno()] = client
        self._selector.register(link, selectors.EVENT_READ)
        if is_full:
            self._refuse(client, "too many ask at once", "try again in some seconds")
        elif not self._permissions.knows(client.peer):
            self._refuse(client, *_denied(client.peer, "ask anything"))

    def _move(self, client: _Client) -> None:
        """Read what there is to read, or write what can be written."""
        try:
            if client.left:
                self._write(client)
            else:
                self._read(client)
        except OSError:
            self._drop(client)  # The peer has gone: nobody is there to hear of it.

    def _read(self, client: _Client) -> None:
        data = client.link.recv(_CHUNK)
        client.line += data
        line, end, behind = bytes(client.line).partition(b"\n")
        if behind:
            self._refuse(client, "there is more than one line", "ask one thing per connection")
        elif len(client.line) > MAX_ASK_BYTES:
            self._refuse(client, f"the line is longer than {MAX_ASK_BYTES} bytes", None)
        elif end:
            self._ask(client, line)
        elif not data:
            self._drop(client)

    def _ask(self, client: _Client, line: bytes) -> None:
        try:
            verb = parse_ask(line)
        except AskRefused as exc:
            self._refuse(client, exc.message, exc.hint)
            return
        client.asked = name_of(verb)
        if not self._permissions.allow(verb, client.peer):
            self._refuse(client, *_denied(client.peer, client.asked))
            return
        # Not read from any more; also who has shut down its writing side gets its answer.
        self._selector.unregister(client.link)
        client.until_s = time.monotonic() + self._answer_s
        self._on_ask(Ask(verb, client.peer, lambda reply: self._post(client, reply)))

    def _post(self, client: _Client, reply: Mapping[str, Any]) -> None:
        """Leave a reply for the lane; called in any thread."""
        try:
            line = _line(reply)
        except (TypeError, ValueError):
            # A fault of ours, and no reason for whoever answers to die of a question.
            _log.exception("answer cannot be told")
            line = _line({"error": "the answer cannot be told", "hint": "the agent's log says why"})
        self._replies.put((client, line))
        self._wake()

    def _refuse(self, client: _Client, message: str, hint: str | None) -> None:
        self._tell_refusal(client)
        self._selector.unregister(client.link)
        self._begin_to_write(client, _line({"error": message, "hint": hint}))

    def _begin_to_write(self, client: _Client, reply: bytes) -> None:
        client.left = reply
        client.until_s = time.monotonic() + WRITE_S
        self._selector.register(client.link, selectors.EVENT_WRITE)
        self._move(client)

    def _write(self, client: _Client) -> None:
        client.left = client.left[os.write(client.link.fileno(), client.left) :]
        if not client.left:
            self._drop(client)

    def _look_at_the_time(self) -> None:
        now_s = time.monotonic()
        for client in [c for c in self._clients.values() if c.until_s <= now_s]:
            if client.left:
                self._drop(client)
            elif client.asked:
                silent = {
                    "error": f"the agent lane does not answer within {self._answer_s:g} s",
                    "hint": "its log may say why; if it stands still, systemd starts it again",
                }
                self._begin_to_write(client, _line(silent))
            else:
                self._refuse(client, f"no whole line came within {READ_S:.0f} s", None)

    def _tell_refusal(self, client: _Client) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s < REFUSAL_LOGGED_S:
            self._held_back += 1
            return
        _log.warning(
            "ask refused",
            extra={"uid": client.peer.uid, "verb": client.asked, "held_back": self._held_back},
        )
        self._told_s, self._held_back = now_s, 0

    def _drop(self, client: _Client) -> None:
        fd = client.link.fileno()
        if self._clients.pop(fd, None) is not None:
            if fd in self._selector.get_map():
                self._selector.unregister(client.link)
            client.link.close()

    def _drop_all(self) -> None:
        for client in list(self._clients.values()):
            self._drop(client)

    def _wake(self) -> None:
        with self._lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def _is_ours(self) -> bool:
        try:
            return os.stat(self._path).st_ino == self._inode  # noqa: PTH116 - as in `start`
        except OSError:
            return False


def _denied(peer: Peer, verb: str) -> tuple[str, str]:
    return (
        f"user {peer.uid} may not {verb}",
        "may_pause, may_resume and may_look under [control] in agent.toml say who may",
    )


def _line(reply: Mapping[str, Any]) -> bytes:
    return json.dumps(reply, ensure_ascii=True, allow_nan=False).encode() + b"\n"
