"""Write forged documents beside this script: `python -m tests.vectors.document.write_vectors`.

What `tests/vectors/policy` does for policies with one signature, for everything else that a vehicle
may be given. Uses `cryptography` alone, neither the agent nor a JOSE library. The keys are public;
nothing may ever trust them but a test. Signatures are deterministic.

    trust.json            the trust file: two policy keys, two owners' keys, a root key
    two_signatures.json   {before, accepted: [{name, token, roles}], forged: [...]}: policies
    restrict.json         {known, taken_over, accepted: [{name, token, outcome}], forged: [...]}
    trust_document.json   {accepted: [{name, token, kids}], forged: [...]}
    trust_file.json       {accepted: [{name, data}], forged: [{name, says, data}]}

Each of `forged` but the last is {name, error, reason, token}; data is text in Latin-1.
"""

import json
import sys
from pathlib import Path
from typing import Any

from tests.vectors.document import restrict, trust, two_signatures
from tests.vectors.document.signing import TRUST_FILE

HERE = Path(__file__).resolve().parent


def cases() -> dict[str, Any]:
    """Name of the file → what it holds."""
    return {
        "two_signatures": two_signatures.cases(),
        "restrict": restrict.cases(),
        "trust_document": trust.document_cases(),
        "trust_file": trust.file_cases(),
    }


def files() -> dict[str, bytes]:
    """File name → content, all that this script writes."""
    written = {
        f"{name}.json": (json.dumps(content, indent=1) + "\n").encode()
        for name, content in cases().items()
    }
    return written | {
        "trust.json": (json.dumps(TRUST_FILE, indent=1) + "\n").encode(),
    }


def main() -> None:
    """Write the files; the number of cases goes to stderr."""
    written = files()
    for name, data in written.items():
        (HERE / name).write_bytes(data)
    for name, content in cases().items():
        sys.stderr.write(f"{name}: {len(content['forged'])} forged\n")


if __name__ == "__main__":
    main()
