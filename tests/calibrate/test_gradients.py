from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.calibrate.gradients import gradient_sizes, output_gradients, weight_gradients
from compresskit.calibrate.outputs import forward
from compresskit.core import anatomy
from compresskit.core.context import Batch
from compresskit.errors import DataError
from compresskit.pipeline.checks import hooks
from tests import models


def total(model: PreTrainedModel, batch: Batch, generator: torch.Generator) -> Tensor:
    """A scalar without chance: the sum of squared outputs at attended positions."""
    output = forward(model, batch)
    return output[batch["attention_mask"].bool()].square().sum()


def by_nudging(model: PreTrainedModel, path: str, batch: Batch) -> Tensor:
    """E[g gᵀ] at a module's output by finite differences in float64, token by token."""
    generator = torch.Generator()
    module = model.get_submodule(path)
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        total(model, batch, generator)
        handle.remove()
        nudge = torch.zeros_like(seen[0])
        handle = module.register_forward_hook(lambda _m, _i, output: output + nudge)
        rows = []
        for row, column in batch["attention_mask"].nonzero().tolist():
            gradient = []
            for feature in range(nudge.shape[-1]):
                values = []
                for step in (1e-5, -1e-5):
                    nudge[row, column, feature] = step
                    values.append(float(total(model, batch, generator)))
                nudge[row, column, feature] = 0
                gradient.append((values[0] - values[1]) / 2e-5)
            rows.append(torch.tensor(gradient, dtype=torch.float64))
    handle.remove()
    stacked = torch.stack(rows)
    return stacked.T @ stacked / len(stacked)


def test_equals_finite_differences() -> None:
    model = models.tiny("bert", hidden_size=16, intermediate_size=24, num_hidden_layers=2).double()
    batch = models.inputs("bert", batch=2, length=4, padded=True)
    for path in ("encoder.layer.0.attention.self.key", "encoder.layer.1.output.dense"):
        found = output_gradients(model, [path], [batch], scalar=total)[path]
        wanted = by_nudging(model, path, batch)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max()))


def test_every_matrix_of_every_architecture_is_reached(family: str) -> None:
    model = models.tiny(family, task="lm" if family in models.DECODERS or family == "t5" else "base")
    body = anatomy.of(model)
    paths = list(dict.fromkeys(m for b in body.blocks for part in (*b.attentions, *b.ffns) for m in part.members))
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    before = hooks(model)
    found = output_gradients(model, paths, [models.inputs(family, padded=True)])
    assert list(found) == paths
    for path, moment in found.items():
        assert moment.dtype == torch.float64
        assert float(torch.linalg.eigvalsh(moment).min()) >= -1e-6 * float(moment.diagonal().max()), path
    assert hooks(model) == before
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert all(parameter.grad is None for parameter in model.parameters())


def test_padding_has_no_say() -> None:
    model = models.tiny("roberta")
    batch = models.inputs("roberta", batch=3, length=12, padded=True)
    path = "encoder.layer.1.attention.self.query"
    together = output_gradients(model, [path], [batch], scalar=total)[path]
    rows = [
        {name: value[row : row + 1, : int(batch["attention_mask"][row].sum())] for name, value in batch.items()}
        for row in range(3)
    ]
    alone = output_gradients(model, [path], rows, scalar=total)[path]
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max()))


def test_the_seed_decides() -> None:
    model, batches = models.tiny("bert"), [models.inputs("bert")]
    path = "encoder.layer.1.output.dense"
    first, second, third = (output_gradients(model, [path], batches, seed=seed)[path] for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_what_the_result_does_not_use_is_left_out() -> None:
    model, batches = models.tiny("bert"), [models.inputs("bert")]
    assert isinstance(model.get_submodule("pooler.dense"), nn.Linear)
    found = output_gradients(model, ["encoder.layer.2.output.dense", "pooler.dense"], batches)
    assert list(found) == ["encoder.layer.2.output.dense"]


def test_no_batches() -> None:
    with pytest.raises(DataError) as error:
        output_gradients(models.tiny("bert"), ["pooler.dense"], [])
    assert error.value.code == "CK-D003"


def test_sizes_are_traces_over_the_number_of_outputs() -> None:
    model, batches = models.tiny("bert"), [models.inputs("bert", padded=True, seed=seed) for seed in range(3)]
    paths = [f"encoder.layer.{block}.{name}" for block in (0, 2) for name in ("attention.self.query", "output.dense")]
    moments = output_gradients(model, paths, batches, scalar=total)
    sizes = gradient_sizes(model, [*paths, "pooler.dense"], batches, scalar=total)
    for path in paths:
        assert sizes[path] == pytest.approx(float(moments[path].diagonal().mean()), rel=1e-5)
    assert sizes["pooler.dense"] == 0


def test_gradients_of_weights_wherever_they_are_used() -> None:
    """A table that a head shares has those of both, by autograd; flags are afterwards as before."""
    model, batches = (
        models.tiny("gpt2", task="lm"),
        [models.inputs("gpt2", padded=True, seed=seed) for seed in range(2)],
    )
    model.transformer.wpe.weight.requires_grad_(False)
    before = {name: each.requires_grad for name, each in model.named_parameters()}
    found = weight_gradients(model, {"wte": model.transformer.wte.weight}, batches, scalar=total)["wte"]
    assert {name: each.requires_grad for name, each in model.named_parameters()} == before
    expected = 0.0
    for batch in batches:
        total(model, batch, torch.Generator()).backward()
        expected += float(model.lm_head.weight.grad.double().square().sum())
        model.zero_grad()
    assert found == pytest.approx(expected, rel=1e-5)
