"""attention.window: its sites, what it refuses, what it leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from pydantic import ValidationError

from compresskit import registry
from compresskit.checkpoint.layout import read_layout, replay
from compresskit.checkpoint.save import save_checkpoint
from compresskit.core import anatomy
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.errors import RecipeError
from compresskit.methods.attention.linear import LinearAttention
from compresskit.methods.attention.window import WindowAttention
from compresskit.nn import attention
from tests import models


def applied(model: hf.PreTrainedModel, method: Any, context: Context | None = None) -> hf.PreTrainedModel:
    """``model`` after the method at the sites that it takes."""
    method.apply(model, resolve(model, method).sites, context or Context())
    return model


def settings(model: hf.PreTrainedModel) -> dict[str, dict[str, Any] | None]:
    """Path of each attention -> what it computes."""
    return {part.path: attention.settings_of(model.get_submodule(part.path)) for part in anatomy.of(model).attentions}


def test_registered() -> None:
    assert registry.method("attention.window") is WindowAttention
    assert WindowAttention().settings() == {"kind": "window", "window": 128, "global_tokens": 1}


@pytest.mark.parametrize("options", [{"window": 0}, {"global_tokens": -1}, {"size": 3}, {"window": 2**31}])
def test_options_are_checked(options: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        WindowAttention(**options)


def test_every_self_attention_is_replaced(family: str) -> None:
    context = Context()
    model = applied(models.tiny(family), WindowAttention(window=3), context)
    cross = {part.path: part.cross for part in anatomy.of(model).attentions}
    wanted = {"kind": "window", "window": 3, "global_tokens": 1}
    assert settings(model) == {path: None if cross[path] else wanted for path in cross}
    assert context.details == {path: wanted for path in cross if not cross[path]}
    batch = models.inputs(family, padded=True)
    assert models.max_difference(model, models.tiny(family), batch) > 1e-3


def test_targets_choose_layers() -> None:
    model = applied(models.tiny("bert"), WindowAttention(window=3, targets=("encoder.layer.[12]",)))
    assert [value is not None for value in settings(model).values()] == [False, True, True]
    assert [operation["path"] for operation in read_layout(model)] == [
        "encoder.layer.1.attention.self",
        "encoder.layer.2.attention.self",
    ]


def test_cross_attention_is_left_with_a_reason() -> None:
    model = models.tiny("t5")
    skipped = resolve(model, WindowAttention()).skipped
    assert set(skipped) == {part.path for part in anatomy.of(model).attentions if part.cross}
    assert all("two different sequences" in reason for reason in skipped.values())
    with pytest.raises(RecipeError) as caught:
        resolve(model, WindowAttention(targets=("decoder.block.*.layer.1.EncDecAttention",)))
    assert caught.value.code == "CK-T014"


def test_linear_attention_is_not_taken() -> None:
    model = applied(models.tiny("llama"), LinearAttention(targets=("layers.0",)))
    assert resolve(model, WindowAttention()).skipped == {
        "layers.0.self_attn": "its attention was replaced by linear attention before"
    }
    # A narrower window may follow a window.
    model = applied(models.tiny("llama"), WindowAttention(window=9))
    applied(model, WindowAttention(window=3, global_tokens=0))
    assert set(map(str, settings(model).values())) == {"{'kind': 'window', 'window': 3, 'global_tokens': 0}"}


def test_a_layer_with_a_window_of_its_own_takes_no_global_tokens() -> None:
    types = ["full_attention", "sliding_attention", "full_attention"]
    model = models.tiny("qwen3", layer_types=types, sliding_window=6, use_sliding_window=True)
    assert "global_tokens to 0" in resolve(model, WindowAttention()).skipped["layers.1.self_attn"]
    assert not resolve(model, WindowAttention(global_tokens=0)).skipped


@pytest.mark.parametrize(("window", "warned"), [(129, False), (130, True)])
def test_a_window_of_the_longest_input_is_warned_of(window: int, warned: bool) -> None:
    said: list[str] = []
    applied(models.tiny("bert"), WindowAttention(window=window), Context(warn=said.append))
    assert bool(said) == warned


@pytest.mark.parametrize("family", ["albert", "distilbert", "gpt2", "t5"])
def test_the_layout_gives_it_back(family: str) -> None:
    model = applied(models.tiny(family), WindowAttention(window=3, global_tokens=2))
    layout = read_layout(model)
    assert {operation["op"] for operation in layout} == {"attention"}
    fresh = models.tiny(family)
    replay(fresh, layout)
    assert settings(fresh) == settings(model)
    assert models.max_difference(fresh, model, models.inputs(family, length=30, padded=True)) == 0


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("name", [None, "eager", "sdpa"])
def test_loading_with_another_attention_keeps_it(family: str, name: str | None, tmp_path: Path) -> None:
    model = applied(models.tiny(family), WindowAttention(window=3, global_tokens=0))
    save_checkpoint(model, tmp_path / "out", source=None)
    options = {} if name is None else {"attn_implementation": name}
    loaded = type(model).from_pretrained(tmp_path / "out", **options)
    batch = models.inputs(family, length=30, padded=True)
    assert models.max_difference(loaded, model, batch) < 1e-5
    assert models.max_difference(loaded, models.tiny(family), batch) > 1e-3


def test_a_wider_window_is_closer_to_the_source(minilm_path: Path) -> None:
    source = hf.AutoModel.from_pretrained(minilm_path)
    tokenizer = hf.AutoTokenizer.from_pretrained(minilm_path)
    texts = [
        "The committee that met on Tuesday could not agree on whether the bridge should be repaired or replaced.",
        "Although the recipe asks for butter, my grandmother always used oil, and nobody ever noticed any difference.",
        "def read(path): open the file, parse each line as JSON, and return the list of records without the header",
    ]
    batch = tokenizer(texts, padding=True, return_tensors="pt")

    def closeness(window: int) -> float:
        model = hf.AutoModel.from_pretrained(minilm_path)
        applied(model, WindowAttention(window=window))
        with torch.no_grad():
            pair = [each(**batch).last_hidden_state for each in (source, model)]
        real = batch["attention_mask"][..., None]
        means = [(each * real).sum(1) / real.sum(1) for each in pair]
        return float(torch.cosine_similarity(*means).mean())

    near, wide, whole = (closeness(window) for window in (4, 12, 64))
    assert near < wide < whole
    assert wide > 0.95
    assert whole > 1 - 1e-5
