"""Killed at every step of a change of consent: afterwards it is the old one or the new, whole.

strace kills the process with SIGKILL at the n-th call that writes, syncs, cuts or removes a file,
for each n there is. The state that is left is opened as the agent opens it.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.cloud.restrict import new_restriction, sign_restriction
from agent.control import Consent
from agent.core.clock import Reading
from agent.core.model import NS_PER_S
from agent.edge.store import Store
from tests import car
from tests.cloud import VEHICLE, Cloud
from tests.storing import append

ROOT = Path(__file__).resolve().parents[2]
FULL = {"read_odometer": {"min_interval_s": 0}}
ROWS = 12
# Each of these calls is a step. Of the many writes between them every eighth is one.
CALLS = {"fdatasync": 1, "fsync": 1, "ftruncate": 1, "unlink": 1, "rename": 1, "pwrite64": 8}

CHILD = """
import sys
from pathlib import Path
from tests.integration.test_killed_while_applying import change
change(Path(sys.argv[1]), sys.argv[2])
"""


@dataclass(frozen=True)
class Found:
    """What a start finds: version in force, live grants with their envelopes, ended ones."""

    ver: int
    live: dict[str, int]
    ended: frozenset[str]
    granted: frozenset[str]


def at(now_s: int) -> Reading:
    return Reading(now_s * NS_PER_S, now_s * NS_PER_S, "0" * 32, is_synchronised=True)


def opened(folder: Path, cloud: Cloud) -> tuple[Store, Consent]:
    store = Store.open(folder / "state")
    consent = Consent(
        store,
        vehicle=VEHICLE,
        catalogue=car.catalogue(),
        trust=cloud.trust,
        binding=car.binding(),
        named_buses=(),
    )
    return store, consent


def marked(grant_id: str, n: int) -> bytes:
    """An envelope that can be found again byte for byte."""
    return f"<{grant_id}-{n:04d}>".encode() * 40


def change(folder: Path, kind: str) -> None:
    """The change that is killed: a policy, a restrict document, or the passing of time."""
    cloud = Cloud.load(folder)
    store, consent = opened(folder, cloud)
    consent.restore(at(cloud.now_s))
    if kind == "time":
        consent.refresh(at(cloud.now_s + 3600))
    else:
        consent.receive((folder / kind).read_bytes(), at(cloud.now_s))
    store.close()


def prepared(folder: Path, cloud: Cloud) -> None:
    """A vehicle with two live grants and envelopes of both, and what is going to come."""
    folder.mkdir()
    cloud.save(folder)
    ending = cloud.grant(FULL, grant_id="g2", exp=cloud.now_s + 3600)
    first = cloud.policy(cloud.grant(FULL), ending)
    store, consent = opened(folder, cloud)
    with store:
        consent.restore(at(cloud.now_s))
        consent.receive(first.encode(), at(cloud.now_s))
        for n in range(ROWS):
            for grant_id in ("g1", "g2"):
                append(
                    store,
                    grant_id,
                    1,
                    recipient="fleet",
                    created_ns=cloud.now_s * NS_PER_S,
                    expires_ns=1 << 62,
                    seal=lambda _, g=grant_id, n=n: marked(g, n),
                )
    second = cloud.policy(
        cloud.grant(FULL, rev=2),
        {"grant_id": "g2", "rev": 2, "state": "revoked"},
        cloud.grant(FULL, grant_id="g3"),
    )
    (folder / "policy").write_text(second)
    document = new_restriction(
        vehicle=VEHICLE, mode="revoke", grants=["g2"], iat_s=cloud.now_s, jti="r-1"
    )
    (folder / "restrict").write_text(sign_restriction(document, cloud.signer))


def found(folder: Path, cloud: Cloud, kind: str) -> Found:
    """Start as the agent does and look."""
    store, consent = opened(folder, cloud)
    with store:
        consent.restore(at(cloud.now_s + (3600 if kind == "time" else 0)))
        stored = store.in_force()
        assert stored is not None
        counts = store.counts()
        return Found(
            ver=stored.ver,
            live={
                g.grant_id: counts[g.grant_id].envelopes if g.grant_id in counts else 0
                for g in store.live_grants()
            },
            ended=frozenset(g for g in ("g1", "g2", "g3") if store.tombstoned(g)),
            granted=frozenset(take.grant_id for take in consent.plan.takes),
        )


OLD = Found(1, {"g1": ROWS, "g2": ROWS}, frozenset(), frozenset({"g1", "g2"}))
NEW = {
    "policy": Found(2, {"g1": 0, "g3": 0}, frozenset({"g2"}), frozenset({"g1", "g3"})),
    "restrict": Found(1, {"g1": ROWS}, frozenset({"g2"}), frozenset({"g1"})),
    "time": Found(1, {"g1": ROWS}, frozenset({"g2"}), frozenset({"g1"})),
}


def traced(folder: Path, kind: str, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            *("strace", "-f", "-qq", "-e", f"trace={','.join(CALLS)}", *options),
            *(sys.executable, "-c", CHILD, str(folder), kind),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def steps(folder: Path, kind: str) -> Iterator[tuple[str, int]]:
    """Yield (call, which of them) for each step of an undisturbed run."""
    trace = folder / "trace"
    assert traced(folder, kind, "-o", str(trace)).returncode == 0
    names = re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE)
    for call, every in CALLS.items():
        for n in range(1, names.count(call) + 1, every):
            yield call, n


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("kind", ["policy", "restrict", "time"])
def test_killed_at_any_step_it_is_the_old_consent_or_the_new_and_goes_on_to_the_new(
    tmp_path: Path, kind: str
) -> None:
    cloud = Cloud()
    prepared(tmp_path / "origin", cloud)
    shutil.copytree(tmp_path / "origin", tmp_path / "whole")
    planned = list(steps(tmp_path / "whole", kind))
    assert found(tmp_path / "whole", cloud, kind) == NEW[kind]
    assert len(planned) >= 10
    seen: set[str] = set()

    for call, n in planned:
        folder = tmp_path / f"{call}-{n}"
        shutil.copytree(tmp_path / "origin", folder)
        done = traced(folder, kind, "-e", f"inject={call}:signal=KILL:when={n}")
        assert done.returncode == -9, f"{call} {n} was not reached"

        state = found(folder, cloud, kind)

        # Where time has come, the start itself ends what is over.
        assert state == NEW[kind] or (state == OLD and kind != "time"), f"killed at {call} {n}"
        if state == NEW[kind]:
            seen.add("new")
            left = b"".join(path.read_bytes() for path in (folder / "state").iterdir())
            assert b"<g2-" not in left, f"killed at {call} {n}: an erased envelope can be read"
        else:
            seen.add("old")
        change(folder, kind)
        assert found(folder, cloud, kind) == NEW[kind], f"killed at {call} {n}, then tried again"
        shutil.rmtree(folder)
    assert seen == ({"new"} if kind == "time" else {"old", "new"})
