from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from compresskit.core.weights import matrices, view, view_of
from compresskit.errors import ModelError
from tests import models

MATRIX = {
    "bert": "encoder.layer.1.intermediate.dense",
    "distilbert": "transformer.layer.1.ffn.lin1",
    "gpt2": "h.1.mlp.c_fc",
    "llama": "layers.1.mlp.up_proj",
    "t5": "encoder.block.1.layer.1.DenseReluDense.wi",
}


@pytest.mark.parametrize("name", MATRIX)
def test_a_matrix_is_seen_as_outputs_by_inputs(name: str) -> None:
    model = models.tiny(name)
    item = view(model, MATRIX[name])
    assert (item.out_features, item.in_features) == (models.WIDTH, models.HIDDEN)
    x = torch.randn(5, models.HIDDEN)
    expected = item.module(x)
    assert torch.allclose(nn.functional.linear(x, item.weight, item.bias), expected, atol=1e-6)


@pytest.mark.parametrize("name", MATRIX)
def test_assign_changes_what_the_module_computes(name: str) -> None:
    model = models.tiny(name)
    item = view(model, MATRIX[name])
    pointer = item.parameter.data_ptr()
    weight = torch.randn(models.WIDTH, models.HIDDEN)
    bias = None if item.bias is None else torch.randn(models.WIDTH)
    item.assign(weight, bias)
    x = torch.randn(5, models.HIDDEN)
    assert torch.allclose(item.module(x), nn.functional.linear(x, weight, bias), atol=1e-5)
    assert item.parameter.data_ptr() == pointer, "values are written in place"


def test_a_table_is_tokens_by_features() -> None:
    model = models.tiny("bert")
    item = view(model, "embeddings.word_embeddings")
    assert item.table
    assert tuple(item.weight.shape) == (models.VOCABULARY, models.HIDDEN)
    item.assign(torch.ones_like(item.weight))
    assert bool((item.module(torch.tensor([7])) == 1).all())


def test_assign_keeps_a_tied_head_tied() -> None:
    model = models.tiny("gpt2", task="lm")
    table = view(model, "transformer.wte")
    table.assign(torch.randn_like(table.weight))
    assert torch.equal(model.lm_head.weight, table.weight)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_assign_refuses_another_shape_and_a_bias_that_is_not_there() -> None:
    model = models.tiny("llama")
    item = view(model, MATRIX["llama"])
    with pytest.raises(ModelError) as wrong:
        item.assign(item.weight.T.contiguous())
    assert wrong.value.code == "CK-M030"
    before = item.weight.clone()
    with pytest.raises(ModelError) as missing:
        item.assign(item.weight.clone(), torch.zeros(models.WIDTH))
    assert missing.value.code == "CK-M030"
    assert torch.equal(item.weight, before)


@pytest.mark.parametrize("path", ["encoder.layer.9", "encoder.layer.0", "embeddings.LayerNorm"])
def test_a_path_without_a_plain_matrix_is_an_error(path: str) -> None:
    with pytest.raises(ModelError) as error:
        view(models.tiny("bert"), path)
    assert (error.value.code, error.value.where) == ("CK-M030", path)


def test_a_subclass_of_another_library_is_no_plain_matrix() -> None:
    class Quantized(nn.Linear):
        pass

    assert view_of("x", Quantized(4, 4)) is None
    assert view_of("x", nn.LayerNorm(4)) is None
    assert view_of("x", nn.Linear(4, 4)) is not None


def test_views_of_conv1d_share_storage() -> None:
    module = Conv1D(3, 2)
    item = view_of("x", module)
    assert item is not None
    item.weight[2, 1] = 5.0
    assert float(module.weight.detach()[1, 2]) == 5.0


def test_matrices_lists_all_of_one_kind_in_order(family: str) -> None:
    model = models.tiny(family)
    linear = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    assert [item.path for item in matrices(model)] == linear
    tables = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    assert [item.path for item in matrices(model, tables=True)] == tables


def test_matrices_below_a_module() -> None:
    found = [item.path for item in matrices(models.tiny("llama"), "layers.1.mlp")]
    assert found == ["layers.1.mlp.gate_proj", "layers.1.mlp.up_proj", "layers.1.mlp.down_proj"]
