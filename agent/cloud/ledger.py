"""The platform's eye on a vehicle's ledger: checkpoints, and the heads that envelopes name.

Rules:
 * A checkpoint counts only with the signature of an enrolled device, for its own vehicle.
"""

from agent.cloud.envelope import Devices, speaks_for
from agent.core.checkpoint import Checkpoint, parse_checkpoint
from agent.core.cose import verify1


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
