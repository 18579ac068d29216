"""The demo's vehicle: its files, as an installer would write them, and the agent on them."""

import threading
from pathlib import Path
from typing import Any

from agent.cloud.keys import save_key
from agent.config import Config, parse_config
from agent.daemon import Daemon
from agent.demo.player import DemoClock
from agent.demo.state import VEHICLE, Options
from agent.errors import AgentError
from agent.parts import load_parts

BATCH_S = 10.0  # Of the drive's time.


def installed(
    folder: Path, options: Options, *, device: dict[str, Any], trust: bytes, port: int
) -> Config:
    """Write the vehicle's files as an installer would, and return its configuration.

    Args:
        folder: Where; the broker's CA and the vehicle's certificate lie there already.
        options: Which DBC files and mapping.
        device: Its key, a JWK.
        trust: The trust file.
        port: Of the broker, as the vehicle reaches it.
    """
    save_key(folder / "device.jwk", device)
    (folder / "trust.json").write_bytes(trust)
    settings = {
        "vehicle": {"id": VEHICLE, "trust": "trust.json"},
        "state": {"directory": "state"},
        "keys": {"device": "device.jwk"},
        "control": {"socket": "control.sock"},
        "batch": {"max_age_s": BATCH_S},
        "bus": [
            {
                "name": "can0",
                "interface": "virtual",
                "channel": VEHICLE,
                "dbc": [str(path.resolve()) for path in options.dbcs],
                "mapping": str(options.mapping.resolve()),
                "options": {"preserve_timestamps": True},
            }
        ],
        "uplink": {
            "host": "localhost",
            "port": port,
            "ca": "ca.pem",
            "certificate": "client.pem",
            "private_key": "client.key",
            "min_backoff_s": 0.2,
            "max_backoff_s": 0.5,
        },
    }
    return parse_config(settings, folder)


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
