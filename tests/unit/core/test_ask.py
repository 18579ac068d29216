"""What can be asked of the running agent: what is written is read, and nothing else."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core import ask
from agent.core.ask import Explain, Pause, Restrict, Resume, Status, Verb, parse_ask, to_line
from agent.errors import AskRefused

EVERY: list[Verb] = [
    Pause(),
    Pause("gr_1"),
    Pause(None, 1),
    Pause("gr_1", ask.MAX_STOP_S),
    Resume(),
    Resume("gr-2"),
    Status(),
    Explain("Vehicle.Cabin.Door.Row1.DriverSide.IsOpen"),
    Restrict("eyJh.eyJi.c2ln-_"),
]

REFUSED: dict[str, Any] = {
    "nothing": b"",
    "no JSON": b"pause",
    "two objects": b'{"verb":"status"} {}',
    "a list": b'["status"]',
    "text": b'"status"',
    "a name twice": b'{"verb":"status","verb":"pause"}',
    "no verb": b"{}",
    "another verb": b'{"verb":"grant"}',
    "a verb in capitals": b'{"verb":"PAUSE"}',
    "a verb that is no text": b'{"verb":1}',
    "a verb that is a list": b'{"verb":["pause"]}',
    "a member too many": b'{"verb":"status","path":"Vehicle.Speed"}',
    "a member of another verb": b'{"verb":"resume","for_s":5}',
    "no path": b'{"verb":"explain"}',
    "an empty path": b'{"verb":"explain","path":""}',
    "a path with a slash": b'{"verb":"explain","path":"Vehicle/Speed"}',
    "a long path": json.dumps({"verb": "explain", "path": "a" * 257}).encode(),
    "a grant with a space": b'{"verb":"pause","grant":"gr 1"}',
    "a grant with a line end": b'{"verb":"pause","grant":"gr\\n"}',
    "a grant that is null": b'{"verb":"pause","grant":null}',
    "a grant that is every grant": b'{"verb":"pause","grant":"*"}',
    "a stop of no length": b'{"verb":"pause","for_s":0}',
    "a stop that ended before it began": b'{"verb":"pause","for_s":-1}',
    "half a second": b'{"verb":"pause","for_s":0.5}',
    "true seconds": b'{"verb":"pause","for_s":true}',
    "seconds as text": b'{"verb":"pause","for_s":"60"}',
    "a stop of years": json.dumps({"verb": "pause", "for_s": ask.MAX_STOP_S + 1}).encode(),
    "no token": b'{"verb":"restrict"}',
    "a token with a quote": b'{"verb":"restrict","token":"a\\"b"}',
    "bytes that are no UTF-8": b'{"verb":"\xff"}',
    "too long": b'{"verb":"status"' + b" " * ask.MAX_ASK_BYTES + b"}",
}


@pytest.mark.parametrize("verb", EVERY, ids=repr)
def test_what_is_written_is_read_again(verb: Verb) -> None:
    line = to_line(verb)

    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert parse_ask(line[:-1]) == verb


@pytest.mark.parametrize("line", REFUSED.values(), ids=REFUSED.keys())
def test_anything_else_is_refused_with_advice(line: bytes) -> None:
    with pytest.raises(AskRefused) as refused:
        parse_ask(line)

    assert refused.value.hint
    assert "\n" not in refused.value.message


@given(st.one_of(st.binary(max_size=80), st.from_regex(rb'\{"verb": ?"(pause|explain)".{0,30}\}')))
def test_no_bytes_raise_anything_else(line: bytes) -> None:
    try:
        parse_ask(line)
    except AskRefused:
        return
