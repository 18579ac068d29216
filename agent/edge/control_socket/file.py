"""The socket file, and who is behind a connection to it.

Rules:
 * A file that somebody listens on is left alone, and so is what is no socket; a socket file that
   was left behind is replaced.
 * Nobody can connect before the file has its mode and its group.
 * Who a peer is, is what the kernel noted at its connect (SO_PEERCRED, SO_PEERGROUPS): no process
   id is looked up, which another process could have got by then.
"""

import os
import socket
import stat
import struct
from pathlib import Path

from agent.core.permission import Peer
from agent.errors import AgentError, ConfigError

MODE = 0o660
BACKLOG = 128  # Connections that the kernel keeps; each is taken at once, or refused.

_SO_PEERGROUPS = 59  # linux/include/uapi/asm-generic/socket.h, on amd64, arm64, arm and riscv.
_MAX_GROUPS = 256  # What Python's getsockopt can hold; who is in more is in none (deny).
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


def listen(path: Path, *, group_id: int | None) -> socket.socket:
    """Make the socket file and return the listening socket, which does not block.

    Raises:
        AgentError: Somebody listens there already.
        ConfigError: The file cannot be made there, or not for that group.
    """
    _clear_the_way(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(os.fspath(path))
        # Nobody can connect before `listen`, so who comes between these lines is not let in.
        path.chmod(MODE)
        # The hardened unit forbids chown (@privileged); mostly there is nothing to change.
        if group_id is not None and path.stat().st_gid != group_id:
            os.chown(path, -1, group_id)
        listener.listen(BACKLOG)
    except OSError as exc:
        listener.close()
        raise ConfigError(
            f"the control socket {path} cannot be made: {exc.strerror or exc}", hint=_advice(exc)
        ) from exc
    return listener


def _advice(exc: OSError) -> str:
    if isinstance(exc, FileNotFoundError):
        return "its folder is not there: RuntimeDirectory= of the unit makes it"
    if isinstance(exc, PermissionError):
        return "its folder must be the agent's, and the agent a member of the socket's group"
    return "name another path as `socket` under [control]; at most 107 bytes are possible"


def _clear_the_way(path: Path) -> None:
    """Remove a socket file that was left behind.

    Raises:
        AgentError: Somebody listens on it.
        ConfigError: It is no socket, and not ours to remove.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(
                f"{path} is there and is no socket", hint="name another path, or move it away"
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(os.fspath(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
    except BlockingIOError:
        raise _is_taken(path) from None  # Its queue of connections is full.
    except OSError as exc:
        raise ConfigError(
            f"the control socket {path} cannot be looked at: {exc.strerror or exc}",
            hint=_advice(exc),
        ) from exc
    else:
        raise _is_taken(path)


def _is_taken(path: Path) -> AgentError:
    return AgentError(
        f"another process listens on the control socket {path}",
        hint="another agent runs already; give each its own socket under [control]",
    )


def peer_of(link: socket.socket) -> Peer:
    """Return who is at the other end of a connection, as the kernel saw it connect."""
    pid, uid, gid = _CREDENTIALS.unpack(
        link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    try:
        raw = link.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MAX_GROUPS)
    except OSError:
        raw = b""  # In more groups than that, or a kernel before 4.13.
    groups = (number for (number,) in struct.iter_unpack("I", raw))
    return Peer(pid=pid, uid=uid, gids=frozenset((gid, *groups)))
