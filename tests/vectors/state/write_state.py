"""Writes state-1.db with the agent of version 0.1.0: run it with that version on the path."""

import shutil
import sys
import tempfile
from pathlib import Path

from agent.edge.store import LiveGrant, Store, StoredPolicy, Tombstone

POLICY = StoredPolicy(b"jws", 1, 7, b"p" * 32, b"c" * 32, 5)


def main(target: Path) -> None:
    """Write the database."""
    with tempfile.TemporaryDirectory() as folder:
        with Store.open(Path(folder) / "state") as store:
            live = [LiveGrant("gr_a", 2), LiveGrant("gr_b", 1, "paused"), LiveGrant("gr_c", 1)]
            store.apply_policy(POLICY, live, [Tombstone("gr_dead", "revoked")], 3)
            for index in range(12):
                store.append(  # type: ignore[attr-defined] # the Store of that version
                    "ac"[index % 2].join(["gr_", ""]),
                    2 - index % 2,
                    recipient="fleet-x",
                    created_ns=index,
                    expires_ns=10**18 + index,
                    seal=lambda n: b"envelope %d" % n * 40,
                    once=("Vehicle.A",),
                )
            store.delivered([row.row_id for row in store.pending(99)][-2:])
            store.next_counter("ack")
        shutil.copyfile(Path(folder) / "state" / "state.db", target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
