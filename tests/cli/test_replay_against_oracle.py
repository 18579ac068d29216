"""`consentry replay` and the naive replay of `tests/replay_oracle.py` print the same rows."""

import gzip
import json
from collections.abc import Mapping
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml

from agent.cli.main import run
from tests.replay_oracle import Row, replay

ROOT = Path(__file__).resolve().parents[2]
CATALOGUE = ROOT / "config/catalogue.json"
TOLERANCE = 1e-9

Document = dict[str, Any]

_LOOSEST: dict[str, Document] = {
    "static": {"min_interval_s": 0},
    "usage": {"min_interval_s": 0},
    "condition": {"min_interval_s": 0},
    "cabin": {"min_interval_s": 1},
    "driver_behaviour": {"min_interval_s": 0.1},
    "location": {"min_interval_s": 1, "precise": True},
    "identity": {"once": True},
}
_COARSE: dict[str, Document] = {
    "static": {"once": True},
    "usage": {"min_interval_s": 0, "quantum": 2.5},
    "condition": {"min_interval_s": 0.25, "quantum": 0.3},
    "cabin": {"once": True},
    "driver_behaviour": {"min_interval_s": 0.5, "quantum": 7},
    "location": {"min_interval_s": 1, "grid_deg": 0.05},
}
_ALL = ["min", "max", "mean", "count", "last"]
_AGGREGATES: dict[str, Document] = {
    "static": {"aggregate": {"window_s": 60, "fn": ["count", "max", "last"]}},
    "usage": {"aggregate": {"window_s": 7, "fn": _ALL}},
    "condition": {"aggregate": {"window_s": 0.25, "fn": _ALL}, "quantum": 0.3},
    "cabin": {"aggregate": {"window_s": 1, "fn": ["last", "mean", "count"]}},
    "driver_behaviour": {"aggregate": {"window_s": 2.5, "fn": ["max", "mean"]}, "quantum": 7},
    "location": {"aggregate": {"window_s": 10, "fn": _ALL}, "grid_deg": 0.002},
}
_QUANTUM_ONLY: dict[str, Document] = {
    "usage": {"quantum": 1000},
    "driver_behaviour": {"quantum": 10},
    "location": {"min_interval_s": 2.5},
}


def _grant(grant_id: str, recipient: str, by_class: Mapping[str, Document]) -> Document:
    catalogue = json.loads(CATALOGUE.read_text("utf-8"))
    details: list[Document] = []
    for name, scope in catalogue["scopes"].items():
        if not catalogue["classes"][scope["class"]]["grantable"]:
            continue
        constraints = by_class.get(scope["class"])
        details.append({"scope": name, **({"constraints": constraints} if constraints else {})})
    combine = [["read_speedometer", "read_location", "read_compass", "read_charge_locations"]]
    return {
        "grant_id": grant_id,
        "recipient": recipient,
        "details": details,
        "combine": combine,
    }


def _minutes_of(zone: str, *moments_s: int) -> list[str]:
    return [f"{datetime.fromtimestamp(t_s, ZoneInfo(zone)):%H:%M}" for t_s in moments_s]


def _windowed(first_s: int, last_s: int) -> Document:
    """Give scopes within windows that open and close during the log; odd ones in other zones."""
    middle_s, spare_s = (first_s + last_s) // 2, 90
    halves = []
    for zone, begin_s, end_s in (
        ("Asia/Kathmandu", first_s - spare_s, middle_s),
        ("America/St_Johns", middle_s + spare_s, last_s + spare_s),
    ):
        begin, end = _minutes_of(zone, begin_s, end_s)
        halves.append([{"days": "1-7", "from": begin, "to": end, "tz": zone}])
    both = [*halves[0], *halves[1]]
    kinds = [{}, {"windows": halves[0]}, {"windows": halves[1]}, {"windows": both}]
    grant = _grant("gr_windows", "fleet", _LOOSEST)
    for number, detail in enumerate(grant["details"]):
        detail["constraints"] = detail["constraints"] | kinds[number % len(kinds)]
    mixed = _grant("gr_2", "insurer", _AGGREGATES)
    for number, detail in enumerate(mixed["details"]):
        detail["constraints"] = detail.get("constraints", {}) | kinds[number // 2 % len(kinds)]
    return _policy(
        grant, _grant("gr_1", "insurer", {}), mixed, exp=last_s - (last_s - first_s) // 5
    )


def _policy(*grants: Document, **members: Any) -> Document:
    recipients = {name: {"name": name} for name in ("fleet", "insurer")}
    return {"recipients": recipients, "grants": list(grants), **members}


def _policies(first_s: int, last_s: int) -> dict[str, Document]:
    """Policies for a log between two moments, each of which shows another rule."""
    third = (last_s - first_s) // 3
    early = {**_grant("gr_early", "fleet", _LOOSEST), "exp": first_s + third}
    late = {**_grant("gr_late", "insurer", _COARSE), "nbf": first_s + third // 2}
    return {
        "class defaults": _policy(_grant("gr_1", "fleet", {})),
        "loosest": _policy(_grant("gr_1", "fleet", _LOOSEST)),
        "quantum, grid and once": _policy(_grant("gr_1", "fleet", _COARSE)),
        "two recipients": _policy(
            _grant("gr_2", "insurer", _QUANTUM_ONLY), _grant("gr_1", "fleet", _LOOSEST)
        ),
        "from and until": _policy(early, late, exp=first_s + 2 * third),
        "windows": _windowed(first_s, last_s),
        "aggregates": _policy(_grant("gr_1", "fleet", _AGGREGATES)),
        "an aggregate beside samples": _policy(
            _grant("gr_1", "fleet", _LOOSEST),
            {**_grant("gr_2", "insurer", _AGGREGATES), "nbf": first_s + third},
        ),
    }


def _span_s(log: Path) -> tuple[int, int]:
    with (gzip.open if log.suffix == ".gz" else open)(log, "rt", encoding="ascii") as lines:
        stamps = [float(line[1 : line.index(")")]) for line in lines]
    return int(min(stamps)), int(max(stamps))


def _on_change(mapping: Path, target: Path, interval_ms: int) -> Path:
    """Write a YAML mapping anew, with every entry `on_change` and an interval."""
    nodes = yaml.safe_load(mapping.read_text("utf-8"))
    for index, node in enumerate(nodes.values()):
        if "dbc2vss" in node:
            node["dbc2vss"] |= {"on_change": True, "interval_ms": interval_ms + 10 * index}
    target.write_text(yaml.safe_dump(nodes, allow_unicode=True), encoding="utf-8")
    return target


def _of_frames(mapping: Path, target: Path) -> Path:
    """Write a mapping without its texts: the oracle puts no messages together."""
    nodes = yaml.safe_load(mapping.read_text("utf-8"))
    kept = {path: node for path, node in nodes.items() if "text" not in node["dbc2vss"]}
    target.write_text(yaml.safe_dump(kept, allow_unicode=True), encoding="utf-8")
    return target


def _printed(
    folder: Path, log: Path, dbcs: list[Path], mapping: Path, policy: Document
) -> list[Row]:
    policy_file, out = folder / "policy.json", folder / "rows.jsonl"
    policy_file.write_text(json.dumps(policy), encoding="utf-8")
    given = [argument for dbc in dbcs for argument in ("--dbc", str(dbc))]
    arguments = ["--mapping", str(mapping), "--policy", str(policy_file), "--out", str(out)]
    assert run(["replay", str(log), *given, *arguments]) == 0
    return [json.loads(line) for line in out.read_text("utf-8").splitlines()]


def _compare(name: str, ours: list[Row], theirs: list[Row]) -> None:
    """Compare row by row; a difference is told without its values, which may be positions."""
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=False), 1):
        assert list(mine) == list(other)
        differing = [key for key in mine if key != "value" and mine[key] != other[key]]
        place = f"{name}: row {number}, {mine['path']} at {mine['t']}"
        assert not differing, f"{place}: {differing}, expected {other['path']} at {other['t']}"
        a, b = mine["value"], other["value"]
        assert _is_same(a, b), f"{place}: another {type(b).__name__} value"
    assert len(ours) == len(theirs), f"{name}: another number of rows"


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, bool | str) or isinstance(b, bool | str):
        return type(a) is type(b) and bool(a == b)
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))


def _check(folder: Path, log: Path, dbcs: list[Path], mapping: Path) -> dict[str, int]:
    policies = _policies(*_span_s(log))
    expected = replay([log], dbcs, mapping, CATALOGUE, list(policies.values()))
    for (name, policy), rows in zip(policies.items(), expected, strict=True):
        _compare(name, _printed(folder, log, dbcs, mapping, policy), rows)
    return {name: len(rows) for name, rows in zip(policies, expected, strict=True)}


def _cut(log: Path, target: Path, lines: int) -> Path:
    with gzip.open(log, "rt", encoding="ascii") as whole:
        target.write_text("".join(islice(whole, lines)), encoding="ascii")
    return target


def test_the_simulated_drive_gives_the_rows_of_the_oracle(tmp_path: Path) -> None:
    counts = _check(
        tmp_path,
        ROOT / "demo/drive_SIMULATED.log",
        [ROOT / "dbc/demo_vehicle.dbc"],
        ROOT / "config/vehicles/demo_vehicle.vspec",
    )

    assert min(counts.values()) > 100
    assert counts["loosest"] > 10 * counts["class defaults"]


@pytest.mark.parametrize("interval_ms", [0, 130, 2000])
def test_changes_in_the_simulated_drive_are_held_as_the_oracle_holds_them(
    tmp_path: Path, interval_ms: int
) -> None:
    mapping = _on_change(
        ROOT / "config/vehicles/demo_vehicle.vspec", tmp_path / "changes.vspec", interval_ms
    )

    counts = _check(
        tmp_path, ROOT / "demo/drive_SIMULATED.log", [ROOT / "dbc/demo_vehicle.dbc"], mapping
    )

    assert min(counts.values()) > 50


@pytest.mark.captures
@pytest.mark.parametrize("changes", [False, True])
def test_the_mustang_gives_the_rows_of_the_oracle(
    tmp_path: Path, captures: Path, *, changes: bool
) -> None:
    mapping = ROOT / "config/vehicles/ford_mustang_s550.vspec"
    if changes:
        mapping = _on_change(mapping, tmp_path / "changes.vspec", 90)

    counts = _check(
        tmp_path,
        captures / "mustang/mustang_s550.log.gz",
        [captures / "mustang/ford_lincoln_base_pt.dbc"],
        mapping,
    )

    assert min(counts.values()) > 20


@pytest.mark.captures
@pytest.mark.parametrize("changes", [False, True])
def test_the_obd_and_gnss_drive_gives_the_rows_of_the_oracle(
    tmp_path: Path, captures: Path, *, changes: bool
) -> None:
    mapping = ROOT / "config/vehicles/obd2_gnss.vspec"
    if changes:
        mapping = _on_change(mapping, tmp_path / "changes.vspec", 400)
    log = captures / "obd2_gnss_drive/drive_all.log.gz"

    counts = _check(
        tmp_path,
        _cut(log, tmp_path / "drive.log", 60_000),
        [ROOT / "dbc/obd2.dbc", captures / "obd2_gnss_drive/canmod-gps.dbc"],
        mapping,
    )

    assert min(counts.values()) > 20


@pytest.mark.captures
@pytest.mark.parametrize("mapping", ["dbc_overlay.4.2.vspec", "vss_dbc.4.2.json"])
def test_the_tesla_with_kuksas_own_mapping_gives_the_rows_of_the_oracle(
    tmp_path: Path, captures: Path, mapping: str
) -> None:
    folder = captures / "tesla_model3"

    counts = _check(
        tmp_path, folder / "it-candump0.log", [folder / "Model3CAN.kuksa.dbc"], folder / mapping
    )

    assert min(counts.values()) > 5


@pytest.mark.captures
@pytest.mark.parametrize(
    "log", ["j1939/11111111_idle_diesel.log.gz", "j1939_ecm_bench/normal_operations_demo2.log.gz"]
)
def test_j1939_captures_give_the_rows_of_the_oracle(
    tmp_path: Path, captures: Path, log: str
) -> None:
    mapping = _of_frames(ROOT / "config/vehicles/j1939_truck.vspec", tmp_path / "frames.vspec")

    counts = _check(tmp_path, captures / log, [ROOT / "dbc/j1939.dbc"], mapping)

    assert min(counts.values()) > 20


def test_a_copy_that_runs_backwards_gives_the_rows_of_the_oracle(tmp_path: Path) -> None:
    """No sample until t passes t_last, and rows are in the order of (t, as taken)."""
    drive = (ROOT / "demo/drive_SIMULATED.log").read_text("ascii").splitlines(keepends=True)
    log = tmp_path / "backwards.log"
    log.write_text("".join(drive[:3000] + drive[1000:5000]), encoding="ascii")
    mapping = _on_change(
        ROOT / "config/vehicles/demo_vehicle.vspec", tmp_path / "changes.vspec", 130
    )

    for used in (ROOT / "config/vehicles/demo_vehicle.vspec", mapping):
        _check(tmp_path, log, [ROOT / "dbc/demo_vehicle.dbc"], used)


def test_frames_swapped_within_a_millisecond_stay_in_the_order_as_taken(tmp_path: Path) -> None:
    """Rows are ordered by the printed time, which is in whole ms, then as they were taken."""
    drive = (ROOT / "demo/drive_SIMULATED.log").read_text("ascii").splitlines()
    log = tmp_path / "swapped.log"
    lines = [
        f"(1780300800.{micros:06d}) {line.partition(' ')[2]}"
        for micros, line in zip((700, 100, 900, 300, 500), drive, strict=False)
    ]
    log.write_text("\n".join(lines) + "\n", encoding="ascii")

    counts = _check(
        tmp_path,
        log,
        [ROOT / "dbc/demo_vehicle.dbc"],
        ROOT / "config/vehicles/demo_vehicle.vspec",
    )

    assert counts["loosest"] > 5
