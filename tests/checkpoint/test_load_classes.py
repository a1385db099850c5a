"""A compressed checkpoint loaded by other classes of the same model: base models, heads, encoders alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf

from compresskit.checkpoint.load import attach, load_model
from tests import models
from tests.checkpoint import edits

FAMILIES = ("bert", "roberta", "distilbert", "albert", "gpt2", "llama", "qwen3", "t5")
PAIRS = [
    (name, task, other)
    for name in FAMILIES
    for task, other in (("base", "classifier"), ("base", "lm"), ("classifier", "base"), ("lm", "classifier"))
]


def base_state(model: hf.PreTrainedModel) -> dict[str, torch.Tensor]:
    prefix = f"{model.base_model_prefix}."
    inside = hasattr(model, model.base_model_prefix)
    return {
        name.removeprefix(prefix): value
        for name, value in model.state_dict().items()
        if not inside or name.startswith(prefix)
    }


@pytest.mark.parametrize(("name", "task", "other"), PAIRS)
def test_other_classes_of_the_same_model(name: str, task: models.Task, other: models.Task, tmp_path: Path) -> None:
    model = models.tiny(name, task=task)
    edits.uneven_heads(model)
    edits.int8_in_low_rank(model)
    edits.window(model)
    attach(model)
    model.save_pretrained(tmp_path / "one")
    loaded = models.model_class(name, other).from_pretrained(tmp_path / "one")

    mine, theirs = base_state(model), base_state(loaded)
    common = [key for key in theirs if key in mine]
    lacking = {key.split(".")[0] for key in theirs if key not in mine}
    assert lacking <= {"pooler", "lm_head", "predictions"}
    assert len(common) > 20
    assert all(torch.equal(mine[key], theirs[key]) for key in common)
    windows = [module.compresskit_attention for module in loaded.modules() if hasattr(module, "compresskit_attention")]
    assert windows == [m.compresskit_attention for m in model.modules() if hasattr(m, "compresskit_attention")]

    loaded.save_pretrained(tmp_path / "two")
    again = load_model(tmp_path / "two")
    batch = models.inputs(name)
    assert torch.equal(models.output(again, batch), models.output(loaded, batch))


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_ties_in_other_classes(name: str, tmp_path: Path) -> None:
    model = models.tiny(name, task="lm")
    edits.shared_layers(model)
    edits.tables(model)
    attach(model)
    model.save_pretrained(tmp_path)
    base = hf.AutoModel.from_pretrained(tmp_path)
    inside = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    names = {name for name, _ in base.named_parameters(remove_duplicate=False)}
    expected = {frozenset(name.removeprefix(inside) for name in group) & names for group in models.tied(model)}
    assert models.tied(base) == {group for group in expected if len(group) > 1}
    mine, theirs = base_state(model), base.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs if "pooler" not in key)


@pytest.mark.parametrize("task", ["base", "lm", "classifier"])
def test_t5_gives_its_encoder(task: models.Task, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = models.tiny("t5", task=task)
    edits.uneven_heads(model)
    edits.int8(model)
    edits.tables(model)
    attach(model)
    model.save_pretrained(tmp_path)
    caplog.clear()
    encoder = hf.T5EncoderModel.from_pretrained(tmp_path)
    assert "no decoder" in caplog.text
    whole = getattr(model, "transformer", model)
    batch = models.inputs("t5encoder", padded=True)
    with torch.no_grad():
        expected = whole.encoder(**batch).last_hidden_state
    assert torch.equal(models.output(encoder, batch), expected)


def test_an_encoder_goes_into_the_whole_t5(tmp_path: Path) -> None:
    model = models.tiny("t5encoder")
    edits.uneven_widths(model)
    edits.low_rank(model)
    attach(model)
    model.save_pretrained(tmp_path)
    whole = hf.T5Model.from_pretrained(tmp_path)
    batch = models.inputs("t5encoder")
    with torch.no_grad():
        assert torch.equal(whole.encoder(**batch).last_hidden_state, models.output(model, batch))


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
def test_a_head_takes_the_values_of_a_compressed_table(name: str, tmp_path: Path) -> None:
    model = models.tiny(name)
    edits.tables(model)
    attach(model)
    model.save_pretrained(tmp_path / "base")
    with_head = models.model_class(name, "lm").from_pretrained(tmp_path / "base")
    head, table = with_head.get_output_embeddings(), with_head.get_input_embeddings()
    assert torch.equal(head.weight, table.weight)
    head.weight.data.add_(1)
    with_head.save_pretrained(tmp_path / "lm")
    assert torch.equal(load_model(tmp_path / "lm").get_output_embeddings().weight, head.weight)
