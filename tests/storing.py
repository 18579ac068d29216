"""One envelope into a store, for tests."""

from collections.abc import Callable

from agent.edge.store import NewEnvelope, Store
from agent.errors import StoreError


def append(
    store: Store,
    grant_id: str,
    rev: int,
    *,
    recipient: str,
    created_ns: int,
    expires_ns: int,
    seal: Callable[[int], bytes],
    once: tuple[str, ...] = (),
) -> int:
    """Keep one envelope, see `NewEnvelope`; return its number.

    Raises:
        StoreError: Why it could not be kept.
    """
    new = NewEnvelope(grant_id, rev, recipient, created_ns, expires_ns, seal, once)
    (kept,) = store.append_all([new])
    if isinstance(kept, StoreError):
        raise kept
    return kept.n
