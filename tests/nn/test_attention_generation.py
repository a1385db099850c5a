"""Decoding with replaced attention: with a cache of any kind as without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from compresskit.nn import attention, linear_attention, window_attention, window_blocks
from tests import models
from tests.nn.attention_cases import LINEAR, left_padded, replaced

SETTINGS = {
    "window": {"kind": "window", "window": 5, "global_tokens": 0},
    "sinks": {"kind": "window", "window": 4, "global_tokens": 2},
    "linear": LINEAR,
}
NEW = 16


@pytest.fixture(autouse=True)
def _blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_attention, "DENSE_BELOW", 0)
    monkeypatch.setattr(window_blocks, "BLOCK", 4)
    monkeypatch.setattr(linear_attention, "CHUNK", 4)


def logits(model: hf.PreTrainedModel, batch: dict[str, Tensor], **options: Any) -> Tensor:
    """Greedy logits, (NEW, B, V)."""
    result = model.generate(
        **batch, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=models.PAD,
        return_dict_in_generate=True, output_logits=True, **options,
    )  # fmt: skip
    return torch.stack(result.logits)


def prompt(name: str) -> dict[str, Tensor]:
    if name != "t5":
        return left_padded(name)
    batch = models.inputs(name, length=20, padded=True)
    return {key: batch[key] for key in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "qwen3", "t5"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_cached_generation_equals_uncached(family: str, kind: str) -> None:
    if family == "t5" and kind == "linear":
        pytest.skip("T5's attention can't be linear")
    model = replaced(models.tiny(family, task="lm"), SETTINGS[kind])
    expected = logits(model, prompt(family), use_cache=False)
    torch.testing.assert_close(logits(model, prompt(family)), expected, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", SETTINGS)
def test_every_third_layer_keeps_its_softmax(kind: str) -> None:
    model = replaced(models.tiny("llama", task="lm"), SETTINGS[kind], lambda number: number % 3 > 0)
    expected = logits(model, prompt("llama"), use_cache=False)
    torch.testing.assert_close(logits(model, prompt("llama")), expected, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("name", [attention.NAME, "sdpa", "eager"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_whatever_mask_and_cache(kind: str, name: str, cache: str) -> None:
    model = replaced(models.tiny("qwen3", task="lm"), SETTINGS[kind])
    expected = logits(model, prompt("qwen3"))
    model.set_attn_implementation(name)
    options = {"cache_implementation": "static", "disable_compile": True} if cache == "static" else {}
    torch.testing.assert_close(logits(model, prompt("qwen3"), **options), expected, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("padded", [False, True])
def test_a_prompt_in_parts(kind: str, padded: bool) -> None:
    model = replaced(models.tiny("llama", task="lm"), SETTINGS[kind])
    batch = left_padded("llama") if padded else models.inputs("llama", length=20)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = model(**batch, position_ids=positions).logits
        cache, parts = hf.DynamicCache(config=model.config), []
        for start, stop in ((0, 7), (7, 8), (8, 15), (15, 20)):
            part = model(
                input_ids=batch["input_ids"][:, start:stop],
                attention_mask=batch["attention_mask"][:, :stop],
                position_ids=positions[:, start:stop],
                past_key_values=cache,
                use_cache=True,
            )
            parts.append(part.logits)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(torch.cat(parts, dim=1)[real], expected[real], atol=5e-5, rtol=1e-4)


def mistral() -> hf.PreTrainedModel:
    torch.manual_seed(0)
    config = hf.MistralConfig(
        **models._GROUPED, vocab_size=models.VOCABULARY, sliding_window=6, attn_implementation="sdpa"
    )
    return hf.MistralForCausalLM(config).eval()


def qwen3() -> hf.PreTrainedModel:
    types = ["full_attention", "sliding_attention", "sliding_attention"]
    return models.tiny("qwen3", task="lm", layer_types=types, sliding_window=6, use_sliding_window=True)


@pytest.mark.parametrize("make", [mistral, qwen3])
def test_layers_with_a_sliding_window_of_their_own(make: Any) -> None:
    batch = left_padded("llama", length=30)
    wide = {"kind": "window", "window": 29, "global_tokens": 0}
    # A wider window leaves theirs, in the layers that are replaced and in those that aren't.
    for chosen in (lambda number: number == 1, lambda number: number > 0):
        assert models.max_difference(replaced(make(), wide, chosen), make(), batch) < 1e-5
    narrow = replaced(make(), {**wide, "window": 3}, lambda number: number == 2)
    assert models.max_difference(narrow, make(), batch) > 1e-2
    expected = logits(narrow, batch, use_cache=False)
    torch.testing.assert_close(logits(narrow, batch), expected, atol=5e-5, rtol=1e-4)
    for name in ("sdpa", "eager"):
        narrow.set_attn_implementation(name)
        torch.testing.assert_close(logits(narrow, batch), expected, atol=5e-5, rtol=1e-4)
