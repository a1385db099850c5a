"""attention.linear: its sites, what it refuses, what it leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from compresskit import registry
from compresskit.checkpoint.layout import read_layout
from compresskit.checkpoint.save import save_checkpoint
from compresskit.core import anatomy
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.errors import RecipeError
from compresskit.methods.attention.linear import LinearAttention
from compresskit.methods.attention.window import WindowAttention
from compresskit.nn import attention
from tests import models

FAMILIES = [name for name in models.FAMILIES if not name.startswith("t5")]


def test_registered() -> None:
    assert registry.method("attention.linear") is LinearAttention
    assert LinearAttention().settings() == {"kind": "linear", "feature_map": "elu"}
    with pytest.raises(ValidationError):
        LinearAttention(feature_map="exp")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_attention_is_replaced(family: str) -> None:
    model, method, context = models.tiny(family), LinearAttention(), Context()
    resolution = resolve(model, method)
    assert not resolution.skipped
    method.apply(model, resolution.sites, context)
    paths = [part.path for part in anatomy.of(model).attentions]
    assert all(attention.settings_of(model.get_submodule(path)) == method.settings() for path in paths)
    assert set(context.details) == set(paths)
    assert models.max_difference(model, models.tiny(family), models.inputs(family, padded=True)) > 1e-2


@pytest.mark.parametrize("family", ["t5", "t5encoder"])
def test_t5_is_refused_with_the_reason(family: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve(models.tiny(family), LinearAttention())
    assert caught.value.code == "CK-T014"
    assert "positions" in caught.value.why


def test_a_window_is_not_taken() -> None:
    model = models.tiny("bert")
    window = WindowAttention(targets=("encoder.layer.0",))
    window.apply(model, resolve(model, window).sites, Context())
    assert resolve(model, LinearAttention()).skipped == {
        "encoder.layer.0.attention.self": "its attention was replaced by window attention before"
    }


@pytest.mark.parametrize("family", ["albert", "llama"])
def test_saved_and_loaded(family: str, tmp_path: Path) -> None:
    model, method = models.tiny(family), LinearAttention()
    method.apply(model, resolve(model, method).sites, Context())
    save_checkpoint(model, tmp_path / "out", source=None)
    loaded = type(model).from_pretrained(tmp_path / "out")
    assert read_layout(loaded) == read_layout(model) != []
    assert models.max_difference(loaded, model, models.inputs(family, length=30, padded=True)) == 0
