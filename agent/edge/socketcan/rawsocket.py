"""A raw CAN socket that only listens: how it is set up, and what can be asked of it.

Rules:
 * The filter is set before the socket is bound: nothing else ever comes in.
 * There is no call that writes to the bus. Own frames would not come back anyway: other programs'
   frames on this machine do.
 * A filter is changed on the open socket. The kernel registers the new one before it takes the old
   one away, and passes a frame that both match once (net/can/raw.c, raw_setsockopt, raw_rcv): a
   frame that both let pass is neither lost nor seen twice.
"""

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Sequence

from agent.core.canfilter import CanFilter
from agent.edge.socketcan.receiver import SO_RXQ_OVFL, SO_TIMESTAMPNS

# What is asked for. The kernel gives twice as much for its own needs, but at most twice
# net.core.rmem_max.
RECEIVE_BUFFER_BYTES = 16 << 20
CAN_RAW_ERR_FILTER = 2  # linux/can/raw.h; Debian's Python lacks the name.
_KIND = (socket.AF_CAN, socket.SOCK_RAW)
_ALL_ERRORS = 0x1FFF_FFFF  # linux/can.h: CAN_ERR_MASK
_SO_MEMINFO = 55  # asm-generic/socket.h
_MEMINFO = struct.Struct("=9I")  # linux/sock_diag.h; the last is SK_MEMINFO_DROPS.
_SIOCGIFFLAGS = 0x8913  # linux/sockios.h
_IFF_UP = 1
_IFREQ = struct.Struct("@16sh22x")  # struct ifreq with ifr_flags
_FILTER = struct.Struct("=II")


def open_raw(channel: str, filters: Sequence[CanFilter]) -> socket.socket:
    """Open a socket on an interface.

    Args:
        channel: The interface, such as can0. It may be down.
        filters: What may pass; not empty.

    Raises:
        OSError: There is no such interface (ENODEV), or no SocketCAN in this kernel.
    """
    sock = socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW)
    try:
        set_up(sock, filters)
        sock.bind((channel,))
    except BaseException:
        sock.close()
        raise
    return sock


def set_up(sock: socket.socket, filters: Sequence[CanFilter]) -> None:
    """Give a socket its filter and every option that reading needs.

    Raises:
        OSError: It is no raw CAN socket.
    """
    set_filters(sock, filters)
    sock.setsockopt(socket.SOL_CAN_RAW, socket.CAN_RAW_FD_FRAMES, 1)
    sock.setsockopt(socket.SOL_CAN_RAW, socket.CAN_RAW_RECV_OWN_MSGS, 0)
    sock.setsockopt(socket.SOL_CAN_RAW, CAN_RAW_ERR_FILTER, struct.pack("=I", _ALL_ERRORS))
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sock.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    sock.setblocking(False)


def set_filters(sock: socket.socket, filters: Sequence[CanFilter]) -> None:
    """Let these pass and nothing else, from now on.

    Raises:
        OSError: The interface is gone, or there are more than `MAX_FILTERS`.
    """
    assert filters, "no filter means no socket"
    packed = b"".join(_FILTER.pack(each.can_id, each.mask) for each in filters)
    sock.setsockopt(socket.SOL_CAN_RAW, socket.CAN_RAW_FILTER, packed)


def take_over(descriptor: int, channel: str, filters: Sequence[CanFilter]) -> socket.socket | None:
    """Return a socket that was kept over a restart, or None if it is not one of this interface.

    Args:
        descriptor: Ours from now on; closed where None is returned.
        channel: The interface that it must be bound to.
        filters: As in `open_raw`; what lies in the socket already came through those of before.
    """
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        os.close(descriptor)  # It is no socket at all.
        return None
    with contextlib.suppress(OSError):
        kind = (sock.family, sock.type)  # The kernel does not tell the protocol of CAN sockets.
        # An interface that was removed leaves a socket that is bound to nothing.
        if kind == _KIND and sock.getsockname() == (channel,):
            set_up(sock, filters)
            return sock
    sock.close()
    return None


def buffer_bytes(sock: socket.socket) -> int:
    """Return how much the kernel keeps for us at the most."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


def dropped(sock: socket.socket) -> int:
    """Return how many frames the socket had no room for, up to now."""
    return int(_MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))[-1])


def is_up(sock: socket.socket, channel: str) -> bool:
    """Tell whether the interface is up; asked of the socket, so AF_NETLINK is not needed.

    Raises:
        OSError: There is no such interface.
    """
    request = _IFREQ.pack(channel.encode(), 0)
    return bool(_IFREQ.unpack(fcntl.ioctl(sock, _SIOCGIFFLAGS, request))[1] & _IFF_UP)
