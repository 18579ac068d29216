"""What can be seen of the machine: real folders and sockets, and what the kernel's files hold."""

import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from agent.edge import machine
from agent.edge.keys import client_tls
from agent.errors import UplinkError
from tests.pki import Files, Pki


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


def test_a_folder_is_seen_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)

    found = machine.look_at_folder(tmp_path)

    assert found is not None
    assert (found.uid, found.mode) == (os.getuid(), 0o750)
    assert found.free_bytes > 0


def test_the_file_system_is_that_of_the_nearest_mount_point(tmp_path: Path) -> None:
    """The kernel's own word for it: the mount point of /proc is proc, of its folders too."""
    found = machine.look_at_folder(Path("/proc/self"))
    assert found is not None
    assert found.file_system == "proc"
    here = machine.look_at_folder(tmp_path)
    assert here is not None
    assert here.file_system not in {None, "proc"}


def test_what_is_no_folder_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert machine.look_at_folder(tmp_path / "file") is None
    assert machine.look_at_folder(tmp_path / "gone") is None


@pytest.mark.parametrize(
    ("kind", "flags", "is_up"),
    [
        ("280", "0x40080", False),
        ("280", "0x400c1", True),
        ("1", "0x1003", None),
        ("x", "0x1", None),
    ],
)
def test_only_a_can_interface_is_one_and_its_flags_say_whether_it_is_up(
    tmp_path: Path,
    kind: str,
    flags: str,
    is_up: bool | None,  # noqa: FBT001
) -> None:
    """The values of vcan0 down and up, and of eth0, as read in the guest."""
    folder = tmp_path / "sys/class/net/can0"
    folder.mkdir(parents=True)
    (folder / "type").write_text(f"{kind}\n")
    (folder / "flags").write_text(f"{flags}\n")

    assert machine.look_at_interface("can0", root=tmp_path) is is_up
    assert machine.look_at_interface("can1", root=tmp_path) is None


def test_the_loopback_of_this_machine_is_no_can_interface() -> None:
    assert machine.look_at_interface("lo") is None


def test_swap_is_a_second_line(tmp_path: Path) -> None:
    assert machine.has_swap(root=tmp_path) is None
    swaps = tmp_path / "proc/swaps"
    swaps.parent.mkdir()
    swaps.write_text("Filename Type Size Used Priority\n")
    assert machine.has_swap(root=tmp_path) is False
    swaps.write_text("Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n")
    assert machine.has_swap(root=tmp_path) is True


@contextmanager
def serving(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A peer on loopback for one connection; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def run() -> None:
            with suppress(OSError), listener.accept()[0] as link:
                serve(link)

        thread = threading.Thread(target=run)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


def broker(pki: Pki, files: Files | None = None) -> Callable[[socket.socket], None]:
    """Return one end that asks for a vehicle's certificate, and waits for the other to go."""
    made = files or pki.broker()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.private_key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(pki.ca_file(pki.vehicles))

    def serve(link: socket.socket) -> None:
        with context.wrap_socket(link, server_side=True) as tls:
            tls.recv(1)

    return serve


def vehicle(files: Files) -> ssl.SSLContext:
    return client_tls(ca=files.ca, certificate=files.certificate, private_key=files.private_key)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ALERT_S", 0.2)


def test_a_broker_that_takes_us_answers(pki: Pki) -> None:
    with serving(broker(pki)) as port:
        assert machine.shake_hands("127.0.0.1", port, vehicle(pki.vehicle("v"))) == "TLSv1.3"


def test_a_broker_without_tls_answers_without() -> None:
    with serving(lambda link: link.close()) as port:
        assert machine.shake_hands("127.0.0.1", port, None) == "no TLS"


@pytest.mark.parametrize(
    ("ours", "theirs", "fault"),
    [
        (lambda pki: pki.client("v", pki.stranger), lambda _: None, "no TLS with the broker"),
        (lambda pki: pki.vehicle("v"), lambda pki: pki.broker(ca=pki.stranger), "is not trusted"),
        (lambda pki: pki.vehicle("v"), lambda pki: pki.broker("other.example"), "is not trusted"),
    ],
    ids=["they do not trust us", "we do not trust them", "another name"],
)
def test_a_certificate_that_one_side_does_not_take_is_told(
    pki: Pki, ours: Callable[[Pki], Files], theirs: Callable[[Pki], Files | None], fault: str
) -> None:
    with serving(broker(pki, theirs(pki))) as port, pytest.raises(UplinkError, match=fault) as told:
        machine.shake_hands("127.0.0.1", port, vehicle(ours(pki)))

    assert told.value.hint


def test_nobody_there_and_who_speaks_no_tls_or_hangs_up_are_told(pki: Pki) -> None:
    tls = vehicle(pki.vehicle("v"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(UplinkError, match="cannot be reached"):
        machine.shake_hands("127.0.0.1", port, tls)
    with (
        serving(lambda link: link.sendall(b"HTTP/1.1 400\r\n\r\n")) as port,
        pytest.raises(UplinkError, match="no TLS"),
    ):
        machine.shake_hands("127.0.0.1", port, tls)
    with serving(lambda _: None) as port, pytest.raises(UplinkError):
        machine.shake_hands("127.0.0.1", port, tls)
