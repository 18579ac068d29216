"""Write the forged policies beside this script: `python tests/vectors/policy/write_vectors.py`.

Uses `cryptography` alone, neither the agent nor a JOSE library, so that what it takes for a token
is an independent opinion. The keys below are public; nothing may ever trust them but a test.
Signatures are deterministic: the same script writes the same bytes.

    catalogue.json   a small catalogue that the policies are bound to
    trust.json       the trust file
    cases.json       {vehicle, now_s, in_force, accepted: [{name, token, outcome}],
                      forged: [{name, error, reason, token}]}
"""

import base64
import copy
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

Change = Callable[[Any], object]

HERE = Path(__file__).resolve().parent
VEHICLE = "veh-0001"
NOW_S = 1_795_468_800
TYP = "consent-policy+jwt"

ED_KEY = ed25519.Ed25519PrivateKey.from_private_bytes(b"consentry test vectors: policy k")
ES_KEY = ec.derive_private_key(0xC0115E47, ec.SECP256R1())
STRANGER = ed25519.Ed25519PrivateKey.from_private_bytes(b"consentry test vectors: stranger")
FLEET_KEY = ec.derive_private_key(0xF1EE7, ec.SECP256R1())

CATALOGUE = {
    "catalogue": "vectors",
    "version": 3,
    "vss": "6.0",
    "classes": {
        "usage": {"grantable": True, "defaults": {"min_interval_s": 10}, "ceilings": {}},
        "cabin": {
            "grantable": True,
            "defaults": {"min_interval_s": 10},
            "ceilings": {"min_interval_s": 1},
        },
        "location": {
            "grantable": True,
            "defaults": {"min_interval_s": 60, "grid_deg": 0.01},
            "ceilings": {"min_interval_s": 1, "precise": True},
        },
        "identity": {"grantable": True, "defaults": {"once": True}, "ceilings": {"once": True}},
        "biometric": {"grantable": False, "defaults": {}, "ceilings": {}},
    },
    "scopes": {
        name: {"class": of, "signals": [{"path": path, "datatype": datatype, "unit": unit}]}
        for name, of, path, datatype, unit in (
            ("read_odometer", "usage", "Vehicle.TraveledDistance", "uint32", "m"),
            ("read_occupancy", "cabin", "Vehicle.Occupancy", "uint8", None),
            (
                *("read_location", "location"),
                *("Vehicle.CurrentLocation.Latitude", "double", "degrees"),
            ),
            ("read_vin", "identity", "Vehicle.VehicleIdentification.VIN", "string", None),
            ("read_driver_state", "biometric", "Vehicle.Driver.HeartRate", "uint16", "bpm"),
        )
    },
}
CATALOGUE_BYTES = (json.dumps(CATALOGUE, indent=1) + "\n").encode()


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def ec_jwk(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    numbers = key.public_key().public_numbers()
    return {
        "kty": "EC",
        "crv": "P-256",
        "x": b64(numbers.x.to_bytes(32)),
        "y": b64(numbers.y.to_bytes(32)),
    }


def ed_jwk(key: ed25519.Ed25519PrivateKey) -> dict[str, str]:
    return {"kty": "OKP", "crv": "Ed25519", "x": b64(key.public_key().public_bytes_raw())}


TRUST = {
    "v": 1,
    "keys": [
        {"kid": "ed-1", "alg": "EdDSA", "role": "policy", "jwk": ed_jwk(ED_KEY)},
        {"kid": "es-1", "alg": "ES256", "role": "policy", "jwk": ec_jwk(ES_KEY)},
    ],
}


def policy(*changes: Change) -> dict[str, Any]:
    document: dict[str, Any] = {
        "v": 1,
        "iss": "https://consent.example",
        "aud": VEHICLE,
        "jti": "vector",
        "epoch": 2,
        "ver": 42,
        "iat": NOW_S,
        "nbf": NOW_S,
        "exp": NOW_S + 2_592_000,
        "catalogue": {
            "id": CATALOGUE["catalogue"],
            "ver": CATALOGUE["version"],
            "sha256": hashlib.sha256(CATALOGUE_BYTES).hexdigest(),
        },
        "recipients": {
            "fleet-x": {
                "name": "Fleet X GmbH",
                "keys": [{"kid": "fx-1", "alg": "HPKE-7-KE", "jwk": ec_jwk(FLEET_KEY)}],
            }
        },
        "grants": [
            {
                "grant_id": "gr_1",
                "rev": 3,
                "state": "active",
                "recipient": "fleet-x",
                "nbf": NOW_S,
                "exp": NOW_S + 7_776_000,
                "offline_s": 86_400,
                "purposes": ["dpv:ServiceProvision"],
                "retention": "P30D",
                "record": {"id": "cr_7", "sha256": "0" * 64},
                "details": [
                    {
                        "scope": "read_location",
                        "constraints": {"min_interval_s": 60, "grid_deg": 0.01},
                    },
                    {"scope": "read_odometer"},
                ],
                "combine": [["read_location", "read_odometer"]],
            },
            {"grant_id": "gr_0", "rev": 2, "state": "revoked"},
        ],
    }
    for change in changes:
        change(document)
    return document


def compact(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def sign_ed(data: bytes, key: ed25519.Ed25519PrivateKey = ED_KEY) -> bytes:
    return key.sign(data)


def sign_es(data: bytes) -> bytes:
    der = ES_KEY.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    r, s = decode_dss_signature(der)
    return r.to_bytes(32) + s.to_bytes(32)


def sign_es_der(data: bytes) -> bytes:
    return ES_KEY.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


def sign_hmac(secret: bytes) -> Callable[[bytes], bytes]:
    def sign(data: bytes) -> bytes:
        mac = hmac.HMAC(secret, hashes.SHA256())
        mac.update(data)
        return mac.finalize()

    return sign


def token(
    payload: bytes | None = None,
    *,
    header: Any = None,
    sign: Callable[[bytes], bytes] = sign_ed,
) -> str:
    if header is None:
        header = {"alg": "EdDSA", "kid": "ed-1", "typ": TYP}
    raw_header = header if isinstance(header, bytes) else compact(header)
    body = compact(policy()) if payload is None else payload
    signed = f"{b64(raw_header)}.{b64(body)}"
    return f"{signed}.{b64(sign(signed.encode()))}"


def of(*changes: Change) -> str:
    return token(compact(policy(*changes)))


def put(*place: str | int, value: Any) -> Change:
    def change(document: Any) -> None:
        for step in place[:-1]:
            document = document[step]
        document[place[-1]] = copy.deepcopy(value)

    return change


def drop(*place: str | int) -> Change:
    def change(document: Any) -> None:
        for step in place[:-1]:
            document = document[step]
        del document[place[-1]]

    return change


def es_header(**more: Any) -> dict[str, Any]:
    return {"alg": "ES256", "kid": "es-1", "typ": TYP, **more}


def ed_header(**more: Any) -> dict[str, Any]:
    return {"alg": "EdDSA", "kid": "ed-1", "typ": TYP, **more}


def stray_bit(text: str) -> str:
    """The same bytes for a careless decoder: the last character carries unused bits."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return text[:-1] + alphabet[alphabet.index(text[-1]) | 1]


GRANT = ("grants", 0)
LOCATION = (*GRANT, "details", 0, "constraints")
KEY = ("recipients", "fleet-x", "keys", 0)
GOOD = token()
HEAD, BODY, SIG = GOOD.split(".")

Forged = tuple[str, str, str, str]


def forged_tokens() -> list[Forged]:
    """Name, error class, reason, token."""
    return [
        ("empty", "PolicyRejected", "token", ""),
        ("unsigned JSON", "PolicyRejected", "unsigned", compact(policy()).decode()),
        ("unsigned JSON, indented", "PolicyRejected", "unsigned", " \n" + json.dumps(policy())),
        ("too long", "PolicyRejected", "too-large", f"{HEAD}.{'A' * 65_536}.{SIG}"),
        ("two parts", "PolicyRejected", "token", f"{HEAD}.{BODY}"),
        ("four parts", "PolicyRejected", "token", f"{GOOD}.AA"),
        ("JWE of five parts", "PolicyRejected", "token", f"{GOOD}.AA.AA"),
        ("line end behind", "PolicyRejected", "token", GOOD + "\n"),
        ("space in front", "PolicyRejected", "token", " " + GOOD),
        ("line break inside", "PolicyRejected", "token", f"{HEAD}.\n{BODY}.{SIG}"),
        ("padding", "PolicyRejected", "token", GOOD + "=="),
        ("stray bits", "PolicyRejected", "token", stray_bit(GOOD)),
        ("impossible length", "PolicyRejected", "token", f"{HEAD}.{'A' * 5}.{SIG}"),
        (
            *("base64 alphabet", "PolicyRejected", "token"),
            f"{HEAD}.{BODY}.{SIG[:-2]}+/",
        ),
        ("null byte", "PolicyRejected", "token", f"{HEAD}.{BODY}\x00.{SIG}"),
        ("no signature", "BadSignature", "signature", f"{HEAD}.{BODY}."),
        ("short signature", "BadSignature", "signature", f"{HEAD}.{BODY}.{b64(bytes(63))}"),
        ("zero signature", "BadSignature", "signature", f"{HEAD}.{BODY}.{b64(bytes(64))}"),
        (
            *("zero signature, ES256", "BadSignature", "signature"),
            token(header=es_header(), sign=lambda _: bytes(64)),
        ),
        (
            *("DER signature, ES256", "BadSignature", "signature"),
            token(header=es_header(), sign=sign_es_der),
        ),
        (
            *("payload exchanged", "BadSignature", "signature"),
            f"{HEAD}.{b64(compact(policy(put('ver', value=43))))}.{SIG}",
        ),
        (
            *("header exchanged", "BadSignature", "signature"),
            f"{b64(compact(dict(reversed(ed_header().items()))))}.{BODY}.{SIG}",
        ),
        (
            *("signed by a stranger", "BadSignature", "signature"),
            token(sign=lambda data: sign_ed(data, STRANGER)),
        ),
        ("unknown kid", "BadSignature", "unknown-key", token(header=ed_header(kid="ed-2"))),
        (
            *("kid in another case", "BadSignature", "unknown-key"),
            token(header=ed_header(kid="ED-1")),
        ),
        (
            *("alg none", "BadSignature", "algorithm"),
            token(header=ed_header(alg="none"), sign=lambda _: bytes(64)),
        ),
        (
            *("alg None without signature", "BadSignature", "algorithm"),
            token(header=ed_header(alg="None"), sign=lambda _: b""),
        ),
        (
            *("HMAC with the public key", "BadSignature", "algorithm"),
            token(
                header=ed_header(alg="HS256"),
                sign=sign_hmac(ED_KEY.public_key().public_bytes_raw()),
            ),
        ),
        (
            *("alg of the other key", "BadSignature", "algorithm"),
            token(header=ed_header(alg="ES256"), sign=sign_es),
        ),
        (
            *("kid of the other key", "BadSignature", "algorithm"),
            token(header=ed_header(kid="es-1")),
        ),
        ("alg Ed25519", "BadSignature", "algorithm", token(header=ed_header(alg="Ed25519"))),
        (
            *("jwk in the header", "PolicyRejected", "header"),
            token(
                header=ed_header(jwk=ed_jwk(STRANGER)),
                sign=lambda data: sign_ed(data, STRANGER),
            ),
        ),
        (
            *("jku in the header", "PolicyRejected", "header"),
            token(header=ed_header(jku="https://evil.example/keys")),
        ),
        ("x5c in the header", "PolicyRejected", "header", token(header=ed_header(x5c=[]))),
        (
            *("crit", "PolicyRejected", "header"),
            token(header=ed_header(crit=["exp"], exp=0)),
        ),
        (
            *("b64 false", "PolicyRejected", "header"),
            token(header=ed_header(b64=False, crit=["b64"])),
        ),
        ("zip", "PolicyRejected", "header", token(header=ed_header(zip="DEF"))),
        ("cty", "PolicyRejected", "header", token(header=ed_header(cty="JWT"))),
        ("typ JWT", "PolicyRejected", "header", token(header=ed_header(typ="JWT"))),
        (
            *("typ with application/", "PolicyRejected", "header"),
            token(header=ed_header(typ=f"application/{TYP}")),
        ),
        (
            *("no typ", "PolicyRejected", "header"),
            token(header={"alg": "EdDSA", "kid": "ed-1"}),
        ),
        ("no kid", "PolicyRejected", "header", token(header={"alg": "EdDSA", "typ": TYP})),
        ("kid null", "PolicyRejected", "header", token(header=ed_header(kid=None))),
        ("kid with a path", "PolicyRejected", "header", token(header=ed_header(kid="../ed-1"))),
        ("alg a list", "PolicyRejected", "header", token(header=ed_header(alg=["EdDSA"]))),
        ("header a list", "PolicyRejected", "header", token(header=["EdDSA", "ed-1", TYP])),
        ("header empty", "PolicyRejected", "header", token(header=b"")),
        (
            *("alg twice in the header", "PolicyRejected", "header"),
            token(header=b'{"alg":"none","alg":"EdDSA","kid":"ed-1","typ":"%b"}' % TYP.encode()),
        ),
        (
            *("header of 1 KiB", "PolicyRejected", "header"),
            token(header=compact(ed_header()) + b" " * 1024),
        ),
    ]


def forged_payloads() -> list[Forged]:
    """Well signed, and yet to be refused: the platform's key must not be able to do all."""
    good = compact(policy())
    return [
        ("payload empty", "PolicyRejected", "json", token(b"")),
        ("payload not UTF-8", "PolicyRejected", "json", token(good[:-1] + b',"x":"\xff"}')),
        ("byte order mark", "PolicyRejected", "json", token(b"\xef\xbb\xbf" + good)),
        ("bytes behind", "PolicyRejected", "json", token(good + b"{}")),
        ("ver twice", "PolicyRejected", "json", token(b'{"ver":99,' + good[1:])),
        (
            *("scope twice in one detail", "PolicyRejected", "json"),
            token(
                good.replace(
                    b'{"scope":"read_odometer"}',
                    b'{"scope":"read_odometer","scope":"read_vin"}',
                )
            ),
        ),
        ("NaN", "PolicyRejected", "json", token(good.replace(b"0.01", b"NaN"))),
        ("infinite", "PolicyRejected", "json", token(good.replace(b"0.01", b"1e999"))),
        (
            *("ver 2**53", "PolicyRejected", "json"),
            token(good.replace(b'"ver":42', b'"ver":9007199254740992')),
        ),
        (
            *("nested deeply", "PolicyRejected", "json"),
            token(good[:-1] + b',"x":' + b"[" * 9_000 + b"]" * 9_000 + b"}"),
        ),
        ("payload a list", "PolicyRejected", "type", token(b"[]")),
        ("format 2", "PolicyRejected", "version", of(put("v", value=2))),
        ("unknown member", "PolicyRejected", "unknown-member", of(put("sub", value="x"))),
        (
            *("unknown member of a grant", "PolicyRejected", "unknown-member"),
            of(put(*GRANT, "priority", value=1)),
        ),
        (
            *("unknown member of a detail", "PolicyRejected", "unknown-member"),
            of(put(*GRANT, "details", 1, "paths", value=["Vehicle.Speed"])),
        ),
        *(
            (f"taken over: {name}", "PolicyRejected", reason, of(put("taken_over", value=value)))
            for name, reason, value in (
                ("null", "type", None),
                ("text", "type", "r-1"),
                ("a star", "type", "*"),
                ("numbers", "type", [1]),
                ("an empty name", "id", [""]),
                ("a star in the list", "id", ["*"]),
                ("a name twice", "duplicate", ["r-1", "r-1"]),
                ("257 names", "range", [f"r{i}" for i in range(257)]),
            )
        ),
        ("no exp", "PolicyRejected", "missing-member", of(drop("exp"))),
        ("no recipient", "PolicyRejected", "missing-member", of(drop(*GRANT, "recipient"))),
        ("no key", "PolicyRejected", "missing-member", of(drop("recipients", "fleet-x", "keys"))),
        ("iat a fraction", "PolicyRejected", "type", of(put("iat", value=NOW_S + 0.5))),
        ("ver 42.0", "PolicyRejected", "type", token(good.replace(b":42,", b":42.0,"))),
        ("ver true", "PolicyRejected", "type", of(put("ver", value=True))),
        ("exp text", "PolicyRejected", "type", of(put("exp", value="2030-01-01"))),
        ("exp in ms", "PolicyRejected", "range", of(put("exp", value=NOW_S * 1000))),
        ("offline_s negative", "PolicyRejected", "range", of(put(*GRANT, "offline_s", value=-1))),
        ("retention P0D", "PolicyRejected", "range", of(put(*GRANT, "retention", value="P0D"))),
        ("grant id empty", "PolicyRejected", "id", of(put(*GRANT, "grant_id", value=""))),
        ("grant id with a slash", "PolicyRejected", "id", of(put(*GRANT, "grant_id", value="a/b"))),
        ("aud with a wildcard", "PolicyRejected", "id", of(put("aud", value="+"))),
        (
            "grant twice",
            "PolicyRejected",
            "duplicate",
            of(put("grants", 1, "grant_id", value="gr_1")),
        ),
        (
            *("scope twice in one grant", "PolicyRejected", "duplicate"),
            of(put(*GRANT, "details", 1, "scope", value="read_location")),
        ),
        (
            *("unknown recipient", "PolicyRejected", "unknown-recipient"),
            of(put(*GRANT, "recipient", value="fleet-y")),
        ),
        (
            *("unknown scope", "PolicyRejected", "unknown-scope"),
            of(put(*GRANT, "details", 1, "scope", value="read_all")),
        ),
        (
            *("unknown state", "PolicyRejected", "unknown-state"),
            of(put(*GRANT, "state", value="Active")),
        ),
        (
            *("unknown constraint", "PolicyRejected", "unknown-constraint"),
            of(put(*LOCATION, "max_samples", value=1)),
        ),
        (
            *("window without a zone", "PolicyRejected", "missing-member"),
            of(put(*LOCATION, "windows", value=[{"days": "1-5", "from": "07:00", "to": "19:00"}])),
        ),
        (
            *("biometric scope", "PolicyRejected", "ungrantable"),
            of(put(*GRANT, "details", 1, "scope", value="read_driver_state")),
        ),
        (
            *("biometric scope in a revoked grant", "PolicyRejected", "ungrantable"),
            of(put("grants", 1, "details", value=[{"scope": "read_driver_state"}])),
        ),
        (
            *("location too often", "PolicyRejected", "ceiling"),
            of(put(*LOCATION, "min_interval_s", value=0.5)),
        ),
        (
            *("VIN again and again", "PolicyRejected", "ceiling"),
            of(
                put(
                    *(*GRANT, "details", 1),
                    value={"scope": "read_vin", "constraints": {"once": False}},
                ),
                drop(*GRANT, "combine"),
            ),
        ),
        (
            *("precise with a grid", "PolicyRejected", "contradiction"),
            of(put(*LOCATION, "precise", value=True)),
        ),
        ("grid of nothing", "PolicyRejected", "range", of(put(*LOCATION, "grid_deg", value=0))),
        (
            *("combine with a foreign scope", "PolicyRejected", "unknown-scope"),
            of(put(*GRANT, "combine", 0, 1, value="read_vin")),
        ),
        (
            *("key off the curve", "PolicyRejected", "recipient-key"),
            of(put(*KEY, "jwk", "x", value=b64(bytes(31) + b"\x01"))),
        ),
        (
            *("private key in the policy", "PolicyRejected", "recipient-key"),
            of(put(*KEY, "jwk", "d", value=b64(bytes(31) + b"\x01"))),
        ),
        (
            *("key with another alg", "PolicyRejected", "recipient-key"),
            of(put(*KEY, "alg", value="ECDH-ES")),
        ),
        (
            *("key with a URL", "PolicyRejected", "recipient-key"),
            of(put(*KEY, "jwk", "x5u", value="https://evil.example")),
        ),
        (
            *("another catalogue's hash", "WrongCatalogue", "catalogue"),
            of(put("catalogue", "sha256", value="f" * 64)),
        ),
        (
            *("another catalogue's version", "WrongCatalogue", "catalogue"),
            of(put("catalogue", "ver", value=4)),
        ),
        (
            *("another catalogue's id", "WrongCatalogue", "catalogue"),
            of(put("catalogue", "id", value="other")),
        ),
        ("another vehicle", "WrongVehicle", "vehicle", of(put("aud", value="veh-0002"))),
        ("vehicle in another case", "WrongVehicle", "vehicle", of(put("aud", value="VEH-0001"))),
        ("older version", "Rollback", "rollback", of(put("ver", value=40))),
        (
            *("older epoch, higher version", "Rollback", "rollback"),
            of(put("epoch", value=1), put("ver", value=2**53 - 1)),
        ),
        (
            *("version in force with another content", "PolicyRejected", "equivocation"),
            of(put("ver", value=41), drop("grants", 1)),
        ),
        (
            *("from the day after tomorrow", "PolicyRejected", "future"),
            of(put("iat", value=NOW_S + 86_401)),
        ),
    ]


def in_force_payload() -> bytes:
    return compact(policy(put("ver", value=41)))


def files() -> dict[str, bytes]:
    """File name → content, all that this script writes."""
    accepted = [
        {"name": "EdDSA", "outcome": "APPLY", "token": GOOD},
        {"name": "ES256", "outcome": "APPLY", "token": token(header=es_header(), sign=sign_es)},
        {
            "name": "the one in force once more",
            "outcome": "REPEAT",
            "token": token(in_force_payload()),
        },
        {
            "name": "the one in force, signed by another key",
            "outcome": "REPEAT",
            "token": token(in_force_payload(), header=es_header(), sign=sign_es),
        },
        {"name": "expired", "outcome": "APPLY", "token": of(put("exp", value=NOW_S))},
        {"name": "no grants", "outcome": "APPLY", "token": of(put("grants", value=[]))},
        {
            "name": "256 restrictions taken over",
            "outcome": "APPLY",
            "token": of(put("taken_over", value=[f"r{i}" for i in range(256)])),
        },
        {"name": "none taken over", "outcome": "APPLY", "token": of(put("taken_over", value=[]))},
        {
            "name": "iat a day ahead",
            "outcome": "APPLY",
            "token": of(put("iat", value=NOW_S + 86_400)),
        },
        {
            "name": "higher epoch, lower version",
            "outcome": "APPLY",
            "token": of(put("epoch", value=3), put("ver", value=0)),
        },
    ]
    forged = [
        {"name": name, "error": error, "reason": reason, "token": text}
        for name, error, reason, text in (*forged_tokens(), *forged_payloads())
    ]
    cases = {
        "vehicle": VEHICLE,
        "now_s": NOW_S,
        "in_force": {
            "epoch": 2,
            "ver": 41,
            "payload_sha256": hashlib.sha256(in_force_payload()).hexdigest(),
        },
        "accepted": accepted,
        "forged": forged,
    }
    return {
        "catalogue.json": CATALOGUE_BYTES,
        "trust.json": (json.dumps(TRUST, indent=1) + "\n").encode(),
        "cases.json": (json.dumps(cases, indent=1) + "\n").encode(),
    }


def main() -> None:
    """Write the files; the number of cases goes to stderr."""
    written = files()
    for name, data in written.items():
        (HERE / name).write_bytes(data)
    cases = json.loads(written["cases.json"])
    sys.stderr.write(f"{len(cases['forged'])} forged, {len(cases['accepted'])} accepted\n")


if __name__ == "__main__":
    main()
