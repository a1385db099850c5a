"""The whole way with the project's own layers: save, plain AutoModel here and in a fresh process, train, save again."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers as hf

from compresskit.checkpoint.load import attach, load_model
from compresskit.checkpoint.prove import reload_and_run
from tests import models
from tests.checkpoint.real import compress_all


@pytest.fixture(scope="module")
def model() -> hf.PreTrainedModel:
    made = models.tiny("gpt2", task="lm")
    compress_all(made)
    attach(made)
    return made


@pytest.fixture(scope="module")
def folder(model: hf.PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("real")
    model.save_pretrained(path, max_shard_size="150KB")
    return path


def test_a_fresh_process_computes_the_same_bits(model: hf.PreTrainedModel, folder: Path) -> None:
    batches = [models.inputs("gpt2", padded=True), models.inputs("gpt2", batch=1, length=9)]
    for found, batch in zip(reload_and_run(folder, batches), batches, strict=True):
        assert torch.equal(found["logits"], models.output(model, batch))


def test_here_and_saved_again(model: hf.PreTrainedModel, folder: Path, tmp_path: Path) -> None:
    loaded = hf.AutoModelForCausalLM.from_pretrained(folder)
    batch = models.inputs("gpt2", batch=1, length=9)
    assert torch.equal(models.output(loaded, batch), models.output(model, batch))
    assert loaded.lm_head.codes is loaded.transformer.wte.codes
    assert loaded.dtype == model.dtype
    loaded.save_pretrained(tmp_path, max_shard_size="150KB")
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_kinds_in_the_layout(folder: Path) -> None:
    layout = json.loads((folder / "config.json").read_text())["quantization_config"]["layout"]
    kinds = {operation["kind"] for operation in layout if operation["op"] == "replace"}
    assert kinds == {"quantized_embedding", "quantized_head", "low_rank_linear", "int8_linear"}
    assert {operation["op"] for operation in layout} >= {"replace", "resize", "attrs", "tie", "attention"}


def test_the_base_model_of_it(model: hf.PreTrainedModel, folder: Path) -> None:
    base = hf.AutoModel.from_pretrained(folder)
    batch = models.inputs("gpt2")
    with torch.no_grad():
        assert torch.equal(models.output(base, batch), model.transformer(**batch).last_hidden_state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    whole = models.tiny("gpt2", task="lm")
    compress_all(whole)
    for number, saved in enumerate((copy.deepcopy(whole).to(dtype), whole)):
        attach(saved)
        saved.save_pretrained(tmp_path / str(number))
        loaded = load_model(tmp_path / str(number), dtype=dtype)
        assert loaded.transformer.wte.scale.dtype == torch.float16
        assert loaded.transformer.h[0].mlp.c_proj.up.weight_scale.dtype == torch.float32
        assert loaded.transformer.ln_f.weight.dtype == dtype
        assert models.output(loaded, models.inputs("gpt2")).dtype == dtype


def test_two_steps_of_training(folder: Path, tmp_path: Path) -> None:
    loaded = hf.AutoModelForCausalLM.from_pretrained(folder).train()
    batch = models.inputs("gpt2")
    before = models.output(loaded.eval(), batch)
    optimizer = torch.optim.AdamW([p for p in loaded.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        loaded.train()
        loaded(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    loaded.eval().save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert torch.equal(models.output(again, batch), models.output(loaded, batch))
    assert not torch.equal(models.output(again, batch), before)


def test_generation(model: hf.PreTrainedModel, folder: Path) -> None:
    prompt = {"input_ids": torch.tensor([[7, 8, 9]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    loaded = hf.AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(loaded.generate(**prompt, **options), model.generate(**prompt, **options))
