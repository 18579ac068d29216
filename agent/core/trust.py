"""Who may sign what for a vehicle: the trust file, and the documents that renew it.

Rules:
 * `kid` → one key, one algorithm, one role. Several keys of a role may be trusted at once.
 * `policy` (the platform) signs policies and restrict documents; `owner` signs restrict documents
   and countersigns policies, and never signs a policy alone; `root` signs trust documents and
   nothing else, so it can stay off every machine that is online.
 * `owner_needed_for` names classes: a policy that gives more of one of them than the policy in
   force needs the owner's signature beside the platform's (`expansion`). It is an error without an
   owner's key.
 * A trust document replaces the platform's keys and nothing else. Owner and root keys, and what
   needs the owner, change only where the file lies: no signature from afar takes the owner's veto.
 * Its `ver` must be above that of the file and of every trust document before it. It is signed by
   a root key of the file, so a vehicle that missed some takes the newest one all the same.

Both are strict JSON:

    {"v": 1, "ver": 0, "owner_needed_for": ["location"],
     "keys": [{"kid": "policy-2026", "alg": "EdDSA", "role": "policy",
               "jwk": {"kty": "OKP", "crv": "Ed25519", "x": "..."}}]}
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from agent.core import strictjson
from agent.core.jwk import ED25519, P256, public_jwk
from agent.core.member import Members, as_id, unique
from agent.core.strictjson import shown
from agent.errors import KeyFileError, PolicyRejected, Rollback

ALGORITHMS: Mapping[str, Mapping[str, str]] = MappingProxyType({"EdDSA": ED25519, "ES256": P256})

_FORMAT_VERSION = 1
_MAX_TRUST_BYTES = 64 * 1024
_FILE = "the trust file"
_DOCUMENT = "the trust document"


class Role(StrEnum):
    """What a key may sign."""

    POLICY = "policy"
    OWNER = "owner"
    ROOT = "root"


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key that may sign, with its one algorithm and its one role."""

    kid: str
    alg: str
    jwk: Mapping[str, str]
    role: Role


@dataclass(frozen=True, slots=True)
class Trust:
    """Who may sign for a vehicle.

    Attributes:
        keys: By kid; never empty.
        owner_needed_for: Classes of which a policy gives more only with the owner's signature.
        ver: Of the file, or of the trust document that renewed it.
    """

    keys: Mapping[str, TrustedKey]
    owner_needed_for: frozenset[str] = frozenset()
    ver: int = 0


@dataclass(frozen=True, slots=True)
class TrustDocument:
    """The platform's keys from now on, in place of those of the trust file."""

    ver: int
    iat_s: int
    keys: tuple[TrustedKey, ...]


class Key(NamedTuple):
    """The name of a key that signs: `device` or a `Role`, and its kid."""

    role: str
    kid: str


def key_changes(before: Mapping[Key, str], after: Mapping[Key, str]) -> list[tuple[Key, str]]:
    """Return what became of keys between two states, in order of role and kid.

    Args:
        before: A hash of each key, by its name.
        after: The same, later.

    Returns:
        `enrolled`, `rotated` (another key under the same name) or `removed`.
    """
    changes = []
    for key in sorted(before.keys() | after.keys()):
        if key not in before:
            changes.append((key, "enrolled"))
        elif key not in after:
            changes.append((key, "removed"))
        elif before[key] != after[key]:
            changes.append((key, "rotated"))
    return changes


def parse_trust(data: bytes, *, classes: Collection[str] | None = None) -> Trust:
    """Return what a trust file's bytes say.

    Args:
        data: The file.
        classes: Names of the catalogue's classes; None: `owner_needed_for` is not held against
            them (tools without a catalogue).

    Raises:
        KeyFileError: The file is no trust file, holds no key or a private one, or needs the owner
            where there is no owner's key or no such class.
    """
    try:
        raw = strictjson.parse(data, max_bytes=_MAX_TRUST_BYTES)
        root = Members(raw, _FILE, ("v", "ver", "keys", "owner_needed_for"))
        _check_format(root)
        keys = _keys(root, _FILE, tuple(Role))
        needed = [
            as_id(name, f"{_FILE}: owner_needed_for")
            for name in (root.elements("owner_needed_for") if "owner_needed_for" in root else ())
        ]
        unique(needed, _FILE, "class")
        ver = root.integer("ver") if "ver" in root else 0
    except strictjson.StrictJsonError as exc:
        raise KeyFileError(f"{_FILE} is not strict JSON: {exc}") from exc
    except PolicyRejected as exc:
        raise KeyFileError(exc.message, hint=exc.hint) from exc
    if all(key.role is Role.OWNER for key in keys):
        raise KeyFileError(
            f"{_FILE}: no key may sign policies, there are only owners' keys",
            hint="add the platform's public key, or a root key",
        )
    if needed and not any(key.role is Role.OWNER for key in keys):
        raise KeyFileError(
            f"{_FILE}: owner_needed_for names {needed[0]}, but there is no key of role owner",
            hint="add the owner's public key, or leave owner_needed_for out",
        )
    for name in needed if classes is not None else ():
        if name not in (classes or ()):
            raise KeyFileError(
                f"{_FILE}: owner_needed_for names {name}, which is no class of the catalogue",
                hint=f"its classes are {', '.join(sorted(classes or ()))}",
            )
    return Trust(_by_kid(keys), frozenset(needed), ver)


def parse_trust_document(payload: bytes) -> TrustDocument:
    """Return the trust document of a verified payload.

    Raises:
        PolicyRejected: With a reason of docs/policy.md.
    """
    try:
        raw = strictjson.parse(payload, max_bytes=_MAX_TRUST_BYTES)
    except strictjson.StrictJsonError as exc:
        raise PolicyRejected(f"{_DOCUMENT} is not strict JSON: {exc}", reason=exc.reason) from exc
    members = Members(raw, _DOCUMENT, ("v", "ver", "iat", "keys"))
    _check_format(members)
    return TrustDocument(
        ver=members.integer("ver"),
        iat_s=members.time_s("iat"),
        keys=_keys(members, _DOCUMENT, (Role.POLICY,)),
    )


def renewed(trust: Trust, document: TrustDocument, *, above: int | None = None) -> Trust:
    """Return the trust that follows from a verified trust document.

    Args:
        trust: Of the trust file, not of the document before: the same at each start, whatever came
            in between.
        document: From a payload that a root key of the file signed.
        above: `ver` in force, where that is a trust document's; None: the file's.

    Raises:
        Rollback: Its `ver` is not above the one in force.
        PolicyRejected: It gives a kid that names another key of the file (reason `duplicate`).
    """
    in_force = trust.ver if above is None else max(trust.ver, above)
    if document.ver <= in_force:
        raise Rollback(
            f"the trust document has ver {document.ver}, in force is {in_force}",
            reason="rollback",
            hint="raise ver above the one in force and sign again",
        )
    for key in document.keys:
        known = trust.keys.get(key.kid)
        if known is not None and known != key:
            raise PolicyRejected(
                f"{_DOCUMENT}: the kid {key.kid} names another key already",
                reason="duplicate",
                hint="give every key a kid that was never used before",
            )
    kept = [key for key in trust.keys.values() if key.role is not Role.POLICY]
    return replace(trust, keys=_by_kid([*document.keys, *kept]), ver=document.ver)


def _check_format(members: Members) -> None:
    if (version := members.integer("v")) != _FORMAT_VERSION:
        raise PolicyRejected(
            f"{members.place}: v is {version}, expected {_FORMAT_VERSION}", reason="version"
        )


def _keys(members: Members, place: str, roles: Collection[Role]) -> tuple[TrustedKey, ...]:
    keys = tuple(
        _trusted_key(entry, f"{place}: keys[{index}]", roles)
        for index, entry in enumerate(members.some_elements("keys"))
    )
    unique([key.kid for key in keys], place, "kid")
    return keys


def _trusted_key(raw: Any, place: str, roles: Collection[Role]) -> TrustedKey:
    members = Members(raw, place, ("kid", "alg", "role", "jwk"))
    kid, alg, role = members.id("kid"), members.text("alg"), members.text("role")
    if alg not in ALGORITHMS:
        raise PolicyRejected(
            f"{place}: alg {shown(alg)}, expected {' or '.join(ALGORITHMS)}", reason="algorithm"
        )
    if role not in roles:
        raise PolicyRejected(
            f"{place}: role {shown(role)}, expected {' or '.join(roles)}", reason="role"
        )
    try:
        return TrustedKey(kid, alg, public_jwk(members.any("jwk"), ALGORITHMS[alg]), Role(role))
    except ValueError as exc:
        raise PolicyRejected(f"{place}: jwk: {exc}", reason="trusted-key") from exc


def _by_kid(keys: Iterable[TrustedKey]) -> Mapping[str, TrustedKey]:
    return MappingProxyType({key.kid: key for key in keys})
