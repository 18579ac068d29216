"""The agent in a thread of its own: built, run and ended there, as its store demands."""

import threading

from agent.config import Config
from agent.daemon import Daemon
from agent.demo.player import DemoClock
from agent.errors import AgentError
from agent.parts import load_parts


class AgentThread:
    """The agent, in a thread of its own: built, run and ended there, as its store demands."""

    def __init__(self, config: Config, clock: DemoClock) -> None:
        self._config = config
        self._clock = clock
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._daemon: Daemon | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="agent", daemon=True)

    def start(self) -> Daemon:
        """Start the agent and return it when it runs.

        Raises:
            AgentError: It could not start.
        """
        self._thread.start()
        self._ready.wait()
        if self._daemon is None:
            raise told("the agent did not start", self._failure)
        return self._daemon

    def close(self) -> None:
        """End the agent and wait for it."""
        self._stop.set()
        if self._daemon is not None:
            self._daemon.wake()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        try:
            with Daemon(
                self._config, load_parts(self._config), clock=self._clock.reading
            ) as daemon:
                daemon.start()
                self._daemon = daemon
                self._ready.set()
                daemon.run(self._stop)
        except BaseException as exc:  # noqa: BLE001 - the thread's top; told by `start`
            self._failure = exc
        finally:
            self._ready.set()


def told(what: str, failure: BaseException | None) -> AgentError:
    """Return what failed in another thread, with its cause's own advice."""
    told = AgentError(f"{what}: {failure}", hint=getattr(failure, "hint", None))
    told.__cause__ = failure
    return told
