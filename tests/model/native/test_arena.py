"""Room for weights: each part its own, lines kept, and there as long as a part of it is"""

import gc

import pytest
import torch

from intone.model.native.arena import LARGE_PAGE, LINE, Arena


@pytest.mark.parametrize("num_bytes", [3 * LINE, LARGE_PAGE + 3 * LINE])
def test_parts_begin_lines_do_not_meet_and_outlive_the_arena(num_bytes):
    arena = Arena(num_bytes)
    first = arena.give(5, torch.float32)
    second = arena.give(LINE, torch.int8)
    rest = arena.give((num_bytes - 2 * LINE) // 2, torch.bfloat16)
    parts = (first, second, rest)
    assert all(part.data_ptr() % LINE == 0 for part in parts)
    if num_bytes > LARGE_PAGE:
        assert first.data_ptr() % LARGE_PAGE == 0
    for value, part in enumerate(parts, 1):
        part.fill_(value)
    with pytest.raises(AssertionError, match="more was taken"):
        arena.give(2 * LARGE_PAGE, torch.int8)
    del arena
    gc.collect()
    assert [part.float().sum().item() / len(part) for part in parts] == [1.0, 2.0, 3.0]
