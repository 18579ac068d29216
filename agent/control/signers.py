"""Who may sign for the vehicle: the trust file, and the trust document that renewed it.

Rules:
 * A trust document is taken from the keys of the trust file, whatever came in between.
 * It is on disk before it counts. At a start one that does not follow from the file any more is
   passed over: a newer file, or one with another root, is the word of whoever stands at the
   vehicle.
"""

from agent.core.jws import verify_document
from agent.core.trust import Trust, parse_trust_document, renewed
from agent.edge.store import Store
from agent.errors import PolicyRejected

_TRUST = "trust"  # The name under which the trust document is kept.


class Signers:
    """The trust in force. Used by the agent thread only.

    Attributes:
        trust: Who may sign, as the trust file or the last trust document says.
    """

    def __init__(self, store: Store, trust_file: Trust) -> None:
        self._store = store
        self._trust_file = trust_file
        self.trust = trust_file

    def restore(self) -> None:
        """Take up the trust document that is on disk."""
        self.trust = trust_in_force(self._store, self._trust_file)

    def renew(self, token: bytes, payload: bytes) -> bool:
        """Replace the platform's keys; return whether the document is another than the last.

        Args:
            token: A trust document as it arrived.
            payload: What is signed in it, verified.

        Raises:
            PolicyRejected: It must not be applied; nothing changed.
            StoreError: It could not be written; nothing changed.
        """
        document = parse_trust_document(payload)
        if self._store.document(_TRUST) == token:
            return False
        trust = renewed(self._trust_file, document, above=self.trust.ver)
        self._store.keep_document(_TRUST, token)
        self.trust = trust
        return True


def trust_in_force(store: Store, trust_file: Trust) -> Trust:
    """Return the trust of a trust file, or what the trust document on disk has made of it."""
    token = store.document(_TRUST)
    if token is None:
        return trust_file
    try:
        return renewed(trust_file, parse_trust_document(verify_document(token, trust_file).payload))
    except PolicyRejected:
        return trust_file
