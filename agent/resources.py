"""Finds the files that we ship: `config/`, `dbc/` and `demo/`, in a wheel or in a checkout."""

from pathlib import Path

_PACKAGED = Path(__file__).resolve().parent / "data"
_CHECKOUT = Path(__file__).resolve().parent.parent


def shipped(name: str) -> Path:
    """Return the path of a shipped file or folder.

    Args:
        name: Relative, such as "config/catalogue.json".
    """
    packaged = _PACKAGED / name
    return packaged if packaged.exists() else _CHECKOUT / name
