"""What the ledger may say: a closed list of events, each with its facts and their kinds.

Rules:
 * An event has exactly the facts that the list gives it. Another event, fact or kind raises.
 * There is no kind for a number with a fraction, for free text or for a path: a signal's value, a
   position or a VIN has no place to stand in. Reasons are words without digits.
 * Counts of a grant are rolled up over a minute by whoever appends.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeGuard

from agent.core.member import ID, SHA256
from agent.core.model import NS_PER_S
from agent.core.strictjson import MAX_INTEGER

Fact = int | str | list[str] | dict[str, int]

_WORD = re.compile(r"[a-z]{1,24}(-[a-z]{1,24}){0,4}", re.ASCII)
_VERSION = re.compile(r"\d{1,3}(\.\d{1,3}){2}([a-z.+-][a-z0-9.+-]{0,30})?", re.ASCII)
_BOOT_ID = re.compile(r"[a-z0-9-]{8,64}", re.ASCII)
_CHECK = re.compile(r"[0-9a-f]{8}", re.ASCII)
_SIGNED = re.compile(r"[A-Za-z0-9_-]{40,2000}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a fact may be.

    Attributes:
        name: As docs/ledger.md calls it.
        accepts: Whether a value is one.
    """

    name: str
    accepts: Callable[[object], bool]


def _is_integer(value: object) -> TypeGuard[int]:
    return type(value) is int and abs(value) <= MAX_INTEGER


def _is_count(value: object) -> TypeGuard[int]:
    return _is_integer(value) and value >= 0


def _is_text(pattern: re.Pattern[str]) -> Callable[[object], bool]:
    return lambda value: type(value) is str and pattern.fullmatch(value) is not None


def _is_sorted_list(accepts: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: (
        type(value) is list and all(map(accepts, value)) and value == sorted(set(value))
    )


def _is_revisions(value: object) -> bool:
    return (
        type(value) is dict
        and all(map(_is_text(ID), value))
        and all(map(_is_count, value.values()))
    )


def _is_hash_list(value: object) -> bool:
    return type(value) is list and all(map(_is_text(SHA256), value))


def _who(value: object) -> bool:
    return _is_count(value) or value in ("switch", "timer", "damage")


def _one_of(*words: str) -> Kind:
    return Kind("`" + "` `".join(words) + "`", lambda value: value in words)


COUNT = Kind("count", _is_count)
SECONDS = Kind("seconds", _is_integer)
ID_ = Kind("id", _is_text(ID))
IDS = Kind("ids", _is_sorted_list(_is_text(ID)))
REVISIONS = Kind("id → rev", _is_revisions)
WORD = Kind("word", _is_text(_WORD))
DIGEST = Kind("hash", _is_text(SHA256))
CHECK = Kind("check value", _is_text(_CHECK))
DIGESTS = Kind("hashes", _is_hash_list)
VERSION = Kind("version", _is_text(_VERSION))
BOOT_ID = Kind("boot id", _is_text(_BOOT_ID))
SIGNED = Kind("checkpoint", _is_text(_SIGNED))
UID = Kind("uid", _is_count)
WHO = Kind("uid, `switch`, `timer` or `damage`", _who)
STATE = _one_of("pending", "active", "paused", "revoked", "expired", "purged")
ROLE = _one_of("device", "policy", "owner", "root")
FILE = _one_of("consent", "spool")
GAP = _one_of("evicted", "expired", "erased", "damaged")

_FILES = {"config": DIGEST, "catalogue": DIGEST, "sources": DIGEST}
_ROLL_UP = {"grant": ID_, "envelopes": COUNT, "bytes": COUNT}
_NUMBERS = {"first": COUNT, "last": COUNT}

EVENTS: Mapping[str, Mapping[str, Kind]] = {
    # The agent.
    "started": {"version": VERSION, **_FILES, "boot": BOOT_ID},
    "stopped": {"reason": WORD},
    "crash-noticed": {"reason": WORD},
    "reloaded": _FILES,
    "admin": {"verb": WORD, "uid": UID},
    "key-changed": {"role": ROLE, "kid": ID_, "change": _one_of("enrolled", "rotated", "removed")},
    "trust-applied": {"ver": COUNT},
    "certificate-changed": {"ends": SECONDS},
    "clock-stepped": {"by": SECONDS},
    "floor-lowered": {"epoch": COUNT, "by": SECONDS},
    # Consent.
    "policy-received": {"sha256": DIGEST, "bytes": COUNT},
    "policy-refused": {"sha256": DIGEST, "reason": WORD},
    "policy-repeated": {"sha256": DIGEST, "epoch": COUNT, "ver": COUNT},
    "policy-applied": {
        "sha256": DIGEST,
        "epoch": COUNT,
        "ver": COUNT,
        "added": REVISIONS,
        "changed": REVISIONS,
        "ended": REVISIONS,
    },
    "restriction-refused": {"sha256": DIGEST, "reason": WORD},
    "restriction-applied": {"jti": ID_, "mode": _one_of("pause", "revoke"), "grants": IDS},
    "grant-state": {"grant": ID_, "rev": COUNT, "state": STATE},
    "local-stop": {"state": _one_of("on", "off"), "by": WHO, "grants": IDS, "seconds": COUNT},
    # Envelopes.
    "sealed": {**_ROLL_UP, **_NUMBERS, "rev": COUNT, "samples": COUNT},
    "delivered": {**_ROLL_UP, **_NUMBERS},
    "purged": {**_ROLL_UP, "reason": WORD},
    "evicted": _ROLL_UP,
    "expired": _ROLL_UP,
    "dropped": {"grant": ID_, "rev": COUNT, "batches": COUNT, "samples": COUNT, "reason": WORD},
    "gap": {"grant": ID_, **_NUMBERS, "reason": GAP},
    "state-damaged": {"file": FILE, "reason": _one_of("set-aside", "missing")},
    # The network.
    "tls-failed": {"reason": WORD, "times": COUNT},
    "auth-failed": {"reason": WORD, "times": COUNT},
    # The ledger itself, as OWN says.
    "ledger-begun": {"generation": COUNT, "reason": WORD, "size": COUNT, "root": DIGEST},
    "segment-begun": {"generation": COUNT, "bytes": COUNT, "crc": CHECK, "peaks": DIGESTS},
    "segment-damaged": {"first": COUNT, "entries": COUNT},
    "segment-retired": {"first": COUNT, "entries": COUNT, "reason": _one_of("age", "space")},
    "line-torn": {"bytes": COUNT},
    "entries-lost": {"entries": COUNT, "reason": WORD},
    "checkpoint": {"signed": SIGNED},
}

# What the ledger appends by itself; the others are its owner's.
OWN = frozenset(
    {
        "ledger-begun",
        "segment-begun",
        "segment-damaged",
        "segment-retired",
        "line-torn",
        "entries-lost",
        "checkpoint",
    }
)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; made by `event`, so that its facts are the listed ones.

    Attributes:
        t_s: s since the epoch.
        name: One of EVENTS.
    """

    t_s: int
    name: str
    facts: Mapping[str, Fact]


def event(t_ns: int, name: str, **facts: Fact) -> Event:
    """Return an event.

    Args:
        t_ns: When, ns since the epoch; the ledger keeps whole seconds.
        name: One of EVENTS.
        facts: Exactly those that EVENTS gives it.

    Raises:
        ValueError: It is not in the list, or has other facts.
    """
    check(name, facts)
    return Event(max(0, t_ns // NS_PER_S), name, facts)


def check(name: str, facts: Mapping[str, object]) -> None:
    """Raise unless an event is in the list with exactly these facts.

    Raises:
        ValueError: It names the event and the fact, never a value.
    """
    kinds = EVENTS.get(name)
    if kinds is None:
        raise ValueError("the event is none of the ledger's")
    if facts.keys() != kinds.keys():
        wrong = sorted(facts.keys() ^ kinds.keys())
        raise ValueError(f"the facts of {name} are {', '.join(kinds)}; at fault: {wrong[0]!a}")
    for fact, kind in kinds.items():
        if not kind.accepts(facts[fact]):
            raise ValueError(f"{fact} of {name} is not of the kind {kind.name}")
