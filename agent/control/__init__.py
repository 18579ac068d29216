"""The agent lane: owns everything durable; one thread, one queue of events."""

from agent.control.agent import Agent, Batches, Switched
from agent.control.change import Change, Received
from agent.control.consent import Consent
from agent.control.journal import Journal
from agent.control.report import Surroundings

__all__ = [
    "Agent",
    "Batches",
    "Change",
    "Consent",
    "Journal",
    "Received",
    "Surroundings",
    "Switched",
]
