"""`consentry pause`: stop collecting and publishing at once, at the vehicle."""

import sys
from pathlib import Path

import click

from agent.cli.asking import asked, asks_the_agent, span_of, stop_told
from agent.cli.output import write_json
from agent.core.ask import Pause
from agent.core.status import parse_stops


@click.command()
@click.option("--grant", help="Only this grant; without it all, and those to come.")
@click.option(
    "--for",
    "for_s",
    metavar="SPAN",
    callback=span_of,
    help="As in 90s, 15min, 2h or 1d. Default: until resumed.",
)
@click.option("--json", "as_json", is_flag=True)
@asks_the_agent
def command(
    config_file: Path,
    socket: Path | None,
    grant: str | None,
    for_s: int | None,
    *,
    as_json: bool,
) -> None:
    """Stop collecting and publishing at once; no network is needed, and no cloud can lift it."""
    answer = asked(Pause(grant, for_s), config_file, socket)
    if as_json:
        write_json(sys.stdout, answer)
        return
    for stop in parse_stops(answer):
        click.echo(f"stopped: {stop_told(stop)}")
