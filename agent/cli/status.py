"""`consentry status`: how the running agent is, as a person or a program reads it."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from agent.cli.asking import asked, asks_the_agent, stop_told
from agent.cli.output import write_json
from agent.core.ask import Status
from agent.core.standing import EVERY_GRANT
from agent.core.status import StatusReport, parse_status
from agent.core.telling import moment, span

_COLOURS = {
    **dict.fromkeys(("active", "up", "known", "ok"), "green"),
    **dict.fromkeys(("paused", "pending", "idle", "warning", "not known"), "yellow"),
    **dict.fromkeys(
        ("revoked", "expired", "down", "missing", "passive", "bus-off", "dead", "none", "stopped"),
        "red",
    ),
}
_GAP = "  "


@click.command()
@click.option("--json", "as_json", is_flag=True)
@asks_the_agent
def command(config_file: Path, socket: Path | None, *, as_json: bool) -> None:
    """Show how the running agent is: lanes, policy, grants, local stops, spool, uplink, buses."""
    answer = asked(Status(), config_file, socket)
    if as_json:
        write_json(sys.stdout, answer)
        return
    for line in drawn(parse_status(answer)):
        click.echo(line)


def drawn(status: StatusReport) -> Iterable[str]:
    """Yield the lines of the picture; colours vanish where the output is no terminal."""
    up_s = max(0, status.now_s - status.started_s)
    yield f"consentry {status.version}, vehicle {status.vehicle}, running for {span(up_s)}"
    yield ""
    policy = status.policy
    if policy is None:
        yield _row("policy", _shown("none"), "nothing is collected before the first one has come")
    else:
        is_over = policy.until_s is not None and policy.until_s <= status.now_s
        yield _row(
            "policy",
            f"epoch {policy.epoch}, version {policy.ver}, until {moment(policy.until_s)}",
            _shown("expired") if is_over else "",
        )
    for stop in status.stops:
        yield _row(_shown("stopped"), stop_told(stop))
    for item in status.restrictions:
        grants = ["all grants" if grant == EVERY_GRANT else grant for grant in item.grants]
        yield _row("restricted", f"{item.mode} of {', '.join(grants)} since {moment(item.since_s)}")
    known = _shown("known") if status.is_time_known else _shown("not known")
    yield _row("time", known, f"now {moment(status.now_s)}")
    yield _row("uplink", _shown(status.uplink), f"{_count(status.in_flight, 'envelope')} in flight")
    envelopes = sum(grant.envelopes for grant in status.grants)
    size = sum(grant.size_bytes for grant in status.grants)
    yield _row("spool", _count(envelopes, "envelope"), _size(size))
    lanes = (f"{lane.name} {_shown('ok' if lane.is_alive else 'dead')}" for lane in status.lanes)
    yield _row("lanes", ", ".join(lanes))
    counts = [f"{name.replace('_', ' ')} {n:,}" for name, n in sorted(status.counts.items()) if n]
    if counts:
        yield _row("so far", ", ".join(counts))
    yield ""
    yield from _table(
        ("bus", "state", "frames", "lost", "errors", "reopened", "last frame"),
        [
            (
                *(bus.name, _shown(bus.state), f"{bus.frames:,}", f"{bus.lost_frames:,}"),
                *(f"{bus.errors:,}", f"{bus.reconnects:,}"),
                "never"
                if bus.last_frame_s is None
                else f"{span(max(0, status.now_s - bus.last_frame_s))} ago",
            )
            for bus in status.buses
        ],
    )
    yield ""
    if not status.grants:
        yield "no grants"
        return
    yield from _table(
        ("grant", "recipient", "state", "until", "spool", "scopes"),
        [
            (
                f"{grant.grant_id} r{grant.rev}",
                grant.recipient,
                grant.state,
                moment(grant.until_s),
                str(grant.envelopes),
                ", ".join(grant.scopes) + (f" ({grant.why})" if grant.why else ""),
            )
            for grant in status.grants
        ],
    )


def _row(name: str, *parts: str) -> str:
    padding = " " * max(0, 10 - len(click.unstyle(name)))
    return f"{name}{padding} {', '.join(part for part in parts if part)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    yield click.style(
        _GAP.join(c.ljust(w) for c, w in zip(head, widths, strict=True)).rstrip(), bold=True
    )
    for row in rows:
        cells = (_padded(cell, width) for cell, width in zip(row, widths, strict=True))
        yield _GAP.join(cells).rstrip()


def _padded(cell: str, width: int) -> str:
    return _shown(cell) + " " * (width - len(cell))


def _shown(word: str) -> str:
    colour = _COLOURS.get(word)
    return word if colour is None else click.style(word, fg=colour)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _size(size_bytes: int) -> str:
    size: float = size_bytes
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
