"""Every registered method on trained weights: half of MiniLM, and a Llama where it lies beside the project."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compresskit import registry
from compresskit.calibrate.batches import tokenize
from compresskit.calibrate.text import builtin_texts
from compresskit.checkpoint.load import load_model
from compresskit.checkpoint.save import save_checkpoint
from compresskit.checkpoint.source import Source, open_source
from compresskit.core import anatomy, surgery
from compresskit.core.context import Context
from compresskit.pipeline import checks
from compresskit.pipeline.ledger import fingerprint, size_of
from tests import models
from tests.contract.conformance import ACTIVE, apply_method, need_package, training_data

pytestmark = pytest.mark.timeout(600)
MODELS = ("minilm", "stories260K")
SMALLER: dict[str, dict[str, Any]] = {
    "attention.window": {"window": 16},
    "quantization.codebook": {"bits": 4, "steps": 2},
    "quantization.residual": {"bits": 3, "rank": 4, "targets": ("*layer*.0",)},
}
"""Options where a tiny model's would be out of scale, or take long."""


WITH_A_CACHE = {"quantization.kv_cache"}
"""Methods that show only while a text is written, token by token."""


def _source(name: str, request: pytest.FixtureRequest) -> Source:
    if name == "minilm":
        return open_source(request.getfixturevalue("minilm_path"))
    return open_source(request.getfixturevalue("shared_data") / "models" / "stories260K" / "hf")


def _context(original: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, work: Path, warnings: list[str]) -> Context:
    texts = builtin_texts(16, 0)
    return Context(
        calibration=tokenize(texts, tokenizer, original, max_length=48, batch_size=8),
        texts=texts,
        tokenizer=tokenizer,
        teacher=lambda: copy.deepcopy(original).eval(),
        data=training_data(texts[:4], work),
        work=work,
        warn=warnings.append,
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", sorted(registry.methods()))
def test_applied_or_refused(method: str, name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    need_package(method)
    source = _source(name, request)
    original, tokenizer = source.load_model(), source.load_tokenizer()
    assert tokenizer is not None
    if name == "minilm":
        # Three of its six blocks: sharing.layers needs three, and time goes with them.
        surgery.keep_blocks(original, anatomy.of(original).stacks[0], [0, 2, 5])
        surgery.sync_config(original)
    before, size = fingerprint(original), size_of(original)
    chosen = registry.method(method).model_validate(SMALLER.get(method, ACTIVE[method]))
    warnings: list[str] = []
    outcome = apply_method(
        chosen, copy.deepcopy(original), original, name, tmp_path, _context(original, tokenizer, tmp_path, warnings)
    )
    if outcome.refused is not None:
        assert len(outcome.refused.split()) >= 5, "a refusal is a sentence"
        assert fingerprint(outcome.model) == before, "a refused model is untouched"
        return
    model = outcome.model
    held_out = builtin_texts(6, 1, split="heldout")
    (batch,) = tokenize(held_out, tokenizer, model, max_length=48, batch_size=6)
    assert checks.changed(before, fingerprint(model)), "it did nothing"
    if method not in WITH_A_CACHE:
        assert models.max_difference(model, original, batch) > 1e-6, "its outputs are those of the source"
    checks.refuse_non_finite(model, [models.output(model, batch)], method)
    checks.check_padding(model, batch, method)
    checks.check_cache(model, batch, method)
    if "file" in registry.method(method).shrinks:
        assert size_of(model).bytes < size.bytes
    saved = save_checkpoint(model, tmp_path / "out", source=source, extra_files={}, overwrite=False)
    assert torch.equal(models.output(load_model(saved.path), batch), models.output(model, batch))
