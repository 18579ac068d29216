"""Every DBC file of the corpus, every message, payloads of every length: as cantools has it."""

from pathlib import Path

import pytest

from agent.core.dbc import parse_dbc
from tests import dbc_oracle

FILES = 67


def corpus_files(captures: Path) -> list[Path]:
    return sorted((captures / "dbc_corpus").glob("*.dbc"))


@pytest.mark.captures
@pytest.mark.corpus
@pytest.mark.parametrize("index", range(FILES))
def test_every_signal_decodes_as_in_cantools(captures: Path, index: int) -> None:
    """Raw values, numbers and texts agree for random payloads of 0 to 64 bytes."""
    path = corpus_files(captures)[index]
    data = path.read_bytes()

    found = list(
        dbc_oracle.differences(parse_dbc(data, name=path.name), dbc_oracle.load(data), range(65))
    )

    assert found == []
