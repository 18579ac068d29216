"""`consentry ledger`: show, verify and prove what a vehicle's ledger says."""

import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from agent.cli.main import EXIT_OK
from agent.cli.output import note, result_file, warn, write_json
from agent.cloud.envelope import Devices, read_header
from agent.cloud.keys import load_key
from agent.cloud.ledger import verify_checkpoint
from agent.core.cose import device_public_key
from agent.core.ledger import Entry, Replay
from agent.core.ledgerevent import EVENTS
from agent.core.ledgerproof import Consistency, Inclusion, encode_proof, parse_proof, verify_proof
from agent.core.merkle import Frontier, Tree, leaf_hash
from agent.edge.files import read_file
from agent.edge.ledger import read_entries, replay_all
from agent.errors import EXIT_FAILED, EnvelopeRejected, LedgerError

_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_LONG = re.compile(r"[0-9a-f]{64}|[A-Za-z0-9_-]{65,}", re.ASCII)  # Hashes and checkpoints.
_HEAD = re.compile(r"(\d{1,15}):([0-9a-f]{64})", re.ASCII)

Heads = list[tuple[int, bytes, str]]  # Size, root, and who says so.


def _since(_: click.Context, __: click.Parameter, text: str | None) -> float:
    """Return s since the epoch of `2h` (ago) or an ISO 8601 time, UTC if it has no zone."""
    if text is None:
        return 0.0
    if ago := re.fullmatch(r"(\d{1,6})([smhd])", text, re.ASCII):
        return time.time() - int(ago[1]) * _SECONDS[ago[2]]
    try:
        when = datetime.fromisoformat(text)
    except ValueError as exc:
        raise click.BadParameter(f"{text}: expected 90m, 2h, 7d or 2026-11-24T18:00") from exc
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _heads(
    _: click.Context, __: click.Parameter, texts: tuple[str, ...]
) -> tuple[tuple[int, bytes], ...]:
    """Return sizes and roots."""
    found = [_HEAD.fullmatch(text) for text in texts]
    if None in found:
        raise click.BadParameter("expected the size, a colon and 64 hex digits of the root")
    return tuple((int(head[1]), bytes.fromhex(head[2])) for head in found if head is not None)


_state = click.option(
    "--state",
    type=click.Path(path_type=Path),
    default=Path("/var/lib/consentry"),
    show_default=True,
    help="The state directory, or a ledger's own.",
)
_keys = click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(path_type=Path),
    help="The public key (JWK) of the device; several.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Show, verify and prove what a vehicle's ledger says, also while the agent runs."""


@command.command(short_help="Print what happened.")
@_state
@click.option("--since", metavar="TIME", callback=_since, help="2h, 7d, or 2026-11-24T18:00 (UTC).")
@click.option("--event", "events", multiple=True, type=click.Choice(list(EVENTS)), metavar="NAME")
@click.option("--json", "as_json", is_flag=True)
def show(*, state: Path, since: float, events: tuple[str, ...], as_json: bool) -> int:
    """Print what happened, a line for each entry; hashes are shortened, in --json they are whole.

    Lines that do not hold are named on stderr, the others are printed all the same; the exit
    status is 1 then.
    """
    status = EXIT_OK
    for (name, number), entry in read_entries(_directory(state)):
        if isinstance(entry, LedgerError):
            warn([f"{name}:{number}: {entry.message}"])
            status = EXIT_FAILED
        elif entry.t_s >= since and (not events or entry.name in events):
            _print(entry, as_json=as_json)
    return status


@command.command(short_help="Check every line, checkpoint and head.")
@_state
@_keys
@click.option(
    "--head",
    "heads",
    multiple=True,
    metavar="SIZE:ROOT",
    callback=_heads,
    help="One that was seen; several.",
)
@click.option(
    "--envelope",
    "envelopes",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A file whose head must be the ledger's; several.",
)
@click.option("--proof", type=click.Path(path_type=Path), help="Check this file, without a ledger.")
@click.option("--json", "as_json", is_flag=True)
def verify(  # noqa: PLR0913 - one argument per option
    *,
    state: Path,
    keys: tuple[Path, ...],
    heads: tuple[tuple[int, bytes], ...],
    envelopes: tuple[Path, ...],
    proof: Path | None,
    as_json: bool,
) -> int:
    """Check the ledger: every line, the tree, every checkpoint, and heads that others have seen.

    The exit status is 1 if anything does not hold; the first such line is named. With --key the
    checkpoints' signatures are checked too. What no head covers rests on the vehicle's word.
    """
    devices = {key.kid: key for key in (device_public_key(load_key(path)) for path in keys)}
    seen = _seen(heads, envelopes, devices)
    if proof is not None:
        return _verify_proof(read_file(proof, "the proof"), devices, seen, as_json=as_json)
    replay = Replay(heads=[size for size, _, _ in seen], devices=devices or None)
    entries = sum(1 for _ in replay_all(_directory(state), replay))
    _check_heads(replay, seen)
    _tell(replay, entries, len(seen), as_json=as_json, signed=bool(devices))
    return EXIT_OK


@command.command(short_help="Print a proof that can be checked without the ledger.")
@click.argument("entry", type=click.IntRange(min=0), required=False)
@_state
@click.option("--from", "first", type=click.IntRange(min=0), help="Prove growth from this size.")
@click.option("--out", type=click.Path(path_type=Path), help="Write there instead of stdout.")
def prove(*, entry: int | None, state: Path, first: int | None, out: Path | None) -> int:
    """Print the proof that ENTRY stands in the ledger, or that it only grew since a size.

    It leads to the last checkpoint, or to the head where no checkpoint covers it yet. `consentry
    ledger verify --proof` checks it anywhere.
    """
    if (entry is None) == (first is None):
        raise click.UsageError("give either an ENTRY or --from")
    replay = Replay()
    wanted, leaves = b"", []
    for read, line in replay_all(_directory(state), replay):
        leaves.append(leaf_hash(line))
        if read.n == entry:
            wanted = line
    tree = Tree(replay.retired or Frontier(), leaves)
    needed = first if entry is None else entry + 1
    assert needed is not None
    size, signed = tree.size, None
    if replay.checkpoint is not None and replay.checkpoint.size >= needed:
        size, signed = replay.checkpoint.size, replay.signed
    root = tree.root(size)
    made: Inclusion | Consistency
    if entry is not None:
        made = Inclusion(entry, wanted, size, root, tree.inclusion(entry, size), signed)
    else:
        path = tree.consistency(needed, size)
        made = Consistency(needed, tree.root(needed), size, root, path, signed)
    with result_file(out) as file:
        file.write(encode_proof(made) + "\n")
    return EXIT_OK


def _directory(state: Path) -> Path:
    return state if any(state.glob("segment-*.jsonl")) else state / "ledger"


def _print(entry: Entry, *, as_json: bool) -> None:
    if as_json:
        told = {"n": entry.n, "t": entry.t_s, "event": entry.name, "facts": entry.facts}
        write_json(sys.stdout, told)
        return
    facts = "  ".join(
        # No grant is named where a stop is of all grants, those to come too.
        f"{name}={'all' if entry.name == 'local-stop' and value == [] else _shown(value)}"
        for name, value in entry.facts.items()
    )
    click.echo(f"{entry.n:>8}  {_time(entry.t_s)}  {entry.name:<20}  {facts}".rstrip())


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}:{item}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        hashes = [item for item in value if _LONG.fullmatch(item)]
        return f"{len(hashes)} hashes" if hashes else ",".join(value) or "-"
    text = str(value)
    # For people; --json has all of it.
    return f"{text[:12]}…" if _LONG.fullmatch(text) else text


def _time(t_s: int) -> str:
    try:
        return datetime.fromtimestamp(t_s, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError):
        return f"{t_s} s"


def _seen(heads: Sequence[tuple[int, bytes]], envelopes: Sequence[Path], devices: Devices) -> Heads:
    if envelopes and not devices:
        raise click.UsageError("--envelope needs the device's public key: --key")
    seen = [(size, root, f"--head {size}") for size, root in heads]
    for path in envelopes:
        try:
            header = read_header(read_file(path, "the envelope"), devices=devices)
        except EnvelopeRejected as exc:
            raise EnvelopeRejected(
                f"{path}: {exc.message}", reason=exc.reason, hint=exc.hint
            ) from exc
        seen.append((header.ledger_size, header.ledger_root, str(path)))
    return seen


def _check_heads(replay: Replay, seen: Heads) -> None:
    begins = replay.retired.size if replay.retired else 0
    for size, root, who in seen:
        if size > replay.tree.size:
            raise LedgerError(
                f"{who}: a ledger of {size} entries was seen, this one has {replay.tree.size}",
                hint="its end was lost or removed, or a new ledger was begun since",
            )
        if size < begins:
            raise LedgerError(
                f"{who}: entries below {begins} were retired, so a head of {size} cannot be checked"
            )
        if replay.heads[size] != root:
            raise LedgerError(f"{who}: another ledger of {size} entries was seen")


def _tell(replay: Replay, entries: int, seen: int, *, as_json: bool, signed: bool) -> None:
    checkpoint = replay.checkpoint
    size, root = replay.tree.size, replay.tree.root().hex()
    told = {
        "size": size,
        "root": root,
        "generation": replay.generation,
        "retired": size - entries,
        "heads_checked": seen,
        "signatures_checked": signed,
        "checkpoint_size": checkpoint.size if checkpoint else None,
    }
    if as_json:
        write_json(sys.stdout, told)
        return
    click.echo(f"the ledger holds: {entries} entries, {size - entries} retired before")
    click.echo(f"head {size}:{root}")
    if checkpoint is None:
        note("no checkpoint among them: nothing is signed yet")
        return
    behind = size - checkpoint.size
    if signed:
        click.echo(f"last checkpoint, signature holds: {checkpoint.size} entries, {behind} behind")
    else:
        note("signatures were not checked: name the device's public key with --key")


def _verify_proof(data: bytes, devices: Devices, seen: Heads, *, as_json: bool) -> int:
    proof = parse_proof(data)
    entry, checkpoint = verify_proof(proof)
    if proof.signed is not None and devices:
        verify_checkpoint(proof.signed, devices=devices)
    vouched = bool(proof.signed is not None and devices)
    for size, root, who in seen:
        if (size, root) == (proof.size, proof.root):
            vouched = True
        elif size == proof.size:
            raise LedgerError(f"{who}: another ledger of {size} entries was seen")
    if as_json:
        told = {
            "size": proof.size,
            "root": proof.root.hex(),
            "vouched": vouched,
            "vehicle": checkpoint.vehicle if checkpoint else None,
            "entry": None if entry is None else {"n": entry.n, "event": entry.name},
        }
        write_json(sys.stdout, told)
    elif entry is not None:
        click.echo(f"the proof holds: this entry is among the first {proof.size}")
        _print(entry, as_json=False)
    elif isinstance(proof, Consistency):
        click.echo(f"the proof holds: the first {proof.first} of {proof.size} entries are the same")
    if not vouched:
        warn(["nobody vouches for its root: give --key, or a --head that was seen"])
    return EXIT_OK
