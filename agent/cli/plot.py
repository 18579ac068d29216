"""Plots of samples over time, one figure per VSS path, for the replay report.

Rules:
 * All figures share one time axis: whoever zooms one, zooms all. Time is UTC.
 * Above MAX_POINTS the smallest and the largest value of each stretch are drawn: no peak is lost.
 * Text and booleans are steps: a value holds until the next one.
 * What is drawn needs no network and no `eval`: no MathJax, no JavaScript of ours inside a model.

Importing this module needs bokeh, the extra `report`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from bokeh.embed import components
from bokeh.models import (
    BasicTicker,
    BasicTickFormatter,
    BoxZoomTool,
    ColumnDataSource,
    HoverTool,
    Model,
    PanTool,
    PlainText,
    Range1d,
    ResetTool,
    SaveTool,
    WheelZoomTool,
)
from bokeh.models.renderers import DataRenderer, GlyphRenderer
from bokeh.plotting import figure
from bokeh.resources import Resources

from agent.core.model import Value

MAX_POINTS = 20_000  # Per line; a browser redraws about this many without a pause.
_DOTS_BELOW = 400  # Fewer samples than this are also marked one by one.
_LABELS = 12  # Named values on a y axis; of more only every n-th is named.
_LABEL_LENGTH = 16
_HEIGHT_PX = 190
_MARGIN_MS = 1000  # Beside the first and the last sample; a log may hold a single one.
_LEFT_PX = 130  # The same for all figures, so that their time axes lie below each other.
_TEXT = "#333333"
_GRID = "#e6e6e6"

# Okabe & Ito's colours, told apart by the colour-blind too; without yellow, pale on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


@dataclass(frozen=True, slots=True)
class Line:
    """The samples of one path under one grant.

    Attributes:
        name: Whose they are, for the hover text.
        colour: One of COLOURS.
        times_ms: ms since the epoch, in the order of the samples.
        values: One for each time, all of one kind.
    """

    name: str
    colour: str
    times_ms: Sequence[int]
    values: Sequence[Value]


@dataclass(frozen=True, slots=True)
class Panel:
    """What one figure shows.

    Attributes:
        path: The VSS path.
        unit: What the y axis counts, or None.
        lines: At least one, none of them empty.
    """

    path: str
    unit: str | None
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Drawing:
    """Figures ready to be put into a page.

    Attributes:
        scripts: JavaScript, to be run in this order.
        places: HTML of the place of each figure, in the order of the panels.
    """

    scripts: tuple[str, ...]
    places: tuple[str, ...]


def draw(panels: Sequence[Panel]) -> Drawing:
    """Return the figures of some panels, at least one."""
    ends = [end(line.times_ms) for panel in panels for line in panel.lines for end in (min, max)]
    margin = max((max(ends) - min(ends)) / 100, _MARGIN_MS)
    shared = Range1d(start=min(ends) - margin, end=max(ends) + margin)
    figures: dict[str, Model] = {
        str(index): _figure(panel, shared) for index, panel in enumerate(panels)
    }
    script, places = components(figures, wrap_script=False)
    bokeh_js = Resources(mode="inline", components=["bokeh"]).js_raw
    return Drawing(
        scripts=(*bokeh_js, script), places=tuple(places[name].strip() for name in figures)
    )


def decimate(values: Sequence[float], limit: int) -> Sequence[int]:
    """Return which of the values to draw, at most `limit` of them.

    Args:
        values: In the order of time.
        limit: An even number.

    Returns:
        Rising indices: all of them, or of each of limit / 2 stretches of equal count the smallest
        and the largest value's.
    """
    if len(values) <= limit:
        return range(len(values))
    array = np.asarray(values, dtype=float)
    kept: set[int] = set()
    edges = np.linspace(0, len(array), limit // 2 + 1).astype(int)
    for start, end in pairwise(edges):
        stretch = array[start:end]
        kept |= {start + int(stretch.argmin()), start + int(stretch.argmax())}
    return sorted(kept)


def _figure(panel: Panel, shared: Range1d) -> figure:
    texts = _texts(panel)
    fig = figure(
        height=_HEIGHT_PX if texts is None else min(420, 110 + 22 * len(texts)),
        sizing_mode="stretch_width",
        x_axis_type="datetime",
        x_range=shared,
        min_border_left=_LEFT_PX,
        min_border_right=20,
        toolbar_location="right",
        tools=[],
    )
    hovered: list[DataRenderer] = [_line(fig, panel, line, texts) for line in panel.lines]
    wheel = WheelZoomTool(dimensions="width", modifiers={"ctrl": True})
    fig.add_tools(
        box := BoxZoomTool(dimensions="width"),
        PanTool(dimensions="width"),
        wheel,
        ResetTool(),
        SaveTool(),
        HoverTool(
            renderers=hovered,
            tooltips=[("time", "@t{%F %H:%M:%S.%3N} UTC"), ("value", "@shown"), ("for", "$name")],
            formatters={"@t": "datetime"},
            mode="vline" if len(panel.lines) > 1 else "mouse",
        ),
    )
    fig.toolbar.active_drag = box
    # With Ctrl only: a page of many figures must scroll under the wheel.
    fig.toolbar.active_scroll = wheel
    fig.toolbar.logo = None
    fig.toolbar.autohide = True
    _style(fig, panel, texts)
    return fig


def _line(
    fig: figure, panel: Panel, line: Line, texts: dict[str, int] | None
) -> "GlyphRenderer[Any]":
    numbers = [float(_number(value, texts)) for value in line.values]
    kept = decimate(numbers, MAX_POINTS)
    unit = f" {panel.unit}" if panel.unit else ""
    source = ColumnDataSource(
        {
            "t": np.asarray([line.times_ms[index] for index in kept], dtype=float),
            "y": np.asarray([numbers[index] for index in kept], dtype=float),
            "shown": [f"{_shown(line.values[index])}{unit}" for index in kept],
        }
    )
    look: dict[str, Any] = {"source": source, "color": line.colour, "name": line.name}
    drawn: GlyphRenderer[Any] = (
        fig.line("t", "y", line_width=1.5, **look)
        if texts is None
        else fig.step("t", "y", line_width=1.5, mode="after", **look)
    )
    if len(kept) <= _DOTS_BELOW:
        return fig.scatter("t", "y", size=5, **look)  # A single sample is no line.
    if texts is not None:
        return fig.scatter("t", "y", size=4, alpha=0.25, **look)  # A step cannot be hovered over.
    return drawn


def _texts(panel: Panel) -> dict[str, int] | None:
    """Return text -> height on the y axis where the values are not numbers, else None."""
    values = {value for line in panel.lines for value in line.values}
    if all(isinstance(value, bool) for value in values):
        return {"false": 0, "true": 1}
    if all(isinstance(value, str) for value in values):
        return {text: height for height, text in enumerate(sorted(map(str, values)))}
    return None


def _number(value: Value, texts: dict[str, int] | None) -> int | float:
    if texts is not None:
        return texts[_shown(value)]
    assert not isinstance(value, str), "a path gives text or numbers, not both"
    return value


def _shown(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return format(value, ".10g") if isinstance(value, float) else str(value)


def _style(fig: figure, panel: Panel, texts: dict[str, int] | None) -> None:
    fig.outline_line_color = None
    fig.xgrid.grid_line_color = fig.ygrid.grid_line_color = _GRID
    for axis in (fig.xaxis, fig.yaxis):
        axis.axis_line_color = axis.major_tick_line_color = "#999999"
        axis.minor_tick_line_color = None
        axis.major_label_text_color = axis.axis_label_text_color = _TEXT
        axis.major_label_text_font_size = "12px"
        axis.axis_label_text_font_size = "12px"
        axis.axis_label_text_font_style = "normal"
    fig.xaxis.axis_label = "time, UTC"
    fig.xaxis.axis_label_standoff = -8  # The date below the first tick leaves room beside it.
    if texts is None:
        fig.yaxis.axis_label = panel.unit
        fig.yaxis.ticker = BasicTicker(desired_num_ticks=5)
        fig.yaxis.formatter = BasicTickFormatter(use_scientific=False)
        return
    step = -(-len(texts) // _LABELS)
    fig.yaxis.ticker = list(texts.values())[::step]
    # PlainText: "$$" in a DBC's text must not call for MathJax, which is not in the page.
    fig.yaxis.major_label_overrides = {
        height: PlainText(text=_short(text)) for text, height in texts.items()
    }
    fig.y_range = Range1d(start=-0.4, end=len(texts) - 0.6)


def _short(text: str) -> str:
    return text if len(text) <= _LABEL_LENGTH else text[: _LABEL_LENGTH - 1] + "…"
