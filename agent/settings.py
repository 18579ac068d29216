"""Sections of agent.toml → the settings of network lane and store.

Rules:
 * Only files of keys and certificates are read; nothing is opened or connected.
"""

import ssl

from agent.config import Config
from agent.config import Uplink as UplinkSection
from agent.edge.keys import certificate_end_s, client_tls, load_secret
from agent.edge.store import ClassLimit, SpoolLimits
from agent.edge.uplink import Proxy, TlsSource, UplinkConfig
from agent.errors import ConfigError


def spool_limits(config: Config) -> SpoolLimits:
    """Return what the spool keeps, as the configuration says."""
    spool = config.spool
    return SpoolLimits(
        max_bytes=spool.max_bytes,
        max_age_s=spool.max_age_s,
        min_free_bytes=spool.min_free_bytes,
        classes={
            name: ClassLimit(spool.class_max_bytes.get(name), spool.class_max_age_s.get(name))
            for name in spool.class_max_bytes.keys() | spool.class_max_age_s.keys()
        },
        evict_first=spool.evict_first,
    )


def uplink_config(config: Config) -> UplinkConfig:
    """Return how the broker is reached, as the configuration says.

    Raises:
        AgentError: A file or setting of the section cannot be used.
    """
    uplink = config.uplink
    return UplinkConfig(
        host=uplink.host,
        port=uplink.port,
        vehicle=config.vehicle.id,
        client_id=config.vehicle.id,
        tls=None if uplink.plaintext_loopback else _tls(uplink),
        keepalive_s=uplink.keepalive_s,
        window=uplink.window,
        max_rate_per_s=uplink.max_rate_per_s,
        min_backoff_s=uplink.min_backoff_s,
        max_backoff_s=uplink.max_backoff_s,
        plaintext_loopback=uplink.plaintext_loopback,
        proxy=_proxy(uplink),
        redirects=uplink.redirects,
        allow_mqtt_3_1_1=uplink.allow_mqtt_3_1_1,
        reconnect_for_new_certificate=uplink.reconnect_for_new_certificate,
        when=uplink.when,
    )


def _tls(uplink: UplinkSection) -> TlsSource:
    ca, certificate, private_key = uplink.ca, uplink.certificate, uplink.private_key
    if ca is None or certificate is None or private_key is None:
        raise ConfigError(
            "uplink: ca, certificate and private_key are needed for TLS",
            hint="name the three files; plaintext is for loopback only, with "
            "plaintext_loopback = true",
        )

    def make() -> tuple[ssl.SSLContext, int]:
        context = client_tls(
            ca=ca,
            certificate=certificate,
            private_key=private_key,
            allow_tls_1_2=uplink.allow_tls_1_2,
            alpn=uplink.alpn,
        )
        return context, certificate_end_s(certificate)

    return TlsSource(make, files=(ca, certificate, private_key))


def _proxy(uplink: UplinkSection) -> Proxy | None:
    if uplink.proxy is None:
        return None
    host, _, port = uplink.proxy.removeprefix("http://").partition(":")
    secret = uplink.proxy_credentials
    return Proxy(host, int(port), None if secret is None else load_secret(secret))
