"""Fewer experts: equal to the model whose router can't choose them, a stock checkpoint, and honest refusals."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from compresskit.calibrate.routing import expert_use
from compresskit.checkpoint.load import load_model
from compresskit.checkpoint.save import save_checkpoint
from compresskit.core import surgery
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.errors import RecipeError
from compresskit.methods.pruning.experts import Experts
from compresskit.methods.quantization.rtn import Rtn
from compresskit.pipeline.ledger import size_of
from tests import models

BATCHES = [models.inputs("mixtral", batch=4, padded=True, seed=seed) for seed in range(2)]
BANKS = [f"model.layers.{block}.mlp.experts" for block in range(2)]


def mixtral() -> PreTrainedModel:
    return models.tiny("mixtral", task="lm", num_hidden_layers=2, num_local_experts=4)


def pruned(model: PreTrainedModel, **options: Any) -> Context:
    method = Experts(**options)
    sites, context = resolve(model, method).sites, Context(calibration=BATCHES)
    size, expected = size_of(model).bytes, method.predicted_saving(model, sites)
    method.apply(model, sites, context)
    assert size - size_of(model).bytes == expected
    surgery.sync_config(model)
    return context


def masked(model: PreTrainedModel, kept: dict[str, list[int]]) -> PreTrainedModel:
    """The whole model, its routers' logits of all other experts at -infinity."""
    for bank, numbers in kept.items():
        router = model.get_submodule(bank.replace("experts", "gate"))

        def choose(module: Any, args: Any, output: Any, numbers: list[int] = numbers) -> Any:
            logits = torch.full_like(output[0], -torch.inf)
            logits[:, numbers] = output[0][:, numbers]
            weights, chosen = logits.softmax(-1).topk(module.top_k, dim=-1)
            return logits, weights / weights.sum(-1, keepdim=True), chosen

        router.register_forward_hook(choose)
    return model


@pytest.mark.parametrize("criterion", ["reap", "probability", "frequency"])
def test_equals_a_router_that_cannot_choose_the_others(criterion: str, tmp_path: Path) -> None:
    model, batch = mixtral(), models.inputs("mixtral", padded=True, seed=9)
    context = pruned(model, keep=0.5, criterion=criterion)
    kept = {bank: context.details[bank]["kept"] for bank in BANKS}
    assert all(len(numbers) == 2 for numbers in kept.values())
    assert models.max_difference(model, masked(mixtral(), kept), batch) <= 1e-5
    assert models.max_difference(model, mixtral(), batch) > 1e-2
    assert model.config.num_local_experts == 2
    saved = save_checkpoint(model, tmp_path / "out", source=None)
    assert saved.native
    assert torch.equal(models.output(load_model(saved.path), batch), models.output(model, batch))


def test_unequal_numbers_of_experts_reload(tmp_path: Path) -> None:
    model, batch = mixtral(), models.inputs("mixtral", seed=9)
    pruned(model, keep=0.75, targets=(BANKS[1],))
    assert [model.get_submodule(bank).num_experts for bank in BANKS] == [4, 3]
    saved = save_checkpoint(model, tmp_path / "out", source=None)
    assert not saved.native
    assert torch.equal(models.output(load_model(saved.path), batch), models.output(model, batch))


def test_use_counts_attended_tokens_and_finds_the_silent_expert() -> None:
    """Padding isn't counted, router weights of a token add up to 1, and an expert whose result is 0 goes first."""
    model = mixtral()
    model.get_parameter(f"{BANKS[0]}.down_proj").data[2] = 0
    use = expert_use(model, BANKS, BATCHES)
    attended = sum(int(batch["attention_mask"].sum()) for batch in BATCHES)
    for found in use.values():
        assert int(found.count.sum()) == 2 * attended
        assert abs(float(found.mass.sum()) - attended) <= 1e-3
    assert float(use[BANKS[0]].saliency[2]) == 0
    assert 2 not in pruned(model, keep=0.75).details[BANKS[0]]["kept"]


@pytest.mark.parametrize(("keep", "why"), [(0.25, "each token takes 2"), (0.9, "keeps them all")])
def test_impossible_numbers_are_refused(keep: float, why: str) -> None:
    with pytest.raises(RecipeError, match="CK-T014") as caught:
        resolve(mixtral(), Experts(keep=keep))
    assert why in caught.value.why


def test_opened_shared_and_absent_experts_are_refused() -> None:
    opened = mixtral()
    rtn = Rtn(bits=8, targets=("*.experts",))
    rtn.apply(opened, resolve(opened, rtn).sites, Context())
    shared = copy.deepcopy(mixtral())
    surgery.share_module(shared, BANKS[0], BANKS[1])
    for model, word in ((opened, "fused"), (shared, "shares"), (models.tiny("bert"), "no experts")):
        with pytest.raises(RecipeError) as caught:
            resolve(model, Experts())
        assert caught.value.code == "CK-T014"
        assert word in caught.value.why
