from __future__ import annotations

import pytest
import torch

from compresskit.numerics import key_values


def oracle(group: list[float], bits: int) -> float:
    """The largest error that a step of the group's range allows, with room for float16 of both numbers."""
    spread, largest = max(group) - min(group), max(abs(number) for number in group)
    return (spread + 2**-9 * largest + 1e-6) / (2**bits - 1) * 0.501 + 1e-6


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shift", [0.0, 40.0])
def test_errors_are_half_a_step_of_the_own_group(bits: int, shift: float) -> None:
    """Keys by channel over tokens, values by token over channels; an outlier elsewhere changes nothing."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 3, 8, 16, generator=generator) + shift
    states[:, :, :, 5] *= 30  # an outlier channel
    keys = key_values.load_keys(key_values.store_keys(states, bits, 4), bits, torch.float32)
    values = key_values.load_values(key_values.store_values(states, bits, 8), bits, torch.float32)
    assert keys.shape == values.shape == states.shape
    for head in range(3):
        for channel in (0, 5, 15):
            group = states[1, head, 4:8, channel]
            assert float((keys[1, head, 4:8, channel] - group).abs().max()) <= oracle(group.tolist(), bits)
        for token in (0, 7):
            group = states[0, head, token, 8:]
            assert float((values[0, head, token, 8:] - group).abs().max()) <= oracle(group.tolist(), bits)


def test_ranges_hold_and_few_levels_are_exact() -> None:
    """Four levels that float16 holds survive 2 bits; constants and zeros survive everything."""
    levels = torch.tensor([-1.5, 0.5, 2.5, 4.5])
    states = levels[torch.randint(0, 4, (1, 2, 8, 8), generator=torch.Generator().manual_seed(1))]
    states[:, :, 0], states[:, :, 1] = -1.5, 4.5
    states[..., 7] = 0
    found = key_values.load_keys(key_values.store_keys(states, 2, 8), 2, torch.float32)
    assert torch.equal(found, states)
    constant = torch.full((1, 1, 4, 8), 3.1415926)
    for bits in (2, 8):
        assert (
            key_values.load_values(key_values.store_values(constant, bits, 8), bits, torch.float32) - constant
        ).abs().max() < 1e-5


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_bytes_are_those_of_the_tensors(bits: int) -> None:
    states = torch.randn(2, 3, 64, 16)
    stored = key_values.store_keys(states, bits, 32).bytes + key_values.store_values(states, bits, 16).bytes
    assert stored == 2 * 64 * key_values.bytes_per_token(3, 16, bits, 32, 16)


def test_tokens_follow_and_rows_move() -> None:
    states = torch.randn(2, 2, 8, 8)
    whole = key_values.store_keys(states, 4, 4)
    parts = [key_values.store_keys(states[:, :, part], 4, 4) for part in (slice(0, 4), slice(4, 8))]
    assert all(map(torch.equal, whole.tensors(), parts[0].followed_by(parts[1]).tensors()))
    turned = whole.rows(torch.tensor([1, 0]))
    assert torch.equal(
        key_values.load_keys(turned, 4, torch.float32), key_values.load_keys(whole, 4, torch.float32).flip(0)
    )
