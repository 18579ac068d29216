"""Names of users and groups of this machine → who may ask what over the control socket.

Rules:
 * A name is a user's, `@name` a group's.
 * A name that this machine does not know is an error where the user wrote it; in a list that was
   left at its default it stands for nobody.
 * `nobody` and its group are refused: they stand for every user that the kernel cannot tell.
"""

import grp
import pwd
from collections.abc import Collection, Mapping

from agent.core.permission import NOBODY, People, Permissions
from agent.errors import ConfigError


def find_permissions(
    lists: Mapping[str, Collection[str]], *, written: Collection[str]
) -> Permissions:
    """Return who may do what.

    Args:
        lists: `may_pause`, `may_resume` and `may_look`, each with its names.
        written: Those of the three that the user wrote, and are not the default.

    Raises:
        ConfigError: Names that this machine does not know; all of them are told at once.
    """
    faults: list[str] = []
    found = {
        key: _people(key, names, faults if key in written else None) for key, names in lists.items()
    }
    if faults:
        raise ConfigError(
            f"control: {'; '.join(faults)}",
            hint="a name is a user of this machine, @name a group; `getent` lists them",
        )
    return Permissions(**found)


def find_group(name: str) -> int:
    """Return the number of a group.

    Raises:
        ConfigError: This machine has no such group.
    """
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as exc:
        raise ConfigError(
            f"control.group: there is no group {name}",
            hint="name one that `getent group` lists, or leave the key out",
        ) from exc


def _people(key: str, names: Collection[str], faults: list[str] | None) -> People:
    uids: set[int] = set()
    gids: set[int] = set()
    for name in names:
        kind, known = "user", uids
        try:
            if name.startswith("@"):
                kind, known = "group", gids
                number = grp.getgrnam(name[1:]).gr_gid
            else:
                number = pwd.getpwnam(name).pw_uid
        except KeyError:
            if faults is not None:
                faults.append(f"{key}: there is no {kind} {name.removeprefix('@')}")
            continue
        if number == NOBODY:
            if faults is not None:
                faults.append(f"{key}: {name} stands for users that cannot be told apart")
            continue
        known.add(number)
    return People(frozenset(uids), frozenset(gids))
