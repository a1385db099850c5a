from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from compresskit.calibrate.batches import tokenize
from compresskit.calibrate.moments import input_samples
from compresskit.calibrate.sources import load_texts
from compresskit.calibrate.text import builtin_texts, vocabulary_words
from compresskit.core import anatomy, surgery
from compresskit.core.context import Batch, Context
from compresskit.core.targets import resolve
from compresskit.core.weights import view
from compresskit.errors import RecipeError
from compresskit.methods.decomposition import svd
from compresskit.methods.decomposition.svd import Svd
from compresskit.methods.quantization.int8 import Int8
from compresskit.methods.sharing.layers import Layers
from compresskit.nn.low_rank import LowRankLinear
from compresskit.numerics import low_rank
from compresskit.pipeline.ledger import size_of
from compresskit.tasks.fidelity import compare, outputs
from tests import models


def head_of(name: str) -> models.Task:
    return "lm" if name in models.DECODERS or name == "t5" else "base"


def batches(name: str, seeds: range = range(4)) -> list[Batch]:
    return [models.inputs(name, batch=4, length=12, padded=True, seed=seed) for seed in seeds]


class Told:
    """What a method told the pipeline."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.nothing: list[str] = []
        self.details: dict[str, Any] = {}

    def context(self, name: str, **more: Any) -> Context:
        return Context(
            **{"calibration": batches(name), **more},
            warn=self.warnings.append,
            nothing=self.nothing.append,
            details=self.details,
        )


def factorised(model: PreTrainedModel, name: str, **options: Any) -> tuple[PreTrainedModel, Told]:
    """A copy of ``model`` with factors, and what was told."""
    result, told = copy.deepcopy(model), Told()
    method = Svd.model_validate(options)
    method.apply(result, resolve(result, method).sites, told.context(name))
    return result, told


def factors_of(model: nn.Module) -> dict[str, LowRankLinear]:
    return {path: module for path, module in model.named_modules() if isinstance(module, LowRankLinear)}


def output_errors(model: PreTrainedModel, original: PreTrainedModel, rows: dict[str, Tensor]) -> dict[str, float]:
    """Relative error of each replaced matrix's own output, without bias, on given input rows."""
    found = {}
    for path, layer in factors_of(model).items():
        wanted = rows[path].double() @ view(original, path).weight.double().T
        given = linear(rows[path].double(), layer.weight.detach().double())
        found[path] = float((given - wanted).norm() / wanted.norm())
    return found


def test_every_architecture_gets_smaller_by_the_ratio(family: str) -> None:
    original = models.tiny(family, task=head_of(family))
    method = Svd.model_validate({"ratio": 0.5})
    sites = resolve(original, method).sites
    result, told = factorised(original, family, ratio=0.5)
    assert set(factors_of(result)) >= {site.path for site in sites}
    for site in sites:
        rows, columns = view(original, site.path).weight.shape
        before, after = told.details[site.path]["parameters"]
        assert before == rows * columns
        assert before // 2 - (rows + columns) < after <= before // 2
        layer = factors_of(result)[site.path]
        assert after == sum(each.numel() for name, each in layer.named_parameters() if "bias" not in name)
    gone = sum(before - after for before, after in (detail["parameters"] for detail in told.details.values()))
    assert size_of(original).parameters - size_of(result).parameters == gone
    assert method.predicted_saving(original, sites) == size_of(original).bytes - size_of(result).bytes
    batch = models.inputs(family, padded=True)
    assert bool(torch.isfinite(models.output(result, batch)).all())
    assert models.max_difference(result, original, batch) > 1e-3
    assert told.warnings == []


def test_biases_are_the_very_parameters(family: str) -> None:
    original = models.tiny(family)
    model = copy.deepcopy(original)
    method = Svd.model_validate({"ratio": 0.5, "whiten": False})
    sites = resolve(model, method).sites
    biases = {site.path: getattr(model.get_submodule(site.path), "bias", None) for site in sites}
    method.apply(model, sites, Told().context(family))
    for path, bias in biases.items():
        layer = factors_of(model)[path]
        assert layer.bias is bias
        assert layer.has_bias == (bias is not None)


def test_full_rank_at_the_layer_changes_nothing(family: str) -> None:
    original = models.tiny(family, task=head_of(family))
    model = copy.deepcopy(original)
    for site in resolve(model, Svd()).sites:
        plain = view(model, site.path)
        found = low_rank.spectrum(plain.weight)
        up, down = low_rank.factors(plain.weight, found, min(plain.weight.shape))
        surgery.replace(model, site.path, LowRankLinear.from_factors(up.float(), down.float(), plain.bias))
    batch = models.inputs(family, padded=True)
    scale = float(models.output(original, batch).abs().max())
    assert models.max_difference(model, original, batch) <= 1e-5 * max(1, scale)


@pytest.mark.parametrize("options", [{"rank": 64}, {"ratio": 1.0}, {"energy": 1.0}, {"budget": 1.0}, {"rank": 10**6}])
def test_full_rank_leaves_the_model_as_it_is_and_says_so(family: str, options: dict[str, Any]) -> None:
    original = models.tiny(family, task=head_of(family))
    result, told = factorised(original, family, **options)
    assert factors_of(result) == {}
    assert models.max_difference(result, original, models.inputs(family)) == 0
    assert Svd.model_validate(options).nothing_asked() or told.nothing
    if "rank" in options:
        assert "stay dense" in told.warnings[0]
        assert all("left_dense" in detail for detail in told.details.values())


def test_a_matrix_that_would_grow_stays_dense() -> None:
    """Rank 40 pays for 64x128 (break-even 42) and not for 64x64 (31)."""
    result, told = factorised(models.tiny("bert"), "bert", rank=40)
    assert {path.rpartition("layer.")[2][2:] for path in factors_of(result)} == {"intermediate.dense", "output.dense"}
    assert told.warnings == ["12 of 18 matrices stay dense: their factors would not be smaller"]
    dense = [path for path, detail in told.details.items() if "left_dense" in detail]
    assert len(dense) == 12
    assert all(isinstance(result.get_submodule(path), nn.Linear) for path in dense)
    assert told.nothing == []


@pytest.mark.parametrize("name", ["bert", "gpt2", "qwen3", "t5"])
def test_whitening_beats_plain_on_activations_that_it_has_not_seen(name: str) -> None:
    original = models.tiny(name, task=head_of(name))
    paths = [site.path for site in resolve(original, Svd()).sites]
    many = [models.inputs(name, batch=8, length=24, seed=seed) for seed in range(100, 106)]
    unseen = input_samples(original, paths, many, 10**6)
    for options in ({"ratio": 0.5}, {"rank": 8}):
        method = Svd.model_validate({**options, "sensitivity": False})
        whitened = copy.deepcopy(original)
        seen = [models.inputs(name, batch=8, length=24, seed=seed) for seed in range(6)]
        method.apply(whitened, resolve(whitened, method).sites, Context(calibration=seen))
        plain, _ = factorised(original, name, **options, whiten=False)
        ours, theirs = output_errors(whitened, original, unseen), output_errors(plain, original, unseen)
        better = sum(ours[path] < theirs[path] for path in paths)
        assert better >= 0.9 * len(paths)
        assert sum(ours.values()) < sum(theirs.values())


def test_the_reported_loss_is_what_the_outputs_lose() -> None:
    original = models.tiny("llama")
    result, told = factorised(original, "llama", ratio=0.6, sensitivity=False)
    rows = input_samples(original, list(told.details), batches("llama"), 10**6)
    for path, error in output_errors(result, original, rows).items():
        assert error == pytest.approx(told.details[path]["relative_loss"], rel=1e-3)


def test_plain_needs_no_data_and_is_the_best_in_the_weights() -> None:
    method = Svd.model_validate({"rank": 10, "whiten": False})
    assert method.requirements() == frozenset()
    assert Svd().requirements() == {"calibration"}
    original, told = models.tiny("gpt2"), Told()
    model = copy.deepcopy(original)
    method.apply(model, resolve(model, method).sites, told.context("gpt2", calibration=()))
    for path, layer in factors_of(model).items():
        values = torch.linalg.svdvals(view(original, path).weight.double())
        error = float((layer.weight.detach() - view(original, path).weight).double().norm())
        assert error == pytest.approx(float(values[10:].square().sum().sqrt()), rel=1e-5)
        assert told.details[path]["relative_error"] == pytest.approx(error / float(values.norm()), rel=1e-4)


def test_sensitivity_keeps_the_result_closer() -> None:
    """The mean over models and seeds of what it is for: the error of the model's own output."""
    gains = []
    for name in ("bert", "gpt2", "t5"):
        original = models.tiny(name, task=head_of(name))
        batch = models.inputs(name, batch=16, length=12, seed=50)
        wanted = models.output(original, batch)
        errors = []
        for sensitivity in (True, False):
            result, _ = factorised(original, name, ratio=0.5, sensitivity=sensitivity)
            errors.append(float((models.output(result, batch) - wanted).norm()))
        gains.append(errors[0] / errors[1])
    assert sum(gains) / len(gains) < 0.97


def test_energy_keeps_its_share_and_no_rank_more() -> None:
    original = models.tiny("bert")
    _, told = factorised(original, "bert", energy=0.7, whiten=False)
    for path, detail in told.details.items():
        squares = torch.linalg.svdvals(view(original, path).weight.double()).square()
        share = squares.cumsum(0) / squares.sum()
        assert float(share[detail["rank"] - 1]) >= 0.7 > float(share[detail["rank"] - 2])


def test_a_budget_is_kept_and_better_spent_than_evenly() -> None:
    for name in ("bert", "qwen3"):
        original = models.tiny(name)
        paths = [site.path for site in resolve(original, Svd()).sites]
        total = sum(view(original, path).weight.numel() for path in paths)
        result, told = factorised(original, name, budget=0.5)
        kept = sum(
            sum(each.numel() for part in ("up", "down") for each in [getattr(layer, part).weight])
            for layer in factors_of(result).values()
        ) + sum(view(result, path).weight.numel() for path in paths if path not in factors_of(result))
        assert 0.48 * total < kept <= 0.5 * total
        assert len({detail.get("rank") for detail in told.details.values()}) > 2
        evenly, _ = factorised(original, name, ratio=0.5)
        batch = models.inputs(name, batch=16, length=12, seed=50)
        wanted = models.output(original, batch)
        ours, theirs = (float((models.output(each, batch) - wanted).norm()) for each in (result, evenly))
        assert ours < theirs


def test_a_budget_that_cannot_be_kept_is_told() -> None:
    _, told = factorised(models.tiny("bert"), "bert", budget=0.01, whiten=False)
    assert told.warnings == ["rank 1 everywhere already holds 3%, more than the budget"]
    assert all(detail["rank"] == 1 for detail in told.details.values())


def test_ranks_are_rounded() -> None:
    for options in ({"ratio": 0.7}, {"energy": 0.8}, {"budget": 0.6}):
        _, told = factorised(models.tiny("bert"), "bert", round_to=8, **options)
        ranks = [detail["rank"] for detail in told.details.values() if "rank" in detail]
        assert ranks
        assert all(rank % 8 == 0 for rank in ranks)


def test_the_factors_can_be_taken_by_a_later_step() -> None:
    model, _ = factorised(models.tiny("gpt2"), "gpt2", ratio=0.5)
    sites = [site.path for site in resolve(model, Int8()).sites]
    assert sites[:2] == ["h.0.attn.c_attn.down", "h.0.attn.c_attn.up"]
    assert len(sites) == 2 * len(factors_of(model))


def test_shared_blocks_keep_sharing() -> None:
    model = models.tiny("llama", task="lm")
    sharing = Layers.model_validate({"groups": [[0, 2]]})
    sharing.apply(model, resolve(model, sharing).sites, Context())
    method = Svd.model_validate({"ratio": 0.5})
    method.apply(model, resolve(model, method).sites, Told().context("llama"))
    first, last = (model.get_submodule(f"model.layers.{index}.mlp.up_proj") for index in (0, 2))
    assert isinstance(last, LowRankLinear)
    assert first is not last
    assert first.up.weight is last.up.weight  # type: ignore[union-attr]
    assert first.down.weight is last.down.weight  # type: ignore[union-attr]


def test_several_passes_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    original = models.tiny("bert")
    at_once, _ = factorised(original, "bert", ratio=0.5)
    monkeypatch.setattr(svd, "_MEMORY", 300_000)
    paths = [site.path for site in resolve(original, Svd()).sites]
    assert len(svd._portions(original, paths)) > 3
    in_turn, _ = factorised(original, "bert", ratio=0.5)
    assert models.max_difference(at_once, in_turn, models.inputs("bert")) <= 1e-5


def test_a_matrix_that_the_result_does_not_use_is_weighed_by_its_inputs() -> None:
    result, told = factorised(models.tiny("bert"), "bert", ratio=0.5, targets=["pooler.dense"])
    assert list(factors_of(result)) == ["pooler.dense"]
    assert told.warnings == ["no gradient comes back to pooler.dense: weighed by their inputs alone"]


def test_half_precision_stays() -> None:
    model = models.tiny("llama").to(torch.bfloat16)
    result, told = factorised(model, "llama", ratio=0.5)
    assert {parameter.dtype for parameter in result.parameters()} == {torch.bfloat16}
    assert all(detail["relative_loss"] < 1 for detail in told.details.values())


def test_a_tied_head_is_refused() -> None:
    model = models.tiny("gpt2", task="lm")
    with pytest.raises(RecipeError) as error:
        resolve(model, Svd.model_validate({"targets": ["lm_head"]}))
    assert error.value.code == "CK-T014"
    assert "tied to transformer.wte" in error.value.why


@pytest.mark.parametrize(
    "options", [{"rank": 4, "ratio": 0.5}, {"energy": 0.5, "budget": 0.5}, {"rank": 0}, {"ratio": 1.5}, {"budget": 0}]
)
def test_wrong_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Svd.model_validate(options)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_cached_generation(name: str) -> None:
    model, _ = factorised(models.tiny(name, task="lm"), name, ratio=0.6)
    ids = models.inputs(name, batch=2, length=6)["input_ids"]
    cached, whole = (
        model.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=use, pad_token_id=0)  # type: ignore[operator]
        for use in (True, False)
    )
    assert torch.equal(cached, whole)
    assert len(anatomy.of(model).blocks) == 3


@pytest.mark.slow
def test_whitened_keeps_what_plain_loses_on_a_real_model(minilm_path: Path) -> None:
    """Three quarters of every matrix of MiniLM, on text outside calibration; more calibration text gives more."""
    tokenizer, original = AutoTokenizer.from_pretrained(minilm_path), AutoModel.from_pretrained(minilm_path)
    texts = load_texts("builtin", 96, seed=0, vocabulary=vocabulary_words(tokenizer))
    calibration = tokenize(texts, tokenizer, original, 128)
    unseen = tokenize(builtin_texts(48, 0, split="heldout"), tokenizer, original, 128)
    reference, cosines = outputs(original, unseen), []
    for options in ({"ratio": 0.75}, {"ratio": 0.75, "whiten": False}):
        method = Svd.model_validate(options)
        model = copy.deepcopy(original)
        method.apply(model, resolve(model, method).sites, Context(calibration=calibration))
        cosines.append(compare(reference, model, unseen, "embedding")["cosine_mean"])
    assert cosines[0] >= 0.82
    assert cosines[1] <= 0.65
