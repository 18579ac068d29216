"""Proofs from a ledger, as one JSON object that can be checked without it.

    {"kind": "inclusion", "index": 17, "line": "{…}", "size": 300, "root": "…", "path": ["…"],
     "checkpoint": "…"}
    {"kind": "consistency", "first": 100, "first_root": "…", "size": 300, "root": "…",
     "path": ["…"], "checkpoint": "…"}

Rules:
 * A proof shows that a line stands in the tree with a root, or that the tree with a root begins
   with an earlier one. It is worth what the root is worth: `checkpoint` is the device's signature
   over it (base64url), or null where there was none yet.
 * What the object says twice must agree: the line's own index, and the checkpoint's size and root.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from agent.core import strictjson
from agent.core.checkpoint import Checkpoint, parse_checkpoint
from agent.core.cose import unsafe_unverified1
from agent.core.ledger import MAX_LINE_BYTES, Entry, encode_signed, parse_line
from agent.core.ledgerevent import DIGEST
from agent.core.merkle import leaf_hash, verify_consistency, verify_inclusion
from agent.core.strictjson import MAX_INTEGER
from agent.errors import EnvelopeRejected, LedgerError

_MAX_BYTES = 2 * MAX_LINE_BYTES  # A line's quotes are escaped in it.
_COMMON = {"kind", "size", "root", "path", "checkpoint"}
_MEMBERS = {
    "inclusion": _COMMON | {"index", "line"},
    "consistency": _COMMON | {"first", "first_root"},
}


@dataclass(frozen=True, slots=True)
class Inclusion:
    """A line, and where it stands in a tree.

    Attributes:
        line: Without its line feed.
        signed: The signed checkpoint over that size and root, or None.
    """

    index: int
    line: bytes
    size: int
    root: bytes
    path: tuple[bytes, ...]
    signed: bytes | None


@dataclass(frozen=True, slots=True)
class Consistency:
    """Two heads, of which the second is to begin with the first.

    Attributes:
        signed: The signed checkpoint over the second, or None.
    """

    first: int
    first_root: bytes
    size: int
    root: bytes
    path: tuple[bytes, ...]
    signed: bytes | None


Proof = Inclusion | Consistency


def encode_proof(proof: Proof) -> str:
    """Return the proof as one line of JSON."""
    value: dict[str, Any]
    if isinstance(proof, Inclusion):
        value = {"kind": "inclusion", "index": proof.index, "line": proof.line.decode("ascii")}
    else:
        value = {"kind": "consistency", "first": proof.first, "first_root": proof.first_root.hex()}
    return json.dumps(
        value
        | {
            "size": proof.size,
            "root": proof.root.hex(),
            "path": [node.hex() for node in proof.path],
            "checkpoint": None if proof.signed is None else encode_signed(proof.signed),
        }
    )


def parse_proof(data: bytes) -> Proof:
    """Return the proof in a file; whether it holds is for `verify_proof` to say.

    Raises:
        LedgerError: It is none; nothing else, for any bytes.
    """
    try:
        value = strictjson.parse(data, max_bytes=_MAX_BYTES)
    except strictjson.StrictJsonError as exc:
        raise LedgerError(f"the proof is not strict JSON: {exc}") from exc
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind, str) or value.keys() != _MEMBERS.get(kind, set()):
        raise LedgerError("this is no proof from a ledger")
    if not (_is_count(value["size"]) and _are_digests(value["root"], *_listed(value["path"]))):
        raise LedgerError("a member of the proof has the wrong type")
    common = {
        "size": value["size"],
        "root": bytes.fromhex(value["root"]),
        "path": tuple(bytes.fromhex(node) for node in value["path"]),
        "signed": _signed(value["checkpoint"]),
    }
    if kind == "inclusion":
        if not (_is_count(value["index"]) and isinstance(value["line"], str)):
            raise LedgerError("a member of the proof has the wrong type")
        return Inclusion(index=value["index"], line=value["line"].encode(), **common)
    if not (_is_count(value["first"]) and _are_digests(value["first_root"])):
        raise LedgerError("a member of the proof has the wrong type")
    root = bytes.fromhex(value["first_root"])
    return Consistency(first=value["first"], first_root=root, **common)


def verify_proof(proof: Proof) -> tuple[Entry | None, Checkpoint | None]:
    """Return the proven line's entry and the checkpoint; its signature is for others to verify.

    Returns:
        The entry, None for a proof of consistency; the checkpoint, None where there is none.

    Raises:
        LedgerError: The proof does not show what it says.
    """
    checkpoint = None
    if proof.signed is not None:
        try:
            checkpoint = parse_checkpoint(unsafe_unverified1(proof.signed))
        except EnvelopeRejected as exc:
            raise LedgerError(f"the proof's checkpoint is none: {exc.message}") from exc
        if (checkpoint.size, checkpoint.root) != (proof.size, proof.root):
            raise LedgerError("the proof's checkpoint is over another head")
    if isinstance(proof, Consistency):
        verify_consistency(
            first=proof.first,
            first_root=proof.first_root,
            second=proof.size,
            second_root=proof.root,
            path=proof.path,
        )
        return None, checkpoint
    entry = parse_line(proof.line)
    if entry.n != proof.index:
        raise LedgerError(f"the line is entry {entry.n}, the proof is for entry {proof.index}")
    verify_inclusion(
        leaf=leaf_hash(proof.line),
        index=proof.index,
        size=proof.size,
        path=proof.path,
        root=proof.root,
    )
    return entry, checkpoint


def _signed(value: object) -> bytes | None:
    if value is None:
        return None
    try:
        data = base64.b64decode(str(value) + "=" * (-len(str(value)) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError) as exc:
        raise LedgerError("the proof's checkpoint is not base64url") from exc
    if encode_signed(data) != value:
        raise LedgerError("the proof's checkpoint is not in its one spelling")
    return data


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [None]


def _are_digests(*values: object) -> bool:
    return all(map(DIGEST.accepts, values))


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_INTEGER
