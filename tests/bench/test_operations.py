"""Operations by formula against torch's own counter, and what methods do to them."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from compresskit.bench.operations import attention_macs, operations
from compresskit.core import anatomy, surgery
from compresskit.core.weights import matrices, view
from compresskit.nn.low_rank import LowRankLinear
from compresskit.pipeline.checks import hooks
from tests import models
from tests.contract.conformance import ARCHITECTURES, model_of
from tests.test_recurrent_models import build


@pytest.mark.parametrize("name", [*ARCHITECTURES, *models.MORE])
def test_formulas_agree_with_the_counter_of_torch(name: str) -> None:
    model = model_of(name)
    # The counter knows matrix products, but not the fused attention of the CPU, nor its fused experts.
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    inputs = models.inputs(name, batch=2, length=16)
    before = hooks(model)
    found = 2 * sum(operations(model, inputs).values())
    assert hooks(model) == before
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs)
    # T5's and the rotary decoders' position products are outside the formulas.
    assert found == pytest.approx(counter.get_total_flops(), rel=2e-3)


def test_a_low_rank_matrix_counts_by_its_factors() -> None:
    model = models.tiny("bert")
    inputs = models.inputs("bert", batch=2, length=16)
    path = "encoder.layer.0.intermediate.dense"
    whole = operations(model, inputs)[path]
    matrix = view(model, path)
    out, into = matrix.weight.shape
    rank = 8
    layer = LowRankLinear(into, out, rank, bias=True)
    surgery.replace(model, path, layer)
    found = operations(model, inputs)
    assert path not in found
    assert found[f"{path}.down"] + found[f"{path}.up"] == 2 * 16 * rank * (out + into)
    assert whole == 2 * 16 * out * into


def test_replaced_attention_sees_fewer_pairs() -> None:
    part = anatomy.of(models.tiny("bert")).attentions[0]
    width = part.heads * part.head_dim
    assert attention_macs(part, {}, 64, 64) == 2 * 64 * 64 * width
    assert attention_macs(part, {"kind": "window", "window": 4, "global_tokens": 1}, 64, 64) == 2 * 64 * 10 * width
    assert attention_macs(part, {"kind": "window", "window": 400}, 64, 64) == 2 * 64 * 64 * width
    assert attention_macs(part, {"kind": "linear"}, 64, 64) == 2 * 64 * part.head_dim * width


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_recurrent_cell_counts_what_its_matrices_do_as_layers(cell: str) -> None:
    model = build(cell)
    ids = torch.randint(1, 20, (2, 9))
    found = sum(operations(model, {"input_ids": ids}).values())
    surgery.open_parts(model, [item.path for item in matrices(model)])
    assert found == sum(operations(model, {"input_ids": ids}).values()) > 0
