import json
import re
import zlib
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core import ledgerevent
from agent.core.checkpoint import Checkpoint, sign_checkpoint
from agent.core.ledger import (
    Entry,
    Head,
    Replay,
    encode_head,
    encode_line,
    encode_signed,
    parse_head,
    parse_line,
)
from agent.core.ledgerevent import EVENTS, event
from agent.core.merkle import EMPTY_ROOT, Frontier, leaf_hash
from agent.errors import LedgerError
from tests.sealing import device, devices

T_NS = 1_795_468_800_999_999_999
DIGEST = "5a" * 32
# One value for each kind of fact, and values that no kind may take.
GOOD: dict[str, Any] = {
    "count": 42,
    "seconds": -7200,
    "id": "gr_01JD",
    "ids": ["gr_a", "gr_b"],
    "id → rev": {"gr_a": 1, "gr_b": 7},
    "word": "too-large",
    "hash": DIGEST,
    "hashes": [DIGEST],
    "check value": "9f3a01bc",
    "version": "0.1.0",
    "boot id": "0f3b6a52-1c1e-4a57-9d3e-7a2b5d1c9e00",
    "checkpoint": "A" * 60,
    "uid": 1000,
    "uid, `switch` or `timer`": "switch",
}
NEVER: list[Any] = [
    48.137,
    1.0,
    -0.0,
    float("nan"),
    True,
    None,
    2**53,
    "48.137",
    "48.137,11.575",
    "Vehicle.Speed",
    "vin WVWZZZ1JZXW000001",
    "a free text",
    b"bytes",
    ["x", 1.5],
    {"gr_a": 1.5},
    {"speed": None},
    [[1]],
]


def facts(name: str) -> dict[str, Any]:
    """Return allowed facts of an event."""
    return {
        fact: GOOD.get(kind.name, kind.name.split("`")[1] if "`" in kind.name else None)
        for fact, kind in EVENTS[name].items()
    }


def line(n: int, name: str = "stopped", **given: Any) -> bytes:
    return encode_line(n, event(T_NS, name, **(given or facts(name))))


@pytest.mark.parametrize("name", EVENTS)
def test_every_event_comes_back_from_its_line(name: str) -> None:
    assert parse_line(line(7, name)) == Entry(7, T_NS // 10**9, name, facts(name))


@pytest.mark.parametrize("name", EVENTS)
def test_no_event_takes_a_value_a_position_a_path_or_a_text(name: str) -> None:
    for fact, value in product(EVENTS[name], NEVER):
        with pytest.raises(ValueError, match=name):
            event(T_NS, name, **{**facts(name), fact: value})


@pytest.mark.parametrize("name", EVENTS)
def test_no_event_takes_a_fact_more_or_less(name: str) -> None:
    with pytest.raises(ValueError, match="at fault: 'speed'"):
        event(T_NS, name, **facts(name), speed=71)
    for fact in EVENTS[name]:
        with pytest.raises(ValueError, match=f"at fault: '{fact}'"):
            event(T_NS, name, **{other: v for other, v in facts(name).items() if other != fact})


def test_no_other_event_is_taken() -> None:
    with pytest.raises(ValueError, match="none of the ledger's"):
        event(T_NS, "speed")


def test_no_kind_of_fact_takes_a_fraction() -> None:
    kinds = {kind for kinds in EVENTS.values() for kind in kinds.values()}

    for kind in kinds:
        assert not any(kind.accepts(value) for value in NEVER), kind.name
    assert {kind.name for kind in kinds if "`" not in kind.name} == GOOD.keys() - {
        "uid, `switch` or `timer`"
    }


@given(st.from_regex(r"[a-z0-9.-]{1,40}", fullmatch=True))
def test_a_word_holds_no_digit(text: str) -> None:
    if ledgerevent.WORD.accepts(text):
        assert re.fullmatch("[a-z-]+", text)


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("version", "0.1.0"),
        ("version", "12.0.3rc1"),
        ("version", "0.2.0.dev4+gdf99a6d"),
        ("boot", "0f3b6a521c1e4a579d3e7a2b5d1c9e00"),
        ("boot", "unnamed-0f3b6a52-1c1e-4a57-9d3e-7a2b5d1c9e00"),
    ],
)
def test_whatever_names_a_version_or_a_boot_can_be_written(fact: str, value: str) -> None:
    line(1, "started", **{**facts("started"), fact: value})


def test_a_refusal_to_take_a_fact_does_not_repeat_its_value() -> None:
    with pytest.raises(ValueError, match="reason of stopped") as caught:
        event(T_NS, "stopped", reason="WVWZZZ1JZXW000001")

    assert "WVWZZZ" not in str(caught.value)


def test_a_line_has_one_spelling_that_any_reader_can_check() -> None:
    written = line(17, "policy-refused", sha256=DIGEST, reason="rollback")

    body = (
        '{"e":"policy-refused","f":{"reason":"rollback","sha256":"'
        + DIGEST
        + '"},"n":17,"t":1795468800}'
    )
    assert written == f'{{"c":"{zlib.crc32(body.encode()):08x}",{body[1:]}'.encode()
    assert list(json.loads(written)) == sorted(json.loads(written))


def test_equal_facts_in_another_order_are_equal_bytes() -> None:
    one = line(1, "policy-applied", **facts("policy-applied"))
    other = line(1, "policy-applied", **dict(reversed(facts("policy-applied").items())))

    assert one == other


def test_every_flipped_bit_of_a_line_is_noticed() -> None:
    written = line(3, "sealed")
    for bit in range(8 * len(written)):
        altered = bytearray(written)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(LedgerError):
            parse_line(bytes(altered))


def respelled(body: str) -> bytes:
    return f'{{"c":"{zlib.crc32(body.encode()):08x}",{body[1:]}'.encode()


@pytest.mark.parametrize(
    "body",
    [
        '{"e":"stopped","f":{"reason":"x"},"n":1,"t":1.0}',
        '{"e":"stopped","f":{"reason":"x"},"n":1.0,"t":1}',
        '{"e":"stopped","f":{"reason":"x"},"n":-1,"t":1}',
        '{"e":"stopped","f":{"reason":"x"},"n":true,"t":1}',
        '{"e":"stopped","f":{"reason":"x"},"n":1,"t":9007199254740992}',
        '{"e":"stopped","f":{"reason":"x"},"n":1,"t":NaN}',
        '{"e":"stopped","f":{"reason":"x"},"n":1, "t":1}',
        '{"e":"stopped","f":{"reason":"x"},"t":1,"n":1}',
        '{"e":"stopped","f":{"reason":"x","reason":"x"},"n":1,"t":1}',
        '{"e":"stopped","f":{"reason":"\\u0078"},"n":1,"t":1}',
        '{"e":"stopped","f":{"reason":"x"},"n":1,"t":1,"v":2}',
        '{"e":"stopped","f":{"reason":"x"},"n":1}',
        '{"e":"stopped","f":[],"n":1,"t":1}',
        '{"e":["stopped"],"f":{},"n":1,"t":1}',
        '{"e":"speed","f":{},"n":1,"t":1}',
        '{"e":"stopped","f":{"reason":71.3},"n":1,"t":1}',
        '{"e":"stopped","f":{"reason":"x"},"n":1,"t":1}}',
        '{"e":"' + "[" * 3000 + '","f":{},"n":1,"t":1}',
        '{"e":' + "[" * 100_000 + "}",
    ],
)
def test_another_spelling_or_shape_is_no_line(body: str) -> None:
    """Also with a check value that holds."""
    with pytest.raises(LedgerError):
        parse_line(respelled(body))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_our_words(data: bytes) -> None:
    for candidate in (data, b'{"c":"00000000",' + data, respelled("{" + data.hex() + "}")):
        with pytest.raises(LedgerError):
            parse_line(candidate)
        with pytest.raises(LedgerError):
            parse_head(candidate)


def test_a_head_comes_back_and_no_bit_of_it_can_be_flipped() -> None:
    head = Head(2, 17, bytes(range(32)))
    written = encode_head(head)

    assert parse_head(written) == head
    for bit in range(8 * len(written)):
        altered = bytearray(written)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(LedgerError):
            parse_head(bytes(altered))


@pytest.mark.parametrize(
    "body",
    [
        f'{{"g":-1,"n":1,"root":"{DIGEST}"}}',
        f'{{"g":1.0,"n":1,"root":"{DIGEST}"}}',
        f'{{"g":1,"n":"1","root":"{DIGEST}"}}',
        '{"g":1,"n":1,"root":"00"}',
        '{"g":1,"n":1,"root":1}',
        f'{{"g":1,"n":1,"root":"{DIGEST}","size":1}}',
    ],
)
def test_another_shape_is_no_head(body: str) -> None:
    with pytest.raises(LedgerError):
        parse_head(respelled(body))


def test_the_largest_count_is_the_largest_that_every_reader_keeps() -> None:
    body = '{"e":"stopped","f":{"reason":"x"},"n":9007199254740991,"t":9007199254740991}'

    assert parse_line(respelled(body)).n == 2**53 - 1


def test_what_was_read_is_held_against_a_head() -> None:
    lines = [begun(), line(1), line(2)]
    root = Frontier().extended(map(leaf_hash, lines)).root()
    replay = read(*lines, heads=(3,))

    replay.check_head(Head(0, 3, root))
    with pytest.raises(LedgerError, match="the head is of generation 1, the ledger of 0"):
        replay.check_head(Head(1, 3, root))
    with pytest.raises(LedgerError, match="it has 3 entries, expected at least 4"):
        replay.check_head(Head(0, 4, root))
    with pytest.raises(LedgerError, match="its first 3 entries are not those of the head"):
        replay.check_head(Head(0, 3, bytes(32)))


def begun() -> bytes:
    return line(0, "ledger-begun", generation=0, reason="first", size=0, root=EMPTY_ROOT.hex())


def read(*lines: bytes, **limits: Any) -> Replay:
    replay = Replay(**limits)
    for item in lines:
        replay.feed(item)
    return replay


def signed(lines: list[bytes], **other: Any) -> bytes:
    """Return the line of a checkpoint over lines."""
    tree = Frontier().extended(map(leaf_hash, lines))
    values = {"size": tree.size, "root": tree.root(), "generation": 0, **other}
    checkpoint = Checkpoint(vehicle="veh-0001", time_s=1, boot_id="b", **values)
    data = sign_checkpoint(checkpoint, device())
    return line(tree.size, "checkpoint", signed=encode_signed(data))


def segment(lines: list[bytes], **other: Any) -> bytes:
    """Return the first line of a segment that follows on lines."""
    tree = Frontier().extended(map(leaf_hash, lines))
    before = b"".join(item + b"\n" for item in lines)
    values = {
        "generation": 0,
        "bytes": len(before),
        "crc": f"{zlib.crc32(before):08x}",
        "peaks": [p.hex() for p in tree.peaks],
    }
    return line(tree.size, "segment-begun", **{**values, **other})


def test_a_ledger_reads_as_it_was_written() -> None:
    lines = [begun(), line(1), line(2, "sealed")]
    lines.append(signed(lines))

    replay = read(*lines, heads=(0, 3), devices=devices())

    tree = Frontier().extended(map(leaf_hash, lines))
    assert replay.tree == tree
    assert replay.retired == Frontier()
    assert replay.heads == {0: EMPTY_ROOT, 3: Frontier().extended(map(leaf_hash, lines[:3])).root()}
    assert replay.checkpoint is not None
    assert replay.checkpoint.size == replay.checkpoint_n == 3
    assert replay.last is not None
    assert replay.last.name == "sealed"


def test_reading_can_begin_at_any_segment() -> None:
    lines = [begun(), line(1), line(2)]
    later = [segment(lines), line(4), line(5)]

    replay = read(*later, heads=(3, 5))

    assert replay.tree == Frontier().extended(map(leaf_hash, lines + later))
    assert replay.retired == Frontier().extended(map(leaf_hash, lines))
    assert replay.heads.keys() == {3, 5}


def test_a_second_segment_follows_on_the_first() -> None:
    lines = [begun(), line(1), line(2)]
    replay = read(*lines)

    replay.begin_segment()
    replay.feed(segment(lines))

    assert replay.tree.size == 4


@pytest.mark.parametrize(
    "other",
    [
        {"generation": 1},
        {"bytes": 1},
        {"crc": "00000000"},
        {"peaks": [DIGEST, DIGEST]},
        {"peaks": [DIGEST]},
    ],
)
def test_a_segment_that_does_not_follow_is_refused(other: dict[str, Any]) -> None:
    lines = [begun(), line(1), line(2)]
    replay = read(*lines)
    replay.begin_segment()

    with pytest.raises(LedgerError, match="segment"):
        replay.feed(segment(lines, **other))


@pytest.mark.parametrize(
    "lines",
    [
        [line(0)],
        [line(1)],
        [line(1, "ledger-begun")],
        [line(0, "segment-begun")],
        [line(3, "segment-begun")],
        [begun(), begun()],
        [begun(), line(2)],
        [begun(), line(0)],
        [begun(), line(1), segment([begun(), line(1)])],
    ],
)
def test_a_line_out_of_its_place_is_refused(lines: list[bytes]) -> None:
    replay = read(*lines[:-1])

    with pytest.raises(LedgerError):
        replay.feed(lines[-1])


@pytest.mark.parametrize("other", [{"size": 1}, {"root": bytes(32)}, {"generation": 1}])
def test_a_checkpoint_over_something_else_is_refused(other: dict[str, Any]) -> None:
    lines = [begun(), line(1)]

    with pytest.raises(LedgerError, match="signed"):
        read(*lines, signed(lines, **other))


def test_a_checkpoint_of_a_stranger_is_refused_where_keys_are_known() -> None:
    lines = [begun(), line(1)]
    stranger = device(kid="dev-other").public_half

    read(*lines, signed(lines))
    with pytest.raises(LedgerError, match="checkpoint does not hold"):
        read(*lines, signed(lines), devices={stranger.kid: stranger})


@pytest.mark.parametrize("text", ["A" * 60, "-" * 61, "A" * 41])
def test_a_checkpoint_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(LedgerError, match="checkpoint does not hold"):
        read(begun(), line(1, "checkpoint", signed=text))
