"""The loop around the targets: counts, a watch on time and memory, a file of each finding."""

import argparse
import contextlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from tests.fuzz import asked, documents, files, frames, receiver, sealed
from tests.fuzz.target import ACCEPTED, Target

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (documents, sealed, files, receiver, frames, asked)
    for target in module.TARGETS
}
HANG_S = 2.0  # Of processor time, so that a busy machine is no finding.
MEMORY_BYTES = 512 << 20  # What one worker may take beside what it has when it begins.
MAX_FINDINGS = 5  # Of a target; then it is over.
TURNS = 12
_BEAT = 500


@dataclass
class Figures:
    """What was seen of one target.

    Attributes:
        past: How many got past the first parser.
        outcomes: What became of the inputs.
        findings: (file, what happened) of each crash, hang or wrong acceptance.
        seconds: Processor time.
    """

    executions: int = 0
    past: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: "Figures") -> None:
        """Add what another worker saw."""
        self.executions += other.executions
        self.past += other.past
        self.outcomes += other.outcomes
        self.findings += other.findings
        self.seconds += other.seconds


class Hang(BaseException):
    """One execution took longer than HANG_S."""


def run(
    target: Target,
    *,
    seed: int,
    numbers: Iterator[int] | range,
    folder: Path,
    until_s: float | None = None,
) -> Iterator[Figures]:
    """Run a target on the inputs of these numbers; yield what came of every _BEAT of them."""
    figures = Figures()
    began = time.process_time()
    with _watch():
        for number in numbers:
            figures.executions += 1
            _once(target, Random(f"{seed}/{target.name}/{number}"), number, figures, folder)
            is_over = until_s is not None and time.monotonic() > until_s
            if figures.executions == _BEAT or is_over or len(figures.findings) >= MAX_FINDINGS:
                figures.seconds = time.process_time() - began
                yield figures
                if is_over or len(figures.findings) >= MAX_FINDINGS:
                    return
                figures, began = Figures(), time.process_time()
    figures.seconds = time.process_time() - began
    yield figures


def _once(target: Target, rng: Random, number: int, figures: Figures, folder: Path) -> None:
    data = target.make(rng)
    fault = judge(target, data, figures)
    if fault is not None and fault.startswith("hang"):
        # The time that a virtual machine stands still is charged to whoever ran.
        fault = judge(target, data, figures)
    if fault is not None:
        path = folder / f"{target.name.replace(' ', '-')}-{number}.bin"
        path.write_bytes(data)
        figures.findings.append((str(path), fault))


def judge(target: Target, data: bytes, figures: Figures) -> str | None:
    """Judge one input; count what became of it, or return what is wrong."""
    signal.setitimer(signal.ITIMER_PROF, HANG_S)
    try:
        verdict = target.judge(data)
    except Hang:
        return f"hang: more than {HANG_S:.0f} s"
    except Exception as exc:  # noqa: BLE001 - whatever it is, it is a finding
        place = traceback.extract_tb(exc.__traceback__)[-1]
        told = f"{type(exc).__name__} at {Path(place.filename).name}:{place.lineno}"
        return f"{told}: {exc}" if isinstance(exc, AssertionError) else told
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    figures.past += verdict.is_past
    figures.outcomes[verdict.outcome] += 1
    return None


@contextlib.contextmanager
def _watch() -> Iterator[None]:
    def ring(_: int, __: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, ring)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _work(
    pipe: Connection,
    jobs: Sequence[tuple[str, range]],
    seed: int,
    folder: Path,
    until_s: float | None,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, ValueError):
        taken = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
        limit = taken + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for name, numbers in jobs:
        for figures in run(
            TARGETS[name], seed=seed, numbers=numbers, folder=folder, until_s=until_s
        ):
            pipe.send((name, figures))
    pipe.close()


def run_all(
    names: Sequence[str],
    *,
    executions: int,
    seed: int,
    workers: int,
    folder: Path,
    seconds: float | None = None,
) -> dict[str, Figures]:
    """Run targets in processes of their own; return what was seen of each.

    Args:
        names: Of the targets; they take turns, so that a run that is ended has seen all of them.
        executions: Of all of them, by their weights.
        seed: With target and number it makes the input.
        workers: Processes.
        folder: For findings.
        seconds: When to end in any case.
    """
    weights = sum(TARGETS[name].weight for name in names)
    counts = {name: -(-executions * TARGETS[name].weight // weights) for name in names}
    turns = [
        (name, int(counts[name] * turn // TURNS), int(counts[name] * (turn + 1) // TURNS))
        for turn in range(TURNS)
        for name in names
    ]
    until_s = None if seconds is None else time.monotonic() + seconds
    context = multiprocessing.get_context("fork")
    pipes = []
    for worker in range(workers):
        ours, theirs = context.Pipe(duplex=False)
        jobs = [(name, range(first + worker, end, workers)) for name, first, end in turns]
        arguments = (theirs, jobs, seed, folder, until_s)
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        theirs.close()
        pipes.append((ours, process))
    total = {name: Figures() for name in names}
    try:
        _gather(pipes, total, sum(end - first for _, first, end in turns))
    except KeyboardInterrupt:
        sys.stderr.write("ended before its time\n")
    return total


def _gather(pipes: list[tuple[Connection, Any]], total: dict[str, Figures], goal: int) -> None:
    began_s = time.monotonic()
    told_s = 0.0
    is_terminal = sys.stderr.isatty()
    while pipes:
        for ready in wait([pipe for pipe, _ in pipes], timeout=5):
            pipe, process = next(pair for pair in pipes if pair[0] is ready)
            try:
                name, figures = pipe.recv()
            except EOFError:
                process.join()
                pipes.remove((pipe, process))
                if process.exitcode:
                    raise SystemExit(f"error: a worker ended with {process.exitcode}") from None
                continue
            total[name].add(figures)
            done = sum(figures.executions for figures in total.values())
            now_s = time.monotonic() - began_s
            if now_s - told_s > (1 if is_terminal else 30):
                told_s = now_s
                line = f"{done:,} of {goal:,} executions, {now_s:.0f} s, {name}"
                sys.stderr.write(f"\r{line}\033[K" if is_terminal else f"{line}\n")
    if is_terminal:
        sys.stderr.write("\r\033[K")


def faults(total: dict[str, Figures]) -> list[str]:
    """Return what is wrong with a run; nothing where it shows what it must."""
    told = []
    for name, figures in total.items():
        told += [
            f"{name}: {what}; judge it again: {replay(name, path)}"
            for path, what in figures.findings
        ]
        least = TARGETS[name].least_past * figures.executions
        if figures.past < least:
            told.append(
                f"{name}: {figures.past} of {figures.executions} got past the first parser, "
                f"expected {least:.0f} or more"
            )
        if not figures.outcomes[ACCEPTED]:
            told.append(
                f"{name}: nothing was accepted, so the judge of acceptance had nothing to do"
            )
    return told


def replay(name: str, path: str) -> str:
    """Return the command that judges a kept input again."""
    return f"python -m tests.fuzz --target '{name}' --replay {path}"


def table(total: dict[str, Figures]) -> str:
    """Return the figures as a table."""
    lines = [
        "| target | first parser | executions | past it | accepted | refused after it, for | findings |",
        "|---|---|---:|---:|---:|---|---:|",
    ]
    for name, figures in total.items():
        refused = Counter({key: n for key, n in figures.outcomes.items() if key != ACCEPTED})
        reasons = ", ".join(f"{key} {count:,}" for key, count in refused.most_common(6))
        lines.append(
            f"| {name} | {TARGETS[name].first} | {figures.executions:,} | {figures.past:,} | "
            f"{figures.outcomes[ACCEPTED]:,} | {reasons} | {len(figures.findings)} |"
        )
    sums = [sum(getattr(f, name) for f in total.values()) for name in ("executions", "past")]
    accepted = sum(figures.outcomes[ACCEPTED] for figures in total.values())
    findings = sum(len(figures.findings) for figures in total.values())
    lines.append(f"| together | | {sums[0]:,} | {sums[1]:,} | {accepted:,} | | {findings} |")
    return "\n".join(lines) + "\n"


def _commit() -> str:
    """Return what is run, before it can change."""
    words = ["git", "log", "-1", "--format=%h of %cs"]
    found = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    return found or "an unknown commit"


def _report(total: dict[str, Figures], **ran: Any) -> str:
    commit, seed, workers, seconds = (ran[n] for n in ("commit", "seed", "workers", "seconds"))
    cpu_s = sum(figures.seconds for figures in total.values())
    return (
        "# Fuzz run\n\nWritten by `python -m tests.fuzz --report` (`make fuzz`); docs/testing.md says"
        " what a target is and what is judged.\n\n"
        f"Seed {seed}, commit {commit}, {workers} workers, {seconds:.0f} s,"
        f" {cpu_s:.0f} s of processor time. No execution took more than {HANG_S:.0f} s of processor"
        f" time, no worker more than {MEMORY_BYTES >> 20} MiB beside what it began with.\n\n"
        f"{table(total)}"
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), metavar="NAME")
    parser.add_argument("--executions", type=int, default=20_000, help="of all targets together")
    parser.add_argument("--seconds", type=float, help="end then, whatever was done")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--replay", type=Path, help="judge one kept input of --target")
    parser.add_argument("--list", action="store_true", help="name the targets")
    given = parser.parse_args()
    names = given.target or list(TARGETS)
    if given.list:
        sys.stdout.write("\n".join(TARGETS) + "\n")
        return
    if given.replay is not None:
        if len(names) != 1:
            parser.error("--replay needs one --target")
        with _watch():
            figures = Figures()
            fault = judge(TARGETS[names[0]], given.replay.read_bytes(), figures)
        sys.stdout.write(f"{fault or next(iter(figures.outcomes))}\n")
        raise SystemExit(fault is not None)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    began, commit = time.monotonic(), _commit()
    total = run_all(
        names,
        executions=given.executions,
        seed=given.seed,
        workers=given.workers,
        folder=folder,
        seconds=given.seconds,
    )
    sys.stdout.write(table(total))
    wrong = faults(total)
    if not any(figures.findings for figures in total.values()):
        folder.rmdir()
    if given.report is not None:
        given.report.parent.mkdir(parents=True, exist_ok=True)
        seconds = time.monotonic() - began
        made = _report(
            total, commit=commit, seed=given.seed, workers=given.workers, seconds=seconds
        )
        given.report.write_text(made, encoding="utf-8")
    for line in wrong:
        sys.stderr.write(f"error: {line}\n")
    raise SystemExit(bool(wrong))
