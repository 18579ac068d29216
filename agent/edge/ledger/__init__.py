"""The ledger's files: append-only segments, heads and checkpoints; read by others while written."""

from agent.edge.ledger.ledger import Ledger
from agent.edge.ledger.limits import Limits
from agent.edge.ledger.reading import read_entries, replay_all

__all__ = ["Ledger", "Limits", "read_entries", "replay_all"]
