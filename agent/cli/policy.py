"""`consentry policy`: write, sign and verify policies, on the platform's side."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from agent.cli.main import EXIT_OK
from agent.cli.output import result_file, write_json
from agent.cloud import policy as cloud
from agent.cloud.keys import load_key
from agent.core.catalogue import Catalogue
from agent.core.jws import verify_policy_jws
from agent.core.policy import Policy, parse_policy
from agent.edge.files import load_catalogue, load_trust, read_file
from agent.errors import WrongVehicle
from agent.resources import shipped

_FILE = click.Path(path_type=Path)
_catalogue = click.option("--catalogue", type=_FILE, help="Default: the one we ship.")
_out = click.option("--out", type=_FILE, help="Write there instead of stdout.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Write, sign and verify policies."""


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
    scopes = _load_catalogue(catalogue)
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
    parse_policy(data, _load_catalogue(catalogue))
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
    token = cloud.sign_policy(data.strip(), load_key(key), catalogue=_load_catalogue(catalogue))
    with result_file(out) as file:
        file.write(token + "\n")
    return EXIT_OK


@command.command(short_help="Check a signed policy as a vehicle would.")
@click.argument("policy", type=_FILE)
@click.option("--trust", required=True, type=_FILE, help="The vehicle's trust file.")
@click.option("--vehicle", help="Also check that it is for this vehicle.")
@_catalogue
@click.option("--json", "as_json", is_flag=True)
def verify(
    *, policy: Path, trust: Path, vehicle: str | None, catalogue: Path | None, as_json: bool
) -> int:
    """Check a signed POLICY as a vehicle would, and tell what it grants; status 3 if refused."""
    token = read_file(policy, "the policy").strip()
    parsed = parse_policy(verify_policy_jws(token, load_trust(trust)), _load_catalogue(catalogue))
    if vehicle is not None and parsed.aud != vehicle:
        raise WrongVehicle(
            f"the policy is for vehicle {parsed.aud}, expected {vehicle}", reason="vehicle"
        )
    if as_json:
        write_json(sys.stdout, _told(parsed))
    else:
        _print(parsed)
    return EXIT_OK


def _load_catalogue(path: Path | None) -> Catalogue:
    return load_catalogue(path or shipped("config/catalogue.json"))


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


def _told(policy: Policy) -> dict[str, Any]:
    return {
        "vehicle": policy.aud,
        "epoch": policy.epoch,
        "ver": policy.ver,
        "iat": policy.iat_s,
        "nbf": policy.nbf_s,
        "exp": policy.exp_s,
        "payload_sha256": policy.payload_sha256,
        "live_now": [grant.grant_id for grant in policy.live_grants(time.time_ns())],
        "grants": [
            {
                "grant_id": grant.grant_id,
                "state": str(grant.state),
                "recipient": grant.recipient_id,
                "scopes": [detail.scope for detail in grant.details],
            }
            for grant in policy.grants
        ],
    }


def _print(policy: Policy) -> None:
    told = _told(policy)
    click.echo(f"policy {policy.epoch}.{policy.ver} for vehicle {policy.aud}: signature holds")
    for grant in told["grants"]:
        live = "live" if grant["grant_id"] in told["live_now"] else "not live"
        scopes = ", ".join(grant["scopes"]) or "-"
        click.echo(
            f"  {grant['grant_id']}  {grant['state']} ({live})  "
            f"{grant['recipient'] or '-'}: {scopes}"
        )
