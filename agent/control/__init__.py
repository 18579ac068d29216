"""The agent lane: owns everything durable; one thread, one queue of events."""

from agent.control.agent import Agent, Batches
from agent.control.consent import Change, Consent

__all__ = ["Agent", "Batches", "Change", "Consent"]
