"""The constraints of one granted scope: parsed, defaulted, held against the class's ceiling.

Rules:
 * A constraint that this version does not know rejects the policy; it is never skipped.
 * What a grant leaves out takes the default of the scope's class.
 * What is looser than the class's ceiling is refused, with grant, scope and ceiling named; it is
   never tightened in silence, for the owner must be shown what really applies.
 * An aggregate takes the place of the time rule, so the class's default interval does not apply to
   it, only the ceiling; together with `min_interval_s` or `once` it contradicts itself.
 * `precise: true` lifts the default grid where the class has the ceiling `precise: true`;
   together with `grid_deg` it contradicts itself and is refused.
 * `grid_deg` and `precise` on a scope without positions are accepted: there is nothing to blur.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.core.aggregate import Aggregate, parse_aggregate
from agent.core.catalogue import ScopeClass
from agent.core.model import NS_PER_S
from agent.core.strictjson import shown
from agent.core.timewindow import TimeWindows, parse_time_windows
from agent.errors import PolicyRejected

ENFORCED = ("aggregate", "grid_deg", "min_interval_s", "once", "precise", "quantum", "windows")

# Positions are printed with 7 decimals (about 1 cm): a finer grid would be no grid, and that is
# only to be had with `precise: true`. Above 180 degrees a cell's centre is no position.
MIN_GRID_DEG = 1e-7
MAX_GRID_DEG = 180.0
MAX_INTERVAL_NS = 2**63 - 1  # Times are kept as signed 64-bit ns.


@dataclass(frozen=True, slots=True)
class Constraints:
    """What applies to one granted scope, after defaults and ceilings.

    Attributes:
        min_interval_ns: Least time between two samples of one path, of one function where there is
            an aggregate: its window's length; 0 = every value.
        quantum: Values snap to the nearest multiple of it, in the catalogue's unit; None = not.
        grid_deg: Edge of the cell to whose centre positions snap; None = no grid.
        precise: The grant asked in so many words for positions without a grid.
        once: One sample per path and grant id.
        windows: When something may be taken; None = always.
        aggregate: What leaves instead of samples; None = samples.
    """

    min_interval_ns: int
    quantum: float | None
    grid_deg: float | None
    precise: bool
    once: bool
    windows: TimeWindows | None = None
    aggregate: Aggregate | None = None


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
        PolicyRejected: With reason `type`, `unknown-constraint`, `range`, `contradiction` or
            `ceiling`, or one of `parse_aggregate` and `parse_time_windows`.
    """
    place = f"grant {grant_id}, scope {scope}"
    if not isinstance(raw, dict):
        raise PolicyRejected(f"{place}: constraints is not an object", reason="type")
    _check_names(raw, place)
    asked = _asked(raw, place)
    _check_ranges(asked, place)
    _check_ceilings(asked, place, scope_class)
    _check_contradictions(asked, place, scope_class)

    defaults = scope_class.defaults
    interval_s, grid_deg, once = asked.interval_s, asked.grid_deg, asked.once
    if asked.aggregate is not None:
        interval_s = asked.aggregate.window_s
    if interval_s is None:
        interval_s = defaults.get("min_interval_s", 0)
    if grid_deg is None and not asked.precise:
        grid_deg = defaults.get("grid_deg")
    if once is None:
        once = bool(defaults.get("once", False))
    return Constraints(
        min_interval_ns=round(interval_s * 1e9),
        quantum=None if asked.quantum is None else float(asked.quantum),
        grid_deg=None if grid_deg is None else float(grid_deg),
        precise=asked.precise,
        once=once,
        windows=asked.windows,
        aggregate=asked.aggregate,
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the policy names for a scope; None where it names nothing."""

    interval_s: int | float | None
    quantum: int | float | None
    grid_deg: int | float | None
    once: bool | None
    precise: bool
    aggregate: Aggregate | None
    windows: TimeWindows | None


def _asked(raw: Mapping[str, Any], place: str) -> _Asked:
    return _Asked(
        interval_s=_number(raw, "min_interval_s", place),
        quantum=_number(raw, "quantum", place),
        grid_deg=_number(raw, "grid_deg", place),
        once=_flag(raw, "once", place),
        precise=_flag(raw, "precise", place) or False,
        aggregate=parse_aggregate(raw["aggregate"], place) if "aggregate" in raw else None,
        windows=parse_time_windows(raw["windows"], place) if "windows" in raw else None,
    )


def _check_names(raw: Mapping[str, Any], place: str) -> None:
    for name in raw:
        if name not in ENFORCED:
            raise PolicyRejected(
                f"{place}: unknown constraint {shown(name)}",
                reason="unknown-constraint",
                hint=f"this agent enforces {', '.join(ENFORCED)}",
            )


def _check_ranges(asked: _Asked, place: str) -> None:
    if asked.quantum == 0:
        raise PolicyRejected(f"{place}: quantum must be above 0", reason="range")
    if asked.grid_deg is not None and not MIN_GRID_DEG <= asked.grid_deg <= MAX_GRID_DEG:
        raise PolicyRejected(
            f"{place}: grid_deg must be from {MIN_GRID_DEG} to {MAX_GRID_DEG:.0f}",
            reason="range",
            hint='a location without a grid needs "precise": true',
        )
    if asked.interval_s is not None and asked.interval_s * NS_PER_S > MAX_INTERVAL_NS:
        raise PolicyRejected(f"{place}: min_interval_s is over 292 years", reason="range")


def _check_contradictions(asked: _Asked, place: str, scope_class: ScopeClass) -> None:
    if asked.precise and asked.grid_deg is not None:
        raise PolicyRejected(
            f"{place}: precise and grid_deg contradict each other",
            reason="contradiction",
            hint="leave one of the two out",
        )
    once = scope_class.defaults.get("once", False) if asked.once is None else asked.once
    others = {"min_interval_s": asked.interval_s is not None, "once": once}
    for name, is_asked in others.items():
        if asked.aggregate is not None and is_asked:
            raise PolicyRejected(
                f"{place}: aggregate and {name} contradict each other",
                reason="contradiction",
                hint="the window_s of an aggregate is its interval; leave one of the two out",
            )


def _check_ceilings(asked: _Asked, place: str, scope_class: ScopeClass) -> None:
    ceilings, aggregate = scope_class.ceilings, asked.aggregate
    floor_s = ceilings.get("min_interval_s")
    if asked.interval_s is not None and floor_s is not None and asked.interval_s < floor_s:
        raise _too_loose(place, scope_class, f"min_interval_s {asked.interval_s}", f"{floor_s}")
    if aggregate is not None and floor_s is not None and aggregate.window_s < floor_s:
        looser = f"aggregate.window_s {aggregate.window_s}"
        raise _too_loose(place, scope_class, looser, f"min_interval_s {floor_s}")
    if aggregate is not None and ceilings.get("once"):
        raise _too_loose(place, scope_class, "aggregate", "once true")
    if asked.once is False and ceilings.get("once"):
        raise _too_loose(place, scope_class, "once false", "once true")
    if asked.precise and "grid_deg" in scope_class.defaults and not ceilings.get("precise"):
        raise _too_loose(place, scope_class, "precise true", "the default grid")


def _too_loose(place: str, scope_class: ScopeClass, asked: str, ceiling: str) -> PolicyRejected:
    return PolicyRejected(
        f"{place}: {asked} is looser than the ceiling of class {scope_class.name}, {ceiling}",
        reason="ceiling",
        hint="no policy may ask for more than the ceiling in the catalogue",
    )


def _number(raw: Mapping[str, Any], name: str, place: str) -> int | float | None:
    """Return a number that is not negative; booleans are none."""
    if name not in raw:
        return None
    value = raw[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise PolicyRejected(f"{place}: {name} is not a number", reason="type")
    if not math.isfinite(value) or value < 0:
        raise PolicyRejected(
            f"{place}: {name} must be a finite number that is not negative", reason="range"
        )
    return value


def _flag(raw: Mapping[str, Any], name: str, place: str) -> bool | None:
    if name not in raw:
        return None
    value = raw[name]
    if not isinstance(value, bool):
        raise PolicyRejected(f"{place}: {name} is not true or false", reason="type")
    return value
