"""The constraints of one granted scope: parsed, defaulted, held against the class's ceiling.

Rules:
 * A constraint that this version does not enforce rejects the policy; it is never skipped.
 * What a grant leaves out takes the default of the scope's class.
 * What is looser than the class's ceiling is refused, with grant, scope and ceiling named; it is
   never tightened in silence, for the owner must be shown what really applies.
 * `precise: true` lifts the default grid where the class has the ceiling `precise: true`;
   together with `grid_deg` it contradicts itself and is refused.
 * `grid_deg` and `precise` on a scope without positions are accepted: there is nothing to blur.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.core.catalogue import ScopeClass
from agent.core.model import NS_PER_S
from agent.core.strictjson import shown
from agent.core.timewindow import TimeWindows, parse_time_windows
from agent.errors import PolicyRejected

ENFORCED = ("grid_deg", "min_interval_s", "once", "precise", "quantum", "windows")
DEFERRED = ("aggregate",)  # In the policy's language, not enforced by this version.

# Positions are printed with 7 decimals (about 1 cm): a finer grid would be no grid, and that is
# only to be had with `precise: true`. Above 180 degrees a cell's centre is no position.
MIN_GRID_DEG = 1e-7
MAX_GRID_DEG = 180.0
MAX_INTERVAL_NS = 2**63 - 1  # Times are kept as signed 64-bit ns.


@dataclass(frozen=True, slots=True)
class Constraints:
    """What applies to one granted scope, after defaults and ceilings.

    Attributes:
        min_interval_ns: Least time between two samples of one path; 0 = every value.
        quantum: Values snap to the nearest multiple of it, in the catalogue's unit; None = not.
        grid_deg: Edge of the cell to whose centre positions snap; None = no grid.
        precise: The grant asked in so many words for positions without a grid.
        once: One sample per path and grant id.
        windows: When something may be taken; None = always.
    """

    min_interval_ns: int
    quantum: float | None
    grid_deg: float | None
    precise: bool
    once: bool
    windows: TimeWindows | None = None


def parse_constraints(
    raw: Any, scope_class: ScopeClass, *, grant_id: str, scope: str
) -> Constraints:
    """Return what applies to a scope of a grant.

    Args:
        raw: The member `constraints`, decoded; `{}` where the grant names none.
        scope_class: Class of the scope, with defaults and ceilings.
        grant_id: For messages.
        scope: For messages.

    Raises:
        PolicyRejected: With reason `type`, `unknown-constraint`, `not-enforced`, `range`,
            `contradiction` or `ceiling`, or one of `parse_time_windows`.
    """
    place = f"grant {grant_id}, scope {scope}"
    if not isinstance(raw, dict):
        raise PolicyRejected(f"{place}: constraints is not an object", reason="type")
    _check_names(raw, place)
    asked = _Asked(raw, place)
    interval_s = asked.number("min_interval_s")
    quantum = asked.number("quantum")
    grid_deg = asked.number("grid_deg")
    once = asked.flag("once")
    precise = asked.flag("precise") or False
    if quantum == 0:
        raise PolicyRejected(f"{place}: quantum must be above 0", reason="range")
    if grid_deg is not None and not MIN_GRID_DEG <= grid_deg <= MAX_GRID_DEG:
        raise PolicyRejected(
            f"{place}: grid_deg must be from {MIN_GRID_DEG} to {MAX_GRID_DEG:.0f}",
            reason="range",
            hint='a location without a grid needs "precise": true',
        )
    if interval_s is not None and interval_s * NS_PER_S > MAX_INTERVAL_NS:
        raise PolicyRejected(f"{place}: min_interval_s is over 292 years", reason="range")
    if precise and grid_deg is not None:
        raise PolicyRejected(
            f"{place}: precise and grid_deg contradict each other",
            reason="contradiction",
            hint="leave one of the two out",
        )
    _check_ceilings(place, scope_class, interval_s=interval_s, once=once, precise=precise)

    defaults = scope_class.defaults
    if interval_s is None:
        interval_s = defaults.get("min_interval_s", 0)
    if grid_deg is None and not precise:
        grid_deg = defaults.get("grid_deg")
    if once is None:
        once = bool(defaults.get("once", False))
    return Constraints(
        min_interval_ns=round(interval_s * 1e9),
        quantum=None if quantum is None else float(quantum),
        grid_deg=None if grid_deg is None else float(grid_deg),
        precise=precise,
        once=once,
        windows=parse_time_windows(raw["windows"], place) if "windows" in raw else None,
    )


def _check_names(raw: Mapping[str, Any], place: str) -> None:
    for name in raw:
        if name in DEFERRED:
            raise PolicyRejected(
                f"{place}: the constraint {name} is not enforced by this version",
                reason="not-enforced",
                hint=f"this agent enforces {', '.join(ENFORCED)}; leave the scope out until it "
                "can do more",
            )
        if name not in ENFORCED:
            raise PolicyRejected(
                f"{place}: unknown constraint {shown(name)}",
                reason="unknown-constraint",
                hint=f"this agent enforces {', '.join(ENFORCED)}",
            )


def _check_ceilings(
    place: str,
    scope_class: ScopeClass,
    *,
    interval_s: float | None,
    once: bool | None,
    precise: bool,
) -> None:
    ceilings = scope_class.ceilings
    floor_s = ceilings.get("min_interval_s")
    if interval_s is not None and floor_s is not None and interval_s < floor_s:
        raise _too_loose(place, scope_class, f"min_interval_s {interval_s}", f"{floor_s}")
    if once is False and ceilings.get("once"):
        raise _too_loose(place, scope_class, "once false", "once true")
    if precise and "grid_deg" in scope_class.defaults and not ceilings.get("precise"):
        raise _too_loose(place, scope_class, "precise true", "the default grid")


def _too_loose(place: str, scope_class: ScopeClass, asked: str, ceiling: str) -> PolicyRejected:
    return PolicyRejected(
        f"{place}: {asked} is looser than the ceiling of class {scope_class.name}, {ceiling}",
        reason="ceiling",
        hint="no policy may ask for more than the ceiling in the catalogue",
    )


class _Asked:
    """Reads one constraint at a time; absent is None, booleans are not numbers."""

    def __init__(self, raw: Mapping[str, Any], place: str) -> None:
        self._raw = raw
        self._place = place

    def number(self, name: str) -> int | float | None:
        if name not in self._raw:
            return None
        value = self._raw[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise PolicyRejected(f"{self._place}: {name} is not a number", reason="type")
        if not math.isfinite(value) or value < 0:
            raise PolicyRejected(
                f"{self._place}: {name} must be a finite number that is not negative",
                reason="range",
            )
        return value

    def flag(self, name: str) -> bool | None:
        if name not in self._raw:
            return None
        value = self._raw[name]
        if not isinstance(value, bool):
            raise PolicyRejected(f"{self._place}: {name} is not true or false", reason="type")
        return value
