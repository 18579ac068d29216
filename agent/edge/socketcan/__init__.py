"""CAN buses of the Linux kernel (SocketCAN), read without an object per frame."""

from agent.edge.socketcan.rawsocket import open_raw
from agent.edge.socketcan.reader import SocketCanReader
from agent.edge.socketcan.receiver import Received, Receiver
from agent.edge.socketcan.ring import RING_FRAMES, FrameRing

__all__ = ["RING_FRAMES", "FrameRing", "Received", "Receiver", "SocketCanReader", "open_raw"]
