"""Which keys count on this vehicle, as the ledger told it last, and what has changed since.

Rules:
 * It is asked at each start, reload and trust document, so a key that was exchanged while the agent
   did not run is told at the next start.
 * What was told is kept beside the consent. A crash in between tells a change twice, never not at
   all.
"""

import hashlib
import json
import re
from contextlib import suppress

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.control.journal import Journal
from agent.core.cose import DeviceKey
from agent.core.trust import Key, Trust, key_changes
from agent.edge.store import Store
from agent.errors import StoreError

_TOLD = "keys"  # The name under which it is kept: a line for each key.
_CERTIFICATE = "certificate_ends_s"
_LINE = re.compile(r"(device|policy|owner|root) ([A-Za-z0-9_-]{1,64}) ([0-9a-f]{64})", re.ASCII)


def tell_keys(
    store: Store, journal: Journal, *, trust: Trust, device: DeviceKey, now_ns: int
) -> None:
    """Write into the ledger which keys have come, gone or been replaced since this was told last.

    Args:
        store: Open.
        journal: Over the open ledger.
        trust: In force.
        device: Signs for this vehicle.
        now_ns: ns since the epoch.
    """
    before = _parse(store.document(_TOLD) or b"")
    after = {Key(key.role, key.kid): _digest_of(key.jwk) for key in trust.keys.values()}
    after[Key("device", device.kid)] = _digest_of_device(device)
    changes = key_changes(before, after)
    for key, change in changes:
        journal.note(now_ns, "key-changed", role=key.role, kid=key.kid, change=change)
    if changes:
        lines = (f"{key.role} {key.kid} {digest}\n" for key, digest in sorted(after.items()))
        with suppress(StoreError):  # It is told once more at the next start.
            store.keep_document(_TOLD, "".join(lines).encode("ascii"))


def tell_certificate(store: Store, journal: Journal, *, ends_s: int, now_ns: int) -> None:
    """Write into the ledger that another TLS certificate is in use, told by its end.

    Args:
        store: Open.
        journal: Over the open ledger.
        ends_s: When it ends, s since the epoch.
        now_ns: ns since the epoch.
    """
    if store.number(_CERTIFICATE) == ends_s:
        return
    journal.note(now_ns, "certificate-changed", ends=ends_s)
    with suppress(StoreError):  # As above.
        store.keep_numbers({_CERTIFICATE: ends_s})


def _parse(kept: bytes) -> dict[Key, str]:
    """Return what was told; a line that a failing disk has changed is told anew."""
    found = map(_LINE.fullmatch, kept.decode("ascii", "replace").splitlines())
    return {Key(line[1], line[2]): line[3] for line in found if line is not None}


def _digest_of(jwk: object) -> str:
    return hashlib.sha256(json.dumps(jwk, sort_keys=True, default=dict).encode()).hexdigest()


def _digest_of_device(device: DeviceKey) -> str:
    public = device.private.public_key()
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()
