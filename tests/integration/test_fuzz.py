"""A short run of the fuzzer: each target, one seed. `make fuzz` is the long one."""

import time
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.run import HANG_S, TARGETS, Figures, faults, judge, run
from tests.fuzz.target import ACCEPTED, Target, Verdict, insist

EXECUTIONS = 400


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_mutated_and_signed_again_crashes_hangs_or_is_taken_wrongly(
    name: str, tmp_path: Path
) -> None:
    target = TARGETS[name]
    seen = Figures()

    for figures in run(target, seed=1, numbers=range(EXECUTIONS), folder=tmp_path):
        seen.add(figures)

    assert seen.executions == EXECUTIONS
    assert not faults({name: seen})


@pytest.mark.parametrize("name", TARGETS)
def test_a_seed_and_a_number_make_the_same_input(name: str) -> None:
    """But for the randomness of HPKE, which the envelope's inputs hold."""
    made = [[TARGETS[name].make(Random(f"7/{n}")) for n in range(20)] for _ in range(2)]

    same = sum(a == b for a, b in zip(*made, strict=True))
    assert same == 20 or (name == "envelope" and same > 10)


def _target(judged: str) -> Target:
    def judge_it(_: bytes) -> Verdict:
        if judged == "hang":
            while True:
                pass
        if judged == "crash":
            raise IndexError
        insist(judged != "wrong", "more than was granted")
        return Verdict(judged == ACCEPTED, judged)

    return Target("made up", lambda rng: rng.randbytes(3), judge_it, "none")


@pytest.mark.parametrize(
    ("judged", "told"), [("hang", "hang"), ("crash", "IndexError"), ("wrong", "more than was")]
)
def test_the_fuzzer_sees_a_crash_a_hang_and_a_wrong_acceptance(
    judged: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fuzz.run.HANG_S", 0.05)
    began_s = time.monotonic()
    seen = next(iter(run(_target(judged), seed=1, numbers=range(1), folder=tmp_path)))

    (path, what), *more = seen.findings
    assert told in what
    assert not more
    assert Path(path).read_bytes() == Random("1/made up/0").randbytes(3)
    assert time.monotonic() - began_s < 10 * HANG_S


def test_a_run_in_which_too_few_get_past_the_first_parser_fails() -> None:
    target = _target("refused")
    seen = Figures(executions=1)

    assert judge(target, b"", seen) is None

    TARGETS["made up"] = target
    try:
        told = faults({"made up": seen})
    finally:
        del TARGETS["made up"]
    assert [line.split(": ")[1][:12] for line in told] == ["0 of 1 got p", "nothing was "]
