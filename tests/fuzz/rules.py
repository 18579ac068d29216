"""The rules of policies, restrictions and keys once more, naively: what may have been accepted.

Written from docs/policy.md and the design; it shares no code with `agent`.
"""

import base64
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicNumbers

from tests.fuzz.target import WrongAcceptance, insist
from tests.policydoc import CATALOGUE_FILE

_ID = re.compile(r"\A[A-Za-z0-9_-]{1,64}\Z")
_HEX = re.compile(r"\A[0-9a-f]{64}\Z")
_DURATION = re.compile(r"\AP(\d+Y)?(\d+M)?(\d+W)?(\d+D)?(T(\d+H)?(\d+M)?(\d+S)?)?\Z", re.ASCII)
_LAST_S = 253_402_300_799
_P = 2**255 - 19
_D = -121_665 * pow(121_666, _P - 2, _P) % _P
_ONE = (0, 1)


@cache
def _catalogue() -> tuple[dict[str, Any], str]:
    data = CATALOGUE_FILE.read_bytes()
    return json.loads(data), hashlib.sha256(data).hexdigest()


def read(data: bytes) -> Any:
    """Read JSON, naively strict."""
    insist(len(data) <= 64 * 1024, "too large")

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        insist(len({name for name, _ in pairs}) == len(pairs), "a name twice")
        return dict(pairs)

    def odd(text: str) -> Any:
        raise WrongAcceptance(f"{text} is no number")

    def whole(text: str) -> int:
        insist(abs(int(text)) < 2**53, "an integer that others round")
        return int(text)

    value = json.loads(
        data.decode("utf-8"), object_pairs_hook=members, parse_constant=odd, parse_int=whole
    )
    for number in _numbers(value):
        insist(abs(number) < float("inf"), "an infinite number")
    return value


def _numbers(value: Any) -> Iterable[float]:
    if isinstance(value, (dict, list)):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _numbers(child)
    elif isinstance(value, float):
        yield value


def is_int(value: Any, low: int = 0, high: int = 2**53 - 1) -> bool:
    """Whether a value is an integer of a range, and no boolean."""
    return type(value) is int and low <= value <= high


def is_number(value: Any) -> bool:
    """Whether a value is a number, and no boolean."""
    return type(value) in (int, float)


def is_id(value: Any) -> bool:
    """Whether a value is an id."""
    return isinstance(value, str) and _ID.match(value) is not None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 256 and value.isprintable()


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and _HEX.match(value) is not None


def _members(value: Any, needed: Iterable[str], may: Iterable[str] = ()) -> dict[str, Any]:
    insist(isinstance(value, dict), "no object")
    insist(set(needed) <= set(value) <= {*needed, *may}, "a member is missing or unknown")
    return dict(value)


def check_policy(payload: bytes, policy: Any) -> None:
    """Hold an accepted policy, and what was made of it, against the rules."""
    raw = read(payload)
    names = ("v", "iss", "aud", "jti", "epoch", "ver", "iat", "nbf", "exp", "catalogue")
    said = _members(raw, (*names, "recipients", "grants"), ("taken_over",))
    insist(is_int(said["v"], 1, 1), "another format")
    insist(_is_text(said["iss"]) and is_id(said["aud"]) and _is_text(said["jti"]), "names")
    insist(all(is_int(said[name]) for name in ("epoch", "ver")), "a version")
    insist(all(is_int(said[name], 0, _LAST_S) for name in ("iat", "nbf", "exp")), "a time")
    catalogue, sha256 = _catalogue()
    bound = {"id": catalogue["catalogue"], "ver": catalogue["version"], "sha256": sha256}
    insist(said["catalogue"] == bound and is_int(said["catalogue"]["ver"]), "another catalogue")
    for recipient_id, value in said["recipients"].items():
        _check_recipient(recipient_id, value)
    over = said.get("taken_over", [])
    insist(
        isinstance(over, list) and all(map(is_id, over)) and len(set(over)) == len(over) <= 256,
        "taken over",
    )
    ids = [_check_grant(grant, said["recipients"]) for grant in said["grants"]]
    insist(len(set(ids)) == len(ids), "a grant twice")
    made = (policy.aud, policy.epoch, policy.ver, policy.iat_s, policy.nbf_s, policy.exp_s)
    insist(
        made == tuple(said[n] for n in ("aud", "epoch", "ver", "iat", "nbf", "exp")), "other values"
    )
    insist(
        [g.grant_id for g in policy.grants] == ids and policy.taken_over == tuple(over),
        "other grants",
    )
    insist(policy.payload_sha256 == hashlib.sha256(payload).hexdigest(), "another hash")
    for grant, wrote in zip(policy.grants, said["grants"], strict=True):
        _compare_grant(grant, wrote)


def _check_recipient(recipient_id: str, value: Any) -> None:
    said = _members(value, ("keys",), ("name",))
    insist(is_id(recipient_id) and _is_text(said.get("name", "x")), "a recipient's name")
    insist(isinstance(said["keys"], list) and said["keys"], "a recipient without key")
    for key in said["keys"]:
        given = _members(key, ("kid", "alg", "jwk"))
        insist(is_id(given["kid"]) and given["alg"] == "HPKE-7-KE", "a recipient's key")
        _check_p256(given["jwk"])
    kids = [key["kid"] for key in said["keys"]]
    insist(len(set(kids)) == len(kids), "a kid twice")


def _check_grant(value: Any, recipients: Mapping[str, Any]) -> str:
    state = value.get("state", "active")
    insist(state in ("active", "paused", "revoked"), "a state")
    needed = ("grant_id",) if state == "revoked" else ("grant_id", "recipient", "details")
    may = ("rev", "state", "recipient", "nbf", "exp", "offline_s", "purposes", "retention")
    said = _members(value, needed, (*may, "record", "details", "combine"))
    insist(is_id(said["grant_id"]) and is_int(said.get("rev", 1)), "id or rev")
    insist("recipient" not in said or said["recipient"] in recipients, "an unknown recipient")
    insist(all(is_int(said.get(n, 0), 0, _LAST_S) for n in ("nbf", "exp")), "a time")
    insist(is_int(said.get("offline_s", 0)), "offline_s")
    for name in ("purposes", "details"):
        insist(name not in said or (isinstance(said[name], list) and said[name]), name)
    purposes = said.get("purposes", [])
    insist(all(map(_is_text, purposes)) and len(set(purposes)) == len(purposes), "purposes")
    insist(
        "retention" not in said or 0 < duration_s(said["retention"]) <= 100 * 365 * 86_400,
        "retention",
    )
    if "record" in said:
        record = _members(said["record"], ("id", "sha256"))
        insist(_is_text(record["id"]) and _is_hash(record["sha256"]), "a record")
    scopes = [_check_detail(detail) for detail in said.get("details", [])]
    insist(len(set(scopes)) == len(scopes), "a scope twice")
    joined = said.get("combine", [])
    insist(isinstance(joined, list), "combine")
    for names in joined:
        insist(isinstance(names, list) and len(names) == len(set(names)) >= 2, "combine")
        insist(set(names) <= set(scopes), "combine names another scope")
    _check_combined(scopes, joined)
    return str(said["grant_id"])


def _check_combined(scopes: list[str], joined: list[list[str]]) -> None:
    """Where somebody was, and how fast, are one grant's only where the owner was asked for both."""
    known = _catalogue()[0]["scopes"]
    speed = {"Vehicle.Speed", "Vehicle.AverageSpeed"}
    for scope in scopes:
        for other in scopes:
            drives = speed & {signal["path"] for signal in known[scope]["signals"]}
            if drives and known[other]["class"] == "location":
                insist(any({scope, other} <= set(names) for names in joined), "speed with location")


def _check_detail(value: Any) -> str:
    said = _members(value, ("scope",), ("constraints",))
    catalogue = _catalogue()[0]
    scope = catalogue["scopes"][said["scope"]]
    ceiling = catalogue["classes"][scope["class"]]
    insist(ceiling["grantable"], "what cannot be granted")
    _check_constraints(said.get("constraints", {}), ceiling["defaults"], ceiling["ceilings"])
    return str(said["scope"])


def _check_constraints(raw: Any, defaults: Mapping[str, Any], ceilings: Mapping[str, Any]) -> None:
    names = ("min_interval_s", "quantum", "grid_deg", "precise", "once", "windows", "aggregate")
    said = _members(raw, (), names)
    for name in names[:3]:
        insist(name not in said or (is_number(said[name]) and said[name] >= 0), name)
    for name in names[3:5]:
        insist(name not in said or isinstance(said[name], bool), name)
    aggregate, least_s = said.get("aggregate"), ceilings.get("min_interval_s", 0)
    insist(said.get("quantum", 1) > 0, "quantum")
    insist(0.99e-7 < said.get("grid_deg", 1) <= 180, "grid_deg")
    insist(said.get("min_interval_s", least_s) >= least_s, "looser than the ceiling")
    insist(said.get("min_interval_s", 0) <= 2**63 / 1e9, "an interval beyond the clock")
    insist(not (said.get("precise") and "grid_deg" in said), "precise and on a grid")
    once = said.get("once", defaults.get("once", False))
    insist(once or not ceilings.get("once"), "more than once")
    if said.get("precise") and "grid_deg" in defaults:
        insist(ceilings.get("precise") is True, "precise beyond the ceiling")
    if "aggregate" in said:
        given = _members(aggregate, ("window_s", "fn"))
        insist(
            is_number(given["window_s"]) and given["window_s"] >= max(least_s, 0.001), "window_s"
        )
        functions = given["fn"]
        insist(isinstance(functions, list) and len(functions) == len(set(functions)) > 0, "fn")
        insist(set(functions) <= {"min", "max", "mean", "count", "last"}, "fn")
        insist("min_interval_s" not in said and not once, "contradiction")
    if "windows" in said:
        windows = said["windows"]
        insist(isinstance(windows, list) and 0 < len(windows) <= 32, "windows")
        for window in windows:
            given = _members(window, ("days", "from", "to", "tz"))
            insist(_days(given["days"]), "days")
            for name in ("from", "to"):
                insist(re.match(r"\A([01]\d|2[0-3]):[0-5]\d\Z", given[name], re.ASCII), name)
            insist(ZoneInfo(given["tz"]).key != "localtime", "a zone of this machine")


def _days(text: str) -> set[int]:
    insist(re.match(r"\A[1-7](-[1-7])?(,[1-7](-[1-7])?)*\Z", text), "days")
    days: list[int] = []
    for part in text.split(","):
        days += range(int(part[0]), int(part[-1]) + 1)
    insist(days and days == sorted(set(days)), "days out of order")
    return set(days)


def duration_s(text: Any) -> int:
    """Return the seconds of a duration, with the shortest years and months."""
    found = _DURATION.match(text)
    insist(found and text[-1] not in "PT", "no duration")
    assert found is not None
    date, _, clock = text[1:].partition("T")
    units = {"Y": 365 * 86_400, "M": 28 * 86_400, "W": 7 * 86_400, "D": 86_400}
    total = sum(int(n) * units[u] for n, u in re.findall(r"(\d+)([YMWD])", date))
    return total + sum(
        int(n) * {"H": 3600, "M": 60, "S": 1}[u] for n, u in re.findall(r"(\d+)([HMS])", clock)
    )


def _compare_grant(grant: Any, said: Mapping[str, Any]) -> None:
    """Hold a grant as the agent has it against what was written, defaults included."""
    insist(
        grant.rev == said.get("rev", 1) and grant.state == said.get("state", "active"), "rev, state"
    )
    insist(grant.recipient_id == said.get("recipient"), "another recipient")
    times = (grant.nbf_s, grant.exp_s, grant.offline_s)
    insist(times == (said.get("nbf"), said.get("exp"), said.get("offline_s")), "other times")
    insist(grant.purposes == tuple(said.get("purposes", ())), "other purposes")
    kept = None if "retention" not in said else duration_s(said["retention"])
    insist(grant.retention_s == kept, "another retention")
    insist(grant.combine == tuple(map(tuple, said.get("combine", ()))), "another combine")
    for detail, wrote in zip(grant.details, said.get("details", ()), strict=True):
        insist(detail.scope == wrote["scope"], "another scope")
        _compare_constraints(detail.constraints, wrote.get("constraints", {}), wrote["scope"])


def _compare_constraints(made: Any, said: Mapping[str, Any], scope: str) -> None:
    catalogue = _catalogue()[0]
    default = catalogue["classes"][catalogue["scopes"][scope]["class"]]["defaults"]
    aggregate = said.get("aggregate")
    interval_s = said.get("min_interval_s", default.get("min_interval_s", 0))
    if aggregate is not None:
        interval_s = aggregate["window_s"]
    insist(abs(made.min_interval_ns - interval_s * 10**9) <= max(1, interval_s), "another interval")
    precise = said.get("precise", False)
    grid = said.get("grid_deg", None if precise else default.get("grid_deg"))
    insist((made.quantum, made.grid_deg) == (said.get("quantum"), grid), "another grid or quantum")
    insist(
        made.precise is precise and made.once == said.get("once", default.get("once", False)),
        "once",
    )
    insist((made.windows is None) == ("windows" not in said), "windows")
    insist((made.aggregate is None) == (aggregate is None), "aggregate")
    if aggregate is not None:
        insist(tuple(made.aggregate.functions) == tuple(aggregate["fn"]), "other functions")
        insist(made.aggregate.window_ms == aggregate["window_s"] * 1000, "another window")


def check_plan(said: Mapping[str, Any], takes: Iterable[Any], now_s: int) -> None:
    """Hold what would be taken now against what the policy gives now."""
    known = _catalogue()[0]["scopes"]
    may = set()
    for grant in said["grants"] if said["nbf"] <= now_s < said["exp"] else ():
        is_live = grant.get("nbf", 0) <= now_s < grant.get("exp", _LAST_S + 1)
        if grant.get("state", "active") != "active" or not is_live:
            continue
        for detail in grant["details"]:
            constraints = detail.get("constraints", {})
            windows = constraints.get("windows")
            if windows is not None and not any(_is_open(window, now_s) for window in windows):
                continue
            for signal in known[detail["scope"]]["signals"]:
                may.add((grant["grant_id"], grant["recipient"], detail["scope"], signal["path"]))
    for take in takes:
        took = (take.grant_id, take.recipient, take.scope, take.path)
        insist(took in may, "it takes what is not granted now")


def _is_open(window: Mapping[str, str], now_s: int) -> bool:
    wall = datetime.fromtimestamp(now_s, ZoneInfo(window["tz"]))
    clock, today = wall.strftime("%H:%M"), wall.isoweekday()
    yesterday = (today - 2) % 7 + 1
    days, begin, end = _days(window["days"]), window["from"], window["to"]
    if begin < end:
        return today in days and begin <= clock < end
    return (today in days and clock >= begin) or (yesterday in days and clock < end)


def check_no_more(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> None:
    """Without the owner, what is given of a class must have been given before, and not coarser."""
    known = _catalogue()[0]["scopes"]
    old = {
        grant["grant_id"]: grant
        for grant in before["grants"]
        if grant.get("state", "active") == "active"
    }
    for grant in after["grants"]:
        if grant.get("state", "active") != "active":
            continue
        for detail in grant["details"]:
            if known[detail["scope"]]["class"] != name:
                continue
            insist(grant["grant_id"] in old, "a new grant without the owner")
            was = old[grant["grant_id"]]
            same = [d for d in was["details"] if d["scope"] == detail["scope"]]
            insist(same, "a new scope without the owner")
            insist(grant["recipient"] == was["recipient"], "another recipient without the owner")
            insist(
                after["recipients"][grant["recipient"]] == before["recipients"][was["recipient"]]
                or set(map(str, after["recipients"][grant["recipient"]]["keys"]))
                <= set(map(str, before["recipients"][was["recipient"]]["keys"])),
                "another key without the owner",
            )
            insist(grant.get("exp", after["exp"]) <= was["exp"], "longer without the owner")
            now, then = detail.get("constraints", {}), same[0].get("constraints", {})
            if "aggregate" not in now:
                insist(now.get("min_interval_s", 60) >= then["min_interval_s"], "more often")
            insist(
                not now.get("precise") and now.get("grid_deg", 0.01) >= then["grid_deg"], "finer"
            )


def check_restriction(said: Any, made: Any, *, vehicle: str, now_s: int) -> None:
    """Hold an accepted restrict document against the rules."""
    _members(said, ("v", "aud", "jti", "iat", "mode", "grants"))
    insist(is_int(said["v"], 1, 1) and said["aud"] == vehicle, "for another vehicle")
    insist(is_id(said["jti"]) and said["mode"] in ("pause", "revoke"), "jti or mode")
    ahead_s = now_s + 86_400 if said["jti"] not in ("r-1", "r-9") else _LAST_S
    insist(is_int(said["iat"], 0, ahead_s), "from the future")
    grants = said["grants"]
    if grants != "*":
        insist(isinstance(grants, list) and all(map(is_id, grants)), "grants")
        insist(0 < len(grants) == len(set(grants)) <= 256, "grants")
    same = (made.jti, made.iat_s, made.mode, made.grants)
    named = ("*",) if grants == "*" else tuple(grants)
    insist(same == (said["jti"], said["iat"], said["mode"], named), "another restriction")


def check_keys(raw: Any, roles: Collection[str]) -> None:
    """Hold trusted keys against the rules."""
    insist(isinstance(raw, list) and raw, "no key")
    for entry in raw:
        said = _members(entry, ("kid", "alg", "role", "jwk"))
        insist(is_id(said["kid"]) and said["role"] in roles, "kid or role")
        insist(said["alg"] in ("EdDSA", "ES256"), "alg")
        (_check_ed25519 if said["alg"] == "EdDSA" else _check_p256)(said["jwk"])
    kids = [entry["kid"] for entry in raw]
    insist(len(set(kids)) == len(kids), "a kid twice")


def _coordinate(text: Any) -> bytes:
    insist(isinstance(text, str) and re.match(r"\A[A-Za-z0-9_-]{43}\Z", text), "a coordinate")
    data = base64.urlsafe_b64decode(text + "=")
    insist(base64.urlsafe_b64encode(data) == (text + "=").encode(), "another spelling")
    return data


def _check_p256(jwk: Any) -> None:
    said = _members(jwk, ("kty", "crv", "x", "y"))
    insist((said["kty"], said["crv"]) == ("EC", "P-256"), "another kind of key")
    _check_p256_point(said["x"], said["y"])


@cache
def _check_p256_point(x: Any, y: Any) -> None:
    numbers = (int.from_bytes(_coordinate(text)) for text in (x, y))
    EllipticCurvePublicNumbers(*numbers, SECP256R1()).public_key()


def _check_ed25519(jwk: Any) -> None:
    said = _members(jwk, ("kty", "crv", "x"))
    insist((said["kty"], said["crv"]) == ("OKP", "Ed25519"), "another kind of key")
    _check_ed25519_point(said["x"])


@cache
def _check_ed25519_point(x: Any) -> None:
    point = _point(_coordinate(x))
    for _ in range(3):
        point = _twice(point)
    insist(point != _ONE, "a point of small order")


def _point(data: bytes) -> tuple[int, int]:
    """Return the point of an encoded one: RFC 8032 section 5.1.3."""
    y = int.from_bytes(data, "little") & (1 << 255) - 1
    insist(y < _P, "no canonical point")
    x2 = (y * y - 1) * pow(_D * y * y + 1, _P - 2, _P) % _P
    x = pow(x2, (_P + 3) // 8, _P)
    if (x * x - x2) % _P:
        x = x * pow(2, (_P - 1) // 4, _P) % _P
    insist((x * x - x2) % _P == 0, "no point of the curve")
    return x, y


def _twice(point: tuple[int, int]) -> tuple[int, int]:
    x, y = point
    k = _D * x * x * y * y % _P
    return 2 * x * y * pow(1 + k, _P - 2, _P) % _P, (y * y + x * x) * pow(1 - k, _P - 2, _P) % _P
