"""`consentry keys`: make keys for policies, devices and recipients, and say which are trusted.

A signing key's role, policy, owner or root, is what the trust file says of it.
"""

import time
from pathlib import Path

import click

from agent.cli.main import EXIT_OK
from agent.cli.output import note, result_file
from agent.cli.policyview import load_scopes
from agent.cloud import keys as cloud
from agent.cloud.trust import sign_trust, trust_file
from agent.core.trust import parse_trust
from agent.errors import KeyFileError

_FILE = click.Path(path_type=Path)
_MAKERS = {
    "recipient": lambda kid, _: cloud.make_recipient_key(kid),
    "device": cloud.make_device_key,
    **dict.fromkeys(("policy", "owner", "root"), cloud.make_policy_key),
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


@command.command(short_help="Write a vehicle's trust file, or sign a trust document.")
@click.argument("keys", nargs=-1, required=True, type=_FILE, metavar="KEY...")
@click.option("--owner", "owners", multiple=True, type=_FILE, help="A key of the owner; several.")
@click.option(
    "--root", "roots", multiple=True, type=_FILE, help="A key that may renew the KEYs; several."
)
@click.option(
    "--owner-needed-for",
    "needed",
    multiple=True,
    metavar="CLASS",
    help="A policy gives more of this class only with the owner's signature; several.",
)
@click.option("--ver", type=click.IntRange(0), default=0, help="Above that of all before it.")
@click.option(
    "--sign", "signer", type=_FILE, help="Sign a trust document with this private root key instead."
)
@click.option("--catalogue", type=_FILE, help="Default: the one we ship.")
@click.option("--out", type=_FILE, help="Write there instead of stdout.")
def trust(  # noqa: PLR0913 - one argument per option
    *,
    keys: tuple[Path, ...],
    owners: tuple[Path, ...],
    roots: tuple[Path, ...],
    needed: tuple[str, ...],
    ver: int,
    signer: Path | None,
    catalogue: Path | None,
    out: Path | None,
) -> int:
    """Write a vehicle's trust file: the KEYs that may sign its policies, and who else signs.

    With --sign: a trust document for all vehicles that have this root key, with the KEYs that may
    sign policies from now on.
    """
    policy_keys, owner_keys, root_keys = (
        [cloud.load_key(path) for path in paths] for paths in (keys, owners, roots)
    )
    if signer is not None:
        if owners or roots or needed:
            raise click.UsageError("a trust document (--sign) renews the platform's keys only")
        text = sign_trust(policy_keys, cloud.load_key(signer), ver=ver, iat_s=int(time.time()))
        text += "\n"
    else:
        data = trust_file(
            *policy_keys, owners=owner_keys, roots=root_keys, owner_needed_for=needed, ver=ver
        )
        parse_trust(data, classes=load_scopes(catalogue).classes)
        text = data.decode()
    with result_file(out) as file:
        file.write(text)
    return EXIT_OK
