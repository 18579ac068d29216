"""How commands print: the result on stdout or into a file, everything else on stderr."""

import contextlib
import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import click

from agent.core.model import Sample
from agent.errors import AgentError

FIELDS = ("t", "recipient", "grant", "scope", "path", "value", "unit")


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

    Args:
        path: The file, or None for stdout.
        option: What the user names it with, for the hint.
    """
    if path is None:
        yield sys.stdout
        return
    unfinished = path.with_name(f"{path.name}.part")
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            yield file
        os.replace(unfinished, path)  # noqa: PTH105 - an atomic rename, said as such
    except OSError as exc:
        unfinished.unlink(missing_ok=True)
        raise AgentError(
            f"{path} cannot be written: {exc.strerror}", hint=f"name another file with {option}"
        ) from exc


def write_json(file: IO[str], value: object) -> None:
    """Write one JSON value on one line."""
    file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def row_of(sample: Sample) -> dict[str, object]:
    """Return a sample as it is printed."""
    return {
        "t": sample.t_ns,
        "recipient": sample.recipient,
        "grant": sample.grant_id,
        "scope": sample.scope,
        "path": sample.path,
        "value": sample.value,
        "unit": sample.unit,
    }


def write_samples(file: IO[str], samples: Iterable[Sample], form: str) -> None:
    """Write samples as JSON lines or CSV.

    Args:
        file: Where to.
        samples: In the order to print.
        form: "jsonl" or "csv"; in CSV booleans are true and false, and no unit is an empty cell.
    """
    if form == "csv":
        table = csv.writer(file, lineterminator="\n")
        table.writerow(FIELDS)
        for sample in samples:
            row = row_of(sample)
            if isinstance(sample.value, bool):
                row["value"] = "true" if sample.value else "false"
            table.writerow(row.values())
        return
    dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
    for sample in samples:
        file.write(dumps(row_of(sample)) + "\n")
