"""Trust documents and trust files."""

import json
from collections.abc import Callable
from typing import Any

from tests.vectors.document.signing import (
    NEXT_ED,
    POLICY,
    RESTRICT,
    TRUST,
    TRUST_FILE,
    Forged,
    by_ed,
    header,
    key,
    token,
    told,
)
from tests.vectors.document.two_signatures import second
from tests.vectors.policy.write_vectors import (
    ES_KEY,
    NOW_S,
    STRANGER,
    VEHICLE,
    Change,
    b64,
    compact,
    drop,
    ec_jwk,
    ed_jwk,
    put,
    stray_bit,
)

NEW_KEY = key("ed-2", "EdDSA", "policy", ed_jwk(NEXT_ED))


def renewal(*changes: Change, **members: Any) -> bytes:
    document: dict[str, Any] = {
        "v": 1,
        "ver": 4,
        "iat": NOW_S,
        "keys": [TRUST_FILE["keys"][0], NEW_KEY],
        **members,
    }
    document = json.loads(json.dumps(document))
    for change in changes:
        change(document)
    return compact(document)


def renew(*changes: Change, **members: Any) -> str:
    return token(renewal(*changes, **members), "root-1", TRUST)


# y of the points of order 8 with an even y, as libsodium's list of refused keys has it.
ORDER_8 = "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"

FAULTS: list[tuple[str, str, str, tuple[Change, ...]]] = [
    # Name, reason in a trust document, words of the refusal of a trust file, changes to either.
    ("no keys", "missing-member", "keys is missing", (drop("keys"),)),
    ("keys null", "type", "keys is null", (put("keys", value=None),)),
    ("keys an object", "type", "keys is an object", (put("keys", value={}),)),
    ("not one key", "range", "keys is empty", (put("keys", value=[]),)),
    ("a key that is text", "type", "is text", (put("keys", 0, value="ed-1"),)),
    ("format 2", "version", "v is 2", (put("v", value=2),)),
    ("format text", "type", "v is text", (put("v", value="1"),)),
    ("no format", "missing-member", "v is missing", (drop("v"),)),
    ("ver negative", "range", "ver is negative", (put("ver", value=-1),)),
    ("ver a fraction", "type", "ver is a number", (put("ver", value=4.5),)),
    ("ver text", "type", "ver is text", (put("ver", value="4"),)),
    ("unknown member", "unknown-member", "'revoked'", (put("revoked", value=[]),)),
    ("unknown member of a key", "unknown-member", "'use'", (put("keys", 1, "use", value="sig"),)),
    ("an end of a key", "unknown-member", "'exp'", (put("keys", 1, "exp", value=NOW_S),)),
    ("kid twice", "duplicate", "'ed-1' stands twice", (put("keys", 1, "kid", value="ed-1"),)),
    ("kid with a path", "id", "does not match", (put("keys", 0, "kid", value="../ed-1"),)),
    ("kid empty", "id", "does not match", (put("keys", 0, "kid", value=""),)),
    ("kid a number", "type", "kid is a number", (put("keys", 0, "kid", value=1),)),
    ("no kid", "missing-member", "kid is missing", (drop("keys", 0, "kid"),)),
    ("no role", "missing-member", "role is missing", (drop("keys", 0, "role"),)),
    ("no jwk", "missing-member", "jwk is missing", (drop("keys", 0, "jwk"),)),
    ("role all", "role", "role 'all'", (put("keys", 0, "role", value="all"),)),
    ("role in another case", "role", "role 'Policy'", (put("keys", 0, "role", value="Policy"),)),
    ("roles as a list", "type", "role is a list", (put("keys", 0, "role", value=["policy"]),)),
    ("alg none", "algorithm", "alg 'none'", (put("keys", 0, "alg", value="none"),)),
    ("alg HS256", "algorithm", "alg 'HS256'", (put("keys", 0, "alg", value="HS256"),)),
    ("alg RS256", "algorithm", "alg 'RS256'", (put("keys", 0, "alg", value="RS256"),)),
    ("alg Ed25519", "algorithm", "alg 'Ed25519'", (put("keys", 0, "alg", value="Ed25519"),)),
    ("alg of another kind", "trusted-key", "jwk", (put("keys", 0, "alg", value="ES256"),)),
    ("private key", "trusted-key", "private key", (put("keys", 0, "jwk", "d", value="AAAA"),)),
    (
        *("symmetric key", "trusted-key", "other members"),
        (put("keys", 0, "jwk", value={"kty": "oct", "k": "AAAA"}),),
    ),
    (
        *("key with a URL", "trusted-key", "other members"),
        (put("keys", 0, "jwk", "x5u", value="https://evil.example"),),
    ),
    (
        *("key with key_ops", "trusted-key", "other members"),
        (put("keys", 0, "jwk", "key_ops", value=["verify"]),),
    ),
    ("X25519", "trusted-key", "crv", (put("keys", 0, "jwk", "crv", value="X25519"),)),
    ("Ed448", "trusted-key", "crv", (put("keys", 0, "jwk", "crv", value="Ed448"),)),
    ("short key", "trusted-key", "31 bytes", (put("keys", 0, "jwk", "x", value=b64(bytes(31))),)),
    ("padded key", "trusted-key", "padding", (put("keys", 0, "jwk", "x", value="A" * 43 + "="),)),
    (
        "stray bits in a key",
        "trusted-key",
        "canonical",
        (put("keys", 0, "jwk", "x", value="A" * 42 + "B"),),
    ),
    *(
        (
            *(name, "trusted-key", says),
            (put("keys", 0, "jwk", "x", value=b64(bytes.fromhex(text))),),
        )
        for name, says, text in (
            ("no point", "no point", "02" + "00" * 31),
            ("y of the prime", "no point", "ed" + "ff" * 30 + "7f"),
            ("y above the prime", "no point", "ee" + "ff" * 30 + "7f"),
            ("the neutral point", "small order", "01" + "00" * 31),
            ("the neutral point, signed", "small order", "01" + "00" * 30 + "80"),
            ("the point of order 2", "small order", "ec" + "ff" * 30 + "7f"),
            ("a point of order 4", "small order", "00" * 32),
            ("the other point of order 4", "small order", "00" * 31 + "80"),
            *(("a point of order 8", "small order", ORDER_8),),
            *(("a point of order 8, negative", "small order", ORDER_8[:-2] + "fa"),),
        )
    ),
    ("key null", "trusted-key", "JSON object", (put("keys", 0, "jwk", value=None),)),
    (
        *("point off the curve", "trusted-key", "no point"),
        (
            put("keys", 0, "alg", value="ES256"),
            put("keys", 0, "jwk", value=ec_jwk(ES_KEY)),
            put("keys", 0, "jwk", "y", value=b64(bytes(31) + b"\x01")),
        ),
    ),
    (
        *("point at infinity", "trusted-key", "no point"),
        (
            put("keys", 0, "alg", value="ES256"),
            put("keys", 0, "jwk", value=ec_jwk(ES_KEY)),
            put("keys", 0, "jwk", "x", value=b64(bytes(32))),
            put("keys", 0, "jwk", "y", value=b64(bytes(32))),
        ),
    ),
]
NOT_JSON: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("empty", lambda _: b""),
    ("not UTF-8", lambda good: good[:-1] + b',"x":"\xff"}'),
    ("byte order mark", lambda good: b"\xef\xbb\xbf" + good),
    ("bytes behind", lambda good: good + b"{}"),
    ("ver twice", lambda good: b'{"ver":9,' + good[1:]),
    ("ver 2**53", lambda good: good.replace(b'"ver":', b'"ver":9007199254740992', 1)),
    ("a comment", lambda good: b"/* ours */" + good),
    ("nested deeply", lambda good: good[:-1] + b',"x":' + b"[" * 9 + b"]" * 9 + b"}"),
]


def forged_renewals() -> list[Forged]:
    """Name, error class, reason, token."""
    refused, bad = "PolicyRejected", "BadSignature"
    good = renewal()
    first = renew()
    head, body, signature = first.split(".")
    root = header("root-1", TRUST)
    owner_key = TRUST_FILE["keys"][2]
    return [
        ("unsigned JSON", refused, "unsigned", good.decode()),
        ("no signature", bad, "signature", f"{head}.{body}."),
        ("payload exchanged", bad, "signature", f"{head}.{b64(renewal(ver=5))}.{signature}"),
        ("stray bits", refused, "token", stray_bit(first)),
        (
            *("signed by a stranger", bad, "signature"),
            token(good, "root-1", TRUST, sign=by_ed(STRANGER)),
        ),
        (
            *("signed by the key that it brings", bad, "unknown-key"),
            token(good, "ed-2", TRUST, head=header("ed-2", TRUST), sign=by_ed(NEXT_ED)),
        ),
        ("signed by the platform", bad, "role", token(good, "ed-1", TRUST)),
        ("signed by the owner", bad, "role", token(good, "owner-ed", TRUST)),
        ("typ of a policy", bad, "role", token(good, "root-1", POLICY)),
        ("typ of a restriction", bad, "role", token(good, "root-1", RESTRICT)),
        (
            *("two signatures", refused, "token"),
            f"{first}~{second('owner-ed', head=header('owner-ed', TRUST), body=body)}",
        ),
        (
            "kid of a policy key",
            bad,
            "role",
            token(good, "root-1", TRUST, head={**root, "kid": "ed-1"}),
        ),
        (
            "jwk in the header",
            refused,
            "header",
            token(good, "root-1", TRUST, head={**root, "jwk": {}}),
        ),
        ("an owner's key", refused, "role", renew(keys=[NEW_KEY, owner_key])),
        ("a root key", refused, "role", renew(keys=[NEW_KEY, TRUST_FILE["keys"][4]])),
        ("what needs the owner", refused, "unknown-member", renew(owner_needed_for=[])),
        ("for one vehicle", refused, "unknown-member", renew(aud=VEHICLE)),
        ("no ver", refused, "missing-member", renew(drop("ver"))),
        ("no iat", refused, "missing-member", renew(drop("iat"))),
        ("iat in ms", refused, "range", renew(iat=NOW_S * 1000)),
        ("the file's ver", "Rollback", "rollback", renew(ver=3)),
        ("an older ver", "Rollback", "rollback", renew(ver=0)),
        (
            "a known kid for another key",
            refused,
            "duplicate",
            renew(keys=[{**NEW_KEY, "kid": "ed-1"}]),
        ),
        ("an owner's kid", refused, "duplicate", renew(keys=[{**NEW_KEY, "kid": "owner-ed"}])),
        ("the root's kid", refused, "duplicate", renew(keys=[{**NEW_KEY, "kid": "root-1"}])),
        (
            "an owner's key as the platform's",
            refused,
            "duplicate",
            renew(keys=[{**owner_key, "role": "policy"}]),
        ),
        *((name, refused, reason, renew(*changes)) for name, reason, _, changes in FAULTS),
        *((name, refused, "json", token(spoil(good), "root-1", TRUST)) for name, spoil in NOT_JSON),
    ]


def forged_files() -> list[tuple[str, str, bytes]]:
    """Name, words of the refusal, the file."""
    good = compact(TRUST_FILE)

    def changed(*changes: Change) -> bytes:
        document = json.loads(good)
        for change in changes:
            change(document)
        return compact(document)

    needed = "owner_needed_for"
    return [
        *((name, says, changed(*changes)) for name, _, says, changes in FAULTS),
        *((name, "not strict JSON", spoil(good)) for name, spoil in NOT_JSON),
        ("a list", "is a list", b"[]"),
        ("a signed document", "not strict JSON", renew().encode()),
        ("too long", "not strict JSON", good + b" " * 65_536),
        (
            "needed by nobody",
            "no key of role owner",
            changed(lambda d: [d["keys"].pop(2) for _ in (1, 2)]),
        ),
        ("an unknown class", "no class", changed(put(needed, value=["lokation"]))),
        ("a class in another case", "no class", changed(put(needed, value=["Location"]))),
        ("a class twice", "stands twice", changed(put(needed, value=["location", "location"]))),
        ("a star for a class", "does not match", changed(put(needed, value=["*"]))),
        ("classes as text", "is text", changed(put(needed, value="location"))),
        ("classes null", "is null", changed(put(needed, value=None))),
    ]


def document_cases() -> dict[str, Any]:
    """What trust_document.json holds."""
    return {
        "accepted": [
            {"name": "one more key", "kids": ["ed-1", "ed-2"], "token": renew()},
            {"name": "another key", "kids": ["ed-2"], "token": renew(keys=[NEW_KEY])},
            {
                "name": "some missed",
                "kids": ["ed-2"],
                "token": renew(keys=[NEW_KEY], ver=2**53 - 1),
            },
        ],
        "forged": told(forged_renewals()),
    }


def file_cases() -> dict[str, Any]:
    """What trust_file.json holds."""
    return {
        "accepted": [
            {"name": "all roles", "data": compact(TRUST_FILE).decode()},
            {
                "name": "of the first version",
                "data": compact({"v": 1, "keys": TRUST_FILE["keys"][:1]}).decode(),
            },
            {
                "name": "owners and roots only",
                "data": compact({"v": 1, "keys": TRUST_FILE["keys"][2:]}).decode(),
            },
        ],
        "forged": [
            {"name": name, "says": says, "data": data.decode("latin-1")}
            for name, says, data in forged_files()
        ],
    }
