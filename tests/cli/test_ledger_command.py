"""`consentry ledger` on ledgers that the agent's own code wrote."""

import json
import shutil
from pathlib import Path

import pytest

from agent.cli.main import run
from agent.cloud.keys import public_half
from agent.core.ledgerevent import event
from agent.core.seal import seal
from agent.edge.ledger import Ledger, Limits
from tests.columns import SPEED, batch
from tests.sealing import device, device_jwk, header, recipient

S = 10**9
NOW_NS = 1_795_468_800 * S
BOOT = "0f3b6a52-1c1e-4a57-9d3e-7a2b5d1c9e00"
DIGEST = "5a" * 32


def opened(state: Path) -> Ledger:
    return Ledger.open(
        state / "ledger",
        vehicle="veh-0001",
        boot_id=BOOT,
        now_ns=NOW_NS,
        limits=Limits(segment_entries=4),
    )


def fill(ledger: Ledger, count: int = 9) -> None:
    for number in range(count):
        t_ns = NOW_NS + number * 60 * S
        ledger.append(event(t_ns, "policy-refused", sha256=DIGEST, reason="rollback"), durable=True)
        ledger.append(event(t_ns, "tls-failed", reason="name", times=number), durable=False)
        if number % 3 == 2:
            ledger.checkpoint(t_ns, device())


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory with a ledger of several segments, and the device's public key beside."""
    place = tmp_path / "state"
    with opened(place) as ledger:
        fill(ledger)
        ledger.append(event(NOW_NS, "stopped", reason="signal"), durable=True)
    (tmp_path / "device.pub.jwk").write_text(json.dumps(public_half(device_jwk())))
    (tmp_path / "other.pub.jwk").write_text(json.dumps(public_half(device_jwk(kid="dev-other"))))
    return place


def key(state: Path, name: str = "device") -> str:
    return f"--key={state.parent / f'{name}.pub.jwk'}"


def ledger(verb: str, state: Path, *rest: str) -> int:
    return run(["ledger", verb, f"--state={state}", *rest])


def head(state: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    assert ledger("verify", state, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    return told["size"], told["root"]


def test_show_prints_each_entry_with_its_time_and_facts(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ledger("show", state) == 0

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 26
    assert lines[1].split() == [
        "1",
        "2026-11-23T21:20:00Z",
        "policy-refused",
        "reason=rollback",
        "sha256=5a5a5a5a5a5a…",
    ]
    assert max(map(len, lines)) < 120


def test_show_picks_by_time_and_event(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ledger("show", state, "--json", "--event=tls-failed", "--since=2026-11-23T21:25") == 0

    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["facts"]["times"] for row in rows] == [5, 6, 7, 8]
    assert {row["event"] for row in rows} == {"tls-failed"}
    assert ledger("show", state, "--since=1s") == 0
    assert capsys.readouterr().out == ""


def test_show_names_a_bad_line_and_prints_the_others(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = min((state / "ledger").glob("segment-*"))
    path.write_bytes(path.read_bytes().replace(b"rollback", b"rollbuck", 1))

    assert ledger("show", state) == 1

    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 25
    assert shown.err == (
        "warning: segment-000000000000.jsonl:2:"
        " its check value does not hold: the line was altered\n"
    )


def test_verify_tells_what_holds(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ledger("verify", state, key(state)) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "the ledger holds: 26 entries, 0 retired before"
    assert lines[2] == "last checkpoint, signature holds: 23 entries, 3 behind"


def test_verify_says_when_nobody_s_signature_was_checked(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ledger("verify", state) == 0

    assert "signatures were not checked" in capsys.readouterr().err


def test_verify_refuses_another_device_s_ledger(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ledger("verify", state, key(state, "other")) == 1

    assert "segment-000000000000.jsonl:8: its checkpoint" in capsys.readouterr().err


def test_verify_holds_the_ledger_against_heads_that_were_seen(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size, root = head(state, capsys)

    assert ledger("verify", state, f"--head={size}:{root}") == 0
    assert ledger("verify", state, f"--head={size}:{'00' * 32}") == 1
    assert "another ledger of 26 entries was seen" in capsys.readouterr().err
    assert ledger("verify", state, f"--head={size + 1}:{root}") == 1
    assert "a ledger of 27 entries was seen, this one has 26" in capsys.readouterr().err
    assert ledger("verify", state, "--head=26:beef") == 2


def test_verify_holds_the_ledger_against_an_envelope(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size, root = head(state, capsys)
    made = batch(SPEED)
    for name, seen in (("good", bytes.fromhex(root)), ("bad", bytes(32))):
        sealed = header(made, device(), ledger_size=size, ledger_root=seen)
        data = seal(b"x", sealed, recipient=recipient(), device=device())
        (tmp_path / name).write_bytes(data)

    assert ledger("verify", state, key(state), f"--envelope={tmp_path / 'good'}") == 0
    assert ledger("verify", state, key(state), f"--envelope={tmp_path / 'bad'}") == 1
    assert "bad: another ledger of 26 entries was seen" in capsys.readouterr().err
    assert ledger("verify", state, key(state, "other"), f"--envelope={tmp_path / 'good'}") == 1
    assert ledger("verify", state, f"--envelope={tmp_path / 'good'}") == 2


def test_verify_notices_every_flipped_bit_of_the_directory(state: Path) -> None:
    """In any file of it; a whole rewrite with new check values is another test."""
    paths = sorted((state / "ledger").iterdir())
    assert len(paths) == 5
    for path in paths:
        whole = path.read_bytes()
        for bit in range(0, 8 * len(whole), 41):
            altered = bytearray(whole)
            altered[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bytes(altered))

            assert ledger("verify", state) == 1, (path.name, bit)
        path.write_bytes(whole)
    assert ledger("verify", state) == 0


@pytest.mark.parametrize("which", range(5))
def test_verify_notices_a_missing_file(state: Path, which: int) -> None:
    paths = sorted((state / "ledger").iterdir())
    assert paths[0].name == "head"
    paths[which].unlink()

    # Without the first segment it looks as if that had been retired; without `head` nothing is
    # wrong but that the end may be missing.
    assert ledger("verify", state) == (0 if which < 2 else 1)


def test_verify_notices_a_past_that_was_written_anew(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By whoever has the board and its key: the lines, tree and signatures all hold."""
    size, root = head(state, capsys)
    forged = tmp_path / "forged"
    with opened(forged) as other:
        other.append(event(NOW_NS, "stopped", reason="nothing-was-here"), durable=True)
        fill(other, 12)

    assert ledger("verify", forged, key(state)) == 0
    assert ledger("verify", forged, key(state), f"--head={size}:{root}") == 1


def test_verify_without_a_ledger_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ledger("verify", tmp_path) == 1

    shown = capsys.readouterr().err
    assert "there is no ledger in" in shown
    assert "hint: name the state directory with --state" in shown


def test_reading_works_while_the_agent_writes(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(state) as writer:
        fill(writer, 4)
        assert ledger("verify", state, key(state)) == 0
        assert ledger("show", state) == 0
        capsys.readouterr()
        assert ledger("prove", state, "3") == 0
        fill(writer, 4)
    assert ledger("verify", state, key(state)) == 0


def proven(state: Path, capsys: pytest.CaptureFixture[str], *what: str) -> Path:
    capsys.readouterr()
    assert ledger("prove", state, *what) == 0
    file = state.parent / "proof.json"
    file.write_text(capsys.readouterr().out)
    return file


def test_each_entry_can_be_proven_to_somebody_without_the_ledger(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for entry in range(23):
        file = proven(state, capsys, str(entry))
        assert ledger("verify", tmp_path / "nowhere", key(state), f"--proof={file}") == 0
        shown = capsys.readouterr()
        assert "this entry is among the first 23" in shown.out
        assert shown.err == ""
    assert ledger("verify", state, key(state, "other"), f"--proof={file}") == 1


def test_an_entry_behind_the_last_checkpoint_is_proven_against_the_head(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size, root = head(state, capsys)
    file = proven(state, capsys, "24")

    assert ledger("verify", state, key(state), f"--proof={file}") == 0
    assert "nobody vouches for its root" in capsys.readouterr().err
    assert ledger("verify", state, f"--head={size}:{root}", f"--proof={file}") == 0
    assert capsys.readouterr().err == ""
    assert ledger("verify", state, f"--head={size}:{'00' * 32}", f"--proof={file}") == 1


def test_growth_since_a_head_can_be_proven(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = proven(state, capsys, "--from=9")

    assert ledger("verify", state, key(state), "--json", f"--proof={file}") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["size"], told["vouched"], told["entry"]) == (23, True, None)
    assert ledger("verify", state, key(state), f"--proof={file}") == 0
    assert "the first 9 of 23 entries are the same" in capsys.readouterr().out


def test_what_is_not_there_or_was_retired_cannot_be_proven(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ledger("prove", state, "26") == 1
    assert "has no entry 26" in capsys.readouterr().err
    assert ledger("prove", state) == 2
    assert ledger("prove", state, "1", "--from=2") == 2

    min((state / "ledger").glob("segment-*")).unlink()
    capsys.readouterr()
    assert ledger("prove", state, "3") == 1
    shown = capsys.readouterr().err
    assert "entry 3 was retired, the ledger begins at entry 8" in shown
    assert "hint: entries are kept for 180 days" in shown
    assert ledger("verify", state, f"--head=5:{'00' * 32}") == 1
    assert "a head of 5 cannot be checked" in capsys.readouterr().err


def test_a_ledger_that_was_set_aside_can_still_be_read(state: Path, tmp_path: Path) -> None:
    aside = tmp_path / "ledger.damaged-1"
    shutil.copytree(state / "ledger", aside)

    assert ledger("show", aside) == 0
    assert ledger("verify", aside) == 0
