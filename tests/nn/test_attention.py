"""Replaced attention in whole models: what changes, what doesn't, and that nothing takes it away."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from compresskit.core import anatomy
from compresskit.errors import ModelError
from compresskit.nn import attention, window_attention, window_blocks
from tests import models
from tests.nn.attention_cases import LINEAR, WINDOW, LargestTensor, left_padded, replaced

KERNEL_FAMILIES = tuple(name for name in models.FAMILIES if not name.startswith("t5"))


@pytest.fixture(autouse=True)
def _blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short sequences too are cut into blocks."""
    monkeypatch.setattr(window_attention, "DENSE_BELOW", 0)
    monkeypatch.setattr(window_blocks, "BLOCK", 8)


def inputs(name: str, length: int = 40, padded: bool = False) -> dict[str, Tensor]:
    """Both sequences of T5 are long."""
    batch = models.inputs(name, length=length, padded=padded)
    if name == "t5":
        batch["decoder_input_ids"] = models.inputs(name, length=length, seed=1)["input_ids"]
    return batch


@pytest.mark.parametrize("padded", [False, True])
def test_a_window_of_the_whole_length_changes_nothing(family: str, padded: bool) -> None:
    batch = inputs(family, padded=padded)
    model = replaced(models.tiny(family), {"kind": "window", "window": 40, "global_tokens": 1})
    assert models.max_difference(model, models.tiny(family), batch) < 1e-5


@pytest.mark.parametrize("padded", [False, True])
def test_other_layers_run_as_ever(family: str, padded: bool) -> None:
    model, stock = models.tiny(family), models.tiny(family)
    part = next(each for each in anatomy.of(model).attentions if not each.cross)
    attention.install(model, model.get_submodule(part.path), {"kind": "window", "window": 40})
    assert model.config._attn_implementation == attention.NAME
    assert models.max_difference(model, stock, inputs(family, padded=padded)) < 1e-5
    if family in models.DECODERS:
        batch = left_padded(family)
        assert models.max_difference(model, stock, batch) < 1e-5


def reached(model: hf.PreTrainedModel, name: str, token: int) -> set[int]:
    """Positions of the output that change when one input token does; for T5 the decoder's token and outputs."""
    batch = inputs(name)
    before = models.output(model, batch)
    key = "decoder_input_ids" if name == "t5" else "input_ids"
    changed = {**batch, key: batch[key].clone()}
    changed[key][:, token] = models.MASK + 1
    difference = (models.output(model, changed) - before).abs().amax(dim=(0, 2))
    return set((difference > 1e-5).nonzero().flatten().tolist())


def by_method(model: hf.PreTrainedModel, name: str) -> None:
    model.set_attn_implementation(name)


def by_config(model: hf.PreTrainedModel, name: str) -> None:
    """As some exporters do, on whatever has a config."""
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = name


@pytest.mark.parametrize("switch", [by_method, by_config])
def test_a_far_token_has_no_influence_whatever_is_switched(family: str, switch: Any) -> None:
    model = replaced(models.tiny(family), WINDOW)
    near = models.LAYERS * (WINDOW["window"] - 1)
    causal = family in models.DECODERS or family == "t5"
    expected = range(20, 21 + near) if causal else range(20 - near, 21 + near)
    assert len(reached(models.tiny(family), family, 20)) > len(expected)
    for name in ("compresskit", "sdpa", "eager", "sdpa", "compresskit"):
        switch(model, name)
        found = reached(model, family, 20)
        assert 20 in found
        assert found <= set(expected), name
        assert len(found) > near / 2


@pytest.mark.parametrize("family", KERNEL_FAMILIES)
@pytest.mark.parametrize("switch", [by_method, by_config])
def test_linear_attention_stays_whatever_is_switched(family: str, switch: Any) -> None:
    model = replaced(models.tiny(family), LINEAR)
    batch = inputs(family, padded=True)
    kept = copy.deepcopy(model)
    assert models.max_difference(model, models.tiny(family), batch) > 1e-2
    for name in ("sdpa", "eager", "compresskit"):
        switch(model, name)
        assert models.max_difference(model, kept, batch) < 1e-5


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_a_model_made_for_another_attention_takes_the_replacement(family: str, name: str) -> None:
    model = models.tiny(family)
    model.set_attn_implementation(name)
    replaced(model, WINDOW)
    # Eager attention was chosen on purpose; sdpa is what everything gets, and its masks are needlessly large.
    assert model.config._attn_implementation == ("eager" if name == "eager" else attention.NAME)
    assert models.max_difference(model, replaced(models.tiny(family), WINDOW), inputs(family, padded=True)) < 1e-5


@pytest.mark.parametrize("settings", [WINDOW, {**WINDOW, "global_tokens": 2}, LINEAR])
def test_padding_changes_nothing(family: str, settings: dict[str, Any]) -> None:
    if settings == LINEAR and family not in KERNEL_FAMILIES:
        pytest.skip("T5's attention can't be linear")
    model = replaced(models.tiny(family), settings)
    batch = inputs(family)
    batch.pop("decoder_input_ids", None)
    lone = models.output(model, {**batch, **({"decoder_input_ids": batch["input_ids"]} if family == "t5" else {})})
    wide = {key: nn.functional.pad(value, (0, 13)) for key, value in batch.items()}
    if family == "t5":
        wide["decoder_input_ids"] = batch["input_ids"]
    found = models.output(model, wide)
    assert found.isfinite().all()
    torch.testing.assert_close(found[:, :40], lone, atol=1e-5, rtol=1e-5)
    if family in models.DECODERS:
        wide = {key: nn.functional.pad(value, (13, 0)) for key, value in batch.items()}
        wide["position_ids"] = (wide["attention_mask"].cumsum(1) - 1).clamp(min=0)
        found = models.output(model, wide)
        assert found.isfinite().all()
        torch.testing.assert_close(found[:, 13:], lone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_no_matrix_of_all_pairs_is_made(family: str) -> None:
    def largest(length: int) -> int:
        changes = {"max_position_embeddings": 2100, "num_hidden_layers": 1}
        model = replaced(models.tiny(family, **changes), {"kind": "window", "window": 16, "global_tokens": 1})
        with LargestTensor() as found:
            models.output(model, models.inputs(family, batch=2, length=length, padded=True))
        return found.numel

    assert largest(2048) <= 2.1 * largest(1024) < 2048 * 2048


def test_half_precision_and_training() -> None:
    for settings in (WINDOW, LINEAR):
        model = replaced(models.tiny("llama"), settings)
        batch = inputs("llama", padded=True)
        expected = models.output(model, batch)
        half = models.output(copy.deepcopy(model).bfloat16(), batch)
        assert half.dtype == torch.bfloat16
        assert (half - expected)[batch["attention_mask"].bool()].abs().mean() < 0.05
        gradients = []
        for checkpointing in (False, True):
            model.train()
            if checkpointing:
                model.activation_checkpointing_enable()
            model.zero_grad()
            model(**batch, use_cache=False).last_hidden_state.square().mean().backward()
            gradients.append(model.layers[0].self_attn.q_proj.weight.grad.clone())
        assert gradients[0].abs().max() > 0
        torch.testing.assert_close(*gradients)


def test_copies_and_files(tmp_path: Path) -> None:
    model = replaced(models.tiny("bert"), WINDOW)
    batch = inputs("bert")
    module = "encoder.layer.0.attention.self"
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        assert models.max_difference(model, twin, batch) == 0
        assert twin.get_submodule(module).config.stock is twin.config
        by_method(twin, "eager")
        assert models.max_difference(model, twin, batch) < 1e-5
        assert model.config._attn_implementation == attention.NAME
    model.config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    models.tiny("bert").config.save_pretrained(tmp_path)
    stock = json.loads((tmp_path / "config.json").read_text())
    assert {key: value for key, value in written.items() if stock.get(key) != value} == {}


def test_softmax_can_be_given_back() -> None:
    model = replaced(models.tiny("gpt2"), WINDOW)
    modules = [model.get_submodule(part.path) for part in anatomy.of(model).attentions]
    for module in modules:
        assert model.config._attn_implementation == attention.NAME
        attention.install(model, module, None)
        assert module.config is model.config
        assert attention.settings_of(module) is None
    assert model.config._attn_implementation == "sdpa"
    assert models.max_difference(model, models.tiny("gpt2"), inputs("gpt2", padded=True)) == 0


def test_the_module_s_view_of_the_config_is_live() -> None:
    model = replaced(models.tiny("llama"), WINDOW)
    view = model.layers[0].self_attn.config
    model.config.attention_dropout = 0.25
    assert view.attention_dropout == 0.25
    view.attention_dropout = 0.5
    assert model.config.attention_dropout == 0.5
    with pytest.raises(AttributeError):
        _ = view.no_such_setting


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kind": "flash"},
        {"kind": "window"},
        {"kind": "window", "window": 0},
        {"kind": "window", "window": True},
        {"kind": "window", "window": 4.0},
        {"kind": "window", "window": 4, "global_tokens": -1},
        {"kind": "window", "window": 4, "feature_map": "elu"},
        {"kind": "linear", "feature_map": "relu"},
    ],
)
def test_bad_settings(settings: dict[str, Any]) -> None:
    model = models.tiny("bert")
    with pytest.raises(ModelError) as caught:
        attention.install(model, model.encoder.layer[0].attention.self, settings)
    assert caught.value.code == "CK-L061"


def test_what_can_t_be_replaced() -> None:
    xlnet = hf.XLNetModel(hf.XLNetConfig(vocab_size=64, d_model=32, n_layer=1, n_head=2, d_inner=64))
    t5 = models.tiny("t5")
    plain = models.tiny("bert")
    sliding = models.tiny("qwen3", layer_types=["sliding_attention"] * 3, sliding_window=6, use_sliding_window=True)
    cases: list[tuple[hf.PreTrainedModel, nn.Module, dict[str, Any], str]] = [
        (xlnet, xlnet.layer[0].rel_attn, LINEAR, "AttentionInterface"),
        (plain, plain.encoder.layer[0].output.dense, LINEAR, "AttentionInterface"),
        (t5, t5.encoder.block[1].layer[0].SelfAttention, LINEAR, "bias"),
        (sliding, sliding.layers[0].self_attn, LINEAR, "sliding window of 6"),
        (sliding, sliding.layers[0].self_attn, {**WINDOW, "global_tokens": 1}, "global_tokens"),
    ]
    for model, module, settings, reason in cases:
        with pytest.raises(ModelError) as caught:
            attention.install(model, module, settings)
        assert caught.value.code == "CK-M051"
        assert reason in caught.value.why
        assert attention.settings_of(module) is None


def test_calls_that_can_t_be_computed() -> None:
    model = replaced(models.tiny("bert"), WINDOW)
    module = model.encoder.layer[0].attention.self
    query, key = torch.randn(1, 4, 5, 16), torch.randn(1, 4, 7, 16)
    for arguments in ({"key": key, "value": key}, {"key": query, "value": query, "softcap": 30.0}):
        with pytest.raises(ModelError) as caught:
            attention.attention_forward(module, query, attention_mask=None, **arguments)
        assert caught.value.code == "CK-M053"
