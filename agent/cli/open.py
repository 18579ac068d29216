"""`consentry open`: envelopes in files, opened with a recipient's key."""

import sys
from dataclasses import asdict
from pathlib import Path

import click

from agent.cli.main import EXIT_OK, fail
from agent.cli.opening import device_option, key_option, load_keys
from agent.cli.output import result_file, write_json, write_samples
from agent.cloud.envelope import open_envelope
from agent.edge.files import read_file
from agent.errors import EnvelopeRejected


@click.command()
@click.argument(
    "envelopes", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="ENVELOPE..."
)
@key_option
@device_option
@click.option("--recipient", default="me", show_default=True, help="Your name in the output.")
@click.option("--header", is_flag=True, help="Print the sealed headers instead of the samples.")
@click.option(
    "--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True
)
@click.option("--out", type=click.Path(path_type=Path), help="Write there instead of stdout.")
def command(  # noqa: PLR0913 - one argument per option
    *,
    envelopes: tuple[Path, ...],
    keys: tuple[Path, ...],
    devices: tuple[Path, ...],
    recipient: str,
    header: bool,
    form: str,
    out: Path | None,
) -> int:
    """Verify ENVELOPE files, decrypt them and print their samples.

    Those that do not open are named on stderr, the others are printed all the same; the exit
    status is 1 then.
    """
    private, enrolled = load_keys(keys, devices)
    status = EXIT_OK
    opened = []
    for path in envelopes:
        try:
            data = read_file(path, "the envelope")
            opened.append(open_envelope(data, recipient_keys=private, devices=enrolled))
        except EnvelopeRejected as exc:
            status = fail(
                EnvelopeRejected(f"{path}: {exc.message}", reason=exc.reason, hint=exc.hint)
            )
    if header:
        for item in opened:
            told = asdict(item.header)
            write_json(sys.stdout, told | {"ledger_root": item.header.ledger_root.hex()})
        return status
    with result_file(out) as file:
        write_samples(file, (sample for item in opened for sample in item.samples(recipient)), form)
    return status
