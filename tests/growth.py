"""What must not grow while something goes on, what may, and a report of both."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Gauge:
    """Something that must not grow.

    Attributes:
        allowed: By how much the floor of the last quarter may be above that of the second, as a
            part of it ...
        least: ... or by this, whatever that is.
    """

    name: str
    unit: str
    allowed: float
    least: float


# What is allowed is what a slow machine makes of the same: while it is busy, more waits.
GAUGES = {
    "resident": Gauge("resident memory", "MiB", 0.0, 4.0),
    "blocks": Gauge("blocks of memory in use by Python", "", 0.01, 1_500),
    "files": Gauge("open files", "", 0.0, 1),
    "threads": Gauge("threads", "", 0.0, 0),
    "spool": Gauge("files of the spool", "KiB", 0.1, 1_024),
    "consent": Gauge("files of the consent", "KiB", 0.1, 256),
    "waiting": Gauge("envelopes that wait", "", 0.5, 300),
}
EXPECTED = {"ledger": "the ledger's files", "log": "the log"}  # Grow, KiB; reported.


@dataclass(frozen=True, slots=True)
class Moment:
    """What was seen at one moment, by name; see GAUGES and EXPECTED."""

    hours: float
    found: dict[str, float]


@dataclass
class Figures:
    """What came of a soak."""

    hours: float
    seed: int
    moments: list[Moment] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def growth(self) -> dict[str, tuple[float, float]]:
        """Return the floors of the second and of the last quarter, by gauge.

        A floor is what a quarter of the looks were below: a backlog raises it less than a leak.
        """
        quarters = [
            [m for m in self.moments if low <= m.hours / self.hours < low + 0.25]
            for low in (0.25, 0.75)
        ]
        second, last = quarters
        return {name: (_floor(second, name), _floor(last, name)) for name in (*GAUGES, *EXPECTED)}

    def grown(self) -> list[str]:
        """Return what has grown: nothing should have."""
        return [
            f"{gauge.name}: {before:,.1f} {gauge.unit}, then {after:,.1f}"
            for name, gauge in GAUGES.items()
            for before, after in [self.growth()[name]]
            if after - before > max(gauge.least, gauge.allowed * before)
        ]

    def per_hour(self, name: str) -> float:
        """Return by how much something grows in an hour of driving, KiB."""
        first, last = self.moments[len(self.moments) // 4], self.moments[-1]
        return (last.found[name] - first.found[name]) / (last.hours - first.hours)


def told(figures: Figures) -> str:
    """Return the report's tables and picture."""
    growth = figures.growth()
    grown = figures.grown()
    lines = [
        "| what | second quarter | last quarter | may rise by |",
        "|---|---|---|---|",
        *(
            f"| {g.name}{f', {g.unit}' if g.unit else ''} | {growth[name][0]:,.1f} |"
            f" {growth[name][1]:,.1f} | {max(g.least, g.allowed * growth[name][0]):,.1f} |"
            for name, g in GAUGES.items()
        ),
        "",
        f"Verdict: **{'no growth' if not grown else 'growth: ' + '; '.join(grown)}**.",
        "",
        "Grows, as it is meant to:",
        "",
        "| what | KiB in an hour of driving |",
        "|---|---|",
        *(f"| {name} | {figures.per_hour(key):,.1f} |" for key, name in EXPECTED.items()),
        "",
        "| what happened | count |",
        "|---|---|",
        f"| hours driven | {figures.hours:g} |",
        f"| seed | {figures.seed} |",
        *(f"| {name} | {count} |" for name, count in sorted(figures.done.items())),
        *(f"| {name} | {count} |" for name, count in figures.counts.items()),
        f"| moments looked at | {len(figures.moments)} |",
        f"| seconds | {figures.seconds:.0f} |",
        "",
        "From beginning to end, between the least (▁) and the most (█), which stand beside:",
        "",
        "```",
        *(_picture(figures.moments, name) for name in (*GAUGES, *EXPECTED)),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _picture(moments: Sequence[Moment], name: str, width: int = 60) -> str:
    values = [moment.found[name] for moment in moments]
    parts = [
        values[i * len(values) // width : (i + 1) * len(values) // width] for i in range(width)
    ]
    means = [statistics.fmean(part) for part in parts if part]
    low, high = min(means), max(means)
    bars = "".join("▁▂▃▄▅▆▇█"[round(7 * (v - low) / (high - low or 1))] for v in means)
    return f"{name:9} {low:>10,.1f} {bars} {high:>10,.1f}"


def _floor(moments: Sequence[Moment], name: str) -> float:
    return statistics.quantiles((moment.found[name] for moment in moments), n=4)[0]
