"""What can be asked of the running agent at the vehicle: one JSON object, one verb.

    {"verb": "pause", "grant": "gr_1", "for_s": 7200}     both may be left out: all grants, until
                                                          somebody lifts it
    {"verb": "resume", "grant": "gr_1"}                   without `grant`: the stop of all grants
    {"verb": "status"}
    {"verb": "explain", "path": "Vehicle.Speed"}
    {"verb": "restrict", "token": "<compact JWS>"}        signed by the owner, verified by the agent

Rules:
 * Strict JSON; an unknown verb or member, or a value of another type, refuses what was asked.
 * A line becomes a typed value here and nowhere else; the command line writes what is read here.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.core import strictjson
from agent.core.strictjson import shown
from agent.errors import AskRefused

MAX_ASK_BYTES = 128 * 1024  # A signed document of 64 KiB is 88 KiB as a JWS.
MAX_STOP_S = 366 * 86_400  # Longer is meant to be for good: leave `for_s` out.

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_PATH = re.compile(r"[A-Za-z0-9_.]{1,256}", re.ASCII)
_TOKEN = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
_HINT = "docs/operate.md lists what can be asked"


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop collecting and publishing at once.

    Attributes:
        grant: The only grant that is stopped, or None: all of them, and those to come.
        for_s: How long, or None: until somebody resumes.
    """

    grant: str | None = None
    for_s: int | None = None


@dataclass(frozen=True, slots=True)
class Resume:
    """Lift a stop: that of one grant, or the stop of all grants."""

    grant: str | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """Tell how the agent is."""


@dataclass(frozen=True, slots=True)
class Explain:
    """Tell why one VSS path leaves the vehicle, or does not."""

    path: str


@dataclass(frozen=True, slots=True)
class Restrict:
    """Take a restrict document that was carried to the vehicle; a compact JWS."""

    token: str


Verb = Pause | Resume | Status | Explain | Restrict

_NAMES: dict[type, str] = {
    Pause: "pause",
    Resume: "resume",
    Status: "status",
    Explain: "explain",
    Restrict: "restrict",
}


def name_of(verb: Verb) -> str:
    """Return the verb's name on the wire."""
    return _NAMES[type(verb)]


def to_line(verb: Verb) -> bytes:
    """Return what is sent over the socket, line end included."""
    members: dict[str, Any] = {"verb": name_of(verb)}
    match verb:
        case Pause(grant, for_s):
            members |= {"grant": grant, "for_s": for_s}
        case Resume(grant):
            members |= {"grant": grant}
        case Explain(path):
            members |= {"path": path}
        case Restrict(token):
            members |= {"token": token}
    given = {name: value for name, value in members.items() if value is not None}
    return json.dumps(given, ensure_ascii=True).encode() + b"\n"


def parse_ask(line: bytes) -> Verb:
    """Return what a line asks for.

    Args:
        line: Without its end.

    Raises:
        AskRefused: For anything else than one of the verbs, complete and with nothing left over.
    """
    try:
        raw = strictjson.parse(line, max_bytes=MAX_ASK_BYTES, max_depth=1)
    except strictjson.StrictJsonError as exc:
        raise AskRefused(f"what was asked is not strict JSON: {exc}", hint=_HINT) from exc
    if not isinstance(raw, dict):
        raise AskRefused("what was asked is not a JSON object", hint=_HINT)
    name = raw.pop("verb", None)
    parse = _PARSERS.get(name) if isinstance(name, str) else None
    if parse is None:
        found = "missing" if name is None else f"unknown: {shown(str(name))}"
        expected = ", ".join(_NAMES.values())
        raise AskRefused(f"the verb is {found}, expected {expected}", hint=_HINT)
    verb = parse(raw)
    if raw:
        raise AskRefused(f"{name}: unknown member {shown(next(iter(raw)))}", hint=_HINT)
    return verb


def _pause(raw: dict[str, Any]) -> Pause:
    grant = _text(raw, "grant", _ID) if "grant" in raw else None
    for_s = raw.pop("for_s", None)
    if for_s is not None and (
        isinstance(for_s, bool) or not isinstance(for_s, int) or not 1 <= for_s <= MAX_STOP_S
    ):
        raise AskRefused(f"for_s must be a whole number from 1 to {MAX_STOP_S}", hint=_HINT)
    return Pause(grant, for_s)


def _resume(raw: dict[str, Any]) -> Resume:
    return Resume(_text(raw, "grant", _ID) if "grant" in raw else None)


def _explain(raw: dict[str, Any]) -> Explain:
    return Explain(_text(raw, "path", _PATH))


def _restrict(raw: dict[str, Any]) -> Restrict:
    return Restrict(_text(raw, "token", _TOKEN))


_PARSERS: Mapping[str, Callable[[dict[str, Any]], Verb]] = {
    "pause": _pause,
    "resume": _resume,
    "status": lambda _: Status(),
    "explain": _explain,
    "restrict": _restrict,
}


def _text(raw: dict[str, Any], name: str, form: re.Pattern[str]) -> str:
    value = raw.pop(name, None)
    if not isinstance(value, str) or not form.fullmatch(value):
        raise AskRefused(f"{name} must be text that matches {form.pattern}", hint=_HINT)
    return value
