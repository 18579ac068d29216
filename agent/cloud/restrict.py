"""Sign a restrict document: take something away at once, beside the policy.

The platform may sign one, and so may the owner, alone. The platform's next policies list its `jti`
in `taken_over` when they say themselves what it wanted.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from agent.cloud.signing import encode, sign
from agent.core.jws import RESTRICT_TYP
from agent.core.restrict import RestrictionMode, parse_restriction
from agent.core.standing import EVERY_GRANT


def new_restriction(
    *,
    vehicle: str,
    mode: RestrictionMode,
    grants: Sequence[str] = (),
    iat_s: int,
    jti: str | None = None,
) -> dict[str, Any]:
    """Return the payload of a restrict document.

    Args:
        vehicle: The vehicle's pseudonym.
        mode: `pause` holds until a policy takes it over; `revoke` is for good.
        grants: Ids of grants; none: every grant.
        iat_s: Now.
        jti: Never used before; drawn where None.
    """
    return {
        "v": 1,
        "aud": vehicle,
        "jti": jti or str(uuid.uuid4()),
        "iat": iat_s,
        "mode": mode,
        "grants": list(grants) or EVERY_GRANT,
    }


def sign_restriction(document: Mapping[str, Any], key: Mapping[str, Any]) -> str:
    """Return a restrict document as a vehicle takes it.

    Args:
        document: What `new_restriction` returns.
        key: Private JWK of the platform or the owner, with `kid` and `alg`.

    Raises:
        PolicyRejected: No vehicle would take it.
        KeyFileError: The key cannot sign.
    """
    payload = encode(document)
    parse_restriction(payload)
    return sign(payload, key, typ=RESTRICT_TYP)
