"""Write cases.json beside this script: `python tests/vectors/envelope/write_vectors.py`.

Builds envelopes from docs/envelope.md with `cryptography`, `cbor2` and `lzma` alone, without the
agent, so that what it takes for an envelope is an independent opinion. Every forged one is signed,
sealed and authenticated as if its maker meant it; only what its name says is wrong. The keys below
are public; nothing may ever trust them but a test. HPKE draws its own randomness, so each run
writes other bytes that mean the same.

    cases.json   {recipient: private JWK, devices: [public JWK], max_plaintext,
                  accepted: [{name, envelope, header, columns}],
                  forged: [{name, reason, envelope}]}     envelopes in hex
"""

import json
import lzma
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cbor2
from cbor2 import CBORTag
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

HERE = Path(__file__).resolve().parent
MAX_PLAINTEXT = 65_536
SUITE = Suite(KEM.P256, KDF.HKDF_SHA256, AEAD.AES_256_GCM)

RECIPIENT = ec.derive_private_key(0xF1EE7, ec.SECP256R1())
ED_DEVICE = ed25519.Ed25519PrivateKey.from_private_bytes(b"consentry test vectors: device 1")
ES_DEVICE = ec.derive_private_key(0xDE71CE2, ec.SECP256R1())
OTHER = ed25519.Ed25519PrivateKey.from_private_bytes(b"consentry test vectors: device 3")
STRANGER = ed25519.Ed25519PrivateKey.from_private_bytes(b"consentry test vectors: nobody !")

T0_MS = 1_795_468_800_000
HEADER: dict[str, Any] = {
    "v": "veh-0001",
    "dk": "dev-ed",
    "g": "gr_01JD",
    "r": 3,
    "n": 7,
    "p": [1, 42],
    "t": [T0_MS // 1000, T0_MS // 1000 + 60],
    "c": 1,
    "a": [12, bytes(range(32))],
}
SPEED_NUMBER = 19  # docs/known-columns.json
SPEED = {"p": "Vehicle.Speed", "s": "read_speedometer", "d": "float", "u": "km/h", "i": 0}
GEAR = {"p": "Vehicle.Gear", "s": "read_gear", "d": "string", "i": 1}
BATCH: dict[str, Any] = {
    "t": [[T0_MS, 100, 0, 0, -150], [T0_MS + 5]],
    "c": [
        {**SPEED, "n": [7130, 5, 0, -7135], "m": [0.01, 0.0]},
        {**SPEED, "p": "A.Offset", "n": [2, 1, 1, 1], "m": [0.5, -40.0]},
        {**SPEED, "p": "A.Decimal", "n": [5, 1, -7, 0], "e": 1},
        {**SPEED, "p": "A.Whole", "n": [3, -4, 0, 2**70], "d": "int64"},
        {**SPEED, "p": "A.List", "n": [1, -1, 1, 0], "k": [0.1234567890123, 0.3]},
        {**SPEED, "p": "A.Text", "n": [0, 1, -1, 1], "k": ["DRIVE", "PARK"], "d": "string"},
        {**SPEED, "p": "A.Plain", "v": [True, -0.0, "x", 2**64]},
        {**SPEED, "p": "A.Constant", "c": False, "d": "boolean"},
        {**GEAR, "c": "PARK"},
        {"p": SPEED_NUMBER, "i": 0, "c": 71.3},
    ],
}
VALUES = [
    [7130 * 0.01, 7135 * 0.01, 7135 * 0.01, 0.0],
    [-39.0, -38.5, -38.0, -37.5],
    [0.5, 0.6, -0.1, -0.1],
    [3, -1, -1, 2**70 - 1],
    [0.3, 0.1234567890123, 0.3, 0.3],
    ["DRIVE", "PARK", "DRIVE", "PARK"],
    [True, -0.0, "x", 2**64],
    [False, False, False, False],
    ["PARK"],
    [71.3, 71.3, 71.3, 71.3],
]
TIMES = [[T0_MS, T0_MS + 100, T0_MS + 200, T0_MS + 150], [T0_MS + 5]]


def dumps(value: Any) -> bytes:
    """Return deterministic CBOR."""
    return cbor2.dumps(value, canonical=True)


def squeezed(data: bytes) -> bytes:
    """Return data as .lzma with a dictionary of 64 KiB."""
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 16}]
    return lzma.compress(data, lzma.FORMAT_ALONE, filters=filters)


@dataclass(frozen=True)
class Recipe:
    """How to build one envelope; a forged one differs in a member or has `hand` at a layer."""

    header: Any = field(default_factory=lambda: HEADER)
    batch: Any = field(default_factory=lambda: BATCH)
    plaintext: bytes | None = None
    content: dict[int, Any] = field(default_factory=dict)  # None as value: leave the label out
    content_unprotected: dict[int, Any] = field(default_factory=dict)
    recipient: dict[int, Any] = field(default_factory=dict)
    recipient_unprotected: dict[int, Any] = field(default_factory=dict)
    next_layer: int = 3
    signer: Any = ED_DEVICE
    outer: dict[int, Any] = field(default_factory=dict)
    outer_unprotected: dict[int, Any] = field(default_factory=dict)
    hand_protected: Callable[[bytes], bytes] = bytes
    hand_encrypt: Callable[[CBORTag], Any] = lambda tag: tag
    hand_inner: Callable[[bytes], bytes] = bytes
    hand_outer: Callable[[list[Any]], Any] = lambda parts: CBORTag(18, parts)
    hand_whole: Callable[[bytes], bytes] = bytes
    signature: Callable[[bytes], bytes] = bytes

    def build(self) -> bytes:
        """Return the envelope."""
        iv, key = bytes(range(12)), bytes(range(32))
        plaintext = self.plaintext
        if plaintext is None:
            plaintext = squeezed(dumps(self.batch))
        head = {1: 3, 3: "application/vnd.consentry.batch", 5: iv, -65537: self.header}
        protected = self.hand_protected(dumps(_changed(head, self.content)))
        ciphertext = AESGCM(key).encrypt(iv, plaintext, dumps(["Encrypt", protected, b""]))
        to = dumps(_changed({1: 53, 4: b"fx-2026-11"}, self.recipient))
        info = dumps(["HPKE Recipient", self.next_layer, to, b""])
        sent = SUITE.encrypt(key, RECIPIENT.public_key(), info=info)
        parts = [
            protected,
            self.content_unprotected,
            ciphertext,
            [[to, _changed({-4: sent[:65]}, self.recipient_unprotected), sent[65:]]],
        ]
        inner = self.hand_inner(dumps(self.hand_encrypt(CBORTag(96, parts))))
        alg = -8 if isinstance(self.signer, ed25519.Ed25519PrivateKey) else -7
        kid = b"dev-ed" if alg == -8 else b"dev-es"
        outer = dumps(_changed({1: alg, 4: kid}, self.outer))
        signed = dumps(["Signature1", outer, b"", inner])
        signature = self.signature(sign(self.signer, signed))
        whole = self.hand_outer([outer, self.outer_unprotected, inner, signature])
        return self.hand_whole(dumps(whole))


def sign(key: Any, data: bytes) -> bytes:
    """Return a signature as COSE wants it."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(SHA256(), deterministic_signing=True)))
    return r.to_bytes(32) + s.to_bytes(32)


def header(**members: Any) -> dict[int, Any]:
    """Return H with other members; None leaves one out."""
    return _changed(HEADER, members)


def column(**members: Any) -> Recipe:
    """Return the recipe of a batch with one forged column of two samples."""
    entry = _changed({**SPEED, "n": [1, 1]}, members)
    return Recipe(batch={"t": [[T0_MS, 100, 0]], "c": [entry]})


def flipped(data: bytes, at: int = -1) -> bytes:
    """Return bytes with one bit flipped."""
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def part(index: int, change: Callable[[Any], Any]) -> Callable[[CBORTag], CBORTag]:
    """Change one element of COSE_Encrypt after it was sealed."""

    def hand(tag: CBORTag) -> CBORTag:
        parts = list(tag.value)
        parts[index] = change(parts[index])
        return CBORTag(tag.tag, parts)

    return hand


def _changed(members: dict[Any, Any], changes: dict[Any, Any]) -> dict[Any, Any]:
    return {name: value for name, value in {**members, **changes}.items() if value is not None}


def _twice(data: bytes) -> bytes:
    """Repeat the entry `"g"` of H, whose map grows by one."""
    entry = dumps("g") + dumps(HEADER["g"])
    at = data.index(entry)
    head = data.rindex(b"\xa9", 0, at)
    return data[:head] + b"\xaa" + data[head + 1 : at] + entry + data[at:]


def _long_head(data: bytes) -> bytes:
    """Spell the alg 3 of the content layer with two bytes."""
    assert data[1:3] == b"\x01\x03"
    return data[:2] + b"\x18\x03" + data[3:]


def _unsorted(data: bytes) -> bytes:
    """Put the content type before the algorithm."""
    return data[:1] + data[3 : data.index(b"\x05L")] + data[1:3] + data[data.index(b"\x05L") :]


def _squeezed(batch: bytes) -> Recipe:
    return Recipe(plaintext=squeezed(batch))


FORGED: dict[str, tuple[str, Recipe]] = {
    "a byte behind it": ("malformed", Recipe(hand_whole=lambda data: data + b"\x00")),
    "cut off": ("malformed", Recipe(hand_whole=lambda data: data[:-1])),
    "no tag": ("malformed", Recipe(hand_outer=list)),
    "tagged as COSE_Sign": ("malformed", Recipe(hand_outer=lambda parts: CBORTag(98, parts))),
    "a fifth element": ("malformed", Recipe(hand_outer=lambda p: CBORTag(18, [*p, b""]))),
    "of indefinite length": (
        "malformed",
        Recipe(hand_whole=lambda data: data[:1] + b"\x9f" + data[2:] + b"\xff"),
    ),
    "an unprotected member": ("malformed", Recipe(outer_unprotected={4: b"dev-ed"})),
    "another signed label": ("malformed", Recipe(outer={3: "text/plain"})),
    "no kid": ("malformed", Recipe(outer={4: None})),
    "kid is text": ("malformed", Recipe(outer={4: "dev-ed"})),
    "kid of nobody": ("unknown-device", Recipe(signer=STRANGER, outer={4: b"dev-nobody"})),
    "ES256 claimed for an Ed25519 key": ("algorithm", Recipe(outer={1: -7})),
    "signed by a stranger": ("signature", Recipe(signer=STRANGER)),
    "signature cut off": ("signature", Recipe(signature=lambda data: data[:-1])),
    "signature flipped": ("signature", Recipe(signature=flipped)),
    "stripped and signed by another device": (
        "wrong-device",
        Recipe(signer=OTHER, outer={4: b"dev-other"}),
    ),
    "a device that speaks for another vehicle": (
        "wrong-device",
        Recipe(header=header(dk="dev-other"), signer=OTHER, outer={4: b"dev-other"}),
    ),
    "COSE_Encrypt without tag": ("malformed", Recipe(hand_encrypt=lambda tag: tag.value)),
    "tagged as COSE_Encrypt0": (
        "malformed",
        Recipe(hand_encrypt=lambda tag: CBORTag(16, tag.value)),
    ),
    "a byte behind COSE_Encrypt": ("malformed", Recipe(hand_inner=lambda data: data + b"\x00")),
    "COSE_Encrypt with a longer head": (
        "malformed",
        Recipe(hand_inner=lambda data: data[:2] + b"\x98\x04" + data[3:]),
    ),
    "another content algorithm": ("malformed", Recipe(content={1: 1})),
    "another content type": ("malformed", Recipe(content={3: "text/plain"})),
    "another protected label": ("malformed", Recipe(content={2: [4]})),
    "no H": ("malformed", Recipe(content={-65537: None})),
    "iv in the unprotected map": (
        "malformed",
        Recipe(content={5: None}, content_unprotected={5: bytes(range(12))}),
    ),
    "an unprotected member of the content": (
        "malformed",
        Recipe(content_unprotected={6: b"\x00"}),
    ),
    "iv of 13 bytes": ("malformed", Recipe(content={5: bytes(13)})),
    "keys not ascending": ("malformed", Recipe(hand_protected=_unsorted)),
    "an integer with a longer head": ("malformed", Recipe(hand_protected=_long_head)),
    "a member of H twice": ("malformed", Recipe(hand_protected=_twice)),
    "H with another member": ("malformed", Recipe(header=header(x=1))),
    "H without device": ("malformed", Recipe(header=header(dk=None))),
    "H with n as float": ("malformed", Recipe(header=header(n=7.0))),
    "H with n as boolean": ("malformed", Recipe(header=header(n=True))),
    "H with negative rev": ("malformed", Recipe(header=header(r=-1))),
    "H with a text as time": ("malformed", Recipe(header=header(t=["0", 60]))),
    "H with three versions": ("malformed", Recipe(header=header(p=[1, 2, 3]))),
    "H with a short root": ("malformed", Recipe(header=header(a=[12, bytes(31)]))),
    "H is a list": ("malformed", Recipe(header=[1])),
    "H changed after sealing": (
        "decrypt",
        Recipe(hand_encrypt=part(0, lambda data: data.replace(b"gr_01JD", b"gr_01JX"))),
    ),
    "ciphertext flipped": ("decrypt", Recipe(hand_encrypt=part(2, flipped))),
    "no recipient": ("malformed", Recipe(hand_encrypt=part(3, lambda _: []))),
    "two recipients": ("malformed", Recipe(hand_encrypt=part(3, lambda old: old + old))),
    "a recipient of a recipient": (
        "malformed",
        Recipe(hand_encrypt=part(3, lambda old: [[*old[0], old]])),
    ),
    "HPKE-0-KE": ("malformed", Recipe(recipient={1: 46})),
    "a key for somebody else": ("unknown-recipient", Recipe(recipient={4: b"fx-2020-01"})),
    "recipient's kid unprotected": (
        "malformed",
        Recipe(recipient={4: None}, recipient_unprotected={4: b"fx-2026-11"}),
    ),
    "a second unprotected member": ("malformed", Recipe(recipient_unprotected={5: b""})),
    "no encapsulated key": ("malformed", Recipe(recipient_unprotected={-4: None})),
    "encapsulated key not on the curve": (
        "decrypt",
        Recipe(recipient_unprotected={-4: b"\x04" + bytes(64)}),
    ),
    "encapsulated key compressed": (
        "malformed",
        Recipe(recipient_unprotected={-4: b"\x02" + bytes(32)}),
    ),
    "wrapped key flipped": (
        "decrypt",
        Recipe(hand_encrypt=part(3, lambda old: [[*old[0][:2], flipped(old[0][2])]])),
    ),
    "wrapped for another algorithm": ("decrypt", Recipe(next_layer=1)),
    "codec 9": ("codec", Recipe(header=header(c=9))),
    "another container": ("malformed", Recipe(plaintext=lzma.compress(dumps(BATCH)))),
    "not compressed": ("malformed", Recipe(plaintext=dumps(BATCH))),
    "nothing compressed": ("malformed", _squeezed(b"")),
    "compressed piece cut off": ("malformed", Recipe(plaintext=squeezed(dumps(BATCH))[:-1])),
    "two compressed pieces": ("malformed", Recipe(plaintext=2 * squeezed(dumps(BATCH)))),
    "a bomb": ("too-large", _squeezed(bytes(2**20))),
    "a bomb of samples": (
        "too-large",
        Recipe(batch={"t": [[T0_MS, *[0] * 10_000]], "c": [{**SPEED, "c": 1}] * 7}),
    ),
    "a byte behind the batch": ("malformed", _squeezed(dumps(BATCH) + b"\x00")),
    "a batch that is a list": ("malformed", _squeezed(dumps([1]))),
    "a batch of deep lists": ("malformed", _squeezed(b"\x81" * 5000 + b"\x00")),
    "a batch with a date": ("malformed", _squeezed(b"\xa2at\xc1\x00ac\x80")),
    "a batch with a cycle": ("malformed", _squeezed(b"\xd8\x1c\x81\xd8\x1d\x00")),
    "a batch without times": ("malformed", Recipe(batch={"c": BATCH["c"]})),
    "a batch without columns": ("malformed", Recipe(batch={"t": [[T0_MS]], "c": []})),
    "a batch with another member": ("malformed", Recipe(batch={**BATCH, "x": 1})),
    "a time column that nobody uses": (
        "malformed",
        Recipe(batch={**BATCH, "t": [*BATCH["t"], [T0_MS]]}),
    ),
    "a time column twice": (
        "malformed",
        Recipe(batch={"t": [[T0_MS]] * 2, "c": [{**SPEED, "c": 1}, {**GEAR, "c": 1}]}),
    ),
    "time columns out of order": (
        "malformed",
        Recipe(batch={"t": [[T0_MS], [1]], "c": [{**GEAR, "c": 1}, {**SPEED, "c": 1}]}),
    ),
    "a period without deviations": (
        "malformed",
        Recipe(batch={"t": [[T0_MS, 100]], "c": [{**SPEED, "c": 1}]}),
    ),
    "no time at all": ("malformed", Recipe(batch={"t": [[]], "c": [{**SPEED, "c": 1}]})),
    "a number of a column that is not known": ("codec", column(p=60_000, s=None, d=None, u=None)),
    "a negative number of a column": ("codec", column(p=-1, s=None, d=None, u=None)),
    "a number and names": ("malformed", column(p=SPEED_NUMBER)),
    "a boolean as number": ("malformed", column(p=True, s=None, d=None, u=None)),
    "a time as float": ("malformed", Recipe(batch={"t": [[0.5]], "c": [{**SPEED, "c": 1}]})),
    "a time beyond 2^53": ("malformed", Recipe(batch={"t": [[2**53]], "c": [{**SPEED, "c": 1}]})),
    "a column that is a list": ("malformed", Recipe(batch={"t": [[1]], "c": [[1]]})),
    "a column without path": ("malformed", column(p=None)),
    "a column with a number as path": ("malformed", column(p=1)),
    "a column with a number as unit": ("malformed", column(u=1)),
    "a column with a number as scope": ("malformed", column(s=1)),
    "a column with a number as datatype": ("malformed", column(d=1)),
    "a column with another member": ("malformed", column(z=1)),
    "a column with two forms": ("malformed", column(c=1)),
    "a column without values": ("malformed", column(n=None)),
    "a column with a place beyond the times": ("malformed", column(i=1)),
    "a column with a negative place": ("malformed", column(i=-1)),
    "a column with a boolean as place": ("malformed", column(i=False)),
    "a column with too few values": ("malformed", column(n=[1])),
    "a column with too many values": ("malformed", column(n=[1, 1, 1])),
    "changes that are text": ("malformed", column(n="11")),
    "changes with a boolean": ("malformed", column(n=[1, True])),
    "changes with a float": ("malformed", column(n=[1, 1.5])),
    "no change at all": ("malformed", column(n=[])),
    "a scale of 0": ("malformed", column(m=[0.0, 1.0])),
    "a scale that is whole": ("malformed", column(m=[1, 1.0])),
    "an infinite offset": ("malformed", column(m=[1.0, float("inf")])),
    "a scale without offset": ("malformed", column(m=[1.0])),
    "a scale of an integer beyond 2^53": ("malformed", column(n=[2**53, 0], m=[0.1, 0.0])),
    "10 digits": ("malformed", column(e=10)),
    "-1 digits": ("malformed", column(e=-1)),
    "digits as boolean": ("malformed", column(e=True)),
    "a list not ascending": ("malformed", column(n=[0, 1], k=[2.0, 1.0])),
    "a list with a value twice": ("malformed", column(n=[0, 1], k=[1.0, 1.0])),
    "a list of integers": ("malformed", column(n=[0, 1], k=[1, 2])),
    "a list of two types": ("malformed", column(n=[0, 1], k=[1.0, "b"])),
    "a list with NaN": ("malformed", column(n=[0, 1], k=[1.0, float("nan")])),
    "a place beyond the list": ("malformed", column(n=[0, 2], k=[1.0, 2.0])),
    "a place before the list": ("malformed", column(n=[0, -1], k=[1.0, 2.0])),
    "a value that is bytes": ("malformed", column(n=None, v=[b"", b""])),
    "a value that is a list": ("malformed", column(n=None, c=[1])),
    "values that are a text": ("malformed", column(n=None, v="ab")),
}


def jwk(key: Any, kid: str, alg: str) -> dict[str, str]:
    """Return a private key as a JWK."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return {
            "kty": "OKP",
            "crv": "Ed25519",
            "kid": kid,
            "alg": alg,
            "x": _base64url(key.public_key().public_bytes_raw()),
            "d": _base64url(key.private_bytes_raw()),
        }
    numbers = key.private_numbers()
    return {
        "kty": "EC",
        "crv": "P-256",
        "kid": kid,
        "alg": alg,
        "x": _base64url(numbers.public_numbers.x.to_bytes(32)),
        "y": _base64url(numbers.public_numbers.y.to_bytes(32)),
        "d": _base64url(numbers.private_value.to_bytes(32)),
    }


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def accepted(name: str, recipe: Recipe) -> dict[str, Any]:
    """Return an envelope and what opening it must give, written down by hand above."""
    head = {**recipe.header, "a": [recipe.header["a"][0], recipe.header["a"][1].hex()]}
    columns = [
        {
            **_names(entry),
            "times_ms": TIMES[entry["i"]],
            "values": values,
        }
        for entry, values in zip(BATCH["c"], VALUES, strict=True)
    ]
    return {"name": name, "envelope": recipe.build().hex(), "header": head, "columns": columns}


def _names(entry: dict[str, Any]) -> dict[str, Any]:
    if entry["p"] == SPEED_NUMBER:
        entry = SPEED
    return {
        "path": entry["p"],
        "scope": entry["s"],
        "datatype": entry["d"],
        "unit": entry.get("u"),
    }


def main() -> None:
    """Write the file."""
    enrolled = [
        jwk(ED_DEVICE, "dev-ed", "EdDSA"),
        jwk(ES_DEVICE, "dev-es", "ES256"),
        jwk(OTHER, "dev-other", "EdDSA") | {"vehicle": "veh-0003"},
    ]
    by_es256 = Recipe(header=header(dk="dev-es"), signer=ES_DEVICE)
    cases = {
        "recipient": jwk(RECIPIENT, "fx-2026-11", "HPKE-7-KE"),
        "devices": [_changed(device, {"d": None}) for device in enrolled],
        "max_plaintext": MAX_PLAINTEXT,
        "accepted": [
            accepted("signed with EdDSA", Recipe()),
            accepted("signed with ES256", by_es256),
        ],
        "forged": [
            {"name": name, "reason": reason, "envelope": recipe.build().hex()}
            for name, (reason, recipe) in FORGED.items()
        ]
        + [
            {
                "name": "ES256 signature in DER",
                "reason": "signature",
                "envelope": replace(by_es256, signature=_as_der).build().hex(),
            },
            {
                "name": "EdDSA claimed for an ES256 key",
                "reason": "algorithm",
                "envelope": replace(by_es256, outer={1: -8}).build().hex(),
            },
        ],
    }
    (HERE / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")


def _as_der(signature: bytes) -> bytes:
    halves = (signature[:32], signature[32:])
    body = b"".join(
        b"\x02" + bytes([len(number)]) + number
        for number in (half.lstrip(b"\0") for half in halves)
        for number in [b"\0" + number if number[0] & 0x80 else number]
    )
    return b"\x30" + bytes([len(body)]) + body


if __name__ == "__main__":
    main()
