"""A policy as the design gives it, the keys that tests sign it with, and ways to sign it."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwcrypto.jwk import JWK

from agent.core.catalogue import Catalogue, parse_catalogue

ROOT = Path(__file__).resolve().parent.parent
CATALOGUE_FILE = ROOT / "config" / "catalogue.json"
T0_S = 1_795_468_800
VEHICLE = "veh-7Q2K"


@cache
def catalogue() -> Catalogue:
    return parse_catalogue(CATALOGUE_FILE.read_bytes())


@cache
def _jwk_text(kind: str, seed: int) -> str:
    if kind == "EdDSA":
        key = JWK.from_pyca(Ed25519PrivateKey.from_private_bytes(bytes([seed] * 32)))
    else:
        key = JWK.from_pyca(derive_private_key(seed, SECP256R1()))
    return str(key.export_private())


def private_jwk(alg: str, seed: int = 7, kid: str | None = None) -> dict[str, Any]:
    """A private JWK that is the same in every run."""
    raw = json.loads(_jwk_text(alg, seed))
    raw.pop("kid", None)
    return {**raw, "kid": kid or f"policy-{alg.lower()}", "alg": alg}


def public_p256(seed: int = 11) -> dict[str, str]:
    raw = json.loads(_jwk_text("ES256", seed))
    return {name: raw[name] for name in ("kty", "crv", "x", "y")}


def example() -> dict[str, Any]:
    """A fresh signed-form payload with two recipients, three grants and a tombstone."""
    shown = catalogue()
    return {
        "v": 1,
        "iss": "https://consent.example",
        "aud": VEHICLE,
        "jti": "7d1f8a52-4d0b-4c5e-9f7a-2f4b1f3b8c10",
        "epoch": 1,
        "ver": 42,
        "iat": T0_S,
        "nbf": T0_S,
        "exp": T0_S + 2_592_000,
        "catalogue": {"id": shown.id, "ver": shown.version, "sha256": shown.sha256},
        "recipients": {
            "fleet-x": {
                "name": "Fleet X GmbH",
                "keys": [{"kid": "fx-2026-11", "alg": "HPKE-7-KE", "jwk": public_p256()}],
            },
            "insurer": {
                "name": "Versicherung für Fahrer",
                "keys": [{"kid": "ins-1", "alg": "HPKE-7-KE", "jwk": public_p256(12)}],
            },
        },
        "grants": [
            {
                "grant_id": "gr_01JD",
                "rev": 3,
                "state": "active",
                "recipient": "fleet-x",
                "nbf": T0_S,
                "exp": T0_S + 7_785_600,
                "offline_s": 86_400,
                "purposes": ["dpv:ServiceProvision"],
                "retention": "P30D",
                "record": {"id": "cr_7", "sha256": "ab" * 32},
                "details": [
                    {
                        "scope": "read_location",
                        "constraints": {"min_interval_s": 60, "grid_deg": 0.01},
                    },
                    {"scope": "read_odometer"},
                    {"scope": "read_speedometer", "constraints": {"quantum": 5}},
                ],
                "combine": [["read_location", "read_speedometer"]],
            },
            {
                "grant_id": "gr_01JE",
                "state": "paused",
                "recipient": "insurer",
                "nbf": T0_S,
                "exp": T0_S + 100,
                "offline_s": 3_600,
                "purposes": ["dpv:Insurance"],
                "retention": "PT12H",
                "details": [{"scope": "read_vin"}],
            },
            {
                "grant_id": "gr_01JF",
                "recipient": "insurer",
                "nbf": T0_S + 10,
                "exp": T0_S + 100,
                "offline_s": 3_600,
                "purposes": ["dpv:Insurance"],
                "retention": "P1Y",
                "details": [{"scope": "read_fuel", "constraints": {"once": True}}],
            },
            {"grant_id": "gr_01JC", "rev": 2, "state": "revoked"},
        ],
    }


def trust_document(*algs: str) -> dict[str, Any]:
    """A trust file with one policy key for each algorithm."""
    keys = []
    for alg in algs or ("EdDSA", "ES256"):
        key = private_jwk(alg)
        public = {name: key[name] for name in ("kty", "crv", "x", "y") if name in key}
        keys.append({"kid": key["kid"], "alg": alg, "role": "policy", "jwk": public})
    return {"v": 1, "keys": keys}


def encoded(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
