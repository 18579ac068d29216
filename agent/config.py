"""agent.toml → one frozen tree of values.

Rules:
 * Every default stands here, with its unit in its name; `config/agent.toml` shows each of them.
 * An unknown key is an error, and all faults of a file are told at once.
 * No environment variables but those of systemd: keys and certificates are paths to files, and a
   name without a folder is looked for among systemd's credentials first.
 * Relative paths count from the folder of agent.toml.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from agent.errors import ConfigError


def _resolve(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str) or not value:
        raise ValueError("must be the path of a file or folder")
    return (info.context or {}).get("folder", Path()) / value


_File = Annotated[Path, BeforeValidator(_resolve)]
_Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
_Proxy = Annotated[str, Field(pattern=r"^http://[^/@\s:]+:[0-9]{1,5}$")]
_OURS = {"socketcan", "gnss"}  # Read by ourselves; all others through python-can.
_SHARED = {"socketcan", "udp_multicast", "virtual"}  # Two can have such a bus open at once.
_Seconds = Annotated[float, Field(gt=0, le=86_400)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Vehicle(_Section):
    """Who this vehicle is to the cloud."""

    id: _Id
    """Pseudonym: the policy's `aud` and the topic level. Never the VIN."""
    trust: _File
    """Keys that may sign policies, docs/policy.md."""
    catalogue: _File | None = None
    """Default: the catalogue that we ship."""


class State(_Section):
    """Where what must survive a power cut lies."""

    directory: _File = Path("/var/lib/consentry")


class Keys(_Section):
    """The device's own key."""

    device: _File = Path("/etc/consentry/device.jwk")


class Bus(_Section):
    """One CAN bus or GNSS receiver: where frames come from and what they mean."""

    name: _Id
    interface: str = "socketcan"
    """A python-can interface name, or "gnss" for a receiver on a serial line."""
    channel: Annotated[str, Field(min_length=1)]
    dbc: Annotated[tuple[_File, ...], Field(strict=False)]
    mapping: _File
    options: dict[str, str | int | float | bool] = {}
    """Handed to python-can as they are; socketcan has none."""

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if self.interface == "socketcan" and self.options:
            raise ValueError(
                f"options: socketcan has none, found {', '.join(self.options)}; CAN FD is always "
                "read, and the bit rate belongs to the system"
            )
        if self.interface not in _OURS and (known := _adapters()).isdisjoint({self.interface}):
            raise ValueError(
                f"interface: found {self.interface}, expected one of "
                f"{', '.join(sorted(known | _OURS))}"
            )
        if self.interface == "gnss" and not _is_gnss(self.options):
            raise ValueError(
                f"options: gnss has baudrate, a whole number, found {', '.join(self.options)}"
            )
        return self


def _adapters() -> frozenset[str]:
    """Return the kinds of adapters that python-can knows, those of its plug-ins too."""
    from can.interfaces import VALID_INTERFACES  # noqa: PLC0415 - most vehicles need none of it

    return frozenset(VALID_INTERFACES)


def _is_gnss(options: dict[str, str | int | float | bool]) -> bool:
    return not options or (options.keys() == {"baudrate"} and type(options["baudrate"]) is int)


class Batch(_Section):
    """When samples of one grant are sealed together."""

    max_age_s: _Seconds = 60.0
    max_samples: Annotated[int, Field(ge=1, le=1_000_000)] = 50_000


class Uplink(_Section):
    """The MQTT broker. TLS always, but to loopback when `plaintext_loopback` says so."""

    host: str
    port: Annotated[int, Field(ge=1, le=65_535)] = 8883
    ca: _File | None = None
    certificate: _File | None = None
    private_key: _File | None = None
    proxy: _Proxy | None = None
    """What leads to the broker by CONNECT; TLS is with the broker all the same."""
    proxy_credentials: _File | None = None
    """A private file with `user:password`."""
    alpn: Annotated[tuple[str, ...], Field(strict=False)] = ()
    redirects: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Brokers that the first one may send us to."""
    keepalive_s: Annotated[int, Field(ge=5, le=3_600)] = 14
    window: Annotated[int, Field(ge=1, le=1_000)] = 20
    """Most publishes without an answer; the broker's Receive Maximum lowers it."""
    max_rate_per_s: Annotated[float, Field(gt=0, le=100_000)] = 50.0
    """Most envelopes a second, so that a backlog does not overrun the broker."""
    order: Literal["oldest", "newest"] = "oldest"
    """Which envelopes of a grant go first."""
    when: dict[str, Annotated[tuple[str, ...], Field(strict=False)]] = {}
    """Class of scopes -> interfaces over which its envelopes may be sent."""
    min_backoff_s: _Seconds = 1.0
    max_backoff_s: _Seconds = 300.0
    allow_mqtt_3_1_1: bool = True
    allow_tls_1_2: bool = False
    reconnect_for_new_certificate: bool = False
    plaintext_loopback: bool = False


class Time(_Section):
    """Whom the clock is believed."""

    synchronised: str = "/run/systemd/timesync/synchronized"
    """A file that is there while the wall clock is synchronised, or `always`."""

    @property
    def synchronised_file(self) -> Path | None:
        """The file, or None where the clock is always believed."""
        return None if self.synchronised == "always" else Path(self.synchronised)


class Control(_Section):
    """The control socket: who at the vehicle may stop the agent, look at it, lift the stop.

    A name is a user's, `@name` a group's.
    """

    socket: _File = Path("/run/consentry/control.sock")
    group: str | None = None
    """The socket file's group; default: the agent's own."""
    may_pause: Annotated[tuple[str, ...], Field(strict=False)] = ("root", "@consentry")
    may_resume: Annotated[tuple[str, ...], Field(strict=False)] = ("root",)
    may_look: Annotated[tuple[str, ...], Field(strict=False)] = ("root", "@consentry")


class Switch(_Section):
    """The vehicle's privacy switch: a file, or a CAN signal. It can only restrict."""

    file: _File | None = None
    """A GPIO line's `value`, or any file of one word."""
    active: Annotated[str, Field(min_length=1)] = "1"
    """What the file holds while nothing may be collected."""
    inactive: Annotated[str, Field(min_length=1)] = "0"
    poll_s: Annotated[float, Field(ge=0.05, le=4)] = 0.5
    """At most 4: each lane shows the watchdog so often that it moves."""
    signal: Annotated[str, Field(pattern=r"^[^.\s]+\.[^.\s]+$")] | None = None
    """`Message.Signal` of a DBC file of `bus`."""
    bus: _Id | None = None
    private: Annotated[tuple[float, ...], Field(strict=False)] = ()
    """The signal's physical values while nothing may be collected."""
    max_age_s: _Seconds = 60.0
    """The signal's state is not known any more when it was not heard for longer."""
    on_fault: Literal["stop", "ignore"] = "stop"
    """What holds while the switch's state is not known."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.file is not None and self.signal is not None:
            raise ValueError("name a file or a signal, not both")
        if self.signal is not None and (self.bus is None or not self.private):
            raise ValueError("a signal needs its bus and the values that mean private")
        if self.active == self.inactive:
            raise ValueError("active and inactive must differ")
        return self


class Spool(_Section):
    """How much waits on the disk without a connection, and what goes first when it is full."""

    max_bytes: Annotated[int, Field(ge=65_536)] = 256 * 1024 * 1024
    max_age_s: Annotated[int, Field(ge=1)] = 30 * 86_400
    min_free_bytes: Annotated[int, Field(ge=0)] = 32 * 1024 * 1024
    """Room on the disk that is left to others."""
    evict_first: Annotated[tuple[str, ...], Field(strict=False)] = (
        "location",
        "driver_behaviour",
        "cabin",
        "usage",
        "condition",
        "static",
        "identity",
    )
    class_max_bytes: dict[str, Annotated[int, Field(ge=1)]] = {}
    class_max_age_s: dict[str, Annotated[int, Field(ge=1)]] = {}


class Obd(_Section):
    """Asking the vehicle over OBD-II: the only thing in the agent that sends on a bus."""

    poll: bool = False
    bus: _Id | None = None
    """Which [[bus]] is asked on."""
    max_per_s: Annotated[float, Field(ge=0.1, le=20)] = 5.0
    """Most questions in a second."""


class Log(_Section):
    """What goes to stderr, where journald keeps it."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(_Section):
    """All of agent.toml."""

    vehicle: Vehicle
    bus: Annotated[tuple[Bus, ...], Field(strict=False)]
    uplink: Uplink
    state: State = State()
    keys: Keys = Keys()
    batch: Batch = Batch()
    spool: Spool = Spool()
    time: Time = Time()
    control: Control = Control()
    switch: Switch = Switch()
    obd: Obd = Obd()
    log: Log = Log()


def load_config(path: Path) -> Config:
    """Return the configuration in a file, with its paths made absolute.

    Raises:
        ConfigError: Not there, not TOML, or wrong; all faults are named at once.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ConfigError(
            f"the configuration {path} is not there",
            hint="copy the commented config/agent.toml and name it with --config",
        ) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"the configuration {path} cannot be read") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path}: {exc}", hint="the file is TOML 1.0") from exc
    return parse_config(raw, path.resolve().parent, name=path.name)


def parse_config(raw: dict[str, Any], folder: Path, *, name: str = "agent.toml") -> Config:
    """Return the configuration in a parsed TOML document.

    Args:
        raw: The document.
        folder: Where relative paths count from.
        name: The file's name, for messages.

    Raises:
        ConfigError: All faults at once.
    """
    try:
        config = Config.model_validate(raw, context={"folder": folder})
    except ValidationError as exc:
        faults = "; ".join(_told(fault) for fault in exc.errors(include_url=False))
        raise ConfigError(
            f"{name}: {faults}", hint="config/agent.toml shows every key with its default"
        ) from exc
    names = [bus.name for bus in config.bus]
    if not names or not all(bus.dbc for bus in config.bus):
        raise ConfigError(
            f"{name}: there must be a [[bus]] with at least one file in its dbc",
            hint="config/agent.toml shows one",
        )
    if len(set(names)) != len(names):
        raise ConfigError(f"{name}: two buses have one name", hint="give each its own name")
    if config.switch.signal is not None and config.switch.bus not in names:
        raise ConfigError(
            f"{name}: switch.bus is {config.switch.bus}, expected one of {', '.join(names)}",
            hint="it is the name of the [[bus]] that carries the switch",
        )
    asked = {bus.name for bus in config.bus if bus.interface in _SHARED}
    if config.obd.poll and config.obd.bus not in asked:
        raise ConfigError(
            f"{name}: obd.bus is {config.obd.bus}, expected one of {', '.join(sorted(asked))}",
            hint="the name of the [[bus]] whose control units are to be asked; its interface must "
            f"be one that two can open: {', '.join(sorted(_SHARED))}",
        )
    return config


def _told(fault: Any) -> str:
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{place}: there is no such key"
    return f"{place}: {fault['msg']}"
