"""What the files of a configuration amount to; nothing is opened but them.

Rules:
 * Every file is looked at, and all that is wrong is told at once: whoever installs an agent mends
   it in one go.
 * What comes out is complete: no half of a vehicle is ever started.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from agent.config import Bus, Config, Control, Switch
from agent.core.binding import Binding, bind, merge
from agent.core.catalogue import Catalogue
from agent.core.cose import DeviceKey
from agent.core.dbc import DbcFile, parse_dbc
from agent.core.jws import Trust
from agent.core.mapping import parse_mapping
from agent.core.permission import Permissions
from agent.core.switch import SwitchSignal, find_switch
from agent.edge.files import load_catalogue, load_trust, read_file
from agent.edge.people import find_group, find_permissions
from agent.errors import AgentError, ConfigError
from agent.resources import shipped

if TYPE_CHECKING:
    from agent.edge.uplink import UplinkConfig

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Parts:
    """What the files of a configuration amount to.

    Attributes:
        permissions: Who may ask what over the control socket.
        control_group: The group of its file, or None: the agent's own.
        switch: The privacy switch on CAN, where there is one.
        sources: SHA-256 over those of the DBC files and the mapping of each bus, in the
            configuration's order, 64 hex digits.
        warnings: Sentences for the user: repairs of DBC files, unusable mapping entries.
    """

    catalogue: Catalogue
    binding: Binding
    named_buses: tuple[str, ...]
    trust: Trust
    device: DeviceKey
    uplink: "UplinkConfig"
    permissions: Permissions
    control_group: int | None
    switch: SwitchSignal | None
    sources: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Vehicle:
    """What the vehicle can give and whom it trusts; of the parts, what needs no secret.

    Attributes:
        warnings: As those of `Parts`.
    """

    catalogue: Catalogue
    binding: Binding
    named_buses: tuple[str, ...]
    trust: Trust
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


def load_vehicle(config: Config) -> Vehicle:
    """Read the files that say what the vehicle can give, and no key.

    Raises:
        AgentError: As `load_parts`.
    """
    faults = _Faults()
    catalogue = faults.keep(lambda: _catalogue(config))
    buses = [_bus(bus, config.switch, catalogue, faults) for bus in config.bus]
    trust = faults.keep(lambda: load_trust(config.vehicle.trust))
    if catalogue is None or trust is None or faults.found:
        raise faults.all()
    binding, warnings = _merged(buses)
    return Vehicle(catalogue, binding, _bus_names(config), trust, warnings)


def load_parts(config: Config) -> Parts:
    """Read every file that the configuration names.

    Raises:
        AgentError: A file cannot be used; where there are several, all of them in one message.
    """
    faults = _Faults()
    catalogue = faults.keep(lambda: _catalogue(config))
    buses = [_bus(bus, config.switch, catalogue, faults) for bus in config.bus]
    # Not at the top: what reading a large DBC has freed is room for these modules, 2 MiB.
    from agent.edge.keys import load_device_key  # noqa: PLC0415
    from agent.settings import uplink_config  # noqa: PLC0415

    device = faults.keep(lambda: load_device_key(config.keys.device))
    trust = faults.keep(lambda: load_trust(config.vehicle.trust, catalogue))
    uplink = faults.keep(lambda: uplink_config(config))
    permissions = faults.keep(lambda: _permissions(config.control))
    group = config.control.group
    control_group = None if group is None else faults.keep(lambda: find_group(group))
    if (  # The first five only tell the type checker what the last one means.
        catalogue is None
        or device is None
        or trust is None
        or uplink is None
        or permissions is None
        or faults.found
    ):
        raise faults.all()
    binding, warnings = _merged(buses)
    return Parts(
        catalogue=catalogue,
        binding=binding,
        named_buses=_bus_names(config),
        trust=trust,
        device=device,
        uplink=uplink,
        permissions=permissions,
        control_group=control_group,
        switch=next((bus.switch for bus in buses if bus.switch is not None), None),
        sources=hashlib.sha256(b"".join(d for bus in buses for d in bus.digests)).hexdigest(),
        warnings=warnings,
    )


def _catalogue(config: Config) -> Catalogue:
    return load_catalogue(config.vehicle.catalogue or shipped("config/catalogue.json"))


def _bus_names(config: Config) -> tuple[str, ...]:
    return tuple(bus.name for bus in config.bus)


@dataclass(frozen=True, slots=True)
class _BusParts:
    """What a bus can give, if its files can be used, and what had to be repaired.

    Attributes:
        digests: SHA-256 of its DBC files and its mapping.
    """

    binding: Binding | None
    switch: SwitchSignal | None
    repairs: tuple[str, ...]
    digests: tuple[bytes, ...]


def _bus(bus: Bus, switch: Switch, catalogue: Catalogue | None, faults: _Faults) -> _BusParts:
    digests: list[bytes] = []

    def read(path: Path, what: str) -> bytes:
        data = read_file(path, what)
        digests.append(hashlib.sha256(data).digest())
        return data

    def dbc_of(path: Path) -> DbcFile:
        return parse_dbc(read(path, "the DBC file"), name=path.name)

    dbcs = [faults.keep(partial(dbc_of, path)) for path in bus.dbc]
    mapping = faults.keep(
        lambda: parse_mapping(read(bus.mapping, "the mapping"), name=bus.mapping.name)
    )
    usable = [dbc for dbc in dbcs if dbc is not None]
    repairs = tuple(f"{dbc.name}: {line}" for dbc in usable for line in dbc.told())
    if catalogue is None or mapping is None or len(usable) < len(dbcs):
        return _BusParts(None, None, repairs, ())
    signal = switch.signal if switch.bus == bus.name else None
    return _BusParts(
        faults.keep(lambda: bind(mapping, usable, catalogue, bus=bus.name)),
        None
        if signal is None
        else faults.keep(
            lambda: find_switch(usable, bus=bus.name, signal=signal, private=switch.private)
        ),
        repairs,
        tuple(digests),
    )


def _merged(buses: list[_BusParts]) -> tuple[Binding, tuple[str, ...]]:
    """Return what all buses can give, and every sentence for the user once."""
    binding = merge([bus.binding for bus in buses if bus.binding is not None])
    repairs = [line for bus in buses for line in bus.repairs]
    return binding, tuple(dict.fromkeys([*repairs, *binding.warnings]))


def _permissions(control: Control) -> Permissions:
    lists = {
        "may_pause": control.may_pause,
        "may_resume": control.may_resume,
        "may_look": control.may_look,
    }
    default = Control()
    changed = [key for key, names in lists.items() if names != getattr(default, key)]
    return find_permissions(lists, written=changed)
