"""Whether a bus is one that no vehicle hangs on, so that a test may send on it.

Rules:
 * Deny by default: a bus is real unless it is known to be virtual.
 * Virtual are python-can's own `virtual` (inside this process), `udp_multicast` whose packets end
   on this machine (hop limit 0), and a SocketCAN interface that the kernel itself calls vcan or
   vxcan and that hangs on no device.
 * What forwards from a virtual bus to a real one (`cangw`, another program) cannot be seen here.
"""

import socket
import struct
from collections.abc import Mapping
from pathlib import Path

_VIRTUAL_KINDS = {"vcan", "vxcan"}
_NETWORK_DEVICES = Path("/sys/class/net")
_NLMSG_HEADER = struct.Struct("=IHHII")  # linux/netlink.h: length, type, flags, sequence, port
_IFINFOMSG_BYTES = 16  # linux/rtnetlink.h: struct ifinfomsg
_ATTRIBUTE = struct.Struct("=HH")  # linux/rtnetlink.h: struct rtattr, aligned to 4 bytes
_RTM_GETLINK = 18
_RTM_NEWLINK = 16
_NLM_F_REQUEST = 1
_IFLA_IFNAME = 3
_IFLA_LINKINFO = 18
_IFLA_INFO_KIND = 1


def why_real(
    interface: str, channel: str, options: Mapping[str, str | int | float | bool]
) -> str | None:
    """Return why a bus must be taken for a real one, or None where it is surely virtual.

    Args:
        interface: python-can's name of the adapter kind.
        channel: The adapter's channel; for SocketCAN the network interface.
        options: As they will be handed to python-can.
    """
    if interface == "virtual":
        return None
    if interface == "udp_multicast":
        if options.get("hop_limit") == 0:
            return None
        return "its packets leave this machine (hop_limit is not 0)"
    if interface != "socketcan":
        return f"{interface} is an adapter"
    return _why_real_device(channel)


def _why_real_device(name: str) -> str | None:
    if not name or "/" in name or name in {".", ".."}:
        return "it names no single network interface"
    link = _NETWORK_DEVICES / name
    if not link.exists():
        return "there is no such network interface"
    if link.resolve().parent != Path("/sys/devices/virtual/net"):
        return "the kernel has a device for it"
    kind = link_kind(name)
    # slcan lies among the virtual devices too, with a serial adapter behind it.
    if kind not in _VIRTUAL_KINDS:
        return f"its kind is {kind or 'not told'}, not vcan or vxcan"
    return None


def link_kind(name: str) -> str | None:
    """Return what the kernel calls the kind of a network interface, such as "vcan", or None.

    Asked over rtnetlink (rtnetlink(7), IFLA_INFO_KIND): sysfs does not tell it.
    """
    asked = name.encode() + b"\0"
    attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(asked), _IFLA_IFNAME) + asked
    attribute += b"\0" * (-len(attribute) % 4)
    length = _NLMSG_HEADER.size + _IFINFOMSG_BYTES + len(attribute)
    request = _NLMSG_HEADER.pack(length, _RTM_GETLINK, _NLM_F_REQUEST, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
            netlink.settimeout(2)
            netlink.send(request + bytes(_IFINFOMSG_BYTES) + attribute)
            answer = netlink.recv(65_536)
    except OSError:
        return None
    size, kind, *_ = _NLMSG_HEADER.unpack_from(answer)
    if kind != _RTM_NEWLINK:
        return None
    info = _attributes(answer[_NLMSG_HEADER.size + _IFINFOMSG_BYTES : size]).get(_IFLA_LINKINFO)
    told = _attributes(info or b"").get(_IFLA_INFO_KIND)
    return told.rstrip(b"\0").decode("ascii", "replace") if told else None


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found
