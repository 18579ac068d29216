"""The device's signed word on its ledger: a COSE_Sign1 over one map.

    {typ: "consent-checkpoint", v: vehicle, g: generation of the ledger, s: entries, r: root,
     t: s since the epoch, b: boot id}

Rules:
 * It is signed only over what is on disk, so it never has to be taken back.
 * A damaged ledger is set aside and a new one begun, with the next generation: within one
   generation the entries only grow.
"""

from dataclasses import dataclass

from agent.core import cbor
from agent.core.cbor import is_count, malformed
from agent.core.cose import DeviceKey, sign1
from agent.core.merkle import HASH_BYTES

TYPE = "consent-checkpoint"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How the ledger stood at a moment.

    Attributes:
        vehicle: The vehicle's pseudonym.
        generation: How many ledgers the device began before this one.
        size: Its entries.
        root: Of the tree over them, 32 bytes.
        boot_id: Of the running kernel.
    """

    vehicle: str
    generation: int
    size: int
    root: bytes
    time_s: int
    boot_id: str


def sign_checkpoint(checkpoint: Checkpoint, device: DeviceKey) -> bytes:
    """Return the checkpoint as it goes to the platform and into the ledger."""
    return sign1(
        cbor.encode(
            {
                "typ": TYPE,
                "v": checkpoint.vehicle,
                "g": checkpoint.generation,
                "s": checkpoint.size,
                "r": checkpoint.root,
                "t": checkpoint.time_s,
                "b": checkpoint.boot_id,
            }
        ),
        device,
    )


def parse_checkpoint(payload: bytes) -> Checkpoint:
    """Return the checkpoint in a payload.

    Raises:
        EnvelopeRejected: It is none (reason `malformed`).
    """
    value = cbor.decode(payload)
    names = {"typ", "v", "g", "s", "r", "t", "b"}
    if not isinstance(value, dict) or set(value) != names or value["typ"] != TYPE:
        raise malformed("not a checkpoint")
    if not (
        all(isinstance(value[name], str) for name in ("v", "b"))
        and all(is_count(value[name]) for name in ("g", "s", "t"))
        and isinstance(value["r"], bytes)
        and len(value["r"]) == HASH_BYTES
    ):
        raise malformed("a member of the checkpoint has the wrong type")
    return Checkpoint(
        vehicle=value["v"],
        generation=value["g"],
        size=value["s"],
        root=value["r"],
        time_s=value["t"],
        boot_id=value["b"],
    )
