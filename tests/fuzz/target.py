"""What is fuzzed: how an input is made, and what may become of it.

Rules:
 * An input is bytes, so that it can be kept in a file and judged again.
 * `make` draws from its generator alone: the same seed and number make the same input (but for the
   randomness of HPKE, where a recipient's layer is made anew).
 * `judge` runs the code under test, and holds what it accepts against a second reading that shares
   no code with it. What is refused must be refused by the documented error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

ACCEPTED = "accepted"


class WrongAcceptance(AssertionError):  # noqa: N818 - says what happened
    """Something was taken that must be refused, or for something else than it is."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an input.

    Attributes:
        is_past: It got past the first parser.
        outcome: ACCEPTED, or the reason it was refused for.
    """

    is_past: bool
    outcome: str


@dataclass(frozen=True, slots=True)
class Target:
    """One entrance.

    Attributes:
        weight: Share of the executions; cheap ones get more.
        least_past: Share of the executions that must get past the first parser.
        first: What the first parser is, for the report.
    """

    name: str
    make: Callable[[Random], bytes]
    judge: Callable[[bytes], Verdict]
    first: str
    weight: float = 1.0
    least_past: float = 0.8


def insist(holds: object, what: str) -> None:
    """Raise unless a rule holds for what was accepted."""
    if not holds:
        raise WrongAcceptance(what)
