"""What is played, what happens, and what is promised: the values that story and screen share."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

VEHICLE = "demo-vehicle"
FLEET, CITY = "fleet-a", "city-b"  # Recipients A and B.
REVOKED_B = "B's grant is revoked"


@dataclass(frozen=True, slots=True)
class Options:
    """What is played, and how.

    Attributes:
        logs: One recording.
        dbcs: The DBC files of its bus.
        mapping: VSS path -> signal.
        speed: How many times as fast as the recording.
        longest_s: At most so much of the recording is played, in its own time.
        sabotage: Which promise is broken on purpose, for tests.
    """

    logs: tuple[Path, ...]
    dbcs: tuple[Path, ...]
    mapping: Path
    speed: float
    longest_s: float
    sabotage: str | None = None


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise, whether it was kept, and how that was seen."""

    text: str
    kept: bool
    evidence: str


@dataclass(slots=True)
class State:
    """What the screen shows; written by the story, read by the screen."""

    phase: str = "starting"
    broker: str = ""
    policy_ver: int = 0
    frames: int = 0
    link_up: bool = True
    opened: dict[str, Counter[str]] = field(
        default_factory=lambda: {FLEET: Counter(), CITY: Counter()}
    )
    envelopes: Counter[str] = field(default_factory=Counter)
    blocked: dict[str, str] = field(default_factory=dict)
    promises: list[Promise] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)
