"""Each entry has exactly one signal, or a reason why not that a person can act on."""

import pytest

from agent.core.binding import Binding, bind, merge
from agent.core.dbc import parse_dbc
from agent.core.mapping import parse_mapping
from tests import car

TWO = b"""VERSION ""
BU_: E
BO_ 1 A: 8 E
 SG_ Speed : 0|16@1+ (1,0) [0|0] "mph" E
 SG_ Mode : 16|4@1+ (1,0) [0|0] "" E
BO_ 2 B: 8 E
 SG_ Speed : 0|16@1+ (1,0) [0|0] "km/h" E
VAL_ 1 Mode 1 "ECO" ;
"""


def bound(leaf: str, *, dbcs: tuple[bytes, ...] = (TWO,), path: str = "Vehicle.Speed") -> Binding:
    mapping = parse_mapping(f"{path}: {{type: sensor, {leaf}}}".encode(), name="m")
    files = [parse_dbc(data, name=f"{index}.dbc") for index, data in enumerate(dbcs)]
    return bind(mapping, files, car.catalogue(), bus=None, any_bus=True)


def test_a_full_name_binds_its_signal() -> None:
    result = bound("dbc2vss: {signal: B.Speed}")

    assert [(item.message, item.can_id) for item in result.bound] == [("B", 2)]
    assert result.disabled == {}


def test_an_ambiguous_name_disables_the_entry_and_names_the_candidates() -> None:
    result = bound("dbc2vss: {signal: Speed}")

    assert result.bound == ()
    assert "A.Speed" in result.warnings[0]
    assert "B.Speed" in result.warnings[0]


def test_a_missing_name_disables_the_entry_and_names_what_is_close() -> None:
    result = bound("dbc2vss: {signal: B.Spede}")

    assert result.bound == ()
    assert "B.Speed" in result.disabled["Vehicle.Speed"]


def test_the_same_signal_from_two_files_is_one_signal() -> None:
    assert len(bound("dbc2vss: {signal: B.Speed}", dbcs=(TWO, TWO)).bound) == 1


def test_the_same_name_with_another_layout_is_ambiguous() -> None:
    other = TWO.replace(b"2 B: 8 E\n SG_ Speed : 0|16", b"2 B: 8 E\n SG_ Speed : 8|16")

    assert bound("dbc2vss: {signal: B.Speed}", dbcs=(TWO, other)).bound == ()


def test_a_path_outside_the_catalogue_is_counted_not_bound() -> None:
    result = bound("dbc2vss: {signal: B.Speed}", path="Vehicle.Not.There")

    assert (result.bound, result.outside) == ((), ("Vehicle.Not.There",))


def test_the_leafs_unit_is_converted_and_the_dbcs_unit_only_compared() -> None:
    result = bound("unit: mph, dbc2vss: {signal: B.Speed}")

    assert result.bound[0].conversion.factor == pytest.approx(1.609344)
    assert "km/h" in result.warnings[0]


def test_a_unit_of_another_quantity_disables_the_entry() -> None:
    assert "degrees" in bound("unit: degrees, dbc2vss: {signal: B.Speed}").disabled["Vehicle.Speed"]


def test_a_unit_on_a_path_without_one_disables_the_entry() -> None:
    result = bound("unit: V, dbc2vss: {signal: A.Mode}", path="Vehicle.Diagnostics.DTCCount")

    assert "catalogue has none" in result.disabled["Vehicle.Diagnostics.DTCCount"]


def test_no_warning_where_the_units_agree() -> None:
    assert bound("dbc2vss: {signal: B.Speed}").warnings == ()
    assert bound("unit: mph, dbc2vss: {signal: A.Speed}").warnings == ()


@pytest.mark.parametrize(
    ("leaf", "path"),
    [
        ("dbc2vss: {signal: B.Speed}", "Vehicle.VehicleIdentification.Brand"),
        ("dbc2vss: {signal: A.Mode, transform: {math: x}}", "Vehicle.VehicleIdentification.Brand"),
        ("dbc2vss: {signal: A.Mode}", "Vehicle.Diagnostics.DTCList"),
        ("dbc2vss: {signal: B.Speed, source: 3}", "Vehicle.Speed"),
        ("dbc2vss: {signal: B.Speed, multiplexer: [{signal: Mode, value: 1}]}", "Vehicle.Speed"),
        ("dbc2vss: {signal: A.Mode, transform: {mapping: [{from: ECO, to: x}]}}", "Vehicle.Speed"),
        (
            "dbc2vss: {signal: A.Mode, transform: {mapping: [{from: ECO, to: true}]}}",
            "Vehicle.Speed",
        ),
        (
            "dbc2vss: {signal: A.Mode, transform: {mapping: [{from: ECO, to: 1}]}}",
            "Vehicle.Body.Hood.IsOpen",
        ),
    ],
)
def test_what_could_never_give_a_value_of_the_path_is_disabled(leaf: str, path: str) -> None:
    result = bound(leaf, path=path)

    assert result.bound == ()
    assert path in result.disabled


def test_an_entry_of_another_bus_is_left_to_that_bus() -> None:
    mapping = parse_mapping(
        b"Vehicle.Speed: {type: sensor, dbc2vss: {signal: B.Speed, bus: body}}", name="m"
    )
    dbcs = [parse_dbc(TWO, name="two.dbc")]

    results = {
        bus: bind(mapping, dbcs, car.catalogue(), bus=bus) for bus in ("body", "powertrain", None)
    }

    assert [len(result.bound) for result in results.values()] == [1, 0, 0]
    assert [item.bus for item in results["body"].bound] == ["body"]


def test_what_one_bus_lacks_and_another_has_is_no_warning() -> None:
    mapping = parse_mapping(b"Vehicle.Speed: {type: sensor, dbc: {signal: B.Speed}}", name="m")
    has = bind(mapping, [parse_dbc(TWO, name="two.dbc")], car.catalogue(), bus="a")
    lacks = bind(mapping, [], car.catalogue(), bus="b")

    both = merge([has, lacks])

    assert len(both.bound) == 1
    assert (both.disabled, both.warnings) == ({}, ())
    assert merge([lacks]).warnings != ()


def test_an_entry_of_a_bus_that_nobody_named_is_told() -> None:
    mapping = parse_mapping(
        b"Vehicle.Speed: {type: sensor, dbc2vss: {signal: B.Speed, bus: body}}", name="m"
    )
    dbcs = [parse_dbc(TWO, name="two.dbc")]

    named = [bind(mapping, dbcs, car.catalogue(), bus=bus) for bus in ("chassis", None)]
    result = merge(named)

    assert "only from the bus body" in result.disabled["Vehicle.Speed"]
    assert any("bus body" in warning for warning in result.warnings)
    body = bind(mapping, [], car.catalogue(), bus="body")
    assert "no DBC has" in merge([*named, body, *named]).disabled["Vehicle.Speed"]


def test_a_close_name_is_also_found_among_thousands() -> None:
    many = "".join(f' SG_ Other{n} : 0|1@1+ (1,0) [0|0] "" E\n' for n in range(2000))
    big = TWO + f"BO_ 3 C: 8 E\n{many}".encode()

    result = bound("dbc2vss: {signal: B.Spede}", dbcs=(big,))

    assert "B.Speed" in result.disabled["Vehicle.Speed"]


@pytest.mark.parametrize(("unit", "is_bound"), [("s", True), ("ms", False), ("", False)])
def test_only_seconds_stand_for_a_moment_in_text(unit: str, is_bound: bool) -> None:  # noqa: FBT001
    dbc = TWO.replace(b'"km/h"', f'"{unit}"'.encode())
    paths = ("Vehicle.CurrentLocation.Timestamp", "Vehicle.VehicleIdentification.VIN")

    results = [bound("dbc2vss: {signal: B.Speed}", dbcs=(dbc,), path=path) for path in paths]

    assert [bool(result.bound) for result in results] == [is_bound, False]
