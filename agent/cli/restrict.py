"""`consentry restrict`: hand over a restrict document at the vehicle, without a network."""

import sys
from pathlib import Path

import click

from agent.cli.asking import asked, asks_the_agent
from agent.cli.output import write_json
from agent.core.ask import MAX_ASK_BYTES, Restrict
from agent.core.standing import EVERY_GRANT
from agent.edge.files import read_file
from agent.errors import AgentError, ConfigError


@click.command()
@click.argument("document", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True)
@asks_the_agent
def command(config_file: Path, socket: Path | None, document: Path, *, as_json: bool) -> None:
    """Hand over a restrict DOCUMENT (JWS) that the owner signed; it can only restrict."""
    data = read_file(document, "the restrict document").strip()
    if not data.isascii() or not 0 < len(data) < MAX_ASK_BYTES - 64:
        raise ConfigError(
            f"{document} is no restrict document",
            hint="it is a compact JWS: three parts of text with dots between them",
        )
    answer = asked(Restrict(data.decode("ascii")), config_file, socket)
    if as_json:
        write_json(sys.stdout, answer)
        return
    try:
        grants = ["all grants" if grant == EVERY_GRANT else grant for grant in answer["grants"]]
        again = " (it was known already)" if answer["outcome"] == "repeated" else ""
        click.echo(f"in force: {answer['mode']} of {', '.join(grants)}{again}")
    except (KeyError, TypeError) as exc:
        raise AgentError("the agent's answer is of another version", hint="restart it") from exc
