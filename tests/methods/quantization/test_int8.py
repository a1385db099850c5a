from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from compresskit.calibrate.batches import tokenize
from compresskit.calibrate.text import builtin_texts
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.core.weights import view
from compresskit.errors import RecipeError
from compresskit.methods.quantization.embedding import Embedding
from compresskit.methods.quantization.int8 import Int8
from compresskit.methods.sharing.layers import Layers
from compresskit.nn.int8 import Int8Linear
from compresskit.pipeline import checks
from compresskit.pipeline.ledger import size_of
from compresskit.tasks.fidelity import compare, outputs
from tests import models


def head_of(name: str) -> models.Task:
    return "lm" if name in models.DECODERS or name == "t5" else "base"


def quantized(model: PreTrainedModel, **options: Any) -> tuple[PreTrainedModel, Context]:
    """A quantized copy of ``model`` and the context that tells of it."""
    result, context = copy.deepcopy(model), Context()
    method = Int8.model_validate(options)
    method.apply(result, resolve(result, method).sites, context)
    return result, context


def layers_of(model: nn.Module) -> dict[str, Int8Linear]:
    return {path: module for path, module in model.named_modules() if isinstance(module, Int8Linear)}


def closeness(model: PreTrainedModel, original: PreTrainedModel, batch: dict[str, Tensor]) -> float:
    """Cosine of all outputs at attended positions, as one vector."""
    left, right = models.output(model, batch), models.output(original, batch)
    mask = batch["attention_mask"].bool()
    if left.dim() == 3 and left.shape[:2] == mask.shape:
        left, right = left[mask], right[mask]
    return float(cosine_similarity(left.flatten(), right.flatten(), dim=0))


@pytest.mark.parametrize("activations", ["token", "tensor"])
def test_every_architecture_shrinks_and_stays_close(family: str, activations: str) -> None:
    original = models.tiny(family, task=head_of(family))
    sites = resolve(original, Int8()).sites
    model, context = quantized(original, activations=activations)
    assert list(layers_of(model)) == [site.path for site in sites] == list(context.details)
    assert {layer.activations for layer in layers_of(model).values()} == {activations}
    saved = size_of(original).bytes - size_of(model).bytes
    assert saved == Int8().predicted_saving(original, sites)
    assert saved == sum(before - after for before, after in (each["bytes"] for each in context.details.values()))
    assert size_of(model).parameters == size_of(original).parameters
    batch = models.inputs(family, padded=True)
    assert closeness(model, original, batch) > 0.995
    assert models.max_difference(model, original, batch) > 0


def test_the_ledger_tells_what_the_codes_cost(family: str) -> None:
    original = models.tiny(family)
    model, context = quantized(original)
    for path, layer in layers_of(model).items():
        weight, detail = view(original, path).weight, context.details[path]
        stored = layer.weight_codes.numel() + 4 * layer.weight_scale.numel()
        assert detail["bytes"] == [4 * weight.numel(), stored]
        assert detail["bits_per_weight"] == pytest.approx(8 + 32 / weight.shape[1])
        step = weight.abs().amax(1, keepdim=True) / 127
        assert bool(((layer.weight - weight).abs() <= step / 2 * (1 + 1e-5)).all()), "at most half a step away"
        error = float((layer.weight - weight).norm() / weight.norm())
        assert detail["relative_error"] == pytest.approx(error, rel=1e-4)
        assert 0 < error < 0.01


def test_heads_and_poolers_only_when_named() -> None:
    original = models.tiny("bert")
    assert "pooler.dense" not in layers_of(quantized(original)[0])
    assert list(layers_of(quantized(original, targets=["pooler"])[0])) == ["pooler.dense"]
    untied = models.tiny("llama", task="lm")
    assert list(layers_of(quantized(untied, targets=["lm_head"])[0])) == ["lm_head"]


@pytest.mark.parametrize(
    ("name", "head"), [("gpt2", "lm_head"), ("t5", "lm_head"), ("bert", "cls.predictions.decoder")]
)
def test_a_tied_head_is_refused_with_the_way_out(name: str, head: str) -> None:
    model = models.tiny(name, task="lm")
    with pytest.raises(RecipeError) as error:
        resolve(model, Int8.model_validate({"targets": [head]}))
    assert error.value.code == "CK-T014"
    assert "quantization.embedding {bits: 8}" in error.value.why


def test_a_head_whose_table_is_quantized_is_no_matrix_any_more() -> None:
    model = models.tiny("gpt2", task="lm")
    tables = Embedding()
    tables.apply(model, resolve(model, tables).sites, Context())
    with pytest.raises(RecipeError) as error:
        resolve(model, Int8.model_validate({"targets": ["lm_head"]}))
    assert error.value.code == "CK-T010"


def test_biases_are_the_very_parameters() -> None:
    model = models.tiny("gpt2")
    before = {site.path: model.get_submodule(site.path).bias for site in resolve(model, Int8()).sites}
    method = Int8()
    method.apply(model, resolve(model, method).sites, Context())
    assert {path: layer.bias for path, layer in layers_of(model).items()} == before
    assert all(bias.requires_grad for bias in before.values())  # type: ignore[union-attr]


def test_shared_blocks_keep_sharing() -> None:
    model = models.tiny("t5", task="lm")
    sharing = Layers.model_validate({"groups": [[1, 2]]})
    sharing.apply(model, resolve(model, sharing).sites, Context())
    count, method = size_of(model).parameters, Int8()
    method.apply(model, resolve(model, method).sites, Context())
    assert size_of(model).parameters == count
    one, two = (model.get_submodule(f"encoder.block.{index}.layer.1.DenseReluDense.wi") for index in (1, 2))
    assert isinstance(two, Int8Linear)
    assert one is not two
    assert one.weight_codes is two.weight_codes


def test_half_precision_computes_in_its_own_type() -> None:
    for name in ("llama", "t5encoder"):
        original = models.tiny(name).to(torch.bfloat16)
        model, _ = quantized(original)
        batch = models.inputs(name)
        assert models.output(model, batch).dtype == torch.bfloat16
        assert closeness(model.float(), original.float(), batch) > 0.99


def test_padded_rows_and_cached_steps() -> None:
    for name in ("bert", "qwen3"):
        model, _ = quantized(models.tiny(name, task=head_of(name)))
        batch = models.inputs(name, padded=True)
        assert checks.check_padding(model, batch, "int8") is None
        assert checks.check_cache(model, batch, "int8") is None
    model, _ = quantized(models.tiny("bert"), activations="tensor")
    assert "depend on the batch" in str(checks.check_padding(model, models.inputs("bert", padded=True), "int8"))


def test_generation_with_a_cache_follows_that_without() -> None:
    model, _ = quantized(models.tiny("llama", task="lm"))
    ids = models.inputs("llama", batch=2, length=6)["input_ids"]
    scores = []
    for cached in (True, False):
        with torch.no_grad():
            found = model.generate(  # type: ignore[operator]
                ids,
                max_new_tokens=1,
                do_sample=False,
                use_cache=cached,
                output_logits=True,
                return_dict_in_generate=True,
            )
        scores.append(torch.stack(found.logits).flatten())
    assert float(cosine_similarity(scores[0], scores[1], dim=0)) > 0.999


def test_wrong_options() -> None:
    for options in ({"activations": "row"}, {"bits": 8}):
        with pytest.raises(ValidationError):
            Int8.model_validate(options)


def test_quality_on_a_real_model(minilm_path: Path) -> None:
    """The dynamic int8 of ONNX Runtime reaches .9926 on this model."""
    tokenizer, original = AutoTokenizer.from_pretrained(minilm_path), AutoModel.from_pretrained(minilm_path)
    unseen = tokenize(builtin_texts(24, 0, split="heldout"), tokenizer, original, 128)
    reference = outputs(original, unseen)
    for activations, floor in (("token", 0.997), ("tensor", 0.985)):
        model, _ = quantized(original, activations=activations)
        assert compare(reference, model, unseen, "embedding")["cosine_mean"] >= floor
