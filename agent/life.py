"""The life of the agent's process: start, reload, stop, and what systemd hears of it.

    SIGTERM, SIGINT     open batches are sealed and stored, then the process ends
    SIGHUP              the configuration and all that it names is read anew

Rules:
 * READY is said when the spool is open and the policy on disk is in force, not before.
 * Changed files take effect all together or not at all: what cannot be built, or does not go with
   the policy in force, is told in the log and the agent goes on as it was.
 * A policy file on the command line that is older than the policy in force is no failure: whoever
   runs the agent with one in its unit has long had newer ones from the platform.
"""

import faulthandler
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from agent.config import Config
from agent.edge.systemd import Unit
from agent.errors import AgentError, Rollback
from agent.log import set_level
from agent.parts import load_parts
from agent.watch import Watch

if TYPE_CHECKING:
    from agent.daemon import Daemon

_log = logging.getLogger(__name__)


class _Asked:
    """What signals asked for; looked at between two turns."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.reload = threading.Event()

    def listen(self, wake: Callable[[], None]) -> None:
        """Take the signals; `wake` ends the turn."""

        def heard(signum: int, _: object) -> None:
            if signum == signal.SIGHUP:
                self.reload.set()
            else:
                self.stop.set()
                _log.info("stopping", extra={"signal": signal.Signals(signum).name})
            wake()

        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, heard)


def run(config: Config, *, reread: Callable[[], Config], first_policy: bytes | None = None) -> None:
    """Run the agent until SIGTERM or SIGINT.

    Args:
        config: The configuration.
        reread: Returns it as it stands on disk at a reload.
        first_policy: A signed policy to apply before anything starts, or None.

    Raises:
        AgentError: It could not start, or a lane died.
    """
    unit = Unit.from_environment(os.environ)
    if unit.watchdog_s is not None:
        # A hung lane ends in the watchdog's SIGABRT: the log shows where each thread was.
        faulthandler.enable()
    gc.disable()  # Until READY, for all that comes is there to stay: a tenth of the start.
    parts = load_parts(config)
    # Not at the top: what reading a large DBC has freed is room for these modules.
    from agent.daemon import Daemon  # noqa: PLC0415

    _tell(parts.warnings)
    asked = _Asked()
    with Daemon(config, parts, unit=unit) as daemon:
        if first_policy is not None:
            _install(daemon, first_policy)
        asked.listen(daemon.wake)
        daemon.start()
        gc.enable()
        said = daemon.status
        unit.ready(said)
        _log.info("running", extra={"vehicle": config.vehicle.id, "buses": len(config.bus)})
        watch = Watch(unit, now_s=time.monotonic())
        while not asked.stop.is_set():
            daemon.turn()
            watch.look(daemon.lanes(), now_s=time.monotonic())
            if daemon.status != said:
                said = daemon.status
                unit.say(said)
            if asked.reload.is_set():
                asked.reload.clear()
                unit.reloading()
                _reload(daemon, reread)
                unit.ready(daemon.status)
        unit.stopping()


def _reload(daemon: "Daemon", reread: Callable[[], Config]) -> None:
    """Take up changed files, or go on as before and say why."""
    try:
        config = reread()
        parts = load_parts(config)
        daemon.reload(config, parts)
    except AgentError as exc:
        _log.error("reload refused", extra={"error": exc.message, "hint": exc.hint})
        return
    set_level(config.log.level)
    _tell(parts.warnings)
    _log.info("reloaded", extra={"buses": len(config.bus)})


def _install(daemon: "Daemon", token: bytes) -> None:
    try:
        daemon.install(token)
    except Rollback as exc:
        _log.warning("policy file is older", extra={"error": exc.message})


def _tell(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        _log.warning("check", extra={"finding": warning})
