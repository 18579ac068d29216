"""Where the next connection goes, and how it speaks: what earlier ones have taught.

Rules:
 * A broker may send us to another server only if the configuration names that one. It is used until
   it fails; then the configured one counts again.
 * A broker that refuses MQTT 5 is spoken to in 3.1.1, until the process ends; a process that starts
   anew tries 5 again.
"""

import logging
import ssl
import time

from agent.edge.uplink.dial import ConnectionEnded
from agent.edge.uplink.tls import TlsSource
from agent.edge.uplink.value import UplinkConfig

MAX_HOPS = 3  # Redirections in a row that are followed without a pause.
WARN_DAYS = 30
DAY_S = 86_400

_log = logging.getLogger(__name__)


class Server:
    """The broker as it is known now. Used by the network thread only, but for `certificate_ends_s`.

    Attributes:
        speaks_5: Whether the next connection speaks MQTT 5.
    """

    def __init__(self, config: UplinkConfig) -> None:
        self._config = config
        tls = config.tls
        self._tls = TlsSource.fixed(tls) if isinstance(tls, ssl.SSLContext) else tls
        self._home = (config.host, config.port)
        self._target = self._home
        self._hops = 0
        self._warned_s = 0.0
        self._fault: str | None = None
        self.speaks_5 = True

    @property
    def target(self) -> tuple[str, int]:
        """Host and port of the next connection."""
        return self._target

    @property
    def certificate_ends_s(self) -> int | None:
        """When our certificate ends, s since the epoch; None: not known, or no TLS."""
        return (self._tls.ends_s or None) if self._tls is not None else None

    def tls(self) -> ssl.SSLContext | None:
        """Return the newest TLS context; says in the log what is wrong with our certificate."""
        if self._tls is None:
            return None
        context = self._tls.context()
        if self._tls.fault is not None and self._tls.fault != self._fault:
            _log.warning("new certificate unusable", extra={"error": self._tls.fault})
        self._fault = self._tls.fault
        self.look_at_certificate()
        return context

    def look_at_certificate(self) -> None:
        """Say in the log, once a day, that our certificate ends soon."""
        ends_s, now_s = self.certificate_ends_s, time.time()
        if ends_s is None or now_s - self._warned_s < DAY_S:
            return
        days = (ends_s - now_s) / DAY_S
        if days < WARN_DAYS:
            self._warned_s = now_s
            _log.warning("certificate ends soon", extra={"days": int(days)})

    def has_new_certificate(self) -> bool:
        """Whether a connection with another certificate is to replace this one now."""
        return (
            self._config.reconnect_for_new_certificate
            and self._tls is not None
            and self._tls.has_changed()
        )

    def learn(self, ended: ConnectionEnded, *, came_up: bool) -> bool:
        """Take note of an end; return whether the next attempt needs no pause.

        Args:
            ended: Why.
            came_up: The broker had taken us before.
        """
        if came_up:
            self._hops = 0
        if ended.is_too_new and self._config.allow_mqtt_3_1_1:
            self.speaks_5 = False
            _log.warning("broker speaks only MQTT 3.1.1")
            return True
        named = None if ended.server is None else self._allowed(ended.server)
        if named is not None:
            self._target = named
            self._hops += 1
            _log.info("broker sends us to another", extra={"server": f"{named[0]}:{named[1]}"})
            return self._hops <= MAX_HOPS
        if ended.server is not None:
            _log.warning("broker sends us to one that is not allowed")
        if not came_up:
            self._target, self._hops = self._home, 0
        return False

    def _allowed(self, reference: str) -> tuple[str, int] | None:
        """Return the first server of a Server Reference (MQTT 5 section 4.13) that we may go to."""
        allowed = {_parsed(name, self._config.port) for name in self._config.redirects}
        allowed.add(self._home)
        for name in reference.split(" "):
            server = _parsed(name, self._config.port)
            if server in allowed:
                return server
        return None


def _parsed(name: str, port: int) -> tuple[str, int] | None:
    """Return host and port of `host`, `host:port` or `[address]:port`."""
    host, colon, tail = name.rpartition(":")
    if not colon or tail.endswith("]"):
        host, tail = name, str(port)
    host = host.removeprefix("[").removesuffix("]")
    return (host, int(tail)) if host and tail.isascii() and tail.isdigit() else None
