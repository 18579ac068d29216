"""Over which interface the vehicle talks, and what may not be sent over it.

Rules:
 * The interface is that of the default route, IPv4 before IPv6, the lowest metric first, as the
   kernel tells it in /proc/self/net: under the unit /proc/net is out of view (ProcSubset=pid).
 * A class with a condition is sent only over an interface that the condition names; without a
   default route it waits.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

PROC_NET = Path("/proc/self/net")
_UP = 0x0001  # RTF_UP (linux/route.h)
_REJECT = 0x0200  # RTF_REJECT


def default_interface(proc: Path = PROC_NET) -> str | None:
    """Return the interface of the default route, or None without one."""
    found = [*_ipv4(_lines(proc / "route")), *_ipv6(_lines(proc / "ipv6_route"))]
    return min(found)[2] if found else None


def blocked_classes(when: Mapping[str, Sequence[str]], interface: str | None) -> frozenset[str]:
    """Return the classes of which nothing may be sent now.

    Args:
        when: Class -> names of interfaces, `*` and `?` stand for any characters. A class that is
            not here may be sent over any.
        interface: That of the default route.
    """
    return frozenset(
        name
        for name, patterns in when.items()
        if interface is None or not any(fnmatchcase(interface, pattern) for pattern in patterns)
    )


def _lines(path: Path) -> list[list[str]]:
    try:
        return [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    except (OSError, UnicodeDecodeError):
        return []


def _ipv4(lines: list[list[str]]) -> list[tuple[int, int, str]]:
    # Iface Destination Gateway Flags RefCnt Use Metric Mask ...
    return [
        (4, int(words[6]), words[0])
        for words in lines[1:]
        if len(words) >= 8 and words[1] == words[7] == "00000000" and _is_used(words[3])
    ]


def _ipv6(lines: list[list[str]]) -> list[tuple[int, int, str]]:
    # Destination, its length, source, its length, next hop, metric, refcnt, use, flags, interface.
    return [
        (6, int(words[5], 16), words[9])
        for words in lines
        if len(words) == 10 and words[0] == "0" * 32 and words[1] == "00"
        if _is_used(words[8]) and words[9] != "lo"
    ]


def _is_used(flags: str) -> bool:
    return int(flags, 16) & (_UP | _REJECT) == _UP
