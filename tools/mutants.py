"""Puts small faults into the consent code and sees whether a unit test notices.

Rules:
 * The unit tests are collected and run once, unchanged, noting which test runs which line. Each
   mutant then gets a process of its own, forked, in which the tests that run its lines are run,
   fastest first, until one fails: then the mutant is killed. One that takes too long is too.
 * Where a module has more mutants than are asked for, a sample is drawn by a seed.
 * What Hypothesis draws is the same for every mutant.

    make mutants                                    all; report in docs/reports/mutants.md
    make mutants MODULES=agent/core/plan.py         one module; its lines in the report are renewed
"""

import argparse
import gc
import importlib
import os
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol  # A test without its line in the terminal.
from mutation import Mutant, Source

ROOT = Path(__file__).resolve().parent.parent
CORE = tuple(
    f"agent/core/{name}.py"
    for name in (
        *("policy", "plan", "gate", "sampling", "aggregate", "timewindow", "constraint"),
        *("standing", "clock"),
    )
)
STORE = tuple(
    f"agent/edge/store/{name}.py"
    for name in (
        *("store", "consent", "grants", "overlays", "marks", "follower", "spool", "rows", "room"),
        *("numbers", "gaps", "unstored", "erasure", "offers", "tallies", "upkeep"),
    )
)
CONTROL = tuple(
    f"agent/control/{name}.py"
    for name in ("consent", "restrictions", "signers", "livegrant", "contact", "stops")
)
TESTS = (
    *(
        f"tests/unit/core/test_{name}.py"
        for name in (
            *(
                "policy",
                "plan",
                "sampling",
                "pipeline",
                "pipeline_aggregate",
                "aggregate",
                "pipeline_transport",
            ),
            *("timewindow", "constraint", "standing", "clock", "permission", "rollup"),
            *("expansion", "document_vectors"),
        )
    ),
    *(
        f"tests/unit/edge/test_store{name}.py"
        for name in ("", "_spool", "_overlays", "_erasure", "_gaps", "_migration", "_parts")
    ),
    "tests/unit/control",
)
TIMEOUT_S = 10.0  # On top of ten times what the tests take.
MAX_BYTES = 2 << 30  # A loop without an end must not take the machine's memory.
SLOWEST_S = 20.0  # A test that takes longer is left out: it would run for every survivor.

_MODULE = re.compile(r"\| `([^`:]+)(?::[0-9]+)?`")  # A line of the report.
_Key = tuple[str, int]  # A function: its qualified name and first line.


class Outcome(StrEnum):
    """What became of a mutant."""

    KILLED = "killed"
    TIMEOUT = "timeout"
    SURVIVED = "survived"
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class Result:
    """One mutant and what became of it."""

    module: str
    mutant: Mutant
    outcome: Outcome


class Hunt:
    """A pytest plugin that runs the mutants in the place of the tests."""

    def __init__(self, modules: Sequence[str], seed: int, most: int, folder: Path) -> None:
        """Begin.

        Args:
            modules: Paths, from the root.
            seed: Draws the sample.
            most: Mutants of a module.
            folder: Where the tests write; what a mutant leaves there is removed.
        """
        self.modules = modules
        self._folder = folder
        self.seed = seed
        self.most = most
        self.results: list[Result] = []
        self.counts: dict[str, int] = {}
        self._out = os.fdopen(os.dup(1), "w")  # pytest captures the other one.
        self._seconds: dict[str, float] = {}
        self._covering: dict[tuple[str, int], list[pytest.Item]] = defaultdict(list)

    def say(self, text: str) -> None:
        """Print past pytest."""
        print(text, file=self._out, flush=True)

    def pytest_sessionstart(self) -> None:
        """Make Hypothesis draw the same again and again, before tests ask what it draws."""
        from hypothesis import Phase, settings  # noqa: PLC0415 - pytest wants to load it first

        phases = (Phase.explicit, Phase.generate)
        settings.register_profile(
            "mutants", derandomize=True, database=None, deadline=None, phases=phases
        )
        settings.load_profile("mutants")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run everything."""
        self._run_unchanged(session.items)
        for module in self.modules:
            self._hunt(module)
        return True

    def _run_unchanged(self, items: Sequence[pytest.Item]) -> None:
        paths = {str(ROOT / module): module for module in self.modules}
        for item, after in zip(items, [*items[1:], None], strict=True):
            seen: set[tuple[str, int]] = set()
            began = time.monotonic()
            sys.settrace(_tracer(paths, seen))
            try:
                failed = _fails(item, after)
            finally:
                sys.settrace(None)
            self._seconds[item.nodeid] = time.monotonic() - began
            if failed:
                self.say(f"left out, fails unchanged: {item.nodeid}")
            elif self._seconds[item.nodeid] > SLOWEST_S:
                self.say(f"left out, too slow: {item.nodeid}")
            else:
                for line in seen:
                    self._covering[line].append(item)
        self.say(f"{len(items)} tests, {sum(self._seconds.values()):.0f} s with tracing")

    def _hunt(self, module: str) -> None:
        source = Source(ROOT / module)
        functions = _functions_of(str(source.path))
        chosen = [m for m in source.mutants if m.in_function or m.name is not None]
        self.counts[module] = len(chosen)
        if len(chosen) > self.most:
            drawn = random.Random(f"{self.seed} {module}").sample(range(len(chosen)), self.most)
            chosen = [chosen[index] for index in sorted(drawn)]
        for number, mutant in enumerate(chosen, 1):
            items = self._items(module, source, mutant)
            outcome = Outcome.NOT_RUN
            if items:
                code = source.compiled(mutant)
                put = _putter(module, code, functions, mutant)
                outcome = self._try(items, put)
            self.results.append(Result(module, mutant, outcome))
            if outcome in (Outcome.SURVIVED, Outcome.NOT_RUN):
                self.say(f"  {number}/{len(chosen)} {_place(module, mutant)} {outcome}")
                self.say(f"      {mutant.before}\n      {mutant.after}")
            elif number % 50 == 0:
                self.say(f"  {number}/{len(chosen)}")
        self.say(_row(module, self.counts[module], self.results))

    def _items(self, module: str, source: Source, mutant: Mutant) -> list[pytest.Item]:
        """Return the tests that run a mutant, fastest first."""
        lines: Iterable[int] = mutant.lines
        if not mutant.in_function and mutant.name is not None:
            lines = source.uses(mutant.name)
        found = {item for line in lines for item in self._covering.get((module, line), ())}
        if not found and not mutant.in_function:
            found = {
                item
                for (name, _), items in self._covering.items()
                if name == module
                for item in items
            }
        return sorted(found, key=lambda item: self._seconds[item.nodeid])

    def _try(self, items: Sequence[pytest.Item], put: Callable[[], None]) -> Outcome:
        timeout_s = TIMEOUT_S + 10 * sum(self._seconds[item.nodeid] for item in items)
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            for limit in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE):
                resource.setrlimit(limit, (MAX_BYTES, MAX_BYTES))
            status = 1
            try:
                put()
                failed = any(_fails(item, None) for item in items)
                status = 1 if failed else 0
            finally:
                os._exit(status)
        watch = os.pidfd_open(pid)
        try:
            ended, _, _ = select.select([watch], [], [], timeout_s)
        finally:
            os.close(watch)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        for left in self._folder.iterdir():
            shutil.rmtree(left, ignore_errors=True)
        if not ended:
            return Outcome.TIMEOUT
        return Outcome.SURVIVED if status == 0 else Outcome.KILLED


def _tracer(paths: Mapping[str, str], seen: set[tuple[str, int]]) -> Any:
    def line(frame: FrameType, _event: str, _argument: object) -> Any:
        seen.add((paths[frame.f_code.co_filename], frame.f_lineno))
        return line

    def call(frame: FrameType, _event: str, _argument: object) -> Any:
        return line if frame.f_code.co_filename in paths else None

    return call


def _fails(item: pytest.Item, after: pytest.Item | None) -> bool:
    return any(report.failed for report in runtestprotocol(item, log=False, nextitem=after))


def _functions_of(path: str) -> dict[_Key, list[FunctionType]]:
    found: dict[_Key, list[FunctionType]] = defaultdict(list)
    for thing in gc.get_objects():
        if isinstance(thing, FunctionType) and thing.__code__.co_filename == path:
            found[thing.__code__.co_qualname, thing.__code__.co_firstlineno].append(thing)
    return found


def _putter(
    module: str,
    code: CodeType,
    functions: Mapping[_Key, Sequence[FunctionType]],
    mutant: Mutant,
) -> Callable[[], None]:
    """Return what puts a mutant into the modules that are loaded."""

    def put() -> None:
        # Fields, properties and closures keep their function objects; only what they run changes.
        for changed in _codes(code):
            for function in functions.get((changed.co_qualname, changed.co_firstlineno), ()):
                if len(changed.co_freevars) == len(function.__code__.co_freevars):
                    function.__code__ = changed
        if not mutant.in_function and mutant.name is not None:
            _put_constants(module, code)

    return put


def _codes(code: CodeType) -> Iterable[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _put_constants(module: str, code: CodeType) -> None:
    """Give every module that has taken a constant over the changed one."""
    name = module.removesuffix(".py").replace("/", ".")
    loaded = importlib.import_module(name)
    fresh: dict[str, Any] = {"__name__": name, "__file__": str(ROOT / module)}
    exec(code, fresh)  # noqa: S102 - our own module, with one fault
    for constant, value in fresh.items():
        before = getattr(loaded, constant, None)
        if not constant.strip("_").isupper() or before is None or before == value:
            continue
        for other in list(sys.modules.values()):
            if other.__name__.startswith("agent.") and vars(other).get(constant) == before:
                setattr(other, constant, value)


def _place(module: str, mutant: Mutant) -> str:
    return f"{module}:{mutant.lines.start}"


def _row(module: str, of: int, results: Sequence[Result]) -> str:
    count = Counter(result.outcome for result in results if result.module == module)
    killed = count[Outcome.KILLED] + count[Outcome.TIMEOUT]
    share = f"{100 * killed / count.total():.1f}" if count else "-"
    cells = (
        *(f"`{module}`", of, count.total(), killed, count[Outcome.TIMEOUT]),
        *(count[Outcome.SURVIVED], count[Outcome.NOT_RUN], f"{share} %"),
    )
    return f"| {' | '.join(map(str, cells))} |"


def _commit() -> str:
    return subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD"],  # noqa: S607 - the git that is in use
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    ).stdout.strip()


def _write_report(path: Path, hunt: Hunt, commit: str) -> None:
    """Write what was found; lines of modules that were not tried stay as they are."""
    rows: dict[str, list[str]] = {module: [] for module in (*CORE, *STORE, *CONTROL)}
    if path.exists():
        for line in path.read_text().splitlines():
            found = _MODULE.match(line)
            if found is not None and found[1] not in hunt.modules:
                rows.setdefault(found[1], []).append(line)
    for module in hunt.modules:
        row = _row(module, hunt.counts[module], hunt.results)
        rows[module] = [f"{row} {commit} | {hunt.seed} |"]
    for result in hunt.results:
        if result.outcome in (Outcome.SURVIVED, Outcome.NOT_RUN):
            texts = (result.mutant.before, result.mutant.after)
            before, after = (f"`` {text.replace('|', chr(92) + '|')} ``" for text in texts)
            mark = ", not run" if result.outcome is Outcome.NOT_RUN else ""
            line = f"| `{_place(result.module, result.mutant)}`{mark} | {before} | {after} |"
            rows[result.module].append(line)
    lines = [
        "# Mutants",
        "",
        (
            "Written by `make mutants`: of each module the commit it was tried on top of, how many "
            "mutants there are, how many of them were tried (a sample drawn by the seed, where "
            "there are more), and what became of them. What the survivors mean is said in "
            "[testing.md](../testing.md#mutants)."
        ),
        "",
        (
            "| module | mutants | tried | killed | of them by time | survived | not run | share "
            "| commit | seed |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|",
        *(lines[0] for lines in rows.values() if lines),
        "",
        "## Survivors",
        "",
        "| place | as it is | survives as |",
        "|---|---|---|",
        *(line for lines in rows.values() for line in lines[1:]),
    ]
    path.write_text("\n".join(lines) + "\n")


def main() -> int:
    """Run the mutants that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", default=[*CORE, *STORE])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--most", type=int, default=300, help="mutants per module")
    parser.add_argument("--report", type=Path)
    given = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="mutants-", dir=_memory()))
    hunt = Hunt(given.modules, given.seed, given.most, base / "tests")
    commit = _commit()
    try:
        os.chdir(ROOT)
        pytest.main(
            [
                *("-q", "-p", "no:randomly", "-p", "no:xdist"),
                *("-o", "timeout=0"),
                f"--basetemp={base / 'tests'}",
                *TESTS,
            ],
            plugins=[hunt],
        )
    finally:
        shutil.rmtree(base, ignore_errors=True)
    print(*(_row(m, hunt.counts.get(m, 0), hunt.results) for m in given.modules), sep="\n")
    if given.report is not None:
        _write_report(given.report, hunt, commit)
    return 0 if hunt.results else 1


def _memory() -> str | None:
    """Return a folder in memory, where there is one: thousands of little databases are written."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - mkdtemp makes it ours


if __name__ == "__main__":
    sys.exit(main())
