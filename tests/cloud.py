"""The cloud's side for tests: keys, policies, opened envelopes. One for a whole test."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.cloud import policy as cloud_policy
from agent.cloud.envelope import Opened, open_envelope
from agent.cloud.keys import (
    make_device_key,
    make_policy_key,
    make_recipient_key,
    recipient_private,
    save_key,
)
from agent.cloud.trust import trust_file
from agent.core.cose import DeviceKey, device_key
from agent.core.jws import Trust, parse_trust
from tests import car

VEHICLE = "veh-test"


class Cloud:
    """Signs policies for one vehicle and opens what it seals. Turn its knobs, then `token`."""

    def __init__(self, recipients: tuple[str, ...] = ("fleet", "city"), alg: str = "EdDSA") -> None:
        self.signer = make_policy_key("platform-1", alg)
        self.device_jwk = make_device_key("device-1", alg)
        self.keys = {name: make_recipient_key(f"{name}-key") for name in recipients}
        self.roots: list[dict[str, Any]] = []
        self.now_s = 1_800_000_000
        self.document: dict[str, Any] = {}

    def save(self, folder: Path) -> None:
        """Write the keys, for another process of the same test."""
        keys = {"signer": self.signer, "device": self.device_jwk, "recipients": self.keys}
        (folder / "cloud.json").write_text(json.dumps(keys))

    @classmethod
    def load(cls, folder: Path) -> "Cloud":
        """Return the cloud that was saved there."""
        made = cls()
        keys = json.loads((folder / "cloud.json").read_text())
        made.signer, made.device_jwk = keys["signer"], keys["device"]
        made.keys = keys["recipients"]
        return made

    @property
    def trust(self) -> Trust:
        return parse_trust(trust_file(self.signer, roots=self.roots))

    @property
    def device(self) -> DeviceKey:
        return device_key(self.device_jwk)

    def grant(
        self,
        scopes: Mapping[str, Mapping[str, Any]],
        *,
        grant_id: str = "g1",
        recipient: str = "fleet",
        **members: Any,
    ) -> dict[str, Any]:
        """Return a grant for a year around now."""
        made = cloud_policy.grant(
            grant_id,
            recipient,
            scopes,
            nbf_s=self.now_s - 86_400,
            exp_s=self.now_s + 365 * 86_400,
            purposes=["dpv:ServiceProvision"],
            retention="P30D",
            offline_s=10 * 365 * 86_400,
        )
        return made | members

    def policy(self, *grants: dict[str, Any], **members: Any) -> str:
        """Sign the next policy with these grants; `document` holds it."""
        ver = self.document.get("ver", 0) + 1
        self.document = (
            cloud_policy.new_policy(
                vehicle=VEHICLE,
                issuer="https://consent.example",
                catalogue=car.catalogue(),
                recipients={
                    name: cloud_policy.recipient(name, key) for name, key in self.keys.items()
                },
                grants=grants,
                iat_s=self.now_s,
                valid_s=365 * 86_400,
                ver=ver,
            )
            | {"nbf": self.now_s - 86_400}
            | members
        )
        return self.token(self.document)

    def token(self, document: Mapping[str, Any]) -> str:
        """Sign a document as it is."""
        return cloud_policy.sign_policy(document, self.signer)

    def revoke(self, grant_id: str) -> str:
        """Sign the next version, in which a grant is withdrawn."""
        self.document = cloud_policy.revoke(self.document, grant_id, iat_s=self.now_s)
        return self.token(self.document)

    def open(self, envelope: bytes) -> Opened:
        """Open an envelope with the key it is sealed to."""
        return open_envelope(
            envelope,
            recipient_keys={key["kid"]: recipient_private(key) for key in self.keys.values()},
            devices={self.device.kid: self.device.public_half},
        )

    def write_files(self, folder: Path) -> None:
        """Write trust file and device key as an installer would."""
        save_key(folder / "device.jwk", self.device_jwk)
        (folder / "trust.json").write_bytes(trust_file(self.signer, roots=self.roots))
