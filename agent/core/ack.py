"""The device's signed answer to a policy or a restriction: a COSE_Sign1 over one map.

    {typ: "consent-ack", v: vehicle, h: SHA-256 of the document's payload, p: [epoch, ver] in force,
     b: [epoch, ver] in force before, o: outcome, e: reason or "", t: s since the epoch, n: counter,
     a: [ledger size, root], s: [* path that is granted but cannot be given],
     x: {* grant => [envelopes, bytes] that were erased}, k: nothing of it can be read any more,
     d: ms from the document's arrival until this was signed}

With outcome `ended` nobody asked: time has ended, lapsed or begun something, and h names the policy
in force.

Rules:
 * The counter only rises; the platform takes no answer with a counter that it has seen or passed.
 * No signal value, position or VIN.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.core import cbor
from agent.core.cbor import is_count, malformed
from agent.core.cose import DeviceKey, sign1

TYPE = "consent-ack"
OUTCOMES = ("applied", "repeated", "refused", "ended")


@dataclass(frozen=True, slots=True)
class Ack:
    """What became of a policy or a restriction, with the receipt for what was erased.

    Attributes:
        payload_sha256: Of the document's payload, 32 bytes; where no payload could be read, of
            what arrived.
        epoch: Of the policy in force now.
        ver: Of the policy in force now.
        before: (epoch, ver) of the policy that was in force before; (0, 0) before the first.
        outcome: One of OUTCOMES.
        reason: Why it was refused (docs/policy.md), or "".
        counter: Rises with every answer of this device.
        skipped: Paths that are granted but that this vehicle cannot give.
        erased: Grant id → (envelopes, bytes) that were erased from the spool.
        scrubbed: Nothing of what was erased can be read in the state directory any more.
        latency_ms: From the document's arrival until the answer was signed; 0 without one.
    """

    vehicle: str
    payload_sha256: bytes
    epoch: int
    ver: int
    outcome: str
    reason: str
    time_s: int
    counter: int
    ledger_size: int
    ledger_root: bytes
    skipped: tuple[str, ...] = ()
    before: tuple[int, int] = (0, 0)
    erased: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    scrubbed: bool = True
    latency_ms: int = 0


def sign_ack(ack: Ack, device: DeviceKey) -> bytes:
    """Return the answer as it goes to the platform."""
    return sign1(
        cbor.encode(
            {
                "typ": TYPE,
                "v": ack.vehicle,
                "h": ack.payload_sha256,
                "p": [ack.epoch, ack.ver],
                "o": ack.outcome,
                "e": ack.reason,
                "t": ack.time_s,
                "n": ack.counter,
                "a": [ack.ledger_size, ack.ledger_root],
                "s": list(ack.skipped),
                "b": list(ack.before),
                "x": {grant_id: list(tally) for grant_id, tally in ack.erased.items()},
                "k": ack.scrubbed,
                "d": ack.latency_ms,
            }
        ),
        device,
    )


def parse_ack(payload: bytes) -> Ack:
    """Return the answer in a verified payload.

    Raises:
        EnvelopeRejected: It is no answer (reason `malformed`).
    """
    value = cbor.decode(payload)
    names = {"typ", "v", "h", "p", "o", "e", "t", "n", "a", "s", "b", "x", "k", "d"}
    if not isinstance(value, dict) or set(value) != names or value["typ"] != TYPE:
        raise malformed("not an acknowledgement")
    if not (
        all(isinstance(value[name], str) for name in ("v", "o", "e"))
        and value["o"] in OUTCOMES
        and all(is_count(value[name]) for name in ("t", "n", "d"))
        and _is_digest(value["h"])
        and _is_counts(value["p"])
        and _is_counts(value["b"])
        and _is_pair(value["a"])
        and _is_digest(value["a"][1])
        and isinstance(value["s"], list)
        and all(isinstance(path, str) for path in value["s"])
        and isinstance(value["x"], dict)
        and all(isinstance(g, str) and _is_counts(tally) for g, tally in value["x"].items())
        and isinstance(value["k"], bool)
    ):
        raise malformed("a member of the acknowledgement has the wrong type")
    return Ack(
        vehicle=value["v"],
        payload_sha256=value["h"],
        epoch=value["p"][0],
        ver=value["p"][1],
        outcome=value["o"],
        reason=value["e"],
        time_s=value["t"],
        counter=value["n"],
        ledger_size=value["a"][0],
        ledger_root=value["a"][1],
        skipped=tuple(value["s"]),
        before=(value["b"][0], value["b"][1]),
        erased={grant_id: (tally[0], tally[1]) for grant_id, tally in value["x"].items()},
        scrubbed=value["k"],
        latency_ms=value["d"],
    )


def _is_digest(value: Any) -> bool:
    return isinstance(value, bytes) and len(value) == 32


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and is_count(value[0])


def _is_counts(value: Any) -> bool:
    return _is_pair(value) and is_count(value[1])
