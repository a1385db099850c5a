"""Every registered method on every architecture: applied and true to the contract, or refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from compresskit import registry
from compresskit.checkpoint.load import load_model
from compresskit.checkpoint.save import save_checkpoint
from compresskit.core.compressor import Gain, Need
from compresskit.core.sites import KINDS
from compresskit.pipeline import checks
from compresskit.pipeline.ledger import fingerprint, size_of
from tests import models
from tests.contract import conformance
from tests.contract.conformance import ACTIVE, ARCHITECTURES, MORE, NOTHING, ON_MORE

METHODS = sorted(registry.methods())
PAIRS = [(method, name) for method in METHODS for name in ARCHITECTURES]
PAIRS += [(method, name) for method in ON_MORE for name in MORE]


def test_every_method_is_in_the_suite() -> None:
    assert sorted(ACTIVE) == METHODS
    assert sorted(NOTHING) == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_facts_of_the_class(method: str) -> None:
    cls = registry.method(method)
    assert cls.full_name() == method
    assert cls.sites
    assert cls.sites <= KINDS
    assert cls.needs <= set(get_args(Need))
    assert cls.shrinks <= set(get_args(Gain))
    assert cls.paper, "a method names its source"
    assert cls.__doc__
    for name, field in cls.model_fields.items():
        assert field.description, f"option {name} has no description"
    assert cls() == cls(), "all options have defaults, and the constructor does nothing"


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_applied_or_refused(method: str, name: str, tmp_path: Path) -> None:
    conformance.need_package(method)
    original = conformance.model_of(name)
    before, size, hooks = fingerprint(original), size_of(original), checks.hooks(original)
    outcome = conformance.run(method, ACTIVE[method], name, tmp_path)
    if outcome.refused is not None:
        assert len(outcome.refused.split()) >= 5, "a refusal is a sentence"
        assert fingerprint(outcome.model) == before, "a refused model is untouched"
        return
    model, cls = outcome.model, registry.method(method)
    batch = models.inputs(name, batch=3, length=12, padded=True, seed=9)
    assert checks.changed(before, fingerprint(model)), "it did nothing"
    checks.refuse_new_hooks(model, hooks, method)
    checks.refuse_non_finite(model, [models.output(model, batch)], method)
    checks.check_padding(model, batch, method)
    checks.check_cache(model, batch, method)
    if "file" in cls.shrinks:
        assert size_of(model).bytes < size.bytes
    else:
        # Only as much larger as the plan says.
        sites = outcome.sites.sites if outcome.sites is not None else ()
        predicted = cls.model_validate(ACTIVE[method]).predicted_saving(original, sites)
        assert size_of(model).bytes <= size.bytes - min(0, predicted or 0)
    assert not model.training
    live = models.output(model, batch)
    saved = save_checkpoint(model, tmp_path / "out", source=None, extra_files={}, overwrite=False)
    weights = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert weights <= size_of(model).bytes + 64_000, "the file holds what the ledger says, and a header"
    again = load_model(saved.path)
    assert torch.equal(models.output(again, batch), live), "reload is bit-equal"
    assert size_of(again) == size_of(model)


@pytest.mark.parametrize(("method", "name"), [(method, name) for method, name in PAIRS if NOTHING[method] is not None])
def test_nothing_asked_nothing_changed(method: str, name: str, tmp_path: Path) -> None:
    options = NOTHING[method]
    assert options is not None
    outcome = conformance.run(method, options, name, tmp_path)
    if outcome.refused is not None:
        return
    said = registry.method(method).model_validate(options).nothing_asked()
    unbounded = method == "attention.window" and name in ("t5", "t5encoder")  # no window holds every input of T5
    assert said or outcome.warnings or unbounded, "it says that it asks for nothing"
    batch = models.inputs(name, batch=3, length=12, padded=True, seed=9)
    assert models.max_difference(outcome.model, conformance.model_of(name), batch) <= 1e-5


# Methods on output distributions, or on the cache of a decoder, which a base encoder hasn't.
ON_LANGUAGE = {"quantization.kv_cache"} | {
    f"distillation.{name}"
    for name in ("logits", "reverse_kl", "skew_kl", "gkd", "sequence", "uld", "multi_teacher", "assistant", "midtd")
}


@pytest.mark.parametrize("method", METHODS)
def test_equal_seeds_give_equal_models(method: str, tmp_path: Path) -> None:
    conformance.need_package(method)
    others = {"quantization.rotation": "llama", "pruning.experts": "mixtral"}
    name = "gpt2" if method in ON_LANGUAGE else others.get(method, "bert")
    first = conformance.run(method, ACTIVE[method], name, tmp_path / "first")
    second = conformance.run(method, ACTIVE[method], name, tmp_path / "second")
    assert first.refused is None
    assert fingerprint(first.model) == fingerprint(second.model)
