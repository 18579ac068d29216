import json
import os
import ssl
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from agent.cloud.keys import make_device_key, make_recipient_key, public_half, save_key
from agent.edge.keys import client_tls, load_device_key
from agent.errors import AgentError, KeyFileError
from tests.pki import Files, Pki


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def files(pki: Pki) -> Files:
    return pki.vehicle("veh-1")


def tls(files: Files, **other: bool) -> ssl.SSLContext:
    return client_tls(
        ca=files.ca, certificate=files.certificate, private_key=files.private_key, **other
    )


@pytest.mark.parametrize("alg", ["EdDSA", "ES256"])
def test_a_device_key_that_was_made_is_read_again(tmp_path: Path, alg: str) -> None:
    """The file that `save_key` writes has the mode that is demanded here."""
    save_key(tmp_path / "device.jwk", make_device_key("dev-1", alg))

    key = load_device_key(tmp_path / "device.jwk")

    assert (key.kid, key.alg) == ("dev-1", alg)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o601])
def test_a_key_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    """With the command that mends it."""
    path = tmp_path / "device.jwk"
    save_key(path, make_device_key("dev-1"))
    path.chmod(mode)

    with pytest.raises(KeyFileError, match=f"has mode {mode:04o}, expected 0600") as caught:
        load_device_key(path)

    assert caught.value.hint == f"chmod 600 {path}"


def test_a_key_of_another_user_is_refused(tmp_path: Path) -> None:
    """Whoever owns it can read it."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    path = tmp_path / "device.jwk"
    save_key(path, make_device_key("dev-1"))
    os.chown(path, 12345, 12345)

    with pytest.raises(KeyFileError, match="belongs to uid 12345, expected 0"):
        load_device_key(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "not json",
        '{"kid":"a","kid":"b"}',
        json.dumps(public_half(make_device_key("dev-1"))),
        json.dumps(make_recipient_key("r-1")),
        " " * 5000 + "{}",
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ],
    ids=["empty", "list", "text", "twice", "public", "recipient", "long", "bytes"],
)
def test_what_is_no_device_key_is_refused(tmp_path: Path, text: str) -> None:
    """And not a byte of it is repeated."""
    path = tmp_path / "device.jwk"
    path.write_text(text, encoding="latin-1")
    path.chmod(0o600)

    with pytest.raises(KeyFileError) as caught:
        load_device_key(path)

    shown = f"{caught.value.message} {caught.value.hint}"
    assert not any(value in shown for value in _secrets(text))


def _secrets(text: str) -> list[str]:
    try:
        value = json.loads(text)
    except ValueError:
        return []
    return [value[name] for name in ("x", "y", "d") if name in value] if value else []


def test_a_file_that_is_not_there_is_named(tmp_path: Path, files: Files) -> None:
    """One line, not a traceback."""
    missing = tmp_path / "none"

    with pytest.raises(KeyFileError, match="none cannot be read: No such file"):
        load_device_key(missing)
    with pytest.raises(KeyFileError, match="none cannot be read: No such file"):
        tls(Files(missing, files.certificate, files.private_key))
    with pytest.raises(KeyFileError, match=r"certificate .*none is not there"):
        tls(Files(files.ca, missing, files.private_key))
    with pytest.raises(KeyFileError, match="none cannot be read: No such file"):
        tls(Files(files.ca, files.certificate, missing))


def test_the_context_is_strict(files: Files) -> None:
    """TLS 1.3, certificate and name checked, no other CA than ours."""
    context = tls(files)

    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.cert_store_stats()["x509_ca"] == 1
    assert tls(files, allow_tls_1_2=True).minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_private_key_of_tls_that_others_may_read_is_refused(files: Files) -> None:
    """As the device key."""
    files.private_key.chmod(0o640)

    with pytest.raises(KeyFileError, match="has mode 0640, expected 0600"):
        tls(files)


def test_a_ca_that_anybody_may_write_is_refused(files: Files) -> None:
    """Or they choose whom we trust."""
    files.ca.chmod(0o666)

    with pytest.raises(KeyFileError, match="mode 0666, so anybody could replace it") as caught:
        tls(files)

    assert caught.value.hint == f"chmod o-w {files.ca}"


def test_files_that_do_not_belong_together_are_refused(pki: Pki, files: Files) -> None:
    """A key of another certificate, and PEM files that are none."""
    other = pki.vehicle("veh-2")
    nonsense = files.ca.with_name("nonsense.pem")
    nonsense.write_bytes(b"\xff\x00 no PEM")
    nonsense.chmod(0o600)

    with pytest.raises(KeyFileError, match="cannot be used together"):
        tls(Files(files.ca, files.certificate, other.private_key))
    with pytest.raises(KeyFileError, match="cannot be used together"):
        tls(Files(files.ca, nonsense, files.private_key))
    with pytest.raises(KeyFileError, match="holds no PEM certificate"):
        tls(Files(nonsense, files.certificate, files.private_key))


def test_a_key_with_a_passphrase_is_refused_without_a_question(tmp_path: Path) -> None:
    """A daemon that waits at a terminal for a passphrase never starts."""
    ca = trustme.CA()
    leaf = ca.issue_cert("client.invalid")
    key = load_pem_private_key(leaf.private_key_pem.bytes(), None)
    files = Files(tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem")
    ca.cert_pem.write_to_path(files.ca)
    leaf.cert_chain_pems[0].write_to_path(files.certificate)
    files.private_key.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    files.private_key.chmod(0o600)

    with pytest.raises(KeyFileError) as caught:
        tls(files)

    assert "no passphrase" in (caught.value.hint or "")


def test_a_credential_of_systemd_wins_and_its_mode_is_systemds_affair(
    tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LoadCredential= shows 0440 where an ACL gives the service's user its right."""
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    elsewhere = tmp_path / "device.jwk"
    save_key(elsewhere, make_device_key("elsewhere"))
    save_key(credentials / "device.jwk", make_device_key("credential"))
    (credentials / "device.jwk").chmod(0o440)
    (credentials / "key.pem").write_bytes(files.private_key.read_bytes())
    (credentials / "key.pem").chmod(0o440)
    assert load_device_key(elsewhere).kid == "elsewhere"

    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))

    assert load_device_key(elsewhere).kid == "credential"
    assert load_device_key(Path("device.jwk")).kid == "credential"
    assert tls(Files(files.ca, files.certificate, Path("key.pem")))
    with pytest.raises(AgentError):
        load_device_key(Path("other.jwk"))
