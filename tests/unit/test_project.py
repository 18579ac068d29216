"""The project's own files agree: locks, example configuration, commands, versions, wheel."""

import importlib
import itertools
import json
import pkgutil
import re
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from pydantic import BaseModel

import agent.cli
from agent.cli.main import cli, run
from agent.config import Config, load_config
from tests.pki import Pki

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKS = ["runtime.txt", "dev.txt", "vm.txt"]
PIN = re.compile(r"(?P<name>[a-z0-9.-]+)==(?P<version>[0-9][^ ;]*)(?: ; (?P<marker>[^\\]+))? \\")
HASH = re.compile(r" {4}--hash=sha256:[0-9a-f]{64}( \\)?")
EXAMPLE = ROOT / "config" / "agent.toml"
NEEDED = object()
SUPPORTED = ["3.11", "3.12", "3.13"]


def pins(lock: str) -> dict[tuple[str, str | None], tuple[str, int]]:
    """(name, marker) → (version, how many hashes); anything else in the file is an error."""
    found: dict[tuple[str, str | None], tuple[str, int]] = {}
    last: tuple[str, str | None] | None = None
    for line in (ROOT / "requirements" / lock).read_text(encoding="utf-8").splitlines():
        if pin := PIN.fullmatch(line):
            last = (pin["name"], pin["marker"])
            assert last not in found
            found[last] = (pin["version"], 0)
        else:
            assert HASH.fullmatch(line), f"{lock}: neither a pin nor a hash: {line}"
            assert last is not None
            found[last] = (found[last][0], found[last][1] + 1)
    return found


def asked(*groups: str) -> list[Requirement]:
    project = PYPROJECT["project"]
    named = {
        "": project["dependencies"],
        **project["optional-dependencies"],
        **PYPROJECT["dependency-groups"],
        "build": PYPROJECT["build-system"]["requires"],
    }
    return [Requirement(line) for group in groups for line in named[group]]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_pins_with_hashes_and_nothing_else(lock: str) -> None:
    """No address, no option, no comment; each pin has a hash."""
    assert all(hashes for _, hashes in pins(lock).values())


def test_the_vehicle_gets_the_very_versions_that_were_tested() -> None:
    assert pins("runtime.txt").items() <= pins("vm.txt").items() <= pins("dev.txt").items()


@pytest.mark.parametrize(
    ("lock", "groups"),
    [
        ("runtime.txt", [""]),
        ("vm.txt", ["", "vm"]),
        ("dev.txt", ["", "demo", "report", "udp", "dev", "vm", "build"]),
    ],
)
def test_a_lock_holds_what_the_project_asks_for(lock: str, groups: list[str]) -> None:
    """Whoever changes pyproject.toml runs `make lock`."""
    locked: dict[str, list[str]] = {}
    for (name, _), (pinned, _) in pins(lock).items():
        locked.setdefault(name, []).append(pinned)

    for requirement in asked(*groups):
        versions = locked.get(canonicalize_name(requirement.name), [])
        assert versions, f"{requirement} is not in {lock}"
        assert all(requirement.specifier.contains(pinned) for pinned in versions)


def keys_of(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Every key of a section and below → its default; a required one is its own marker."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        section = next(
            (
                part
                for part in (field.annotation, *getattr(field.annotation, "__args__", ()))
                if isinstance(part, type) and issubclass(part, BaseModel)
            ),
            None,
        )
        if section is not None:
            found |= keys_of(section, f"{prefix}{name}.")
        else:
            found[prefix + name] = NEEDED if field.is_required() else field.default
    return found


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in table.items():
        if name == "bus" and isinstance(value, list):
            found |= flat(value[0], "bus.")
        elif isinstance(value, dict) and name not in (
            "options",
            "when",
            "class_max_bytes",
            "class_max_age_s",
        ):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def test_the_example_configuration_shows_every_key_with_its_default() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    active = flat(tomllib.loads(text))
    offered = flat(tomllib.loads(re.sub(r"(?m)^# (\w+ = )", r"\1", text)))
    keys = keys_of(Config)

    assert offered.keys() == keys.keys()
    needed = {key for key, default in keys.items() if default in (NEEDED, None)}
    assert {
        key: type(keys[key])(value) if isinstance(keys[key], (Path, tuple)) else value
        for key, value in active.items()
        if key not in needed
    } == {key: default for key, default in keys.items() if key not in needed}


def test_the_example_configuration_explains_every_key() -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()

    bare = [
        line
        for before, line in itertools.pairwise(lines)
        if re.match(r"\w+ = ", line) and not before.startswith("#")
    ]

    assert bare == []


def test_the_example_configuration_works_once_its_files_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    config = tmp_path / "agent.toml"
    config.write_text(
        text.replace("/etc/consentry/", "").replace("/var/lib/consentry", "state"),
        encoding="utf-8",
    )
    files = Pki(tmp_path / "pki").vehicle(load_config(config).vehicle.id)
    for name, source in {
        "broker-ca.pem": files.ca,
        "vehicle.pem": files.certificate,
        "vehicle.key": files.private_key,
        "vehicle.dbc": ROOT / "dbc" / "demo_vehicle.dbc",
        "vehicle.vspec": ROOT / "config" / "vehicles" / "demo_vehicle.vspec",
    }.items():
        (tmp_path / name).write_bytes(source.read_bytes())
    (tmp_path / "vehicle.key").chmod(0o600)
    made = [
        ["keys", "new", "device", "dev-1", "--out", str(tmp_path / "device.jwk")],
        ["keys", "new", "policy", "pol-1", "--out", str(tmp_path / "policy.jwk")],
        ["keys", "trust", "--out", str(tmp_path / "trust.json"), str(tmp_path / "policy.jwk")],
    ]
    assert [run(line) for line in made] == [0, 0, 0]
    capsys.readouterr()

    status = run(["check", "--strict", "--json", "--config", str(config)])

    assert status == 0
    assert json.loads(capsys.readouterr().out)["buses"] == ["powertrain"]


def test_every_command_is_listed_and_every_listed_one_starts() -> None:
    listed = cli.list_commands(None)  # type: ignore[arg-type] # it needs no context
    modules = {
        found.name
        for found in pkgutil.iter_modules(agent.cli.__path__)
        if hasattr(importlib.import_module(f"agent.cli.{found.name}"), "command")
    }

    assert modules == set(listed)
    for name in listed:
        result = CliRunner().invoke(cli, [name, "--help"])
        assert (name, result.exit_code) == (name, 0)


def test_versions_agree() -> None:
    """What is installed, what pyproject.toml says, what the command prints."""
    said = CliRunner().invoke(cli, ["--version"]).output.split()[-1]

    assert said == version("consentry") == PYPROJECT["project"]["version"]


def test_the_supported_pythons_are_the_same_everywhere() -> None:
    project = PYPROJECT["project"]
    named = [line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line]
    allowed = SpecifierSet(project["requires-python"])

    assert named == SUPPORTED
    assert [minor for minor in range(8, 20) if f"3.{minor}" in allowed] == [11, 12, 13]
    assert PYPROJECT["tool"]["mypy"]["python_version"] == SUPPORTED[0]
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py311"
    matrix = (ROOT / "scripts" / "test-matrix").read_text(encoding="utf-8")
    assert f"for version in {' '.join(SUPPORTED)}; do" in matrix


def test_every_make_target_in_the_documents_exists_and_is_listed_by_help() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?m)^([a-z-]+):.*## ", makefile))
    phony = re.search(r"(?m)^\.PHONY: (.*)$", makefile)
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    said = {
        target
        for path in documents
        for target in re.findall(
            r"(?:^|`|\$ )make ([a-z][a-z-]*)", path.read_text(encoding="utf-8"), re.MULTILINE
        )
    }

    assert phony is not None
    assert set(phony[1].split()) == targets
    assert {"demo", "test"} <= said <= targets


def test_a_wheel_carries_the_files_that_the_agent_needs(tmp_path: Path) -> None:
    built = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))

    with zipfile.ZipFile(built) as wheel:
        names = set(wheel.namelist())
        shipped = {
            f"agent/data/{path.relative_to(ROOT)}"
            for folder in ("config", "dbc", "demo")
            for path in (ROOT / folder).rglob("*")
            if path.is_file()
        }
        modules = {str(path.relative_to(ROOT)) for path in (ROOT / "agent").rglob("*.py")}
    assert shipped | modules | {"agent/py.typed"} <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"agent"}
