"""nf4, binary, ternary and codebook on tiny models: sizes as predicted, and what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from compresskit.calibrate.batches import tokenize
from compresskit.calibrate.text import builtin_texts
from compresskit.checkpoint.source import open_source
from compresskit.core.compressor import Compressor
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.core.weights import view
from compresskit.errors import RecipeError
from compresskit.methods.quantization._few import FewLevels
from compresskit.methods.quantization.binary import Binary
from compresskit.methods.quantization.codebook import Codebook
from compresskit.methods.quantization.nf4 import Nf4
from compresskit.methods.quantization.ternary import Ternary
from compresskit.nn.lookup import LookupLinear
from compresskit.nn.product import ProductEmbedding
from compresskit.pipeline.ledger import size_of
from compresskit.tasks.fidelity import Reference
from compresskit.train.loop import RecoveryOptions
from compresskit.train.objective import towards_output
from compresskit.train.recovery import recover
from tests import models

TEXTS = ["the cat sat on the mat", "a big dog runs fast", "good film we like", "the book is not bad"] * 4

METHODS: list[Compressor] = [
    Nf4(),
    Nf4(group=16, double=False),
    Binary(),
    Binary(group=16),
    Ternary(),
    Codebook(bits=3, slices=2),
]


def quantized(model: Any, method: Compressor) -> tuple[Any, Context]:
    """A quantized copy of ``model`` and the context that tells of it."""
    result, context = copy.deepcopy(model), Context()
    method.apply(result, resolve(result, method).sites, context)
    return result, context


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_sizes_are_predicted_and_told(name: str, method: Compressor) -> None:
    original = models.tiny(name)
    sites = resolve(original, method).sites
    model, context = quantized(original, method)
    assert size_of(original).bytes - size_of(model).bytes == method.predicted_saving(original, sites)
    assert size_of(model).parameters == size_of(original).parameters
    for site in sites:
        layer, weight = model.get_submodule(site.path), view(original, site.path).weight
        assert isinstance(layer, ProductEmbedding if site.kind == "embedding" else LookupLinear)
        bias = getattr(layer, "bias", None)
        stored = layer.stored_bytes() - (0 if bias is None else 4 * bias.numel())
        assert context.details[site.path]["bits_per_weight"] == pytest.approx(8 * stored / weight.numel(), abs=1e-4)


@pytest.mark.parametrize(
    ("method", "levels", "limit"), [(Binary(), 2, 0.7), (Ternary(), 3, 0.6), (Codebook(), 16, 0.15)], ids=repr
)
def test_only_so_many_levels(method: Compressor, levels: int, limit: float) -> None:
    original = models.tiny("bert")
    path = "encoder.layer.0.attention.self.query"
    model, context = quantized(original, method)
    weight = model.get_submodule(path).weight + 0
    assert max(len(row.unique()) for row in weight) <= levels
    assert context.details[path]["relative_error"] < limit


def test_scales_in_eight_bits_cost_little() -> None:
    original = models.tiny("bert")
    errors = [
        sum(detail["relative_error"] for detail in quantized(original, Nf4(double=double))[1].details.values())
        for double in (True, False)
    ]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


def test_tables_in_product_codes() -> None:
    original = models.tiny("bert")
    model, context = quantized(original, Codebook(width=2))
    assert isinstance(model.get_submodule("embeddings.word_embeddings"), ProductEmbedding)
    assert context.details["embeddings.word_embeddings"]["relative_error"] < 0.2
    coarse = quantized(original, Codebook(width=8))[1].details["embeddings.word_embeddings"]["relative_error"]
    assert coarse > context.details["embeddings.word_embeddings"]["relative_error"]


def test_what_cannot_be_coded_is_refused_with_a_reason() -> None:
    tied = models.tiny("gpt2", task="lm")
    with pytest.raises(RecipeError) as caught:
        resolve(tied, Codebook(targets=("transformer.wte",)))
    assert "tied to lm_head" in caught.value.why
    plain = models.tiny("bert")
    sites = resolve(plain, Nf4()).sites
    assert all("don't divide" in reason for reason in Nf4(group=48).refuse(plain, sites).values())
    word = [site for site in resolve(plain, Codebook()).sites if site.path == "embeddings.word_embeddings"]
    assert "parts of 5" in Codebook(width=5).refuse(plain, word)[word[0]]
    assert "slices" in Codebook(slices=5).refuse(plain, sites)[sites[0]]
    table = plain.get_submodule("embeddings.word_embeddings")
    assert isinstance(table, nn.Embedding)
    table.max_norm = 1.0
    assert "rescales" in Codebook().refuse(plain, word)[word[0]]


def test_equal_seeds_give_equal_codebooks() -> None:
    original = models.tiny("bert")
    first, second = (quantized(original, Codebook())[0] for _ in range(2))
    table = "embeddings.word_embeddings"
    assert torch.equal(first.get_submodule(table).weight, second.get_submodule(table).weight)


TRAINED: list[Compressor] = [
    Binary(train=2, batch=4, max_length=12, group=16),
    Binary(train=2, batch=4, max_length=12, scales="learned"),
    Ternary(train=2, batch=4, max_length=12),
    Ternary(train=2, batch=4, max_length=12, scales="learned"),
    Ternary(train=2, batch=4, max_length=12, scales="loss", group=16),
]


@pytest.mark.parametrize("method", TRAINED, ids=repr)
@pytest.mark.parametrize("name", ["bert", "gpt2", "albert"])
def test_training_through_the_levels(name: str, method: FewLevels) -> None:
    """Sizes as predicted, in the layers of the method without training; only tables are left as they are."""
    original = models.tiny(name, task="lm" if name == "gpt2" else "base")
    sites = resolve(original, method).sites
    model, context = copy.deepcopy(original), Context(tokenizer=models.tokenizer(), texts=TEXTS)
    method.apply(model, sites, context)
    assert method.requirements() == {"training"}
    assert size_of(original).bytes - size_of(model).bytes == method.predicted_saving(original, sites)
    assert size_of(model).parameters == size_of(original).parameters
    assert {type(model.get_submodule(site.path)) for site in sites} == {LookupLinear}
    assert context.details["training"]["steps"] == 2
    assert all(context.details[site.path]["relative_error"] > 0 for site in sites)
    assert not model.training


@pytest.mark.parametrize("scales", ["mean", "learned", "loss"])
@pytest.mark.parametrize("kind", [Binary, Ternary])
def test_training_wins_most_of_it_back(kind: type[FewLevels], scales: str, shared_data: Path) -> None:
    """A trained Llama of 260,000 weights, judged on texts that neither saw."""
    source = open_source(shared_data / "models" / "stories260K" / "hf")
    original, tokenizer = source.load_model(), source.load_tokenizer()
    held_out = tokenize(builtin_texts(24, 1, split="heldout"), tokenizer, original, 48)
    reference = Reference.of(original, {"text": held_out})
    found = []
    for method in (kind(), kind(train=40, batch=8, max_length=48, lr=2e-3, scales=scales)):
        model = copy.deepcopy(original)
        context = Context(tokenizer=tokenizer, texts=builtin_texts(320, 0))
        method.apply(model, resolve(model, method).sites, context)
        found.append(reference.compare(model)["kl_mean"])
    assert found[1] < 0.7 * found[0]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Binary, {"scales": "loss"}),
        (Ternary, {"scales": "learned"}),
        (Ternary, {"train": 1, "scales": "learned", "group": 16}),
    ],
)
def test_scales_that_no_step_finds(kind: type[FewLevels], options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"train|group"):
        kind.model_validate(options)


@pytest.mark.parametrize(
    "options",
    [{"width": 2}, {"bits": 3, "targets": ("*query", "*key")}, {"targets": ("*",), "ignore": ("pooler.*",)}],
    ids=str,
)
def test_codebooks_trained_together(options: dict[str, Any]) -> None:
    """Codes stay, codebooks move; nothing else does, and what could be trained before still can."""
    original = models.tiny("bert")
    texts = {"tokenizer": models.tokenizer(), "texts": TEXTS}
    still, moved = copy.deepcopy(original), copy.deepcopy(original)
    method = Codebook.model_validate(options)
    method.apply(still, resolve(still, method).sites, Context(**texts))
    trained = Codebook.model_validate({**options, "train": 12, "batch": 4, "max_length": 12, "lr": 1e-2})
    context = Context(**texts)
    sites = resolve(moved, trained).sites
    trained.apply(moved, sites, context)
    assert trained.requirements() == {"training"}
    assert context.details["training"]["last_loss"] < context.details["training"]["first_loss"]
    changed = {name for name, tensor in moved.state_dict().items() if not torch.equal(tensor, still.state_dict()[name])}
    assert changed == {f"{site.path}.{'books' if site.kind == 'embedding' else 'levels'}" for site in sites}
    flags = [{name for name, each in model.named_parameters() if each.requires_grad} for model in (still, moved)]
    assert flags[0] == flags[1]
    assert size_of(moved).bytes == size_of(still).bytes
    for site in sites:
        assert context.details[site.path]["relative_error"] > 0


def test_training_that_is_stopped_goes_on_and_ends_bit_equal(tmp_path: Path) -> None:
    """What the layers have felt of the loss is a part of what is saved."""
    method = Ternary(train=6, scales="loss")
    options = RecoveryOptions(steps=6, lr=2e-3, batch=4, max_length=12, save_every=2)

    class Stopped(Exception):
        pass

    def stop(share: float, _: str) -> None:
        if share > 0.2 + 0.8 * 4.5 / 6:
            raise Stopped

    def begun() -> Any:
        model = models.tiny("bert")
        method._begin(model, resolve(model, method).sites)
        return model

    results = []
    for folder, stops in ((tmp_path / "whole", False), (tmp_path / "parts", True)):
        model, teacher = begun(), models.tiny("bert")
        context = Context(tokenizer=models.tokenizer(), work=folder)
        if stops:
            with pytest.raises(Stopped):
                recover(
                    model, replace(context, progress=stop), towards_output(model, 1.0), TEXTS, options, teacher=teacher
                )
            model = begun()
        recover(model, context, towards_output(model, 1.0), TEXTS, options, teacher=teacher)
        results.append(model.state_dict())
    assert any(bool(tensor.any()) for name, tensor in results[0].items() if name.endswith(".felt"))
    assert all(torch.equal(tensor, results[1][name]) for name, tensor in results[0].items())
