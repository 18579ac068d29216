"""`consentry receive`: a recipient's envelopes from a broker, opened as they come."""

import sys
import threading
from pathlib import Path

import click

from agent.cli.main import EXIT_OK, fail
from agent.cli.opening import device_option, key_option, load_keys
from agent.cli.output import note, write_samples
from agent.cloud.receiver import BrokerAddress, Receiver, Rejected
from agent.edge.keys import client_tls
from agent.errors import EXIT_FAILED, EnvelopeRejected

_FILE = click.Path(path_type=Path)


@click.command()
@click.option("--host", required=True, help="The broker.")
@click.option("--port", type=click.IntRange(1, 65_535), default=8883, show_default=True)
@click.option("--ca", required=True, type=_FILE, help="The broker's authority, PEM.")
@click.option("--certificate", required=True, type=_FILE, help="Your certificate, PEM.")
@click.option("--private-key", required=True, type=_FILE, help="Its private key, PEM.")
@click.option("--recipient", required=True, help="Your id in policies.")
@key_option
@device_option
@click.option("--count", type=click.IntRange(min=1), help="End after so many envelopes.")
@click.option(
    "--inbox",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Remember in this file what has come, so that it comes once over restarts.",
)
@click.option(
    "--revoked", multiple=True, metavar="KID", help="A device that was struck off; several."
)
@click.option("--seconds", type=click.FloatRange(min=0.1), help="End after so long.")
@click.option(
    "--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True
)
def command(  # noqa: PLR0913 - one argument per option
    *,
    host: str,
    port: int,
    ca: Path,
    certificate: Path,
    private_key: Path,
    recipient: str,
    keys: tuple[Path, ...],
    devices: tuple[Path, ...],
    count: int | None,
    inbox: Path | None,
    revoked: tuple[str, ...],
    seconds: float | None,
    form: str,
) -> int:
    """Subscribe to your envelopes, open them and print their samples until interrupted.

    What comes twice is printed once. Numbers that have not come are named on stderr at the end,
    with the reason that their vehicle signed, or as lost. What does not open is named on stderr,
    and the exit status is 1 then.
    """
    private, enrolled = load_keys(keys, devices)
    tls = client_tls(ca=ca, certificate=certificate, private_key=private_key)
    status, received = EXIT_OK, 0
    with Receiver(
        BrokerAddress(host, port, tls),
        recipient=recipient,
        recipient_keys=private,
        devices=enrolled,
        revoked=frozenset(revoked),
        inbox=inbox,
    ) as receiver:
        note(f"subscribed as {recipient} at {host}:{port}")
        timer = threading.Timer(seconds, receiver.close) if seconds else None
        if timer is not None:
            timer.daemon = True
            timer.start()
        for item in receiver:
            if isinstance(item, Rejected):
                status = EXIT_FAILED
                fail(
                    EnvelopeRejected(
                        f"{item.topic}: {item.error.message}", reason=item.error.reason
                    )
                )
                continue
            write_samples(sys.stdout, item.samples(recipient), form, head=received == 0)
            sys.stdout.flush()
            received += 1
            if received == count:
                receiver.settle()
                break
        if timer is not None:
            timer.cancel()
        for run in receiver.missing():
            numbers = f"{run.first_n} to {run.last_n}"
            note(f"missing: {run.vehicle} {run.grant_id} {numbers}: {run.why}")
    note(f"{received} envelopes")
    return status
