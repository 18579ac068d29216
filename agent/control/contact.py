"""The last fresh signed contact with the platform, kept over restarts, and what its age suspends.

Rules:
 * Contact is a policy whose `iat` rose; a PUBACK or known bytes are none.
 * Its age is counted on CLOCK_BOOTTIME, over a reboot as the worst case. Where nobody knows how
   long ago it was, it was too long ago.
"""

import hashlib

from agent.core.clock import Moment, elapsed_ns
from agent.core.model import NS_PER_S
from agent.core.policy import Policy
from agent.core.standing import lapsed
from agent.edge.store import Store

# Names of the numbers on disk that say when it was.
_NAMES = ("contact_ns", "contact_boot_ns", "contact_boot", "contact_known")
_EARLIER_BOOT = "an earlier boot"


def numbers(contact: Moment) -> dict[str, int]:
    """Return a contact as numbers to be kept on disk."""
    boot = _boot_number(contact.boot_id)
    values = (contact.now_ns, contact.boot_ns, boot, int(contact.is_known))
    return dict(zip(_NAMES, values, strict=True))


def kept(store: Store, now: Moment) -> Moment | None:
    """Return when the last contact was, from what is on disk; None where that is not known."""
    now_ns, boot_ns, boot, is_known = (store.number(name) for name in _NAMES)
    if now_ns is None or boot_ns is None:
        return None
    boot_id = now.boot_id if boot == _boot_number(now.boot_id) else _EARLIER_BOOT
    return Moment(now_ns, boot_ns, boot_id, bool(is_known))


def lapsed_grants(policy: Policy | None, contact: Moment | None, now: Moment) -> frozenset[str]:
    """Return the grants of a policy that had no contact for their `offline_s`."""
    if policy is None:
        return frozenset()
    age_ns = None if contact is None else elapsed_ns(contact, now)
    if age_ns is None and now.is_known:
        # It came after it was signed: the worst case that is still certain.
        age_ns = max(0, now.now_ns - policy.iat_s * NS_PER_S)
    return lapsed(policy.grants, age_ns)


def _boot_number(boot_id: str) -> int:
    """Return a number for the name of a boot, to be kept among the store's numbers."""
    return int.from_bytes(hashlib.sha256(boot_id.encode()).digest()[:7])
