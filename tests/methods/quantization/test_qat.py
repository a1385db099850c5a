from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from compresskit.calibrate.batches import tokenize
from compresskit.calibrate.text import builtin_texts
from compresskit.checkpoint.source import open_source
from compresskit.core.compressor import Compressor
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.core.weights import view
from compresskit.methods.quantization.qat import Qat
from compresskit.methods.quantization.rtn import Rtn
from compresskit.nn.int8 import Int8Linear
from compresskit.nn.packed import PackedLinear
from compresskit.pipeline.ledger import size_of
from compresskit.tasks.fidelity import Reference
from tests import models
from tests.test_recurrent_models import build

TEXTS = ["the cat sat on the mat", "a big dog runs fast", "good film we like", "the book is not bad"] * 4
SHORT: dict[str, Any] = {"steps": 2, "batch": 4, "max_length": 12}


def applied(method: Compressor, original: PreTrainedModel, **more: Any) -> tuple[PreTrainedModel, Context]:
    """A copy of ``original`` after ``method``, and the context that tells of it."""
    model = copy.deepcopy(original)
    context = Context(tokenizer=models.tokenizer(), texts=TEXTS, **more)
    method.apply(model, resolve(model, method).sites, context)
    return model, context


@pytest.mark.parametrize(
    "options",
    [{"bits": 3, "group": 16}, {"bits": 4, "per": "channel", "symmetric": True}, {"bits": 8, "inputs": "token"}],
    ids=str,
)
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_sizes_are_predicted_and_layers_those_of_the_other_methods(name: str, options: dict[str, Any]) -> None:
    original = models.tiny(name, task="lm" if name == "gpt2" else "base")
    method = Qat(**SHORT, **options)
    sites = resolve(original, method).sites
    model, context = applied(method, original)
    kind = Int8Linear if "inputs" in options else PackedLinear
    assert {type(model.get_submodule(site.path)) for site in sites} == {kind}
    assert size_of(original).bytes - size_of(model).bytes == method.predicted_saving(original, sites)
    assert size_of(model).parameters == size_of(original).parameters
    assert not model.training
    assert context.details["training"]["steps"] == 2
    for site in sites:
        assert context.details[site.path]["relative_error"] > 0
        assert view(original, site.path).weight.dtype == torch.float32


@pytest.mark.parametrize("bits", [3, 4])
def test_it_beats_rounding_on_a_trained_model(bits: int, shared_data: Path) -> None:
    """A trained Llama of 260,000 weights, 40 steps on built-in texts, judged on held-out ones of other documents."""
    source = open_source(shared_data / "models" / "stories260K" / "hf")
    original, tokenizer = source.load_model(), source.load_tokenizer()
    held_out = tokenize(builtin_texts(24, 1, split="heldout"), tokenizer, original, 48)
    reference = Reference.of(original, {"text": held_out})
    found = {}
    for method in (Rtn(bits=bits), Qat(bits=bits, steps=40, batch=8, max_length=48, lr=3e-4)):
        model = copy.deepcopy(original)
        context = Context(tokenizer=tokenizer, texts=builtin_texts(320, 0))
        method.apply(model, resolve(model, method).sites, context)
        found[method.name] = reference.compare(model)["kl_mean"]
    assert found["qat"] < 0.6 * found["rtn"]


@pytest.mark.parametrize("towards", ["before", "source"])
def test_who_teaches(towards: str) -> None:
    """The model as it is, or the run's teacher: another model here, so that the two end apart."""
    original, other = models.tiny("gpt2", task="lm"), models.tiny("gpt2", seed=5, task="lm")
    method = Qat(**{**SHORT, "steps": 6}, lr=5e-3, bits=4, group=16, towards=towards)
    asked: list[int] = []

    def teacher() -> PreTrainedModel:
        asked.append(1)
        return copy.deepcopy(other).eval()

    model, _ = applied(method, original, teacher=teacher)
    assert bool(asked) is (towards == "source")
    assert ("teacher" in method.requirements()) is (towards == "source")
    assert bool(model.transformer.ln_f.weight.isfinite().all())


def test_gates_of_an_lstm() -> None:
    original = build("lstm", vocab_size=models.VOCABULARY, hidden=16, word_size=32)
    model, context = applied(Qat(**SHORT, bits=4, group=16), original)
    assert {type(layer) for layer in model.rnn.matrices} == {PackedLinear}
    assert context.details["training"]["trained_parameters"] > 0


def test_a_shared_matrix_stays_shared_and_a_tied_bias_the_very_one() -> None:
    model, _ = applied(Qat(**SHORT, bits=4, group=16), models.tiny("albert"))
    assert size_of(model).parameters == size_of(models.tiny("albert")).parameters


def test_equal_seeds_give_equal_weights() -> None:
    method = Qat(**SHORT, bits=4, group=16)
    first, second = (applied(method, models.tiny("bert"))[0] for _ in range(2))
    batch = models.inputs("bert")
    assert torch.equal(models.output(first, batch), models.output(second, batch))


def test_sixteen_bits_ask_for_nothing() -> None:
    method, model = Qat(bits=16), models.tiny("bert")
    assert method.nothing_asked()
    assert method.requirements() == frozenset()
    assert method.predicted_saving(model, resolve(model, method).sites) == 0


@pytest.mark.parametrize("options", [{"bits": 4, "inputs": "token"}, {"bits": 9}, {"scales": "none"}, {"lr": 0}])
def test_wrong_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Qat.model_validate(options)
