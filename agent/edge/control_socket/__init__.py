"""A Unix socket over which who stands at the vehicle asks and stops the running agent."""

from agent.edge.control_socket.lane import Ask, ControlSocket

__all__ = ["Ask", "ControlSocket"]
