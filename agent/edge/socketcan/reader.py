"""One bus of SocketCAN, read in a thread of its own.

Rules:
 * Without a filter there is no socket: `set_filters(())` closes it before it returns.
 * Filters are changed by any thread on the open socket; the reader's thread owns everything else.
   The lock between them is never held over a wait.
 * When the first frame of a wake-up has come, the others of the next 0.1 s are waited for (less
   where the kernel's buffer is small): the kernel has stamped them, so nothing but wake-ups is
   saved. A silent bus wakes us to show that we are there, and for nothing else.
 * An interface that is down keeps its socket; one that is missing, or was taken away, is tried
   again with growing pauses. What the socket or the controller lost is counted; what lay in the
   socket of an interface that was taken away is read before it is closed.
 * It never writes to the bus. Whoever keeps the socket over a restart hears of each one that is
   opened or given up (`on_socket`), and gives it back with `adopt`.
 * What was read stays in a ring until it is settled. Whoever keeps that over a kill hears of it as
   well (`on_frames`), and gives it back with `adopt_frames`: what is in it is handed over first,
   unless the consent is another one by then. Without a filter it is empty, and not to be kept.
"""

import errno
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence

from agent.condition import Condition
from agent.core.bushealth import BusHealth, BusState
from agent.core.canfilter import CanFilter
from agent.core.model import Frame, Place
from agent.edge.socketcan import rawsocket
from agent.edge.socketcan.receiver import Receiver
from agent.edge.socketcan.ring import MAX_FRAMES, FrameRing

MAX_GATHER_S = 0.1
FRAME_BYTES = 768  # What the kernel counts for one in a socket's buffer (seen on Linux 6.1).
FASTEST_PER_S = 20_000  # Short frames of CAN FD at 5 Mbit/s.
MOVE_S = 4.0  # It moves at least this often, for the watchdog (agent.watch).
MIN_PAUSE_S = 0.25
MAX_PAUSE_S = MOVE_S
MAX_CHUNKS = 256  # Of one turn: more than a full buffer, however much comes meanwhile.
CLOSE_S = 2.0
ROOM_PAUSE_S = 0.02

_log = logging.getLogger(__name__)


class SocketCanReader:
    """Reads one interface until it is closed."""

    def __init__(  # noqa: PLR0913 - what it is connected to, by keyword
        self,
        name: str,
        *,
        channel: str,
        sink: Callable[[list[Frame], Place], None],
        has_room: Callable[[int], bool] = lambda _: True,
        on_rest: Callable[[bool], None] = lambda _: None,
        on_socket: Callable[[int | None], None] = lambda _: None,
        on_frames: Callable[[int | None], None] = lambda _: None,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            name: The bus's name in frames.
            channel: The interface, such as can0.
            sink: Gets every chunk and the place behind it, in this reader's thread.
            has_room: Whether whoever takes the chunks has room for so many frames; asked only for
                those of the ring, which can wait.
            on_rest: Told that frames of a process before us will come first, and, with False, that
                no more of them will.
            on_socket: Gets the descriptor of each socket that is opened, and None when one is given
                up for good; not at `close`.
            on_frames: The same for the ring.
        """
        self.name = name
        self.turns = 0  # Rises whenever the thread has gone round its loop.
        self.failure: BaseException | None = None
        self._channel = channel
        self._sink = sink
        self._has_room = has_room
        self._on_rest = on_rest
        self._on_socket = on_socket
        self._on_frames = on_frames
        self._lock = threading.Lock()  # Guards what follows.
        self._filters: tuple[CanFilter, ...] = ()
        self._sock: socket.socket | None = None
        self._kept: int | None = None
        self._gone: OSError | None = None  # Why the socket is closed once it has been read.
        self._condition = Condition(name)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._gather_s = 0.0
        self._ring = FrameRing(name, channel)
        self._is_ring_kept = False
        self._has_rest = False  # Of what the process before us read.
        self._receiver = Receiver(self._ring)  # The thread's own, as what follows.
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"bus-{name}", daemon=True)

    def adopt(self, descriptor: int) -> None:
        """Go on with a socket that was kept over a restart; before `set_filters`.

        Args:
            descriptor: Ours from now on. If it is not a socket of this interface it is closed, and
                a new one is opened.
        """
        self._kept = descriptor

    def adopt_frames(self, descriptor: int, *, last_row: int) -> None:
        """Go on with a ring that was kept over a kill; before `set_filters`.

        Args:
            descriptor: Ours from now on. If it is not a ring of this interface it is closed.
            last_row: Of the spool; tells what in the ring is stored.
        """
        self._ring.close()
        self._ring = FrameRing(self.name, self._channel, descriptor)
        self._is_ring_kept = True
        self._receiver = Receiver(self._ring)
        left, abandoned = self._ring.take_up(last_row)
        if left:
            self._has_rest = True
            self._on_rest(True)
            _log.info("frames found", extra={"bus": self.name, "frames": left})
        if abandoned:
            self._condition.abandon(abandoned)

    def keep_only(self, consent: int) -> None:
        """Let go what the process before us read under another consent. For any thread.

        Args:
            consent: The one in force from now on, also while that is still being handed over.
        """
        with self._lock:
            if self._has_rest and self._ring.consent != consent:
                self._ring.clear()

    def note_consent(self, consent: int) -> None:
        """Take note of the consent under which all was taken that is not settled yet."""
        self._ring.consent = consent

    def announce(self, place: Place, row: int) -> None:
        """Take note that what came up to here is about to be stored. For any thread.

        Args:
            place: That came with a chunk.
            row: The spool has this row when it is.
        """
        self._ring.announce(place, row)

    def settle(self, place: Place) -> None:
        """Let go what came up to here: it is stored, or nobody may have it. For any thread."""
        self._ring.settle(place)

    def set_filters(self, filters: Sequence[CanFilter]) -> None:
        """Let these frames in and no others; () closes the socket. For any thread.

        Where the interface is missing the reader's thread goes on trying with them.
        """
        with self._lock:
            self._filters = tuple(filters)
            if not self._filters:
                self._give_up()
                self._let_go_frames()
                self._condition.enter(BusState.IDLE, time.time_ns())
            elif self._sock is None:
                self._open()
            else:
                try:
                    rawsocket.set_filters(self._sock, self._filters)
                except OSError as exc:
                    self._gone = exc
            self._rouse()

    def start(self) -> None:
        """Begin reading."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; `close` waits for it."""
        self._stop.set()
        with self._lock:
            self._rouse()

    def close(self) -> None:
        """Hand over what lies in the socket, and end. Harmless when called twice."""
        self.stop()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=CLOSE_S)
        with self._lock:
            if self._sock is not None:
                self._sock.close()
                self._sock = None
            self._ring.close()
            if self._wake >= 0 and not self._thread.is_alive():
                os.close(self._wake)
                self._wake = -1

    @property
    def is_alive(self) -> bool:
        """Whether the reader's thread runs."""
        return self._thread.is_alive()

    @property
    def descriptor(self) -> int | None:
        """The open socket's, to be kept over a restart; None where nothing is open."""
        with self._lock:
            return None if self._sock is None else self._sock.fileno()

    def health(self) -> BusHealth:
        """Return how the bus does now. For any thread."""
        with self._lock:
            if self._sock is not None:
                self._condition.count_drops(rawsocket.dropped(self._sock))
                self._look_at_interface(self._sock)
            return self._condition.health()

    def _run(self) -> None:
        try:
            if self._has_rest:
                is_done = self._hand_over_rest()
                self._on_rest(False)
                if not is_done:
                    return
            pause_s = MIN_PAUSE_S
            while not self._stop.is_set():
                self.turns += 1
                with self._lock:
                    self._condition.look(time.time_ns())
                    is_wanted = bool(self._filters)
                    if self._sock is None and is_wanted:
                        self._open()
                    descriptor = None if self._sock is None else self._sock.fileno()
                if descriptor is not None:
                    pause_s = MIN_PAUSE_S
                    self._await_frames(descriptor)
                    self._drain()
                elif is_wanted:
                    self._await_wake(pause_s)
                    pause_s = min(pause_s * 2, MAX_PAUSE_S)
                else:
                    self._await_wake(MOVE_S)
            self._drain()
        except Exception as exc:  # noqa: BLE001 - the thread's top, see below
            # The thread's top: the daemon sees the dead lane and ends the process.
            self.failure = exc
            _log.exception("bus reader died", extra={"bus": self.name})

    def _hand_over_rest(self) -> bool:
        """Hand over what the process before us read and did not store.

        Returns:
            False if we are to end before that is done: nothing that came later may be handed over
            then, or its place would stand for all.
        """
        rest = self._ring.rest()
        while True:
            while not self._has_room(MAX_FRAMES):
                self.turns += 1
                if self._stop.wait(ROOM_PAUSE_S):
                    return False
            with self._lock:  # What `set_filters` lets go is not read behind it.
                chunk = next(rest, None)
                if chunk is None:
                    self._has_rest = False
                    return True
                self._condition.note(chunk[0])
            self._sink(*chunk)

    def _await_frames(self, descriptor: int) -> None:
        """Wait for a first frame and those that follow it closely, or for `set_filters`.

        Args:
            descriptor: Of the socket. If it is closed meanwhile, we are woken.
        """
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        poller.register(descriptor, select.POLLIN)
        ready = [found for found, _ in poller.poll(MOVE_S * 1000)]
        if self._wake in ready:
            os.eventfd_read(self._wake)
        elif ready:
            self._await_wake(self._gather_s)

    def _await_wake(self, timeout_s: float) -> None:
        if select.select([self._wake], [], [], timeout_s)[0]:
            os.eventfd_read(self._wake)

    def _rouse(self) -> None:
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def _drain(self) -> None:
        """Hand over what lies in the socket, chunk by chunk."""
        for _ in range(MAX_CHUNKS):
            with self._lock:
                if self._sock is None:
                    return
                try:
                    received = self._receiver.receive(self._sock)
                except BlockingIOError:
                    self._end_of_gone()
                    return
                except OSError as exc:
                    if exc.errno == errno.ENETDOWN:
                        # The socket stays bound: once the interface is up again, frames come
                        # (net/can/raw.c).
                        self._condition.enter(BusState.DOWN, time.time_ns(), _words(exc))
                        return
                    # An error comes before the frames that lie there, once (net/core/sock.c,
                    # sock_error); a second one is of a socket that gives nothing.
                    if self._gone is None:
                        self._gone = exc
                        continue
                    self._end_of_gone()
                    return
                if received.drops is not None:
                    self._condition.count_drops(received.drops)
                self._condition.note(received.frames, received.errors)
            if received.frames:
                self._sink(received.frames, received.place)
            if received.count < MAX_FRAMES and self._gone is None:
                return
            self.turns += 1
        with self._lock:
            self._end_of_gone()

    def _open(self) -> None:
        """Open the socket, or take up the kept one."""
        kept, self._kept = self._kept, None
        try:
            if kept is not None:
                self._sock = rawsocket.take_over(kept, self._channel, self._filters)
                if self._sock is None:
                    self._on_socket(None)  # It is not ours: nobody is to keep it any longer.
            is_kept = self._sock is not None
            self._sock = self._sock or rawsocket.open_raw(self._channel, self._filters)
        except OSError as exc:
            self._condition.lose(time.time_ns(), _words(exc))
            return
        buffer_bytes = rawsocket.buffer_bytes(self._sock)
        # By then the fastest bus has filled half of it.
        self._gather_s = min(MAX_GATHER_S, buffer_bytes / FRAME_BYTES / 2 / FASTEST_PER_S)
        self._condition.begin_socket()
        self._condition.enter(BusState.ACTIVE, time.time_ns())
        _log.info(
            "bus open",
            extra={
                "bus": self.name,
                "kept": is_kept,
                "filters": len(self._filters),
                "buffer_bytes": buffer_bytes,
            },
        )
        self._on_socket(self._sock.fileno())
        self._is_ring_kept = True
        self._on_frames(self._ring.descriptor)

    def _end_of_gone(self) -> None:
        """Close the socket of an interface that is gone; what lay in it was read."""
        if (gone := self._gone) is not None:
            self._give_up()
            self._condition.lose(time.time_ns(), _words(gone))

    def _give_up(self) -> None:
        """Close what is open or kept; what still lies in it is never read."""
        self._gone = None
        kept, self._kept = self._kept, None
        if kept is not None:
            os.close(kept)
        if self._sock is not None:
            self._condition.count_drops(rawsocket.dropped(self._sock))
            self._sock.close()
        if kept is not None or self._sock is not None:
            self._sock = None
            self._on_socket(None)

    def _let_go_frames(self) -> None:
        """Clear the ring: nobody may have what is in it, and nobody is to keep it."""
        self._ring.clear()
        if self._is_ring_kept:
            self._is_ring_kept = False
            self._on_frames(None)

    def _look_at_interface(self, sock: socket.socket) -> None:
        """Nobody says that an interface is up again; a silent one would be taken for down."""
        try:
            if self._condition.state is BusState.DOWN and rawsocket.is_up(sock, self._channel):
                self._condition.enter(BusState.ACTIVE, time.time_ns())
        except OSError:
            return  # It is gone: the reader's thread hears of it by itself.


def _words(exc: OSError) -> str:
    return exc.strerror or str(exc)
