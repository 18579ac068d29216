"""The files that say what a vehicle is and what its owner consented to; parsed in core."""

from dataclasses import dataclass
from pathlib import Path

from agent.core.catalogue import Catalogue, parse_catalogue
from agent.core.dbc import DbcFile, parse_dbc
from agent.core.jws import Trust, parse_trust, unsafe_unverified_payload, verify_policy_jws
from agent.core.mapping import VehicleMapping, parse_mapping
from agent.core.policy import Policy, parse_policy, parse_unsigned_policy
from agent.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy and what a person should know about how far it was checked."""

    policy: Policy
    warnings: tuple[str, ...]


def read_file(path: Path, what: str) -> bytes:
    """Return a file's bytes.

    Args:
        path: The file.
        what: What it is to the user, such as "the mapping", for the message.

    Raises:
        ConfigError: It is not there or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as exc:
        raise ConfigError(f"{what} {path} is not there", hint="check the path") from exc
    except IsADirectoryError as exc:
        raise ConfigError(f"{what} {path} is a folder, not a file", hint="name a file") from exc
    except OSError as exc:
        raise ConfigError(
            f"{what} {path} cannot be read: {exc.strerror}", hint="check who may read it"
        ) from exc


def load_catalogue(path: Path) -> Catalogue:
    """Return the catalogue of a file; raises CatalogueError or ConfigError."""
    return parse_catalogue(read_file(path, "the catalogue"))


def load_dbc(path: Path) -> DbcFile:
    """Return the messages of a DBC file; raises DbcError or ConfigError."""
    return parse_dbc(read_file(path, "the DBC file"), name=path.name)


def load_mapping(path: Path) -> VehicleMapping:
    """Return the entries of a mapping file; raises MappingError or ConfigError."""
    return parse_mapping(read_file(path, "the mapping"), name=path.name)


def load_trust(path: Path, catalogue: Catalogue | None = None) -> Trust:
    """Return who may sign for a vehicle.

    Args:
        path: The trust file.
        catalogue: Where given, `owner_needed_for` must name classes of it.

    Raises:
        KeyFileError: It is no trust file.
        ConfigError: It cannot be read.
    """
    classes = None if catalogue is None else catalogue.classes
    return parse_trust(read_file(path, "the trust file"), classes=classes)


def load_policy(path: Path, catalogue: Catalogue, *, trust: Trust | None) -> LoadedPolicy:
    """Return a policy for a tool that lets nothing out of this machine.

    Args:
        path: Unsigned JSON, or a compact JWS.
        catalogue: The catalogue in use.
        trust: Keys to check a JWS's signature with; None: it is not checked, and a warning says so.

    Raises:
        PolicyRejected: It is wrong, or no trusted key signed it.
        ConfigError: The file cannot be read.
    """
    data = read_file(path, "the policy")
    if data.lstrip()[:1] == b"{":
        return LoadedPolicy(parse_unsigned_policy(data, catalogue), ())
    token = data.strip()
    if trust is not None:
        return LoadedPolicy(parse_policy(verify_policy_jws(token, trust), catalogue), ())
    payload = unsafe_unverified_payload(token)
    warning = f"the signature of {path.name} was not checked; name the trusted keys with --trust"
    return LoadedPolicy(parse_policy(payload, catalogue), (warning,))
