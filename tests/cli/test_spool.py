"""`consentry spool`: what waits, whether it is sound, and its erasure; never its contents."""

import io
import json
import os
import re
import sqlite3
import time
from pathlib import Path

import pytest

from agent.cli.main import run
from agent.cloud.keys import public_half, save_key
from agent.core.ledgerevent import event
from agent.edge.ledger import Ledger, read_entries
from agent.edge.store import LiveGrant, Store, StoredPolicy, Tally
from agent.errors import LedgerError
from tests import sealing
from tests.columns import SPEED, batch
from tests.storing import append

NOW_NS = time.time_ns()
HOUR_NS = 3600 * 10**9


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Two grants, one of them paused, and a gap."""
    where = tmp_path / "state"
    with Store.open(where) as store:
        policy = StoredPolicy(b"j", 1, 1, b"p" * 32, b"c" * 32, 0)
        store.apply_policy(policy, [LiveGrant("gr_1", 1), LiveGrant("gr_2", 1)], [], 0)
        for grant_id, count, expires_ns in (
            ("gr_1", 1, 5),
            ("gr_1", 3, NOW_NS + 30 * HOUR_NS),
            ("gr_2", 2, NOW_NS + 2 * HOUR_NS),
        ):
            for _ in range(count):
                append(
                    store,
                    grant_id,
                    1,
                    recipient="fleet-x",
                    created_ns=NOW_NS - 26 * HOUR_NS,
                    expires_ns=expires_ns,
                    seal=lambda n, g=grant_id: sealing.envelope(  # type: ignore[misc]
                        batch(SPEED), n=n, grant_id=g, rev=1
                    ),
                )
        store.expire(5)
        store.set_grant_state("gr_2", "paused")
    return where


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "device.pub.jwk"
    save_key(path, public_half(sealing.device_jwk()))
    return path


def test_what_waits_is_told_per_grant_without_a_byte_of_it(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers, bytes, ages; paused ones too, and gaps that no recipient was told of yet."""
    assert run(["spool", "inspect", "--state", str(state)]) == 0
    plain = capsys.readouterr()
    assert run(["spool", "inspect", "--state", str(state), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)

    lines = plain.out.splitlines()
    first, second = (re.split("  +", line) for line in lines[1:3])
    assert first[:3] == ["gr_1", "active", "3"]
    assert first[4:] == ["2 to 4", "1 d 2 h ago", "1 d 2 h ago", "1 d 5 h"]
    assert second[:3] == ["gr_2", "paused", "2"]
    assert lines[1].index("1 d") == lines[0].index("oldest"), "columns stand below their names"
    assert lines[3] == "gap of gr_1: numbers 1 to 1 expired"
    assert "5 envelopes" in plain.err
    assert [row["envelopes"] for row in told["grants"]] == [3, 2]
    assert told["gaps"] == [{"grant": "gr_1", "first_n": 1, "last_n": 1, "why": "expired"}]
    assert told["disk_bytes"] == (state / "spool.db").stat().st_size


def test_a_sound_spool_is_found_sound(
    state: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files, references, and each envelope's signature and name."""
    assert run(["spool", "verify", "--state", str(state), "--key", str(key)]) == 0

    found = capsys.readouterr()
    assert found.out == ""
    assert "0 faults, 5 signatures checked" in found.err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("UPDATE spool SET n = 9 WHERE n = 3", "grant gr_1 number 9: its sealed header names"),
        ("UPDATE spool SET envelope = x'00' WHERE n = 4", "grant gr_1 number 4: "),
        ("UPDATE spool SET n = 3 WHERE n = 4", "spool.db: grant gr_1 has number 3 twice"),
    ],
)
def test_what_is_wrong_is_told(
    state: Path, key: Path, capsys: pytest.CaptureFixture[str], change: str, told: str
) -> None:
    """One line each, and status 1."""
    db = sqlite3.connect(state / "spool.db")
    db.execute(change)
    db.commit()
    db.close()

    assert run(["spool", "verify", "--state", str(state), "--key", str(key)]) == 1
    assert told in capsys.readouterr().out


def test_a_file_that_cannot_be_read_is_told(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was set aside as evidence."""
    (state / "spool.db").write_bytes(b"\xff" * 5000)

    assert run(["spool", "verify", "--state", str(state)]) == 1
    told = capsys.readouterr()
    assert "spool.db.corrupt-1: could not be read" in told.out
    assert "signatures were not checked" in told.err


def test_what_waits_can_be_erased_and_the_recipients_are_told(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one grant, or all of it; consent stays."""
    assert run(["spool", "purge", "--state", str(state), "--grant", "gr_1", "--yes"]) == 0
    assert capsys.readouterr().out.startswith("erased of gr_1: 3 envelopes, ")
    with Store.open(state) as store:
        assert set(store.counts()) == {"gr_2"}
        assert [(g.first_n, g.last_n, g.why) for g in store.gaps(9)][1:] == [(2, 4, "erased")]
        assert len(store.live_grants()) == 2
    assert run(["spool", "purge", "--state", str(state), "--yes"]) == 0
    with Store.open(state) as store:
        assert store.counts() == {}
        assert store.expire(1 << 61) == {}


def test_the_ledger_tells_who_erased_what(state: Path) -> None:
    """And the agent's next start does not take it for a crash."""
    with Ledger.open(state / "ledger", vehicle="v", boot_id="", now_ns=NOW_NS) as ledger:
        ledger.append(event(NOW_NS, "stopped", reason="asked"), durable=True)

    assert run(["spool", "purge", "--state", str(state), "--grant", "gr_1", "--yes"]) == 0

    entries = [entry for _, entry in read_entries(state / "ledger")]
    told = [(e.name, dict(e.facts)) for e in entries if not isinstance(e, LedgerError)][2:]
    assert told[0] == ("admin", {"verb": "spool-purge", "uid": os.getuid()})
    name, facts = told[1]
    assert (name, facts["grant"], facts["envelopes"]) == ("purged", "gr_1", 3)
    with Ledger.open(state / "ledger", vehicle="v", boot_id="", now_ns=NOW_NS) as ledger:
        assert ledger.ended_cleanly


@pytest.mark.parametrize("answer", ["", "n\n"])
def test_nothing_is_erased_without_a_yes(
    state: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """Somebody says no, or nobody is there to say anything."""
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert run(["spool", "purge", "--state", str(state)]) == 130
    with Store.open(state) as store:
        assert store.counts()["gr_1"] == Tally(3, store.counts()["gr_1"].size_bytes)


def test_a_directory_that_is_held_or_not_there_is_told(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One owner; and none is made by looking."""
    missing = state.parent / "none"
    with Store.open(state):
        assert run(["spool", "inspect", "--state", str(state)]) == 1
    assert run(["spool", "inspect", "--state", str(missing)]) == 1

    told = capsys.readouterr().err
    assert "is held by another process" in told
    assert "hint: the running agent has it: `consentry status` says what waits" in told
    assert "there is no state directory" in told
    assert not missing.exists()
