"""Recorded logs → frames, in file order, whatever wrote them.

`open_log` reads one log, `read_logs` several as one recording. The formats and what each gives
as channel name (the NAME of `--channel NAME=BUS`) stand in `agent.edge.logfile.log`.
"""

from agent.edge.logfile.log import Log, Recording, open_log, read_log, read_logs
from agent.edge.logfile.report import BrokenLine, LogReport

__all__ = [
    "BrokenLine",
    "Log",
    "LogReport",
    "Recording",
    "open_log",
    "read_log",
    "read_logs",
]
