import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.catalogue import parse_catalogue
from agent.errors import CatalogueError
from tests.policydoc import CATALOGUE_FILE, ROOT, catalogue, encoded

# Design section 4, copied by hand.
DEFAULTS_AND_CEILINGS: dict[str, tuple[bool, dict[str, Any], dict[str, Any]]] = {
    "static": (True, {"min_interval_s": 10}, {}),
    "condition": (True, {"min_interval_s": 10}, {}),
    "usage": (True, {"min_interval_s": 10}, {}),
    "cabin": (True, {"min_interval_s": 10}, {"min_interval_s": 1}),
    "driver_behaviour": (True, {"min_interval_s": 10}, {"min_interval_s": 0.1}),
    "location": (
        True,
        {"min_interval_s": 60, "grid_deg": 0.01},
        {"min_interval_s": 1, "precise": True},
    ),
    "identity": (True, {"once": True}, {"once": True}),
    "biometric": (False, {}, {}),
}


def test_where_a_vehicle_is_and_where_it_heads_belongs_to_the_class_location() -> None:
    shipped = parse_catalogue((ROOT / "config" / "catalogue.json").read_bytes())
    names = {"Latitude", "Longitude", "Altitude", "Heading"}

    classes = {
        scope.scope_class
        for scope in shipped.scopes.values()
        for signal in scope.signals
        if names & set(signal.path.split("."))
    }

    assert classes == {"location"}


def test_the_shipped_catalogue_has_23_scopes_and_117_paths() -> None:
    scopes = catalogue().scopes.values()

    assert len(scopes) == 23
    assert len({signal.path for scope in scopes for signal in scope.signals}) == 117
    assert sum(len(scope.signals) for scope in scopes) == 117


def test_the_shipped_catalogue_says_what_the_design_says() -> None:
    """Skipped where the design is not beside the checkout."""
    design: Path = ROOT.parent / "shared" / "design" / "scopes.json"
    if not design.is_file():
        pytest.skip("the design's scopes.json is not beside this checkout")
    theirs, ours = json.loads(design.read_bytes()), json.loads(CATALOGUE_FILE.read_bytes())

    del ours["classes"]

    assert ours == theirs


def test_the_classes_have_the_defaults_and_ceilings_of_the_design() -> None:
    classes = catalogue().classes

    assert {
        name: (c.grantable, dict(c.defaults), dict(c.ceilings)) for name, c in classes.items()
    } == DEFAULTS_AND_CEILINGS
    assert {scope.scope_class for scope in catalogue().scopes.values()} == set(classes)


def test_the_hash_is_that_of_the_exact_bytes() -> None:
    data = CATALOGUE_FILE.read_bytes()

    assert parse_catalogue(data).sha256 == hashlib.sha256(data).hexdigest()
    assert parse_catalogue(data + b"\n").sha256 == hashlib.sha256(data + b"\n").hexdigest()


def test_a_path_leads_to_its_scope_and_leaf() -> None:
    found = catalogue().signal("Vehicle.Speed")

    assert found is not None
    scope, signal = found
    assert (scope.name, signal.datatype, signal.unit) == ("read_speedometer", "float", "km/h")
    assert catalogue().signal("Vehicle.Nothing") is None
    assert catalogue().signal("Vehicle") is None


def test_the_catalogue_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        catalogue().scopes["read_all"] = None  # type: ignore[index]
    with pytest.raises(TypeError):
        catalogue().classes["location"].ceilings["min_interval_s"] = 0  # type: ignore[index]


def small() -> dict[str, Any]:
    return {
        "catalogue": "small",
        "version": 1,
        "vss": "6.0",
        "classes": {
            "usage": {
                "grantable": True,
                "defaults": {"min_interval_s": 10},
                "ceilings": {"min_interval_s": 1},
            }
        },
        "scopes": {
            "read_odometer": {
                "class": "usage",
                "signals": [{"path": "Vehicle.Speed", "datatype": "float", "unit": "km/h"}],
            }
        },
    }


def put(*place: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(root: Any) -> None:
        for step in place[:-1]:
            root = root[step]
        root[place[-1]] = value

    return change


USAGE = ("classes", "usage")
SCOPE = ("scopes", "read_odometer")
SIGNAL = (*SCOPE, "signals", 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("more", value=1), "unknown member 'more'"),
        (lambda root: root.pop("classes"), "classes is missing"),
        (put("version", value=0), "version: expected a positive integer"),
        (put("version", value=True), "version"),
        (put("version", value=1.0), "version"),
        (put("vss", value=6), "vss"),
        (put("catalogue", value=""), "catalogue: expected printable text"),
        (put("classes", value={}), "classes: expected an object that is not empty"),
        (put("scopes", value=[]), "scopes: expected an object"),
        (put("scopes", value={"a b": {}}), "scope 'a b'"),
        (put(*USAGE, value=3), "class usage: expected an object"),
        (put(*USAGE, "grantable", value=1), "grantable: expected true or false"),
        (put(*USAGE, "defaults", value={"quantum": 1}), "unknown member 'quantum'"),
        (put(*USAGE, "ceilings", value={"grid_deg": 1}), "unknown member 'grid_deg'"),
        (put(*USAGE, "defaults", value={"min_interval_s": True}), "expected a number"),
        (put(*USAGE, "defaults", value={"min_interval_s": "10"}), "expected a number"),
        (put(*USAGE, "defaults", value={"min_interval_s": -1}), "not negative"),
        (put(*USAGE, "defaults", value={"min_interval_s": 5, "grid_deg": 0}), "a positive number"),
        (put(*USAGE, "defaults", value={"once": 1}), "expected true or false"),
        (put(*USAGE, "defaults", value={"min_interval_s": 0.5}), "looser than its ceiling"),
        (put(*USAGE, "ceilings", value={"once": True}), "looser than its ceiling"),
        (put(*SCOPE, "class", value="secret"), "class: expected one of usage"),
        (put(*SCOPE, "class", value=["usage"]), "class: expected one of usage"),
        (put(*SCOPE, "signals", value=[]), "not empty"),
        (put(*SIGNAL, value=7), "a signal: expected an object"),
        (put(*SIGNAL, "path", value="Speed"), "VSS path"),
        (put(*SIGNAL, "path", value=None), "VSS path"),
        (put(*SIGNAL, "datatype", value="float32"), "VSS datatype"),
        (put(*SIGNAL, "datatype", value={}), "VSS datatype"),
        (put(*SIGNAL, "unit", value=""), "unit"),
        (put(*SIGNAL, "unit", value=1), "unit"),
        (
            lambda root: root["scopes"].update(other=root["scopes"]["read_odometer"]),
            "Vehicle.Speed is in two scopes, read_odometer and other",
        ),
    ],
)
def test_a_catalogue_with_a_fault_is_refused_with_its_place(
    change: Callable[[dict[str, Any]], object], says: str
) -> None:
    root = small()
    assert parse_catalogue(encoded(root)).id == "small"

    change(root)

    with pytest.raises(CatalogueError, match=says):
        parse_catalogue(encoded(root))


def test_a_name_that_stands_twice_is_refused() -> None:
    data = encoded(small()).replace(b'"vss"', b'"version":1,"vss"')

    with pytest.raises(CatalogueError, match="'version' stands twice"):
        parse_catalogue(data)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_catalogue_is_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    text = bytearray(encoded(small()))
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))

    try:
        parse_catalogue(bytes(text))
    except CatalogueError as exc:
        assert exc.message  # noqa: PT017  either outcome is right; any other exception fails
