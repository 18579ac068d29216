"""The values of one path in fixed windows of time, each reduced to a few numbers.

Rules:
 * Windows are aligned to multiples of their length since the epoch; what comes of one is stamped
   with its start. A window in which nothing entered gives nothing.
 * What enters has passed every other constraint: positions are on their grid, numbers on their
   quantum. `min`, `max` and `last` give one of the values that entered.
 * A mean is snapped to the grid or quantum again: what leaves a path is always on them. It is a
   double, also of integers, in the unit of the path. A count has no unit.
 * `min`, `max` and `mean` exist for numbers only, `count` and `last` for every datatype.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from agent.core.member import Members, unique, wrong_type
from agent.core.model import NS_PER_MS, Value
from agent.core.strictjson import shown
from agent.core.transform import Drop, is_numeric
from agent.errors import PolicyRejected

MS_PER_S = 1000
MAX_WINDOW_MS = (2**63 - 1) // NS_PER_MS  # Times are kept as signed 64-bit ns.

Snap = Callable[[int | float], Value | Drop]


class Function(StrEnum):
    """What becomes of the values of a window."""

    MIN = "min"
    MAX = "max"
    MEAN = "mean"
    COUNT = "count"
    LAST = "last"


@dataclass(frozen=True, slots=True)
class Aggregate:
    """The constraint of one granted scope.

    Attributes:
        window_ms: Length of a window.
        functions: At least one, in the order of the policy.
    """

    window_ms: int
    functions: tuple[Function, ...]

    def __str__(self) -> str:
        return f"{', '.join(self.functions)} of every {self.window_s:g} s"

    @property
    def window_s(self) -> int | float:
        """Length of a window, an integer where it is whole seconds."""
        return seconds(self.window_ms)


def seconds(window_ms: int) -> int | float:
    """Return whole ms in seconds, as an integer where there is no fraction."""
    whole, rest = divmod(window_ms, MS_PER_S)
    return window_ms / MS_PER_S if rest else whole


def parse_aggregate(raw: Any, place: str) -> Aggregate:
    """Return the aggregate of one granted scope.

    Args:
        raw: The constraint `aggregate`, decoded: `{window_s, fn}`.
        place: Grant and scope, for messages.

    Raises:
        PolicyRejected: With reason `type`, `range`, `missing-member`, `unknown-member`,
            `unknown-constraint` or `duplicate`.
    """
    members = Members(raw, f"{place}: aggregate", ("window_s", "fn"))
    return Aggregate(
        _window_ms(members.any("window_s"), f"{place}: aggregate.window_s"),
        _functions(members.some_elements("fn"), f"{place}: aggregate.fn"),
    )


def result_of(function: str | None, datatype: str, unit: str | None) -> tuple[str, str | None]:
    """Return datatype and unit of what a function gives for a path of this datatype and unit."""
    match function:
        case Function.MEAN:
            return "double", unit
        case Function.COUNT:
            return "uint64", None
        case _:
            return datatype, unit


def reason_impossible(function: Function, datatype: str) -> str | None:
    """Say why a function has no result for a datatype, or None where it has one."""
    if function in (Function.COUNT, Function.LAST) or is_numeric(datatype):
        return None
    return f"there is no {function} of a {datatype}"


class Accumulator:
    """One path's open window. On the capture path: `enter` runs once per value.

    Attributes:
        is_open: Something has entered.
        start_ns: Begin of the open window.
        end_ns: First moment behind it.
    """

    __slots__ = (
        *("_count", "_last", "_length_ns", "_lost", "_most", "_least", "_snap", "_sum"),
        *("_is_numeric", "end_ns", "is_open", "start_ns"),
    )

    # Set by `clear`.
    is_open: bool
    start_ns: int
    end_ns: int

    def __init__(self, window_s: float, snap: Snap) -> None:
        """Begin without an open window.

        Args:
            window_s: Length of a window, whole ms.
            snap: Puts a mean back on grid and quantum.
        """
        self._length_ns = round(window_s * MS_PER_S) * NS_PER_MS
        self._snap = snap
        self.clear()

    def clear(self) -> None:
        """Forget the open window."""
        self.is_open = False
        self.start_ns = self.end_ns = self._count = 0
        self._is_numeric = False
        self._last: Any = None
        self._least: Any = None
        self._most: Any = None
        self._sum: Any = 0
        self._lost: float = 0.0  # What rounding has taken from the sum so far (Neumaier).

    def enter(self, t_ns: int, value: Value) -> None:
        """Take a value into its window; the one before must have been cleared."""
        if not self.is_open:
            self.is_open = True
            self.start_ns = t_ns - t_ns % self._length_ns
            self.end_ns = self.start_ns + self._length_ns
            self._least = self._most = value
            self._is_numeric = not isinstance(value, (bool, str))
        self._count += 1
        self._last = value
        if self._is_numeric:
            if value < self._least:
                self._least = value
            elif value > self._most:
                self._most = value
            self._add(value)

    def result(self, function: str) -> Value | Drop:
        """Return what a function gives for the open window."""
        found: Value
        match function:
            case Function.MIN:
                found = self._least
            case Function.MAX:
                found = self._most
            case Function.MEAN:
                return self._snap(self._mean())
            case Function.COUNT:
                found = self._count
            case _:
                found = self._last
        return found

    def _add(self, value: Any) -> None:
        """Add up without loss: integers as they are, floats with what rounding takes kept."""
        total = self._sum + value
        if isinstance(value, float):
            if abs(self._sum) >= abs(value):
                self._lost += (self._sum - total) + value
            else:
                self._lost += (value - total) + self._sum
        self._sum = total

    def _mean(self) -> float:
        mean: float = (
            (self._sum + self._lost) / self._count if self._lost else self._sum / self._count
        )
        # Dividing rounds once more, which must not lead out of what entered.
        return min(max(mean, self._least), self._most) if math.isfinite(mean) else mean


def _window_ms(raw: Any, place: str) -> int:
    if isinstance(raw, bool) or not isinstance(raw, (int, float)):
        raise wrong_type(place, "a number", raw)
    window_ms = round(raw * MS_PER_S) if abs(raw) < MAX_WINDOW_MS else 0
    if not 1 <= window_ms <= MAX_WINDOW_MS or abs(raw - window_ms / MS_PER_S) > raw * 1e-9:
        raise PolicyRejected(
            f"{place} must be above 0, in whole ms, and not over 292 years", reason="range"
        )
    return window_ms


def _functions(raw: list[Any], place: str) -> tuple[Function, ...]:
    names = []
    for name in raw:
        if not isinstance(name, str):
            raise wrong_type(f"{place}: an element", "text", name)
        if name not in tuple(Function):
            raise PolicyRejected(
                f"{place}: unknown function {shown(name)}",
                reason="unknown-constraint",
                hint=f"this agent knows {', '.join(Function)}",
            )
        names.append(name)
    return tuple(Function(name) for name in unique(names, place, "function"))
