"""The byte tokenizer of the evaluation tests."""

import pytest

from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer


@pytest.fixture(scope="session")
def byte_tokenizer():
    """Ids 0-255 are bytes, then the nine special tokens: 265 entries."""
    return Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN)
