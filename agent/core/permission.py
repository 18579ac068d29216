"""Who may ask what of the running agent at the vehicle.

Rules:
 * Deny by default: who is in no list may do nothing, and an empty list is nobody.
 * A member of a group is who was one when it connected, not who the group file names now.
 * 65534 is nobody: the kernel shows it for every user of another namespace, so it is no user.
"""

from dataclasses import dataclass

from agent.core.ask import Explain, Pause, Restrict, Resume, Status, Verb

NOBODY = 65_534  # Linux: /proc/sys/kernel/overflowuid and overflowgid, as nearly everywhere.


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks, as the kernel knows it.

    Attributes:
        gids: The group and the supplementary groups.
    """

    pid: int
    uid: int
    gids: frozenset[int]


@dataclass(frozen=True, slots=True)
class People:
    """Users, and the members of groups."""

    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()

    def include(self, peer: Peer) -> bool:
        """Tell whether a peer is one of them."""
        if peer.uid == NOBODY:
            return False
        return peer.uid in self.uids or bool(self.gids & (peer.gids - {NOBODY}))


@dataclass(frozen=True, slots=True)
class Permissions:
    """The lists of agent.toml, `[control]`."""

    may_pause: People = People()
    may_resume: People = People()
    may_look: People = People()

    def knows(self, peer: Peer) -> bool:
        """Tell whether the peer may do anything at all."""
        return any(
            people.include(peer) for people in (self.may_pause, self.may_resume, self.may_look)
        )

    def allow(self, verb: Verb, peer: Peer) -> bool:
        """Tell whether the peer may ask this."""
        match verb:
            case Pause() | Restrict():
                return self.may_pause.include(peer)
            case Resume():
                return self.may_resume.include(peer)
            case Status() | Explain():
                return self.may_look.include(peer)
