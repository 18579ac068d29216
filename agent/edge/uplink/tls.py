"""TLS settings that follow their files: a new certificate is used without a restart.

Rules:
 * A context is built anew when one of its files has changed, for the next connection.
 * Files that cannot be used together, such as half of a new pair, change nothing: the last good
   context stays, and the fault is told.
"""

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from agent.errors import AgentError, ConfigError

_Stamp = tuple[tuple[int, int, int] | None, ...]


class TlsSource:
    """Makes and keeps a TLS context. Used by the network thread; reading `ends_s` by any."""

    def __init__(
        self, make: Callable[[], tuple[ssl.SSLContext, int]], *, files: Sequence[Path]
    ) -> None:
        """Build the first context.

        Args:
            make: Reads the files; returns a context, and when our certificate ends, s since the
                epoch.
            files: Whose change asks for a new context.

        Raises:
            AgentError: What `make` raised.
            ConfigError: The context would accept a stranger.
        """
        self._make = make
        self._files = tuple(files)
        self._stamp = self._look()
        self._context, self.ends_s = self._made()
        self.fault: str | None = None

    @classmethod
    def fixed(cls, context: ssl.SSLContext) -> "TlsSource":
        """Return a source of one context, whose certificate's end is not known (0)."""
        return cls(lambda: (context, 0), files=())

    def has_changed(self) -> bool:
        """Whether a file is another than when the context was built."""
        return self._look() != self._stamp

    def context(self) -> ssl.SSLContext:
        """Return the newest context that could be built; `fault` says what is wrong with newer."""
        now = self._look()
        if now != self._stamp:
            self._stamp = now
            try:
                self._context, self.ends_s = self._made()
                self.fault = None
            except AgentError as exc:
                self.fault = exc.message
        return self._context

    def _made(self) -> tuple[ssl.SSLContext, int]:
        context, ends_s = self._make()
        check_context(context)
        return context, ends_s

    def _look(self) -> _Stamp:
        return tuple(_stamp(path) for path in self._files)


def check_context(tls: ssl.SSLContext) -> None:
    """Let a context pass that checks certificate and name, from TLS 1.2.

    Raises:
        ConfigError: It would accept a stranger, or an old protocol.
    """
    if tls.verify_mode is not ssl.CERT_REQUIRED or not tls.check_hostname:
        raise ConfigError("the TLS context accepts any broker, expected its certificate checked")
    if tls.minimum_version < ssl.TLSVersion.TLSv1_2:
        raise ConfigError(f"TLS from {tls.minimum_version.name}, expected TLSv1_3 or TLSv1_2")


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
