"""The commands of `consentry policy` that look at policies: lint, diff, verify."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from agent.cli.main import EXIT_OK
from agent.cli.output import note, warn, write_json
from agent.cloud.review import Difference, differences, value_of, warnings
from agent.core.admission import InForce, admit, check_revisions
from agent.core.catalogue import Catalogue
from agent.core.expansion import Expansion, check_owner_signature, expands
from agent.core.jws import POLICY_TYP, RESTRICT_TYP, Verified, verify_document
from agent.core.policy import Policy, parse_policy
from agent.core.restrict import parse_restriction
from agent.core.trust import Role, Trust, parse_trust_document
from agent.edge.files import load_catalogue, load_policy, load_trust, read_file
from agent.errors import AgentError, WrongVehicle
from agent.resources import shipped

_FILE = click.Path(path_type=Path)
_catalogue = click.option("--catalogue", type=_FILE, help="Default: the one we ship.")
_WHOLE = frozenset({"grant", "scope", "state"})  # Of an expansion: all of the scope is more.
_json = click.option("--json", "as_json", is_flag=True)


@click.command(short_help="Check a policy, and say what may not be meant.")
@click.argument("policy", type=_FILE)
@click.option("--strict", is_flag=True, help="Warnings are errors.")
@_catalogue
@_json
def lint(*, policy: Path, strict: bool, catalogue: Path | None, as_json: bool) -> int:
    """Check a POLICY (JSON or JWS; no signature is checked), and say what may not be meant."""
    scopes = load_scopes(catalogue)
    found = warnings(_loaded(policy, scopes), scopes, now_ns=time.time_ns())
    if as_json:
        write_json(sys.stdout, {"warnings": list(found)})
    else:
        for sentence in found:
            click.echo(f"warning: {sentence}")
        click.echo("no vehicle refuses it" if not found else f"{len(found)} warnings")
    if strict and found:
        raise AgentError(f"{policy.name} has {len(found)} warnings", hint="mend it")
    return EXIT_OK


@click.command(short_help="Tell what a policy gives more and less than another.")
@click.argument("old", type=_FILE)
@click.argument("new", type=_FILE)
@_catalogue
@_json
def diff(*, old: Path, new: Path, catalogue: Path | None, as_json: bool) -> int:
    """Tell what policy NEW gives more (+) and less (-) than OLD; JSON or JWS, unchecked."""
    scopes = load_scopes(catalogue)
    before, after = _loaded(old, scopes), _loaded(new, scopes)
    found = differences(before, after, scopes)
    if as_json:
        write_json(
            sys.stdout,
            {
                "from": [before.epoch, before.ver],
                "to": [after.epoch, after.ver],
                "grants": [_difference_told(one) for one in found],
            },
        )
        return EXIT_OK
    if not found:
        click.echo("no grant differs")
    for one in found:
        was, now = ("-" if rev is None else rev for rev in one.rev)
        click.echo(f"{one.grant_id}: {one.change} (rev {was} -> {now})")
        for sign, items in (("+", one.more), ("-", one.less)):
            for item in items:
                for step in _steps(item, before, after):
                    click.echo(f"  {sign} {item.scope} ({item.scope_class}){step}")
        for member in one.other:
            click.echo(f"    {member} changed")
    return EXIT_OK


@click.command(short_help="Check a signed document as a vehicle would.")
@click.argument("policy", type=_FILE)
@click.option("--trust", required=True, type=_FILE, help="The vehicle's trust file.")
@click.option("--vehicle", help="Also check that it is for this vehicle.")
@click.option("--before", type=_FILE, help="The policy in force: what is more than it?")
@_catalogue
@_json
def verify(  # noqa: PLR0913 - one argument per option
    *,
    policy: Path,
    trust: Path,
    vehicle: str | None,
    before: Path | None,
    catalogue: Path | None,
    as_json: bool,
) -> int:
    """Check a signed POLICY as a vehicle would, and tell what it grants; status 3 if refused.

    A restrict or trust document is checked and told as well.
    """
    scopes = load_scopes(catalogue)
    trusted = load_trust(trust, scopes)
    verified = verify_document(read_file(policy, "the policy").strip(), trusted)
    told: dict[str, Any] = {
        "typ": verified.typ,
        "signers": [{"kid": one.kid, "role": one.role.value} for one in verified.signers],
    }
    if verified.typ != POLICY_TYP:
        told |= _other_told(verified, vehicle)
        lines = _other_lines(told)
    else:
        parsed = parse_policy(verified.payload, scopes)
        _check_vehicle(parsed.aud, vehicle)
        told |= _policy_told(parsed)
        lines = [
            f"policy {parsed.epoch}.{parsed.ver} for vehicle {parsed.aud}: signature holds",
            _signed_by(told),
            *grant_lines(parsed),
        ]
        if before is not None:
            old = load_policy(before, scopes, trust=trusted)
            warn(old.warnings)
            _check_follows(parsed, old.policy)
            told |= _growth_told(parsed, old.policy, verified, trusted, scopes)
            lines += _growth_lines(told, old.policy)
        elif trusted.owner_needed_for and Role.OWNER not in verified.roles:
            note("it may need the owner's signature; name the policy in force with --before")
    if as_json:
        write_json(sys.stdout, told)
    else:
        click.echo("\n".join(lines))
    return EXIT_OK


def load_scopes(path: Path | None) -> Catalogue:
    """Return the catalogue that was named, or the one we ship."""
    return load_catalogue(path or shipped("config/catalogue.json"))


def grant_lines(policy: Policy) -> Iterator[str]:
    """Yield a line for each grant: its state, and who may have what."""
    live = {grant.grant_id for grant in policy.live_grants(time.time_ns())}
    for grant in policy.grants:
        state = f"{grant.state} ({'live' if grant.grant_id in live else 'not live'})"
        scopes = ", ".join(detail.scope for detail in grant.details) or "-"
        yield f"  {grant.grant_id}  {state}  {grant.recipient_id or '-'}: {scopes}"


def _loaded(path: Path, catalogue: Catalogue) -> Policy:
    return load_policy(path, catalogue, trust=None).policy


def _check_vehicle(found: str, vehicle: str | None) -> None:
    if vehicle is not None and found != vehicle:
        raise WrongVehicle(
            f"the document is for vehicle {found}, expected {vehicle}", reason="vehicle"
        )


def _check_follows(policy: Policy, before: Policy) -> None:
    """Refuse what a vehicle would that has the one before; it was for the same vehicle."""
    in_force = InForce(before.epoch, before.ver, before.payload_sha256)
    admit(policy, vehicle=before.aud or policy.aud, in_force=in_force, now_ns=None)
    check_revisions(policy, before=before)


def _steps(item: Expansion, before: Policy, after: Policy) -> Iterator[str]:
    """Yield each member that differs, with its values; nothing more where the whole scope does."""
    for member in item.grew:
        if member in _WHOLE:
            yield ""
            continue
        was, now = (
            value_of(policy, item.grant_id, item.scope, member) for policy in (before, after)
        )
        yield f": {member} {was} -> {now}"


def _expansion_told(item: Expansion) -> dict[str, Any]:
    return {"scope": item.scope, "class": item.scope_class, "members": list(item.grew)}


def _difference_told(one: Difference) -> dict[str, Any]:
    return {
        "grant_id": one.grant_id,
        "change": one.change,
        "rev": list(one.rev),
        "more": [_expansion_told(item) for item in one.more],
        "less": [_expansion_told(item) for item in one.less],
        "other": list(one.other),
    }


def _policy_told(policy: Policy) -> dict[str, Any]:
    return {
        "vehicle": policy.aud,
        "epoch": policy.epoch,
        "ver": policy.ver,
        "iat": policy.iat_s,
        "nbf": policy.nbf_s,
        "exp": policy.exp_s,
        "payload_sha256": policy.payload_sha256,
        "taken_over": list(policy.taken_over),
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


def _growth_told(
    policy: Policy, before: Policy, verified: Verified, trust: Trust, catalogue: Catalogue
) -> dict[str, Any]:
    """Tell what the policy gives more, and refuse it where the owner's signature is missing."""
    now_ns = time.time_ns()
    check_owner_signature(
        policy, before=before, roles=verified.roles, trust=trust, catalogue=catalogue, now_ns=now_ns
    )
    more = expands(before if before.is_valid(now_ns) else None, policy, catalogue)
    return {
        "more": [{"grant_id": item.grant_id, **_expansion_told(item)} for item in more],
        "owner_needed": any(item.scope_class in trust.owner_needed_for for item in more),
    }


def _growth_lines(told: dict[str, Any], before: Policy) -> Iterator[str]:
    version = f"{before.epoch}.{before.ver}"
    if not told["more"]:
        yield f"it gives no more than policy {version}"
    for item in told["more"]:
        what = ", ".join(item["members"])
        yield f"more than policy {version}: {item['grant_id']} {item['scope']} ({what})"
    if told["owner_needed"]:
        yield "it needs the owner's signature, which is there"


def _signed_by(told: dict[str, Any]) -> str:
    return "  signed by " + ", ".join(f"{one['kid']} ({one['role']})" for one in told["signers"])


def _other_told(verified: Verified, vehicle: str | None) -> dict[str, Any]:
    if verified.typ == RESTRICT_TYP:
        restriction = parse_restriction(verified.payload)
        _check_vehicle(restriction.aud, vehicle)
        return {
            "vehicle": restriction.aud,
            "jti": restriction.jti,
            "iat": restriction.iat_s,
            "mode": restriction.mode,
            "grants": list(restriction.grants),
        }
    document = parse_trust_document(verified.payload)
    return {
        "ver": document.ver,
        "iat": document.iat_s,
        "keys": [{"kid": key.kid, "alg": key.alg} for key in document.keys],
    }


def _other_lines(told: dict[str, Any]) -> list[str]:
    if "mode" in told:
        grants = ", ".join(told["grants"])
        what = f"{told['mode']} of {grants} for vehicle {told['vehicle']}, jti {told['jti']}"
        return [f"restrict document: {what}: signature holds", _signed_by(told)]
    what = f"trust document {told['ver']}: {', '.join(key['kid'] for key in told['keys'])}"
    return [f"{what} may sign policies: signature holds", _signed_by(told)]
