"""Key and certificate files: read here, modes checked.

Rules:
 * A private key's file is readable by its owner alone; anything else is refused with the command
   that mends it.
 * A name without a folder is looked for in systemd's credentials ($CREDENTIALS_DIRECTORY) first.
 * TLS 1.3, own CA, server name checked, client certificate. 1.2 only when it was asked for.
"""

import os
import ssl
import stat
from pathlib import Path

from agent.core import strictjson
from agent.core.cose import DeviceKey, device_key
from agent.errors import KeyFileError

_MAX_KEY_BYTES = 4096
_GROUP_AND_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def load_device_key(path: Path) -> DeviceKey:
    """Return the device's private key from a JWK file.

    Raises:
        KeyFileError: It is not there, others can read it, or it is no device key.
    """
    file = _private(path)
    try:
        value = strictjson.parse(file.read_bytes(), max_bytes=_MAX_KEY_BYTES)
    except strictjson.StrictJsonError as exc:
        raise KeyFileError(f"the device key {path} is not strict JSON: {exc}") from exc
    except OSError as exc:
        raise KeyFileError(f"the device key {path} cannot be read: {exc.strerror}") from exc
    if not isinstance(value, dict):
        raise KeyFileError(f"the device key {path} is no JWK")
    return device_key(value)


def client_tls(
    *, ca: Path, certificate: Path, private_key: Path, allow_tls_1_2: bool = False
) -> ssl.SSLContext:
    """Return the TLS settings of a client with a certificate.

    Args:
        ca: The only authority that is trusted, PEM.
        certificate: Ours and what leads to the CA, PEM.
        private_key: PEM, mode 0600.
        allow_tls_1_2: Also speak TLS 1.2.

    Raises:
        KeyFileError: A file is not there, cannot be used, or others can read the key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if allow_tls_1_2 else ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(_credential(ca))
    except (OSError, ssl.SSLError) as exc:
        raise KeyFileError(f"the CA {ca} cannot be used: {exc}") from exc
    key = _private(private_key)
    try:
        context.load_cert_chain(_credential(certificate), key)
    except (OSError, ssl.SSLError) as exc:
        raise KeyFileError(
            f"the certificate {certificate} and the key {private_key} cannot be used: {exc}",
            hint="both are PEM files and belong together",
        ) from exc
    return context


def _private(path: Path) -> Path:
    """Return where a private file lies, its mode checked."""
    file = _credential(path)
    try:
        mode = file.stat().st_mode
    except OSError as exc:
        raise KeyFileError(f"the key {path} cannot be read: {exc.strerror}") from exc
    # systemd's own credentials are 0400 or 0440 in a folder that only the service can enter.
    if mode & _GROUP_AND_OTHERS and not _is_credential(file):
        raise KeyFileError(
            f"the key {path} has mode {stat.S_IMODE(mode):04o}, expected 0600",
            hint=f"chmod 600 {path}",
        )
    return file


def _credential(path: Path) -> Path:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder:
        found = Path(folder) / path.name
        if found.is_file():
            return found
    return path


def _is_credential(file: Path) -> bool:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(folder) and file.parent == Path(folder or "")
