"""What one grant may have of one path, under which limits.

Rules:
 * Two grants for one signal are two takes, each under its own constraints.
 * An aggregate has one take for each of its functions. What a function cannot give (there is no
   mean of a text) is skipped with the reason, the others are given.
 * A mapping only limits further: the longer interval counts, and the transform comes before the
   grant's grid and quantum.
"""

from dataclasses import dataclass, replace

from agent.core.aggregate import Function, reason_impossible, result_of
from agent.core.bound import Bound
from agent.core.catalogue import Catalogue
from agent.core.policy import Detail, Grant
from agent.core.transform import INTEGER_RANGES

GRIDDED = ("Latitude", "Longitude")


@dataclass(frozen=True, slots=True)
class Take:
    """What one grant may have of one path; of an aggregate, one function of it.

    Attributes:
        datatype: Of the samples.
        unit: Of the samples.
        interval_ns: The larger of the mapping's and the grant's; of an aggregate the mapping's, for
            the values that enter its windows.
        scale: Step of the values where they are linear, a hint for the codec; else 1.
        offset: Belongs to `scale`.
        fn: The function of an aggregate; None: a value is a sample.
        window_s: Length of its windows.
        grid_deg: The grid that the values are on; None for none, or for what is no position.
        quantum: The quantum that they are on.
    """

    grant_id: str
    rev: int
    recipient: str
    scope: str
    path: str
    datatype: str
    unit: str | None
    interval_ns: int
    on_change: bool
    once: bool
    scale: int | float
    offset: int | float
    fn: Function | None = None
    window_s: int | float | None = None
    grid_deg: float | None = None
    quantum: float | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A granted path, or one function of it, that is not given under this grant, and why."""

    grant_id: str
    scope: str
    path: str
    reason: str
    fn: Function | None = None


def takes_of(grant: Grant, detail: Detail, bounds: list[Bound]) -> tuple[list[Take], list[Skipped]]:
    """Return a path's one take, or one for each function of an aggregate, and what is impossible.

    Args:
        grant: A live grant.
        detail: One of its scopes.
        bounds: The signals that stand for one path of the scope, at least one.
    """
    take, vss, aggregate = _take(grant, detail, bounds), bounds[0].vss, detail.constraints.aggregate
    if aggregate is None:
        return [take], []
    takes: list[Take] = []
    impossible: list[Skipped] = []
    for fn in aggregate.functions:
        reason = reason_impossible(fn, vss.datatype)
        if reason is not None:
            impossible.append(Skipped(grant.grant_id, detail.scope, vss.path, reason, fn))
            continue
        datatype, unit = result_of(fn, vss.datatype, vss.unit)
        made = replace(take, fn=fn, window_s=aggregate.window_s, datatype=datatype, unit=unit)
        is_a_value = fn not in (Function.MEAN, Function.COUNT)
        takes.append(made if is_a_value else replace(made, scale=1, offset=0))
    return takes, impossible


def once_paths(grant: Grant, catalogue: Catalogue) -> frozenset[str]:
    """Return the paths of a grant that are given once, whether or not a plan gives them now."""
    return frozenset(
        signal.path
        for detail in grant.details
        if detail.constraints.once
        for signal in catalogue.scopes[detail.scope].signals
    )


def _take(grant: Grant, detail: Detail, bounds: list[Bound]) -> Take:
    first, limits = bounds[0], detail.constraints
    scale, offset = _step(first, detail)
    assert grant.recipient_id is not None, "a live grant has a recipient"
    mapped_ns = max(bound.entry.interval_ns for bound in bounds)
    if limits.aggregate is None:
        interval_ns = max(mapped_ns, limits.min_interval_ns)
        on_change = any(bound.entry.on_change for bound in bounds)
    else:
        interval_ns, on_change = mapped_ns, False  # A mean counts what stayed the same, too.
    gridded = first.vss.path.rpartition(".")[2] in GRIDDED
    return Take(
        grant_id=grant.grant_id,
        rev=grant.rev,
        recipient=grant.recipient_id,
        scope=detail.scope,
        path=first.vss.path,
        datatype=first.vss.datatype,
        unit=first.vss.unit,
        interval_ns=interval_ns,
        on_change=on_change,
        once=limits.once,
        scale=scale,
        offset=offset,
        grid_deg=limits.grid_deg if gridded else None,
        quantum=limits.quantum,
    )


def _step(bound: Bound, detail: Detail) -> tuple[int | float, int | float]:
    if detail.constraints.quantum is not None:
        return detail.constraints.quantum, 0
    if (
        bound.entry.math is None
        and bound.entry.choices is None
        and bound.conversion.is_identity
        and bound.vss.datatype not in INTEGER_RANGES
    ):
        return bound.field.scale, bound.field.offset
    return 1, 0
