"""`consentry status`: how the running agent is, as a person or a program reads it."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import click

from agent.cli.asking import asked, asks_the_agent, stop_told
from agent.cli.output import counted, size, table, write_json
from agent.core.ask import Status
from agent.core.standing import EVERY_GRANT
from agent.core.status import LaneStatus, StatusReport, parse_status
from agent.core.telling import moment, span

_COLOURS = {
    **dict.fromkeys(("active", "up", "known", "ok"), "green"),
    **dict.fromkeys(
        ("paused", "pending", "idle", "silent", "warning", "not known", "ends soon"), "yellow"
    ),
    **dict.fromkeys(
        (
            "revoked",
            "expired",
            "down",
            "missing",
            "passive",
            "bus-off",
            "dead",
            "none",
            "stopped",
            "ended",
        ),
        "red",
    ),
}
# What each count counts, in the order of an envelope's life; others are told by their name.
_COUNTS = {
    "samples": "sample{s} sealed",
    "sealed": "envelope{s} sealed",
    "delivered": "delivered",
    "unheard": "without a subscriber",
    "refused": "refused by the broker",
    "expired": "expired",
    "evicted": "evicted",
    "dropped_ended": "batch{es} dropped with the grant",
    "dropped_store": "batch{es} lost to the disk",
    "ledger_lost": "of the ledger's entries lost",
}


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
    yield _row(
        "uplink", _shown(status.uplink), f"{counted(status.in_flight, 'envelope')} in flight"
    )
    envelopes = sum(grant.envelopes for grant in status.grants)
    in_spool = size(sum(grant.size_bytes for grant in status.grants))
    disk, ends_s = status.disk, status.certificate_ends_s
    yield _row(
        "spool",
        f"{counted(envelopes, 'envelope')} waiting",
        in_spool,
        _bad(f"unusable: {disk.spool_fault}" if disk.spool_fault else ""),
    )
    yield _row(
        "ledger",
        f"{disk.ledger_size:,} entries",
        _bad(f"{disk.ledger_lost:,} refused by the disk" if disk.ledger_lost else ""),
        _bad(disk.ledger_fault),
    )
    if disk.set_aside:
        yield _row("set aside", _bad(", ".join(disk.set_aside)))
    if ends_s is not None:
        soon = {"certificate-ended": "ended", "certificate-ends-soon": "ends soon"}
        words = [_shown(soon[word]) for word in status.warnings if word in soon]
        yield _row("identity", f"certificate until {moment(ends_s)}", *words)
    yield _row("lanes", ", ".join(_lane(lane, status.now_s) for lane in status.lanes))
    capture = status.capture
    yield _row(
        "capture",
        counted(capture.frames, "frame"),
        f"{capture.overrun:,} lost to a full queue" if capture.overrun else "",
        f"{counted(capture.given_up, 'transport message')} given up" if capture.given_up else "",
    )
    if any(status.counts.values()):
        yield _row("so far", *_so_far(status.counts))
    yield ""
    yield from table(
        ("bus", "state", "frames", "lost", "errors", "reopened", "last frame"),
        [
            (
                *(bus.name, _shown(bus.state), f"{bus.frames:,}", f"{bus.lost_frames:,}"),
                *(_errors(bus.errors), f"{bus.reconnects:,}"),
                "never"
                if bus.last_frame_s is None
                else f"{span(max(0, status.now_s - bus.last_frame_s))} ago",
            )
            for bus in status.buses
        ],
        style=_shown,
    )
    yield ""
    if not status.grants:
        yield "no grants"
        return
    yield from table(
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
        style=_shown,
    )


def _lane(lane: LaneStatus, now_s: int) -> str:
    if not lane.is_alive or lane.still_since_s is None:
        return f"{lane.name} {_shown('ok' if lane.is_alive else 'dead')}"
    return f"{lane.name} {_bad(f'still for {span(max(0, now_s - lane.still_since_s))}')}"


def _errors(kinds: Mapping[str, int]) -> str:
    """Return how many, and of which kinds: these tell a wrong bit rate from a loose plug."""
    told = ", ".join(f"{kind} {count:,}" for kind, count in sorted(kinds.items()))
    return f"{sum(kinds.values()):,}" + (f" ({told})" if told else "")


def _row(name: str, *parts: str) -> str:
    padding = " " * max(0, 10 - len(click.unstyle(name)))
    return f"{name}{padding} {', '.join(part for part in parts if part)}"


def count_told(name: str, *, is_one: bool = False) -> str:
    """Return what a count of the agent counts, as it stands behind the number."""
    return _COUNTS.get(name, name).format(s="" if is_one else "s", es="" if is_one else "es")


def _so_far(counts: Mapping[str, int]) -> Iterable[str]:
    for name in [*_COUNTS, *sorted(counts.keys() - _COUNTS.keys())]:
        if count := counts.get(name):
            yield f"{count:,} {count_told(name, is_one=count == 1)}"


def _bad(words: str) -> str:
    return click.style(words, fg="red") if words else ""


def _shown(word: str) -> str:
    colour = _COLOURS.get(word)
    return word if colour is None else click.style(word, fg=colour)
