"""MQTT over TLS: envelopes out, policies in, behind a narrow interface."""

from agent.edge.uplink.dial import Proxy
from agent.edge.uplink.tls import TlsSource
from agent.edge.uplink.uplink import Uplink
from agent.edge.uplink.value import (
    Connected,
    Delivered,
    Disconnected,
    PolicyArrived,
    PolicyToken,
    Refused,
    UplinkConfig,
    UplinkEvent,
)

__all__ = [
    "Connected",
    "Delivered",
    "Disconnected",
    "PolicyArrived",
    "PolicyToken",
    "Proxy",
    "Refused",
    "TlsSource",
    "Uplink",
    "UplinkConfig",
    "UplinkEvent",
]
