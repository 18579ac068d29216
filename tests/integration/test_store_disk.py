"""Bad disks: flipped bits, no room at any write, read-only. Refusals are ours, consent holds."""

import random
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from agent.core.model import NS_PER_S
from agent.edge.store import LiveGrant, SpoolLimits, Store, Tombstone
from agent.errors import StoreError
from tests.unit.edge.test_store import filled, policy, put

ROOT = Path(__file__).resolve().parents[2]


def on_a_small_disk(folder: Path, megabytes: int, code: str, *given: object) -> list[str]:
    """Run code with a file system of its own mounted at sys.argv[1]; return what it prints."""
    if shutil.which("unshare") is None:
        pytest.skip("a small file system of one's own needs unshare")
    arguments = ["-c", str(folder), *map(str, given)]
    text = f"import sys; sys.argv = {arguments}\n" + textwrap.dedent(code)
    mount = f'mount -t tmpfs -o size={megabytes}m tmpfs "$1" && exec "$2" -c "$3"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, "sh", str(folder), sys.executable, text],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode != 0 and "unshare:" in done.stderr + done.stdout:
        pytest.skip("a small file system of one's own needs user namespaces")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", ["consent.db", "spool.db"])
def test_a_flipped_bit_anywhere_is_met_with_our_own_words(tmp_path: Path, name: str) -> None:
    """The store opens, sets aside or refuses; the other file holds what it held."""
    whole = tmp_path / "whole"
    filled(whole)
    data = (whole / name).read_bytes()
    chance = random.Random(5)
    opened = aside = 0
    hints: list[str | None] = []
    # The header's first 100 bytes decide most; the rest at random.
    places = [*range(0, 100, 4), *(chance.randrange(len(data)) for _ in range(60))]
    for place in places:
        state = tmp_path / "state"
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(whole, state)
        broken = bytearray(data)
        broken[place] ^= 1 << chance.randrange(8)
        (state / name).write_bytes(broken)
        try:
            with Store.open(state) as store:
                opened += 1
                aside += store.set_aside is not None
                if name == "spool.db":
                    assert store.in_force() == policy(7)
                    assert store.tombstoned("gr_dead") == "revoked"
                store.apply_policy(policy(8), [LiveGrant("gr_b", 1)], [], 0)
                assert put(store, "gr_b") == 1
                assert set(store.counts()) == {"gr_b"}
        except StoreError as exc:
            hints.append(exc.hint)
    assert all(hints)
    assert opened >= len(places) - 5
    assert aside > 0


AT_EVERY_WRITE = """
    import os, random, shutil, sys
    from pathlib import Path
    from agent.edge.store import LiveGrant, Store, StoredPolicy, Tombstone
    from tests.storing import append
    from agent.errors import StoreError
    root = Path(sys.argv[1])
    os.umask(0o077)
    def policy(ver):
        return StoredPolicy(b"j" * 5000, 1, ver, b"%d" % ver * 32, b"c" * 32, ver)
    seen = set()
    for free_kib in (*range(0, 64, 4), *range(64, 600, 40)):
        store = Store.open(root / "state")
        store.apply_policy(policy(1), [LiveGrant("a", 1), LiveGrant("b", 1)], [], 0)
        for index in range(200):
            append(store, "ab"[index % 2], 1, recipient="r", created_ns=0, expires_ns=10**18,
                   seal=lambda n: os.urandom(3000))
        with (root / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
            file.truncate(max(0, file.tell() - free_kib * 1024))
        for index in range(300):
            last = append(store, "a", 1, recipient="r", created_ns=0, expires_ns=10**18,
                          seal=lambda n: os.urandom(3000))
        store.set_grant_state("a", "paused")
        assert store.pending(9, without={"b"}) == ()
        store.set_grant_state("a", "active")
        try:
            live, ended = [LiveGrant("a", 1)], [Tombstone("b", "revoked")]
            purged = store.apply_policy(policy(2), live, ended, 0)
        except StoreError as exc:
            seen.add("policy refused")
        else:
            assert store.tombstoned("b") == "revoked"
            assert set(store.counts()) == {"a"}, store.counts()
            seen.add(f"scrubbed {purged.scrubbed}")
        store.close()
        with Store.open(root / "state") as store:
            assert store.set_aside is None
            assert store.in_force().ver == 2
            assert set(store.counts()) == {"a"}
            told = {n for g in store.gaps(9) if g.grant_id == "a"
                    for n in range(g.first_n, g.last_n + 1)}
            waits = {row.n for row in store.pending(9999)}
            assert told | waits == set(range(1, 401)) and not told & waits
            assert last in waits
            seen.add("evicted" if told else "all kept")
        shutil.rmtree(root / "state")
        (root / "filler").unlink()
    print(sorted(seen))
"""


def test_no_room_at_any_write_leaves_consent_at_work(tmp_path: Path) -> None:
    """From a full disk to one with half a megabyte: pausing and revoking work, nothing is torn."""
    (told,) = on_a_small_disk(tmp_path, 16, AT_EVERY_WRITE)

    assert told == "['evicted', 'scrubbed True']"


GREEDY = """
    import os, sys
    from pathlib import Path
    from agent.edge.store import LiveGrant, LocalStop, Store, StoredPolicy, Tombstone
    from tests.storing import append
    root = Path(sys.argv[1])
    filler = (root / "filler").open("ab", buffering=0)
    def fill():
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass
    def policy(ver):
        return StoredPolicy(b"%04d" % ver * 15_000, 1, ver, b"%032d" % ver, b"c" * 32, ver)
    def stop():
        store.keep_local_stop(LocalStop("*", "uid 1", 1))
    def revoke(ver, *live):
        ended = [Tombstone(name, "revoked") for name in "abcd" if name not in live]
        store.apply_policy(policy(ver), [LiveGrant(name, 1) for name in live], ended, 0)
    store = Store.open(root / "state")
    store.apply_policy(policy(1), [LiveGrant(name, 1) for name in "abcd"], [], 0)
    for index in range(400):
        append(store, "abcd"[index % 4], 1, recipient="r", created_ns=0, expires_ns=10**18,
               seal=lambda n: os.urandom(3000))
    steps = [stop, lambda: store.lift_local_stop("*"), lambda: revoke(2, *"abcd"), stop]
    steps += [lambda: revoke(3, *"abc"), lambda: store.lift_local_stop("*")]
    steps += [lambda: revoke(4, *"ab"), lambda: store.set_grant_state("a", "paused")]
    steps += [lambda: store.end_grants([Tombstone("b", "expired")], 0), stop]
    steps += [lambda: revoke(5), lambda: store.keep_numbers({"floor_ns": 7})]
    for step in steps:
        fill()
        step()
    print(store.in_force().ver, store.live_grants(), len(store.local_stops()), store.counts())
    print((root / "state" / "reserve").stat().st_size > 1 << 20)
"""


def test_a_disk_that_others_fill_after_each_step_leaves_room_for_the_next_one(
    tmp_path: Path,
) -> None:
    """What a step has used of the reserve is less for the next one, not all of it."""
    assert on_a_small_disk(tmp_path, 16, GREEDY) == ["5 () 1 {}", "True"]


KEPT_FULL = """
    import os, sys
    from pathlib import Path
    from agent.edge.store import LiveGrant, SpoolLimits, Store, StoredPolicy, Tombstone
    from tests.storing import append
    root, min_free = Path(sys.argv[1]), int(sys.argv[2])
    filler = (root / "filler").open("ab", buffering=0)
    def fill():
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass
    def put(size=3000):
        return append(store, "a", 1, recipient="r", created_ns=0, expires_ns=10**18,
                      seal=lambda n: os.urandom(size))
    limits = SpoolLimits(min_free_bytes=min_free)
    store = Store.open(root / "state", limits=limits)
    store.apply_policy(StoredPolicy(b"j", 1, 1, b"p" * 32, b"c" * 32, 1),
                       [LiveGrant("a", 1), LiveGrant("b", 1)], [], 0)
    for index in range(300):
        put()
    for round in range(3):
        for index in range(200):
            fill()
            put()
            if index % 20 == 0:
                store.expire(index * 60 * 10**9)
        fill()
        store.end_grants([Tombstone("b", "revoked")], 0)
        fill()
        store.close()
        fill()
        store = Store.open(root / "state", limits=limits)
        last = put()
        waits = {row.n for row in store.pending(9999)}
        told = {n for g in store.gaps(99) for n in range(g.first_n, g.last_n + 1)}
        print(len(waits) > 200, waits | told == set(range(1, last + 1)), not waits & told,
              max(told) < min(waits), {g.why for g in store.gaps(99)})
    put(2 << 20)
    print("too long", len(store.pending(9999)) == len(waits), store.gaps(99)[-1].last_n - last)
    filler.truncate(0)
    store.expire(10**15)
    for index in range(300):
        put()
    print("room again", len(store.pending(9999)) == len(waits) + 300)
"""


@pytest.mark.parametrize("min_free", [0, 8 << 20])
def test_on_a_disk_that_others_keep_full_the_newest_envelopes_are_kept(
    tmp_path: Path, min_free: int
) -> None:
    """Each goes in for the oldest, which are told as a gap; also over a restart."""
    told = on_a_small_disk(tmp_path, 16, KEPT_FULL, min_free)

    rounds = ["True True True True {'evicted'}"] * 3
    assert told == [*rounds, "too long True 1", f"room again {not min_free}"]


READ_ONLY = """
    import os, subprocess, sys
    from pathlib import Path
    from agent.edge.store import LiveGrant, Store, StoredPolicy, Tombstone
    from tests.storing import append
    from agent.errors import StoreError
    root = Path(sys.argv[1])
    policy = StoredPolicy(b"j", 1, 1, b"p" * 32, b"c" * 32, 1)
    def refused(what, step):
        try:
            step()
        except StoreError as exc:
            print(what, bool(exc.hint))
        else:
            print(what, "went")
    store = Store.open(root / "state")
    store.apply_policy(policy, [LiveGrant("a", 1)], [], 0)
    def put():
        append(store, "a", 1, recipient="r", created_ns=0, expires_ns=5, seal=lambda n: b"x")
    put()
    store.close()
    subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
    refused("open", lambda: Store.open(root / "state"))
    subprocess.run(["mount", "-o", "remount,rw", str(root)], check=True)
    with Store.open(root / "state") as store:
        print(store.in_force().ver, len(store.pending(9)))
"""


def test_a_read_only_disk_is_refused_in_one_line_and_harms_nothing(tmp_path: Path) -> None:
    """What cannot be written cannot be revoked, so nothing is collected."""
    assert on_a_small_disk(tmp_path, 16, READ_ONLY) == ["open True", "1 1"]


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("max_bytes", [None, 60_000])
def test_an_envelope_costs_one_wait_for_the_disk_also_in_a_full_spool(
    tmp_path: Path, max_bytes: int | None
) -> None:
    """Of 1,000 of them; what is beside is the copying of the log into the file, now and then."""
    code = (
        "import sys; from pathlib import Path; from tests.integration.test_store_disk import fill;"
        "fill(Path(sys.argv[1]), int(sys.argv[2]) or None, int(sys.argv[3]))"
    )

    def waits(count: int) -> int:
        trace, state = tmp_path / f"trace{count}", tmp_path / f"state{count}"
        subprocess.run(
            [
                *("strace", "-f", "-qq", "-e", "trace=fdatasync,fsync,ftruncate,fallocate"),
                *("-o", trace, sys.executable, "-c", code, state, str(max_bytes or 0), str(count)),
            ],
            cwd=ROOT,
            check=True,
            timeout=100,
        )
        return len(trace.read_text().splitlines())

    assert 1000 <= waits(1200) - waits(200) < 1100


def fill(folder: Path, max_bytes: int | None, count: int) -> None:
    """Store envelopes one second after another, as the agent does."""
    with Store.open(folder, limits=SpoolLimits(max_bytes=max_bytes)) as store:
        store.apply_policy(policy(1), [LiveGrant("gr_a", 1)], [], 0)
        for now_s in range(count):
            put(store, "gr_a", bytes(600))
            store.expire(now_s * NS_PER_S)


def test_a_revocation_is_in_force_though_its_erasure_has_to_wait(tmp_path: Path) -> None:
    """Said so, and done as soon as it can be."""
    with Store.open(tmp_path / "state") as store:
        store.apply_policy(policy(1), [LiveGrant("gr_a", 1), LiveGrant("gr_b", 1)], [], 0)
        for _ in range(3):
            put(store, "gr_a")
        store._spool.spool._db.rows("PRAGMA query_only = ON")  # type: ignore[union-attr]

        live, ended = [LiveGrant("gr_b", 1)], [Tombstone("gr_a", "revoked")]
        purged = store.apply_policy(policy(2), live, ended, 0)

        assert not purged.scrubbed
        assert store.tombstoned("gr_a") == "revoked"
        assert store.pending(9) == ()
        store._spool.spool._db.rows("PRAGMA query_only = OFF")  # type: ignore[union-attr]
        assert store.scrub()
        assert store.counts() == {}
        assert put(store, "gr_b") == 1
