"""`consentry keys`: make the keys that policies, devices and recipients need."""

from pathlib import Path

import click

from agent.cli.main import EXIT_OK
from agent.cli.output import note, result_file
from agent.cloud import keys as cloud
from agent.cloud.policy import trust_file
from agent.errors import KeyFileError

_FILE = click.Path(path_type=Path)
_MAKERS = {
    "recipient": lambda kid, _: cloud.make_recipient_key(kid),
    "device": cloud.make_device_key,
    "policy": cloud.make_policy_key,
}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Make keys for policies, devices and recipients."""


@command.command()
@click.argument("role", type=click.Choice(sorted(_MAKERS)))
@click.argument("kid")
@click.option("--out", required=True, type=_FILE, help="The private key; KEY.pub.jwk goes beside.")
@click.option(
    "--alg", type=click.Choice(["EdDSA", "ES256"]), default="EdDSA", help="Of signing keys."
)
def new(*, role: str, kid: str, out: Path, alg: str) -> int:
    """Make a key pair called KID for a ROLE; keys are never overwritten."""
    private = _MAKERS[role](kid, alg)
    public = out.with_name(f"{out.name.removesuffix('.jwk')}.pub.jwk")
    # The public half first: where one of the two is in the way, no private key is left alone.
    cloud.save_key(public, cloud.public_half(private))
    try:
        cloud.save_key(out, private)
    except KeyFileError:
        public.unlink()
        raise
    note(f"private key in {out} (mode 0600), public key in {public}")
    return EXIT_OK


@command.command()
@click.argument("keys", nargs=-1, required=True, type=_FILE, metavar="KEY...")
@click.option("--out", type=_FILE, help="Write there instead of stdout.")
def trust(*, keys: tuple[Path, ...], out: Path | None) -> int:
    """Write a vehicle's trust file: the policy KEYs that may sign for it."""
    text = trust_file(*(cloud.load_key(path) for path in keys)).decode()
    with result_file(out) as file:
        file.write(text)
    return EXIT_OK
