"""KUKSA's mapping format and ours, and what a person is told of a wrong file."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.mapping import Choice, Entry, IsoTp, parse_mapping
from agent.errors import MappingError


def one(text: str) -> Entry:
    """Parse a mapping with one entry."""
    (entry,) = parse_mapping(text.encode(), name="m.vspec").entries
    return entry


def leaf(keys: str) -> Entry:
    return one(f"Vehicle.Speed:\n  type: sensor\n  datatype: float\n  dbc2vss: {{{keys}}}\n")


@pytest.mark.captures
@pytest.mark.parametrize("name", ["dbc_overlay.4.2.vspec", "vss_dbc.4.2.json"])
def test_kuksas_own_files_load_unchanged(captures: Path, name: str) -> None:
    mapping = parse_mapping((captures / "tesla_model3" / name).read_bytes(), name=name)

    assert len(mapping.entries) == 35
    assert mapping.warnings == ()
    speed = next(entry for entry in mapping.entries if entry.path == "Vehicle.Speed")
    assert (speed.signal, speed.interval_ns, speed.on_change) == ("DI_uiSpeed", 10**8, False)


def test_a_tree_gives_its_leaves_their_units() -> None:
    tree = {
        "Vehicle": {
            "type": "branch",
            "children": {
                "TraveledDistance": {
                    "type": "sensor", "datatype": "float", "unit": "km",
                    "dbc": {"signal": "Odo", "interval_ms": 0},
                },
                "Speed": {"type": "sensor", "datatype": "float", "unit": "km/h"},
            },
        }
    }  # fmt: skip

    entry = one(json.dumps(tree))

    assert (entry.path, entry.unit, entry.interval_ns) == ("Vehicle.TraveledDistance", "km", 0)


@pytest.mark.parametrize(
    ("keys", "interval_ms", "on_change"),
    [
        ("signal: S", 1000, False),
        ("signal: S, on_change: true", 0, True),
        ("signal: S, on_change: false", 1000, False),
        ("signal: S, interval_ms: 250", 250, False),
        ("signal: S, interval_ms: 250, on_change: true", 250, True),
        ("signal: S, interval_ms: 0", 0, False),
    ],
)
def test_defaults_are_kuksas(keys: str, interval_ms: int, on_change: bool) -> None:  # noqa: FBT001
    entry = leaf(keys)

    assert (entry.interval_ns, entry.on_change) == (interval_ms * 10**6, on_change)


def test_our_keys_are_read() -> None:
    entry = leaf("signal: M.S, bus: body, source: 0x17, valid: [0, 250.5]")

    assert (entry.bus, entry.source, entry.valid) == ("body", 0x17, (0, 250.5))


@pytest.mark.parametrize(
    ("keys", "isotp"),
    [
        ("", None),
        (", transport: isotp", IsoTp(with_length=False)),
        (", transport: isotp-length, address: 0xF1", IsoTp(with_length=True, address=0xF1)),
    ],
)
def test_transport_says_how_the_message_comes(keys: str, isotp: IsoTp | None) -> None:
    assert leaf(f"signal: S{keys}").isotp == isotp


def test_math_is_compiled_and_choices_are_values() -> None:
    assert leaf("signal: S, transform: {math: 'x*2'}").math(4) == 8  # type: ignore[misc] # set
    entry = leaf("signal: S, transform: {mapping: [{from: ON, to: true}, {from: 2, to: false}]}")
    assert entry.choices == (Choice("ON", True), Choice(2, False))


def test_a_choice_called_on_or_no_stays_text() -> None:
    entry = leaf("signal: S, transform: {mapping: [{from: on, to: No}]}")

    assert entry.choices == (Choice("on", "No"),)


def test_multiplexer_conditions_are_read() -> None:
    entry = leaf("signal: S, multiplexer: [{signal: Mux, value: 3}]")

    assert entry.multiplexer == (("Mux", 3),)


def test_an_unknown_key_is_a_warning_that_names_it() -> None:
    text = b"Vehicle.Speed: {type: sensor, dbc2vss: {signal: S, interval: 5}}"

    mapping = parse_mapping(text, name="m.vspec")

    assert len(mapping.entries) == 1
    assert "interval" in mapping.warnings[0]


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ("interval_ms: 5", "signal"),
        ("signal: ''", "signal"),
        ("signal: S, interval_ms: -1", "interval_ms"),
        ("signal: S, transport: tp20", "transport"),
        ("signal: S, transport: [isotp]", "transport"),
        ("signal: S, address: 1", "address"),
        ("signal: S, transport: isotp, address: 256", "address"),
        ("signal: S, interval_ms: 1.5", "interval_ms"),
        ("signal: S, interval_ms: true", "interval_ms"),
        ("signal: S, on_change: 1", "on_change"),
        ("signal: S, transform: {}", "transform"),
        ("signal: S, transform: {math: x, mapping: []}", "transform"),
        ("signal: S, transform: {math: 'import os'}", "transform.math"),
        ("signal: S, transform: {math: 3}", "transform.math"),
        ("signal: S, transform: {mapping: {}}", "transform.mapping"),
        ("signal: S, transform: {mapping: [{from: 1}]}", "transform.mapping"),
        ("signal: S, transform: {mapping: [{from: 1, to: .nan}]}", "transform.mapping"),
        ("signal: S, valid: [3]", "valid"),
        ("signal: S, valid: [3, 1]", "valid"),
        ("signal: S, source: 254", "source"),
        ("signal: S, bus: 3", "bus"),
        ("signal: S, multiplexer: [{signal: M}]", "multiplexer"),
    ],
)
def test_a_wrong_value_refuses_the_file_and_names_path_and_key(keys: str, named: str) -> None:
    with pytest.raises(MappingError) as caught:
        leaf(keys)

    assert f"Vehicle.Speed: {named}: " in caught.value.message


def test_all_faults_are_told_at_once() -> None:
    text = "A.B: {type: sensor, dbc: {signal: 1}}\nA.C: {type: sensor, dbc: {signal: S, bus: 1}}\n"

    with pytest.raises(MappingError) as caught:
        parse_mapping(text.encode(), name="m.vspec")

    assert "A.B" in caught.value.message
    assert "A.C" in caught.value.message


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"Vehicle.Speed: {", 1),
        (b"a: 1\na: 2\n", 1),
        (b"a: &x [1]\nb: *x\n", None),
        (b'{"a": 1, "a": 2}', None),
        (b'{"a": \n\n nope}', 3),
        (b"\xff\xfe\x00", 1),
        (b"just text", None),
        (b"- a\n- b\n", None),
        (b"", None),
        (b"a: !!python/object/apply:os.system [ls]", 1),
    ],
)
def test_what_is_no_mapping_is_refused_with_its_place(data: bytes, line: int | None) -> None:
    with pytest.raises(MappingError) as caught:
        parse_mapping(data, name="m.vspec")

    assert caught.value.file == "m.vspec"
    assert caught.value.line == line


@pytest.mark.parametrize("value", ["!!int ''", "!!bool x", "!!timestamp x", "!!float ''", "!!x y"])
def test_a_tag_whose_value_does_not_fit_is_refused(value: str) -> None:
    for data in (value, f"Vehicle.Speed: {{type: sensor, dbc: {{signal: {value}}}}}"):
        with pytest.raises(MappingError, match="not YAML"):
            parse_mapping(data.encode(), name="x.vspec")


def test_the_same_path_twice_is_refused() -> None:
    tree = b'{"Vehicle": {"children": {"A": {"type": "sensor", "dbc": {"signal": "S"}}}},'
    tree += b' "Vehicle.A": {"type": "sensor", "dbc": {"signal": "T"}}}'

    with pytest.raises(MappingError, match="twice"):
        parse_mapping(tree, name="m.json")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_raise_anything_but_a_mapping_error(data: bytes) -> None:
    try:
        parse_mapping(data, name="m")
    except MappingError as exc:
        assert exc.message.startswith("m")  # noqa: PT017 - either outcome is right
