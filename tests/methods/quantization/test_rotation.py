"""quantization.rotation: lossless by itself, and worth something to the rounding that follows."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from compresskit.checkpoint.load import load_model
from compresskit.checkpoint.save import save_checkpoint
from compresskit.core import anatomy, surgery
from compresskit.core.compressor import Compressor
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.core.weights import view
from compresskit.errors import ModelError, RecipeError
from compresskit.methods.quantization import rotation as rotation_module
from compresskit.methods.quantization.rotation import Rotation
from compresskit.methods.quantization.rtn import Rtn
from compresskit.pipeline.plan import make_plan
from compresskit.recipe import Recipe
from tests import models
from tests.pipeline.conftest import recipe


def applied(model: PreTrainedModel, *methods: Compressor, **more: Any) -> PreTrainedModel:
    result = copy.deepcopy(model)
    for method in methods:
        method.apply(result, resolve(result, method).sites, Context(**more))
    return result


def divergence(original: PreTrainedModel, model: PreTrainedModel, name: str) -> float:
    """Mean KL of the next-token distributions."""
    batch = models.inputs(name, batch=8, length=16, seed=40)
    left, right = (models.output(each, batch).double().log_softmax(-1) for each in (original, model))
    return float((left.exp() * (left - right)).sum(-1).mean())


def with_outliers(name: str) -> PreTrainedModel:
    """A tiny model of which a few channels of every matrix are large, without a change of its outputs."""
    model = models.tiny(name, task="lm")
    body = anatomy.of(model)
    with torch.no_grad():
        for block in body.blocks:
            (attention,), (ffn,) = block.attentions, block.ffns
            for norm, readers in (
                ("input_layernorm", (attention.query.path, attention.key.path, attention.value.path)),
                ("post_attention_layernorm", ffn.inputs),
            ):
                model.get_parameter(f"{block.path}.{norm}.weight")[5::21] /= 12
                for path in readers:
                    view(model, path).weight[:, 5::21] *= 12
            view(model, attention.value.path).weight[3] /= 12
            group = attention.heads // attention.kv_heads
            for head in range(group):
                view(model, attention.output).weight[:, head * attention.head_dim + 3] *= 12
    return model


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True, "hidden_size": 48}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("t5", {}),
    ],
)
def test_lossless(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    original = models.tiny(name, task="lm", **changes)
    batch = models.inputs(name, padded=True, seed=3)
    expected, warnings = models.output(original, batch), list[str]()
    model = applied(original, Rotation(), warn=warnings.append)
    found = models.output(model, batch)
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    for path, before in original.named_parameters():
        if before.dim() == 2 and "relative" not in path and not path.endswith(("k_norm", "q_norm")):
            assert not torch.allclose(model.get_parameter(path), before, atol=1e-3), path
    assert bool(warnings) == (name == "t5"), "T5's head was tied to its table"
    saved = save_checkpoint(model.eval(), tmp_path / "saved")
    assert torch.equal(models.output(load_model(saved.path), batch), found)


def test_classifiers_too() -> None:
    original = models.tiny("llama", task="classifier")
    batch = models.inputs("llama", seed=3)
    torch.testing.assert_close(
        models.output(applied(original, Rotation()), batch), models.output(original, batch), rtol=1e-3, atol=1e-4
    )


def test_a_tied_head_is_untied_in_the_config_and_the_plan_says_what_it_costs(tmp_path: Path) -> None:
    original = models.tiny("llama", task="lm", tie_word_embeddings=True)
    size = models.VOCABULARY * models.HIDDEN * 4
    assert Rotation().predicted_saving(original, ()) == -size
    made = Recipe.from_text(json.dumps(recipe("quantization.rotation")))
    (note,) = make_plan(original, made, None).warnings
    assert "lm_head" in note
    assert "MiB more" in note
    model = applied(original, Rotation())
    assert model.config.tie_word_embeddings is False
    saved = save_checkpoint(model.eval(), tmp_path / "saved")
    assert saved.native, "a stock checkpoint"
    with torch.no_grad():
        original.model.norm.weight.fill_(0.7)
    assert Rotation().predicted_saving(original, ()) == 0, "a gain of one number stays in the norm"
    kept = applied(original, Rotation())
    assert kept.lm_head.weight is kept.model.embed_tokens.weight
    batch = models.inputs("llama")
    torch.testing.assert_close(models.output(kept, batch), models.output(original, batch), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bits", [3, 4])
def test_rounding_loses_less_where_there_are_outliers(bits: int) -> None:
    original, rounding = with_outliers("llama"), Rtn(bits=bits)
    plain, rotated = applied(original, rounding), applied(original, Rotation(), rounding)
    heads_left = applied(original, Rotation(heads=False), rounding)
    without, within = divergence(original, plain, "llama"), divergence(original, rotated, "llama")
    assert within < 0.7 * without
    assert within < divergence(original, heads_left, "llama"), "the heads' part is worth something"


def test_refusals() -> None:
    compressed, shared = models.tiny("llama", task="lm"), models.tiny("llama", task="lm")
    Rtn().apply(compressed, resolve(compressed, Rtn(targets=("*.q_proj",))).sites, Context())
    surgery.share_module(shared, "model.layers.0.mlp", "model.layers.1.mlp")
    for model, said in (
        (models.tiny("gpt2", task="lm"), "RMSNorm"),
        (models.tiny("llama"), "no head"),
        (compressed, "compressed already"),
        (shared, "shares its weights"),
    ):
        with pytest.raises(RecipeError) as caught:
            resolve(model, Rotation())
        assert caught.value.code == "CK-T014"
        assert said in caught.value.why
        with pytest.raises(ModelError, match="CK-M060"):
            Rotation().apply(model, (), Context())


def test_a_part_that_was_forgotten_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = rotation_module.stream_of

    def forgetful(model: PreTrainedModel) -> Any:
        found = real(model)
        assert not isinstance(found, str)
        return type(found)(found.tables, found.writers[1:], found.readings, found.final)

    monkeypatch.setattr(rotation_module, "stream_of", forgetful)
    with pytest.raises(ModelError, match="CK-M061"):
        Rotation().apply(models.tiny("qwen2", task="lm"), (), Context())
