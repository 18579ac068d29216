"""The device's signed word on numbers of a grant that will not come: a COSE_Sign1 over one map.

    {typ: "consent-gap", v: vehicle, dk: device kid, g: grant id, n: [first, last], w: why,
     t: s since the epoch}

Rules:
 * A gap says of numbers from first to last that those which have not come will not come.
 * No signal value, position or VIN.
"""

from dataclasses import dataclass

from agent.core import cbor
from agent.core.cbor import is_count, malformed
from agent.core.cose import DeviceKey, sign1

TYPE = "consent-gap"
REASONS = ("evicted", "expired", "erased", "damaged")


@dataclass(frozen=True, slots=True)
class Gap:
    """Numbers of a grant that will not come.

    Attributes:
        device_kid: Must be the signer's.
        first_n: From 1.
        last_n: At least `first_n`.
        why: One of REASONS: the spool was full; retention had passed; consent ended; the spool
            could not be read.
        time_s: When it was noticed, s since the epoch.
    """

    vehicle: str
    device_kid: str
    grant_id: str
    first_n: int
    last_n: int
    why: str
    time_s: int


def sign_gap(gap: Gap, device: DeviceKey) -> bytes:
    """Return the record as it goes to the recipient."""
    assert gap.device_kid == device.kid, "a reader would refuse it"
    return sign1(
        cbor.encode(
            {
                "typ": TYPE,
                "v": gap.vehicle,
                "dk": gap.device_kid,
                "g": gap.grant_id,
                "n": [gap.first_n, gap.last_n],
                "w": gap.why,
                "t": gap.time_s,
            }
        ),
        device,
    )


def parse_gap(payload: bytes) -> Gap:
    """Return the record in a verified payload.

    Raises:
        EnvelopeRejected: It is none (reason `malformed`).
    """
    value = cbor.decode(payload)
    names = {"typ", "v", "dk", "g", "n", "w", "t"}
    if not isinstance(value, dict) or set(value) != names or value["typ"] != TYPE:
        raise malformed("not a record of a gap")
    numbers = value["n"]
    if not (
        all(isinstance(value[name], str) for name in ("v", "dk", "g", "w"))
        and value["w"] in REASONS
        and is_count(value["t"])
        and isinstance(numbers, list)
        and len(numbers) == 2
        and all(is_count(number) for number in numbers)
        and 1 <= numbers[0] <= numbers[1]
    ):
        raise malformed("a member of the record of a gap has the wrong type or value")
    return Gap(
        vehicle=value["v"],
        device_kid=value["dk"],
        grant_id=value["g"],
        first_n=numbers[0],
        last_n=numbers[1],
        why=value["w"],
        time_s=value["t"],
    )
