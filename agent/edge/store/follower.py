"""The spool as it follows the consent: asked only once it has, begun anew where it cannot be read.

Rules:
 * While the spool is behind the consent it gives nothing out and takes nothing in.
 * A fault of the spool hinders no change of consent; it is told once, and tried again at each turn.
 * A spool that was lost goes on above the numbers that may have been drawn, and its rows have ids
   that no older one had: a late PUBACK must never hit a younger row.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from agent.edge.store.consent import SPOOL_ERASURES, ConsentFile
from agent.edge.store.database import is_corrupt
from agent.edge.store.directory import StateDirectory
from agent.edge.store.file import NewerState
from agent.edge.store.marks import Marks
from agent.edge.store.spool import Spool
from agent.edge.store.value import Damage, SpoolLimits, Tally
from agent.errors import StoreError

SPOOLS = "spools"  # How many spool files have been begun.
ROWS_OF_A_SPOOL = 1 << 40  # So many row ids are for each, so that none comes twice.

_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


class _SpoolUnusable(StoreError):  # noqa: N818 - named for what is so, as in agent.errors
    """The spool cannot be opened, or has not followed the consent."""


class Follower:
    """The spool, led by the consent. Used by the agent thread only.

    Attributes:
        spool: What is open now, whether it has followed or not.
        fault: Why the spool takes or gives nothing, or "" while it does.
    """

    def __init__(
        self, directory: StateDirectory, limits: SpoolLimits, consent: ConsentFile, marks: Marks
    ) -> None:
        self._directory = directory
        self._limits = limits
        self._consent = consent
        self._marks = marks
        self._is_behind = True
        self._damage: tuple[Damage, ...] = ()
        self.spool: Spool | None = None
        self.fault = ""

    def close(self) -> None:
        """Close the spool; twice is harmless."""
        if self.spool is not None:
            self.spool.close()

    @property
    def set_aside(self) -> Path | None:
        """Where a corrupt spool was moved when this one was opened, or None."""
        return self.spool.set_aside if self.spool else None

    def follow(self, *, is_end: bool = False) -> tuple[dict[str, Tally], bool]:
        """Make the spool follow the consent; return what was erased, and whether without traces.

        The disk refusing is not raised: the consent is in force, and until this succeeds the spool
        takes and gives nothing.

        Args:
            is_end: A grant has ended, or all that waits is to go.

        Raises:
            NewerState: A newer agent wrote the spool.
        """
        self._is_behind = True
        live, erasures = self._consent.live_grants(), self._consent.number(SPOOL_ERASURES) or 0
        at_ns = self._consent.latest_ns()
        try:
            spool = self.spool or self._opened()
            try:
                erased, scrubbed = spool.follow(live, at_ns, generation=erasures)
            except StoreError as exc:
                if not is_corrupt(exc):
                    raise
                spool = self._renewed()
                erased, scrubbed = spool.follow(live, at_ns, generation=erasures)
        except NewerState:
            raise
        except StoreError as exc:
            self._tell(exc)
            return {}, False
        self._is_behind, self.fault = False, ""
        # Nobody can say whose envelopes lie in a file that could not be read.
        return erased, scrubbed and (not is_end or spool.remove_set_aside())

    def scrub(self) -> bool:
        """Clear the traces of what has been erased; return whether that could be done."""
        if self._is_behind:
            self.follow()
        return self.spool is not None and not self._is_behind and self.spool.scrub()

    def ask(self, step: Callable[[Spool], _Result]) -> _Result:
        """Do something with the spool; if it cannot be read, once more with a new one.

        Raises:
            StoreError: What the step raised, or the spool cannot be used.
        """
        try:
            return step(self._usable())
        except StoreError as exc:
            if not is_corrupt(exc):
                raise
        self._renewed()
        return step(self._usable())

    def write(self, step: Callable[[Spool], _Result]) -> _Result:
        """Do something that the disk must take; what it says of it is the spool's fault.

        Raises:
            StoreError: As `ask`.
        """
        try:
            done = self.ask(step)
        except StoreError as exc:
            if exc.__cause__ is not None:  # SQLite's word, not ours on a grant.
                self.fault = exc.message
            raise
        self.fault = ""
        return done

    def read(self, step: Callable[[Spool], _Result], nothing: _Result) -> _Result:
        """Ask the spool; it has nothing to say while it cannot be used."""
        try:
            return self.ask(step)
        except _SpoolUnusable:
            return nothing  # Why was told when it was tried.
        except StoreError as exc:
            self._tell(exc)
            return nothing

    def take_evicted(self) -> Mapping[str, Tally]:
        """Return what gave way in a full spool since this was last asked, per grant."""
        if self.spool is None:
            return {}
        evicted, self.spool.evicted = self.spool.evicted, {}
        return evicted

    def take_damage(self) -> tuple[Damage, ...]:
        """Return which spools had to be begun anew since this was last asked."""
        damage, self._damage = self._damage, ()
        return damage

    def _usable(self) -> Spool:
        """Return the spool once it has followed.

        Raises:
            _SpoolUnusable: It cannot be opened, or has not.
        """
        if self._is_behind:
            self.follow()
        if self.spool is None or self._is_behind:
            raise _SpoolUnusable(f"the spool cannot be used: {self.fault}")
        return self.spool

    def _opened(self, *, is_corrupt: bool = False) -> Spool:
        spool = Spool(self._directory, self._limits, is_corrupt=is_corrupt)
        try:
            if spool.is_new:
                self._begin(spool)
        except BaseException:
            spool.close()
            raise
        self.spool = spool
        return spool

    def _begin(self, spool: Spool) -> None:
        """Tell a new spool where numbers begin, and note what it stands for."""
        marks = self._marks.known
        if (aside := spool.set_aside) is not None:
            _log.error("spool was corrupt", extra={"set_aside": aside.name})
            self._damage += (Damage("spool", "set-aside"),)
        elif marks:
            _log.error("spool was missing")
            self._damage += (Damage("spool", "missing"),)
        row_id = self._consent.next_counter(SPOOLS) * ROWS_OF_A_SPOOL
        spool.begin_at(marks, row_id, self._consent.latest_ns())

    def _renewed(self) -> Spool:
        """Open the spool again, which turned out not to be readable, or begin a new one."""
        self._is_behind = True
        if self.spool is not None:
            self.spool.close()
            self.spool = None
        return self._opened(is_corrupt=True)

    def _tell(self, exc: StoreError) -> None:
        if exc.message != self.fault:  # It is tried again at every turn.
            _log.error("spool unusable", extra={"error": exc.message, "hint": exc.hint or ""})
        self.fault = exc.message
