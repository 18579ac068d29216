"""What is wrong with an installation, and what to do about it; nothing is started.

Rules:
 * One check, one sentence, one advice. What depends on something that failed is not tried.
 * A check only looks. It never mends, and it disturbs no running agent.
 * `fail` is what keeps the agent from its work or its promises, `warn` what a person should know.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from agent.config import Bus, Config, load_config
from agent.core.ask import Status
from agent.core.clock import BUILT_S
from agent.core.status import StatusReport, parse_status
from agent.core.telling import moment
from agent.edge import machine
from agent.edge.control_client import ask
from agent.edge.uplink import TlsSource
from agent.errors import AgentError, AskRefused, NotRunning
from agent.parts import Parts, load_parts

LEAST_FREE_BYTES = 100_000_000  # Weeks of envelopes of a usual policy.
NO_FREE_BYTES = 5_000_000
_FORGETS = ("tmpfs", "ramfs", "overlay")
_NOT_FOR_DATABASES = ("vfat", "exfat", "msdos", "nfs", "nfs4", "cifs", "9p", "fuse.sshfs")


class Verdict(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        hint: What to do, where there is something to do.
    """

    name: str
    verdict: Verdict
    text: str
    hint: str | None = None


def examine(config_file: Path, *, root: Path = Path("/")) -> Iterator[Check]:
    """Yield every check in the order in which a person mends things.

    Args:
        config_file: The agent.toml.
        root: Where the machine's own files, /sys and /proc, are looked for.
    """
    try:
        config = load_config(config_file)
    except AgentError as exc:
        yield _failed("config", exc)
        return
    yield Check("config", Verdict.OK, f"{config_file} is whole")
    parts: Parts | None = None
    try:
        parts = load_parts(config)
    except AgentError as exc:
        yield _failed("files", exc)
    else:
        yield from _files(parts)
    yield _state(config.state.directory)
    yield _clock(config)
    yield from _buses(config, root)
    if parts is not None:
        yield _broker(parts)
    yield from _agent(config.control.socket)
    yield from _memory(root)


def _failed(name: str, error: AgentError) -> Check:
    return Check(name, Verdict.FAIL, error.message, error.hint)


def _files(parts: Parts) -> Iterator[Check]:
    paths = {bound.vss.path for bound in parts.binding.bound}
    text = f"catalogue, mappings, DBC files and keys can be used: {len(paths)} paths can be given"
    if not paths:
        hint = "`consentry check` names what is wrong with each entry of the mapping"
        yield Check("files", Verdict.FAIL, "no path can be given by this vehicle", hint)
        return
    yield Check("files", Verdict.OK, text)
    if parts.warnings:
        text = f"{len(parts.warnings)} findings in DBC files and mappings"
        yield Check("files", Verdict.WARN, text, "`consentry check` lists them")


def _state(directory: Path) -> Check:
    found = machine.look_at_folder(directory)
    if found is None:
        return Check(
            "state",
            Verdict.WARN,
            f"{directory} is not there, or not ours to look at",
            "the agent makes it at its first start; look again as root or as the agent's user",
        )
    text = f"{directory} on {found.file_system}, {found.free_bytes // 1_000_000:,} MB free"
    verdict, fault, hint = judge_folder(found)
    return Check("state", verdict, f"{text}: {fault}" if fault else text, hint)


def judge_folder(found: machine.Folder) -> tuple[Verdict, str, str | None]:
    """Return how fit a folder is for the state, with fault and advice, "" and None for none."""
    if found.mode & 0o077:
        fault = f"mode {found.mode:04o}, others may look into it"
        return Verdict.FAIL, fault, "chmod 0700: only the agent's user may"
    if found.file_system in _NOT_FOR_DATABASES:
        hint = "a local disk with a journal: ext4, f2fs, xfs, btrfs"
        return Verdict.FAIL, "what is written there cannot be relied on", hint
    if found.free_bytes < NO_FREE_BYTES:
        return Verdict.FAIL, "full", "make room: new batches are lost, counted and logged"
    if found.file_system in _FORGETS:
        hint = "what was not delivered, and what guards against old policies, goes with the power"
        return Verdict.WARN, "it forgets at power-off", hint
    if found.free_bytes < LEAST_FREE_BYTES:
        return Verdict.WARN, "little", "make room before it is full"
    return Verdict.OK, "", None


def _clock(config: Config) -> Check:
    now_s = time.time_ns() // 10**9
    if now_s < BUILT_S:
        hint = "the agent takes its build time for now until the clock is set"
        return Check("clock", Verdict.FAIL, f"it says {moment(now_s)}, before this version", hint)
    file = config.time.synchronised_file
    if file is not None and not file.exists():
        hint = f"time windows are closed until then; {file} shows it (`synchronised` under [time])"
        return Check("clock", Verdict.WARN, "nobody has set it since the start", hint)
    known = "believed (`synchronised` is always)" if file is None else "synchronised"
    return Check("clock", Verdict.OK, f"it is {known} and says {moment(now_s)}")


def _buses(config: Config, root: Path) -> Iterator[Check]:
    for bus in config.bus:
        if bus.interface == "gnss":
            yield _receiver(bus, root)
            continue
        if bus.interface != "socketcan":
            text = f"bus {bus.name}: {bus.channel} through python-can's {bus.interface}"
            yield Check("bus", Verdict.OK, f"{text}, which only the running agent opens")
            continue
        is_up = machine.look_at_interface(bus.channel, root=root)
        if is_up is None:
            hint = "`ip -details link show type can` lists what there is"
            text = f"bus {bus.name}: there is no CAN interface {bus.channel}"
            yield Check("bus", Verdict.FAIL, text, hint)
        elif not is_up:
            hint = (
                f"docs/install.md shows how systemd-networkd brings {bus.channel} up, listen-only"
            )
            text = f"bus {bus.name}: {bus.channel} is down"
            yield Check("bus", Verdict.FAIL, text, hint)
        else:
            yield Check("bus", Verdict.OK, f"bus {bus.name}: {bus.channel} is up")


def _receiver(bus: Bus, root: Path) -> Check:
    text = f"bus {bus.name}: a GNSS receiver at {bus.channel}"
    if not (root / bus.channel.lstrip("/")).exists():
        hint = "plug it in, or name its device (channel under [[bus]]); docs/gnss.md"
        return Check("bus", Verdict.FAIL, f"{text}, which is not there", hint)
    return Check("bus", Verdict.OK, f"{text}, which only the running agent opens")


def _broker(parts: Parts) -> Check:
    uplink = parts.uplink
    tls = uplink.tls.context() if isinstance(uplink.tls, TlsSource) else uplink.tls
    try:
        version = machine.shake_hands(uplink.host, uplink.port, tls)
    except AgentError as exc:
        return _failed("broker", exc)
    return Check("broker", Verdict.OK, f"{uplink.host}:{uplink.port} answers, {version}")


def _agent(socket: Path) -> Iterator[Check]:
    try:
        status = parse_status(ask(socket, Status()))
    except NotRunning as exc:
        yield Check("agent", Verdict.WARN, exc.message, exc.hint)
    except AskRefused as exc:
        yield Check("agent", Verdict.WARN, exc.message, exc.hint)
    except AgentError as exc:
        yield _failed("agent", exc)
    else:
        yield from _running(status)


def _running(status: StatusReport) -> Iterator[Check]:
    dead = [lane.name for lane in status.lanes if not lane.is_alive]
    still = [lane.name for lane in status.lanes if lane.still_since_s is not None]
    if dead:
        text, hint = f"lane {', '.join(dead)} is dead", "its log says why"
        yield Check("agent", Verdict.FAIL, text, hint)
    elif still:
        text, hint = f"lane {', '.join(still)} stands still", "systemd soon starts it again"
        yield Check("agent", Verdict.FAIL, text, hint)
    else:
        yield Check("agent", Verdict.OK, f"consentry {status.version} runs, all lanes move")
    if status.uplink != "up":
        hint = "its log says why: `uplink down`"
        yield Check("agent", Verdict.WARN, "it has no connection to the broker", hint)
    if status.policy is None:
        hint = "push one to the vehicle's topic, or start it with --policy"
        yield Check("policy", Verdict.WARN, "no policy has come yet, so nothing leaves", hint)
    elif status.policy.until_s is not None and status.policy.until_s <= status.now_s:
        text = f"it expired {moment(status.policy.until_s)}, so nothing leaves"
        yield Check("policy", Verdict.WARN, text, "the platform has to send a newer one")
    elif not any(grant.state == "active" for grant in status.grants):
        yield Check("policy", Verdict.WARN, "no grant is active", "`consentry status` says why")
    else:
        active = sum(grant.state == "active" for grant in status.grants)
        grants = "1 grant is" if active == 1 else f"{active} grants are"
        text = f"version {status.policy.ver} is in force, {grants} active"
        yield Check("policy", Verdict.OK, text)


def _memory(root: Path) -> Iterator[Check]:
    if machine.has_swap(root=root):
        hint = "what is collected may be written to it in the clear: swapoff, or MemorySwapMax=0"
        yield Check("memory", Verdict.WARN, "this machine has swap", hint)
