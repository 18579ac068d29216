"""What a ledger still knows of a consent that cannot be read any more: all that takes away.

Rules:
 * Nothing of it grants: the version below which no policy may come, which grants have ended, what
   was restricted, what was stopped at the vehicle and not lifted again.
 * Where the ledger has a hole or lacks what was retired, or keys were renewed whose document is
   lost, what it knows is not whole.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from agent.core.ledger import Entry
from agent.core.restrict import RestrictionMode
from agent.core.standing import EVERY_GRANT
from agent.errors import LedgerError


@dataclass(frozen=True, slots=True)
class StopSeen:
    """A local stop that was not lifted.

    Attributes:
        by: A uid, or a word.
        since_s: s since the epoch.
        for_s: For how long; None: until it is lifted.
    """

    by: int | str
    since_s: int
    for_s: int | None


@dataclass(frozen=True, slots=True)
class RestrictionSeen:
    """A restrict document that was applied.

    Attributes:
        at_s: When, s since the epoch.
        grants: Their ids, or (EVERY_GRANT,).
    """

    jti: str
    at_s: int
    mode: RestrictionMode
    grants: tuple[str, ...]


@dataclass(slots=True)
class Recalled:
    """What takes away, of all that the ledger tells.

    Attributes:
        version: Epoch, version and SHA-256 (hexadecimal) of the policy that was applied last.
        ended: How each grant ended that did.
        stops: What is stopped at the vehicle, by grant id.
        restrictions: In the order in which they came.
        last_s: Time of the last entry, s since the epoch.
        is_whole: Nothing that takes away can be missing.
    """

    version: tuple[int, int, str] | None = None
    ended: dict[str, Literal["revoked", "expired"]] = field(default_factory=dict)
    stops: dict[str, StopSeen] = field(default_factory=dict)
    restrictions: list[RestrictionSeen] = field(default_factory=list)
    last_s: int = 0
    is_whole: bool = True


def recall(entries: Iterable[Entry | LedgerError]) -> Recalled:
    """Return what a ledger knows.

    Args:
        entries: In order; in place of a line that cannot be read, what is wrong with it.
    """
    found = Recalled()
    for entry in entries:
        if isinstance(entry, LedgerError):
            found.is_whole = False
            continue
        found.last_s = max(found.last_s, entry.t_s)
        _take(entry, cast("Any", entry.facts), found)
    return found


def _take(entry: Entry, facts: Any, found: Recalled) -> None:
    """Take in one entry; its facts are what `agent.core.ledgerevent` gives its event."""
    match entry.name:
        case "policy-applied":
            found.version = (facts["epoch"], facts["ver"], facts["sha256"])
            for grant_id in facts["ended"]:
                found.ended.setdefault(grant_id, "revoked")
        case "grant-state" if facts["state"] in ("revoked", "expired"):
            found.ended.setdefault(facts["grant"], facts["state"])
        case "restriction-applied":
            grants = tuple(facts["grants"]) or (EVERY_GRANT,)
            seen = RestrictionSeen(facts["jti"], entry.t_s, facts["mode"], grants)
            found.restrictions.append(seen)
        case "local-stop":
            _take_stop(entry.t_s, facts, found)
        case "trust-applied" | "entries-lost" | "segment-damaged" | "segment-retired":
            found.is_whole = False
        case "ledger-begun" if facts["size"]:
            found.is_whole = False  # It stands for one that was set aside.


def _take_stop(at_s: int, facts: Any, found: Recalled) -> None:
    for grant_id in facts["grants"] or [EVERY_GRANT]:
        if facts["state"] == "off":
            found.stops.pop(grant_id, None)
        elif facts["by"] != "switch":  # That one is asked itself.
            found.stops[grant_id] = StopSeen(facts["by"], at_s, facts["seconds"] or None)
