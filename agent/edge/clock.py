"""The machine's clocks: what they say, and whether somebody who knows has set them.

Rules:
 * Whether the wall clock is synchronised is read from a file that the time service makes, for the
   system call that tells it is one of those that the hardened unit forbids (@clock).
 * The boot is named by the kernel; under the unit its name comes as a credential, because /proc/sys
   is hidden there. A boot without a name is a new one at every start: the worst case.
"""

import os
import time
import uuid
from pathlib import Path

from agent.core.clock import Reading
from agent.core.model import NS_PER_S

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
LOOK_AGAIN_NS = NS_PER_S  # How old an answer about synchronisation may be.


class SystemClock:
    """Reads CLOCK_REALTIME and CLOCK_BOOTTIME. Any thread may call it."""

    def __init__(self, synchronised_file: Path | None) -> None:
        """Prepare.

        Args:
            synchronised_file: Is there while the wall clock is synchronised (systemd-timesyncd:
                /run/systemd/timesync/synchronized); None: it always is.
        """
        self._file = synchronised_file
        self._boot_id = read_boot_id()
        self._is_synchronised = False
        self._looked_ns = -LOOK_AGAIN_NS

    def __call__(self) -> Reading:
        """Return what the clocks say now."""
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if boot_ns - self._looked_ns >= LOOK_AGAIN_NS:
            self._is_synchronised = self._file is None or self._file.exists()
            self._looked_ns = boot_ns
        return Reading(time.time_ns(), boot_ns, self._boot_id, self._is_synchronised)


def read_boot_id() -> str:
    """Return the name of this boot, or a new one where it cannot be read."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    for path in ([Path(folder) / "boot_id"] if folder else []) + [BOOT_ID]:
        try:
            text = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text:
            return text
    return f"unnamed-{uuid.uuid4()}"
