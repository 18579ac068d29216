"""The page that `consentry replay --report` writes: whole, safe and honest."""

import base64
import hashlib
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if not os.environ.get("CI"):  # There a skip is a failure.
    pytest.importorskip("bokeh", reason="the extra `report` is not installed")

from agent.cli.plot import MAX_POINTS, decimate
from agent.cli.report import write_report
from agent.core.model import Sample, Value
from agent.core.replay import PathReport
from agent.errors import AgentError

T0_NS = 1_780_300_800_000_000_000


def sample(
    value: Value, *, path: str = "Vehicle.Speed", at_s: float = 0, grant: str = "gr_1"
) -> Sample:
    return Sample(
        t_ns=T0_NS + round(at_s * 1000) * 1_000_000,
        recipient="fleet",
        grant_id=grant,
        scope="read_speedometer",
        path=path,
        value=value,
        unit="km/h" if isinstance(value, float) else None,
    )


def row(
    path: str = "Vehicle.Speed",
    *,
    grant: str | None = "gr_1",
    taken: int = 0,
    dropped: dict[str, int] | None = None,
    blocked: int = 0,
    why: str | None = None,
) -> PathReport:
    return PathReport(
        path=path,
        scope="read_speedometer",
        recipient=grant and "fleet",
        grant_id=grant,
        frames=taken + blocked,
        taken=taken,
        thinned=1234,
        dropped=dropped or {},
        blocked=blocked,
        why=why,
    )


class _Page(HTMLParser):
    """What a browser would see: scripts, links to elsewhere, cells and the page's own policy."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.policy = ""
        self.text = ""
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [given[name] or "" for name in ("src", "href") if name in given]
        self.ids += [given["id"] or ""] if "id" in given else []
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""
        if tag == "script":
            self._in_script = True
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = self._in_script and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data
        else:
            self.text += data


def page(
    folder: Path, samples: list[Sample], rows: list[PathReport], title: str = "a.log"
) -> _Page:
    path = folder / "page.html"
    write_report(path, samples, rows, title=title)
    return _Page(path.read_text("utf-8"))


def test_the_page_runs_its_own_scripts_and_nothing_else(tmp_path: Path) -> None:
    """Every script is named by its hash, and nothing may be loaded or sent."""
    shown = page(tmp_path, [sample(1.5), sample(2.5, at_s=1)], [row(taken=2)])

    rules = dict(rule.strip().split(" ", 1) for rule in shown.policy.split(";"))
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in shown.scripts
    ]
    assert rules["default-src"] == "'none'"
    assert rules["script-src"].split() == hashes
    assert len(hashes) >= 2


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    shown = page(tmp_path, [sample(1.5)], [row(taken=1)])

    assert shown.addresses
    assert all(address.startswith("#") for address in shown.addresses)
    assert {address[1:] for address in shown.addresses} <= set(shown.ids)


def test_the_page_says_per_path_what_was_taken_thinned_dropped_and_blocked(tmp_path: Path) -> None:
    rows = [
        row(taken=1, dropped={"named value": 7, "out of range": 8}),
        row("Vehicle.TraveledDistance", grant=None, blocked=4321, why="no grant names it"),
    ]

    text = page(tmp_path, [sample(1.5)], rows).text

    assert "fleet · grant gr_1" in text
    assert re.search(
        r"Vehicle\.Speed\s*1\s*1,234\s*15\s*\S\s*8 dropped: out of range; 7 dropped", text
    )
    assert re.search(
        r"Not granted\s*Vehicle\.TraveledDistance\s*\S\s*1,234\s*\S\s*4,321\s*no gr", text
    )
    assert "1 sample of 1 path to 1 recipient" in text
    assert "1 path blocked" in text


def test_no_sample_is_a_page_without_plots(tmp_path: Path) -> None:
    shown = page(tmp_path, [], [row(grant=None, blocked=3, why="there is no policy")])

    assert not shown.scripts
    assert "No sample would leave. 1 path blocked." in shown.text
    assert "script-src 'none'" in shown.policy


def test_text_from_files_cannot_become_markup(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"

    shown = page(
        tmp_path,
        [sample(evil, path="Vehicle.Text"), sample("$$x$$", path="Vehicle.Text", at_s=1)],
        [row(evil, why=evil)],
        title=evil,
    )

    assert len(shown.scripts) == 3  # BokehJS, its log level, the figures.
    assert not any("alert" in script and "<" in script for script in shown.scripts[2:])
    assert shown.text.count(evil) >= 3


@pytest.mark.parametrize("values", [[True, False], ["ON", "OFF"], [3, 4], [1.5, 2.5]])
def test_every_kind_of_value_is_drawn(tmp_path: Path, values: list[Value]) -> None:
    samples = [sample(value, at_s=index) for index, value in enumerate(values)]
    samples += [sample(value, at_s=index, grant="gr_2") for index, value in enumerate(values)]

    shown = page(tmp_path, samples, [row(taken=2)])

    is_step = not isinstance(values[0], int | float) or isinstance(values[0], bool)
    assert ('"Step"' in shown.scripts[-1]) is is_step
    assert "fleet · gr_2 · 2 samples" in shown.text


def test_each_function_of_an_aggregate_is_a_line_and_counts_have_their_own_figure(
    tmp_path: Path,
) -> None:
    results = [("max", 71.5), ("mean", 60.25), ("count", 600)]
    samples = [
        replace(sample(value, at_s=60 * minute), fn=fn, window_s=60)
        for minute in range(2)
        for fn, value in results
    ]

    shown = page(tmp_path, samples, [row(taken=6)])

    for line in ("max per 60 s · 2 samples", "mean per 60 s · 2 samples"):
        assert f"fleet · gr_1 · {line}" in shown.text
    assert "Vehicle.Speed, count" in shown.text
    assert "6 samples of 1 path to 1 recipient" in shown.text
    assert [name for name in shown.ids if name.startswith("plot-")] == ["plot-0", "plot-1"]


def test_a_long_signal_says_that_not_all_of_it_is_drawn(tmp_path: Path) -> None:
    samples = [sample(float(index % 7), at_s=index / 100) for index in range(MAX_POINTS + 2)]

    text = page(tmp_path, samples, [row(taken=len(samples))]).text

    assert f"{MAX_POINTS + 2:,} samples, of which at most {MAX_POINTS:,} are drawn" in text


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=300),
    half=st.integers(1, 40),
)
def test_what_is_drawn_of_a_long_signal_keeps_its_peaks(values: list[float], half: int) -> None:
    kept = decimate(values, 2 * half)

    assert list(kept) == sorted(set(kept))
    assert len(kept) <= 2 * half or len(values) <= 2 * half
    if values:
        drawn = [values[index] for index in kept]
        assert (min(drawn), max(drawn)) == (min(values), max(values))
    if len(values) <= 2 * half:
        assert list(kept) == list(range(len(values)))


def test_an_older_page_stays_where_the_new_one_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "page.html"
    folder.mkdir()

    with pytest.raises(AgentError, match="cannot be written") as caught:
        write_report(folder, [sample(1.5)], [row(taken=1)], title="a.log")

    assert caught.value.hint == "name another file with --report"
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]
