"""Many frames of a raw CAN socket by one system call, with the kernel's time stamps.

recvmmsg(2) fills three arrays; row i of each belongs to frame i:

    payloads  72 bytes   struct can_frame or canfd_frame: canid_t, length, 3 bytes, data
    controls  64 bytes   SCM_TIMESTAMPNS, and behind it SO_RXQ_OVFL once frames were dropped
    headers              struct mmsghdr: where the other two are, and how much came

Rules:
 * The first two arrays are those of a ring, which outlives the process: a frame that has left the
   socket is in the ring, whenever the process is killed.
 * The arrays are made once; a call allocates nothing but what it returns.
 * A frame's time is the kernel's, rounded down to whole µs: that is what candump writes, so a log
   that was captured at the same time holds the same times.
 * A frame's data are as long as the frame says. A remote frame has none.
 * Error frames come apart from frames.

Budget: 2 µs a frame on a busy bus. Measured on user-mode-linux on an x86 VM, Python 3.11: 1.7 µs,
where a loop of recvmsg takes 68 µs and python-can 181 µs; on Debian's stock kernel, emulated: 7, 18
and 110 µs. Why ctypes: Python's socket module has no recvmmsg (docs/adr).
"""

import ctypes
import os
import socket
import struct
from dataclasses import dataclass

from agent.core.bushealth import ErrorFrame
from agent.core.model import CAN_ERR_FLAG, CAN_RTR_FLAG, NS_PER_S, NS_PER_US, Frame, Place
from agent.edge.socketcan.ring import CMSG, CONTROL_BYTES, MAX_FRAMES, PAYLOAD_BYTES, FrameRing

SO_TIMESTAMPNS = 64  # asm-generic/socket.h: SO_TIMESTAMPNS_NEW, 64-bit time on 32-bit boards too.
SO_RXQ_OVFL = 40  # asm-generic/socket.h

_SPECIAL = CAN_RTR_FLAG | CAN_ERR_FLAG
_PAYLOAD = struct.Struct("=IB3x64s")
_ALIGN = struct.calcsize("@N")
_STAMP = struct.Struct(f"={CMSG.size}xqq{CONTROL_BYTES - CMSG.size - 16}x")
_STAMP_SPACE = CMSG.size + 16
_DROPS = struct.Struct(f"@{CMSG.size}xI")


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("iov", ctypes.c_void_p),
        ("iov_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("head", _Msghdr), ("length", ctypes.c_uint))


_recvmmsg = ctypes.CDLL(None, use_errno=True).recvmmsg
_recvmmsg.argtypes = (
    *(ctypes.c_int, ctypes.c_void_p, ctypes.c_uint),
    *(ctypes.c_int, ctypes.c_void_p),
)


@dataclass(frozen=True, slots=True)
class Received:
    """What one call brought.

    Attributes:
        count: Frames and error frames together.
        place: Behind the last frame.
        drops: The socket's count of frames it had no room for, as of the last frame; None: the
            kernel did not say, so it is zero.
    """

    count: int
    frames: list[Frame]
    errors: list[ErrorFrame]
    place: Place
    drops: int | None


class Receiver:
    """The arrays for one bus. Used by one thread at a time."""

    def __init__(self, ring: FrameRing) -> None:
        """Make the arrays.

        Args:
            ring: Gets every frame that is received.
        """
        self._ring = ring
        self._bus = ring.bus
        payloads, controls = ring.payloads, ring.controls
        payloads_at, controls_at = (
            ctypes.addressof((ctypes.c_char * len(array)).from_buffer(array))
            for array in (payloads, controls)
        )
        self._iovecs = (_Iovec * MAX_FRAMES)()
        self._headers = (_Mmsghdr * MAX_FRAMES)()
        for i in range(MAX_FRAMES):
            self._iovecs[i] = _Iovec(payloads_at + i * PAYLOAD_BYTES, PAYLOAD_BYTES)
            head = self._headers[i].head
            head.iov = ctypes.addressof(self._iovecs) + i * ctypes.sizeof(_Iovec)
            head.iov_count = 1
            head.control = controls_at + i * CONTROL_BYTES
            head.control_length = CONTROL_BYTES
        self._payloads = payloads
        self._controls = controls
        self._header_bytes = memoryview(self._headers).cast("B")
        # The kernel writes into the headers what came; before the next call they are as new.
        self._fresh_headers = bytes(self._header_bytes)

    def receive(self, sock: socket.socket) -> Received:
        """Return what lies in a socket, at most `MAX_FRAMES`, without waiting.

        Raises:
            BlockingIOError: Nothing lies there.
            OSError: The interface went down (ENETDOWN) or away (ENODEV).
        """
        count = _recvmmsg(
            sock.fileno(), ctypes.addressof(self._headers), MAX_FRAMES, socket.MSG_DONTWAIT, None
        )
        if count < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        drops = self._drops(count - 1)
        used = count * ctypes.sizeof(_Mmsghdr)
        self._header_bytes[:used] = self._fresh_headers[:used]
        bus = self._bus
        rows = zip(
            _PAYLOAD.iter_unpack(self._payloads[: count * PAYLOAD_BYTES]),
            _STAMP.iter_unpack(self._controls[: count * CONTROL_BYTES]),
            strict=True,
        )
        # Hot path: see the budget above.
        frames = [
            (seconds * NS_PER_S + ns - ns % NS_PER_US, bus, can_id, data[:length])
            for (can_id, length, data), (seconds, ns) in rows
            if not can_id & _SPECIAL
        ]
        if len(frames) == count:
            self._ring.keep(count)
            return Received(count, frames, [], self._ring.place, drops)
        return self._with_special(count, drops)

    def _with_special(self, count: int, drops: int | None) -> Received:
        """Return the same where remote or error frames are among them."""
        frames: list[Frame] = []
        errors: list[ErrorFrame] = []
        rows: list[int] = []
        for i in range(count):
            can_id, length, data = _PAYLOAD.unpack_from(self._payloads, i * PAYLOAD_BYTES)
            seconds, ns = _STAMP.unpack_from(self._controls, i * CONTROL_BYTES)
            t_ns = seconds * NS_PER_S + ns - ns % NS_PER_US
            if can_id & CAN_ERR_FLAG:
                errors.append((t_ns, can_id, data[:length]))
            else:
                rows.append(i)
                frames.append(
                    (t_ns, self._bus, can_id, b"" if can_id & CAN_RTR_FLAG else data[:length])
                )
        self._ring.keep_rows(rows)
        return Received(count, frames, errors, self._ring.place, drops)

    def _drops(self, row: int) -> int | None:
        """Return the count in a row's control messages; it stands behind the time stamp.

        That order is the kernel's: net/socket.c, __sock_recv_cmsgs.
        """
        if self._headers[row].head.control_length <= _STAMP_SPACE:
            return None
        (drops,) = _DROPS.unpack_from(self._controls, row * CONTROL_BYTES + _STAMP_SPACE)
        return int(drops)
