"""`consentry doctor` from the command line: what it prints, and how it ends."""

import json
from pathlib import Path

import pytest

from agent.cli.main import run
from tests.desk import Desk

Capsys = pytest.CaptureFixture[str]


def test_what_keeps_the_agent_from_its_work_ends_with_1(tmp_path: Path, capsys: Capsys) -> None:
    desk = Desk(tmp_path / "vehicle")

    assert run(["doctor", "--config", desk.path("agent.toml")]) == 1

    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("ok    config  ")
    files = next(n for n, line in enumerate(out) if line.startswith("fail  files   "))
    assert "ca.pem" in out[files]
    assert out[files + 1].startswith(" " * 15), "its advice is below it"


def test_programs_get_the_same_with_its_advice(tmp_path: Path, capsys: Capsys) -> None:
    desk = Desk(tmp_path / "vehicle")
    text = Path(desk.path("agent.toml")).read_text()
    for line in ('ca = "ca.pem"', 'certificate = "client.pem"', 'private_key = "client.key"'):
        text = text.replace(line, "")
    plain = 'plaintext_loopback = true\nhost = "127.0.0.1"'
    desk.write("agent.toml", text.replace('host = "localhost"', plain))

    ended = run(["doctor", "--config", desk.path("agent.toml"), "--json"])

    checks = json.loads(capsys.readouterr().out)
    verdicts = {check["name"]: check["verdict"] for check in checks}
    assert verdicts["files"] == "ok"
    assert verdicts["agent"] == "warn"
    assert verdicts["broker"] == "fail", "nobody listens on port 9"
    assert all(check["hint"] for check in checks if check["name"] in {"agent", "state"})
    assert ended == 1


def test_a_configuration_that_is_not_there_is_the_only_finding(
    tmp_path: Path, capsys: Capsys
) -> None:
    assert run(["doctor", "--config", str(tmp_path / "gone.toml")]) == 1

    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2
    assert out[0].startswith("fail  config  ")
