"""How the uplink is configured, and what it tells the agent lane.

Rules:
 * Never plaintext, unless the broker is on loopback and the configuration says so in so many words.
 * A TLS context that would accept a stranger (no certificate demanded, no name checked, below
   TLS 1.2) is refused here, whoever made it.
 * Ids become parts of topics, so nothing but their own alphabet gets through.
"""

import ipaddress
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.edge.uplink.dial import Proxy
from agent.edge.uplink.tls import TlsSource, check_context
from agent.errors import ConfigError

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class UplinkConfig:
    """Where the broker is, who we are, how patient we are.

    Attributes:
        host: Name or address; with TLS the broker's certificate must carry it.
        vehicle: The vehicle's pseudonym: first part of every topic, and the common name of its
            certificate.
        client_id: MQTT client identifier; the broker keeps our session under it.
        tls: Context with our CA, our certificate and the check of the name, or what makes one anew
            when its files change; None: plaintext.
        keepalive_s: Longest silence towards the broker.
        window: Most envelopes without an answer; the broker's Receive Maximum lowers it.
        max_rate_per_s: Most envelopes a second: a backlog must not overrun the queue in which the
            broker keeps messages for a recipient.
        min_backoff_s: Upper bound of the first wait between two attempts; doubled each time.
        max_backoff_s: Upper bound of all waits.
        session_expiry_s: How long the broker keeps our session, and policies for us, without us.
        plaintext_loopback: Allows `tls` to be None where the broker is on loopback.
        proxy: What leads to the broker, or None.
        redirects: Other brokers, `host` or `host:port`, that this one may send us to.
        allow_mqtt_3_1_1: Speak 3.1.1 with a broker that does not speak 5.
        reconnect_for_new_certificate: Do not wait for the next connection to use it.
        when: Class of scopes -> interfaces over which its envelopes may be sent.

    Raises:
        ConfigError: A combination that is not safe or makes no sense.
    """

    host: str
    port: int
    vehicle: str
    client_id: str
    tls: ssl.SSLContext | TlsSource | None
    keepalive_s: int = 14
    window: int = 20
    max_rate_per_s: float = 50.0
    min_backoff_s: float = 1.0
    max_backoff_s: float = 300.0
    session_expiry_s: int = 7 * 86_400
    plaintext_loopback: bool = False
    proxy: Proxy | None = None
    redirects: tuple[str, ...] = ()
    allow_mqtt_3_1_1: bool = True
    reconnect_for_new_certificate: bool = False
    when: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, found in (("vehicle", self.vehicle), ("client id", self.client_id)):
            check_id(what, found)
        if self.tls is None:
            self._check_plaintext()
        elif isinstance(self.tls, ssl.SSLContext):
            check_context(self.tls)
        if not self.host:
            raise ConfigError("the uplink has no host, expected a name or an address")
        if self.window < 1 or self.keepalive_s < 1 or self.max_rate_per_s <= 0:
            raise ConfigError("window, keepalive and rate of the uplink must be above zero")
        if not 0 < self.min_backoff_s <= self.max_backoff_s:
            raise ConfigError(
                f"backoff of {self.min_backoff_s} s to {self.max_backoff_s} s,"
                " expected 0 < least <= most"
            )

    def _check_plaintext(self) -> None:
        if self.proxy is not None:
            raise ConfigError(
                "plaintext through a proxy, expected TLS", hint="drop the proxy, or use TLS"
            )
        if not self.plaintext_loopback:
            raise ConfigError(
                "the uplink has no TLS context, expected one",
                hint="name ca, certificate and private_key of the uplink",
            )
        try:
            on_loopback = ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # A name: whoever answers for it could move it off this machine.
            on_loopback = False
        if not on_loopback:
            raise ConfigError(
                f"plaintext to {self.host}, expected an address on loopback",
                hint="use 127.0.0.1 or ::1, or TLS",
            )


@dataclass(frozen=True, slots=True)
class PolicyToken:
    """Names one policy message, to acknowledge it on the connection that it came by."""

    connection: int
    mid: int


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker took us, and the subscription to the policy stands."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection has ended, or none came about; another attempt follows.

    Attributes:
        reason: A sentence without secrets.
        tls: A word for what TLS found: a certificate of either side, or the protocol; else "".
        auth: A word for why the broker does not want us though it knows who we are; else "".
    """

    reason: str
    tls: str = ""
    auth: str = ""


@dataclass(frozen=True, slots=True)
class PolicyArrived:
    """Bytes on the policy topic, as yet nobody's word for anything.

    Attributes:
        token: To be given to `Uplink.acknowledge` once the outcome is on disk; until then the
            broker will bring the message again on the next connection.
    """

    data: bytes
    token: PolicyToken


@dataclass(frozen=True, slots=True)
class Delivered:
    """The broker has taken over an envelope, or a record of a gap.

    Attributes:
        row_id: As it was given to `publish` or `publish_gap`.
        heard: False: at that moment nobody subscribed to it (MQTT 5 reason code 0x10).
    """

    row_id: int
    heard: bool = True


@dataclass(frozen=True, slots=True)
class Refused:
    """The broker does not take an envelope; it is not offered again for a while.

    Attributes:
        reason_code: MQTT 5 section 2.4, 0x80 and above.
    """

    row_id: int
    reason_code: int


UplinkEvent = Connected | Disconnected | PolicyArrived | Delivered | Refused


def check_id(what: str, found: str) -> None:
    """Let an id pass that can stand in a topic.

    Raises:
        ConfigError: It could not.
    """
    if not _ID.fullmatch(found):
        raise ConfigError(f"{what} {found!r}, expected 1 to 64 characters of A-Z a-z 0-9 _ -")
