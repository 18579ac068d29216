"""The device's signed answer to a policy: a COSE_Sign1 over one map.

    {typ: "consent-ack", v: vehicle, h: SHA-256 of the policy's payload, p: [epoch, ver] in force,
     o: outcome, e: reason or "", t: s since the epoch, n: counter, a: [ledger size, root],
     s: [* path that is granted but cannot be given], x: envelopes that were erased}

Rules:
 * The counter only rises; the platform takes no answer with a counter that it has seen or passed.
 * No signal value, position or VIN.
"""

from dataclasses import dataclass
from typing import Any

from agent.core import cbor
from agent.core.cbor import malformed
from agent.core.cose import DeviceKey, sign1

TYPE = "consent-ack"
OUTCOMES = ("applied", "repeated", "refused")


@dataclass(frozen=True, slots=True)
class Ack:
    """What became of a policy.

    Attributes:
        payload_sha256: Of the policy's payload, 32 bytes; where no payload could be read, of
            what arrived.
        epoch: Of the policy in force now.
        ver: Of the policy in force now.
        outcome: One of OUTCOMES.
        reason: Why it was refused (docs/policy.md), or "".
        counter: Rises with every answer of this device.
        skipped: Paths that are granted but that this vehicle cannot give.
        purged: Envelopes that were erased.
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
    skipped: tuple[str, ...]
    purged: int


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
                "x": ack.purged,
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
    names = {"typ", "v", "h", "p", "o", "e", "t", "n", "a", "s", "x"}
    if not isinstance(value, dict) or set(value) != names or value["typ"] != TYPE:
        raise malformed("not an acknowledgement")
    if not (
        all(isinstance(value[name], str) for name in ("v", "o", "e"))
        and value["o"] in OUTCOMES
        and all(_is_count(value[name]) for name in ("t", "n", "x"))
        and _is_digest(value["h"])
        and _is_pair(value["p"])
        and _is_count(value["p"][1])
        and _is_pair(value["a"])
        and _is_digest(value["a"][1])
        and isinstance(value["s"], list)
        and all(isinstance(path, str) for path in value["s"])
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
        purged=value["x"],
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_digest(value: Any) -> bool:
    return isinstance(value, bytes) and len(value) == 32


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and _is_count(value[0])
