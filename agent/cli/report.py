"""A page to look at: what a replay gave out, thinned, dropped and blocked, and each path over time.

Rules:
 * One file that needs no network. Its Content-Security-Policy lets no other script run than those
   whose hashes it names, and nothing be loaded or sent.
 * It shows samples only, after every constraint: the page knows no more than a recipient would.
 * The file takes its name only when all of it was written.

The figures need bokeh, the extra `report`.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from agent.cli.output import result_file
from agent.core.aggregate import Function
from agent.core.model import NS_PER_MS, Sample, Value
from agent.core.replay import PathReport
from agent.errors import AgentError

if TYPE_CHECKING:
    from agent.cli.plot import Drawing, Line, Panel

_MS_PER_DAY = 86_400_000
_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 1180px; padding: 24px 20px 60px; background: #fff; color: #222;
       font: 15px/1.45 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 20px; margin: 40px 0 8px; }
h3 { font-size: 15px; margin: 30px 0 0; overflow-wrap: anywhere; }
p { margin: 4px 0; }
.quiet { color: #555; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { padding: 4px 10px; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid #999; white-space: nowrap; }
tbody th { background: #f0f3f6; border-top: 10px solid #fff; font-size: 14px; }
td { border-bottom: 1px solid #e6e6e6; }
td.path { overflow-wrap: anywhere; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; }
td.why { min-width: 270px; }
tr.nothing td { color: #666; }
a { color: #0b5394; text-decoration: none; }
a:hover { text-decoration: underline; }
.key { display: inline-block; margin-right: 18px; font-size: 13.5px; color: #444; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 6px; }
"""


_LINKS = '<p class="quiet"><a href="#paths">Path by path</a> · <a href="#plots">Over time</a></p>'
_USE = (
    '<p class="quiet">Drag over a plot to zoom into all of them. The buttons beside it pan, reset '
    "and save; Ctrl and the wheel zoom too.</p>"
)
_TABLE_HEAD = (
    '<thead><tr><th>Path</th><th class="number">Taken</th><th class="number">Thinned</th>'
    '<th class="number">Dropped</th><th class="number">Blocked</th><th>Why</th></tr></thead>'
)


@dataclass(slots=True)
class _Series:
    """The samples of one path under one grant, of an aggregate those of one function."""

    path: str
    recipient: str
    grant_id: str
    unit: str | None
    function: str
    times_ms: list[int] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)


_Figures = dict[str, dict[tuple[str, str], _Series]]


def ensure_bokeh() -> None:
    """Return where a report can be drawn, so that nobody waits for a replay in vain.

    Raises:
        AgentError: bokeh is not installed.
    """
    _plot()


def write_report(
    path: Path, samples: Iterable[Sample], rows: Sequence[PathReport], *, title: str
) -> None:
    """Write the page of one replay.

    Args:
        path: The HTML file; an older one is replaced once the new one is whole.
        samples: In the order of time.
        rows: What became of each path.
        title: What was replayed, such as the names of the logs.

    Raises:
        AgentError: bokeh is not installed, or the file cannot be written.
    """
    _plot()
    page = _page(_series(samples), rows, title)
    with result_file(path, option="--report") as file:
        file.write(page)


def _plot() -> ModuleType:
    try:
        from agent.cli import plot  # noqa: PLC0415 - slow to import, and an extra
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] not in {"bokeh", "numpy"}:
            raise
        raise AgentError(
            "--report needs bokeh, which is not installed",
            hint="pip install 'consentry[report]'",
        ) from exc
    return plot


def _series(samples: Iterable[Sample]) -> _Figures:
    """Return what is drawn in one figure -> (grant id, function) -> samples, both sorted.

    A count has a figure of its own beside its path's: it is no value of the path.
    """
    found: _Figures = {}
    for sample in samples:
        function = "" if sample.fn is None else f"{sample.fn} per {sample.window_s} s"
        figure = f"{sample.path}, count" if sample.fn == Function.COUNT else sample.path
        lines = found.setdefault(figure, {})
        key = sample.grant_id, function
        series = lines.get(key)
        if series is None:
            series = _Series(sample.path, sample.recipient, sample.grant_id, sample.unit, function)
            lines[key] = series
        series.times_ms.append(sample.t_ns // NS_PER_MS)
        series.values.append(sample.value)
    return {figure: dict(sorted(lines.items())) for figure, lines in sorted(found.items())}


def _page(found: _Figures, rows: Sequence[PathReport], title: str) -> str:
    anchors = {path: f"plot-{index}" for index, path in enumerate(found)}
    plots, scripts = _plots(found, anchors) if found else ("", ())
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts) or "'none'"
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}: what would leave the vehicle</title>",
        f"<style>{_STYLE}</style>",
        "</head>",
        "<body>",
        "<h1>What would leave the vehicle</h1>",
        f"<p>Replay of {escape(title)}</p>",
        f'<p class="quiet">{_facts(found, rows)}</p>',
        _LINKS if found else "",
        '<h2 id="paths">Path by path</h2>',
        _table(rows, anchors),
        plots,
        *(f"<script>{script}</script>" for script in scripts),
        "</body>",
        "</html>",
        "",
    ]
    return "\n".join(lines)


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _facts(found: _Figures, rows: Sequence[PathReport]) -> str:
    """Return one line: how much, to how many, from when to when."""
    every = [series for lines in found.values() for series in lines.values()]
    paths = {series.path for series in every}
    blocked = len({row.path for row in rows if row.blocked and row.path not in paths})
    if not found:
        return f"No sample would leave. {_many(blocked, 'path')} blocked."
    count = _many(sum(len(series.values) for series in every), "sample")
    times = [t for series in every for t in (min(series.times_ms), max(series.times_ms))]
    recipients = _many(len({series.recipient for series in every}), "recipient")
    return escape(
        f"{count} of {_many(len(paths), 'path')} to {recipients}, "
        f"{_instant(min(times))} to {_instant(max(times))}. {_many(blocked, 'path')} blocked."
    )


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _instant(t_ms: int) -> str:
    """Return a time as a person reads it; within the epoch's first day the log counts from 0."""
    if 0 <= t_ms < _MS_PER_DAY:
        return f"{t_ms / 1000:.1f} s"
    return f"{datetime.fromtimestamp(t_ms // 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _table(rows: Sequence[PathReport], anchors: dict[str, str]) -> str:
    """Return the table: a group per grant, then what no grant covers."""
    groups: dict[tuple[bool, str, str], list[PathReport]] = {}
    for row in rows:
        key = (row.grant_id is None, row.recipient or "", row.grant_id or "")
        groups.setdefault(key, []).append(row)
    lines = ['<div class="wide"><table>', _TABLE_HEAD]
    for (ungranted, recipient, grant_id), members in sorted(groups.items()):
        head = "Not granted" if ungranted else f"{recipient} · grant {grant_id}"
        lines.append(f'<tbody><tr><th colspan="6">{escape(head)}</th></tr>')
        lines += [_table_row(row, anchors) for row in sorted(members, key=lambda row: row.path)]
        lines.append("</tbody>")
    return "\n".join([*lines, "</table></div>"])


def _table_row(row: PathReport, anchors: dict[str, str]) -> str:
    path = escape(row.path)
    anchor = anchors.get(row.path, anchors.get(f"{row.path}, count"))
    if row.taken and anchor:
        path = f'<a href="#{anchor}">{path}</a>'
    dropped: Counter[str] = Counter(row.dropped)
    why = [row.why] if row.why else []
    why += [f"{count:,} dropped: {reason}" for reason, count in dropped.most_common()]
    numbers = (row.taken, row.thinned, dropped.total(), row.blocked)
    cells = "".join(
        f'<td class="number">{f"{number:,}" if number else "&ndash;"}</td>' for number in numbers
    )
    kind = "" if row.taken else ' class="nothing"'
    return (
        f'<tr{kind}><td class="path">{path}</td>{cells}'
        f'<td class="why">{escape("; ".join(why))}</td></tr>'
    )


def _plots(found: _Figures, anchors: dict[str, str]) -> tuple[str, tuple[str, ...]]:
    """Return the HTML of all plots and the scripts that draw them."""
    plot = _plot()
    panels = _panels(found, plot)
    drawing: Drawing = plot.draw(panels)
    parts = ['<h2 id="plots">Over time</h2>', _USE]
    for panel, place in zip(panels, drawing.places, strict=True):
        parts.append(f'<h3 id="{anchors[panel.path]}">{escape(panel.path)}</h3>')
        parts += [_key(line, plot.MAX_POINTS) for line in panel.lines]
        parts.append(place)
    return "\n".join(parts), drawing.scripts


def _panels(found: _Figures, plot: ModuleType) -> list["Panel"]:
    """Return a panel per path; a grant, or a function under it, has the same colour in all."""
    keys = sorted({key for lines in found.values() for key in lines})
    colours = {key: plot.COLOURS[i % len(plot.COLOURS)] for i, key in enumerate(keys)}
    panels = []
    for path, by_key in found.items():
        lines = tuple(
            plot.Line(
                name=" · ".join(filter(None, (series.recipient, series.grant_id, series.function))),
                colour=colours[key],
                times_ms=series.times_ms,
                values=series.values,
            )
            for key, series in by_key.items()
        )
        unit = next(iter(by_key.values())).unit
        panels.append(plot.Panel(path=path, unit=unit, lines=lines))
    return panels


def _key(line: "Line", limit: int) -> str:
    """Return who has the line's samples, beside its colour."""
    count = _many(len(line.values), "sample")
    if len(line.values) > limit:
        count += f", of which at most {limit:,} are drawn, all peaks among them"
    return (
        f'<span class="key"><span class="swatch" style="background:{line.colour}"></span>'
        f"{escape(line.name)} · {count}</span>"
    )
