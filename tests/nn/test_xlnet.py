"""XLNet's attention with layers for its projections: equal to the stock module in all its ways of being called."""

from __future__ import annotations

import json

import pytest
import torch

from compresskit.calibrate.batches import longest_input
from compresskit.calibrate.moments import input_moments
from compresskit.core import surgery
from compresskit.core.weights import matrices, view
from compresskit.nn.xlnet import PROJECTIONS, XLNetAttention
from tests import models

TOKENS, ROWS = 7, 2


def arguments(two_streams: bool, memory: bool) -> dict[str, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    keys = TOKENS + (3 if memory else 0)
    mask = (random(TOKENS, keys, ROWS, 1) > 1).float()
    return {
        "h": random(TOKENS, ROWS, models.HIDDEN),
        "g": random(2, ROWS, models.HIDDEN) if two_streams else None,
        "attn_mask_h": mask,
        "attn_mask_g": mask,
        "r": random(TOKENS + keys, ROWS, models.HIDDEN),
        "seg_mat": torch.nn.functional.one_hot(torch.randint(0, 2, (TOKENS, keys, ROWS), generator=generator)).float(),
        "mems": random(3, ROWS, models.HIDDEN) if memory else None,
        "target_mapping": random(2, TOKENS, ROWS) if two_streams else None,
    }


@pytest.mark.parametrize("two_streams", [False, True])
@pytest.mark.parametrize("memory", [False, True])
def test_equal_to_the_stock_module(two_streams: bool, memory: bool) -> None:
    stock = models.tiny("xlnet").layer[1].rel_attn
    layer = XLNetAttention.from_module(stock)
    given = arguments(two_streams, memory)
    with torch.no_grad():
        expected, found = stock(**given, output_attentions=True), layer(**given, output_attentions=True)
        assert len(layer(**given)) == len(stock(**given)) == 2
    assert torch.allclose(found[0], expected[0], atol=1e-5)
    for mine, theirs in zip((found[1], found[2]), (expected[1], expected[2]), strict=True):
        assert (mine is None) == (theirs is None)
        pairs = zip(mine, theirs, strict=True) if isinstance(mine, tuple) else [(mine, theirs)]
        assert all(one is None or torch.allclose(one, other, atol=1e-5) for one, other in pairs)


def test_rebuilt_from_its_arguments() -> None:
    layer = XLNetAttention.from_module(models.tiny("xlnet").layer[0].rel_attn)
    with torch.device("meta"):
        again = XLNetAttention(**json.loads(json.dumps(layer.arguments())))
    shapes = {name: value.shape for name, value in layer.state_dict().items()}
    assert {name: value.shape for name, value in again.state_dict().items()} == shapes
    assert layer.layer_norm.eps == again.layer_norm.eps


def test_projections_are_matrices_before_and_after_opening() -> None:
    model = models.tiny("xlnet")
    paths = [f"layer.0.rel_attn.{name}" for name in PROJECTIONS]
    assert [item.path for item in matrices(model, "layer.0")][: len(paths)] == paths
    before = {path: view(model, path).weight.clone() for path in paths}
    view(model, paths[4]).assign(before[paths[4]] * 2)
    assert torch.equal(model.layer[0].rel_attn.o[:, 1, 3], 2 * before[paths[4]][:, 16 + 3])
    view(model, paths[4]).assign(before[paths[4]])
    surgery.open_parts(model, paths[:1])
    assert isinstance(model.layer[0].rel_attn, XLNetAttention)
    assert all(torch.equal(view(model, path).weight, before[path]) for path in paths)
    assert models.max_difference(model, models.tiny("xlnet"), models.inputs("xlnet", padded=True)) <= 1e-5


def test_statistics_leave_padding_out_though_tokens_come_first() -> None:
    """Also where batch and length are equal, so that the shape alone doesn't tell which is which."""
    model = models.tiny("xlnet")
    batch = models.inputs("xlnet", batch=6, length=6, padded=True)
    kept = batch["attention_mask"].bool()
    surgery.open_parts(model, ["layer.0.rel_attn.q"])
    found = input_moments(model, ["layer.0.rel_attn.q"], [batch])["layer.0.rel_attn.q"]
    rows = model.word_embedding(batch["input_ids"])[kept].double()
    assert found.count == int(kept.sum()) < kept.numel()
    assert torch.allclose(found.total, rows.sum(0), atol=1e-4)


def test_no_length_is_too_long() -> None:
    """Positions are relative; XLNet's config says -1."""
    assert longest_input(models.tiny("xlnet")) == longest_input(models.tiny("switch")) == 10**6
