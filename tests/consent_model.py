"""The rules of consent once more, by another hand: a slow, plain model to hold the agent against.

It knows nothing of `agent`: documents are dicts, times are seconds. It answers one question: may
this grant give something out now?
"""

from dataclasses import dataclass, field
from typing import Any

DAY_S = 86_400
BUILT_S = 1_795_392_000
NEVER = float("inf")


@dataclass
class Model:
    """One vehicle. Call `observe` after each change; then `allows` answers."""

    wall_s: float
    boot_s: float = 0.0
    boot: int = 1
    is_synced: bool = True
    floor_s: float = BUILT_S
    policy: dict[str, Any] | None = None
    ended: set[str] = field(default_factory=set)
    stops: dict[str, float] = field(default_factory=dict)  # grant or "*" -> boot_s at which it ends
    restrictions: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    taken_over: set[str] = field(default_factory=set)
    contact: tuple[int, float, float, bool] | None = None  # boot, boot_s, now_s, known

    def passes(self, seconds: float) -> None:
        """Let real time pass."""
        self.wall_s += seconds
        self.boot_s += seconds
        self.floor_s += seconds
        self.observe()

    @property
    def now_s(self) -> float:
        return max(self.floor_s, self.wall_s)

    @property
    def is_known(self) -> bool:
        return self.is_synced and self.wall_s >= self.floor_s - DAY_S

    def observe(self) -> None:
        """Draw the consequences of now."""
        if self.is_synced:
            self.floor_s = self.now_s
        self.stops = {g: end for g, end in self.stops.items() if end > self.boot_s}
        for mode, grants in self._restricting():
            if mode == "revoke":
                self.ended |= set(grants) - {"*"}
        if self.policy is None:
            return
        for grant in self.policy["grants"]:
            if grant["state"] == "revoked" or grant["exp"] <= self.now_s:
                self.ended.add(grant["grant_id"])
        named = {grant["grant_id"] for grant in self.policy["grants"]}
        for mode, grants in self._restricting():
            if mode == "revoke" and "*" in grants:
                self.ended |= named

    def apply(self, policy: dict[str, Any]) -> None:
        """Put a policy in force that the platform may send: newer, for this vehicle."""
        if self.policy is not None:
            named = {grant["grant_id"] for grant in policy["grants"]}
            self.ended |= {g["grant_id"] for g in self.policy["grants"]} - named
            if policy["epoch"] > self.policy["epoch"]:
                self.floor_s = min(self.floor_s, max(BUILT_S, policy["iat"]))
        self.floor_s = max(self.floor_s, policy["iat"])
        if self.policy is None or policy["iat"] > self.policy["iat"]:
            self.contact = (self.boot, self.boot_s, self.now_s, self.is_known)
        self.policy = policy
        self.taken_over |= set(policy.get("taken_over", ()))
        self.observe()

    def reboot(self, off_s: float, *, is_synced: bool, kept_floor_s: float) -> None:
        """Turn the board off and on again."""
        left = {g: end - self.boot_s for g, end in self.stops.items()}
        self.wall_s += off_s
        self.boot, self.boot_s, self.is_synced = self.boot + 1, 0.0, is_synced
        self.stops = left
        self.floor_s = max(BUILT_S, kept_floor_s, self.policy["iat"] if self.policy else 0)
        self.observe()

    def allows(self, grant_id: str) -> bool:
        """Whether the grant may collect and publish now."""
        grant = self.grant(grant_id)
        if self.policy is None or grant is None or grant_id in self.ended:
            return False
        if grant["state"] != "active" or not self.policy["nbf"] <= self.now_s < self.policy["exp"]:
            return False
        if not grant["nbf"] <= self.now_s < grant["exp"]:
            return False
        if "*" in self.stops or grant_id in self.stops:
            return False
        if any(m == "pause" and ("*" in g or grant_id in g) for m, g in self._restricting()):
            return False
        return not self._has_lapsed(grant)

    def grant(self, grant_id: str) -> dict[str, Any] | None:
        grants = self.policy["grants"] if self.policy else ()
        return next((g for g in grants if g["grant_id"] == grant_id), None)

    def _restricting(self) -> list[tuple[str, tuple[str, ...]]]:
        return [r for jti, r in self.restrictions.items() if jti not in self.taken_over]

    def _has_lapsed(self, grant: dict[str, Any]) -> bool:
        assert self.policy is not None
        assert self.contact is not None
        boot, boot_s, now_s, was_known = self.contact
        if boot == self.boot:
            silent_s = self.boot_s - boot_s
        elif was_known and self.is_known:
            silent_s = max(self.boot_s, self.now_s - now_s)
        elif self.is_known:
            silent_s = self.now_s - self.policy["iat"]
        else:
            silent_s = NEVER
        return bool(silent_s >= grant["offline_s"])
