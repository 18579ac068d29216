"""A byte stream to the broker: names, addresses, the proxy, TLS.

Rules:
 * Every address of a name is tried, IPv6 and IPv4 in the system's order, each for its share of the
   time: a dead address does not hide a living one.
 * TLS is with the broker, also through a proxy, which sees names and ciphertext.
 * Unacknowledged bytes end the connection after `silence_s`: the kernel's own limit is a quarter of
   an hour.
 * No byte of MQTT leaves before the broker's certificate was accepted.
"""

import base64
import re
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.errors import UplinkError

EACH_S = 10.0  # TCP, proxy and TLS of one address.
TOTAL_S = 30.0  # All addresses of a name.
MAX_ANSWER_BYTES = 8 * 1024  # Header of a proxy's answer.

# What OpenSSL finds wrong with a certificate (openssl/x509_vfy.h, X509_V_ERR_*).
_CERTIFICATE = {
    9: "not-yet-valid",
    10: "expired",
    **dict.fromkeys((18, 19, 20, 21), "unknown-authority"),
    23: "revoked",
    **dict.fromkeys((62, 64), "wrong-name"),
}
_ALERT = re.compile(r"(?:^|[ _])alert[ _]([a-z]+(?:[ _][a-z]+){0,3})$", re.IGNORECASE)


class ConnectionEnded(UplinkError):  # noqa: N818 - an end is no error
    """The connection is over, or did not come about.

    Attributes:
        tls: A word for what TLS found: a certificate of either side, or the protocol; else "".
        auth: A word for why the broker does not want us though it knows who we are; else "".
        server: Where the broker sends us instead, or None.
        is_too_new: The broker does not speak the version of MQTT that we used.
    """

    def __init__(
        self,
        message: str,
        *,
        tls: str = "",
        auth: str = "",
        server: str | None = None,
        too_new: bool = False,
    ) -> None:
        super().__init__(message)
        self.tls = tls
        self.auth = auth
        self.server = server
        self.is_too_new = too_new


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy that takes CONNECT (RFC 9110 section 9.3.6).

    Attributes:
        credentials: `user:password` for Basic authentication, or None. The proxy and whoever
            listens on the way to it can read them.
    """

    host: str
    port: int
    credentials: str | None = field(default=None, repr=False)


def dial(  # noqa: PLR0913 - where to and how, by keyword
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None,
    proxy: Proxy | None,
    silence_s: float,
    on_open: Callable[[socket.socket], None],
) -> socket.socket:
    """Return an open stream to the broker, with TLS where a context is given.

    Args:
        host: Name or address; with TLS the broker's certificate must carry it.
        port: Of the broker.
        tls: Checks certificate and name; None: plaintext.
        proxy: Leads to the broker and looks up its name, or None.
        silence_s: How long sent bytes may stay without an answer.
        on_open: Called with each stream before proxy and TLS, so that it can be cut meanwhile.

    Raises:
        ConnectionEnded: With the reason of the last address that was tried.
    """
    first = (host, port) if proxy is None else (proxy.host, proxy.port)
    until_s = time.monotonic() + TOTAL_S
    fault: ConnectionEnded | None = None
    for family, address in _resolve(*first):
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            break
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(min(EACH_S, left_s))
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(silence_s * 1000))
            on_open(sock)
            if proxy is not None:
                _pass(sock, proxy, host, port)
            return sock if tls is None else tls.wrap_socket(sock, server_hostname=host)
        except (OSError, ConnectionEnded) as exc:
            sock.close()
            failed = exc if isinstance(exc, ConnectionEnded) else _told(exc, host, port)
            # What TLS found tells more than that another address was not there.
            fault = fault if fault is not None and fault.tls else failed
        except BaseException:
            sock.close()
            raise
    raise fault or ConnectionEnded(f"the name {first[0]} has no address")


def tls_word(reason: str | None) -> str:
    """Return a word for a reason of OpenSSL: `alert-…` for what the other side said."""
    alert = _ALERT.search(reason or "")
    if alert is None:
        return "protocol"
    return "alert-" + re.sub("[ _]", "-", alert[1]).lower()


def _resolve(host: str, port: int) -> list[tuple[int, tuple[str, int]]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise ConnectionEnded(f"the name {host} cannot be resolved") from exc
    # Socket addresses of IPv6 have four members; all are for `connect` alone.
    return [(int(family), address) for family, _, _, _, address in found]  # type: ignore[misc]


def _pass(sock: socket.socket, proxy: Proxy, host: str, port: int) -> None:
    """Have the proxy lead us to the broker.

    Raises:
        ConnectionEnded: It does not.
        OSError: The link to it broke.
    """
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
    if proxy.credentials is not None:
        word = base64.b64encode(proxy.credentials.encode()).decode()
        request += f"Proxy-Authorization: Basic {word}\r\n"
    sock.sendall(f"{request}\r\n".encode("ascii"))
    place = f"the proxy {proxy.host}:{proxy.port}"
    answer, until_s = b"", time.monotonic() + EACH_S
    # Byte by byte: what follows the header belongs to the broker.
    while not answer.endswith(b"\r\n\r\n"):
        sock.settimeout(max(0.001, until_s - time.monotonic()))  # A byte now and then is no answer.
        more = sock.recv(1)
        if not more or len(answer) >= MAX_ANSWER_BYTES:
            raise ConnectionEnded(f"{place} gave no answer to CONNECT")
        answer += more
    words = answer.split(b"\r\n", 1)[0].split(b" ")
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise ConnectionEnded(f"{place} does not speak HTTP")
    if not 200 <= int(words[1]) < 300:
        raise ConnectionEnded(f"{place} answers {int(words[1])} to CONNECT, expected 200")


def _told(exc: OSError, host: str, port: int) -> ConnectionEnded:
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    match exc:
        case ssl.SSLCertVerificationError():
            return ConnectionEnded(
                f"the certificate of {place} was not accepted: {exc.verify_message}",
                tls=_CERTIFICATE.get(exc.verify_code, "certificate"),
            )
        case ssl.SSLError():
            return ConnectionEnded(
                f"TLS with {place} failed: {exc.reason or type(exc).__name__}",
                tls=tls_word(exc.reason),
            )
        case TimeoutError():
            return ConnectionEnded(f"{place} did not answer within {EACH_S:g} s")
    return ConnectionEnded(f"{place} cannot be reached: {exc.strerror or type(exc).__name__}")
