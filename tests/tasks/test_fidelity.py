from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from compresskit.calibrate.batches import random_batches
from compresskit.calibrate.outputs import output_kind, outputs_of
from compresskit.errors import DataError, InternalError
from compresskit.tasks.fidelity import Reference, compare, divergence, outputs
from tests import models


def damaged(model: torch.nn.Module, amount: float = 0.05) -> torch.nn.Module:
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return other


def batches_for(model: torch.nn.Module) -> list[dict[str, Tensor]]:
    batches = random_batches(model, samples=6, max_length=10, batch_size=3)
    if type(model).__name__ == "T5ForSequenceClassification":
        batches = [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in batches]
    return batches


def test_a_model_agrees_with_itself_and_a_damaged_one_less(family: str) -> None:
    for task in models.tasks(family):
        model = models.tiny(family, task=task)
        batches = batches_for(model)
        kind = output_kind(model)
        reference = outputs(model, batches)
        same = compare(reference, model, batches, kind)
        worse = compare(reference, damaged(model), batches, kind)
        if kind == "embedding":
            assert same["cosine_mean"] == pytest.approx(1, abs=1e-9)
            assert worse["cosine_min"] < worse["cosine_mean"] < 0.9999
        else:
            assert same["kl_mean"] == 0
            assert same["top1_agreement"] == 1
            assert worse["kl_mean"] > 1e-4


def test_rows_are_counted_without_padding() -> None:
    for name, task in (("gpt2", "lm"), ("t5", "lm"), ("bert", "lm")):
        model = models.tiny(name, task=task)
        batches = batches_for(model)
        mask = "decoder_attention_mask" if name == "t5" else "attention_mask"
        count = sum(int(batch[mask].sum()) for batch in batches)
        assert compare(outputs(model, batches), model, batches, "language")["count"] == count


def test_values_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.25, 0.75], [0.9, 0.1]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    torch.testing.assert_close(divergence(p.log(), q.log()), torch.tensor([expected, 0.0]).double(), atol=1e-7, rtol=0)
    result = compare([p.log()], [q.log()], [], "classification")
    assert result["kl_mean"] == pytest.approx(expected / 2, abs=1e-7)
    assert result["top1_agreement"] == 0.5
    cosines = compare([torch.eye(2)], [torch.tensor([[2.0, 0.0], [1.0, 1.0]])], [], "embedding")
    assert cosines["cosine_mean"] == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert cosines["cosine_min"] == pytest.approx(math.sqrt(0.5))


def test_a_single_output_is_not_a_distribution() -> None:
    model = models.tiny("bert", task="classifier")
    model.classifier = torch.nn.Linear(64, 1)
    model.config.num_labels = 1
    other = copy.deepcopy(model)
    other.classifier.bias.data += 3
    batches = batches_for(model)
    result = Reference.of(model, {"text": batches}).compare(other)
    assert result["kl_mean"] > 0.1


def test_positions_are_thinned_alike_for_both() -> None:
    model = models.tiny("gpt2", task="lm")
    batches = random_batches(model, samples=20, max_length=20, batch_size=5)
    few, all_rows = outputs(model, batches, positions=40), outputs(model, batches, positions=10**6)
    assert 40 <= sum(rows.shape[0] for rows in few) <= 100
    assert sum(rows.shape[0] for rows in all_rows) == sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert compare(few, model, batches, "language", positions=40)["kl_mean"] == 0
    assert compare(few, damaged(model), batches, "language", positions=40)["kl_mean"] == pytest.approx(
        compare(all_rows, damaged(model), batches, "language", positions=10**6)["kl_mean"], rel=0.5
    )


def test_large_vocabularies_are_run_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.tiny("llama", task="lm")
    batches = random_batches(model, samples=4, max_length=6)
    whole = outputs(model, batches)
    monkeypatch.setattr("compresskit.tasks.fidelity._LARGEST_LOGITS", 1)
    parts = outputs(model, batches)
    for left, right in zip(whole, parts, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_a_reference_reports_each_kind_of_text_and_all_of_them() -> None:
    model = models.tiny("bert")
    held = {"one": random_batches(model, samples=4, seed=1), "two": random_batches(model, samples=8, seed=2)}
    reference = Reference.of(model, held)
    result = reference.compare(damaged(model))
    one, two = result["domains"]["one"], result["domains"]["two"]
    assert result["count"] == 12
    assert result["cosine_mean"] == pytest.approx((4 * one["cosine_mean"] + 8 * two["cosine_mean"]) / 12)
    assert result["cosine_min"] == min(one["cosine_min"], two["cosine_min"])


def test_the_reference_stays_that_of_the_source_when_its_weights_change() -> None:
    model = models.tiny("bert")
    reference = Reference.of(model, {"text": random_batches(model)})
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight.mul_(-1)
    assert reference.compare(model)["cosine_mean"] < 0.99


def test_models_with_other_outputs_are_refused() -> None:
    with pytest.raises(InternalError) as caught:
        compare([torch.ones(2, 3)], [torch.ones(2, 4)], [], "embedding")
    assert caught.value.code == "CK-D017"


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        compare([], [], [], "embedding")
    assert caught.value.code == "CK-D003"


def test_training_mode_is_left_alone_and_does_not_matter() -> None:
    model = models.tiny("bert").train()
    batch = random_batches(model)[0]
    first, second = outputs(model, [batch]), outputs(model, [batch])
    assert torch.equal(first[0], second[0])
    assert model.training
    assert not torch.equal(outputs_of(model, batch), outputs_of(model, batch))
