"""How a sequence is cut."""

from __future__ import annotations

import pytest

from compresskit.nn.attention_mask import Seen
from compresskit.nn.window_blocks import ALIGNED, BLOCK, Blocks, Window, cut
from tests.nn.attention_cases import qkv


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 128, 1000])
def test_blocks_cover_the_length_and_no_more_than_needed(length: int) -> None:
    block, count = cut(length, 64)
    assert (count - 1) * block < length <= count * block
    assert block == min(64, length)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("window", "global_tokens"), [(1, 0), (5, 1), (128, 2), (5000, 0)])
def test_every_visible_key_lies_in_its_block(causal: bool, window: int, global_tokens: int) -> None:
    query, key, _ = qkv(1, 2, 2, 300, 300 if not causal else 340)
    blocks = Blocks(query, key, Seen(causal), Window(window, global_tokens))
    assert blocks.column.min() >= 0
    assert blocks.column.max() < key.shape[2]
    for number, columns in enumerate(blocks.column.tolist()):
        first, last = (int(blocks.position[number, at]) for at in (0, -1))
        needed = range(max(first - window + 1, 0), min(last + (0 if causal else window - 1), key.shape[2] - 1) + 1)
        assert columns[0] <= needed[0]
        assert columns[-1] >= needed[-1]
    aligned = (blocks.span + global_tokens) % ALIGNED == 0
    assert aligned or blocks.span == key.shape[2]
    assert blocks.span <= BLOCK + Window(window, global_tokens).reach(causal) + ALIGNED
