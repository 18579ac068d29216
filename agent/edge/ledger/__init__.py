"""The ledger's files: append-only segments, heads and checkpoints; read by others while written."""

from agent.edge.ledger.ledger import Ledger, Limits

__all__ = ["Ledger", "Limits"]
