"""One question to the running agent over its control socket, and its answer."""

import contextlib
import grp
import json
import os
import socket
from pathlib import Path
from typing import Any

from agent.core.ask import Verb, to_line
from agent.errors import AgentError, AskRefused, NotRunning, PolicyRejected

TIMEOUT_S = 10.0  # The agent says by itself when it does not get to it.
MAX_ANSWER_BYTES = 4 * 1024 * 1024

_CHUNK = 64 * 1024


def ask(path: Path, verb: Verb, *, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Return the running agent's answer.

    Args:
        path: Its control socket.
        verb: What is asked.
        timeout_s: Longest silence.

    Raises:
        NotRunning: Nobody listens there.
        PolicyRejected: The document that was handed over was refused.
        AskRefused: The agent, or the file system, did not let us.
        AgentError: What came is no answer, or none came in time.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(timeout_s)
        try:
            link.connect(os.fspath(path))
        except PermissionError as exc:
            raise AskRefused(
                f"you may not use the control socket {path}", hint=_who_may(path)
            ) from exc
        except BlockingIOError as exc:
            raise AgentError(
                f"too many wait on {path} at once", hint="try again in some seconds"
            ) from exc
        except OSError as exc:
            raise NotRunning(f"no agent listens on {path}") from exc
        try:
            data = _converse(link, to_line(verb))
        except TimeoutError as exc:
            raise AgentError(
                f"no answer on {path} within {timeout_s:.0f} s", hint="its log may say why"
            ) from exc
        except OSError as exc:
            raise NotRunning(f"the agent on {path} ended before it answered") from exc
    return _parsed(data, path)


def _converse(link: socket.socket, line: bytes) -> bytes:
    # Who is refused at once hears so before its line is read: the answer waits all the same.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while line:
            line = line[os.write(link.fileno(), line) :]
    data = bytearray()
    while not data.endswith(b"\n") and len(data) <= MAX_ANSWER_BYTES:
        chunk = link.recv(_CHUNK)
        if not chunk:
            break
        data += chunk
    return bytes(data)


def _parsed(data: bytes, path: Path) -> dict[str, Any]:
    if not data:
        raise NotRunning(f"the agent on {path} ended before it answered")
    try:
        reply = json.loads(data)
        if reply.get("reason") is not None:
            raise PolicyRejected(
                str(reply["error"]), reason=str(reply["reason"]), hint=reply.get("hint")
            )
        if "error" in reply:
            raise AskRefused(str(reply["error"]), hint=reply.get("hint"))
        answer = reply["answer"]
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise AgentError(
            f"what listens on {path} is no agent of this version",
            hint="check `socket` under [control] in agent.toml",
        ) from exc
    if not isinstance(answer, dict):
        raise AgentError(f"what listens on {path} is no agent of this version")
    return answer


def _who_may(path: Path) -> str:
    try:
        group = grp.getgrgid(path.stat().st_gid).gr_name
    except (OSError, KeyError):
        return "ask as root, or as a member of the group of its folder"
    return f"ask as root, or as a member of the group {group} (a new member logs in anew first)"
