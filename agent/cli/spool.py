"""`consentry spool`: look at, check or erase what waits on the disk for the broker.

Rules:
 * There is no plaintext to show: an envelope opens with its recipient's key only.
 * The agent must not run: a state directory has one owner. `consentry status` asks the running one.
"""

import os
import sys
import time
from pathlib import Path

import click

from agent.cli.main import EXIT_OK
from agent.cli.output import counted, note, size, table, write_json
from agent.cloud.envelope import Devices, read_header
from agent.cloud.keys import load_key
from agent.core.cose import device_public_key
from agent.core.ledgerevent import event
from agent.core.model import NS_PER_S
from agent.core.telling import span
from agent.edge.ledger import Ledger
from agent.edge.store import SpoolRow, SpoolTally, Store
from agent.errors import EXIT_FAILED, EnvelopeRejected, StoreBusy, StoreError

_state = click.option(
    "--state",
    type=click.Path(path_type=Path),
    default=Path("/var/lib/consentry"),
    show_default=True,
    help="The state directory.",
)
_HEAD = ("grant", "state", "envelopes", "size", "numbers", "oldest", "newest", "first expires in")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Look at, check or erase what waits on the disk, while the agent does not run."""


@command.command(short_help="Print what waits, per grant.")
@_state
@_json
def inspect(*, state: Path, as_json: bool) -> int:
    """Print what waits: envelopes, bytes, numbers and ages per grant, and gaps not told yet."""
    with _opened(state) as store:
        tallies, gaps = store.tallies(), store.gaps(1_000_000)
        # The log's room is there while the file is open, whatever waits.
        files = set(state.glob("spool.db*")) - {state / "spool.db-wal"}
        on_disk = sum(path.stat().st_size for path in files)
    now_ns = time.time_ns()
    if as_json:
        rows = [_row(tally, now_ns) for tally in tallies]
        told = [
            {"grant": g.grant_id, "first_n": g.first_n, "last_n": g.last_n, "why": g.why}
            for g in gaps
        ]
        write_json(sys.stdout, {"grants": rows, "gaps": told, "disk_bytes": on_disk})
        return EXIT_OK
    if tallies:
        for line in table(_HEAD, [_cells(tally, now_ns) for tally in tallies]):
            click.echo(line)
    else:
        click.echo("nothing waits")
    for gap in gaps:
        click.echo(f"gap of {gap.grant_id}: numbers {gap.first_n} to {gap.last_n} {gap.why}")
    note(f"{counted(sum(t.envelopes for t in tallies), 'envelope')}, {size(on_disk)} on disk")
    return EXIT_OK


@command.command(short_help="Check the files and each envelope.")
@_state
@click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(path_type=Path),
    help="The public key (JWK) of the device, to check each envelope's signature; several.",
)
def verify(*, state: Path, keys: tuple[Path, ...]) -> int:
    """Check the files, their references and, with the device's key, each envelope's signature.

    What is wrong is printed, one line each; the exit status is 1 then.
    """
    made = [device_public_key(load_key(path)) for path in keys]
    devices = {key.kid: key for key in made}
    checked = 0
    with _opened(state) as store:
        faults = list(store.faults())
        if store.set_aside is not None:
            faults.append(f"{store.set_aside.name}: could not be read, and was set aside")
        for row in store.each() if devices else ():
            checked += 1
            fault = _fault(row, devices)
            if fault is not None:
                faults.append(f"grant {row.grant_id} number {row.n}: {fault}")
    for fault in faults:
        click.echo(fault)
    note(f"{counted(len(faults), 'fault')}, {counted(checked, 'signature')} checked")
    if not devices:
        note("signatures were not checked: name the device's public key with --key")
    return EXIT_FAILED if faults else EXIT_OK


@command.command(short_help="Erase what waits.")
@_state
@click.option("--grant", help="Of this grant only.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(*, state: Path, grant: str | None, yes: bool) -> int:
    """Erase what waits, without a trace; consent stays as it is, and the recipients are told.

    The ledger tells who did it.
    """
    with _opened(state) as store, _ledger(state) as ledger:
        if not yes:
            click.confirm(f"Erase what waits of {grant or 'every grant'}?", abort=True, err=True)
        now_ns = time.time_ns()
        asked = event(now_ns, "admin", verb="spool-purge", uid=os.getuid())
        ledger.append(asked, durable=True)  # Before: a kill must not leave it untold.
        gone = store.purge(grant, now_ns)
        for grant_id, tally in sorted(gone.items()):
            counts = {"envelopes": tally.envelopes, "bytes": tally.size_bytes}
            erased = event(now_ns, "purged", grant=grant_id, reason="admin", **counts)
            ledger.append(erased, durable=False)
        if ledger.ended_cleanly:  # The agent's next start is to find it as this command has.
            ledger.append(event(now_ns, "stopped", reason="spool-purge"), durable=False)
    for grant_id, tally in sorted(gone.items()):
        envelopes = counted(tally.envelopes, "envelope")
        click.echo(f"erased of {grant_id}: {envelopes}, {size(tally.size_bytes)}")
    note(f"{counted(sum(tally.envelopes for tally in gone.values()), 'envelope')} erased")
    return EXIT_OK


def _opened(state: Path) -> Store:
    if not state.is_dir():
        raise StoreError(
            f"there is no state directory {state}", hint="name it with --state, as agent.toml does"
        )
    try:
        return Store.open(state)
    except StoreBusy as exc:
        raise StoreBusy(
            exc.message,
            hint="the running agent has it: `consentry status` says what waits, "
            "`systemctl stop consentry` lets it go",
        ) from exc


def _ledger(state: Path) -> Ledger:
    # Who only appends signs no checkpoint: the vehicle's name and the boot are not needed.
    return Ledger.open(state / "ledger", vehicle="", boot_id="", now_ns=time.time_ns())


def _fault(row: SpoolRow, devices: Devices) -> str | None:
    """Return what is wrong with an envelope, or None."""
    try:
        header = read_header(row.envelope, devices=devices)
    except EnvelopeRejected as exc:
        return exc.message
    if (header.grant_id, header.rev, header.n) != (row.grant_id, row.rev, row.n):
        return "its sealed header names another grant, revision or number"
    return None


def _row(tally: SpoolTally, now_ns: int) -> dict[str, object]:
    return {
        "grant": tally.grant_id,
        "rev": tally.rev,
        "state": tally.state,
        "envelopes": tally.envelopes,
        "bytes": tally.size_bytes,
        "first_n": tally.first_n,
        "last_n": tally.last_n,
        "oldest_s": (now_ns - tally.oldest_ns) // NS_PER_S,
        "newest_s": (now_ns - tally.newest_ns) // NS_PER_S,
        "expires_in_s": (tally.expires_ns - now_ns) // NS_PER_S,
    }


def _cells(tally: SpoolTally, now_ns: int) -> tuple[str, ...]:
    return (
        *(tally.grant_id, tally.state, f"{tally.envelopes:,}", size(tally.size_bytes)),
        f"{tally.first_n} to {tally.last_n}",
        *(f"{_span(now_ns - at_ns)} ago" for at_ns in (tally.oldest_ns, tally.newest_ns)),
        _span(tally.expires_ns - now_ns),
    )


def _span(span_ns: int) -> str:
    return span(max(0, span_ns // NS_PER_S))
