"""What the demo promised, held against what was seen.

Rules:
 * A promise is kept only where there was something to keep it with: no envelope, no proof.
 * The evidence is what the auditor and the recipients have, never what the agent says of itself.
"""

from dataclasses import dataclass
from typing import Any

from agent.core.catalogue import Catalogue
from agent.core.model import Column
from agent.demo.consent import SCOPES_A, SCOPES_B
from agent.demo.judge import PLAINTEXT, Seen
from agent.demo.recipients import Recipients
from agent.demo.state import CITY, FLEET, Promise, State


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the independent eye saw.

    Attributes:
        seen: Every message, in the order of the broker.
        revoked_at: How many of them came before B's revocation reached the vehicle.
        spooled: Label -> places in the state directory, when the spool was full.
        kept: The same at the end.
    """

    seen: list[Seen]
    revoked_at: int
    spooled: dict[str, int]
    kept: dict[str, int]


def judge(
    evidence: Evidence, recipients: Recipients, state: State, catalogue: Catalogue
) -> list[Promise]:
    """Return each promise, whether it was kept, and how that was seen."""
    seen, spooled, kept = evidence.seen, evidence.spooled, evidence.kept
    # Before the broker's answer came, the link was cut: such an envelope is sent again.
    data = list({item.payload: item for item in seen if "/data/" in item.topic}.values())
    late = [item for item in seen[evidence.revoked_at :] if f"/data/{CITY}/" in item.topic]
    to_a = [item for item in data if f"/data/{FLEET}/" in item.topic]
    numbers = sorted(opened.header.n for opened in recipients.opened[FLEET])
    of_b = sum(count for label, count in kept.items() if label not in PLAINTEXT)
    unsealed = {label: spooled[label] + kept[label] for label in PLAINTEXT}
    readable = [item for item in data if any(sign in item.payload for sign in PLAINTEXT.values())]
    opened = sum(map(len, recipients.opened.values()))
    return [
        Promise(
            "only what was consented to arrived",
            _only_consented(recipients, catalogue),
            f"A opened {sum(state.opened[FLEET].values())} samples of "
            f"{len(state.opened[FLEET])} paths, B "
            f"{sum(state.opened[CITY].values())} of {len(state.opened[CITY])}",
        ),
        Promise(
            "every envelope opened for its recipient, and for nobody else",
            opened == len(data) > 0
            and not sum(recipients.unopened.values())
            and not readable
            and not recipients.opened_by_others(data),
            f"{opened} of {len(data)} envelopes seen on the wire opened; each was tried with "
            "the other's key too",
        ),
        Promise(
            "nothing of B's was sent after the revocation",
            not late,
            f"an independent subscriber saw {len(late)} of B's envelopes after it",
        ),
        Promise(
            "nothing of B's is kept after the revocation",
            spooled["B"] > 0 and of_b == 0,
            f"B's envelopes lay in {spooled['B']} places of the state directory before it, "
            f"{of_b} after it",
        ),
        Promise(
            "what rests on disk is sealed",
            not any(unsealed.values()),
            " and ".join(f"{count} {label}" for label, count in unsealed.items())
            + " in the bytes of the state directory, full and at the end",
        ),
        Promise(
            "nothing of A's was lost in the outage",
            numbers == list(range(1, len(to_a) + 1)) and bool(numbers),
            f"A received numbers 1 to {len(numbers)} without a hole",
        ),
    ]


def needles(recipients: Recipients, seen: list[Seen]) -> dict[str, bytes]:
    """Return what must not lie in the state directory: B's envelopes, and any plaintext."""
    needles = {"key of B": recipients.kid(CITY), **PLAINTEXT}
    for index, item in enumerate(seen):
        if f"/data/{CITY}/" in item.topic:
            middle = len(item.payload) // 2
            needles[f"envelope {index} of B"] = item.payload[middle : middle + 24]
    return needles


def _only_consented(recipients: Recipients, catalogue: Catalogue) -> bool:
    """Check every opened sample against the grant's scopes, grid and interval."""
    for name, scopes in ((FLEET, SCOPES_A), (CITY, SCOPES_B)):
        allowed = {
            signal.path: limits
            for scope, limits in scopes.items()
            for signal in catalogue.scopes[scope].signals
        }
        for opened in recipients.opened[name]:
            for column in opened.columns:
                limits = allowed.get(column.path)
                if limits is None or not _obeys(column, limits):
                    return False
    return bool(recipients.opened[FLEET]) and bool(recipients.opened[CITY])


def _obeys(column: Column, limits: dict[str, Any]) -> bool:
    """Tell whether a column keeps its grant's interval and grid."""
    least_ms = limits.get("min_interval_s", 0) * 1000 - 1  # Times are rounded down to whole ms.
    gaps = zip(column.times_ms, column.times_ms[1:], strict=False)
    if any(after - before < least_ms for before, after in gaps):
        return False
    grid = limits.get("grid_deg")
    if grid is None or column.path.rpartition(".")[2] not in ("Latitude", "Longitude"):
        return True
    return all(abs((float(value) / grid) % 1 - 0.5) < 1e-3 for value in column.values)
