from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
from transformers import PreTrainedModel

from compresskit.core import anatomy, surgery
from compresskit.core.compressor import Compressor
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.targets import Resolution, candidates, resolve
from compresskit.core.weights import view
from compresskit.errors import RecipeError
from compresskit.nn.int8 import Int8Linear
from tests import models


class Probe(Compressor):
    """Does nothing; refuses what its option names."""

    family: ClassVar[str] = "pruning"
    name: ClassVar[str] = "probe"
    sites: ClassVar[frozenset[str]] = frozenset({"ffn"})

    refused: tuple[str, ...] = ()

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        return "it is of a kind that can't be done" if site.path in self.refused else None

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        raise NotImplementedError


class Matrices(Probe):
    sites: ClassVar[frozenset[str]] = frozenset({"matrix"})


class Tables(Probe):
    sites: ClassVar[frozenset[str]] = frozenset({"embedding"})


class Attentions(Probe):
    sites: ClassVar[frozenset[str]] = frozenset({"attention"})


class Blocks(Probe):
    sites: ClassVar[frozenset[str]] = frozenset({"block"})


class Whole(Probe):
    sites: ClassVar[frozenset[str]] = frozenset({"model"})


def paths(found: Resolution) -> list[str]:
    return [site.path for site in found.sites]


def failure(model: PreTrainedModel, method: Compressor, **more: Any) -> RecipeError:
    with pytest.raises(RecipeError) as error:
        resolve(model, method, **more)
    return error.value


INTERMEDIATE = [f"encoder.layer.{index}.intermediate" for index in range(3)]


def test_by_default_every_site_of_the_kind_in_the_blocks(family: str) -> None:
    model = models.tiny(family)
    body = anatomy.of(model)
    assert paths(resolve(model, Probe())) == [ffn.path for ffn in body.ffns]
    assert paths(resolve(model, Attentions())) == [part.path for part in body.attentions]
    assert paths(resolve(model, Blocks())) == [block.path for block in body.blocks]
    assert paths(resolve(model, Whole())) == [""]


def test_heads_and_poolers_only_when_named() -> None:
    model = models.tiny("bert", task="classifier")
    assert all(path.startswith("bert.encoder.layer.") for path in paths(resolve(model, Matrices())))
    assert len(resolve(model, Matrices()).sites) == 18
    named = resolve(model, Matrices(targets=("*.pooler.*", "classifier")))
    assert paths(named) == ["bert.pooler.dense", "classifier"]


def test_embedding_methods_take_tables_outside_the_blocks() -> None:
    found = resolve(models.tiny("t5", task="lm"), Tables())
    assert paths(found) == ["shared"]
    assert "lm_head" in found.sites[0].members


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("encoder.layer.1.intermediate", INTERMEDIATE[1:2]),
        ("encoder.layer.1", INTERMEDIATE[1:2]),
        ("encoder.layer.[12]", INTERMEDIATE[1:]),
        ("encoder.layer.[!0]", INTERMEDIATE[1:]),
        ("encoder.layer.?.output.dense", INTERMEDIATE),
        ("*.intermediate.dense", INTERMEDIATE),
        ("*", INTERMEDIATE),
        ("encoder", INTERMEDIATE),
    ],
)
def test_patterns_match_site_container_and_member(pattern: str, expected: list[str]) -> None:
    assert paths(resolve(models.tiny("bert"), Probe(targets=(pattern,)))) == expected


def test_a_number_is_no_prefix_of_a_longer_one() -> None:
    model = models.tiny("bert", num_hidden_layers=11)
    assert paths(resolve(model, Probe(targets=("encoder.layer.1",)))) == ["encoder.layer.1.intermediate"]


def test_paths_may_start_at_the_base_model() -> None:
    model = models.tiny("bert", task="classifier")
    for pattern in ("encoder.layer.0", "bert.encoder.layer.0"):
        assert paths(resolve(model, Probe(targets=(pattern,)))) == ["bert.encoder.layer.0.intermediate"]
    left = resolve(model, Probe(ignore=("encoder.layer.0",)))
    assert paths(left) == [f"bert.{path}" for path in INTERMEDIATE[1:]]


def test_sites_come_once_and_in_the_order_of_the_model() -> None:
    found = resolve(models.tiny("bert"), Probe(targets=("encoder.layer.2", "encoder.layer.0", "*.layer.2.*")))
    assert paths(found) == [INTERMEDIATE[0], INTERMEDIATE[2]]


def test_matrices_of_all_kinds_come_in_the_order_of_the_model() -> None:
    model = models.tiny("gpt2")
    found = paths(resolve(model, Matrices()))
    assert found[:4] == ["h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.0.mlp.c_proj"]
    assert found == [name for name, _ in model.named_modules() if name in found]


def test_a_target_that_matches_nothing_is_an_error_with_the_closest_names() -> None:
    error = failure(models.tiny("bert"), Probe(targets=("encoder.layer.0", "encoder.layers.1.intermediat")))
    assert error.code == "CK-T010"
    assert "encoder.layers.1.intermediat" in error.what
    closest = error.fix.removeprefix("closest: ").split(", ")
    assert len(closest) == 5
    assert "encoder.layer.1.intermediate" in closest
    assert error.exit_code == 2


def test_an_ignore_that_matches_nothing_is_an_error() -> None:
    error = failure(models.tiny("bert"), Probe(ignore=("encoder.layer.7",)))
    assert error.code == "CK-T011"
    assert "encoder.layer.7" in error.what


def test_a_target_wholly_ignored_is_an_error() -> None:
    error = failure(models.tiny("bert"), Probe(targets=("encoder.layer.1",), ignore=("*.layer.1.*",)))
    assert error.code == "CK-T012"


def test_an_ignore_outside_the_targets_is_fine() -> None:
    found = resolve(models.tiny("bert"), Probe(targets=("encoder.layer.1",), ignore=("encoder.layer.2",)))
    assert paths(found) == INTERMEDIATE[1:2]


@pytest.mark.parametrize("pattern", ["", "encoder layer", "a/b", "encoder.(layer|x)", "x" * 257, "naïve"])
@pytest.mark.parametrize("where", ["targets", "ignore"])
def test_what_is_no_pattern(pattern: str, where: str) -> None:
    error = failure(models.tiny("bert"), Probe.model_validate({where: (pattern,)}))
    assert error.code == "CK-T015"


def test_a_group_is_taken_whole_or_not_at_all() -> None:
    model = models.tiny("t5")
    error = failure(model, Attentions(targets=("encoder.block.1",)))
    assert error.code == "CK-T013"
    assert "encoder self-attention heads" in error.what
    assert "encoder.block.0" in error.what
    split = failure(model, Attentions(ignore=("decoder.block.2.layer.1",)))
    assert "decoder cross-attention heads" in split.what
    assert len(resolve(model, Attentions(targets=("encoder",))).sites) == 3


def test_a_refused_site_that_only_a_wildcard_named_is_skipped_with_its_reason() -> None:
    model = models.tiny("bert")
    for method in (Probe(refused=(INTERMEDIATE[1],)), Probe(refused=(INTERMEDIATE[1],), targets=("encoder.layer.*",))):
        found = resolve(model, method)
        assert paths(found) == [INTERMEDIATE[0], INTERMEDIATE[2]]
        assert found.skipped == {INTERMEDIATE[1]: "it is of a kind that can't be done"}
        error = failure(model, method, strict=True)
        assert (error.code, error.where) == ("CK-T014", INTERMEDIATE[1])


@pytest.mark.parametrize("name", [INTERMEDIATE[1], "encoder.layer.1.output.dense"])
def test_a_refused_site_that_was_named_exactly_is_an_error(name: str) -> None:
    error = failure(models.tiny("bert"), Probe(refused=(INTERMEDIATE[1],), targets=("encoder.layer.0", name)))
    assert (error.code, error.where) == ("CK-T014", INTERMEDIATE[1])
    assert error.why == "it is of a kind that can't be done"


def test_exact_names_may_start_at_the_base_model() -> None:
    path = f"bert.{INTERMEDIATE[1]}"
    method = Probe(refused=(path,), targets=("encoder.layer.0", INTERMEDIATE[1]))
    assert failure(models.tiny("bert", task="classifier"), method).code == "CK-T014"


def test_all_refused_is_an_error() -> None:
    error = failure(models.tiny("bert"), Probe(refused=tuple(INTERMEDIATE)))
    assert error.code == "CK-T014"
    assert "2 more" in error.what


def test_a_model_that_is_compressed_already_says_so() -> None:
    model = models.tiny("bert")
    for path in paths(resolve(model, Matrices())):
        surgery.replace(model, path, Int8Linear.from_weight(view(model, path).weight, view(model, path).bias))
    error = failure(model, Matrices())
    assert (error.code, error.why) == ("CK-T010", "the model is compressed already: it has int8_linear layers")
    assert "made from" in error.fix


def test_a_refused_site_takes_its_group_with_it() -> None:
    model = models.tiny("t5")
    one = "encoder.block.1.layer.0.SelfAttention"
    found = resolve(model, Attentions(refused=(one,)))
    assert all(site.path.startswith("decoder") for site in found.sites)
    assert len(found.skipped) == 3
    assert "change together" in found.skipped["encoder.block.0.layer.0.SelfAttention"]


def test_a_site_that_an_earlier_step_took_names_that_step() -> None:
    model = models.tiny("bert")
    left = [site for site in candidates(model, Probe.sites) if site.path != INTERMEDIATE[1]]
    taken = {INTERMEDIATE[1]: "step 1 (decomposition.svd)"}
    error = failure(model, Probe(targets=(INTERMEDIATE[1],)), available=left, taken=taken)
    assert error.code == "CK-T010"
    assert "step 1 (decomposition.svd)" in error.why
    gone = failure(model, Probe(), available=[], taken=taken)
    assert "step 1 (decomposition.svd)" in gone.why


def test_sites_that_are_yet_to_be_made_are_not_asked_about() -> None:
    model = models.tiny("bert")
    site = Site("ffn", "encoder.layer.1.intermediate.down", block="encoder.layer.1")
    found = resolve(model, Probe(refused=(site.path,)), available=[site], expected={site.path})
    assert paths(found) == [site.path]


def test_shared_matrices_are_one_site() -> None:
    model = models.tiny("bert")
    surgery.share_module(model, "encoder.layer.1", "encoder.layer.2")
    found = resolve(model, Matrices(targets=("*.output.dense",)))
    names = {site.path: site.members for site in found.sites}
    assert names["encoder.layer.1.output.dense"] == ("encoder.layer.2.output.dense",)
    assert "encoder.layer.2.output.dense" not in names
