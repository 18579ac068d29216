"""The platform's side of consent: write a policy, change it, sign it.

A policy is a plain dict here, as it goes on the wire; every function returns a new one and leaves
its arguments alone. Time is an argument, in whole seconds since the epoch.

Rules that the vehicle holds the platform to, and that these helpers keep:
 * Every change of the policy raises `ver`; every change of a grant but that of its state raises its
   `rev`, and what was stored under the lower one is erased.
 * A withdrawn grant stays in the policy as a tombstone and never comes back under its id.
 * What is left out of the next policy is revoked by that.
"""

import uuid
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from agent.cloud.signing import encode, kid_of, public_half, sign
from agent.core.catalogue import Catalogue
from agent.core.jwk import P256
from agent.core.jws import POLICY_TYP
from agent.core.policy import parse_policy
from agent.core.recipient import SEAL_ALG
from agent.core.strictjson import shown
from agent.errors import AgentError

DAY_S = 86_400

Document = dict[str, Any]


def recipient(name: str, *jwks: Mapping[str, Any]) -> Document:
    """Return one value for `recipients`.

    Args:
        name: What the owner is shown.
        jwks: The recipient's P-256 keys as JWK with `kid`, the preferred one first. Of a private
            JWK only the public members are taken.

    Raises:
        KeyFileError: A key has no `kid` or is no P-256 key.
    """
    return {
        "name": name,
        "keys": [
            {"kid": kid_of(key), "alg": SEAL_ALG, "jwk": public_half(key, P256)} for key in jwks
        ],
    }


def grant(  # noqa: PLR0913  one parameter for each member of a grant
    grant_id: str,
    recipient_id: str,
    scopes: Mapping[str, Mapping[str, Any]],
    *,
    nbf_s: int,
    exp_s: int,
    purposes: Sequence[str],
    retention: str,
    offline_s: int = DAY_S,
    combine: Sequence[Sequence[str]] = (),
    record: Mapping[str, str] | None = None,
) -> Document:
    """Return one element for `grants`, active, rev 1.

    Args:
        grant_id: Never used before for this vehicle.
        recipient_id: A name in the policy's `recipients`.
        scopes: Scope → its constraints; `{}` for the defaults of its class.
        nbf_s: First second of the consent.
        exp_s: First second after it.
        purposes: As in `["dpv:ServiceProvision"]`.
        retention: ISO 8601 duration in whole numbers, as in `P30D`.
        offline_s: Longest time that the vehicle goes on without a fresh policy.
        combine: Sets of scopes that the owner allows to be joined.
        record: `{"id", "sha256"}` of the owner's declaration.
    """
    document: Document = {
        "grant_id": grant_id,
        "rev": 1,
        "state": "active",
        "recipient": recipient_id,
        "nbf": nbf_s,
        "exp": exp_s,
        "offline_s": offline_s,
        "purposes": list(purposes),
        "retention": retention,
        "details": [
            {"scope": scope, "constraints": dict(constraints)} if constraints else {"scope": scope}
            for scope, constraints in scopes.items()
        ],
    }
    if record is not None:
        document["record"] = dict(record)
    if combine:
        document["combine"] = [list(names) for names in combine]
    return document


def new_policy(  # noqa: PLR0913  one parameter for each member of a policy
    *,
    vehicle: str,
    issuer: str,
    catalogue: Catalogue,
    recipients: Mapping[str, Document],
    grants: Sequence[Document],
    iat_s: int,
    valid_s: int = 30 * DAY_S,
    epoch: int = 1,
    ver: int = 1,
    jti: str | None = None,
) -> Document:
    """Return the payload of a policy, ready to sign.

    Args:
        vehicle: The vehicle's pseudonym; never its VIN.
        issuer: Who decides, as a URL.
        catalogue: The catalogue that the owner was shown.
        recipients: Id → what `recipient` returns.
        grants: What `grant` returns.
        iat_s: Now.
        valid_s: How long the vehicle may go by this policy.
        epoch: Raised only when the root of trust changes.
        ver: Above that of every earlier policy of this epoch.
        jti: Drawn where None.
    """
    return {
        "v": 1,
        "iss": issuer,
        "aud": vehicle,
        "jti": jti or str(uuid.uuid4()),
        "epoch": epoch,
        "ver": ver,
        "iat": iat_s,
        "nbf": iat_s,
        "exp": iat_s + valid_s,
        "catalogue": {
            "id": catalogue.id,
            "ver": catalogue.version,
            "sha256": catalogue.sha256,
        },
        "recipients": deepcopy(dict(recipients)),
        "grants": deepcopy(list(grants)),
    }


def next_version(policy: Mapping[str, Any], *, iat_s: int, jti: str | None = None) -> Document:
    """Return the same policy as the following version, valid from now for as long as before."""
    document = deepcopy(dict(policy))
    document["ver"] += 1
    document["exp"] = iat_s + policy["exp"] - policy["nbf"]
    document["iat"] = document["nbf"] = iat_s
    document["jti"] = jti or str(uuid.uuid4())
    return document


def revoke(policy: Mapping[str, Any], grant_id: str, *, iat_s: int) -> Document:
    """Return the next version, in which a grant is withdrawn for good.

    Raises:
        AgentError: The policy has no such grant.
    """
    document = next_version(policy, iat_s=iat_s)
    old = _find(document, grant_id)
    tombstone = {"grant_id": grant_id, "rev": old.get("rev", 1) + 1, "state": "revoked"}
    document["grants"][document["grants"].index(old)] = tombstone
    return document


def pause(policy: Mapping[str, Any], grant_id: str, *, iat_s: int) -> Document:
    """Return the next version, in which a grant rests: nothing is collected or sent.

    Raises:
        AgentError: The policy has no such grant, or it is revoked.
    """
    return _with_state(policy, grant_id, "paused", iat_s=iat_s)


def resume(policy: Mapping[str, Any], grant_id: str, *, iat_s: int) -> Document:
    """Return the next version, in which a paused grant is active again.

    Raises:
        AgentError: The policy has no such grant, or it is revoked.
    """
    return _with_state(policy, grant_id, "active", iat_s=iat_s)


def take_over(policy: Mapping[str, Any], *jtis: str, iat_s: int) -> Document:
    """Return the next version, which stands for restrict documents from now on.

    Its grants must say themselves what the documents wanted; see `pause` and `revoke`.
    """
    document = next_version(policy, iat_s=iat_s)
    document["taken_over"] = list(dict.fromkeys([*document.get("taken_over", ()), *jtis]))
    return document


def sign_policy(
    payload: Mapping[str, Any] | bytes,
    key: Mapping[str, Any],
    *,
    kid: str | None = None,
    alg: str | None = None,
    catalogue: Catalogue | None = None,
) -> str:
    """Return the policy as a compact JWS.

    Args:
        payload: The policy, or its exact bytes.
        key: Private JWK, Ed25519 or P-256.
        kid: Name of the key in the vehicles' trust file; by default the JWK's own.
        alg: `EdDSA` or `ES256`; by default the JWK's own.
        catalogue: Where given, what the vehicle would refuse is not signed.

    Raises:
        PolicyRejected: The payload is no policy under this catalogue, or too long.
        KeyFileError: The key is no private key for this algorithm.
    """
    data = payload if isinstance(payload, bytes) else encode(payload)
    if catalogue is not None:
        parse_policy(data, catalogue)
    return sign(data, key, typ=POLICY_TYP, kid=kid, alg=alg)


def _with_state(policy: Mapping[str, Any], grant_id: str, state: str, *, iat_s: int) -> Document:
    document = next_version(policy, iat_s=iat_s)
    found = _find(document, grant_id)
    if found.get("state") == "revoked":
        raise AgentError(
            f"the grant {grant_id} is revoked, nothing leads back from that",
            hint="renewed consent is a new grant with a new grant_id",
        )
    found["state"] = state
    return document


def _find(document: Document, grant_id: str) -> Document:
    grants: list[Document] = document["grants"]
    for found in grants:
        if found["grant_id"] == grant_id:
            return found
    known = ", ".join(str(found["grant_id"]) for found in grants) or "none"
    raise AgentError(f"the policy has no grant {shown(grant_id)}", hint=f"its grants are: {known}")
