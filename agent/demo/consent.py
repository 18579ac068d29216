"""What the demo's owner lets A and B have, and the platform that signs it.

Rules:
 * A may have odometer and speed; B the location, on a coarse grid, until the owner revokes it.
"""

from collections.abc import Mapping
from typing import Any

from agent.cloud import policy as cloud_policy
from agent.cloud.keys import make_policy_key
from agent.cloud.receiver import BrokerAddress, publish_policy
from agent.cloud.trust import trust_file
from agent.core.catalogue import Catalogue
from agent.demo.broker import Broker
from agent.demo.state import CITY, FLEET, VEHICLE

GRANT_A, GRANT_B = "gr_fleet", "gr_city"
SCOPES_A: dict[str, dict[str, Any]] = {
    "read_odometer": {"min_interval_s": 5},
    "read_speedometer": {"min_interval_s": 1},
}
SCOPES_B: dict[str, dict[str, Any]] = {"read_location": {"min_interval_s": 5, "grid_deg": 0.01}}


class Platform:
    """Signs and publishes the owner's consent."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._signer = make_policy_key("demo-platform-1")

    def trust_file(self) -> bytes:
        """Return the file by which a vehicle knows this platform."""
        return trust_file(self._signer)

    def first_policy(self, keys: Mapping[str, dict[str, Any]], now_s: int) -> dict[str, Any]:
        """Return policy 1, which grants A and B theirs.

        Args:
            keys: Recipient -> its key, a JWK.
            now_s: s since the epoch.
        """
        return cloud_policy.new_policy(
            vehicle=VEHICLE,
            issuer="https://consent.example",
            catalogue=self._catalogue,
            recipients={name: cloud_policy.recipient(name, key) for name, key in keys.items()},
            grants=[
                _grant(GRANT_A, FLEET, SCOPES_A, now_s),
                _grant(GRANT_B, CITY, SCOPES_B, now_s),
            ],
            iat_s=now_s,
            valid_s=cloud_policy.DAY_S,
        )

    def without_b(self, policy: dict[str, Any], now_s: int) -> dict[str, Any]:
        """Return policy 2, which revokes B."""
        return cloud_policy.revoke(policy, GRANT_B, iat_s=now_s)

    def publish(self, policy: dict[str, Any], broker: Broker) -> None:
        """Sign a policy and have the broker keep it for the vehicle.

        Raises:
            UplinkError: The broker does not take it.
        """
        token = cloud_policy.sign_policy(policy, self._signer, catalogue=self._catalogue)
        publish_policy(
            VEHICLE, token, BrokerAddress("localhost", broker.port, broker.tls("platform"))
        )


def _grant(
    grant_id: str, name: str, scopes: dict[str, dict[str, Any]], now_s: int
) -> dict[str, Any]:
    return cloud_policy.grant(
        grant_id,
        name,
        scopes,
        nbf_s=now_s,
        exp_s=now_s + cloud_policy.DAY_S,
        purposes=["dpv:ServiceProvision"],
        retention="P1D",
    )
