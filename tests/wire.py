"""A wire between this network namespace and one of its own, which can be taken away or made bad."""

import subprocess
from pathlib import Path
from typing import Self

from tests.peer import wait_until

HERE, THERE = "10.9.0.1", "10.9.0.2"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class Link:
    """Two ends of a wire; the far one is in a namespace of its own. A context manager."""

    def __enter__(self) -> Self:
        self._holder = subprocess.Popen(["unshare", "-n", "sleep", "600"])
        mine = Path("/proc/self/ns/net").readlink()
        there = Path(f"/proc/{self._holder.pid}/ns/net")
        wait_until(lambda: there.readlink() != mine)
        self.inside = ("nsenter", "-t", str(self._holder.pid), "-n")
        ip("link", "set", "lo", "up")
        ip("link", "add", "name", "here", "type", "veth", "peer", "name", "there")
        ip("link", "set", "there", "netns", str(self._holder.pid))
        ip("addr", "add", f"{HERE}/24", "dev", "here")
        ip("link", "set", "here", "up")
        for words in (
            ("link", "set", "lo", "up"),
            ("addr", "add", f"{THERE}/24", "dev", "there"),
            ("link", "set", "there", "up"),
        ):
            subprocess.run([*self.inside, "ip", *words], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.kill()
        self._holder.wait(10)

    def lose(self, kind: str) -> None:
        """Take the wire away: our end goes down, or the far one loses its address in silence."""
        if kind == "down":
            ip("link", "set", "here", "down")
        else:
            self._far("addr", "del", f"{THERE}/24", "dev", "there")

    def find(self, kind: str) -> None:
        """Bring it back."""
        if kind == "down":
            ip("link", "set", "here", "up")
        else:
            self._far("addr", "add", f"{THERE}/24", "dev", "there")

    def _far(self, *words: str) -> None:
        subprocess.run([*self.inside, "ip", *words], check=True)

    def shape(self, port: int, netem: str) -> None:
        """Make the way from and to a port of the far end as bad as told; "" takes that back.

        Args:
            port: Whoever talks to another one has a good wire.
            netem: As tc-netem(8) spells it, for each direction; needs a kernel with sch_netem.
        """
        for dev, side, prefix in (("here", "dport", ()), ("there", "sport", self.inside)):
            tc = (*prefix, "tc")
            # What is on its way gets lost with it, as when a radio changes its cell.
            subprocess.run(
                [*tc, "qdisc", "del", "dev", dev, "root"], check=False, capture_output=True
            )
            if netem:
                self._shape(tc, dev, ("match", "ip", side, str(port), "0xffff"), netem.split())

    @staticmethod
    def _shape(tc: tuple[str, ...], dev: str, match: tuple[str, ...], netem: list[str]) -> None:
        prio = ["root", "handle", "1:", "prio", "bands", "2", "priomap", *"0" * 16]
        for words in (
            ["qdisc", "add", "dev", dev, *prio],
            ["qdisc", "add", "dev", dev, "parent", "1:2", "handle", "2:", "netem", *netem],
            [
                *("filter", "add", "dev", dev, "parent", "1:", "protocol", "ip"),
                *("u32", *match, "flowid", "1:2"),
            ],
        ):
            subprocess.run([*tc, *words], check=True)
