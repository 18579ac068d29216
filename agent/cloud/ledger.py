"""The platform's eye on a vehicle's ledger: checkpoints, proofs, and the heads in envelopes.

Rules:
 * A checkpoint counts only with the signature of an enrolled device, for its own vehicle.
 * Within one generation of a ledger a size has one root for ever, and a head that was given out is
   never taken back. What does not fit is a finding; what it means is for people to judge.
 * Envelopes come in any order. But in one grant a higher number was sealed later, so its head is
   not smaller.
 * An envelope does not name the generation. So a size may have as many roots as there were
   generations; when a ledger is begun again, an envelope may tell of it before the checkpoint does.
"""

from bisect import bisect_left
from dataclasses import dataclass

from agent.cloud.envelope import Devices, speaks_for
from agent.core.checkpoint import Checkpoint, parse_checkpoint
from agent.core.cose import verify1
from agent.core.ledger import Entry
from agent.core.ledgerproof import Proof, parse_proof, verify_proof
from agent.core.merkle import EMPTY_ROOT
from agent.core.seal import Header
from agent.errors import LedgerError


def verify_checkpoint(data: bytes, *, devices: Devices) -> tuple[str, Checkpoint]:
    """Return the device's kid and its checkpoint.

    Args:
        data: What came on the topic `…/ledger/head`.
        devices: kid → public key of enrolled devices.

    Raises:
        EnvelopeRejected: It is no checkpoint of an enrolled device.
    """
    signer, payload = verify1(data, devices)
    checkpoint = parse_checkpoint(payload)
    speaks_for(devices[signer], checkpoint.vehicle)
    return signer, checkpoint


def verify_signed_proof(data: bytes, *, devices: Devices) -> tuple[Proof, Entry | None, Checkpoint]:
    """Return a proof that leads to a checkpoint of an enrolled device.

    Args:
        data: What `consentry ledger prove` printed.
        devices: kid → public key of enrolled devices.

    Returns:
        The proof, the entry that it shows (None for a proof of consistency), and the checkpoint.

    Raises:
        LedgerError: It shows nothing, or nobody signed what it leads to.
        EnvelopeRejected: Its checkpoint is not that of an enrolled device.
    """
    proof = parse_proof(data)
    entry, _ = verify_proof(proof)
    if proof.signed is None:
        raise LedgerError(
            "the proof leads to a head that no checkpoint was signed over yet",
            hint="make it again after the next checkpoint, within the hour",
        )
    return proof, entry, verify_checkpoint(proof.signed, devices=devices)[1]


@dataclass(frozen=True, slots=True)
class Finding:
    """What does not fit what was seen before.

    Attributes:
        kind: `fork`: one size, two roots. `back`: fewer entries than before. `begun-again`: the
            device set a ledger aside and began a new one; what the old one held after the last
            head that was seen is not known.
        size: Of the head that does not fit.
        seen: The size that it is held against.
    """

    kind: str
    size: int
    seen: int


class Witness:
    """Remembers the heads of one vehicle's ledger, and says what does not fit.

    Signatures are verified before, by `verify_checkpoint`, `open_envelope` or `read_header`. It
    keeps a head per checkpoint and per envelope; what is to outlive a restart is fed to it again.
    """

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self.generation = 0
        self._roots: dict[int, set[bytes]] = {0: {EMPTY_ROOT}}
        self._signed: dict[int, dict[int, bytes]] = {}  # Generation → size → root.
        self._by_grant: dict[str, tuple[list[int], list[int]]] = {}  # Numbers, rising; and sizes.

    def see_envelope(self, header: Header) -> list[Finding]:
        """Take in the head that an envelope names, and return what does not fit."""
        size = header.ledger_size
        findings = self._see(size, header.ledger_root)
        numbers, sizes = self._by_grant.setdefault(header.grant_id, ([], []))
        at = bisect_left(numbers, header.n)
        if at and sizes[at - 1] > size:
            findings.append(Finding("back", size, sizes[at - 1]))
        known = at < len(numbers) and numbers[at] == header.n
        after = at + known
        if after < len(sizes) and sizes[after] < size:
            findings.append(Finding("back", sizes[after], size))
        if not known:
            numbers.insert(at, header.n)
            sizes.insert(at, size)
        return findings

    def see_checkpoint(self, checkpoint: Checkpoint) -> list[Finding]:
        """Take in a signed head, and return what does not fit."""
        size, root = checkpoint.size, checkpoint.root
        findings = []
        if checkpoint.generation > self.generation:
            findings.append(Finding("begun-again", size, max(self._roots)))
            self.generation = checkpoint.generation
        signed = self._signed.setdefault(checkpoint.generation, {})
        if signed.get(size, root) != root:
            return [*findings, Finding("fork", size, size)]
        if size not in signed and size < max(signed, default=0):
            findings.append(Finding("back", size, max(signed)))
        signed[size] = root
        return findings + self._see(size, root)

    def _see(self, size: int, root: bytes) -> list[Finding]:
        roots = self._roots.setdefault(size, set())
        roots.add(root)
        most = 1 if size == 0 else self.generation + 1
        return [Finding("fork", size, size)] if len(roots) > most else []
