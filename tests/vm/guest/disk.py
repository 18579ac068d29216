"""A disk in the guest that can be made to fail while something writes to it."""

from pathlib import Path
from typing import Literal, Self

from tests.vm.guest.vehicle import sh

RAM_KIB = 24 * 1024
SECTORS = RAM_KIB * 2
FOREVER_S = 3600

Fault = Literal["dead", "no writes", "lies"]


class Disk:
    """A device-mapper device over a RAM disk, with ext4 on it, mounted. A context manager.

    Without a journal a fault is felt by whoever writes, and gone when the disk is back. With one
    the file system gives up at the first fault and stays read-only, as most do in a vehicle.
    """

    def __init__(self, at: Path, *, journal: bool = False) -> None:
        self.at = at
        self._features = "has_journal" if journal else "^has_journal"

    def __enter__(self) -> Self:
        sh(f"[ -b /dev/ram0 ] || modprobe brd rd_nr=1 rd_size={RAM_KIB}")
        sh("modprobe -a dm_mod dm_flakey")
        sh(f"dmsetup create bad --table '{_table(None)}'")
        sh(f"mkfs.ext4 -q -F -E lazy_itable_init=0 -O {self._features} /dev/mapper/bad")
        self.at.mkdir(exist_ok=True)
        sh(f"mount /dev/mapper/bad {self.at}")
        sh(f"chown consentry: {self.at}; chmod 700 {self.at}")
        return self

    def __exit__(self, *_: object) -> None:
        self.mend()
        sh(f"umount {self.at}")
        sh("dmsetup remove --retry bad")

    def fail(self, fault: Fault) -> None:
        """Let every request fail, or every write, or lose what is written without a word."""
        _load(_table(fault))

    def mend(self) -> None:
        """Let the disk work again."""
        _load(_table(None))

    def repair(self) -> None:
        """Let the disk work again, with its file system checked. Nobody may use it meanwhile."""
        sh(f"umount {self.at}")
        self.mend()
        sh("e2fsck -y /dev/mapper/bad", check=False)  # Its status says that there was something.
        sh(f"mount /dev/mapper/bad {self.at}")

    @staticmethod
    def forget() -> None:
        """Let the kernel forget what it need not write, so that reading asks the disk."""
        sh("echo 3 > /proc/sys/vm/drop_caches")


def _table(fault: Fault | None) -> str:
    match fault:
        case None:
            return f"0 {SECTORS} linear /dev/ram0 0"
        case "dead":
            return f"0 {SECTORS} error"
        case "no writes" | "lies":
            what = "error_writes" if fault == "no writes" else "drop_writes"
            return f"0 {SECTORS} flakey /dev/ram0 0 0 {FOREVER_S} 1 {what}"


def _load(table: str) -> None:
    # Without the flush and the freeze that a suspend brings: the disk fails in the middle of it.
    sh(
        f"dmsetup load bad --table '{table}'; dmsetup suspend --noflush --nolockfs bad;"
        " dmsetup resume bad"
    )
