from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from compresskit.calibrate.batches import tokenize
from compresskit.calibrate.text import builtin_texts
from compresskit.core import anatomy
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.core.weights import view
from compresskit.errors import RecipeError
from compresskit.methods.quantization.embedding import Embedding
from compresskit.nn.embedding import QuantizedEmbedding, QuantizedHead
from compresskit.numerics.grids import asymmetric, symmetric
from compresskit.pipeline import checks
from compresskit.pipeline.ledger import size_of
from compresskit.tasks.fidelity import compare, outputs
from tests import models

OPTIONS: list[dict[str, Any]] = [{"bits": 8}, {"bits": 8, "group": 32}, {"bits": 4}, {"bits": 4, "group": 16}]
OPTIONS += [{"bits": 6, "group": 32}, {"bits": 5, "group": 16}, {"bits": 3, "group": 16}]
TIED = [("gpt2", "lm_head"), ("t5", "lm_head"), ("bert", "cls.predictions.decoder")]
TIED += [("roberta", "lm_head.decoder"), ("albert", "predictions.decoder"), ("distilbert", "vocab_projector")]


def quantized(model: PreTrainedModel, **options: Any) -> tuple[PreTrainedModel, Context]:
    """A quantized copy of ``model`` and the context that tells of it."""
    result, context = copy.deepcopy(model), Context()
    method = Embedding.model_validate(options)
    method.apply(result, resolve(result, method).sites, context)
    return result, context


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_table_of_every_architecture(family: str, options: dict[str, Any]) -> None:
    task: models.Task = "lm" if "lm" in models.tasks(family) else "base"
    original = models.tiny(family, task=task)
    method = Embedding.model_validate(options)
    sites = resolve(original, method).sites
    assert [site.path for site in sites] == [table.path for table in anatomy.of(original).embeddings]
    model, context = quantized(original, **options)
    for site in sites:
        layer, weight = model.get_submodule(site.path), view(original, site.path).weight
        assert isinstance(layer, QuantizedEmbedding)
        bits, group = options["bits"], options.get("group")
        grid = symmetric(weight, 8, group) if bits == 8 else asymmetric(weight, bits, group, scale_dtype=torch.float16)
        torch.testing.assert_close(layer.weight, grid.values().float(), rtol=1e-3, atol=1e-6)
        detail = context.details[site.path]
        assert detail["bytes"] == [4 * weight.numel(), layer.stored_bytes()]
        assert detail["bits_per_weight"] == pytest.approx(8 * layer.stored_bytes() / weight.numel(), abs=1e-4)
        error = float((layer.weight - weight).norm() / weight.norm())
        assert detail["relative_error"] == pytest.approx(error, rel=1e-4)
        assert error < {8: 0.012, 6: 0.03, 5: 0.06, 4: 0.13, 3: 0.2}[bits]
    saved = size_of(original).bytes - size_of(model).bytes
    assert saved == method.predicted_saving(original, sites)
    assert size_of(model).parameters == size_of(original).parameters
    batch = models.inputs(family, padded=True)
    assert bool(torch.isfinite(models.output(model, batch)).all())
    assert models.max_difference(model, original, batch) > 0


@pytest.mark.parametrize(("name", "head"), TIED)
def test_a_tied_head_shares_the_codes(name: str, head: str) -> None:
    original = models.tiny(name, task="lm")
    ties = original.config.tie_word_embeddings
    for options in OPTIONS:
        model, context = quantized(original, **options)
        table = next(table for table in anatomy.of(original).embeddings if table.role == "word")
        codes = model.get_submodule(table.path)
        layer = model.get_submodule(head)
        assert isinstance(layer, QuantizedHead)
        assert head in context.details[table.path]["shared_with"]
        for parameter in ("codes", "scale", "zero"):
            assert getattr(layer, parameter) is getattr(codes, parameter)
        assert model.config.tie_word_embeddings is ties, "T5 scales its outputs by it"
        hidden = torch.randn(2, 5, codes.columns)  # type: ignore[arg-type]
        bias = original.get_submodule(head).bias
        wanted = hidden @ codes.weight.T + (0 if bias is None else bias)  # type: ignore[operator, union-attr]
        torch.testing.assert_close(layer(hidden), wanted.detach(), rtol=1e-4, atol=1e-4, check_dtype=False)


def test_biases_that_stay_tied() -> None:
    model, _ = quantized(models.tiny("bert", task="lm"))
    predictions = model.get_submodule("cls.predictions")
    assert predictions.bias is predictions.decoder.bias  # type: ignore[union-attr]
    assert model.all_tied_weights_keys == {"cls.predictions.decoder.bias": "cls.predictions.bias"}


def test_all_tables_of_t5_are_one() -> None:
    model, context = quantized(models.tiny("t5", task="lm"), bits=4, group=16)
    tables = [model.get_submodule(path) for path in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")]
    assert all(isinstance(table, QuantizedEmbedding) for table in tables)
    assert len({id(table) for table in tables}) == 3
    assert len({id(table.codes) for table in (*tables, model.get_submodule("lm_head"))}) == 1
    assert set(context.details["shared"]["shared_with"]) == {"encoder.embed_tokens", "decoder.embed_tokens", "lm_head"}
    relative = model.get_submodule("encoder.block.0.layer.0.SelfAttention.relative_attention_bias")
    assert type(relative) is nn.Embedding


def test_an_untied_head_stays_float() -> None:
    model, context = quantized(models.tiny("llama", task="lm"))
    assert type(model.get_submodule("lm_head")) is nn.Linear
    assert context.details["model.embed_tokens"]["shared_with"] == []


def test_finer_is_closer() -> None:
    original = models.tiny("bert")
    error = []
    for options in ({"bits": 8}, {"bits": 4, "group": 8}, {"bits": 4, "group": 32}, {"bits": 4}):
        context = quantized(original, **options)[1]
        error.append(sum(detail["relative_error"] for detail in context.details.values()))
    assert error == sorted(error)


def test_single_tables_can_be_named() -> None:
    original = models.tiny("bert")
    model, _ = quantized(original, targets=["*.word_embeddings"])
    changed = {path for path, module in model.named_modules() if isinstance(module, QuantizedEmbedding)}
    assert changed == {"embeddings.word_embeddings"}
    model, _ = quantized(original, ignore=["embeddings.position_embeddings"])
    changed = {path for path, module in model.named_modules() if isinstance(module, QuantizedEmbedding)}
    assert changed == {"embeddings.word_embeddings", "embeddings.token_type_embeddings"}


def test_the_padding_row_is_remembered() -> None:
    model, _ = quantized(models.tiny("roberta"))
    assert model.get_submodule("embeddings.word_embeddings").padding_idx == models.PAD
    assert model.get_submodule("embeddings.position_embeddings").padding_idx == models.PAD


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_cached_generation(name: str) -> None:
    model, _ = quantized(models.tiny(name, task="lm"))
    ids = models.inputs(name, batch=2, length=6)["input_ids"]
    cached, whole = (
        model.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=use, pad_token_id=0)  # type: ignore[operator]
        for use in (True, False)
    )
    assert torch.equal(cached, whole)


def test_padded_rows_are_those_of_single_ones(family: str) -> None:
    model, _ = quantized(models.tiny(family), bits=4)
    worst, _ = checks.padding_deviation(model, models.inputs(family, padded=True))
    assert worst <= 1e-5


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(RecipeError) as error:
        resolve(models.tiny("bert"), Embedding.model_validate({"group": 48}))
    assert error.value.code == "CK-T014"
    assert error.value.why == "its 64 columns don't divide into groups of 48"


def test_codes_that_would_take_more_are_refused() -> None:
    model = models.tiny("bert").to(torch.bfloat16)
    with pytest.raises(RecipeError) as error:
        resolve(model, Embedding.model_validate({"group": 2}))
    assert "more than its 64 columns" in error.value.why


def test_a_table_that_rescales_its_rows_is_left_out() -> None:
    model = models.tiny("gpt2")
    model.get_submodule("wpe").max_norm = 1.0  # type: ignore[assignment]
    found = resolve(model, Embedding())
    assert [site.path for site in found.sites] == ["wte"]
    assert "rescales" in found.skipped["wpe"]


def test_a_tie_to_something_else_is_refused() -> None:
    model = models.tiny("llama", task="lm")
    other = nn.Bilinear(1, 1, 1)
    other.weight = model.get_submodule("model.embed_tokens").weight  # type: ignore[assignment]
    model.extra = other  # type: ignore[assignment]
    with pytest.raises(RecipeError) as error:
        resolve(model, Embedding())
    assert "tied to extra, a Bilinear" in error.value.why


def test_half_precision_stays() -> None:
    original = models.tiny("gpt2", task="lm").to(torch.bfloat16)
    model, _ = quantized(original)
    assert models.output(model, models.inputs("gpt2")).dtype == torch.bfloat16


@pytest.mark.parametrize("options", [{"bits": 1}, {"group": 1}, {"symmetric": True}])
def test_wrong_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Embedding.model_validate(options)


def test_quality_on_a_real_model(minilm_path: Path) -> None:
    tokenizer, original = AutoTokenizer.from_pretrained(minilm_path), AutoModel.from_pretrained(minilm_path)
    unseen = tokenize(builtin_texts(24, 0, split="heldout"), tokenizer, original, 128)
    reference = outputs(original, unseen)
    for options, floor, bits in (({"bits": 8}, 0.9995, 8.1), ({"bits": 4, "group": 32}, 0.997, 4.65)):
        model, context = quantized(original, **options)
        assert compare(reference, model, unseen, "embedding")["cosine_mean"] >= floor
        assert context.details["embeddings.word_embeddings"]["bits_per_weight"] <= bits
