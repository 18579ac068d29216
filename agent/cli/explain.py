"""`consentry explain`: why one VSS path leaves the vehicle, or does not."""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import click

from agent.cli.asking import asked, asks_the_agent
from agent.cli.output import note, result_file, write_json
from agent.config import load_config
from agent.core.ask import Explain
from agent.core.explain import explain
from agent.core.explanation import Explanation, Finding, TakeFacts, View, parse_explanation
from agent.core.model import Frame
from agent.core.plan import compile_plan
from agent.core.policy import Policy
from agent.core.replay import Replay
from agent.edge.files import load_policy
from agent.edge.logfile import read_logs
from agent.errors import NotRunning
from agent.parts import Vehicle, load_vehicle

_CHUNK = 4096  # Frames between two looks at the plan.
_MARKS = {Finding.YES: "yes", Finding.NO: "no", Finding.UNKNOWN: "?", Finding.NOTE: ""}
_COLOURS = {Finding.YES: "green", Finding.NO: "red", Finding.UNKNOWN: "yellow"}


@click.command()
@click.argument("path")
@click.option(
    "--live/--offline",
    "is_live",
    default=None,
    help="Ask the running agent, or read the files. Default: live without --policy and --log.",
)
@click.option("--policy", type=click.Path(path_type=Path), help="Offline: unsigned JSON or a JWS.")
@click.option(
    "--log",
    "logs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Offline: what came on the bus, and when; several are one recording.",
)
@click.option("--json", "as_json", is_flag=True)
@asks_the_agent
def command(  # noqa: PLR0913 - one argument per option
    *,
    config_file: Path,
    socket: Path | None,
    path: str,
    is_live: bool | None,
    policy: Path | None,
    logs: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Show the whole chain for a VSS PATH: catalogue, mapping, DBC, bus, grants, what became of it.

    With --log, now is the last moment of the log.
    """
    offline = policy is not None or bool(logs)
    if is_live and offline:
        raise click.UsageError("--policy and --log are for --offline: the agent has its own")
    if is_live or (is_live is None and not offline):
        try:
            found = parse_explanation(asked(Explain(path), config_file, socket))
        except NotRunning as exc:
            raise NotRunning(exc.message, hint=f"{exc.hint}; --offline reads the files") from exc
    else:
        vehicle = load_vehicle(load_config(config_file))
        found = explain(path, _view(vehicle, policy, logs))
    with result_file(None) as file:
        if as_json:
            write_json(file, found.members())
            return
        file.write("\n".join(_drawn(found, is_coloured=sys.stdout.isatty())) + "\n")


def _view(vehicle: Vehicle, policy_file: Path | None, logs: Sequence[Path]) -> View:
    policy = None
    if policy_file is None:
        note("no policy was named: --policy FILE says what it would permit")
    else:
        policy = load_policy(policy_file, vehicle.catalogue, trust=vehicle.trust).policy
    if logs:
        return _view_of_logs(vehicle, policy, logs)
    now_ns = time.time_ns()
    plan = compile_plan(
        policy, vehicle.catalogue, vehicle.binding, now_ns=now_ns, named_buses=vehicle.named_buses
    )
    return View(vehicle.catalogue, vehicle.binding, policy, plan, now_ns)


def _view_of_logs(vehicle: Vehicle, policy: Policy | None, logs: Sequence[Path]) -> View:
    strangers: Counter[str] = Counter()
    now_ns = 0
    with read_logs(logs) as recording:
        is_time_known = recording.absolute_time
        replay = Replay(
            policy,
            vehicle.catalogue,
            vehicle.binding,
            named_buses=vehicle.named_buses,
            time_known=is_time_known,
        )
        frames = iter(recording)
        while chunk := list(islice(frames, _CHUNK)):
            named = list(_on_buses(chunk, vehicle.named_buses, strangers))
            replay.feed(named)
            now_ns = max(now_ns, *(frame[0] for frame in chunk))
    replay.finish()
    for channel, count in strangers.items():
        note(f"the log's channel {channel} is no bus of agent.toml: {count} frames passed over")
    broken = sum(report.broken for report in recording.reports)
    if broken:
        note(f"{broken} places of the log could not be read")
    facts, seen = _facts(replay)
    return View(
        vehicle.catalogue,
        vehicle.binding,
        policy,
        compile_plan(
            policy,
            vehicle.catalogue,
            vehicle.binding,
            now_ns=now_ns,
            named_buses=vehicle.named_buses,
            time_known=is_time_known,
        ),
        now_ns,
        is_time_known=is_time_known,
        facts=facts,
        frames=seen,
        since="in the log",
    )


def _on_buses(
    chunk: Sequence[Frame], buses: Sequence[str], strangers: Counter[str]
) -> Iterator[Frame]:
    """Give each frame its bus: a single bus takes all channels, else the names must agree."""
    for t_ns, channel, can_id, data in chunk:
        if len(buses) == 1:
            yield t_ns, buses[0], can_id, data
        elif channel in buses:
            yield t_ns, channel, can_id, data
        else:
            strangers[channel] += 1


def _facts(replay: Replay) -> tuple[dict[tuple[str, str], TakeFacts], Mapping[str, int]]:
    last_ns: dict[tuple[str, str], int] = {}
    for sample in replay.samples():
        last_ns[sample.grant_id, sample.path] = sample.t_ns
    rows = replay.report()
    facts = {
        (row.grant_id, row.path): TakeFacts(
            taken=row.taken,
            thinned=row.thinned,
            drops=row.dropped,
            last_taken_ns=last_ns.get((row.grant_id, row.path)),
        )
        for row in rows
        if row.grant_id is not None
    }
    return facts, {row.path: row.frames for row in rows}


def _drawn(found: Explanation, *, is_coloured: bool) -> Iterator[str]:
    def mark(finding: Finding) -> str:
        text = _MARKS[finding].ljust(3)
        return click.style(text, fg=_COLOURS.get(finding)) if is_coloured else text

    yield found.path
    for step in found.steps:
        yield f"  {mark(step.finding)}  {step.name:<10}  {step.text}"
    verdict = click.style(found.verdict, bold=True) if is_coloured else found.verdict
    yield f"  {verdict}"
