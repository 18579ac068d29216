"""Envelopes and what else a device signs, mutated layer by layer and then correctly sealed again.

The keys are the same in every run, and the recipient's layer is a constant where it is not what
is mutated: so an input of a seed is the same bytes again, and a kept one opens in any process.
"""

import json
import lzma
import math
import zlib
from functools import cache
from random import Random
from typing import Any

import cbor2
from cbor2 import CBORTag
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from agent.cloud.envelope import open_envelope, verify_ack
from agent.core import codec
from agent.core.checkpoint import parse_checkpoint
from agent.core.cose import DevicePublicKey, verify1
from agent.core.ledger import encode_head, encode_line, parse_head, parse_line
from agent.core.ledgerevent import Event
from agent.core.ledgerproof import parse_proof, verify_proof
from agent.core.model import Batch, Column
from agent.errors import EnvelopeRejected, LedgerError
from tests.columns import GEAR, SPEED, T0_MS, batch, column, content
from tests.fuzz.cborbytes import written
from tests.fuzz.mutate import SCALARS, copied, mutate_tree, spoiled, times
from tests.fuzz.target import ACCEPTED, Target, Verdict, insist

VEHICLE = "veh-0001"
_DEVICE = Ed25519PrivateKey.from_private_bytes(bytes([41] * 32))
_OTHER = Ed25519PrivateKey.from_private_bytes(bytes([42] * 32))
_RECIPIENT = derive_private_key(43, SECP256R1())
_SUITE = Suite(KEM.P256, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_DEVICES = {
    "dev-1": DevicePublicKey("dev-1", "EdDSA", _DEVICE.public_key()),
    "dev-2": DevicePublicKey("dev-2", "EdDSA", _OTHER.public_key(), "veh-0002"),
}
_KEYS = {"rec-1": _RECIPIENT}
_CEK = bytes(range(32))
_RECIPIENT_HEADER = {1: 53, 4: b"rec-1"}
_LZMA = {"id": lzma.FILTER_LZMA1, "preset": 0, "dict_size": 1 << 12, "lc": 0, "lp": 0, "pb": 0}


def _info(protected: bytes) -> bytes:
    return written(["HPKE Recipient", 3, protected, b""])


@cache
def _wrapped() -> bytes:
    """Return enc and the wrapped content key: once per process, for HPKE draws its own key."""
    return _SUITE.encrypt(_CEK, _RECIPIENT.public_key(), info=_info(written(_RECIPIENT_HEADER)))


def _sign1(rng: Random, payload: bytes, kid: bytes = b"dev-1", sloppy: float = 0.0) -> bytes:
    key = {b"dev-1": _DEVICE, b"dev-2": _OTHER}.get(kid, _DEVICE)
    protected = written({1: -8, 4: kid}, rng, sloppy)
    signature = key.sign(written(["Signature1", protected, b"", payload]))
    return written(CBORTag(18, [protected, {}, payload, signature]), rng, sloppy)


def _seal(rng: Random, header: dict[Any, Any], plaintext: bytes, sloppy: float = 0.0) -> list[Any]:
    """Return the parts of a COSE_Encrypt over a header as it is."""
    protected = written(header, rng, sloppy)
    iv = header.get(5)
    iv = iv if isinstance(iv, bytes) and 8 <= len(iv) <= 128 else bytes(12)
    ciphertext = AESGCM(_CEK).encrypt(iv, plaintext, written(["Encrypt", protected, b""]))
    wrapped = _wrapped()
    recipient = [written(_RECIPIENT_HEADER), {-4: wrapped[:65]}, wrapped[65:]]
    return [protected, {}, ciphertext, [recipient]]


def _header(rng: Random, **members: Any) -> dict[Any, Any]:
    h = {
        **{"v": VEHICLE, "dk": "dev-1", "g": "gr_1", "r": 1, "n": rng.randrange(100), "p": [1, 42]},
        **{"t": [1_795_468_800, 1_795_468_860], "c": 1, "a": [7, bytes(32)]},
    }
    content_type = "application/vnd.consentry.batch"
    return {1: 3, 3: content_type, 5: rng.randbytes(12), -65537: {**h, **members}}


@cache
def _plaintexts() -> tuple[bytes, ...]:
    return tuple(codec.encode(made) for made in (batch(SPEED, GEAR), batch(GEAR), batch(*_many())))


def _many() -> tuple[Column, ...]:
    return (
        SPEED,
        column((True, False, True)),
        column(("P", "D", "P", "D", "P", "D"), path="Vehicle.Gear", datatype="string"),
        column((1.5, 2.5, 1.5, 2.5, 1.5, 1.5)),
        column((20, 21, 22), fn="count", window_s=60, datatype="uint64"),
        column((0.1, -0.0, math.inf)),
    )


_NAMES = (*("v", "dk", "g", "r", "n", "p", "t", "c", "a", "x"), 1, 3, 4, 5, -4, -65537, 0, 2)
_POOL = (
    *(
        "dev-1",
        "dev-2",
        VEHICLE,
        "veh-0002",
        b"dev-1",
        b"dev-2",
        b"rec-1",
        b"",
        bytes(12),
        bytes(32),
    ),
    *(
        bytes(13),
        bytes(65),
        3,
        1,
        53,
        35,
        -8,
        -7,
        1.0,
        0,
        -1,
        2**64,
        -(2**64),
        1 << 600,
        1 << 20_000,
    ),
    *(
        [1, 42],
        [0, bytes(32)],
        [],
        {},
        CBORTag(18, 0),
        CBORTag(2, b"\x01"),
        CBORTag(0, "2020"),
        CBORTag(96, []),
    ),
    *SCALARS,
)


def _mutated(rng: Random, tree: Any, pool: Any = _POOL, names: Any = _NAMES) -> Any:
    for _ in range(times(rng, 4)):
        mutate_tree(rng, tree, pool, names)
    return tree


def _make_envelope(rng: Random) -> bytes:
    header, plaintext = _header(rng), rng.choice(_plaintexts())
    what = rng.randrange(10)
    sloppy, kid = 0.0, b"dev-1"
    if what < 4:
        _mutated(rng, header[-65537])
    elif what == 4:
        _mutated(rng, header)
    elif what == 5:
        sloppy = 0.05
    elif what == 6:
        kid = rng.choice((b"dev-2", b"dev-3", b"dev-1"))
        header[-65537] |= rng.choice(({}, {"dk": kid.decode()}, {"dk": "dev-2", "v": "veh-0002"}))
    parts = _seal(rng, header, plaintext, sloppy)
    if what == 7:
        _mutated(rng, parts)
    elif what == 8:
        recipient = _mutated(rng, dict(_RECIPIENT_HEADER))
        protected = written(recipient, rng, 0.1)
        made = _SUITE.encrypt(_CEK, _RECIPIENT.public_key(), info=_info(protected))
        parts[3] = [[protected, {-4: made[:65]}, made[65:]]]
    tag = 96 if rng.random() < 0.97 else rng.choice((16, 97, 18, 2))
    payload = written(CBORTag(tag, parts), rng, sloppy)
    if rng.random() < 0.05:
        payload = spoiled(rng, payload)
    data = _sign1(rng, payload, kid, 0.03 if rng.random() < 0.05 else 0)
    return spoiled(rng, data) if rng.random() < 0.05 else data


def _unsealed(data: bytes) -> tuple[dict[str, Any], bytes, str]:
    """Return H, plaintext and signer: a second opener, on cbor2 and pyca alone."""
    outer = cbor2.loads(data)
    signing = cbor2.loads(outer.value[0])
    inner = cbor2.loads(outer.value[2])
    protected, _, ciphertext, recipients = inner.value
    header = cbor2.loads(protected)
    recipient_protected, unprotected, wrapped = recipients[0]
    cek = _SUITE.decrypt(unprotected[-4] + wrapped, _RECIPIENT, info=_info(recipient_protected))
    plaintext = AESGCM(cek).decrypt(header[5], ciphertext, written(["Encrypt", protected, b""]))
    kid = signing[4].decode()
    _DEVICES[kid].public.verify(
        outer.value[3], written(["Signature1", outer.value[0], b"", outer.value[2]])
    )
    for layer in (data, outer.value[0], outer.value[2], protected, recipient_protected):
        insist(cbor2.dumps(cbor2.loads(layer), canonical=True) == layer, "another spelling")
    insist((outer.tag, inner.tag, outer.value[1], inner.value[1]) == (18, 96, {}, {}), "tags")
    insist(signing == {1: -8, 4: kid.encode()} and set(unprotected) == {-4}, "headers")
    insist(cbor2.loads(recipient_protected) == _RECIPIENT_HEADER, "another recipient")
    insist(len(recipients) == 1 and set(header) == {1, 3, 5, -65537} and header[1] == 3, "header")
    return header[-65537], plaintext, kid


def _is_past(data: bytes) -> bool:
    """Whether the signature holds over something that a CBOR reader reads."""
    try:
        cbor2.loads(verify1(data, _DEVICES)[1])
    except Exception:  # noqa: BLE001 - cbor2 raises what it likes
        return False
    return True


def _open(data: bytes) -> Any:
    return open_envelope(data, recipient_keys=_KEYS, devices=_DEVICES)


def _judge_envelope(data: bytes) -> Verdict:
    try:
        opened = _open(data)
    except EnvelopeRejected as exc:
        return Verdict(
            exc.reason not in _FIRST and (exc.reason != "malformed" or _is_past(data)), exc.reason
        )
    h, plaintext, kid = _unsealed(data)
    made = opened.header
    _check_header(h, made, kid)
    insist(opened.recipient_kid == "rec-1", "another recipient")
    insist(opened.columns == codec.decode(plaintext), "other columns than were sealed")
    return Verdict(True, ACCEPTED)


_FIRST = frozenset({"signature", "unknown-device", "algorithm"})


def _check_header(h: dict[str, Any], made: Any, kid: str) -> None:
    insist(set(h) == {"v", "dk", "g", "r", "n", "p", "t", "c", "a"}, "members of H")
    insist(h["dk"] == kid == made.device_kid, "another signer than H names")
    insist(_DEVICES[kid].vehicle in (None, h["v"]), "a device that speaks for another vehicle")
    counts = (h["r"], h["n"], h["c"], *h["p"], h["a"][0])
    insist(all(type(n) is int and 0 <= n < 2**64 for n in counts), "a count of H")
    insist(all(type(n) is int and abs(n) < 2**63 for n in h["t"]), "a time of H")
    insist(len(h["p"]) == len(h["t"]) == len(h["a"]) == 2 and len(h["a"][1]) == 32, "a pair of H")
    insist(all(isinstance(h[name], str) for name in ("v", "dk", "g")), "a text of H")
    same = (made.vehicle, made.grant_id, made.rev, made.n, made.epoch, made.ver, made.from_s)
    insist(same == (h["v"], h["g"], h["r"], h["n"], *h["p"], h["t"][0]), "another H")
    rest = (made.to_s, made.codec, made.ledger_size, made.ledger_root)
    insist(rest == (h["t"][1], h["c"], *h["a"]), "another H")


_BATCH_NAMES = ("t", "c", "i", "p", "s", "d", "u", "f", "w", "n", "m", "e", "k", "v", "x")
_BATCH_POOL = (
    *(
        "Vehicle.Speed",
        "read_speedometer",
        "float",
        "uint8",
        "string",
        "km/h",
        "max",
        "mean",
        "median",
    ),
    *(
        [1000, 100],
        [T0_MS],
        [T0_MS, 100, 0],
        [0.1, 0.0],
        [0.0, 1.0],
        [1e308, 1e308],
        [1, 0],
        [1.0, 2.0],
    ),
    *(["a", "b"], ["b", "a"], [1.5, 2.5], [1.5, math.nan], [True, 1], [2**53], [2**63, -(2**64)]),
    *(
        [0] * 200,
        [1 << 5000, *[0] * 300],
        [1 << 500, *[0] * 100],
        1 << 100,
        60_000,
        0,
        1,
        3,
        9,
        10,
    ),
    *(math.inf, math.nan, -math.inf, b"bytes", CBORTag(1, 0), *SCALARS),
)


@cache
def _batches() -> tuple[bytes, ...]:
    plain = (lzma.decompress(data) for data in _plaintexts())
    return tuple(plain)


def _make_batch(rng: Random) -> bytes:
    tree = cbor2.loads(rng.choice(_batches()))
    if rng.random() < 0.005:
        count = rng.choice((1000, 5000))
        tree = {"t": [[T0_MS, 1000, *[0] * (count - 2)]], "c": [{"i": 0, "p": 3, "n": [0] * count}]}
    if rng.random() < 0.9:
        _mutated(rng, tree, _BATCH_POOL, _BATCH_NAMES)
    packed = written(tree, rng, 0.05 if rng.random() < 0.05 else 0)
    if rng.random() < 0.05:
        packed = spoiled(rng, packed)
    plaintext = lzma.compress(packed, lzma.FORMAT_ALONE, filters=[_LZMA])
    if rng.random() < 0.03:
        plaintext = spoiled(rng, plaintext)
    return _sign1(rng, written(CBORTag(96, _seal(rng, _header(rng), plaintext))))


def _judge_batch(data: bytes) -> Verdict:
    try:
        opened = _open(data)
    except EnvelopeRejected as exc:
        return Verdict(exc.reason != "malformed" or _unpacks(data), exc.reason)
    _, plaintext, _ = _unsealed(data)
    packed = lzma.decompress(plaintext, lzma.FORMAT_ALONE)
    insist(cbor2.dumps(cbor2.loads(packed), canonical=True) == packed, "another spelling")
    for made in opened.columns:
        insist(len(made.times_ms) == len(made.values) > 0, "values without times")
        insist(all(type(t) is int and abs(t) < 2**53 for t in made.times_ms), "a time beyond")
        for value in made.values:
            insist(type(value) in (bool, int, float, str), "a value of another type")
            insist(type(value) is not int or abs(value) < 1 << 600, "an integer without end")
        insist((made.fn is None) == (made.window_s is None), "a function without window")
    json.dumps([sample.value for sample in opened.samples("r")][:1000])
    again = codec.decode(codec.encode(Batch("gr_1", 1, "r", opened.columns)))
    insist(list(map(content, again)) == list(map(content, opened.columns)), "it does not come back")
    return Verdict(True, ACCEPTED)


def _unpacks(data: bytes) -> bool:
    try:
        cbor2.loads(lzma.decompress(_unsealed(data)[1], lzma.FORMAT_ALONE))
    except Exception:  # noqa: BLE001 - cbor2 raises what it likes
        return False
    return True


_ACK = {
    **{
        "typ": "consent-ack",
        "v": VEHICLE,
        "h": bytes(32),
        "p": [1, 42],
        "b": [1, 41],
        "o": "applied",
    },
    **{"e": "", "t": 1_795_468_800, "n": 9, "a": [7, bytes(32)], "s": ["Vehicle.Speed"]},
    **{"x": {"gr_1": [3, 400]}, "k": True, "d": 12},
}
_CHECKPOINT = {
    **{
        "typ": "consent-checkpoint",
        "v": VEHICLE,
        "g": 1,
        "s": 7,
        "r": bytes(32),
        "t": 1_795_468_800,
    },
    "b": "0d6f1a52-4d0b-4c5e-9f7a-2f4b1f3b8c10",
}
_WORD_NAMES = ("typ", "v", "h", "p", "b", "o", "e", "t", "n", "a", "s", "x", "k", "d", "g", "r")
_WORD_POOL = (*("consent-ack", "consent-checkpoint", "refused", "ended", "repeated"), *_POOL)


def _make_word(rng: Random) -> bytes:
    tree = copied(rng.choice((_ACK, _ACK, _CHECKPOINT)))
    if rng.random() < 0.9:
        _mutated(rng, tree, _WORD_POOL, _WORD_NAMES)
    payload = written(tree, rng, 0.05 if rng.random() < 0.05 else 0)
    if rng.random() < 0.05:
        payload = spoiled(rng, payload)
    kid = b"dev-2" if rng.random() < 0.05 else b"dev-1"
    data = _sign1(rng, payload, kid)
    return spoiled(rng, data) if rng.random() < 0.05 else data


def _judge_word(data: bytes) -> Verdict:
    """An answer, or else a checkpoint: both are read, and at most one takes it."""
    taken, reason = 0, ""
    for read in (_read_ack, _read_checkpoint):
        try:
            read(data)
            taken += 1
        except EnvelopeRejected as exc:
            reason = exc.reason
    insist(taken < 2, "taken as two kinds of word")
    if taken:
        return Verdict(True, ACCEPTED)
    return Verdict(_is_past(data), reason)


def _read_ack(data: bytes) -> None:
    kid, ack = verify_ack(data, devices=_DEVICES, after=3)
    said = _said(data, kid)
    insist(set(said) == set(_ACK) and said["typ"] == "consent-ack", "members")
    insist(_DEVICES[kid].vehicle in (None, said["v"]), "a device that speaks for another vehicle")
    insist(said["n"] > 3 and said["o"] in ("applied", "repeated", "refused", "ended"), "an old one")
    numbers = (said["t"], said["n"], said["d"], *said["p"], *said["b"], said["a"][0])
    numbers += tuple(n for pair in said["x"].values() for n in pair)
    insist(all(type(n) is int and 0 <= n < 2**64 for n in numbers), "a count")
    made = (ack.vehicle, ack.payload_sha256, [ack.epoch, ack.ver], list(ack.before), ack.outcome)
    insist(made == tuple(said[name] for name in ("v", "h", "p", "b", "o")), "another answer")
    rest = (ack.reason, ack.time_s, ack.counter, list(ack.skipped), ack.scrubbed, ack.latency_ms)
    insist(rest == tuple(said[name] for name in ("e", "t", "n", "s", "k", "d")), "another answer")
    insist({g: list(pair) for g, pair in ack.erased.items()} == said["x"], "another receipt")


def _read_checkpoint(data: bytes) -> None:
    kid, payload = verify1(data, _DEVICES)
    made = parse_checkpoint(payload)
    said = _said(data, kid)
    insist(set(said) == set(_CHECKPOINT) and said["typ"] == "consent-checkpoint", "members")
    same = (made.vehicle, made.generation, made.size, made.root, made.time_s, made.boot_id)
    insist(same == tuple(said[name] for name in ("v", "g", "s", "r", "t", "b")), "another one")
    insist(all(0 <= said[name] < 2**64 for name in "gst") and len(made.root) == 32, "a count")


def _said(data: bytes, kid: str) -> dict[str, Any]:
    """Return the map that a device signed, read by cbor2; its signature held once more."""
    outer = cbor2.loads(data)
    insist(cbor2.loads(outer.value[0])[4].decode() == kid, "another signer")
    _DEVICES[kid].public.verify(
        outer.value[3], written(["Signature1", outer.value[0], b"", outer.value[2]])
    )
    for layer in (data, outer.value[0], outer.value[2]):
        insist(cbor2.dumps(cbor2.loads(layer), canonical=True) == layer, "another spelling")
    return dict(cbor2.loads(outer.value[2]))


_EVENTS = (
    {
        "e": "policy-refused",
        "f": {"reason": "rollback", "sha256": "ab" * 32},
        "n": 17,
        "t": 1_795_468_800,
    },
    {
        "e": "sealed",
        "f": {
            "grant": "g",
            "envelopes": 1,
            "bytes": 9,
            "first": 1,
            "last": 2,
            "rev": 1,
            "samples": 3,
        },
        "n": 18,
        "t": 0,
    },
    {
        "e": "segment-begun",
        "f": {"generation": 0, "bytes": 3, "crc": "0a0b0c0d", "peaks": ["cd" * 32]},
        "n": 1,
        "t": 5,
    },
    {
        "e": "policy-applied",
        "f": {
            "sha256": "ab" * 32,
            "epoch": 1,
            "ver": 2,
            "added": {"g": 1},
            "changed": {},
            "ended": {},
        },
        "n": 3,
        "t": 4,
    },
    {
        "e": "local-stop",
        "f": {"state": "on", "by": "switch", "grants": ["a", "b"], "seconds": 0},
        "n": 4,
        "t": 4,
    },
    {"g": 1, "n": 8, "root": "ef" * 32},
)
_LINE_NAMES = ("e", "f", "n", "t", "g", "root", "reason", "sha256", "grant", "by", "value", "state")
_LINE_POOL = (
    "rollback",
    "off",
    "timer",
    "switch",
    "g",
    "ab" * 32,
    "AB" * 32,
    ["b", "a"],
    1.5,
    71.3,
    *SCALARS,
)


def _make_line(rng: Random) -> bytes:
    tree = copied(rng.choice(_EVENTS))
    if rng.random() < 0.9:
        for _ in range(times(rng, 3)):
            mutate_tree(rng, tree, _LINE_POOL, _LINE_NAMES)
    body = json.dumps(
        tree, sort_keys=rng.random() > 0.02, separators=(",", ":"), allow_nan=True
    ).encode()
    if rng.random() < 0.05:
        body = spoiled(rng, body)
    line = b'{"c":"%08x",%b' % (zlib.crc32(body), body[1:])
    if rng.random() < 0.2:
        proof = {
            **{
                "kind": "inclusion",
                "index": tree.get("n", 0),
                "line": line.decode("latin-1"),
                "size": 1,
            },
            **{"root": "ab" * 32, "path": [], "checkpoint": None},
        }
        mutate_tree(rng, proof, _LINE_POOL, ("index", "path", "first", "kind"))
        return json.dumps(proof).encode()
    return spoiled(rng, line) if rng.random() < 0.02 else line


def _judge_line(data: bytes) -> Verdict:
    if data.startswith(b'{"kind"'):
        try:
            verify_proof(parse_proof(data))
        except LedgerError:
            return Verdict(True, "proof")
        return Verdict(True, ACCEPTED)
    try:
        head = parse_head(data)
    except LedgerError:
        head = None
    try:
        entry = parse_line(data)
    except LedgerError as exc:
        if head is not None:
            insist(encode_head(head) == data and head.size >= 0, "another spelling")
            return Verdict(True, ACCEPTED)
        first = ("check value", "no line", "no JSON", "one spelling")
        return Verdict(not any(word in exc.message for word in first), "line")
    insist(head is None, "a line and a head at once")
    insist(encode_line(entry.n, Event(entry.t_s, entry.name, entry.facts)) == data, "spelling")
    said = json.loads(data)
    insist(set(said) == {"c", "e", "f", "n", "t"}, "members")
    insist(0 <= said["n"] < 2**53 and 0 <= said["t"] < 2**53, "a count")
    insist(
        not any(isinstance(fact, (float, bool)) or fact is None for fact in said["f"].values()),
        "a value",
    )
    return Verdict(True, ACCEPTED)


TARGETS = (
    Target(
        "envelope",
        _make_envelope,
        _judge_envelope,
        "signature and CBOR of the payload",
        weight=1.0,
    ),
    Target("batch", _make_batch, _judge_batch, "seal, LZMA and CBOR of the plaintext", weight=1.0),
    Target(
        "answer, checkpoint",
        _make_word,
        _judge_word,
        "signature and CBOR of the payload",
        least_past=0.8,
    ),
    Target(
        "ledger line, head, proof",
        _make_line,
        _judge_line,
        "check value and spelling, or JSON",
        weight=1.8,
        least_past=0.7,
    ),
)
