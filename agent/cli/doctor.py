"""`consentry doctor`: look at an installation and say what is wrong with it."""

import sys
from dataclasses import asdict
from pathlib import Path

import click

from agent.cli.asking import DEFAULT_CONFIG
from agent.cli.main import EXIT_OK
from agent.cli.output import write_json
from agent.doctor import Verdict, examine
from agent.errors import EXIT_FAILED

_COLOURS = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red"}


@click.command()
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    default=DEFAULT_CONFIG,
    show_default=True,
)
@click.option("--json", "as_json", is_flag=True)
def command(config_file: Path, *, as_json: bool) -> int:
    """Look at files, disk, clock, buses, broker and the running agent; say what to do.

    The exit status is 1 if something keeps the agent from its work.
    """
    checks = []
    for check in examine(config_file):
        checks.append(check)
        if not as_json:
            verdict = click.style(f"{check.verdict:<4}", fg=_COLOURS[check.verdict])
            click.echo(f"{verdict}  {check.name:<7} {check.text}")
            if check.hint and check.verdict is not Verdict.OK:
                click.echo(f"               {check.hint}")
    if as_json:
        write_json(sys.stdout, [asdict(check) for check in checks])
    failed = any(check.verdict is Verdict.FAIL for check in checks)
    return EXIT_FAILED if failed else EXIT_OK
