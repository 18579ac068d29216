import ssl
from typing import Any

import pytest

from agent.edge.uplink import Uplink, UplinkConfig
from agent.errors import ConfigError


def checked_context() -> ssl.SSLContext:
    """What Python makes by default checks certificate and name; its least version varies."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def config(**other: Any) -> UplinkConfig:
    about = {
        "host": "broker.example",
        "port": 8883,
        "vehicle": "veh-1",
        "client_id": "veh-1",
        "tls": checked_context(),
    }
    return UplinkConfig(**(about | other))


def test_a_checked_context_is_taken() -> None:
    """One that checks certificate and name, from TLS 1.3."""
    assert config().tls is not None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1"])
def test_plaintext_goes_to_loopback_when_the_configuration_says_so(host: str) -> None:
    """For a broker on the board itself."""
    assert config(host=host, tls=None, plaintext_loopback=True).tls is None


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"tls": None}, "no TLS context"),
        ({"tls": None, "host": "127.0.0.1"}, "no TLS context"),
        ({"tls": None, "plaintext_loopback": True}, "expected an address on loopback"),
        ({"tls": None, "plaintext_loopback": True, "host": "localhost"}, "on loopback"),
        ({"tls": None, "plaintext_loopback": True, "host": "10.0.0.1"}, "on loopback"),
        ({"tls": None, "plaintext_loopback": True, "host": "::"}, "on loopback"),
        ({"vehicle": "veh/1"}, "vehicle 'veh/1'"),
        ({"vehicle": "+"}, "expected 1 to 64 characters"),
        ({"vehicle": ""}, "expected 1 to 64 characters"),
        ({"vehicle": "v" * 65}, "expected 1 to 64 characters"),
        ({"vehicle": "veh\n"}, "expected 1 to 64 characters"),
        ({"client_id": "#"}, "client id '#'"),
        ({"host": ""}, "no host"),
        ({"window": 0}, "must be above zero"),
        ({"keepalive_s": 0}, "must be above zero"),
        ({"max_rate_per_s": 0.0}, "must be above zero"),
        ({"min_backoff_s": 0.0}, "expected 0 < least <= most"),
        ({"min_backoff_s": 9.0, "max_backoff_s": 8.0}, "expected 0 < least <= most"),
    ],
)
def test_what_is_not_safe_or_makes_no_sense_is_refused(other: dict[str, Any], message: str) -> None:
    """Before anything is connected."""
    with pytest.raises(ConfigError, match=message):
        config(**other)


def test_a_context_that_takes_any_broker_is_refused() -> None:
    """Whoever made it."""
    nameless = ssl.create_default_context()
    nameless.check_hostname = False
    blind = ssl.create_default_context()
    blind.check_hostname = False
    blind.verify_mode = ssl.CERT_NONE
    for context in (nameless, blind):
        with pytest.raises(ConfigError, match="accepts any broker"):
            config(tls=context)


def test_a_context_below_tls_1_2_is_refused() -> None:
    """No downgrade, also not by configuration."""
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = ssl.TLSVersion.TLSv1_1

    with pytest.raises(ConfigError, match="TLS from TLSv1_1, expected"):
        config(tls=old)


@pytest.mark.parametrize("other", [{"recipient": "+"}, {"grant_id": "a/b"}, {"recipient": ""}])
def test_an_id_that_cannot_stand_in_a_topic_is_never_published(other: dict[str, str]) -> None:
    """A recipient called `+` would be everybody."""
    uplink = Uplink(config(), on_event=lambda _: None)
    about: dict[str, Any] = {"recipient": "fleet-x", "grant_id": "gr_a"} | other

    with pytest.raises(ConfigError, match="expected 1 to 64 characters"):
        uplink.publish(1, n=1, envelope=b"", expiry_s=1, **about)
    uplink.close()
