"""Lines of the control socket."""

import json
from random import Random

from agent.core.ask import MAX_STOP_S, parse_ask, to_line
from agent.errors import AskRefused
from tests.fuzz.mutate import SCALARS, mutate_tree, spoiled, times
from tests.fuzz.target import ACCEPTED, Target, Verdict, insist

_LINES = (
    {"verb": "pause"},
    {"verb": "pause", "grant": "gr_1", "for_s": 7200},
    {"verb": "pause", "for_s": 1},
    {"verb": "resume"},
    {"verb": "resume", "grant": "gr_1"},
    {"verb": "status"},
    {"verb": "explain", "path": "Vehicle.Speed"},
    {"verb": "restrict", "token": "eyJhIjoxfQ.e30.c2ln"},
)
_NAMES = ("verb", "grant", "for_s", "path", "token", "uid")
_POOL = (
    *("pause", "resume", "status", "explain", "restrict", "gr_1", "*", "Vehicle.Speed", "a.b.c"),
    *(1, 60, MAX_STOP_S, MAX_STOP_S + 1, *SCALARS),
)
_MEMBERS = {
    "pause": {"grant", "for_s"},
    "resume": {"grant"},
    "status": set(),
    "explain": {"path"},
    "restrict": {"token"},
}


def _make(rng: Random) -> bytes:
    asked = dict(rng.choice(_LINES))
    for _ in range(times(rng)):
        mutate_tree(rng, asked, _POOL, _NAMES)
    line = json.dumps(asked, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return spoiled(rng, line) if rng.random() < 0.1 else line


def _judge(line: bytes) -> Verdict:
    try:
        verb = parse_ask(line)
    except AskRefused as exc:
        return Verdict(not exc.message.startswith("what was asked is not"), "refused")
    said = json.loads(line)
    name = said.pop("verb")
    insist(set(said) <= _MEMBERS[name], "a member that the verb has not")
    given = {key: value for key, value in said.items() if value is not None}
    insist(json.loads(to_line(verb)) == {"verb": name, **given}, "another verb than was asked")
    for key, value in given.items():
        if key == "for_s":
            insist(type(value) is int and 1 <= value <= MAX_STOP_S, "a time that is none")
        else:
            insist(type(value) is str and value.isascii() and value.isprintable(), "odd text")
    return Verdict(True, ACCEPTED)


TARGETS = (Target("control line", _make, _judge, "strict JSON", weight=2.1, least_past=0.7),)
