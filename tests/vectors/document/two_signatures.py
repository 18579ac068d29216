"""Policies with two signatures, and those that lack the second."""

from typing import Any

from tests.vectors.document.signing import (
    OWNER_ED,
    OWNER_ES,
    POLICY,
    RESTRICT,
    SIGNERS,
    Forged,
    Sign,
    by_ed,
    header,
    token,
    told,
)
from tests.vectors.policy import write_vectors as one
from tests.vectors.policy.write_vectors import (
    GRANT,
    LOCATION,
    NOW_S,
    STRANGER,
    Change,
    b64,
    compact,
    drop,
    ec_jwk,
    ed_jwk,
    put,
    sign_ed,
    sign_es_der,
    sign_hmac,
    stray_bit,
)


def policy(*changes: Change) -> bytes:
    return compact(one.policy(*changes))


BEFORE = policy(put("ver", value=41))
AFTER = policy()
WIDER = policy(put(*LOCATION, "min_interval_s", value=30), put(*GRANT, "rev", value=4))
FIRST = token(WIDER, "ed-1", POLICY)
HEAD, BODY, SIG = FIRST.split(".")


def second(
    kid: str = "owner-ed",
    *,
    head: Any = None,
    body: str = BODY,
    shown: str = "",
    sign: Sign | None = None,
    signature: str | None = None,
) -> str:
    """Return the second signature; `body` is what it is over, `shown` what stands in its middle."""
    raw = head if isinstance(head, bytes) else compact(head or header(kid, POLICY))
    signer = sign or SIGNERS[kid][1]
    signed = b64(signer(f"{b64(raw)}.{body}".encode()))
    return f"{b64(raw)}.{shown}.{signed if signature is None else signature}"


def two(*arguments: Any, **options: Any) -> str:
    return f"{FIRST}~{second(*arguments, **options)}"


OWNER = second()
O_HEAD, _, O_SIG = OWNER.split(".")


def both(document: bytes) -> str:
    first = token(document, "ed-1", POLICY)
    return f"{first}~{second(body=first.split('.')[1])}"


def forged_signatures() -> list[Forged]:
    """Name, error class, reason, token."""
    refused, bad = "PolicyRejected", "BadSignature"
    general = {
        "payload": BODY,
        "signatures": [
            {"protected": HEAD, "signature": SIG},
            {"protected": O_HEAD, "signature": O_SIG},
        ],
    }
    owner_first = token(WIDER, "owner-ed", POLICY)
    other = token(AFTER, "ed-1", POLICY)
    return [
        ("nothing behind the tilde", refused, "token", f"{FIRST}~"),
        ("nothing before the tilde", refused, "token", f"~{OWNER}"),
        ("the owner's half alone", bad, "role", OWNER),
        ("two tildes", refused, "token", f"{FIRST}~~{OWNER}"),
        ("three signatures", refused, "token", f"{FIRST}~{OWNER}~{second('owner-es')}"),
        ("the owner twice", refused, "token", f"{FIRST}~{OWNER}~{OWNER}"),
        ("a comma for the tilde", refused, "token", f"{FIRST},{OWNER}"),
        ("a line end for the tilde", refused, "token", f"{FIRST}\n{OWNER}"),
        ("a line end behind the tilde", refused, "token", f"{FIRST}~\n{OWNER}"),
        ("a space before the tilde", refused, "token", f"{FIRST} ~{OWNER}"),
        ("a line end behind", refused, "token", f"{FIRST}~{OWNER}\n"),
        ("JSON serialisation", refused, "unsigned", compact(general).decode()),
        ("the payload repeated", refused, "token", two(shown=BODY)),
        ("another payload attached", refused, "token", two(body=b64(AFTER), shown=b64(AFTER))),
        ("two parts", refused, "token", f"{FIRST}~{O_HEAD}.{O_SIG}"),
        ("four parts", refused, "token", f"{FIRST}~{O_HEAD}...{O_SIG}"),
        ("padding", refused, "token", f"{FIRST}~{OWNER}=="),
        ("stray bits", refused, "token", stray_bit(f"{FIRST}~{OWNER}")),
        ("base64 alphabet", refused, "token", f"{FIRST}~{O_HEAD}..{O_SIG[:-2]}+/"),
        ("header with padding", refused, "token", f"{FIRST}~{O_HEAD}=..{O_SIG}"),
        ("not ASCII", refused, "token", f"{FIRST}~{O_HEAD}..{O_SIG}\xe9"),
        ("over another payload", bad, "signature", two(body=b64(AFTER))),
        ("over no payload", bad, "signature", two(body="")),
        (
            *("over the bare payload", bad, "signature"),
            two(sign=lambda data: sign_ed(data.split(b".")[0] + b"." + WIDER, OWNER_ED)),
        ),
        (
            *("over the payload alone", bad, "signature"),
            two(sign=lambda _: sign_ed(BODY.encode(), OWNER_ED)),
        ),
        (
            *("over the platform's header", bad, "signature"),
            two(sign=lambda _: sign_ed(f"{HEAD}.{BODY}".encode(), OWNER_ED)),
        ),
        (
            *("over the whole first signature", bad, "signature"),
            two(sign=lambda _: sign_ed(FIRST.encode(), OWNER_ED)),
        ),
        ("from another policy", bad, "signature", f"{other}~{OWNER}"),
        ("the platform's own signature", bad, "signature", two(signature=SIG)),
        ("by a stranger", bad, "signature", two(sign=by_ed(STRANGER))),
        (
            "by the other owner's key",
            bad,
            "algorithm",
            two(head=header("owner-ed", POLICY, alg="ES256")),
        ),
        ("the other owner's kid", bad, "signature", two("owner-es", sign=lambda _: bytes(64))),
        ("no signature", bad, "signature", two(signature="")),
        ("short signature", bad, "signature", two(signature=b64(bytes(63)))),
        ("zero signature", bad, "signature", two(signature=b64(bytes(64)))),
        (
            *("DER signature", bad, "signature"),
            two(head=header("owner-es", POLICY), sign=sign_es_der),
        ),
        ("unknown owner", bad, "unknown-key", two(head=header("owner-2", POLICY))),
        ("kid in another case", bad, "unknown-key", two(head=header("Owner-ed", POLICY))),
        (
            "alg none",
            bad,
            "algorithm",
            two(head=header("owner-ed", POLICY, alg="none"), signature=""),
        ),
        (
            *("HMAC with the owner's public key", bad, "algorithm"),
            two(
                head=header("owner-ed", POLICY, alg="HS256"),
                sign=sign_hmac(OWNER_ED.public_key().public_bytes_raw()),
            ),
        ),
        ("typ of a restriction", refused, "header", two(head=header("owner-ed", RESTRICT))),
        ("typ JWT", refused, "header", two(head=header("owner-ed", "JWT"))),
        ("no typ", refused, "header", two(head={"alg": "EdDSA", "kid": "owner-ed"})),
        ("b64 false", refused, "header", two(head=header("owner-ed", POLICY, b64=False))),
        ("crit", refused, "header", two(head=header("owner-ed", POLICY, crit=["b64"]))),
        (
            *("jwk in the header", refused, "header"),
            two(head=header("owner-ed", POLICY, jwk=ed_jwk(STRANGER)), sign=by_ed(STRANGER)),
        ),
        (
            *("kid twice in the header", refused, "header"),
            two(head=b'{"kid":"ed-1","alg":"EdDSA","kid":"owner-ed","typ":"%b"}' % POLICY.encode()),
        ),
        ("header empty", refused, "header", two(head=b"")),
        (
            "header of 1 KiB",
            refused,
            "header",
            two(head=compact(header("owner-ed", POLICY)) + b" " * 1024),
        ),
        ("another policy key", bad, "role", two("es-1")),
        ("the same policy key", refused, "token", two("ed-1")),
        ("a root key", bad, "role", two("root-1")),
        ("the owner alone", bad, "role", owner_first),
        ("a root key alone", bad, "role", token(WIDER, "root-1", POLICY)),
        ("the owner first", bad, "role", f"{owner_first}~{second('ed-1')}"),
        ("two owners", bad, "role", f"{owner_first}~{second('owner-es')}"),
        ("first signature gone", bad, "signature", f"{HEAD}.{BODY}.~{OWNER}"),
        ("first signature zero", bad, "signature", f"{HEAD}.{BODY}.{b64(bytes(64))}~{OWNER}"),
        ("first signature the owner's", bad, "signature", f"{HEAD}.{BODY}.{O_SIG}~{OWNER}"),
        (
            *("payload exchanged, the owner's renewed", bad, "signature"),
            f"{HEAD}.{b64(AFTER)}.{SIG}~{second(body=b64(AFTER))}",
        ),
        (
            *("first by a stranger", bad, "signature"),
            f"{token(WIDER, 'ed-1', POLICY, sign=by_ed(STRANGER))}~{OWNER}",
        ),
        (
            *("first a restriction", refused, "header"),
            f"{token(WIDER, 'ed-1', RESTRICT)}~{OWNER}",
        ),
        (
            *("too long with the second", refused, "too-large"),
            f"{HEAD}.{'A' * (65_534 - len(HEAD) - len(SIG))}.{SIG}~{OWNER}",
        ),
    ]


def unsigned_growth() -> list[Forged]:
    """Well signed by the platform alone, and yet more of what needs the owner."""
    vin = {"scope": "read_vin"}
    grant = one.policy()["grants"][0]
    changes: list[tuple[str, tuple[Change, ...]]] = [
        ("a shorter interval", (put(*LOCATION, "min_interval_s", value=59),)),
        ("a finer grid", (put(*LOCATION, "grid_deg", value=0.005),)),
        ("no grid", (put(*LOCATION, value={"precise": True}),)),
        ("an identity added", (put(*GRANT, "details", 1, value=vin), drop(*GRANT, "combine"))),
        ("a grant added", (put("grants", 1, value={**grant, "grant_id": "gr_2"}),)),
        ("the grant under another name", (put(*GRANT, "grant_id", value="gr_3"),)),
        ("a later end", (put(*GRANT, "exp", value=NOW_S + 7_776_001),)),
        ("no end of its own", (drop(*GRANT, "exp"), put("exp", value=NOW_S + 9_999_999))),
        (
            "an earlier beginning",
            (put(*GRANT, "nbf", value=NOW_S - 1), put("nbf", value=NOW_S - 1)),
        ),
        ("kept longer", (put(*GRANT, "retention", value="P31D"),)),
        ("longer without contact", (put(*GRANT, "offline_s", value=86_401),)),
        ("without contact for ever", (drop(*GRANT, "offline_s"),)),
        ("another purpose", (put(*GRANT, "purposes", value=["dpv:Marketing"]),)),
        ("no purpose at all", (drop(*GRANT, "purposes"),)),
        (
            "joined with more",
            (
                put(*GRANT, "details", 1, value={"scope": "read_occupancy"}),
                put(*GRANT, "combine", value=[["read_location", "read_occupancy"]]),
            ),
        ),
        (
            "another key",
            (put("recipients", "fleet-x", "keys", 0, "jwk", value=ec_jwk(OWNER_ES)),),
        ),
        (
            "one more key",
            (
                lambda d: d["recipients"]["fleet-x"]["keys"].append(
                    {"kid": "fx-2", "alg": "HPKE-7-KE", "jwk": ec_jwk(OWNER_ES)}
                ),
            ),
        ),
        ("another name", (put("recipients", "fleet-x", "name", value="Fleet Y GmbH"),)),
        (
            "another recipient",
            (
                lambda d: d["recipients"].update({"fleet-y": d["recipients"]["fleet-x"]}),
                put(*GRANT, "recipient", value="fleet-y"),
            ),
        ),
    ]
    raised = put(*GRANT, "rev", value=4)
    return [
        (name, "PolicyRejected", "owner-signature", token(policy(raised, *some), "ed-1", POLICY))
        for name, some in changes
    ]


def cases() -> dict[str, Any]:
    """What two_signatures.json holds."""
    narrower = policy(put(*LOCATION, "min_interval_s", value=61), put(*GRANT, "rev", value=4))
    platform = ["policy"]
    es_first = token(WIDER, "es-1", POLICY)
    return {
        "before": BEFORE.decode(),
        "accepted": [
            {"name": "more, with both", "token": two(), "roles": ["owner", "policy"]},
            {
                "name": "more, with both, ES256",
                "token": f"{es_first}~{second('owner-es')}",
                "roles": ["owner", "policy"],
            },
            {
                "name": "EdDSA and ES256",
                "token": two("owner-es"),
                "roles": ["owner", "policy"],
            },
            {"name": "no more", "token": token(AFTER, "ed-1", POLICY), "roles": platform},
            {"name": "less", "token": token(narrower, "es-1", POLICY), "roles": platform},
            {"name": "no more, with both", "token": both(AFTER), "roles": ["owner", "policy"]},
            {
                "name": "nothing",
                "token": token(policy(put("grants", value=[])), "ed-1", POLICY),
                "roles": platform,
            },
            {
                "name": "more of what needs no owner",
                "token": token(
                    policy(
                        put(
                            *("grants", 1),
                            value={
                                "grant_id": "gr_5",
                                "recipient": "fleet-x",
                                "details": [{"scope": "read_odometer"}],
                            },
                        )
                    ),
                    *("ed-1", POLICY),
                ),
                "roles": platform,
            },
            {
                "name": "a renewed lease",
                "token": token(policy(put("exp", value=NOW_S + 9_000_000)), "ed-1", POLICY),
                "roles": platform,
            },
        ],
        "forged": told([*forged_signatures(), *unsigned_growth()]),
    }
