"""MQTT 5 over TLS: envelopes out, policies in, behind a narrow interface."""

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
    "Refused",
    "Uplink",
    "UplinkConfig",
    "UplinkEvent",
]
