"""Cut the power of a vehicle again and again, and hold its disk against what it had claimed.

    host: seed, scissors, what was claimed outside ─► oracle ◄─ the disk as the next boot finds it
    guest: vehicle ─► ext4 disk; ─► broker that writes outside before it acknowledges

The guest of tests/vm is killed with SIGKILL, or restarts without a sync (sysrq), at a chosen moment
while it writes, and boots again on the same disk. `tests.powercut_oracle` says what must be there.

`python -m tests.powercut --cuts 50 --report docs/reports/powercut.md` is part of `make test-long`.
"""

import argparse
import compileall
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.cloud import Cloud
from tests.crash import as_table, settings, write_car, write_report
from tests.peer import wait_until
from tests.powercut_child import AIM_S, CONSENT, CUT, IDLE, LEDGER, PUBLISH, SPOOL
from tests.powercut_oracle import Outside
from tests.timelapse import drawn

NAMES = {
    CONSENT: "commit of consent",
    SPOOL: "commit of the spool",
    LEDGER: "sync of the ledger",
    PUBLISH: "publish unacknowledged",
    IDLE: "idle",
}
HOWS = {"kill": "the host killed the guest", CUT: "the guest restarted itself without a sync"}
CUT_BY_GUEST = 0.5
BOOT_S = 120.0
GONE = 125  # vmkit: the guest ended before its command did.
ROOT = Path(__file__).resolve().parent.parent
VMKIT = ROOT / "tests" / "vm" / "vmkit"
CACHE = Path(os.environ.get("VMKIT_CACHE") or Path.home() / ".cache" / "consentry-vm")


@dataclass
class Figures:
    """What was seen.

    Attributes:
        moments: What was under way when the power went.
        hows: Who cut it.
    """

    cuts: int
    seed: int
    moments: Counter[str] = field(default_factory=Counter)
    hows: Counter[str] = field(default_factory=Counter)
    committed: int = 0
    claimed: int = 0
    unclaimed: int = 0
    opened: int = 0
    duplicates: int = 0
    told: int = 0
    versions: int = 0
    heads: int = 0
    entries: int = 0
    seconds: float = 0.0

    def as_text(self) -> str:
        """Return a table for a report."""
        return as_table(
            [
                ("power cuts", self.cuts),
                ("seed", self.seed),
                *((f"cut: {name}", self.hows[name]) for name in HOWS.values()),
                *((f"under way: {name}", self.moments[name]) for name in NAMES.values()),
                ("policies acknowledged", self.versions),
                ("envelopes committed", self.committed),
                ("of them claimed to be, before the cut", self.claimed),
                ("of them on disk before the vehicle could say so", self.unclaimed),
                ("opened at the recipient, once each", self.opened),
                ("came again and were told apart", self.duplicates),
                ("erased with a grant or rev, and told", self.told),
                ("heads of the ledger that were told", self.heads),
                ("entries of the ledger", self.entries),
                ("lost, drawn twice, back after a revocation", 0),
                ("files set aside or damaged", 0),
                ("seconds", round(self.seconds)),
            ]
        )


def absence() -> str:
    """Return why there is no guest here, or "" where one is built; as root it is built in CI."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return "the guest is for Linux on x86-64"
    if subprocess.run([VMKIT, "built"], check=False).returncode == 0:
        return ""
    if os.environ.get("CI") and os.geteuid() == 0:
        build()
        return ""
    return "the guest was not built; build it once as root: tests/vm/vmkit build"


def build() -> None:
    subprocess.run(
        [VMKIT, "build"],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHON": sys.executable},
    )


class Guest:
    """A vehicle with a disk that outlives it."""

    def __init__(self, folder: Path, engine: str) -> None:
        self._engine, self._folder = engine, folder
        self.source = folder / "source"
        self.car = self.source / "car"
        self._boots = 0
        wheel: list[str | Path] = [
            sys.executable,
            "-m",
            "hatchling",
            "build",
            "-t",
            "wheel",
            "-d",
            folder / "wheel",
        ]
        subprocess.run(wheel, check=True, cwd=ROOT, capture_output=True)
        with zipfile.ZipFile(next((folder / "wheel").iterdir())) as packed:
            packed.extractall(self.source)
        for name in ("tests", "config"):
            shutil.copytree(ROOT / name, self.source / name)
        if sys.version_info[:2] == (3, 11):  # The guest's: it need not compile at each boot.
            compileall.compile_dir(self.source, quiet=1, maxlevels=4)
        self.car.mkdir()

    @contextmanager
    def running(self, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        """Boot; give the process and the folder that the guest writes to."""
        self._boots += 1
        out = self._folder / f"boot-{self._boots:04}"
        out.mkdir()
        command: list[str | Path] = [VMKIT, "run", "--engine", self._engine, "--bare"]
        command += ["--share", self.source, "--out", out, "--disk", self._folder / "disk"]
        command += ["--timeout", str(int(BOOT_S)), "--", "python", "-m", "tests.powercut_child"]
        with (out / "log").open("wb") as log:
            process = subprocess.Popen(
                [*command, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            yield process, out
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(30)

    def cut(self, process: subprocess.Popen[bytes], out: Path) -> None:
        """Kill the guest's processes, all at once; nothing of it can be written any more."""
        runs = [path for path in CACHE.glob("run.*/out") if path.resolve() == out.resolve()]
        (pid_file,) = runs[0].parent.glob("tmp/*/pid")
        group = int(pid_file.read_text())
        os.killpg(group, signal.SIGKILL)
        process.wait(30)


def run(
    folder: Path, *, cuts: int, seed: int, engine: str = "uml", careless: str = "nobody"
) -> Figures:
    """Cut the power so often, and judge the disk after each.

    Raises:
        AssertionError: Something was lost, came back or is damaged.
    """
    chance = random.Random(seed)
    figures = Figures(cuts, seed)
    begun_s = time.monotonic()
    guest, cloud = Guest(folder, engine), Cloud()
    outside = Outside(cloud)
    write_car(guest.car, cloud)
    cloud.save(guest.car)
    uplink = {"port": 1, "plaintext_loopback": True}
    config = settings(uplink, socket="/run/car.sock", state="/data/state", max_age_s=0.02)
    (guest.car / "config.json").write_text(json.dumps(config), encoding="utf-8")
    base_s = int(time.time())
    for _ in range(cuts):
        known = {"ver": outside.signed, "base_s": base_s}
        (guest.car / "platform.json").write_text(json.dumps(known), encoding="utf-8")
        _shoot(guest, outside, chance, figures, careless)
    with guest.running("drain", str(IDLE), "0", careless) as (process, out):
        assert process.wait(BOOT_S) == 0, _log(out)
    _judge(outside, out / "state.tar")
    outside.read(out / "outside")
    figures.entries = _judge(outside, out / "end.tar")
    last = drawn(_unpacked(out / "end.tar"))
    outside.account(last)
    figures.committed = sum(last.values())
    figures.claimed = len(outside.kept)
    figures.unclaimed = len(outside.unclaimed)
    figures.opened, figures.duplicates = len(outside.came), outside.duplicates
    figures.told = len(outside.told - set(outside.came))
    figures.versions, figures.heads = outside.answers, len(outside.heads)
    figures.seconds = time.monotonic() - begun_s
    return figures


def _shoot(
    guest: Guest, outside: Outside, chance: random.Random, figures: Figures, careless: str
) -> None:
    """Boot, let it write, cut; judge what the cut before has left."""
    how = CUT if chance.random() < CUT_BY_GUEST else "kill"
    aim, after_s = chance.choice(list(NAMES)), chance.uniform(0.3, 2.0)
    words = (CUT if how == CUT else "run", str(aim), f"{after_s}", careless)
    with guest.running(*words) as (process, out):
        phase = out / "phase"
        wait_until(lambda: process.poll() is not None or _read(phase), BOOT_S)
        if how == "kill" and process.poll() is None:
            time.sleep(after_s)
            until_s = time.monotonic() + AIM_S
            while _read(phase) != aim and time.monotonic() < until_s:
                pass
            guest.cut(process, out)
        assert process.wait(BOOT_S) == GONE, _log(out)
    figures.moments[NAMES[_read(phase)]] += 1
    figures.hows[HOWS[how]] += 1
    if (found := out / "state.tar").exists():
        _judge(outside, found)
    outside.read(out / "outside")


def _judge(outside: Outside, found: Path) -> int:
    state = _unpacked(found)
    try:
        return outside.judge(state)
    finally:
        shutil.rmtree(state)


def _unpacked(tar: Path) -> Path:
    shutil.rmtree(tar.parent / "state", ignore_errors=True)
    with tarfile.open(tar) as packed:
        packed.extractall(tar.parent, filter="data")
    state = tar.parent / "state"
    state.chmod(0o700)
    return state


def _read(phase: Path) -> int:
    """Return what is under way, 0 while the guest has not begun."""
    return next(iter(phase.read_bytes()), 0) if phase.exists() else 0


def _log(out: Path) -> str:
    return (out / "log").read_text(encoding="utf-8", errors="replace")[-3000:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--engine", choices=("uml",), default="uml")
    parser.add_argument(
        "--careless",
        choices=("nobody", "consent", "spool", "ledger"),
        default="nobody",
        help="whose syncs are left out, to see that the oracle notices",
    )
    given = parser.parse_args()
    if os.geteuid() == 0:
        build()
    if why := absence():
        sys.exit(f"error: {why}")
    with tempfile.TemporaryDirectory() as folder:
        figures = run(
            Path(folder),
            cuts=given.cuts,
            seed=given.seed,
            engine=given.engine,
            careless=given.careless,
        )
    told = figures.as_text()
    sys.stdout.write(told)
    if given.report is not None:
        write_report(
            given.report,
            "Power cuts",
            f"Written on {time.strftime('%Y-%m-%d')} by `python -m tests.powercut`"
            " (`make test-long`): a guest with an ext4 disk runs a vehicle that seals, stores,"
            " publishes and follows policies as fast as it can, and is killed by the host or"
            " restarts itself without a sync. What it claimed to have done before was written down"
            " outside of its disk, and after each boot the disk is held against that.",
            told,
        )


if __name__ == "__main__":
    main()
