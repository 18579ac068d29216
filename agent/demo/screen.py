"""What a person sees of the demo: a live picture on a terminal, plain lines elsewhere."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from agent.demo.state import CITY, FLEET, REVOKED_B, Promise, State

_REFRESH_HZ = 4
_BLOCKED_SHOWN = 6
_TITLES = {
    FLEET: "A · fleet-a · may have odometer and speed",
    CITY: "B · city-b · may have the coarse location",
}


@contextmanager
def screen(state: State, console: Console) -> Iterator[Callable[[], None]]:
    """Show the state while the context is open; gives the function to call after a change."""
    if not console.is_terminal:
        yield _plain(state, console)
        return
    lock = threading.Lock()
    with Live(
        get_renderable=lambda: _picture(state),
        console=console,
        refresh_per_second=_REFRESH_HZ,
        transient=True,
    ) as live:

        def changed() -> None:
            with lock:
                live.update(_picture(state))

        yield changed
    for at_s, text in state.events:
        console.print(_line(at_s, text), highlight=False)


def print_summary(state: State, promises: list[Promise], console: Console) -> None:
    """Print what each recipient could open, what was blocked and why, and the judgement."""
    console.print()
    for name, title in _TITLES.items():
        opened = state.opened[name]
        console.print(
            f"{title}: {state.envelopes[name]} envelopes, {opened.total()} samples",
            highlight=False,
        )
        for path, count in sorted(opened.items()):
            console.print(f"    {count:6}  {path}", highlight=False)
    console.print("blocked in the vehicle, never decoded:", highlight=False)
    for count, reason in _reasons(state):
        console.print(f"    {count:6}  paths: {reason}", highlight=False)
    console.print()
    for promise in promises:
        mark = Text("kept  ", "green") if promise.kept else Text("BROKEN", "bold red")
        console.print(mark, promise.text, highlight=False)
        console.print(f"         {promise.evidence}", highlight=False)


def _plain(state: State, console: Console) -> Callable[[], None]:
    shown = 0

    def changed() -> None:
        nonlocal shown
        while shown < len(state.events):
            at_s, text = state.events[shown]
            shown += 1
            console.print(_line(at_s, text), highlight=False)

    return changed


def _line(at_s: float, text: str) -> str:
    return f"{at_s:5.1f} s  {text}"


def _picture(state: State) -> Group:
    """Draw the state: the vehicle, what each recipient opened, what is blocked."""
    head = Table.grid(padding=(0, 3))
    link = Text("link up", "green") if state.link_up else Text("link lost", "bold red")
    head.add_row(
        link,
        f"policy {state.policy_ver}",
        f"{state.frames} frames",
        f"broker {state.broker}",
    )
    both = Table.grid(expand=True, padding=(0, 1))
    both.add_column(ratio=1)
    both.add_column(ratio=1)
    both.add_row(*(_recipient(state, name) for name in _TITLES))
    return Group(Panel(Group(Text(state.phase, "bold"), head), title="vehicle"), both, _why(state))


def _recipient(state: State, name: str) -> Panel:
    table = Table.grid(expand=True)
    table.add_column(ratio=1)
    table.add_column(justify="right")
    for path, count in sorted(state.opened[name].items()):
        table.add_row(path.removeprefix("Vehicle."), str(count))
    revoked = name == CITY and state.policy_ver > 1
    style = "red" if revoked else "green"
    subtitle = "revoked" if revoked else f"{state.envelopes[name]} envelopes opened"
    return Panel(table, title=_TITLES[name], subtitle=subtitle, border_style=style)


def _why(state: State) -> Panel:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    for count, reason in _reasons(state):
        table.add_row(f"{count} paths", reason)
    return Panel(table, title="blocked, never decoded")


def _reasons(state: State) -> list[tuple[int, str]]:
    """Return how many paths are blocked and why: what was revoked first, the rest summed up."""
    why = Counter(state.blocked.values())
    ordered = sorted(why.items(), key=lambda item: (item[0] != REVOKED_B, -item[1]))
    rows = [(count, reason) for reason, count in ordered[:_BLOCKED_SHOWN]]
    rest = [count for _, count in ordered[_BLOCKED_SHOWN:]]
    if rest:
        rows.append((sum(rest), f"no grant names one of {len(rest)} more scopes"))
    return rows
