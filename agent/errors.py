"""Everything the agent can explain to a person.

The branches mirror what a caller does about a failure, not where it happened:

    AgentError
    ├── ConfigError          a file the user wrote is wrong: mend it, nothing was started
    │   ├── CatalogueError   the catalogue of scopes
    │   ├── DbcError         a DBC file; carries file and line
    │   ├── MappingError     a mapping file
    │   └── KeyFileError     a key, certificate or trust file, or its mode
    ├── LogError             a recorded log cannot be read (further); carries file and line
    ├── PolicyRejected       the old policy stays; carries a machine-readable reason
    │   ├── BadSignature     no trusted key signed these bytes
    │   ├── WrongVehicle     the policy is for another vehicle
    │   ├── WrongCatalogue   the owner consented to another catalogue
    │   └── Rollback         not newer than the policy in force
    ├── EnvelopeRejected     bytes that are no envelope for us; carries a machine-readable reason
    ├── StoreError           the disk refused; what was committed before is still there
    │   └── StoreBusy        another process holds the state directory
    ├── LedgerError          the ledger, or a proof from it, does not say what it must
    ├── BusError             a CAN bus cannot be opened or read
    ├── AskRefused           what was asked over the control socket must not, or cannot, be done
    ├── NotRunning           nobody answers on the control socket
    └── UplinkError          the broker cannot be reached or refuses us

Every error says what was found and what was expected; `hint` says what to do.
No message carries a signal value, a position, a VIN or a key.
"""

from typing import ClassVar

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_POLICY = 3


class AgentError(Exception):
    """A failure with a sentence for a person and, where there is one, advice.

    Attributes:
        message: What was found and what was expected, one line.
        hint: What to do about it, one line, or None.
        exit_code: The status that the command line ends with.
        advice: The hint of those of this kind that bring none of their own.
    """

    exit_code = EXIT_FAILED
    advice: ClassVar[str | None] = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.advice


class ConfigError(AgentError):
    """A file that the user wrote is wrong."""

    advice = "config/agent.toml shows every key with its default"


class CatalogueError(ConfigError):
    """The catalogue of scopes is wrong."""

    advice = "config/catalogue.json is the one that we ship"


class _AtLine(AgentError):  # noqa: N818 - a branch, never raised itself
    """A fault at a line of a file.

    Attributes:
        file: The file's name as the user gave it.
        line: 1-based line number, or None where no line can be blamed.
        reason: The fault without its place.
    """

    def __init__(
        self, reason: str, *, file: str, line: int | None = None, hint: str | None = None
    ) -> None:
        place = file if line is None else f"{file}:{line}"
        super().__init__(f"{place}: {reason}", hint=hint)
        self.file = file
        self.line = line
        self.reason = reason


class DbcError(_AtLine, ConfigError):
    """A DBC file cannot be used."""

    advice = "mend the file there, or name another one: what it means is never guessed"


class MappingError(_AtLine, ConfigError):
    """A mapping file cannot be used."""


class KeyFileError(ConfigError):
    """A key, certificate or trust file cannot be used."""

    advice = "`consentry keys new` makes keys, `consentry keys trust` a trust file"


class LogError(_AtLine):
    """A recorded log cannot be read (further)."""


class PolicyRejected(AgentError):  # noqa: N818 - says what happened
    """A policy must not be applied; the one in force stays.

    Attributes:
        reason: A short word for programs, sent in the acknowledgement (docs/protocol.md).
    """

    exit_code = EXIT_POLICY

    def __init__(self, message: str, *, reason: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint or f"docs/policy.md explains the reason {reason}")
        self.reason = reason


class BadSignature(PolicyRejected):
    """No trusted key signed these bytes."""


class WrongVehicle(PolicyRejected):
    """The policy is for another vehicle."""


class WrongCatalogue(PolicyRejected):
    """The owner consented to the meaning of another catalogue."""


class Rollback(PolicyRejected):
    """The policy is not newer than the one in force."""


class EnvelopeRejected(AgentError):  # noqa: N818 - says what happened
    """These bytes are not an envelope that may be opened.

    Attributes:
        reason: A short word for programs.
    """

    def __init__(self, message: str, *, reason: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint or f"docs/envelope.md explains the reason {reason}")
        self.reason = reason


class StoreError(AgentError):
    """The disk refused; what was committed before is still there."""

    advice = "check the disk of the state directory; what was stored before is still there"


class StoreBusy(StoreError):  # noqa: N818 - says what happened
    """Another process holds the state directory."""


class LedgerError(AgentError):
    """The ledger, or a proof from it, does not say what it must."""

    advice = "docs/ledger.md says what a ledger shows, and what to do when it does not hold"


class BusError(AgentError):
    """A CAN bus cannot be opened or read."""


class AskRefused(AgentError):  # noqa: N818 - says what happened
    """What was asked of the running agent must not, or cannot, be done; nothing changed."""


class NotRunning(AgentError):  # noqa: N818 - says what happened
    """Nobody answers on the control socket."""

    advice = "`consentry run` starts the agent; --config names its configuration"


class UplinkError(AgentError):
    """The broker cannot be reached or refuses us."""

    advice = "check the broker's host and port, the certificates, and that it runs"
