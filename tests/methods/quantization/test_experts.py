"""Weights of experts: each method on their matrices, statistics of the tokens that are routed there."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from compresskit import registry
from compresskit.calibrate.gradients import output_gradients
from compresskit.calibrate.moments import input_moments
from compresskit.checkpoint.load import load_model
from compresskit.checkpoint.save import save_checkpoint
from compresskit.core import anatomy, surgery
from compresskit.core.context import Context
from compresskit.core.targets import candidates, resolve
from compresskit.core.weights import view
from compresskit.errors import DataError
from compresskit.methods.quantization.rtn import Rtn
from compresskit.nn.experts import STACKS, Experts
from compresskit.pipeline.ledger import size_of
from tests import models

OPTIONS: dict[str, dict[str, Any]] = {
    "quantization.rtn": {"bits": 4},
    "quantization.hqq": {"bits": 3},
    "quantization.nf4": {"group": 32},
    "quantization.gptq": {"bits": 4},
    "quantization.awq": {"bits": 4, "fold": False},
    "quantization.ternary": {},
    "decomposition.svd": {"rank": 8},
}
BANKS = tuple(f"model.layers.{block}.mlp.experts" for block in range(2))
INSIDE = [f"{name}.{expert}" for name in STACKS for expert in range(3)]


def mixtral(**changes: Any) -> PreTrainedModel:
    return models.tiny("mixtral", task="lm", num_hidden_layers=2, **changes)


def batches() -> list[dict[str, torch.Tensor]]:
    return [models.inputs("mixtral", batch=4, padded=True, seed=seed) for seed in range(3)]


def compressed(
    name: str, options: dict[str, Any], model: PreTrainedModel, warnings: list[str] | None = None
) -> Context:
    method = registry.method(name).model_validate({**options, "targets": ("*.mlp.experts",)})
    sites = resolve(model, method).sites
    assert [site.path for site in sites] == [f"{bank}.{inside}" for bank in BANKS for inside in INSIDE]
    context = Context(calibration=batches(), warn=(warnings if warnings is not None else []).append)
    method.apply(model, sites, context)
    return context


def dense(model: PreTrainedModel) -> PreTrainedModel:
    """A stock model with the values that the layers of ``model`` stand for."""
    stock = mixtral()
    for bank in BANKS:
        layer = model.get_submodule(bank)
        for name, parameter in STACKS.items():
            values = torch.stack([each.weight for each in layer.get_submodule(name)])
            stock.get_parameter(f"{bank}.{parameter}").data.copy_(values)
    return stock


@pytest.mark.parametrize("name", OPTIONS)
def test_computes_what_its_weights_say_saves_and_shrinks(name: str, tmp_path: Path) -> None:
    model, batch = mixtral(), models.inputs("mixtral", padded=True, seed=7)
    size = size_of(model).bytes
    compressed(name, OPTIONS[name], model)
    assert all(type(model.get_submodule(bank)) is Experts for bank in BANKS)
    assert models.max_difference(model, dense(model), batch) <= 2e-4
    assert models.max_difference(model, mixtral(), batch) > 1e-2, "it changed something"
    saved = save_checkpoint(model, tmp_path / "out", source=None)
    assert torch.equal(models.output(load_model(saved.path), batch), models.output(model, batch))
    weights = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert weights <= size_of(model).bytes + 64_000 < size + 64_000


def test_one_expert_alone(tmp_path: Path) -> None:
    """The others stay float, and so do other blocks' banks, in one piece."""
    model, batch = mixtral(), models.inputs("mixtral", seed=7)
    rtn = Rtn(bits=8, targets=(f"{BANKS[1]}.down.2",))
    rtn.apply(model, resolve(model, rtn).sites, Context())
    assert [type(model.get_submodule(bank)) is Experts for bank in BANKS] == [False, True]
    again = load_model(save_checkpoint(model, tmp_path / "out", source=None).path)
    assert torch.equal(models.output(again, batch), models.output(model, batch))
    assert 0 < models.max_difference(model, mixtral(), batch) < 1


def test_routers_are_no_sites() -> None:
    model = mixtral()
    assert not [site for site in candidates(model, frozenset({"matrix"})) if "mlp.gate" in site.path]
    assert [bank.router for bank in anatomy.of(model).experts] == [bank.replace("experts", "gate") for bank in BANKS]


def test_a_view_writes_into_the_stock_parameter() -> None:
    model = mixtral()
    plain = view(model, f"{BANKS[0]}.down.1")
    assert (plain.out_features, plain.in_features) == (models.HIDDEN, 32)
    plain.assign(torch.ones(models.HIDDEN, 32))
    stored = model.get_parameter(f"{BANKS[0]}.down_proj")
    assert bool((stored[1] == 1).all())
    assert not bool((stored[[0, 2]] == 1).any())


def test_statistics_are_of_the_attended_tokens_that_are_routed_there() -> None:
    model = mixtral()
    surgery.open_parts(model, [f"{BANKS[0]}.down.0"])
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    bank = model.get_submodule(BANKS[0])
    handle = bank.register_forward_pre_hook(lambda _, args: seen.append((args[0], args[1])))
    found = input_moments(model, [f"{BANKS[0]}.gate_up.1"], batches())[f"{BANKS[0]}.gate_up.1"]
    handle.remove()
    rows = []
    for (hidden, chosen), batch in zip(seen, batches(), strict=True):
        rows.append(hidden[(chosen == 1).any(1) & batch["attention_mask"].reshape(-1).bool()])
    wanted = torch.cat(rows)
    assert found.count == len(wanted) < sum(int(batch["attention_mask"].sum()) for batch in batches())
    assert torch.allclose(found.gram, (wanted.T @ wanted).double(), atol=1e-3)
    felt = output_gradients(model, [f"{BANKS[0]}.down.1"], batches())
    assert felt[f"{BANKS[0]}.down.1"].shape == (models.HIDDEN, models.HIDDEN)


def two_of_three() -> PreTrainedModel:
    """One expert a token, by the sign of a product: never the third, whose row is 0."""
    model = mixtral(num_experts_per_tok=1)
    for block in model.model.layers:
        router = block.mlp.gate.weight.data
        router[1], router[2] = -router[0], 0
    return model


UNSEEN: dict[str, dict[str, Any]] = {
    "quantization.gptq": {"bits": 4},
    "quantization.awq": {"bits": 4},
    "quantization.mixed": {"bits": 5, "group": 32},
    "quantization.residual": {"bits": 4, "rank": 2},
    "decomposition.svd": {"rank": 8},
}


@pytest.mark.parametrize("name", UNSEEN)
def test_an_expert_without_tokens_is_done_without_data_and_said(name: str) -> None:
    model, warnings = two_of_three(), []
    context = compressed(name, UNSEEN[name], model, warnings)
    assert [text for text in warnings if "no token of the calibration is routed" in text]
    for bank in BANKS:
        unseen = model.get_submodule(f"{bank}.gate_up.2")
        assert bool(torch.isfinite(unseen.weight).all())
        assert f"{bank}.gate_up.2" in context.details
    if name in ("quantization.gptq", "quantization.awq"):
        plain, rtn = two_of_three(), Rtn(bits=4, targets=("*.experts",))
        rtn.apply(plain, resolve(plain, rtn).sites, Context())
        path = f"{BANKS[0]}.gate_up.2"
        values = model.get_submodule(path).weight
        assert torch.allclose(values, plain.get_submodule(path).weight, atol=0.1)


def test_without_leave_an_unrouted_expert_is_an_error() -> None:
    model = two_of_three()
    surgery.open_parts(model, [f"{BANKS[0]}.down.0"])
    with pytest.raises(DataError, match="CK-D011"):
        input_moments(model, [f"{BANKS[0]}.gate_up.2"], batches())


def test_banks_that_share_their_parameters_stay_shared(tmp_path: Path) -> None:
    model, batch = mixtral(), models.inputs("mixtral", seed=7)
    surgery.share_module(model, BANKS[0], BANKS[1])
    rtn = Rtn(bits=4, targets=("*.experts",))
    sites = resolve(model, rtn).sites
    assert len(sites) == len(INSIDE)
    rtn.apply(model, sites, Context())
    assert model.get_submodule(f"{BANKS[0]}.down.1").codes is model.get_submodule(f"{BANKS[1]}.down.1").codes
    again = load_model(save_checkpoint(model, tmp_path / "out", source=None).path)
    assert torch.equal(models.output(again, batch), models.output(model, batch))
    assert size_of(again) == size_of(model)


def test_other_experts_are_refused_where_inputs_would_be_bounded() -> None:
    for name in ("quantization.smoothquant", "quantization.static_int8"):
        found = resolve(copy.deepcopy(mixtral()), registry.method(name)())
        assert not [site for site in found.sites if ".experts." in site.path]
        assert "expert" in found.skipped[f"{BANKS[0]}.down.0"]
