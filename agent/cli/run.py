"""`consentry run`: the agent."""

import logging
from pathlib import Path

import click

from agent.config import load_config
from agent.edge.files import read_file


@click.command()
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    default=Path("/etc/consentry/agent.toml"),
    show_default=True,
)
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    help="A signed policy to apply first, as if it had come from the broker.",
)
def command(config_file: Path, policy: Path | None) -> None:
    """Run the agent until it is told to stop (SIGTERM, SIGINT); SIGHUP reads its files anew."""
    from agent import life  # noqa: PLC0415 - imports every lane
    from agent.log import start_logging  # noqa: PLC0415

    config = load_config(config_file)
    start_logging(config.log.level)
    first = None if policy is None else read_file(policy, "the policy").strip()
    try:
        life.run(config, reread=lambda: load_config(config_file), first_policy=first)
    finally:
        logging.shutdown()
