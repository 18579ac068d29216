"""What the commands share that ask the running agent: where it listens, and how times are told."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from agent.config import load_config
from agent.core.ask import MAX_STOP_S, Verb
from agent.core.standing import EVERY_GRANT
from agent.core.status import StopStatus
from agent.core.telling import moment, span
from agent.edge.control_client import ask

DEFAULT_CONFIG = Path("/etc/consentry/agent.toml")

_P = ParamSpec("_P")
_R = TypeVar("_R")
_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "min": 60, "s": 1}
_SPAN = re.compile(r"(\d{1,9})(d|h|min|m|s)", re.ASCII)


def span_of(_ctx: click.Context, _param: click.Parameter, text: str | None) -> int | None:
    """Return a time span such as 90s, 15min, 2h or 1d12h in s; a callback for an option."""
    if text is None:
        return None
    parts = _SPAN.findall(text)
    span_s = sum(int(count) * _UNITS[unit] for count, unit in parts)
    if "".join(count + unit for count, unit in parts) != text or span_s < 1:
        raise click.BadParameter(f"{text!r}, expected a time span such as 90s, 15min, 2h or 1d")
    if span_s > MAX_STOP_S:
        raise click.BadParameter(f"{text} is over a year, leave it out and resume when it is over")
    return span_s


def asks_the_agent(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Add the options that say where the running agent listens."""
    command = click.option(
        "--socket", type=click.Path(path_type=Path), help="The control socket, without --config."
    )(command)
    return click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        default=DEFAULT_CONFIG,
        show_default=True,
        help="Where `socket` under [control] stands.",
    )(command)


def asked(verb: Verb, config_file: Path, socket: Path | None) -> dict[str, Any]:
    """Return the running agent's answer; raises as `agent.edge.control_client.ask`."""
    return ask(socket or load_config(config_file).control.socket, verb)


def stop_told(stop: StopStatus) -> str:
    """Return a local stop as a sentence's end."""
    what = "all grants" if stop.grant_id == EVERY_GRANT else f"grant {stop.grant_id}"
    left = "until resumed" if stop.left_s is None else f"for another {span(stop.left_s)}"
    if stop.who == "switch":
        left = "until the switch says otherwise"
    if stop.who == "damage":
        left = "because consent.db was damaged and the ledger does not know all; look, then resume"
    return f"{what}, by {stop.who} since {moment(stop.since_s)}, {left}"
