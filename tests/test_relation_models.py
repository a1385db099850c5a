"""PCNN, BiLSTM and entity starts: saved and loaded, blind to padding, right in their pieces; attention over bags."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from compresskit.checkpoint.classes import model_class
from compresskit.checkpoint.load import load_model
from compresskit.checkpoint.save import save_checkpoint
from compresskit.checkpoint.source import open_source
from compresskit.models.bags import SelectiveAttention
from compresskit.models.relation import (
    MODELS,
    BiLSTMForRelationExtraction,
    EntityStartForRelationExtraction,
    PCNNForRelationExtraction,
    pieces,
)
from compresskit.models.settings import BiLSTMConfig, EntityStartConfig, PCNNConfig
from tests import models

KINDS = ("pcnn", "bilstm", "bert", "distilbert")


def build(kind: str, seed: int = 0, **settings: object) -> PreTrainedModel:
    torch.manual_seed(seed)
    if kind == "pcnn":
        return PCNNForRelationExtraction(PCNNConfig(vocab_size=50, filters=8, num_labels=4, **settings)).eval()
    if kind == "bilstm":
        return BiLSTMForRelationExtraction(
            BiLSTMConfig(vocab_size=50, word_size=12, hidden=8, num_labels=4, **settings)
        ).eval()
    encoder = models.config(kind).to_dict()
    return EntityStartForRelationExtraction(EntityStartConfig(encoder=encoder, num_labels=4, **settings)).eval()


def batch(rows: int = 3, length: int = 11, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 50, (rows, length), generator=torch.Generator().manual_seed(seed))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "head": torch.tensor([[1, 2], [6, 8], [0, 1]])[:rows],
        "tail": torch.tensor([[4, 6], [2, 3], [9, 10]])[:rows],
    }


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_by_everyone(kind: str, attention: bool, tmp_path: Path) -> None:
    model, inputs = build(kind, attention=attention), batch()
    with torch.no_grad():
        expected = model(**inputs).logits
    model.save_pretrained(tmp_path / "plain")
    source = open_source(tmp_path / "plain")
    saved = save_checkpoint(source.load_model(), tmp_path / "ours", source=source).path
    for again in (
        load_model(tmp_path / "plain"),
        source.load_model(),
        load_model(saved),
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval(),
    ):
        assert type(again) is type(model)
        assert again.config.attention is attention
        with torch.no_grad():
            assert torch.equal(again(**inputs).logits, expected)


def test_the_lookup_knows_transformers_and_ours_and_nothing_else() -> None:
    assert all(model_class(cls.__name__) is cls for cls in MODELS)
    assert model_class("BertModel").__name__ == "BertModel"
    assert model_class("NothingForRelationExtraction") is None


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str) -> None:
    model, inputs = build(kind), batch()
    padded = {
        name: torch.nn.functional.pad(inputs[name], (0, 5)) if name in ("input_ids", "attention_mask") else inputs[name]
        for name in inputs
    }
    with torch.no_grad():
        assert torch.allclose(model(**padded).logits, model(**inputs).logits, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_entities_matter_and_gradients_reach_every_weight(kind: str) -> None:
    model, inputs = build(kind), batch()
    swapped = {**inputs, "head": inputs["tail"], "tail": inputs["head"]}
    assert not torch.allclose(model(**inputs).logits, model(**swapped).logits, atol=1e-4)
    model(**inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert [name for name in without if "pooler" not in name] == []


def test_pieces_by_hand() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0]])
    found = pieces(mask, torch.tensor([[3, 4]]), torch.tensor([[0, 2]]))
    assert found[0].int().tolist() == [[1, 1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1, 0]]


def test_piecewise_pooling_against_a_loop() -> None:
    model, inputs = build("pcnn"), batch(2)
    with torch.no_grad():
        found = model.vectors(**inputs).view(2, 3, 8)
        words = model.words(inputs["input_ids"], inputs["head"], inputs["tail"])
        filtered = model.convolution(words.transpose(1, 2))
    for row, (first, second) in enumerate([(2, 6), (3, 8)]):
        for part, (start, end) in enumerate([(0, first), (first, second), (second, 11)]):
            assert torch.allclose(found[row, part], filtered[row, :, start:end].amax(-1).relu(), atol=1e-6)


def test_an_empty_piece_is_zero() -> None:
    inputs = {**batch(1), "head": torch.tensor([[9, 11]]), "tail": torch.tensor([[9, 11]])}
    vectors = build("pcnn").vectors(**inputs).view(3, 8)
    assert torch.equal(vectors[1:], torch.zeros(2, 8))


def test_word_attention_against_a_loop() -> None:
    model, inputs = build("bilstm"), batch(2)
    with torch.no_grad():
        found = model.vectors(**inputs)
        words = model.words(inputs["input_ids"], inputs["head"], inputs["tail"])
        for row in range(2):
            states = model.lstm(words[row : row + 1])[0][0]
            both = states[:, :8] + states[:, 8:]
            weights = torch.stack([model.query(state.tanh()) for state in both]).softmax(0)
            assert torch.allclose(found[row], (weights * both).sum(0).tanh(), atol=1e-5)


def test_only_the_last_layers_are_trained_if_asked_also_after_loading(tmp_path: Path) -> None:
    model = build("bert", trainable_layers=1)
    assert isinstance(model, EntityStartForRelationExtraction)
    model.save_pretrained(tmp_path)
    for each in (model, EntityStartForRelationExtraction.from_pretrained(tmp_path), load_model(tmp_path)):
        trained = {name for name, parameter in each.named_parameters() if parameter.requires_grad}
        assert {name.split(".")[3] for name in trained if "encoder.encoder.layer" in name} == {"2"}
        assert "classifier.weight" in trained
        assert not any("embeddings" in name for name in trained)


def test_attention_over_a_bag_by_hand() -> None:
    layer = SelectiveAttention(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2))
        layer.bias.zero_()
    vectors = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]])
    bags = torch.tensor([0, 0, 1])
    e = torch.e
    trained = layer(vectors, bags, torch.tensor([0, 1]))
    w = e**2 / (e**2 + 1)
    assert torch.allclose(trained, torch.tensor([[2 * w, 1 - w], [3.0, 3.0]]), atol=1e-6)
    free = layer(vectors, bags)
    v = e / (e + 1)
    assert torch.allclose(free, torch.tensor([[2 * w, v], [3.0, 3.0]]), atol=1e-6)


def test_bags_of_one_need_no_attention() -> None:
    model, inputs = build("pcnn", attention=True), batch()
    flat = model(**inputs, bags=torch.arange(3)).logits
    vectors = model.vectors(**inputs)
    expected = vectors @ model.classifier.weight.T + model.classifier.bias
    assert torch.allclose(flat, expected, atol=1e-5)
    assert model(**inputs, bags=torch.tensor([0, 0, 1])).logits.shape == (2, 4)
