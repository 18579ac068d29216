"""Restrict documents."""

import json
from typing import Any

from tests.vectors.document.signing import (
    POLICY,
    RESTRICT,
    TRUST,
    Forged,
    by_ed,
    header,
    token,
    told,
)
from tests.vectors.document.two_signatures import second
from tests.vectors.policy.write_vectors import (
    NOW_S,
    STRANGER,
    VEHICLE,
    Change,
    b64,
    compact,
    drop,
    stray_bit,
)


def restriction(*changes: Change, **members: Any) -> bytes:
    document = {
        "v": 1,
        "aud": VEHICLE,
        "jti": "r-1",
        "iat": NOW_S,
        "mode": "pause",
        "grants": ["gr_1"],
        **members,
    }
    for change in changes:
        change(document)
    return compact(document)


def restrict(*changes: Change, **members: Any) -> str:
    return token(restriction(*changes, **members), "owner-ed", RESTRICT)


def forged_restrictions() -> list[Forged]:
    """Name, error class, reason, token."""
    refused, bad = "PolicyRejected", "BadSignature"
    good = restriction()
    first = restrict()
    head, body, signature = first.split(".")
    owner = header("owner-ed", RESTRICT)

    def headed(**more: Any) -> str:
        return token(good, "owner-ed", RESTRICT, head={**owner, **more})

    payloads: list[Forged] = [
        (name, refused, reason, token(data, "owner-ed", RESTRICT))
        for name, reason, data in (
            ("payload empty", "json", b""),
            ("payload a list", "type", b"[]"),
            ("payload null", "type", b"null"),
            ("bytes behind", "json", good + b"{}"),
            ("byte order mark", "json", b"\xef\xbb\xbf" + good),
            ("not UTF-8", "json", good[:-1] + b',"x":"\xff"}'),
            ("mode twice", "json", b'{"mode":"pause",' + good[1:]),
            ("NaN", "json", good.replace(b"%d" % NOW_S, b"NaN")),
            ("iat 2**53", "json", restriction(iat=2**53)),
            ("nested deeply", "json", good[:-1] + b',"x":' + b"[" * 9_000 + b"]" * 9_000 + b"}"),
        )
    ]
    members: list[Forged] = [
        (name, refused, reason, restrict(*changes, **more))
        for name, reason, changes, more in (
            ("format 2", "version", (), {"v": 2}),
            ("format 1.0", "type", (), {"v": 1.0}),
            ("format true", "type", (), {"v": True}),
            ("no format", "missing-member", (drop("v"),), {}),
            ("no vehicle", "missing-member", (drop("aud"),), {}),
            ("no jti", "missing-member", (drop("jti"),), {}),
            ("no iat", "missing-member", (drop("iat"),), {}),
            ("no mode", "missing-member", (drop("mode"),), {}),
            ("no grants", "missing-member", (drop("grants"),), {}),
            ("an end", "unknown-member", (), {"exp": NOW_S + 60}),
            ("a reason", "unknown-member", (), {"reason": "stolen"}),
            ("another mode", "unknown-mode", (), {"mode": "resume"}),
            ("mode active", "unknown-mode", (), {"mode": "active"}),
            ("mode in another case", "unknown-mode", (), {"mode": "PAUSE"}),
            ("mode a list", "type", (), {"mode": ["pause"]}),
            ("mode empty", "range", (), {"mode": ""}),
            ("no grant in the list", "range", (), {"grants": []}),
            ("grants null", "type", (), {"grants": None}),
            ("grants text", "type", (), {"grants": "gr_1"}),
            ("grants empty text", "type", (), {"grants": ""}),
            ("a star in the list", "id", (), {"grants": ["*"]}),
            ("two stars", "type", (), {"grants": "**"}),
            ("a grant twice", "duplicate", (), {"grants": ["gr_1", "gr_1"]}),
            ("a grant with a slash", "id", (), {"grants": ["gr/1"]}),
            ("a grant of a number", "type", (), {"grants": [1]}),
            ("a grant in a list", "type", (), {"grants": [["gr_1"]]}),
            ("an object of grants", "type", (), {"grants": {"gr_1": True}}),
            ("257 grants", "range", (), {"grants": [f"g{i}" for i in range(257)]}),
            ("jti empty", "id", (), {"jti": ""}),
            ("jti with a space", "id", (), {"jti": "r 1"}),
            ("jti of 65", "id", (), {"jti": "r" * 65}),
            ("jti a number", "type", (), {"jti": 1}),
            ("iat a fraction", "type", (), {"iat": NOW_S + 0.5}),
            ("iat negative", "range", (), {"iat": -1}),
            ("iat in ms", "range", (), {"iat": NOW_S * 1000}),
            ("iat text", "type", (), {"iat": str(NOW_S)}),
            ("aud a list", "type", (), {"aud": [VEHICLE]}),
            ("aud a star", "id", (), {"aud": "*"}),
            ("from the day after tomorrow", "future", (), {"iat": NOW_S + 86_401}),
            ("known with another mode", "equivocation", (), {"jti": "known", "mode": "revoke"}),
            ("known with more grants", "equivocation", (), {"jti": "known", "grants": "*"}),
            ("known with a later iat", "equivocation", (), {"jti": "known", "iat": NOW_S + 1}),
        )
    ]
    return [
        ("unsigned JSON", refused, "unsigned", good.decode()),
        ("no signature", bad, "signature", f"{head}.{body}."),
        ("zero signature", bad, "signature", f"{head}.{body}.{b64(bytes(64))}"),
        (
            *("payload exchanged", bad, "signature"),
            f"{head}.{b64(restriction(mode='revoke'))}.{signature}",
        ),
        ("stray bits", refused, "token", stray_bit(first)),
        ("line end behind", refused, "token", first + "\n"),
        (
            *("signed by a stranger", bad, "signature"),
            token(good, "owner-ed", RESTRICT, sign=by_ed(STRANGER)),
        ),
        ("unknown kid", bad, "unknown-key", headed(kid="owner-2")),
        ("alg none", bad, "algorithm", headed(alg="none")),
        ("alg of another key", bad, "algorithm", headed(alg="ES256")),
        ("typ JWT", refused, "header", headed(typ="JWT")),
        ("crit", refused, "header", headed(crit=["exp"])),
        ("a root key", bad, "role", token(good, "root-1", RESTRICT)),
        ("typ of a trust document", bad, "role", token(good, "owner-ed", TRUST)),
        ("typ of a policy, by the owner", bad, "role", token(good, "owner-ed", POLICY)),
        (
            *("two signatures", refused, "token"),
            f"{first}~{second('ed-1', head=header('ed-1', RESTRICT), body=body)}",
        ),
        *payloads,
        *members,
        ("another vehicle", "WrongVehicle", "vehicle", restrict(aud="veh-0002")),
        ("vehicle in another case", "WrongVehicle", "vehicle", restrict(aud="VEH-0001")),
    ]


def cases() -> dict[str, Any]:
    """What restrict.json holds."""
    known = json.loads(restriction(jti="known"))
    return {
        "known": [known],
        "taken_over": ["taken"],
        "accepted": [
            {"name": "by the owner", "outcome": "APPLY", "token": restrict()},
            {
                "name": "by the platform, ES256",
                "outcome": "APPLY",
                "token": token(restriction(), "es-1", RESTRICT),
            },
            {
                "name": "of every grant, for good",
                "outcome": "APPLY",
                "token": restrict(grants="*", mode="revoke"),
            },
            {"name": "a day ahead", "outcome": "APPLY", "token": restrict(iat=NOW_S + 86_400)},
            {"name": "very old", "outcome": "APPLY", "token": restrict(iat=0)},
            {
                "name": "256 grants",
                "outcome": "APPLY",
                "token": restrict(grants=[f"g{i}" for i in range(256)]),
            },
            {"name": "known", "outcome": "REPEAT", "token": restrict(jti="known")},
            {
                "name": "known, by another key",
                "outcome": "REPEAT",
                "token": token(restriction(jti="known"), "ed-1", RESTRICT),
            },
            {
                "name": "taken over before it came",
                "outcome": "REPEAT",
                "token": restrict(jti="taken"),
            },
        ],
        "forged": told(forged_restrictions()),
    }
