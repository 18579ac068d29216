"""Certificates for the tests: a CA per door of the broker, made on the spot with trustme."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Files:
    """Paths of one identity, as a configuration names them."""

    ca: Path
    certificate: Path
    private_key: Path


class Pki:
    """Issues certificates into a folder; each call makes a new one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.server = trustme.CA(organization_name="broker")
        self.vehicles = trustme.CA(organization_name="vehicles")
        self.backend = trustme.CA(organization_name="backend")
        self.recipients = trustme.CA(organization_name="recipients")
        self.stranger = trustme.CA(organization_name="stranger")

    def ca_file(self, ca: trustme.CA) -> Path:
        path = self.folder / f"ca-{id(ca)}.pem"
        ca.cert_pem.write_to_path(path)
        path.chmod(0o644)
        return path

    def broker(self, *names: str, ca: trustme.CA | None = None) -> Files:
        issuer = ca or self.server
        return self._write(issuer.issue_cert(*(names or ("127.0.0.1", "localhost"))), issuer)

    def client(
        self, common_name: str, ca: trustme.CA, *, trusts: trustme.CA | None = None
    ) -> Files:
        leaf = ca.issue_cert("client.invalid", common_name=common_name)
        return self._write(leaf, trusts or self.server)

    def vehicle(self, name: str) -> Files:
        return self.client(name, self.vehicles)

    def _write(self, leaf: trustme.LeafCert, trusted: trustme.CA) -> Files:
        stem = self.folder / f"leaf-{len(list(self.folder.iterdir()))}"
        files = Files(self.ca_file(trusted), stem.with_suffix(".pem"), stem.with_suffix(".key"))
        files.certificate.write_bytes(b"".join(b.bytes() for b in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(files.private_key)
        files.private_key.chmod(0o600)
        return files


def context(files: Files) -> ssl.SSLContext:
    """Return a client context made without our own code, for independent clients."""
    made = ssl.create_default_context(cafile=files.ca)
    made.load_cert_chain(files.certificate, files.private_key)
    return made
