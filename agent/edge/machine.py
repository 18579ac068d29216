"""The machine that the agent runs on: what can be seen of it without starting anything.

Rules:
 * Only looked at: nothing is opened for writing, and nothing is sent but a TLS handshake, without
   an MQTT packet behind it, so no session of a running agent is disturbed.
 * What cannot be seen is None, never a guess.
"""

import os
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

from agent.errors import UplinkError

BROKER_S = 5.0
ALERT_S = 1.0  # For a broker to say that it does not want our certificate (RFC 8446 section 4.4.2).

_ARPHRD_CAN = 280  # linux/if_arp.h
_IFF_UP = 1  # linux/if.h
_MOUNTS = Path("/proc/self/mounts")
_ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder as it is.

    Attributes:
        mode: Permission bits.
        file_system: As in /proc/mounts, such as `ext4`; None where it cannot be seen.
        free_bytes: For whoever is not root.
    """

    uid: int
    mode: int
    file_system: str | None
    free_bytes: int


def look_at_folder(path: Path) -> Folder | None:
    """Return how a folder is, or None where there is none that we may look at."""
    try:
        found = path.stat()
        space = os.statvfs(path)
    except OSError:
        return None
    if not stat.S_ISDIR(found.st_mode):
        return None
    return Folder(
        found.st_uid,
        stat.S_IMODE(found.st_mode),
        _file_system(path.resolve()),
        space.f_bavail * space.f_frsize,
    )


def look_at_interface(name: str, *, root: Path = _ROOT) -> bool | None:
    """Return whether a CAN interface is up; None: there is none of this name."""
    folder = root / "sys/class/net" / name
    try:
        kind = int((folder / "type").read_text(encoding="ascii"))
        flags = int((folder / "flags").read_text(encoding="ascii"), 16)
    except (OSError, ValueError):
        return None
    return bool(flags & _IFF_UP) if kind == _ARPHRD_CAN else None


def has_swap(*, root: Path = _ROOT) -> bool | None:
    """Return whether memory may be written to a disk."""
    try:
        text = (root / "proc/swaps").read_text(encoding="ascii", errors="replace")
        return len(text.splitlines()) > 1
    except OSError:
        return None


def shake_hands(host: str, port: int, tls: ssl.SSLContext | None) -> str:
    """Connect to a broker, with TLS where there is a context, and hang up; return the TLS version.

    Raises:
        UplinkError: It cannot be reached, or one side does not take the other's certificate.
    """
    try:
        with socket.create_connection((host, port), timeout=BROKER_S) as plain:
            if tls is None:
                return "no TLS"
            with tls.wrap_socket(plain, server_hostname=host) as link:
                version = link.version() or "TLS"
                # With TLS 1.3 our own certificate is judged only now.
                link.settimeout(ALERT_S)
                try:
                    link.recv(1)
                except TimeoutError:
                    return version
                raise UplinkError(f"the broker at {host}:{port} hung up after the handshake")
    except ssl.SSLCertVerificationError as exc:
        raise UplinkError(
            f"the certificate of the broker at {host}:{port} is not trusted: {exc.verify_message}",
            hint="`ca` must be the broker's authority, and `host` the name in its certificate",
        ) from exc
    except ssl.SSLError as exc:
        raise UplinkError(
            f"no TLS with the broker at {host}:{port}: {exc.reason or 'refused'}",
            hint="does the broker trust our certificate's authority, and is it still valid?",
        ) from exc
    except OSError as exc:
        raise UplinkError(
            f"the broker at {host}:{port} cannot be reached: {exc.strerror or exc}"
        ) from exc


def _file_system(path: Path) -> str | None:
    """Return the kind of the file system that a path lies on: the longest mount point wins."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    best, kind = -1, None
    for line in lines:
        _, mount, found, *_ = line.split(" ")
        at = Path(mount.replace("\\040", " "))
        if path.is_relative_to(at) and len(at.parts) >= best:
            best, kind = len(at.parts), found
    return kind
