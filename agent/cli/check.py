"""`consentry check`: build everything that `run` would, start nothing."""

import sys
import time
from pathlib import Path
from typing import Any

import click

from agent.cli.main import EXIT_OK
from agent.cli.output import warn, write_json
from agent.config import load_config
from agent.core.plan import Plan, compile_plan
from agent.edge.files import load_policy
from agent.errors import ConfigError


@click.command()
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    default=Path("/etc/consentry/agent.toml"),
    show_default=True,
)
@click.option("--policy", type=click.Path(path_type=Path), help="Also show what it would let out.")
@click.option("--strict", is_flag=True, help="Warnings are errors.")
@click.option("--json", "as_json", is_flag=True)
def command(config_file: Path, policy: Path | None, *, strict: bool, as_json: bool) -> int:
    """Read every file that the configuration names and tell what the vehicle can give."""
    from agent.parts import load_parts  # noqa: PLC0415 - imports every lane

    config = load_config(config_file)
    parts = load_parts(config)
    plan: Plan | None = None
    warnings = list(parts.warnings)
    if policy is not None:
        loaded = load_policy(policy, parts.catalogue, trust=parts.trust)
        plan = compile_plan(
            loaded.policy,
            parts.catalogue,
            parts.binding,
            now_ns=time.time_ns(),
            named_buses=parts.named_buses,
        )
    if strict and warnings:
        raise ConfigError(
            f"{len(warnings)} findings: {'; '.join(warnings)}", hint="mend them, or drop --strict"
        )
    warn(warnings)
    found: dict[str, Any] = {
        "vehicle": config.vehicle.id,
        "catalogue": {
            "id": parts.catalogue.id,
            "version": parts.catalogue.version,
            "sha256": parts.catalogue.sha256,
        },
        "buses": list(parts.named_buses),
        "mapped": sorted({bound.vss.path for bound in parts.binding.bound}),
        "disabled": parts.binding.disabled,
        "outside_catalogue": len(parts.binding.outside),
        "taken": sorted({take.path for take in plan.takes}) if plan else None,
    }
    if as_json:
        write_json(sys.stdout, found)
        return EXIT_OK
    click.echo(f"vehicle {config.vehicle.id}, buses {', '.join(parts.named_buses)}")
    click.echo(f"catalogue {parts.catalogue.id} {parts.catalogue.version}")
    click.echo(
        f"{len(found['mapped'])} paths can be given, {len(parts.binding.disabled)} are disabled, "
        f"{len(parts.binding.outside)} are outside the catalogue"
    )
    if plan is not None:
        click.echo(f"the policy lets out {len(found['taken'])} of them")
    click.echo("ok")
    return EXIT_OK
