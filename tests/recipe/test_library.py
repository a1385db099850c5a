"""The recipes that come along: found by name, valid, and at least one a family."""

from __future__ import annotations

from pathlib import Path

import pytest

from compresskit import registry
from compresskit.errors import RecipeError
from compresskit.recipe import Recipe
from compresskit.recipe.library import find, folder, shipped

NAMES = sorted(path.stem for path in (Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_all_are_listed() -> None:
    assert list(shipped()) == NAMES
    assert len(NAMES) >= 12
    assert folder().is_dir()


@pytest.mark.parametrize("name", NAMES)
def test_each_is_valid_and_says_what_it_is_for(name: str) -> None:
    item = shipped()[name]
    assert item.summary.endswith(".")
    assert 30 < len(item.summary) <= 120
    recipe = Recipe.load(name)
    assert recipe == Recipe.load(item.path)
    assert Recipe.from_text(recipe.to_yaml()) == recipe


def test_every_family_has_one() -> None:
    used = {step.method.family for name in NAMES for step in Recipe.load(name).steps}
    assert used == set(registry.FAMILIES)


def test_combinations_are_there() -> None:
    families = {
        name: [step.method.family for step in Recipe.load(name).steps]
        for name in ("prune-svd-int8", "layers-share-distil", "window-int8", "ffn-distil-int8-embedding")
    }
    assert families == {
        "prune-svd-int8": ["pruning", "decomposition", "quantization"],
        "layers-share-distil": ["pruning", "sharing", "distillation"],
        "window-int8": ["attention", "quantization"],
        "ffn-distil-int8-embedding": ["pruning", "distillation", "quantization", "quantization"],
    }


def test_an_unknown_name_gets_the_closest() -> None:
    with pytest.raises(RecipeError) as caught:
        find("window-int9")
    assert caught.value.code == "CK-R001"
    assert "did you mean 'window-int8'?" in caught.value.fix
