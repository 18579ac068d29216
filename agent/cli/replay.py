"""`consentry replay`: what would leave the vehicle for recorded logs.

The log's time is the clock, and nothing leaves this machine: a policy may be unsigned JSON. The
samples are exactly those that the daemon would seal (see `agent.core.replay`).
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

import click

from agent.cli.main import EXIT_OK, fail
from agent.cli.output import channel_names, note, result_file, warn, write_json, write_samples
from agent.core.binding import Binding, bind, merge
from agent.core.catalogue import Catalogue
from agent.core.dbc import DbcFile
from agent.core.mapping import VehicleMapping
from agent.core.model import Frame
from agent.core.replay import PathReport, Replay
from agent.edge.files import load_catalogue, load_dbc, load_mapping, load_policy, load_trust
from agent.edge.logfile import Recording, read_logs
from agent.errors import AgentError
from agent.resources import shipped

_CHUNK = 4096  # Frames between two looks at the progress bar and the plan.


class _ManyValues(click.Command):
    """Lets `--dbc` and `--channel` take several values in a row, as in `--dbc a.dbc b.dbc`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        option = None
        for arg in args:
            follows = option is not None and spread[-2:-1] == [option]
            if follows and _belongs(option, arg):
                spread += [option or "", arg]
            else:
                spread.append(arg)
                if arg.startswith("-"):
                    option = arg if arg in {"--dbc", "--channel"} else None
        return super().parse_args(ctx, spread)


def _belongs(option: str | None, arg: str) -> bool:
    if arg.startswith("-"):
        return False
    if option == "--dbc":
        return arg.lower().endswith(".dbc")
    return "=" in arg and not Path(arg).exists()


@click.command(cls=_ManyValues)
@click.argument("logs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="LOG...")
@click.option(
    "--dbc", "dbcs", multiple=True, required=True, metavar="[BUS=]FILE", help="A DBC file; several."
)
@click.option(
    "--mapping", required=True, type=click.Path(path_type=Path), help="VSS path -> signal."
)
@click.option(
    "--policy", required=True, type=click.Path(path_type=Path), help="Unsigned JSON or a JWS."
)
@click.option("--catalogue", type=click.Path(path_type=Path), help="Default: the one we ship.")
@click.option(
    "--trust", type=click.Path(path_type=Path), help="Trust file: check the JWS's signature."
)
@click.option(
    "--channel",
    "channels",
    multiple=True,
    metavar="NAME=BUS",
    help="The bus of a log's channel; several. Default: all apply to all.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv", "summary"]),
    default="jsonl",
    show_default=True,
)
@click.option("--json", "as_json", is_flag=True, help="The summary as JSON.")
@click.option("--out", type=click.Path(path_type=Path), help="Write there instead of stdout.")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="Write a page to look at.",
)
def command(  # noqa: PLR0913 - one argument per option
    *,
    logs: tuple[Path, ...],
    dbcs: tuple[str, ...],
    mapping: Path,
    policy: Path,
    catalogue: Path | None,
    trust: Path | None,
    channels: tuple[str, ...],
    form: str,
    as_json: bool,
    out: Path | None,
    report: Path | None,
) -> int:
    """Print the samples that recorded LOGs would give under a policy; several are one recording.

    Reads candump, ASC, BLF, TRC, MF4 and CSV, each also gzipped.
    """
    if as_json and form != "summary":
        raise click.UsageError("--json is the form of the summary: add --format summary")
    if report is not None:
        from agent.cli.report import ensure_bokeh, write_report  # noqa: PLC0415 - slow to import

        ensure_bokeh()  # Before the replay, which may take minutes.
    scopes = load_catalogue(catalogue or shipped("config/catalogue.json"))
    buses = channel_names(channels)
    binding = _bind(load_mapping(mapping), _load_dbcs(dbcs, buses), scopes, buses)
    loaded = load_policy(policy, scopes, trust=load_trust(trust) if trust else None)
    warn([*binding.warnings, *loaded.warnings])
    if binding.outside:
        note(f"{len(binding.outside)} mapped paths are not in the catalogue and cannot be granted")
    note(f"catalogue {scopes.id} {scopes.version}, sha256 {scopes.sha256}")
    with read_logs(logs) as recording:
        replay = Replay(
            loaded.policy,
            scopes,
            binding,
            named_buses=sorted(set(buses.values())),
            time_known=recording.absolute_time,
        )
        for chunk in _chunks(recording, buses):
            replay.feed(chunk)
    replay.finish()
    rows = replay.report()
    with result_file(out) as file:
        if form != "summary":
            write_samples(file, replay.samples(), form)
        elif as_json:
            write_json(file, _summary(rows, recording))
        else:
            _write_summary(file, rows, recording)
    if report is not None:
        write_report(report, replay.samples(), rows, title=", ".join(log.name for log in logs))
    return _end(recording, rows, form)


def _load_dbcs(dbcs: Sequence[str], buses: dict[str, str]) -> list[tuple[str | None, DbcFile]]:
    """Load the DBC files; one given as BUS=FILE applies to that bus only."""
    loaded: list[tuple[str | None, DbcFile]] = []
    for text in dbcs:
        bus, equals, name = text.partition("=")
        limited = bool(equals) and bus in buses.values()
        dbc = load_dbc(Path(name if limited else text))
        warn(f"{dbc.name}: {repair}" for repair in dbc.told())
        loaded.append((bus if limited else None, dbc))
    return loaded


def _bind(
    mapping: VehicleMapping,
    dbcs: list[tuple[str | None, DbcFile]],
    catalogue: Catalogue,
    buses: dict[str, str],
) -> Binding:
    named = sorted(set(buses.values()))
    parts = [
        bind(
            mapping,
            [dbc for only, dbc in dbcs if only in (None, bus)],
            catalogue,
            bus=bus,
            any_bus=not named,
        )
        for bus in [*named, None]
    ]
    return merge(parts)


def _chunks(recording: Recording, buses: dict[str, str]) -> Iterator[list[Frame]]:
    """Yield the recording in chunks, channels renamed to their buses, with a progress bar."""
    with _progress() as advance:
        chunk: list[Frame] = []
        for frame in recording:
            chunk.append(frame)
            if len(chunk) >= _CHUNK:
                yield _renamed(chunk, buses)
                advance(recording.progress)
                chunk = []
        yield _renamed(chunk, buses)


def _renamed(chunk: list[Frame], buses: dict[str, str]) -> list[Frame]:
    if not buses:
        return chunk
    return [(t_ns, buses.get(bus, bus), can_id, data) for t_ns, bus, can_id, data in chunk]


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[float], None]]:
    """Give a function that shows how much of the logs was read, where there is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415 - slow to import
    from rich.progress import Progress  # noqa: PLC0415 - as above

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replay", total=1.0)
        yield lambda done: bar.update(task, completed=done)


def _summary(rows: list[PathReport], recording: Recording) -> dict[str, object]:
    return {
        "frames": sum(report.frames for report in recording.reports),
        "broken_lines": sum(report.broken for report in recording.reports),
        "absolute_time": recording.absolute_time,
        "samples": sum(row.taken for row in rows),
        "paths": [asdict(row) for row in rows],
    }


def _write_summary(file: IO[str], rows: list[PathReport], recording: Recording) -> None:
    """Write the table for a person: per path what was taken, thinned and blocked, and why."""
    frames = sum(report.frames for report in recording.reports)
    file.write(f"{frames} frames, {sum(row.taken for row in rows)} samples\n\n")
    lines = [("path", "recipient", "grant", "taken", "thinned", "dropped", "blocked", "why")]
    for row in sorted(rows, key=lambda row: (row.grant_id is None, row.path)):
        why = [f"{count} {reason}" for reason, count in sorted(row.dropped.items())]
        lines.append(
            (
                row.path,
                row.recipient or "-",
                row.grant_id or "-",
                str(row.taken),
                str(row.thinned),
                str(sum(row.dropped.values())),
                str(row.blocked),
                "; ".join([*([row.why] if row.why else []), *why]),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.rjust(width) if 3 <= index <= 6 else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        file.write("  ".join(cells).rstrip() + "\n")


def _end(recording: Recording, rows: list[PathReport], form: str) -> int:
    """Say what a person should know about the run and return the exit status."""
    if not recording.absolute_time:
        note(
            "the log has no absolute time: it counts from 0, and so do nbf and exp against it; "
            "windows are closed"
        )
    if form != "summary":
        frames = sum(report.frames for report in recording.reports)
        taken, blocked = sum(row.taken for row in rows), sum(bool(row.blocked) for row in rows)
        note(f"{frames} frames, {taken} samples, {blocked} paths blocked (--format summary)")
    for report in recording.reports:
        for line in report.notes:
            note(f"{report.file}: {line}")
    broken = [report for report in recording.reports if report.broken]
    if broken:
        first = broken[0].first_broken[0]
        place = f"{broken[0].file}:{first.line}" if first.line else broken[0].file
        return fail(
            AgentError(
                f"{place}: {first.reason} "
                f"({sum(report.broken for report in broken)} places could not be read)",
                hint="the samples of everything else are there; mend or cut the log there",
            )
        )
    return EXIT_OK
