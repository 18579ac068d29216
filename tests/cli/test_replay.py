"""`consentry replay` from the command line to the exact bytes that it prints."""

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import agent.cli
from agent.cli.main import run
from agent.cloud.policy import sign_policy
from agent.cloud.trust import trust_file
from tests.policydoc import T0_S, catalogue, example, private_jwk

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(sys.executable).with_name("consentry")

DBC = """VERSION ""
NS_ :
BS_:
BU_: ECU
BO_ 256 MOTION: 8 ECU
 SG_ Speed : 0|16@1+ (0.01,0) [0|655.35] "km/h" ECU
 SG_ Odometer : 16|24@1+ (1,0) [0|16777215] "km" ECU
 SG_ Doubtful : 40|8@1+ (1,0) [0|255] "" ECU
BO_ 512 BODY: 2 ECU
 SG_ Locked : 0|1@1+ (1,0) [0|1] "" ECU
 SG_ Ignition : 1|2@1+ (1,0) [0|3] "" ECU
 SG_ Doubtful : 8|8@1+ (1,0) [0|255] "" ECU
VAL_ 512 Ignition 0 "OFF" 1 "ACC, or so" 2 "ON" ;
"""
FUEL_DBC = """VERSION ""
BU_: ECU
BO_ 768 FUEL: 1 ECU
 SG_ Level : 0|8@1+ (0.5,0) [0|100] "%" ECU
"""
ENTRIES = {
    "Vehicle.Speed": {"signal": "MOTION.Speed", "interval_ms": 0},
    "Vehicle.TraveledDistance": {"signal": "MOTION.Odometer", "interval_ms": 0},
    "Vehicle.Body.Trunk.Rear.IsLocked": {"signal": "BODY.Locked", "interval_ms": 0},
    "Vehicle.LowVoltageSystemState": {"signal": "BODY.Ignition", "on_change": True},
}
FUEL = {"Vehicle.Powertrain.FuelSystem.RelativeLevel": {"signal": "Level", "interval_ms": 0}}
LOG = """(1780300800.000999) can0 100#D21B0A0000000000
(1780300800.500000) can0 200#0500
(1780300801.000998) can0 100#001B0B0000000000
(1780300801.000999) can0 100#641B0C0000000000
"""
SPEED = {"scope": "read_speedometer", "constraints": {"min_interval_s": 1}}
ODOMETER = {"scope": "read_odometer", "constraints": {"min_interval_s": 0}}
STATE = {"scope": "read_extended_vehicle_info"}
FIRST_T = 1780300800000000000


class Bench:
    """A folder with everything that a replay needs, and the command line that names it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("car.dbc", DBC)
        self.write("fuel.dbc", FUEL_DBC)
        self.write("drive.log", LOG)
        self.map(ENTRIES)
        self.grant(SPEED, ODOMETER, STATE)

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def map(self, entries: dict[str, dict[str, Any]], **leaf: Any) -> None:
        units = {"Vehicle.TraveledDistance": {"unit": "km"}}
        nodes = {
            path: {"datatype": "float", "type": "sensor", "dbc2vss": entry, **leaf}
            | units.get(path, {})
            for path, entry in entries.items()
        }
        self.write("car.vspec", json.dumps(nodes))

    def grant(self, *details: dict[str, Any], **members: Any) -> None:
        grant = {"grant_id": "gr_1", "recipient": "fleet", "details": list(details), **members}
        document = {"recipients": {"fleet": {"name": "Fleet"}}, "grants": [grant]}
        self.write("policy.json", json.dumps(document))

    def arguments(self, *more: str, log: str = "drive.log", **files: str) -> list[str]:
        """The command line; `dbc=`, `mapping=` and `policy=` name other files than usual."""
        given = {"dbc": "car.dbc", "mapping": "car.vspec", "policy": "policy.json"} | files
        logs = [str(self.folder / name) for name in log.split()]
        options = [
            word for name, file in given.items() for word in (f"--{name}", str(self.folder / file))
        ]
        return ["replay", *logs, *options, *more]

    def replay(self, *more: str, log: str = "drive.log", **files: str) -> int:
        return run(self.arguments(*more, log=log, **files))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


Capsys = pytest.CaptureFixture[str]


def rows(capsys: Capsys) -> list[dict[str, Any]]:
    """What was printed; stdout must hold nothing but rows."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def values(capsys: Capsys, path: str = "Vehicle.Speed") -> list[Any]:
    return [row["value"] for row in rows(capsys) if row["path"] == path]


def complaint(capsys: Capsys) -> tuple[list[str], list[str]]:
    """The `error:` and the `hint:` lines on stderr."""
    lines = capsys.readouterr().err.splitlines()
    return (
        [line for line in lines if line.startswith("error: ")],
        [line for line in lines if line.startswith("hint: ")],
    )


def test_jsonl_is_printed_to_the_letter(bench: Bench, capsys: Capsys) -> None:
    """Design 9: these names in this order, t in ns and whole ms, in the order of (t, as taken)."""
    assert bench.replay() == 0

    assert capsys.readouterr().out == (
        '{"t": 1780300800000000000, "recipient": "fleet", "grant": "gr_1", '
        '"scope": "read_speedometer", "path": "Vehicle.Speed", "value": 71.22, "unit": "km/h"}\n'
        '{"t": 1780300800000000000, "recipient": "fleet", "grant": "gr_1", '
        '"scope": "read_odometer", "path": "Vehicle.TraveledDistance", "value": 10000, '
        '"unit": "m"}\n'
        '{"t": 1780300800500000000, "recipient": "fleet", "grant": "gr_1", '
        '"scope": "read_extended_vehicle_info", "path": "Vehicle.LowVoltageSystemState", '
        '"value": "ON", "unit": null}\n'
        '{"t": 1780300801000000000, "recipient": "fleet", "grant": "gr_1", '
        '"scope": "read_odometer", "path": "Vehicle.TraveledDistance", "value": 11000, '
        '"unit": "m"}\n'
        '{"t": 1780300801000000000, "recipient": "fleet", "grant": "gr_1", '
        '"scope": "read_speedometer", "path": "Vehicle.Speed", "value": 70.12, "unit": "km/h"}\n'
        '{"t": 1780300801000000000, "recipient": "fleet", "grant": "gr_1", '
        '"scope": "read_odometer", "path": "Vehicle.TraveledDistance", "value": 12000, '
        '"unit": "m"}\n'
    )


MINUTE = {"aggregate": {"window_s": 0.5, "fn": ["max", "count"]}}


def test_an_aggregate_prints_a_line_per_function(bench: Bench, capsys: Capsys) -> None:
    """Design 9: with `fn` and `window_s`; stamped with the window's start, so sorted by it."""
    bench.grant({"scope": "read_odometer", "constraints": MINUTE}, STATE)

    assert bench.replay() == 0

    assert capsys.readouterr().out == (
        '{"t": 1780300800000000000, "recipient": "fleet", "grant": "gr_1", '
        '"scope": "read_odometer", "path": "Vehicle.TraveledDistance", "value": 10000, '
        '"unit": "m", "fn": "max", "window_s": 0.5}\n'
        '{"t": 1780300800000000000, "recipient": "fleet", "grant": "gr_1", '
        '"scope": "read_odometer", "path": "Vehicle.TraveledDistance", "value": 1, '
        '"unit": null, "fn": "count", "window_s": 0.5}\n'
        '{"t": 1780300800500000000, "recipient": "fleet", "grant": "gr_1", '
        '"scope": "read_extended_vehicle_info", "path": "Vehicle.LowVoltageSystemState", '
        '"value": "ON", "unit": null}\n'
        '{"t": 1780300801000000000, "recipient": "fleet", "grant": "gr_1", '
        '"scope": "read_odometer", "path": "Vehicle.TraveledDistance", "value": 12000, '
        '"unit": "m", "fn": "max", "window_s": 0.5}\n'
        '{"t": 1780300801000000000, "recipient": "fleet", "grant": "gr_1", '
        '"scope": "read_odometer", "path": "Vehicle.TraveledDistance", "value": 2, '
        '"unit": null, "fn": "count", "window_s": 0.5}\n'
    )


def test_an_aggregate_has_function_and_window_in_csv(bench: Bench, capsys: Capsys) -> None:
    bench.grant({"scope": "read_odometer", "constraints": MINUTE})

    bench.replay("--format", "csv")

    table = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert [row[5:] for row in table[1:3]] == [
        ["10000", "m", "max", "0.5"],
        ["1", "", "count", "0.5"],
    ]


def test_the_summary_counts_results_and_says_which_functions_there_are_none_of(
    bench: Bench, capsys: Capsys
) -> None:
    bench.grant(
        {"scope": "read_odometer", "constraints": MINUTE},
        {
            "scope": "read_extended_vehicle_info",
            "constraints": {"aggregate": {"window_s": 60, "fn": ["mean", "last"]}},
        },
    )

    bench.replay("--format", "summary", "--json")

    summary = json.loads(capsys.readouterr().out)
    found = {row["path"]: row for row in summary["paths"]}
    metres = found["Vehicle.TraveledDistance"]
    assert (metres["taken"], metres["thinned"], metres["why"]) == (4, 3, None)
    state = found["Vehicle.LowVoltageSystemState"]
    assert (state["taken"], state["why"]) == (1, "there is no mean of a string")
    assert summary["samples"] == 5


def test_windows_are_closed_in_a_log_that_counts_from_0(bench: Bench, capsys: Capsys) -> None:
    always = {"days": "1-7", "from": "00:00", "to": "00:00", "tz": "UTC"}
    bench.write("drive.log", "(1.5) can0 100#D21B0A0000000000\n")
    bench.grant({"scope": "read_odometer", "constraints": {"windows": [always]}})

    assert bench.replay("--format", "summary") == 0

    captured = capsys.readouterr()
    assert "its windows are closed: the time is not known" in captured.out
    assert "windows are closed" in captured.err
    bench.write("drive.log", "(1780300800.5) can0 100#D21B0A0000000000\n")
    assert bench.replay() == 0
    assert len(rows(capsys)) == 1


def test_values_have_the_type_of_the_path(bench: Bench, capsys: Capsys) -> None:
    bench.grant({"scope": "read_security"}, STATE, ODOMETER)

    bench.replay()

    found = {row["path"]: row["value"] for row in rows(capsys)}
    assert found["Vehicle.Body.Trunk.Rear.IsLocked"] is True
    assert found["Vehicle.LowVoltageSystemState"] == "ON"
    assert type(found["Vehicle.TraveledDistance"]) is int


def test_csv_has_a_head_and_the_same_cells(bench: Bench, capsys: Capsys) -> None:
    bench.write("drive.log", LOG + "(1780300802.000000) can0 200#0200\n")
    bench.grant({"scope": "read_security"}, STATE)

    assert bench.replay("--format", "csv") == 0

    table = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert table[0] == [
        *("t", "recipient", "grant", "scope", "path", "value", "unit"),
        *("fn", "window_s"),
    ]
    assert [row[7:] for row in table[1:]] == [["", ""], ["", ""]]
    assert [row[:7] for row in table[1:]] == [
        [
            "1780300800500000000",
            *("fleet", "gr_1", "read_security", "Vehicle.Body.Trunk.Rear.IsLocked", "true", ""),
        ],
        [
            "1780300800500000000",
            *("fleet", "gr_1", "read_extended_vehicle_info", "Vehicle.LowVoltageSystemState"),
            *("ON", ""),
        ],
    ]


def test_csv_quotes_text_that_holds_a_comma(bench: Bench, capsys: Capsys) -> None:
    bench.write("drive.log", "(1780300800.5) can0 200#0300\n")
    bench.grant(STATE)

    bench.replay("--format", "csv")

    assert capsys.readouterr().out.splitlines()[1].endswith(',"ACC, or so",,,')


def test_the_summary_says_what_became_of_every_path(bench: Bench, capsys: Capsys) -> None:
    bench.grant(SPEED)

    assert bench.replay("--format", "summary") == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 frames, 2 samples"
    speed = next(line.split() for line in lines if line.startswith("Vehicle.Speed "))
    assert speed == ["Vehicle.Speed", "fleet", "gr_1", "2", "1", "0", "0"]
    odometer = next(line for line in lines if line.startswith("Vehicle.TraveledDistance "))
    assert odometer.split()[1:7] == ["-", "-", "0", "0", "0", "3"]
    assert odometer.endswith("no grant names read_odometer")
    average = next(line for line in lines if line.startswith("Vehicle.AverageSpeed "))
    assert average.endswith("not in this vehicle's mapping")


def test_the_summary_is_also_one_json_value(bench: Bench, capsys: Capsys) -> None:
    bench.grant(SPEED)

    assert bench.replay("--format", "summary", "--json") == 0

    (line,) = capsys.readouterr().out.splitlines()
    summary = json.loads(line)
    assert (summary["frames"], summary["samples"], summary["broken_lines"]) == (4, 2, 0)
    assert summary["absolute_time"] is True
    by_path = {row["path"]: row for row in summary["paths"]}
    assert by_path["Vehicle.Speed"]["taken"] == 2
    assert by_path["Vehicle.Speed"]["thinned"] == 1
    assert by_path["Vehicle.TraveledDistance"]["blocked"] == 3
    assert by_path["Vehicle.TraveledDistance"]["grant_id"] is None


def test_what_is_no_measurement_is_counted_with_its_reason(bench: Bench, capsys: Capsys) -> None:
    bench.map({"Vehicle.Speed": {"signal": "BODY.Ignition", "interval_ms": 0}})

    bench.replay("--format", "summary", "--json")

    (speed,) = (
        row
        for row in json.loads(capsys.readouterr().out)["paths"]
        if row["path"] == "Vehicle.Speed"
    )
    assert speed["taken"] == 0
    assert sum(speed["dropped"].values()) == 1


def test_out_takes_the_rows_and_leaves_stdout_empty(bench: Bench, capsys: Capsys) -> None:
    bench.replay()
    printed = capsys.readouterr().out
    out = bench.folder / "rows.jsonl"

    assert bench.replay("--out", str(out)) == 0

    assert capsys.readouterr().out == ""
    assert out.read_text("utf-8") == printed
    assert not list(bench.folder.glob("*.part"))


def test_a_report_is_written_beside_the_rows(bench: Bench, capsys: Capsys) -> None:
    if not os.environ.get("CI"):  # There a skip is a failure.
        pytest.importorskip("bokeh", reason="the extra `report` is not installed")
    page = bench.folder / "page.html"

    assert bench.replay("--report", str(page)) == 0

    assert len(rows(capsys)) == 6
    text = page.read_text("utf-8")
    assert "Replay of drive.log" in text
    assert "6 samples of 3 paths to 1 recipient" in text


def test_a_report_without_bokeh_fails_before_the_replay_and_says_what_to_install(
    bench: Bench, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ["bokeh", *(name for name in sys.modules if name.startswith("bokeh."))]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "agent.cli.plot", raising=False)
    monkeypatch.delattr(agent.cli, "plot", raising=False)
    page = bench.folder / "page.html"

    assert bench.replay("--report", str(page)) == 1

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "error: --report needs bokeh, which is not installed",
        "hint: pip install 'consentry[report]'",
    ]
    assert not page.exists()


def test_out_in_a_folder_that_is_not_there_is_one_clear_error(bench: Bench, capsys: Capsys) -> None:
    assert bench.replay("--out", str(bench.folder / "nowhere" / "rows.jsonl")) == 1

    errors, hints = complaint(capsys)
    assert len(errors) == len(hints) == 1
    assert "rows.jsonl" in errors[0]


def test_a_channel_is_given_the_name_of_its_bus(bench: Bench, capsys: Capsys) -> None:
    """With names, an entry with `bus` takes from that bus alone."""
    bench.map(ENTRIES | {"Vehicle.Speed": {**ENTRIES["Vehicle.Speed"], "bus": "body"}})
    bench.grant(SPEED)
    bench.write("other.log", LOG.replace("can0", "can1"))

    assert bench.replay("--channel", "can0=body") == 0
    of_body = values(capsys)
    assert bench.replay("--channel", "can0=body", "can1=chassis", log="other.log") == 0
    of_chassis = values(capsys)
    assert bench.replay("--channel", "can1=body", "--channel", "can0=chassis", log="other.log") == 0
    renamed = values(capsys)

    assert of_body == renamed == [71.22, 70.12]
    assert of_chassis == []


def test_without_channel_every_entry_applies_to_every_channel(bench: Bench, capsys: Capsys) -> None:
    bench.map(ENTRIES | {"Vehicle.Speed": {**ENTRIES["Vehicle.Speed"], "bus": "body"}})
    bench.grant(SPEED)
    bench.write("other.log", LOG.replace("can0", "vcan7"))

    bench.replay(log="other.log")

    assert values(capsys) == [71.22, 70.12]


def test_several_logs_are_one_recording(bench: Bench, capsys: Capsys) -> None:
    """Merged by time, under one time rule."""
    bench.grant(ODOMETER)
    lines = LOG.splitlines(keepends=True)
    bench.write("a.log", lines[0] + lines[3])
    bench.write("b.log", lines[1] + lines[2])

    assert bench.replay(log="a.log b.log") == 0
    both = rows(capsys)
    bench.replay(log="b.log a.log")
    swapped = rows(capsys)
    bench.replay()

    assert both == swapped == rows(capsys)
    assert [row["value"] for row in both] == [10000, 11000, 12000]


def test_the_time_rule_goes_on_from_one_log_to_the_next(bench: Bench, capsys: Capsys) -> None:
    bench.grant(SPEED)
    lines = LOG.splitlines(keepends=True)
    bench.write("a.log", lines[0])
    bench.write("b.log", lines[2])  # 1 µs too early

    bench.replay(log="a.log b.log")

    assert values(capsys) == [71.22]


@pytest.mark.parametrize("repeated", [False, True])
def test_several_dbc_files_are_named_in_a_row_or_one_by_one(
    bench: Bench, capsys: Capsys, *, repeated: bool
) -> None:
    bench.map(ENTRIES | FUEL)
    bench.write("drive.log", LOG + "(1780300802.000000) can0 300#50\n")
    bench.grant(SPEED, {"scope": "read_fuel"})
    first, second = str(bench.folder / "car.dbc"), str(bench.folder / "fuel.dbc")
    dbcs = ["--dbc", first, "--dbc", second] if repeated else ["--dbc", first, second]
    rest = [word for word in bench.arguments() if word not in ("--dbc", first)]

    assert run([*rest, *dbcs]) == 0

    assert {row["path"] for row in rows(capsys)} == {"Vehicle.Speed", *FUEL}


def test_the_log_may_stand_after_the_dbc_files(bench: Bench, capsys: Capsys) -> None:
    words = bench.arguments()
    log = words.pop(1)
    words.insert(words.index("--dbc") + 2, log)

    assert run(words) == 0

    assert len(rows(capsys)) == 6


def test_a_gzipped_log_gives_the_same(bench: Bench, capsys: Capsys) -> None:
    bench.write("drive.log.gz", gzip.compress(LOG.encode()))

    bench.replay()
    plain = rows(capsys)
    assert bench.replay(log="drive.log.gz") == 0

    assert rows(capsys) == plain


def signed(bench: Bench, *, log_at_s: int = T0_S + 5) -> dict[str, Any]:
    """Put a JWS policy, its trust file and a log within its time on the bench."""
    key = private_jwk("EdDSA")
    document = example()
    bench.write("policy.jws", sign_policy(document, key))
    bench.write("trust.json", trust_file(key))
    bench.write("drive.log", LOG.replace("178030080", str(log_at_s)[:-1]))
    return document


def test_a_signed_policy_is_checked_with_the_trust_file(bench: Bench, capsys: Capsys) -> None:
    signed(bench)

    assert bench.replay("--trust", str(bench.folder / "trust.json"), policy="policy.jws") == 0

    captured = capsys.readouterr()
    assert {json.loads(line)["grant"] for line in captured.out.splitlines()} == {"gr_01JD"}
    assert "warning" not in captured.err


def test_a_signed_policy_without_trust_file_is_taken_with_a_warning(
    bench: Bench, capsys: Capsys
) -> None:
    signed(bench)

    assert bench.replay(policy="policy.jws") == 0

    captured = capsys.readouterr()
    assert captured.out.count("\n") == 2  # Speed and odometer, each once in 10 s.
    assert "signature of policy.jws was not checked" in captured.err


def test_a_policy_that_another_key_signed_is_refused(bench: Bench, capsys: Capsys) -> None:
    signed(bench)
    bench.write("policy.jws", sign_policy(example(), private_jwk("EdDSA", seed=9)))

    assert bench.replay("--trust", str(bench.folder / "trust.json"), policy="policy.jws") == 3

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("error: ") == 1


def test_a_signed_policy_has_no_grant_before_its_time(bench: Bench, capsys: Capsys) -> None:
    signed(bench, log_at_s=T0_S - 100)

    assert bench.replay(policy="policy.jws") == 0

    assert rows(capsys) == []


@pytest.mark.parametrize(
    "members",
    [
        {"state": "paused"},
        {"state": "revoked"},
        {"exp": 1780300800},
        {"nbf": 1780300802},
    ],
)
def test_a_grant_that_is_not_live_lets_nothing_out(
    bench: Bench, capsys: Capsys, members: dict[str, Any]
) -> None:
    bench.grant(SPEED, ODOMETER, **members)

    assert bench.replay() == 0

    assert rows(capsys) == []


def test_a_grant_begins_and_ends_at_its_second(bench: Bench, capsys: Capsys) -> None:
    bench.grant(ODOMETER, nbf=1780300801, exp=1780300802)
    bench.write("drive.log", LOG + "(1780300802.000000) can0 100#641B0D0000000000\n")

    bench.replay()

    assert values(capsys, "Vehicle.TraveledDistance") == [11000, 12000]


def test_no_grant_is_no_sample(bench: Bench, capsys: Capsys) -> None:
    bench.write("policy.json", '{"recipients": {}, "grants": []}')

    assert bench.replay() == 0

    assert rows(capsys) == []


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"dbc": "absent.dbc"}, "absent.dbc"),
        ({"mapping": "absent.vspec"}, "absent.vspec"),
        ({"policy": "absent.json"}, "absent.json"),
        ({"log": "absent.log"}, "absent.log"),
        ({"log": "drive.log absent.log"}, "absent.log"),
    ],
)
def test_a_missing_file_is_one_error_with_a_hint_and_status_1(
    bench: Bench, capsys: Capsys, given: dict[str, str], named: str
) -> None:
    assert bench.replay(**given) == 1  # type: ignore[arg-type]

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("error: ") == captured.err.count("hint: ") == 1
    assert named in captured.err
    assert "Traceback" not in captured.err


def broken_policies() -> dict[str, str]:
    granted = {"recipients": {"fleet": {"name": "Fleet"}}}
    detail = {"scope": "read_speedometer"}

    def with_grant(**grant: Any) -> str:
        base = {"grant_id": "gr_1", "recipient": "fleet", "details": [detail]}
        return json.dumps({**granted, "grants": [base | grant]})

    return {
        "cut off": '{"recipients": {}, "grants": [',
        "a name twice": '{"grants": [], "grants": [], "recipients": {}}',
        "an unknown member": '{"recipients": {}, "grants": [], "extra": 1}',
        "trailing bytes": '{"recipients": {}, "grants": []} x',
        "no JSON at all": "hello",
        "an unknown recipient": with_grant(recipient="nobody"),
        "an unknown scope": with_grant(details=[{"scope": "read_everything"}]),
        "an unknown constraint": with_grant(details=[{**detail, "constraints": {"best": 1}}]),
        "not yet enforced": with_grant(details=[{**detail, "constraints": {"windows": []}}]),
        "looser than the ceiling": with_grant(
            details=[{**detail, "constraints": {"min_interval_s": 0.05}}]
        ),
        "an ungrantable class": with_grant(details=[{"scope": "read_driver_state"}]),
    }


@pytest.mark.parametrize("fault", broken_policies())
def test_a_broken_policy_is_refused_as_a_whole_with_status_3(
    bench: Bench, capsys: Capsys, fault: str
) -> None:
    bench.write("policy.json", broken_policies()[fault])

    assert bench.replay() == 3

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("error: ") == 1


@pytest.mark.parametrize(
    "more",
    [
        ["--channel", "can0"],
        ["--channel", "=body"],
        ["--format", "xml"],
        ["--json"],
        ["--unknown"],
    ],
)
def test_a_wrong_command_line_is_status_2_with_a_hint(
    bench: Bench, capsys: Capsys, more: list[str]
) -> None:
    assert bench.replay(*more) == 2

    errors, hints = complaint(capsys)
    assert len(errors) == len(hints) == 1
    assert "consentry replay --help" in hints[0]


@pytest.mark.parametrize("left_out", ["--dbc", "--mapping", "--policy"])
def test_what_replay_needs_must_be_named(bench: Bench, capsys: Capsys, left_out: str) -> None:
    words = bench.arguments()
    at = words.index(left_out)

    assert run(words[:at] + words[at + 2 :]) == 2

    assert left_out in complaint(capsys)[0][0]


def test_a_truncated_line_costs_that_line_and_the_status(bench: Bench, capsys: Capsys) -> None:
    lines = LOG.splitlines(keepends=True)
    bench.write("drive.log", "".join([*lines[:3], "(1780300801.0005) can0 100#641\n", lines[3]]))

    assert bench.replay() == 1

    captured = capsys.readouterr()
    assert captured.out.count("\n") == 6
    assert captured.err.count("error: ") == captured.err.count("hint: ") == 1
    assert "drive.log:4" in captured.err
    assert "641" not in captured.err  # A payload may be a position.


def test_a_log_that_ends_in_the_middle_of_a_line_gives_what_is_whole(
    bench: Bench, capsys: Capsys
) -> None:
    bench.write("drive.log", LOG + "(1780300802.0")

    assert bench.replay() == 1

    assert len(rows(capsys)) == 6


def test_paths_outside_the_catalogue_are_counted_in_one_line(bench: Bench, capsys: Capsys) -> None:
    strange = {f"Vehicle.Strange{index}": {"signal": "MOTION.Speed"} for index in range(3)}
    bench.map(ENTRIES | strange)

    assert bench.replay() == 0

    captured = capsys.readouterr()
    told = [line for line in captured.err.splitlines() if "not in the catalogue" in line]
    assert len(told) == 1
    assert told[0].startswith("3 mapped paths")
    assert "Strange" not in captured.out


def test_an_ambiguous_signal_is_not_taken_and_its_candidates_are_named(
    bench: Bench, capsys: Capsys
) -> None:
    bench.map(ENTRIES | {"Vehicle.Speed": {"signal": "Doubtful", "interval_ms": 0}})

    assert bench.replay() == 0

    captured = capsys.readouterr()
    (warning,) = (line for line in captured.err.splitlines() if line.startswith("warning: "))
    assert "Vehicle.Speed" in warning
    assert "MOTION.Doubtful" in warning
    assert "BODY.Doubtful" in warning
    assert "Vehicle.Speed" not in captured.out
    assert "Vehicle.TraveledDistance" in captured.out


@pytest.mark.parametrize(("end", "taken"), [("300.499999", [80.0]), ("300.500000", [80.0, 90.0])])
def test_a_held_change_is_taken_where_the_log_reaches_its_time(
    bench: Bench, capsys: Capsys, end: str, taken: list[float]
) -> None:
    """Any frame tells the time, also one that nobody may have; the time is t_last + interval."""
    bench.map({"Vehicle.Speed": {**ENTRIES["Vehicle.Speed"], "on_change": True}})
    bench.grant({"scope": "read_speedometer", "constraints": {"min_interval_s": 0.5}})
    bench.write(
        "drive.log",
        "(1780300300.000000) can0 100#401F\n"
        "(1780300300.100000) can0 100#2823\n"
        f"(1780300{end}) can0 7FF#00\n",
    )

    bench.replay()

    found = rows(capsys)
    assert [row["value"] for row in found] == taken
    assert [row["t"] % 10**9 for row in found] == [0, 500_000_000][: len(taken)]


def test_odd_frames_hurt_nobody(bench: Bench, capsys: Capsys) -> None:
    """A remote frame, an error frame, an unknown id, an extended twin, one too long, one too short.

    The long frame is longer than its message and gives what is in it; of the short one, the speed
    is there and the odometer is absent, not zero.
    """
    bench.grant({"scope": "read_speedometer", "constraints": {"min_interval_s": 0.1}}, ODOMETER)
    bench.write(
        "drive.log",
        "(1780300800.0) can0 100#R8\n"
        "(1780300801.0) can0 20000080#0000000000000000\n"
        "(1780300802.0) can0 7FF#01\n"
        "(1780300803.0) can0 00000100#D21B0A0000000000\n"
        "(1780300804.0) can0 100##0D21B0A00000000000000FFFF\n"
        "(1780300805.0) can0 100#641B\n",
    )

    assert bench.replay() == 0

    assert [(row["t"] - FIRST_T, row["path"], row["value"]) for row in rows(capsys)] == [
        (4_000_000_000, "Vehicle.Speed", 71.22),
        (4_000_000_000, "Vehicle.TraveledDistance", 10000),
        (5_000_000_000, "Vehicle.Speed", 70.12),
    ]


def test_a_log_that_counts_from_zero_says_so(bench: Bench, capsys: Capsys) -> None:
    bench.write("drive.asc", "base hex timestamps absolute\n 1.5 1 100 Rx d 8 D2 1B 0A 0 0 0 0 0\n")

    assert bench.replay(log="drive.asc") == 0

    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[0])["t"] == 1_500_000_000
    assert "counts from 0" in captured.err


def test_the_catalogue_in_use_is_told_with_its_hash(bench: Bench, capsys: Capsys) -> None:
    bench.replay()

    assert catalogue().sha256 in capsys.readouterr().err


def test_another_catalogue_can_be_named(bench: Bench, capsys: Capsys) -> None:
    document = json.loads((ROOT / "config/catalogue.json").read_text("utf-8"))
    document["scopes"]["read_pace"] = document["scopes"].pop("read_speedometer")
    own = bench.write("catalogue.json", json.dumps(document))
    bench.grant({"scope": "read_pace"})

    assert bench.replay() == 3
    capsys.readouterr()
    assert bench.replay("--catalogue", str(own)) == 0

    assert values(capsys) == [71.22]


def test_a_dbc_that_has_to_be_repaired_says_what_was_done(bench: Bench, capsys: Capsys) -> None:
    bench.write("car.dbc", DBC + 'VAL_ 999 Ghost 0 "off" ;\n')

    assert bench.replay() == 0

    captured = capsys.readouterr()
    assert "warning: car.dbc: " in captured.err
    assert captured.out.count("\n") == 6


def test_the_installed_command_prints_rows_and_nothing_else(bench: Bench) -> None:
    done = subprocess.run(
        [SCRIPT, *bench.arguments()], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0
    assert [json.loads(line)["value"] for line in done.stdout.splitlines()][:2] == [71.22, 10000]
    assert "4 frames, 6 samples" in done.stderr


def test_the_installed_command_passes_the_status_on(bench: Bench) -> None:
    done = subprocess.run(
        [SCRIPT, *bench.arguments(policy="absent.json")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("hint: ")


@pytest.mark.captures
def test_kuksas_mapping_is_taken_as_it_is_but_for_its_ambiguous_signals(
    bench: Bench, captures: Path, capsys: Capsys
) -> None:
    folder = captures / "tesla_model3"
    words = [
        "replay",
        str(folder / "it-candump0.log"),
        "--policy",
        str(bench.folder / "policy.json"),
    ]
    words += ["--dbc", str(folder / "Model3CAN.kuksa.dbc")]

    assert run([*words, "--mapping", str(folder / "dbc_overlay.4.2.vspec")]) == 0

    captured = capsys.readouterr()
    assert "CP_hvChargeStatus is ambiguous" in captured.err
    assert "Vehicle.Speed" in captured.out
