"""`consentry demo`: the main job on this machine, from a drive to what its recipients open."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from agent.cli.main import EXIT_OK
from agent.cli.output import write_json
from agent.errors import EXIT_FAILED
from agent.resources import shipped

_FILE = click.Path(path_type=Path)
_SHOWN_S = 20.0  # How long the drive is played, wall-clock, at the most.


@click.command()
@click.option("--log", "logs", multiple=True, type=_FILE, help="A recorded drive; several are one.")
@click.option("--dbc", "dbcs", multiple=True, type=_FILE, help="The DBC files of its bus.")
@click.option("--mapping", type=_FILE, help="VSS path -> signal.")
@click.option(
    "--speed",
    type=click.FloatRange(min=1, max=1000),
    default=30.0,
    show_default=True,
    help="How many times as fast as the drive was.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option(
    "--sabotage",
    type=click.Choice(["purge", "gate", "seal"]),
    hidden=True,
    help="Break one promise, to see that it is noticed.",
)
def command(  # noqa: PLR0913 - one argument per option
    *,
    logs: tuple[Path, ...],
    dbcs: tuple[Path, ...],
    mapping: Path | None,
    speed: float,
    as_json: bool,
    sabotage: str | None,
) -> int:
    """Play a drive through broker, agent and two recipients, and revoke one of them mid-way.

    Without --log the simulated drive that we ship is played. The exit status is 1 if any promise
    was broken.
    """
    if bool(logs) != bool(dbcs) or bool(logs) != bool(mapping):
        raise click.UsageError("--log, --dbc and --mapping belong together")
    from rich.console import Console  # noqa: PLC0415 - slow to import

    from agent.demo.scenario import Story  # noqa: PLC0415 - every lane
    from agent.demo.screen import print_summary, screen  # noqa: PLC0415 - as above
    from agent.demo.state import Options, State  # noqa: PLC0415 - as above
    from agent.log import start_logging  # noqa: PLC0415 - as above

    start_logging("error")
    options = Options(
        logs=logs or (shipped("demo/drive_SIMULATED.log"),),
        dbcs=dbcs or (shipped("dbc/demo_vehicle.dbc"),),
        mapping=mapping or shipped("config/vehicles/demo_vehicle.vspec"),
        speed=speed,
        longest_s=speed * _SHOWN_S,
        sabotage=sabotage,
    )
    state = State()
    console = Console(stderr=as_json, soft_wrap=True)
    with screen(state, console) as changed:
        promises = Story(options, state, changed).run()
    if as_json:
        write_json(sys.stdout, _result(state, [asdict(promise) for promise in promises]))
    else:
        print_summary(state, promises, console)
    kept = all(promise.kept for promise in promises)
    console.print(
        "\nall promises were kept" if kept else "\nat least one promise was BROKEN",
        style="bold green" if kept else "bold red",
        highlight=False,
    )
    return EXIT_OK if kept else EXIT_FAILED


def _result(state: Any, promises: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "broker": state.broker,
        "frames": state.frames,
        "opened": {
            name: {"envelopes": state.envelopes[name], "samples": dict(paths)}
            for name, paths in state.opened.items()
        },
        "blocked": state.blocked,
        "promises": promises,
        "kept": all(promise["kept"] for promise in promises),
    }
