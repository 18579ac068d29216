"""A second handle on a connection's stream, by which any thread ends it at once.

Rules:
 * Closing and shutting down paho's own socket would race with its thread: between the two the
   number of the descriptor may belong to another file. So the handle is a descriptor of its own.
 * It is there as soon as the stream is, also while proxy and TLS are under way.
"""

import socket


class Breaker:
    """Ends a stream. Holding and closing it is the network thread's; breaking it anybody's."""

    def __init__(self) -> None:
        self._handle: socket.socket | None = None

    def hold(self, sock: socket.socket) -> None:
        """Take a handle on a stream, in the place of the one before."""
        handle = socket.socket(fileno=socket.dup(sock.fileno()))
        before, self._handle = self._handle, handle
        if before is not None:
            before.close()

    def trip(self) -> None:
        """End the stream both ways; bytes that the kernel had taken before may still arrive."""
        if self._handle is not None:
            _shut_down(self._handle)

    def close(self) -> None:
        """End the stream and give the handle back; twice is harmless."""
        handle, self._handle = self._handle, None
        if handle is not None:
            _shut_down(handle)
            handle.close()


def _shut_down(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # The other end was faster.
