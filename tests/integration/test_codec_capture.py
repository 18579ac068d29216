from pathlib import Path

import pytest

from agent.core.codec import decode, encode
from tests.bench.codec_bytes import decoded
from tests.columns import content
from tests.sealing import envelope

pytestmark = pytest.mark.captures


def test_a_dense_real_log_takes_at_most_a_fifth_of_a_byte_per_sample(captures: Path) -> None:
    """Every signal of every message, envelope included; the aim is half a byte."""
    folder = captures / "mustang"
    batches = decoded(folder / "mustang_s550.log.gz", folder / "ford_lincoln_base_pt.dbc")

    plain = [encode(made) for made in batches]

    samples = sum(made.count for made in batches)
    assert samples > 700_000
    wire = sum(len(envelope(made, plaintext=p)) for made, p in zip(batches, plain, strict=True))
    assert wire / samples < 0.2
    for made, plaintext in zip(batches, plain, strict=True):
        assert list(map(content, decode(plaintext))) == list(map(content, made.columns))
