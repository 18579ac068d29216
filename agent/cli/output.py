"""How commands print: the result on stdout or into a file, everything else on stderr."""

import contextlib
import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import click

from agent.core.model import Sample
from agent.errors import AgentError

FIELDS = ("t", "recipient", "grant", "scope", "path", "value", "unit", "fn", "window_s")


def warn(sentences: Iterable[str]) -> None:
    """Print warnings, a line each."""
    for sentence in sentences:
        click.echo(f"warning: {sentence}", err=True)


def note(sentence: str) -> None:
    """Print a line that is neither result nor warning."""
    click.echo(sentence, err=True)


@contextlib.contextmanager
def result_file(path: Path | None, *, option: str = "--out") -> Iterator[IO[str]]:
    """Give stdout, or a new file that takes the name `path` only when all was written.

    What is there and is no plain file (a pipe, a device, a link) is written to, never replaced.

    Args:
        path: The file, or None for stdout.
        option: What the user names it with, for the hint.
    """
    if path is None:
        yield from _standard_output()
        return
    is_new = not os.path.lexists(path) or (path.is_file() and not path.is_symlink())
    written = path.with_name(f"{path.name}.part") if is_new else path
    try:
        with written.open("w", encoding="utf-8", newline="") as file:
            yield file
        if is_new:
            os.replace(written, path)  # noqa: PTH105 - an atomic rename, said as such
    except BaseException as exc:
        if is_new:
            with contextlib.suppress(OSError):
                written.unlink(missing_ok=True)
        if not isinstance(exc, OSError) or isinstance(exc, BrokenPipeError):
            raise
        raise AgentError(
            f"{path} cannot be written: {exc.strerror}", hint=f"name another file with {option}"
        ) from exc


def _standard_output() -> Iterator[IO[str]]:
    """Give stdout as UTF-8, whatever the machine's language; say it if it cannot be written."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as exc:
        # What could not be written is still buffered: keep Python from trying again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise AgentError(
            f"the standard output cannot be written: {exc.strerror}",
            hint="make room there, or name a file with --out",
        ) from exc


def write_json(file: IO[str], value: object) -> None:
    """Write one JSON value on one line."""
    file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    style: Callable[[str], str] = str,
) -> Iterator[str]:
    """Yield the lines of a table whose columns stand below each other.

    Args:
        head: The columns' names.
        rows: As many cells each; numbers with their unit.
        style: Gives a cell its colour, which takes no room.
    """
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    names = "  ".join(cell.ljust(width) for cell, width in zip(head, widths, strict=True))
    yield click.style(names.rstrip(), bold=True)
    for row in rows:
        cells = (
            style(cell) + " " * (width - len(cell)) for cell, width in zip(row, widths, strict=True)
        )
        yield "  ".join(cells).rstrip()


def counted(number: int, noun: str) -> str:
    """Return as in `1 envelope`, `1,200 envelopes`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def size(size_bytes: int) -> str:
    """Return a size as a person reads it, such as `1.2 MB` (1,200,000 B)."""
    left: float = size_bytes
    for unit in ("B", "kB", "MB"):
        if left < 1000:
            return f"{left:.0f} B" if unit == "B" else f"{left:.1f} {unit}"
        left /= 1000
    return f"{left:.1f} GB"


def row_of(sample: Sample) -> dict[str, object]:
    """Return a sample as it is printed; `fn` and `window_s` are there for aggregates only."""
    row: dict[str, object] = {
        "t": sample.t_ns,
        "recipient": sample.recipient,
        "grant": sample.grant_id,
        "scope": sample.scope,
        "path": sample.path,
        "value": sample.value,
        "unit": sample.unit,
    }
    if sample.fn is not None:
        row |= {"fn": sample.fn, "window_s": sample.window_s}
    return row


def write_samples(
    file: IO[str], samples: Iterable[Sample], form: str, *, head: bool = True
) -> None:
    """Write samples as JSON lines or CSV.

    Args:
        file: Where to.
        samples: In the order to print.
        form: "jsonl" or "csv"; in CSV booleans are true and false, and what is not there (unit,
            function, window) is an empty cell.
        head: Begin with the names of the columns in CSV; False for what follows such a table.
    """
    if form == "csv":
        table = csv.writer(file, lineterminator="\n")
        if head:
            table.writerow(FIELDS)
        for sample in samples:
            row = row_of(sample)
            if isinstance(sample.value, bool):
                row["value"] = "true" if sample.value else "false"
            table.writerow(row.get(name) for name in FIELDS)
        return
    dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
    for sample in samples:
        file.write(dumps(row_of(sample)) + "\n")


def channel_names(pairs: Sequence[str]) -> dict[str, str]:
    """Return a log's channel -> bus, as `--channel NAME=BUS` says it.

    Raises:
        click.UsageError: A pair is none.
    """
    buses: dict[str, str] = {}
    for pair in pairs:
        name, equals, bus = pair.partition("=")
        if not (name and equals and bus):
            raise click.UsageError(f"--channel {pair}: expected NAME=BUS, such as can0=body")
        buses[name] = bus
    return buses
