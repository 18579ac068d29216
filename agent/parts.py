"""What the files of a configuration amount to; nothing is opened but them.

Rules:
 * Every file is looked at, and all that is wrong is told at once: whoever installs an agent mends
   it in one go.
 * What comes out is complete: no half of a vehicle is ever started.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from agent.config import Bus, Config
from agent.core.binding import Binding, bind, merge
from agent.core.catalogue import Catalogue
from agent.core.cose import DeviceKey
from agent.core.jws import Trust
from agent.edge.files import load_catalogue, load_dbc, load_mapping, load_trust
from agent.edge.keys import client_tls, load_device_key
from agent.edge.uplink import UplinkConfig
from agent.errors import AgentError, ConfigError
from agent.resources import shipped

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Parts:
    """What the files of a configuration amount to.

    Attributes:
        warnings: Sentences for the user: repairs of DBC files, unusable mapping entries.
    """

    catalogue: Catalogue
    binding: Binding
    named_buses: tuple[str, ...]
    trust: Trust
    device: DeviceKey
    uplink: UplinkConfig
    warnings: tuple[str, ...]


class _Faults:
    """Collects what cannot be used."""

    def __init__(self) -> None:
        self.found: list[AgentError] = []

    def keep(self, load: Callable[[], _T]) -> _T | None:
        """Return what was loaded, or None when it cannot be used."""
        try:
            return load()
        except AgentError as exc:
            self.found.append(exc)
            return None

    def all(self) -> AgentError:
        """Return the only fault, or one that tells them all."""
        if len(self.found) == 1:
            return self.found[0]
        told = list(dict.fromkeys(fault.message for fault in self.found))
        hints = list(dict.fromkeys(fault.hint for fault in self.found if fault.hint))
        return ConfigError(
            f"{len(told)} things cannot be used: {'; '.join(told)}", hint="; ".join(hints)
        )


def load_parts(config: Config) -> Parts:
    """Read every file that the configuration names.

    Raises:
        AgentError: A file cannot be used; where there are several, all of them in one message.
    """
    faults = _Faults()
    catalogue = faults.keep(
        lambda: load_catalogue(config.vehicle.catalogue or shipped("config/catalogue.json"))
    )
    buses = [_bus(bus, catalogue, faults) for bus in config.bus]
    device = faults.keep(lambda: load_device_key(config.keys.device))
    trust = faults.keep(lambda: load_trust(config.vehicle.trust))
    uplink = faults.keep(lambda: _uplink_config(config))
    if catalogue is None or device is None or trust is None or uplink is None or faults.found:
        raise faults.all()
    binding = merge([binding for binding, _ in buses if binding is not None])
    repairs = [line for _, lines in buses for line in lines]
    return Parts(
        catalogue=catalogue,
        binding=binding,
        named_buses=tuple(bus.name for bus in config.bus),
        trust=trust,
        device=device,
        uplink=uplink,
        warnings=tuple(dict.fromkeys([*repairs, *binding.warnings])),
    )


def _bus(
    bus: Bus, catalogue: Catalogue | None, faults: _Faults
) -> tuple[Binding | None, list[str]]:
    """Return what a bus can give, if its files can be used, and what had to be repaired."""
    dbcs = [faults.keep(partial(load_dbc, path)) for path in bus.dbc]
    mapping = faults.keep(lambda: load_mapping(bus.mapping))
    usable = [dbc for dbc in dbcs if dbc is not None]
    repairs = [f"{dbc.name}: {line}" for dbc in usable for line in dbc.told()]
    if catalogue is None or mapping is None or len(usable) < len(dbcs):
        return None, repairs
    return faults.keep(lambda: bind(mapping, usable, catalogue, bus=bus.name)), repairs


def _uplink_config(config: Config) -> UplinkConfig:
    uplink = config.uplink
    tls = None
    if not uplink.plaintext_loopback:
        if uplink.ca is None or uplink.certificate is None or uplink.private_key is None:
            raise ConfigError(
                "uplink: ca, certificate and private_key are needed for TLS",
                hint="name the three files; plaintext is for loopback only, with "
                "plaintext_loopback = true",
            )
        tls = client_tls(
            ca=uplink.ca,
            certificate=uplink.certificate,
            private_key=uplink.private_key,
            allow_tls_1_2=uplink.allow_tls_1_2,
        )
    return UplinkConfig(
        host=uplink.host,
        port=uplink.port,
        vehicle=config.vehicle.id,
        client_id=config.vehicle.id,
        tls=tls,
        keepalive_s=uplink.keepalive_s,
        window=uplink.window,
        min_backoff_s=uplink.min_backoff_s,
        max_backoff_s=uplink.max_backoff_s,
        plaintext_loopback=uplink.plaintext_loopback,
    )
