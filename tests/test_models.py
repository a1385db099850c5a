"""The tiny models must be worth testing with: outputs that react, ids that fit, generation without a warning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf

from tests import models


@pytest.mark.parametrize("name", models.FAMILIES)
def test_seed_decides_the_weights(name: str) -> None:
    batch = models.inputs(name)
    first, again, other = (models.tiny(name, seed=seed) for seed in (0, 0, 1))
    assert models.max_difference(first, again, batch) == 0
    assert models.max_difference(first, other, batch) > 0.1
    assert not first.training


@pytest.mark.parametrize("name", models.FAMILIES)
def test_every_task_runs_and_padding_is_masked(name: str) -> None:
    batch = models.inputs(name, batch=3, length=9, padded=True)
    lengths = batch["attention_mask"].sum(1).tolist()
    assert lengths[0] > lengths[1] > lengths[2]
    for task in models.tasks(name):
        model = models.tiny(name, task=task)
        result = models.output(model, batch)
        assert torch.isfinite(result).all()
        if task == "base" and name != "t5":
            short = {key: value[1:2, : lengths[1]] for key, value in batch.items()}
            torch.testing.assert_close(models.output(model, short)[0], result[1, : lengths[1]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [*models.DECODERS, "t5"])
def test_generation(name: str) -> None:
    model = models.tiny(name, task="lm")
    batch = {key: value for key, value in models.inputs(name, batch=2).items() if key != "decoder_input_ids"}
    cached, plain = (model.generate(**batch, max_new_tokens=6, do_sample=False, use_cache=use) for use in (True, False))
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("name", ["bert", "llama", "t5encoder"])
def test_checkpoint_and_tokenizer_round_trip(name: str, tmp_path: Path) -> None:
    model = models.tiny(name)
    folder = models.write_checkpoint(model, tmp_path / "source")
    loaded = models.model_class(name).from_pretrained(folder)
    assert models.max_difference(model, loaded, models.inputs(name)) == 0
    tokens = hf.AutoTokenizer.from_pretrained(folder)
    encoded = tokens(["The cat sat on the mat.", "unheard words"], padding=True, return_tensors="pt")
    assert encoded["input_ids"].max() < models.VOCABULARY
    assert (encoded["input_ids"] != models.UNKNOWN).all()
    assert tokens.pad_token_id == models.PAD
    assert torch.isfinite(models.output(loaded, dict(encoded))).all()
