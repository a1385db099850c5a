from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compresskit.calibrate.batches import random_batches
from compresskit.calibrate.outputs import forward, pool, result_mask
from compresskit.calibrate.saliency import saliency
from compresskit.core import anatomy
from compresskit.errors import DataError
from compresskit.numerics.moments import saliency_of_rows
from tests import models


def linear_scalar(model: nn.Module, batch: dict[str, Tensor], _generator: torch.Generator) -> Tensor:
    """A fixed scalar of the output, so that gradients can be taken by hand."""
    return forward(model, batch).float().pow(2).sum()


def test_it_equals_the_plain_loop() -> None:
    model = models.tiny("bert")
    path = "encoder.layer.1.output.dense"
    batch = random_batches(model, samples=3, max_length=6)[0]
    seen: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    value = linear_scalar(model, batch, torch.Generator())
    handle.remove()
    (gradient,) = torch.autograd.grad(value, seen)
    for groups in (128, 4):
        expected = sum(saliency_of_rows(a, g, groups) for a, g in zip(seen[0], gradient, strict=True)) / 3
        found = saliency(model, [path], [batch], groups={path: groups}, scalar=linear_scalar)[path]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)


def test_texts_count_one_by_one_in_a_model_whose_tokens_come_first() -> None:
    model = models.tiny("xlnet")
    path = anatomy.of(model).ffns[0].output
    batch = random_batches(model, samples=3, max_length=6)[0]
    rows = [{name: tensor[row : row + 1] for name, tensor in batch.items()} for row in range(3)]
    together, alone = (saliency(model, [path], each, scalar=linear_scalar)[path] for each in ([batch], rows))
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-8)


def test_every_architecture_and_head_gives_one_value_a_neuron_and_a_head(family: str) -> None:
    for task in models.tasks(family):
        model = models.tiny(family, task=task)
        if family == "t5" and task == "classifier":
            continue
        body = anatomy.of(model)
        ffn, attention = body.ffns[0], body.attentions[0]
        found = saliency(
            model, [ffn.output, attention.output], random_batches(model), groups={attention.output: attention.heads}
        )
        assert found[ffn.output].shape == (ffn.width,)
        assert found[attention.output].shape == (attention.heads,)
        assert all(bool((values >= 0).all()) and float(values.sum()) > 0 for values in found.values())


def test_a_neuron_without_effect_has_none() -> None:
    model = models.tiny("gpt2", task="lm")
    path = "transformer.h.1.mlp.c_proj"
    with torch.no_grad():
        model.get_submodule(path).weight[5] = 0
    values = saliency(model, [path], random_batches(model))[path]
    assert float(values[5]) == 0
    assert int((values == 0).sum()) == 1


def test_it_ranks_neurons_by_the_change_of_the_embedding() -> None:
    model = models.tiny("bert")
    path = "encoder.layer.2.output.dense"
    batches = random_batches(model, samples=8, max_length=8, batch_size=8)
    estimate = saliency(model, [path], batches, probes=8)[path]
    weight = model.get_submodule(path).weight

    def embeddings() -> Tensor:
        with torch.no_grad():
            hidden = forward(model, batches[0])
            return nn.functional.normalize(pool(hidden, result_mask(model, batches[0])), dim=-1)

    before, changes = embeddings(), []
    for neuron in range(24):
        kept = weight.data[:, neuron].clone()
        weight.data[:, neuron] = 0
        changes.append(float((embeddings() - before).pow(2).sum()))
        weight.data[:, neuron] = kept
    correlation = torch.corrcoef(torch.stack([torch.tensor(changes).double().sqrt(), estimate[:24].sqrt()]))[0, 1]
    assert float(correlation) > 0.8


def test_it_works_with_frozen_weights_and_leaves_no_gradient_or_hook() -> None:
    model = models.tiny("llama", task="lm").requires_grad_(False)
    path = "model.layers.0.self_attn.q_proj"
    assert float(saliency(model, [path], random_batches(model))[path].sum()) > 0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_equal_seeds_give_equal_values() -> None:
    model = models.tiny("distilbert")
    path = "transformer.layer.0.ffn.lin2"
    batches = random_batches(model)
    first, again, other = (saliency(model, [path], batches, seed=seed)[path] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_scalar_that_ignores_the_module_is_refused() -> None:
    model = models.tiny("bert")
    with pytest.raises(DataError) as caught:
        saliency(model, ["pooler.dense"], random_batches(model))
    assert caught.value.code == "CK-D016"
