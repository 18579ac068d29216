"""Captured drives on two buses, the installed unit, a broker: what the recipients open is right.

The judge is `consentry replay` on what candump wrote in the guest at the same time, with the same
kernel's time stamps; and, for what is taken of every frame, the original recording.
"""

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.edge.logfile import read_logs
from tests.cloud import VEHICLE
from tests.vm.guest.bus import Sender, candump, listened
from tests.vm.guest.vehicle import SETTINGS, Vehicle, push, sh, wait_for

pytestmark = [pytest.mark.qemu, pytest.mark.captures]

SECONDS = 20  # Of each recording.
FOREIGN = 0x7FF  # In no DBC of ours; its time tells `replay` when the recording ends.
EVERY_FRAME = {"read_odometer", "read_engine_speed"}

TOML = """
[vehicle]
id = "{vehicle}"
trust = "trust.json"
[keys]
device = "/etc/consentry/device.jwk"
[[bus]]
name = "car"
interface = "socketcan"
channel = "vcan0"
dbc = ["car.dbc"]
mapping = "car.vspec"
[[bus]]
name = "truck"
interface = "socketcan"
channel = "vcan1"
dbc = ["truck.dbc"]
mapping = "truck.vspec"
[batch]
max_age_s = 5.0
[uplink]
host = "localhost"
port = {port}
ca = "broker-ca.pem"
certificate = "vehicle.pem"
private_key = "vehicle.key"
max_backoff_s = 2.0
[time]
synchronised = "always"
"""
