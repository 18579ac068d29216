"""Key and certificate files: read here, owners and modes checked.

Rules:
 * A private key's file belongs to us or to root and is for its owner alone; anything else is
   refused with the command that mends it.
 * Whom we trust (a CA) must not be in a file that anybody can write.
 * A credential that systemd put into $CREDENTIALS_DIRECTORY wins over a file of the same name
   elsewhere. Its mode is systemd's affair: it may show group bits that are only a mask (0440).
 * TLS 1.3, own CA, server name checked, client certificate. 1.2 only when it was asked for.
 * Nobody is asked for a passphrase: a daemon has no terminal.
"""

import os
import ssl
import stat
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509

from agent.core import strictjson
from agent.core.cose import DeviceKey, device_key
from agent.errors import KeyFileError

_MAX_KEY_BYTES = 4096
_GROUP_AND_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_ROOT = 0


def load_device_key(path: Path) -> DeviceKey:
    """Return the device's private key from a JWK file.

    Raises:
        KeyFileError: It is not there, others can read it, or it is no device key.
    """
    try:
        value = strictjson.parse(_read_private(path), max_bytes=_MAX_KEY_BYTES)
    except strictjson.StrictJsonError as exc:
        raise KeyFileError(f"the device key {path} is not strict JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise KeyFileError(f"the device key {path} is no JWK, expected a JSON object")
    try:
        return device_key(value)
    except KeyFileError as exc:
        raise KeyFileError(f"the device key {path}: {exc.message}", hint=exc.hint) from exc


def client_tls(
    *,
    ca: Path,
    certificate: Path,
    private_key: Path,
    allow_tls_1_2: bool = False,
    alpn: Sequence[str] = (),
) -> ssl.SSLContext:
    """Return the TLS settings of a client with a certificate.

    Args:
        ca: The only authority that is trusted, PEM.
        certificate: Ours and what leads to the CA, PEM.
        private_key: PEM without a passphrase, mode 0600.
        allow_tls_1_2: Also speak TLS 1.2.
        alpn: Protocols to ask for (RFC 7301), such as `x-amzn-mqtt-ca` at port 443 of AWS.

    Raises:
        KeyFileError: A file is not there, cannot be used, or is open to others.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if allow_tls_1_2 else ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=_read_trusted(ca).decode("ascii"))
    except (UnicodeDecodeError, ssl.SSLError) as exc:
        raise KeyFileError(
            f"the CA {ca} cannot be used: it holds no PEM certificate",
            hint="name the PEM file of the CA that issued the broker's certificate",
        ) from exc
    if alpn:
        context.set_alpn_protocols(list(alpn))
    _read_private(private_key)
    try:
        # The empty passphrase keeps OpenSSL from asking for one at the terminal.
        context.load_cert_chain(_found(certificate), _found(private_key), password="")
    except FileNotFoundError as exc:
        raise KeyFileError(f"the certificate {certificate} is not there") from exc
    except OSError as exc:  # ssl.SSLError among them
        raise KeyFileError(
            f"the certificate {certificate} and the key {private_key} cannot be used together",
            hint="both are PEM files, the key is the certificate's own and has no passphrase",
        ) from exc
    return context


def certificate_end_s(certificate: Path) -> int:
    """Return when a certificate ends, s since the epoch.

    Raises:
        KeyFileError: It is not there, or no PEM certificate.
    """
    data, _ = _read(certificate)
    try:
        return int(x509.load_pem_x509_certificate(data).not_valid_after_utc.timestamp())
    except ValueError as exc:
        raise KeyFileError(f"{certificate} holds no PEM certificate") from exc


def load_secret(path: Path) -> str:
    """Return the one line of a private file, such as a password.

    Raises:
        KeyFileError: It is not there, others can read it, or it is not one line of text.
    """
    try:
        secret = _read_private(path).decode("utf-8").strip()
    except UnicodeDecodeError as exc:
        raise KeyFileError(f"the secret {path} is no text") from exc
    if not secret or not secret.isprintable():
        raise KeyFileError(f"the secret {path} is not one line of text")
    return secret


def _read_private(path: Path) -> bytes:
    """Return a private file's bytes; the file that was checked is the one that is read."""
    data, found = _read(path)
    if _is_credential(path):
        return data
    if found.st_uid not in (_ROOT, os.geteuid()):
        raise KeyFileError(
            f"the key {path} belongs to uid {found.st_uid}, expected {os.geteuid()}",
            hint=f"chown {os.geteuid()} {path}",
        )
    if found.st_mode & _GROUP_AND_OTHERS:
        raise KeyFileError(
            f"the key {path} has mode {stat.S_IMODE(found.st_mode):04o}, expected 0600",
            hint=f"chmod 600 {path}",
        )
    return data


def _read_trusted(path: Path) -> bytes:
    data, found = _read(path)
    if found.st_mode & stat.S_IWOTH and not _is_credential(path):
        raise KeyFileError(
            f"{path} has mode {stat.S_IMODE(found.st_mode):04o}, so anybody could replace it",
            hint=f"chmod o-w {path}",
        )
    return data


def _read(path: Path) -> tuple[bytes, os.stat_result]:
    try:
        with _found(path).open("rb") as file:
            return file.read(), os.fstat(file.fileno())
    except OSError as exc:
        raise KeyFileError(
            f"{path} cannot be read: {exc.strerror}", hint="check the path, and who may read it"
        ) from exc


def _found(path: Path) -> Path:
    """Return where the file lies: among systemd's credentials, or where the path says."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder and (credential := Path(folder) / path.name).is_file():
        return credential
    return path


def _is_credential(path: Path) -> bool:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(folder) and _found(path).parent == Path(folder or "")
