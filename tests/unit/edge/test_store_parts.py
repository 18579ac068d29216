"""The parts of the spool, each by itself, on a real file of its own."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.core.model import NS_PER_S
from agent.edge.store import (
    FLOOR_NS,
    Damage,
    Floor,
    LiveGrant,
    NewEnvelope,
    SpoolLimits,
    Store,
    Tally,
    numbers,
    rows,
)
from agent.edge.store import grants as grant_rows
from agent.edge.store.database import Database
from agent.edge.store.directory import StateDirectory
from agent.edge.store.erasure import erase
from agent.edge.store.gaps import Gaps
from agent.edge.store.marks import AHEAD, Marks
from agent.edge.store.room import Room
from agent.edge.store.tables import PAGE_BYTES, SPOOL, own_page_bytes
from agent.edge.store.unstored import Unstored
from agent.edge.store.upkeep import SHRINK_BYTES, TURN_NS, Upkeep
from agent.edge.store.value import Mark
from agent.errors import StoreError
from tests.unit.edge.test_store import put, with_grants

NEVER_NS = 10**18
LARGE, SMALL = b"L" * 20_000, b"s" * 100
ROW_ID = 1 << 40


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[StateDirectory]:
    held = StateDirectory(tmp_path / "state")
    yield held
    held.close()


@pytest.fixture
def db(directory: StateDirectory) -> Iterator[Database]:
    database = Database(directory, "spool.db", SPOOL)
    yield database
    database.close()


def new(grant_id: str = "a", recipient: str = "r", created_ns: int = 1) -> NewEnvelope:
    return NewEnvelope(grant_id, 1, recipient, created_ns, NEVER_NS, lambda n: b"%d" % n)


def fill(db: Database, envelope: bytes, count: int, grant_id: str = "a", rev: int = 1) -> None:
    """Let a live grant have so many envelopes, numbered from 1."""
    with db.transaction():
        grant_rows.write(db, LiveGrant(grant_id, rev))
        for _ in range(count):
            one = NewEnvelope(grant_id, rev, "r", 1, NEVER_NS, lambda _: envelope)
            n = numbers.draw(db, grant_id, "r")
            rows.insert(db, one, n, envelope, expires_ns=NEVER_NS)


def noted(db: Database) -> list[tuple[str, str, int, int, str]]:
    found = Gaps(db).hand_out(99, exclude=frozenset())
    return [(g.grant_id, g.recipient, g.first_n, g.last_n, g.why) for g in found]


class Told(NamedTuple):
    """A gap of one number."""

    n: int
    why: str


def told(store: Store) -> list[Told]:
    return [Told(gap.first_n, gap.why) for gap in store.gaps(9) if gap.first_n == gap.last_n]


class TestMarks:
    """How far numbers may have come, beside the consent."""

    def test_a_mark_is_raised_by_many_and_then_not_until_they_are_used(
        self, tmp_path: Path
    ) -> None:
        with Store.open(tmp_path / "state") as store:
            marks = Marks(store._db)

            on_disk = []
            for n in (1, 2, AHEAD, AHEAD + 1):
                marks.reach("a", "r", n)
                on_disk.append(Marks(store._db).known["a"].n)

            assert on_disk == [AHEAD, AHEAD, AHEAD, 2 * AHEAD]

    def test_another_recipient_is_marked_at_once_and_the_mark_never_falls(
        self, tmp_path: Path
    ) -> None:
        """A lost spool's numbers are told to whom its envelopes were addressed last."""
        with Store.open(tmp_path / "state") as store:
            marks = Marks(store._db)
            marks.reach("a", "old", 500)

            marks.reach("a", "new", 3)

            assert Marks(store._db).known == {"a": Mark("new", 499 + AHEAD)}


class TestNumbers:
    """Where the numbers of a new file begin."""

    @pytest.mark.parametrize(
        ("carried", "is_believed"),
        [
            (3000 - AHEAD - 1, False),
            (3000 - AHEAD, True),
            (3000, True),
            (3001, False),
        ],
    )
    def test_a_number_that_was_carried_over_counts_where_it_can_be_true(
        self, db: Database, carried: int, *, is_believed: bool
    ) -> None:
        db.rows("INSERT INTO sequence VALUES ('a', ?, 'carried')", carried)

        numbers.begin_at(db, Gaps(db), {"a": Mark("marked", 3000)}, ROW_ID, 7)

        expected = ("carried", carried) if is_believed else ("marked", 3000)
        assert noted(db) == [("a", expected[0], 1, expected[1], "damaged")]
        assert numbers.draw(db, "a", "r") == expected[1] + 1

    def test_rows_begin_at_their_own_id_whatever_was_carried_over(self, db: Database) -> None:
        db.rows("INSERT INTO sequence VALUES ('', 5, '')")

        numbers.begin_at(db, Gaps(db), {}, ROW_ID, 7)

        assert (numbers.draw_row(db), numbers.draw_row(db)) == (ROW_ID, ROW_ID + 1)

    def test_the_ids_of_rows_are_nobodys_numbers(self, db: Database) -> None:
        """No recipient is told of them, however often a spool is lost."""
        for row_id in (ROW_ID, 2 * ROW_ID):
            numbers.begin_at(db, Gaps(db), {"a": Mark("r", 5)}, row_id, 7)

        assert {gap[0] for gap in noted(db)} == {"a"}

    def test_the_row_that_was_given_last_is_known_whether_it_waits_or_not(
        self, tmp_path: Path
    ) -> None:
        """0: none yet, or none can be given."""
        path = tmp_path / "state"
        with Store.open(path) as store:
            with_grants(store, "a")
            put(store, "a")
            put(store, "a")
            store.delivered([row.row_id for row in store.pending(9)])

            assert store.last_row == ROW_ID + 1
        (path / "spool.db").chmod(0o644)
        with Store.open(path) as store:
            assert store.last_row == 0

    def test_numbers_of_grants_are_no_rows(self, db: Database) -> None:
        numbers.draw(db, "a", "r")

        assert numbers.last_row(db) == 0
        assert not numbers.were_begun(db)

    def test_a_file_is_told_once_where_its_rows_begin(self, tmp_path: Path) -> None:
        for _ in range(3):
            with Store.open(tmp_path / "state") as store:
                assert store.number("spools") == 1


class TestUnstored:
    """What the disk refused."""

    def test_each_grants_refused_envelopes_are_one_gap_noted_once(self, db: Database) -> None:
        unstored = Unstored(db, Gaps(db))
        for refused in (new("a"), new("b"), new("a", "s", created_ns=9)):
            unstored.add(refused)
        marked: list[tuple[str, str, int]] = []

        for _ in range(2):
            unstored.note_all(lambda *mark: marked.append(mark))

        assert noted(db) == [("a", "s", 1, 2, "evicted"), ("b", "r", 1, 1, "evicted")]
        assert marked == [("a", "s", 2), ("b", "r", 1)]

    def test_what_could_not_be_marked_is_noted_later_with_the_same_numbers(
        self, db: Database
    ) -> None:
        unstored = Unstored(db, Gaps(db))
        unstored.add(new("a"))

        def refuses(*_: object) -> None:
            raise StoreError("no room")

        with pytest.raises(StoreError):
            unstored.note_all(refuses)
        assert noted(db) == []
        unstored.note_all(lambda *_: None)

        assert noted(db) == [("a", "r", 1, 1, "evicted")]

    def test_of_a_grant_that_ended_nothing_is_noted(self, db: Database) -> None:
        unstored = Unstored(db, Gaps(db))
        unstored.add(new("a"))
        unstored.add(new("b"))

        unstored.keep_only({"b"})
        unstored.note_all(lambda *_: None)

        assert noted(db) == [("b", "r", 1, 1, "evicted")]


class TestDamage:
    """What had to be begun anew, for the platform to hear."""

    @pytest.mark.parametrize(
        ("file", "is_lost", "expected"),
        [
            ("consent", False, Damage("consent", "set-aside")),
            ("spool", False, Damage("spool", "set-aside")),
            ("spool", True, Damage("spool", "missing")),
        ],
    )
    def test_a_file_that_was_begun_anew_is_told_once(
        self, tmp_path: Path, file: str, expected: Damage, *, is_lost: bool
    ) -> None:
        with Store.open(tmp_path / "state") as store:
            with_grants(store, "a")
            put(store, "a")
        path = tmp_path / "state" / f"{file}.db"
        if is_lost:
            path.unlink()
        else:
            path.write_bytes(bytes(4096))

        with Store.open(tmp_path / "state") as store:
            assert [store.take_damage(), store.take_damage()] == [(expected,), ()]
        with Store.open(tmp_path / "state") as store:
            assert store.take_damage() == ()

    def test_a_spool_that_could_not_be_told_where_numbers_begin_is_not_used(
        self, tmp_path: Path
    ) -> None:
        """Or a number would be drawn twice."""
        with Store.open(tmp_path / "state") as store:
            with_grants(store, "a")
            put(store, "a", LARGE)
            store.scrub()
            (tmp_path / "state" / "spool.db").write_bytes(bytes(1 << 16))
            store._spool.spool._db.rows("PRAGMA shrink_memory")  # type: ignore[union-attr]
            store._db.rows("PRAGMA query_only = ON")

            assert store.pending(9) == ()
            assert store.spool_fault
            store._db.rows("PRAGMA query_only = OFF")

            assert put(store, "a") == AHEAD + 1
            assert store.spool_fault == ""


class TestTurn:
    """What a turn does when gaps of what was refused cannot be noted."""

    def refused(self, store: Store) -> Database:
        """Let something be refused whose gap takes pages of its own; return the spool's file."""
        with_grants(store, "a")
        put(store, "a", expires_ns=5)
        assert store._spool.spool is not None
        store._spool.spool._unstored.add(new("a", "r" * 20_000))
        return store._spool.spool._db

    def test_a_disk_without_room_for_the_gap_hinders_no_erasure(self, tmp_path: Path) -> None:
        with Store.open(tmp_path / "state") as store:
            db = self.refused(store)
            ((pages,),) = db.rows("PRAGMA page_count")
            db.rows(f"PRAGMA max_page_count = {pages}")

            assert store.expire(9) == {"a": Tally(1, 6)}
            assert [(gap.n, gap.why) for gap in told(store)] == [(1, "expired")]
            db.rows(f"PRAGMA max_page_count = {pages + 99}")
            store.expire(9)

            assert [(gap.n, gap.why) for gap in told(store)] == [(1, "expired"), (2, "evicted")]

    def test_a_spool_that_refuses_the_gap_for_another_reason_is_told(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with Store.open(tmp_path / "state") as store:
            db = self.refused(store)
            db.rows("PRAGMA query_only = ON")

            assert store.expire(1) == {}

            assert [record.message for record in caplog.records] == ["spool unusable"]
            db.rows("PRAGMA query_only = OFF")


class TestBeginning:
    """A consent that stands for one that was lost."""

    def test_what_is_known_of_the_lost_one_is_kept(self, tmp_path: Path) -> None:
        """No older policy, no answer under a counter that was used, no earlier time."""
        floor = Floor(2, 7, "ab" * 32)
        with Store.open(tmp_path / "state") as store:
            assert (store.is_begun_anew, store.floor()) == (True, None)

            store.end_beginning(floor, last_s=1000)

        with Store.open(tmp_path / "state") as store:
            assert (store.is_begun_anew, store.floor()) == (False, floor)
            assert store.number(FLOOR_NS) == 1000 * NS_PER_S
            assert store.next_counter("ack") == 1000 * 1000 + 1

    def test_what_has_risen_above_it_does_not_fall(self, tmp_path: Path) -> None:
        with Store.open(tmp_path / "state") as store:
            store.keep_numbers({"ack": 1000 * 1000 + 1, FLOOR_NS: 1000 * NS_PER_S + 1})

            store.end_beginning(None, last_s=1000)

            assert (store.is_begun_anew, store.floor()) == (False, None)
            assert store.number(FLOOR_NS) == 1000 * NS_PER_S + 1
            assert store.next_counter("ack") == 1000 * 1000 + 2

    def test_where_there_was_none_before_nothing_is_kept(self, tmp_path: Path) -> None:
        with Store.open(tmp_path / "state") as store:
            store.end_beginning(None, last_s=0)

            assert (store.is_begun_anew, store.floor()) == (False, None)
            assert (store.number("ack"), store.number(FLOOR_NS)) == (None, None)


class TestFull:
    """An append where the file can take no more."""

    def full(self, store: Store, more_pages: int = 0) -> None:
        """Let the spool's file grow by no more than that."""
        assert store._spool.spool is not None
        db = store._spool.spool._db
        ((pages,),) = db.rows("PRAGMA page_count")
        db.rows(f"PRAGMA max_page_count = {pages + more_pages}")

    @pytest.mark.parametrize("min_free_bytes", [0, 1])
    def test_older_envelopes_give_way_for_one_that_does_not_fit(
        self, tmp_path: Path, min_free_bytes: int
    ) -> None:
        """As in a full spool, and whatever the disk says that it has."""
        limits = SpoolLimits(min_free_bytes=min_free_bytes)
        with Store.open(tmp_path / "state", limits=limits) as store:
            with_grants(store, "a")
            for _ in range(10):
                put(store, "a", LARGE)
            self.full(store)

            assert put(store, "a", LARGE) == 11
            assert [gap.first_n for gap in store.gaps(9)] == [1]
            assert store.counts()["a"].envelopes == 11 - store.gaps(9)[0].last_n

    def test_of_several_that_do_not_fit_each_is_refused_once(self, tmp_path: Path) -> None:
        with Store.open(tmp_path / "state") as store:
            with_grants(store, "a")
            self.full(store)
            huge = [replace(new("a"), recipient="r" * 40_000) for _ in range(2)]

            kept = store.append_all(huge)

            assert [isinstance(one, StoreError) for one in kept] == [True, True]
            self.full(store, 99)
            store.expire(1)
            assert [(g.first_n, g.last_n, g.why) for g in store.gaps(9)] == [(1, 2, "evicted")]

    def test_what_cannot_be_sealed_is_tried_once(self, tmp_path: Path) -> None:
        tried: list[int] = []

        def fails(n: int) -> bytes:
            tried.append(n)
            raise StoreError("no key")

        with Store.open(tmp_path / "state") as store:
            with_grants(store, "a")

            (kept,) = store.append_all([replace(new("a"), seal=fails)])

            assert (isinstance(kept, StoreError), tried) == (True, [1])
            assert put(store, "a") == 1


class TestErasure:
    """Grants of which nothing stays, on a disk that is full."""

    def full_once(self, db: Database, seen: list[dict[str, Tally]]) -> None:
        """Fill the file the first time, which is undone; then look at what is left."""
        if not seen:
            seen.append(rows.held(db))
            db.rows("INSERT INTO gap SELECT NULL, hex(zeroblob(9999999)), 'r', 1, 1, 'erased', 1")
        seen.append(rows.held(db))

    def test_where_the_log_has_no_room_rows_go_in_pieces_and_no_others(self, db: Database) -> None:
        fill(db, SMALL, 3, "a", rev=2)
        fill(db, SMALL, 150, "b")
        fill(db, SMALL, 3, "c", rev=2)
        ((pages,),) = db.rows("PRAGMA page_count")
        db.rows(f"PRAGMA max_page_count = {pages + 9}")
        seen: list[dict[str, Tally]] = []

        erase(db, Gaps(db), [("b", 1), ("c", 1)], 5, delete=lambda: self.full_once(db, seen))

        before, after = seen
        assert (before["b"].envelopes, sorted(after)) == (150, ["a", "c"])
        assert after["c"].envelopes == 3  # Of another rev.
        assert noted(db) == [("b", "r", 1, 150, "erased")]

    def test_what_went_in_pieces_is_noted_though_the_rest_fails(self, db: Database) -> None:
        """Each number is an envelope, or in a gap: also after a crash before the last step."""
        fill(db, SMALL, 150)
        ((pages,),) = db.rows("PRAGMA page_count")
        db.rows(f"PRAGMA max_page_count = {pages + 9}")
        seen: list[dict[str, Tally]] = []

        def fails() -> None:
            self.full_once(db, seen)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            erase(db, Gaps(db), [("a", 1)], 5, delete=fails)

        assert (rows.held(db), noted(db)) == ({}, [("a", "r", 1, 150, "erased")])


class TestUpkeep:
    """What the file needs once a minute."""

    def test_traces_are_cleared_once_a_minute_or_when_the_clock_goes_back(
        self, db: Database, directory: StateDirectory
    ) -> None:
        upkeep = Upkeep(db, directory)
        at_ns = 100 * TURN_NS
        upkeep.turn(at_ns, is_empty=False)

        left = []
        for later_ns in (0, 1, TURN_NS - 1, TURN_NS, TURN_NS - 1):
            upkeep.has_traces = True
            upkeep.turn(at_ns + later_ns, is_empty=False)
            left.append(upkeep.has_traces)

        assert left == [True, True, True, False, False]

    @pytest.mark.parametrize("is_empty", [True, False])
    def test_only_a_file_with_much_to_give_back_is_written_anew(
        self, db: Database, directory: StateDirectory, *, is_empty: bool
    ) -> None:
        frees = []
        for count in (3, 1 + SHRINK_BYTES // len(LARGE)):
            fill(db, LARGE, count)
            rows.remove_all_of(db, "a")

            Upkeep(db, directory).turn(1, is_empty=is_empty)

            frees.append(db.free_bytes())

        assert 0 < frees[0] < SHRINK_BYTES
        assert (frees[1] == 0) is is_empty


class TestRoom:
    """Which envelopes give way on a disk that others filled."""

    def room(self, db: Database, limits: SpoolLimits | None = None) -> Room:
        live = {grant.grant_id: grant for grant in grant_rows.live(db)}
        return Room(db, Gaps(db), limits or SpoolLimits(), live, rows.held(db))

    def made(
        self, db: Database, size: int, *, free: int, limits: SpoolLimits | None = None
    ) -> tuple[int, bool]:
        """Make room for an envelope of `a`; return how many went, and whether it fits."""
        with db.transaction():
            gone, fits = self.room(db, limits).make(LiveGrant("a", 1), size, 5, free=free)
        return sum(tally.envelopes for tally in gone.values()), fits

    def test_the_file_does_not_grow_and_has_room_for_what_comes_beside(self, db: Database) -> None:
        """Tables and index may split: eight pages more than the envelope's own must be free."""
        fill(db, LARGE, 4)

        with db.transaction():
            gone, fits = self.room(db).make(LiveGrant("a", 1), len(LARGE), 5, free=0)

        needed = own_page_bytes(len(LARGE)) + 8 * PAGE_BYTES
        assert (gone, fits) == ({"a": Tally(2, 2 * len(LARGE))}, True)
        assert db.free_bytes() >= needed
        assert noted(db) == [("a", "r", 1, 2, "evicted")]

    def test_small_envelopes_count_with_the_pages_that_they_have_to_themselves(
        self, db: Database
    ) -> None:
        fill(db, SMALL, 20)

        went, fits = self.made(db, len(SMALL), free=0)

        assert fits
        assert 4 < went < 20

    def test_nothing_goes_where_all_together_would_not_do(self, db: Database) -> None:
        fill(db, LARGE, 2)

        assert self.made(db, 10 * len(LARGE), free=0) == (0, False)
        assert rows.held(db)["a"].envelopes == 2

    def test_where_nothing_waits_the_room_for_others_is_used_but_never_more(
        self, db: Database
    ) -> None:
        """What is kept for others is not worth the newest; a full disk is full."""
        grant_rows.write(db, LiveGrant("a", 1))
        limits = SpoolLimits(min_free_bytes=1000)

        assert self.made(db, len(LARGE), free=1000, limits=limits) == (0, True)
        assert self.made(db, len(LARGE), free=0, limits=limits) == (0, False)

    def test_the_room_for_others_begins_where_no_more_is_left_than_that(self, db: Database) -> None:
        fill(db, LARGE, 4)
        limits = SpoolLimits(min_free_bytes=1000)

        assert self.made(db, len(LARGE), free=1001, limits=limits) == (0, True)
        assert self.made(db, len(LARGE), free=1000, limits=limits) == (1, True)
