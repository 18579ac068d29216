"""`consentry play`: recorded logs onto a bus, with the time between frames that they had.

Rules:
 * Refuses a bus that may hang on a vehicle, unless the user says so in as many words.
 * The moment of each frame counts from the start of the pass: what one frame is late, the next
   ones are not. What cannot be kept up with is sent without a pause, and the lag is told.
 * A log is read while it is played, so its size does not matter.
 * The only sender beside the demo: nothing of the agent is built here, and no policy applies.
"""

import contextlib
import errno
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import can
import click

from agent.cli.main import EXIT_OK, INTERRUPTED, fail
from agent.cli.output import channel_names, note, write_json
from agent.cli.virtualbus import why_real
from agent.core.model import CAN_ERR_FLAG, NS_PER_MS, NS_PER_S
from agent.demo.player import message_of
from agent.edge.logfile import Recording, read_logs
from agent.edge.pycan import open_bus
from agent.errors import AgentError, BusError

_REAL = "--yes-send-on-real-bus"
_LOOK_NS = NS_PER_S // 5  # The progress bar is moved this often.
_FULL_PAUSE_S = 0.001
_FULL_TRIES = 5_000  # Together 5 s: a bus that takes nothing for so long is not up.

Options = Mapping[str, str | int | float | bool]


@dataclass(slots=True)
class _Played:
    """What was played; the result as it is printed.

    Attributes:
        frames: Frames sent.
        sent: Bus -> frames.
        skipped: Reason -> frames that were not sent.
        passes: Whole passes over the logs.
        seconds: How long it took.
        latest_ms: How late the latest frame was, against its moment.
        interrupted: Ended by Ctrl-C.
    """

    frames: int = 0
    sent: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    passes: int = 0
    seconds: float = 0.0
    latest_ms: float = 0.0
    interrupted: bool = False


@click.command()
@click.argument("logs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="LOG...")
@click.option("--bus", metavar="BUS", help="Where to: vcan0, or a channel of --interface.")
@click.option(
    "--channel",
    "channels",
    multiple=True,
    metavar="NAME=BUS",
    help="The bus for a log's channel; several. The others go to --bus, or nowhere.",
)
@click.option(
    "--interface", default="socketcan", show_default=True, help="A python-can interface name."
)
@click.option(
    "--option",
    "given",
    multiple=True,
    metavar="KEY=VALUE",
    help="Handed to python-can, such as bitrate=500000; several.",
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="How many times as fast as recorded; 0: as fast as the bus takes it.",
)
@click.option("--loop", is_flag=True, help="Begin again at the end, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--yes-send-on-real-bus", "really", is_flag=True, help="The bus may be a vehicle's.")
def command(  # noqa: PLR0913 - one argument per option
    *,
    logs: tuple[Path, ...],
    bus: str | None,
    channels: tuple[str, ...],
    interface: str,
    given: tuple[str, ...],
    speed: float,
    loop: bool,
    as_json: bool,
    really: bool,
) -> int:
    """Put recorded LOGs onto a bus with their original timing; several are one recording.

    For engineers, on a virtual bus. A bus that may be a vehicle's is refused: frames that are
    played there act.
    """
    targets = channel_names(channels)
    names = dict.fromkeys([*([bus] if bus else []), *targets.values()])
    if not names:
        raise click.UsageError("--bus or --channel says where the frames go")
    options = _options(interface, given)
    sends_on_real = _permit(interface, list(names), options, really=really)
    played = _Played()
    with contextlib.ExitStack() as stack:
        recording = stack.enter_context(read_logs(logs))
        buses = {name: stack.enter_context(_Target(interface, name, options)) for name in names}
        advance = stack.enter_context(_progress())
        player = _Player(buses, targets, bus, played, speed=speed, error_frames=not sends_on_real)
        try:
            player.play(recording, advance)
            while loop and played.frames:  # A log without frames would spin.
                with read_logs(logs) as again:
                    player.play(again, advance)
        except KeyboardInterrupt:
            played.interrupted = True
    _print(played, recording, list(names), as_json=as_json)
    return _end(played, recording)


class _Target:
    """One bus that is sent on. A context manager."""

    def __init__(self, interface: str, channel: str, options: Options) -> None:
        # fd: a SocketCAN socket takes both kinds of frames then.
        extra = {"fd": True} if interface == "socketcan" else {}
        self.name = channel
        self._bus = open_bus(interface, channel, {**extra, **options})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bus.shutdown()

    def send(self, message: can.Message) -> None:
        """Send one frame; wait for room where the interface's queue is full.

        Raises:
            BusError: The bus does not take it.
        """
        for _ in range(_FULL_TRIES):
            try:
                self._bus.send(message, timeout=1.0)
            except can.CanError as exc:
                if exc.error_code != errno.ENOBUFS:
                    raise self._refused(exc, message) from exc
            else:
                return
            time.sleep(_FULL_PAUSE_S)
        raise BusError(
            f"the bus {self.name} takes no more frames",
            hint="bring it up, with somebody on it who acknowledges",
        )

    def _refused(self, exc: can.CanError, message: can.Message) -> BusError:
        hint = "bring the bus up (`ip link set up`)"
        if message.is_fd and exc.error_code == errno.EINVAL:
            hint = "the frame is CAN FD: `ip link set mtu 72` lets the interface take it"
        return BusError(f"the bus {self.name} does not take a frame: {exc}", hint=hint)


class _Player:
    """Plays passes of one recording onto buses."""

    def __init__(  # noqa: PLR0913 - what is played where
        self,
        buses: Mapping[str, _Target],
        targets: Mapping[str, str],
        default: str | None,
        played: _Played,
        *,
        speed: float,
        error_frames: bool,
    ) -> None:
        self._buses = buses
        self._targets = targets
        self._default = default
        self._played = played
        self._speed = speed
        self._error_frames = error_frames
        self._shown_ns = 0  # Over all passes: one may be shorter than the time between two looks.

    def play(self, recording: Recording, advance: Callable[[float, int], None]) -> None:
        """Play one pass; `advance` gets the share that was read, and the frames so far."""
        played = self._played
        start_ns = time.monotonic_ns()
        base_s = played.seconds
        first_ns: int | None = None
        try:
            for t_ns, channel, can_id, data in recording:
                if first_ns is None:
                    first_ns = t_ns
                now_ns = self._wait(start_ns, t_ns - first_ns)
                self._send(t_ns, channel, can_id, data)
                if now_ns - self._shown_ns >= _LOOK_NS:
                    self._shown_ns = now_ns
                    advance(recording.progress, played.frames)
        finally:
            played.seconds = base_s + (time.monotonic_ns() - start_ns) / NS_PER_S
        played.passes += 1

    def _wait(self, start_ns: int, passed_ns: int) -> int:
        """Wait for a frame's moment and return what the clock shows then."""
        now_ns = time.monotonic_ns()
        if self._speed == 0:
            return now_ns
        due_ns = start_ns + int(passed_ns / self._speed)
        if now_ns < due_ns:
            time.sleep((due_ns - now_ns) / NS_PER_S)
            now_ns = time.monotonic_ns()
        self._played.latest_ms = max(self._played.latest_ms, (now_ns - due_ns) / NS_PER_MS)
        return now_ns

    def _send(self, t_ns: int, channel: str, can_id: int, data: bytes) -> None:
        name = self._targets.get(channel, self._default)
        if name is None:
            self._played.skipped["their channel has no bus"] += 1
        elif can_id & CAN_ERR_FLAG and not self._error_frames:
            # An error frame tells of a fault; a controller that gets one to send makes another.
            self._played.skipped["error frames are not sent on a real bus"] += 1
        else:
            self._buses[name].send(message_of(t_ns, can_id, data))
            self._played.frames += 1
            self._played.sent[name] += 1


def _options(interface: str, given: Sequence[str]) -> dict[str, str | int | float | bool]:
    # Hop limit 0 keeps udp_multicast on this machine.
    options: dict[str, str | int | float | bool] = (
        {"hop_limit": 0} if interface == "udp_multicast" else {}
    )
    for pair in given:
        key, equals, text = pair.partition("=")
        if not (key and equals):
            raise click.UsageError(f"--option {pair}: expected KEY=VALUE, such as bitrate=500000")
        options[key] = _option_value(text)
    return options


def _option_value(text: str) -> str | int | float | bool:
    if text in {"true", "false"}:
        return text == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _permit(interface: str, names: Sequence[str], options: Options, *, really: bool) -> bool:
    """Return whether any of the buses may be a real one.

    Raises:
        BusError: One may be, and the user did not say that this is meant.
    """
    found = {name: why_real(interface, name, options) for name in names}
    real = [f"{name}: {why}" for name, why in found.items() if why is not None]
    if real and not really:
        raise BusError(
            f"this may be a vehicle's bus, nothing was sent ({'; '.join(real)})",
            hint=f"play on a vcan, or say {_REAL}: frames on a vehicle's bus act",
        )
    return bool(real)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[float, int], None]]:
    """Give a function that shows how much was played, where there is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _share, _frames: None
        return
    from rich.console import Console  # noqa: PLC0415 - slow to import
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (
        TextColumn("play"),
        BarColumn(),
        TextColumn("{task.fields[frames]:,} frames"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("play", total=1.0, frames=0)
        yield lambda share, frames: bar.update(task, completed=share, frames=frames)


def _print(played: _Played, recording: Recording, names: Sequence[str], *, as_json: bool) -> None:
    broken = sum(report.broken for report in recording.reports)
    if as_json:
        write_json(
            sys.stdout,
            {**asdict(played), "sent": dict(played.sent), "skipped": dict(played.skipped)}
            | {"broken_lines": broken},
        )
        return
    passes = f", {played.passes} passes" if played.passes > 1 else ""
    click.echo(
        f"{played.frames} frames onto {', '.join(names)} in {played.seconds:.1f} s{passes}, "
        f"the latest {played.latest_ms:.1f} ms late"
    )
    for reason, count in sorted(played.skipped.items()):
        click.echo(f"{count} frames not sent: {reason}")


def _end(played: _Played, recording: Recording) -> int:
    for report in recording.reports:
        for line in report.notes:
            note(f"{report.file}: {line}")
    broken = [report for report in recording.reports if report.broken]
    if broken:
        status = fail(
            AgentError(
                f"{broken[0].file}: {broken[0].first_broken[0].reason} "
                f"({sum(report.broken for report in broken)} places could not be read)",
                hint="everything else was played; mend or cut the log there",
            )
        )
        return INTERRUPTED if played.interrupted else status
    return INTERRUPTED if played.interrupted else EXIT_OK
