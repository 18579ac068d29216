"""`consentry top`: the picture of `consentry status` again and again, and what moves per second."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from agent.cli.asking import asked, asks_the_agent
from agent.cli.status import count_told, drawn
from agent.core.ask import Status
from agent.core.status import StatusReport, parse_status

_MOVING = ("samples", "sealed", "delivered")  # Of the counts, what a person watches.


@click.command()
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    help="Between two.",
)
@click.option("--count", type=click.IntRange(min=1), help="End after so many pictures.")
@asks_the_agent
def command(config_file: Path, socket: Path | None, seconds: float, count: int | None) -> None:
    """Watch the running agent until interrupted."""
    pictures = _pictures(config_file, socket, seconds, count)
    if not sys.stdout.isatty():
        for picture in pictures:
            click.echo(picture + "\n")
        return
    from rich.live import Live  # noqa: PLC0415 - slow to import
    from rich.text import Text  # noqa: PLC0415 - as above

    with contextlib.suppress(KeyboardInterrupt), Live(screen=True, auto_refresh=False) as live:
        for picture in pictures:
            live.update(Text.from_ansi(picture), refresh=True)


def _pictures(
    config_file: Path, socket: Path | None, seconds: float, count: int | None
) -> Iterator[str]:
    before: tuple[float, StatusReport] | None = None
    shown = 0
    while True:
        now = time.monotonic(), parse_status(asked(Status(), config_file, socket))
        rates = "" if before is None else _rates(before[1], now[1], now[0] - before[0])
        yield "\n".join([*drawn(now[1]), "", rates]).rstrip()
        shown += 1
        if shown == count:
            return
        before = now
        time.sleep(seconds)


def _rates(before: StatusReport, now: StatusReport, span_s: float) -> str:
    """Return what moved, per second."""
    frames = {bus.name: bus.frames for bus in before.buses}
    moved = {f"frames on {b.name}": b.frames - frames.get(b.name, 0) for b in now.buses}
    moved |= {
        count_told(name): now.counts[name] - before.counts.get(name, 0)
        for name in _MOVING
        if name in now.counts
    }
    # Below zero it was started anew in between.
    return "per second  " + ", ".join(
        f"{max(0, count) / span_s:,.1f} {name}" for name, count in moved.items()
    )
