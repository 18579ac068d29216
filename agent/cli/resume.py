"""`consentry resume`: lift a stop that was set at the vehicle."""

import sys
from pathlib import Path

import click

from agent.cli.asking import asked, asks_the_agent, stop_told
from agent.cli.output import write_json
from agent.core.ask import Resume
from agent.core.status import parse_stops


@click.command()
@click.option("--grant", help="The stop of this grant; without it the one of all grants.")
@click.option("--json", "as_json", is_flag=True)
@asks_the_agent
def command(config_file: Path, socket: Path | None, grant: str | None, *, as_json: bool) -> None:
    """Lift a local stop; what the policy and other stops hold back stays back."""
    answer = asked(Resume(grant), config_file, socket)
    if as_json:
        write_json(sys.stdout, answer)
        return
    stops = parse_stops(answer)
    for stop in stops:
        click.echo(f"still stopped: {stop_told(stop)}")
    if not stops:
        click.echo("nothing is stopped at the vehicle")
