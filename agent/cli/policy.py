"""`consentry policy`: write and sign policies and restrict documents, on the platform's side."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from agent.cli.main import EXIT_OK
from agent.cli.output import note, result_file
from agent.cli.policyview import diff, grant_lines, lint, load_scopes, verify
from agent.cloud import policy as cloud
from agent.cloud.keys import load_key
from agent.cloud.restrict import new_restriction, sign_restriction
from agent.cloud.signing import countersign as countersign_token
from agent.core.jws import unsafe_unverified_payload
from agent.core.policy import parse_policy
from agent.core.restrict import RestrictionMode
from agent.edge.files import read_file

_FILE = click.Path(path_type=Path)
_catalogue = click.option("--catalogue", type=_FILE, help="Default: the one we ship.")
_out = click.option("--out", type=_FILE, help="Write there instead of stdout.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Write, sign, compare and verify policies, and sign restrictions."""


@command.command(short_help="Write a first policy as JSON.")
@click.option("--vehicle", required=True, help="The vehicle's pseudonym; never its VIN.")
@click.option("--issuer", default="https://consent.example", show_default=True)
@click.option(
    "--recipient",
    "recipients",
    multiple=True,
    required=True,
    metavar="ID=KEY.jwk",
    help="A recipient and its public key; several.",
)
@click.option(
    "--grant",
    "grants",
    multiple=True,
    required=True,
    metavar="GRANT=RECIPIENT:SCOPE[,SCOPE...]",
    help="A grant with the defaults of its scopes' classes; several.",
)
@click.option(
    "--combine",
    "combines",
    multiple=True,
    metavar="GRANT=SCOPE,SCOPE[,SCOPE...]",
    help="Scopes of a grant that the owner allows to be joined; several.",
)
@click.option("--days", type=click.IntRange(1, 3650), default=30, show_default=True)
@_catalogue
@_out
def new(  # noqa: PLR0913 - one argument per option
    *,
    vehicle: str,
    issuer: str,
    recipients: tuple[str, ...],
    grants: tuple[str, ...],
    combines: tuple[str, ...],
    days: int,
    catalogue: Path | None,
    out: Path | None,
) -> int:
    """Write a first policy as JSON, to be edited and signed."""
    scopes = load_scopes(catalogue)
    now_s = int(time.time())
    exp_s = now_s + days * cloud.DAY_S
    combined = _combined(combines, [text.partition("=")[0] for text in grants])
    document = cloud.new_policy(
        vehicle=vehicle,
        issuer=issuer,
        catalogue=scopes,
        recipients={
            name: cloud.recipient(name, load_key(Path(file)))
            for name, file in (_pair(text, "--recipient") for text in recipients)
        },
        grants=[_grant(text, now_s, exp_s, combined) for text in grants],
        iat_s=now_s,
        valid_s=days * cloud.DAY_S,
    )
    parse_policy(json.dumps(document).encode(), scopes)
    with result_file(out) as file:
        file.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return EXIT_OK


@command.command(short_help="Write the next version, with a grant withdrawn.")
@click.argument("policy", type=_FILE)
@click.argument("grant_id")
@_catalogue
@_out
def revoke(*, policy: Path, grant_id: str, catalogue: Path | None, out: Path | None) -> int:
    """Write the next version of a POLICY (JSON), in which GRANT_ID is withdrawn for good."""
    data = read_file(policy, "the policy")
    parse_policy(data, load_scopes(catalogue))
    document = cloud.revoke(json.loads(data), grant_id, iat_s=int(time.time()))
    with result_file(out) as file:
        file.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return EXIT_OK


@command.command(short_help="Sign a policy.")
@click.argument("policy", type=_FILE)
@click.option("--key", required=True, type=_FILE, help="The platform's private key.")
@_catalogue
@_out
def sign(*, policy: Path, key: Path, catalogue: Path | None, out: Path | None) -> int:
    """Sign a POLICY (JSON); what a vehicle would refuse is not signed."""
    data = read_file(policy, "the policy")
    token = cloud.sign_policy(data.strip(), load_key(key), catalogue=load_scopes(catalogue))
    with result_file(out) as file:
        file.write(token + "\n")
    return EXIT_OK


@command.command(short_help="Add the owner's signature to a signed policy.")
@click.argument("policy", type=_FILE)
@click.option("--key", required=True, type=_FILE, help="The owner's private key.")
@_catalogue
@_out
def countersign(*, policy: Path, key: Path, catalogue: Path | None, out: Path | None) -> int:
    """Add the owner's signature to a signed POLICY; tells on stderr what it grants.

    `consentry policy diff` shows before what it changes.
    """
    token = read_file(policy, "the policy").strip()
    found = parse_policy(unsafe_unverified_payload(token), load_scopes(catalogue))
    both = countersign_token(token.decode("ascii"), load_key(key))
    note(f"countersigned: policy {found.epoch}.{found.ver} for vehicle {found.aud}")
    for line in grant_lines(found):
        note(line)
    with result_file(out) as file:
        file.write(both + "\n")
    return EXIT_OK


@command.command(short_help="Sign a restriction beside the policy.")
@click.option("--vehicle", required=True, help="The vehicle's pseudonym.")
@click.option(
    "--mode",
    required=True,
    type=click.Choice(["pause", "revoke"]),
    help="pause: until a policy takes it over. revoke: for good.",
)
@click.option("--grant", "grants", multiple=True, help="What it takes away; several. Default: all.")
@click.option("--key", required=True, type=_FILE, help="Private key of the platform or the owner.")
@_out
def restrict(
    *,
    vehicle: str,
    mode: RestrictionMode,
    grants: tuple[str, ...],
    key: Path,
    out: Path | None,
) -> int:
    """Sign a restrict document: it takes grants away at once, beside the policy."""
    document = new_restriction(vehicle=vehicle, mode=mode, grants=grants, iat_s=int(time.time()))
    token = sign_restriction(document, load_key(key))
    note(f"restrict document {document['jti']}: {mode} of {', '.join(grants) or 'every grant'}")
    with result_file(out) as file:
        file.write(token + "\n")
    return EXIT_OK


for _viewer in (diff, lint, verify):
    command.add_command(_viewer)


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise click.UsageError(f"{option} {text}: expected NAME=VALUE")
    return name, value


def _combined(texts: tuple[str, ...], grants: list[str]) -> dict[str, list[list[str]]]:
    """Return grant id -> sets of scopes that may be joined."""
    combined: dict[str, list[list[str]]] = {}
    for text in texts:
        grant_id, scopes = _pair(text, "--combine")
        if grant_id not in grants:
            raise click.UsageError(f"--combine {text}: there is no --grant {grant_id}")
        combined.setdefault(grant_id, []).append(scopes.split(","))
    return combined


def _grant(
    text: str, nbf_s: int, exp_s: int, combined: Mapping[str, list[list[str]]]
) -> dict[str, Any]:
    grant_id, rest = _pair(text, "--grant")
    recipient, colon, scopes = rest.partition(":")
    if not (recipient and colon and scopes):
        raise click.UsageError(f"--grant {text}: expected GRANT=RECIPIENT:SCOPE[,SCOPE...]")
    return cloud.grant(
        grant_id,
        recipient,
        {scope: {} for scope in scopes.split(",")},
        nbf_s=nbf_s,
        exp_s=exp_s,
        purposes=["dpv:ServiceProvision"],
        retention="P30D",
        combine=combined.get(grant_id, ()),
    )
