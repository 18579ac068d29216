"""A TCP relay on loopback that does to a connection what modems, proxies and attackers do."""

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Relay:
    """Passes bytes on between clients and one port, until told otherwise. A context manager.

    Attributes:
        silent: Takes bytes and passes none on; nobody is told: a half-open connection.
        connects: How many clients came.
        upstream: What clients sent so far.
    """

    def __init__(
        self,
        target: int,
        *,
        host: str = "127.0.0.1",
        greet: Callable[[socket.socket], int | None] | None = None,
        first: Callable[[bytes], bytes | None] | None = None,
    ) -> None:
        """Listen at once.

        Args:
            target: Port on loopback.
            host: Address to listen on.
            greet: Speaks with a client first; returns the port to go to, or None to hang up.
            first: Sees what a client sends first; an answer ends the connection with it.
        """
        self.silent = False
        self.connects = 0
        self.upstream = b""
        self._target = target
        self._greet = greet
        self._first = first
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def cut(self) -> None:
        """End all connections."""
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connects += 1
                self._sockets.append(client)
                self._start(self._serve, client)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            target = self._target if self._greet is None else self._greet(client)
            if target is None:
                return
            if self._first is not None:
                data = client.recv(65_536)
                answer = self._first(data)
                if answer is not None:
                    client.sendall(answer)
                    return
            else:
                data = b""
            with socket.create_connection(("127.0.0.1", target)) as server:
                self._sockets.append(server)
                self.upstream += data
                server.sendall(data)
                self._start(self._pump, server, client)
                self._pump(client, server, is_up=True)

    def _pump(self, source: socket.socket, sink: socket.socket, *, is_up: bool = False) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if is_up:
                    self.upstream += data
                if not self.silent:
                    sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
