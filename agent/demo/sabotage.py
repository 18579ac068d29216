"""Breaks one promise on purpose, so that a test can see the demo notice it.

purge   a copy of the spool stays in the state directory when consent ends
gate    the revocation is acknowledged, but nothing comes of it
seal    batches leave and rest as plaintext
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

from agent.control import Change, Consent, Received, sealer
from agent.core.clock import Reading
from agent.core.jws import POLICY_TYP
from agent.edge.store import Purged, Store

KINDS = ("purge", "gate", "seal")


@contextlib.contextmanager
def sabotaged(kind: str | None) -> Iterator[None]:
    """Break the named promise while the context is open; None breaks nothing."""
    target, name, broken = {
        None: (Store, "in_force", Store.in_force),
        "purge": (Store, "apply_policy", _keeps_a_copy(Store.apply_policy)),
        "gate": (Consent, "receive", _obeys_once(Consent.receive)),
        "seal": (sealer, "seal", _leaves_open),
    }[kind]
    with patch.object(target, name, broken):
        yield


def _keeps_a_copy(apply_policy: Callable[..., Purged]) -> Callable[..., Purged]:
    def broken(store: Store, *args: Any, **others: Any) -> Purged:
        directory = store.directory
        for file in [*directory.iterdir()]:
            if file.is_file() and file.stat().st_size:
                shutil.copyfile(file, directory / f"{file.name}.old")
        return apply_policy(store, *args, **others)

    return broken


def _obeys_once(receive: Callable[..., Received]) -> Callable[..., Received]:
    def broken(consent: Consent, token: bytes, reading: Reading) -> Received:
        if consent.policy is None:
            return receive(consent, token, reading)
        return Received(POLICY_TYP, Change(consent.plan), consent.policy)

    return broken


def _leaves_open(plaintext: bytes, *_: object, **__: object) -> bytes:
    return b"open:" + plaintext
