"""Who may ask what: deny by default, a list at a time."""

import pytest

from agent.core.ask import Explain, Pause, Restrict, Resume, Status, Verb
from agent.core.permission import NOBODY, Peer, People, Permissions

OWNER = Peer(pid=1, uid=0, gids=frozenset({0}))
DRIVER = Peer(pid=2, uid=1000, gids=frozenset({1000, 50}))
STRANGER = Peer(pid=3, uid=1001, gids=frozenset({1001}))
LISTS = Permissions(
    may_pause=People(frozenset({0}), frozenset({50})),
    may_resume=People(frozenset({0})),
    may_look=People(frozenset({0}), frozenset({1000})),
)
PAUSING: list[Verb] = [Pause(), Pause("gr_1", 5), Restrict("a.b.c")]
LOOKING: list[Verb] = [Status(), Explain("Vehicle.Speed")]


@pytest.mark.parametrize("verb", [*PAUSING, *LOOKING, Resume()], ids=repr)
def test_without_lists_nobody_may_do_anything(verb: Verb) -> None:
    assert not Permissions().allow(verb, OWNER)
    assert not Permissions().knows(OWNER)


@pytest.mark.parametrize("verb", [*PAUSING, *LOOKING], ids=repr)
def test_a_member_of_a_group_may_what_its_lists_say(verb: Verb) -> None:
    assert LISTS.allow(verb, DRIVER)
    assert LISTS.knows(DRIVER)


def test_who_may_stop_may_not_start_again() -> None:
    assert not LISTS.allow(Resume(), DRIVER)
    assert LISTS.allow(Resume(), OWNER)


@pytest.mark.parametrize("verb", [*PAUSING, *LOOKING, Resume()], ids=repr)
def test_who_is_in_no_list_may_do_nothing(verb: Verb) -> None:
    assert not LISTS.allow(verb, STRANGER)
    assert not LISTS.knows(STRANGER)


def test_one_list_gives_nothing_of_another() -> None:
    only = {
        "may_pause": (PAUSING, [*LOOKING, Resume()]),
        "may_resume": ([Resume()], [*PAUSING, *LOOKING]),
        "may_look": (LOOKING, [*PAUSING, Resume()]),
    }
    for name, (allowed, denied) in only.items():
        lists = Permissions(**{name: People(frozenset({1000}))})

        assert all(lists.allow(verb, DRIVER) for verb in allowed), name
        assert not any(lists.allow(verb, DRIVER) for verb in denied), name


def test_a_user_whom_the_kernel_does_not_know_is_nobody_of_the_list() -> None:
    everybody = People(frozenset({NOBODY, 7}), frozenset({NOBODY}))

    assert not everybody.include(Peer(pid=1, uid=NOBODY, gids=frozenset({NOBODY})))
    assert not everybody.include(Peer(pid=1, uid=8, gids=frozenset({NOBODY})))
    assert everybody.include(Peer(pid=1, uid=7, gids=frozenset({NOBODY})))
