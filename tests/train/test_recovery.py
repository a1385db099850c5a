from __future__ import annotations

import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.batches import tokenize
from compresskit.calibrate.outputs import outputs_of, pool, result_mask
from compresskit.core import surgery
from compresskit.core.context import Batch, Context
from compresskit.core.weights import view
from compresskit.errors import DataError, ModelError, RecipeError
from compresskit.nn.embedding import QuantizedEmbedding
from compresskit.nn.int8 import Int8Linear
from compresskit.nn.low_rank import LowRankLinear
from compresskit.tasks.fidelity import Reference
from compresskit.train.loop import RecoveryOptions
from compresskit.train.losses import similarity_loss
from compresskit.train.objective import EmbeddingObjective, Objective, ResponseObjective, Targets
from compresskit.train.recovery import recover
from tests import models
from tests.children import forked, statuses

WORDS = sorted(word for word in models.vocabulary() if word.isalpha() and len(word) > 2)
TEXTS = [" ".join(random.Random(seed).choices(WORDS, k=4 + seed % 9)) for seed in range(64)]
OPTIONS = RecoveryOptions(steps=30, lr=2e-3, batch=16, max_length=16, freeze_embeddings=False)


def context_for(teacher: PreTrainedModel, folder: Path, **more: object) -> Context:
    return Context(seed=5, tokenizer=models.tokenizer(), teacher=lambda: teacher, work=folder, **more)  # type: ignore[arg-type]


def damage(model: PreTrainedModel, amount: float = 0.05) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model


@pytest.mark.parametrize(
    ("name", "task", "objective"),
    [
        ("bert", "base", EmbeddingObjective()),
        ("t5encoder", "base", EmbeddingObjective(hidden=0)),
        ("gpt2", "lm", ResponseObjective()),
        ("llama", "lm", ResponseObjective()),
        ("t5", "lm", ResponseObjective()),
        ("distilbert", "classifier", ResponseObjective()),
    ],
)
def test_a_damaged_model_comes_nearer_to_its_teacher(
    name: str, task: models.Task, objective: Objective, tmp_path: Path
) -> None:
    teacher, student = models.tiny(name, task=task), damage(models.tiny(name, task=task))
    held = tokenize([text[::-1][:20] for text in TEXTS[:8]] + TEXTS[:8], models.tokenizer(), teacher)
    reference = Reference.of(teacher, {"text": held})
    before = reference.compare(student)
    outcome = recover(student, context_for(teacher, tmp_path), objective, TEXTS, OPTIONS)
    after = reference.compare(student)
    assert outcome.last_loss < outcome.first_loss
    metric = "cosine_mean" if "cosine_mean" in before else "kl_mean"
    loss = (lambda result: 1 - result[metric]) if metric == "cosine_mean" else (lambda result: result[metric])
    assert loss(after) < 0.75 * loss(before)


@pytest.mark.parametrize(
    ("task", "objective"),
    [("base", EmbeddingObjective()), ("lm", ResponseObjective()), ("classifier", ResponseObjective())],
)
def test_the_teacher_itself_has_nothing_to_learn(task: models.Task, objective: Objective, tmp_path: Path) -> None:
    teacher, student = models.tiny("bert", task=task), models.tiny("bert", task=task)
    outcome = recover(student, context_for(teacher, tmp_path), objective, TEXTS, replace(OPTIONS, steps=2, lr=1e-9))
    assert outcome.first_loss == pytest.approx(0, abs=1e-5)


def test_similarities_within_a_batch_come_nearer_to_the_teachers(tmp_path: Path) -> None:
    teacher = models.tiny("bert")
    held = tokenize(TEXTS[:16], models.tokenizer(), teacher, 16, 16)[0]

    def distance(student: PreTrainedModel) -> float:
        vectors = [pool(outputs_of(model, held), result_mask(model, held)) for model in (student, teacher)]
        return float(similarity_loss(*vectors))

    student = damage(models.tiny("bert"))
    before = distance(student)
    objective = EmbeddingObjective(hidden=0, similarity=5)
    recover(student, context_for(teacher, tmp_path), objective, TEXTS, OPTIONS)
    assert distance(student) < 0.5 * before


def test_training_in_bfloat16_learns_and_leaves_float32_and_no_trace(tmp_path: Path) -> None:
    teacher, students = models.tiny("bert"), [damage(models.tiny("bert")) for _ in range(2)]
    forward = type(students[0]).forward
    kept = Context(seed=5, tokenizer=models.tokenizer(), teacher=lambda: teacher, work=tmp_path)
    exact, rounded = (
        recover(student, kept, EmbeddingObjective(), TEXTS, replace(OPTIONS, bf16=bf16))
        for student, bf16 in zip(students, (False, True), strict=True)
    )
    assert rounded.last_loss < 0.6 * rounded.first_loss
    assert rounded.first_loss != exact.first_loss, "products were rounded"
    assert rounded.first_loss == pytest.approx(exact.first_loss, rel=0.05)
    assert {parameter.dtype for parameter in students[1].parameters()} == {torch.float32}
    assert students[1].forward.__func__ is forward, "Trainer's wrapping would stay"
    caches = {path.parent.parent.name for path in tmp_path.rglob("complete.json")}
    assert caches == {tmp_path.name, "bfloat16"}, "one cache each"


def test_equal_seeds_give_equal_weights_and_others_others(tmp_path: Path) -> None:
    results = []
    for number, seed in enumerate((5, 5, 6)):
        student = damage(models.tiny("bert"))
        context = replace(context_for(models.tiny("bert"), tmp_path / str(number)), seed=seed)
        recover(student, context, EmbeddingObjective(), TEXTS, replace(OPTIONS, steps=3))
        results.append(student.encoder.layer[1].output.dense.weight.detach().clone())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_nothing_is_left_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher, student = models.tiny("gpt2", task="lm"), damage(models.tiny("gpt2", task="lm"))
    student.transformer.h[0].ln_1.weight.requires_grad_(False)
    flags = {name: parameter.requires_grad for name, parameter in student.named_parameters()}
    config = student.config.to_dict()
    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    recover(student, context_for(teacher, tmp_path), ResponseObjective(), TEXTS, replace(OPTIONS, steps=2))
    assert {name: parameter.requires_grad for name, parameter in student.named_parameters()} == flags
    assert all(parameter.grad is None for parameter in student.parameters())
    assert not any(module.training for module in student.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*student.modules(), *teacher.modules()])
    assert student.config.to_dict() == config
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert capsys.readouterr().out == ""


def test_embeddings_stay_as_they_are_unless_asked(tmp_path: Path) -> None:
    for frozen in (True, False):
        teacher, student = models.tiny("bert"), damage(models.tiny("bert"))
        before = student.embeddings.word_embeddings.weight.detach().clone()
        options = replace(OPTIONS, steps=2, freeze_embeddings=frozen)
        recover(student, context_for(teacher, tmp_path / str(frozen)), EmbeddingObjective(), TEXTS, options)
        assert torch.equal(student.embeddings.word_embeddings.weight, before) == frozen


def test_what_is_named_under_freeze_stays(tmp_path: Path) -> None:
    teacher, student = models.tiny("bert"), damage(models.tiny("bert"))
    before = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
    options = replace(OPTIONS, steps=2, freeze=("encoder.layer.0", "encoder.layer.*.attention"))
    recover(student, context_for(teacher, tmp_path), EmbeddingObjective(), TEXTS, options)
    changed = {name for name, parameter in student.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed
    assert not any(name.startswith("encoder.layer.0.") or ".attention." in name for name in changed)
    with pytest.raises(RecipeError) as caught:
        recover(
            student, context_for(teacher, tmp_path), EmbeddingObjective(), TEXTS, replace(OPTIONS, freeze=("decoder",))
        )
    assert caught.value.code == "CK-R034"


def compressed(model: PreTrainedModel) -> PreTrainedModel:
    """Int8 matrices and table, and low-rank matrices, as steps before a recovery leave them."""
    table = QuantizedEmbedding.from_table(model.embeddings.word_embeddings, 4, 32)
    surgery.replace(model, "embeddings.word_embeddings", table)
    for path in ("encoder.layer.1.intermediate.dense", "encoder.layer.1.attention.output.dense"):
        plain = view(model, path)
        surgery.replace(model, path, Int8Linear.from_weight(plain.weight, plain.bias))
    plain = view(model, "encoder.layer.2.output.dense")
    left, values, right = torch.linalg.svd(plain.weight, full_matrices=False)
    factors = left[:, :24], values[:24, None] * right[:24]
    surgery.replace(model, plain.path, LowRankLinear.from_factors(*factors, plain.bias))
    return model


@pytest.mark.parametrize("freeze", [True, False])
def test_integer_layers_stay_and_the_rest_learns(freeze: bool, tmp_path: Path) -> None:
    teacher, student = models.tiny("bert"), compressed(damage(models.tiny("bert")))
    kept = {name: p.detach().clone() for name, p in student.named_parameters() if not p.requires_grad}
    assert {tensor.dtype for tensor in kept.values()} >= {torch.int8}
    options = replace(OPTIONS, freeze_embeddings=freeze)
    outcome = recover(student, context_for(teacher, tmp_path), EmbeddingObjective(), TEXTS, options)
    for name, parameter in student.named_parameters():
        if name in kept:
            assert torch.equal(parameter, kept[name])
            assert not parameter.requires_grad
    assert outcome.last_loss < 0.8 * outcome.first_loss


@pytest.mark.parametrize("integers", [False, True])
def test_half_precision_is_trained_in_float32_and_given_back(integers: bool, tmp_path: Path) -> None:
    teacher, student = models.tiny("bert"), damage(models.tiny("bert"))
    student = (compressed(student) if integers else student).to(torch.bfloat16)
    student.encoder.layer[0].output.LayerNorm.float()
    types = {name: tensor.dtype for name, tensor in student.state_dict().items()}
    kept = {name: p.detach().clone() for name, p in student.named_parameters() if not p.requires_grad}
    seen: set[torch.dtype] = set()

    class Watching(EmbeddingObjective):
        def loss(self, model: PreTrainedModel, batch: Batch, targets: Targets) -> Tensor:
            seen.update(parameter.dtype for parameter in model.parameters() if parameter.requires_grad)
            return super().loss(model, batch, targets)

    outcome = recover(student, context_for(teacher, tmp_path), Watching(), TEXTS, OPTIONS)
    assert seen == {torch.float32}
    assert {name: tensor.dtype for name, tensor in student.state_dict().items()} == types
    assert all(torch.equal(student.get_parameter(name), value) for name, value in kept.items())
    assert outcome.last_loss < 0.8 * outcome.first_loss


def test_a_model_without_trainable_parameters_is_refused(tmp_path: Path) -> None:
    student = models.tiny("bert").requires_grad_(False)
    with pytest.raises(ModelError) as caught:
        recover(student, context_for(models.tiny("bert"), tmp_path), EmbeddingObjective(), TEXTS, OPTIONS)
    assert caught.value.code == "CK-D023"


class Faulty(EmbeddingObjective):
    """Gives no number at the steps of ``at``."""

    at: tuple[int, ...] = ()
    step: int = 0

    def loss(self, student: PreTrainedModel, batch: Batch, targets: Targets) -> Tensor:
        self.step += 1
        loss = super().loss(student, batch, targets)
        return loss * torch.nan if self.step in self.at else loss


def test_a_loss_that_is_no_number_rewinds_once_with_a_lower_rate(tmp_path: Path) -> None:
    notes: list[str] = []
    objective = Faulty()
    objective.at = (28,)
    student = damage(models.tiny("bert"))
    context = context_for(models.tiny("bert"), tmp_path, warn=notes.append)
    outcome = recover(student, context, objective, TEXTS, OPTIONS)
    assert outcome.rewinds == 1
    # 27 good steps, back to the weights of step 25, then the 5 that were left.
    assert objective.step == 28 + 5
    assert "0.0005" in notes[0]
    assert all(bool(torch.isfinite(parameter).all()) for parameter in student.parameters())


def test_a_second_time_it_is_an_error_and_the_weights_are_good(tmp_path: Path) -> None:
    objective = Faulty()
    objective.at = (3, 7)
    student = damage(models.tiny("bert"))
    with pytest.raises(DataError) as caught:
        recover(student, context_for(models.tiny("bert"), tmp_path), objective, TEXTS, OPTIONS)
    assert caught.value.code == "CK-D022"
    assert all(bool(torch.isfinite(parameter).all()) for parameter in student.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_weights_that_overflow_are_never_kept(tmp_path: Path) -> None:
    student = damage(models.tiny("bert"))
    context = context_for(models.tiny("bert"), tmp_path)
    with pytest.raises(DataError) as caught:
        recover(student, context, EmbeddingObjective(), TEXTS, replace(OPTIONS, steps=3, lr=1e38, warmup=0))
    assert caught.value.code == "CK-D022"
    assert all(bool(torch.isfinite(parameter).all()) for parameter in student.parameters())


def test_epochs_become_steps_and_no_more_texts_are_used_than_needed(tmp_path: Path) -> None:
    teacher = models.tiny("bert")
    for options, expected in (
        (replace(OPTIONS, steps=None, epochs=0.5), (2, 32)),
        (replace(OPTIONS, steps=1), (1, 16)),
        (replace(OPTIONS, steps=6), (6, 64)),
    ):
        outcome = recover(
            damage(models.tiny("bert")), context_for(teacher, tmp_path), EmbeddingObjective(), TEXTS, options
        )
        assert (outcome.steps, outcome.texts) == expected


def test_progress_goes_from_teacher_to_training(tmp_path: Path) -> None:
    seen: list[tuple[float, str]] = []
    context = context_for(models.tiny("bert"), tmp_path, progress=lambda share, what: seen.append((share, what)))
    recover(damage(models.tiny("bert")), context, EmbeddingObjective(), TEXTS, replace(OPTIONS, steps=4))
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert "loss" in seen[-1][1]


def test_no_teacher_is_refused(tmp_path: Path) -> None:
    context = replace(context_for(models.tiny("bert"), tmp_path), teacher=None)
    with pytest.raises(DataError) as caught:
        recover(models.tiny("bert"), context, EmbeddingObjective(), TEXTS, OPTIONS)
    assert caught.value.code == "CK-D025"


def test_without_a_scratch_folder_none_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    context = replace(context_for(models.tiny("bert"), tmp_path), work=Path())
    recover(damage(models.tiny("bert")), context, EmbeddingObjective(), TEXTS, replace(OPTIONS, steps=1))
    assert list(tmp_path.iterdir()) == []


class Mortal(EmbeddingObjective):
    """Kills its process after the step ``last``."""

    last: int = 10**9
    step: int = 0

    def loss(self, student: PreTrainedModel, batch: Batch, targets: Targets) -> Tensor:
        self.step += 1
        if self.step > self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(student, batch, targets)


def kill(last: int, folder: Path, options: RecoveryOptions) -> None:
    """Train in a child until it is killed after step ``last``."""
    objective = Mortal()
    objective.last = last

    def train() -> None:
        recover(damage(models.tiny("bert")), context_for(models.tiny("bert"), folder), objective, TEXTS, options)

    assert statuses([forked(train)]) == [-signal.SIGKILL]


def test_killed_training_goes_on_and_ends_bit_equal(tmp_path: Path) -> None:
    # Four steps are a pass over the texts: it is killed in the first, second or third.
    options = replace(OPTIONS, steps=10, save_every=3)
    whole, work = damage(models.tiny("bert")), tmp_path / "work"
    recover(whole, context_for(models.tiny("bert"), work), Mortal(), TEXTS, replace(options, save_every=100))
    last = random.randrange(3, 10)
    kill(last, work, options)
    notes: list[str] = []
    resumed, again = damage(models.tiny("bert")), Mortal()
    recover(resumed, context_for(models.tiny("bert"), work, warn=notes.append), again, TEXTS, options)
    assert again.step == 10 - last // 3 * 3
    assert f"step {last // 3 * 3}," in notes[0]
    for left, right in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right), f"killed after step {last}"
    assert not list(work.glob("recovery-*"))


def test_a_student_of_other_weights_starts_anew(tmp_path: Path) -> None:
    options = replace(OPTIONS, steps=5, save_every=2)
    kill(3, tmp_path, options)
    other = Mortal()
    recover(damage(models.tiny("bert"), 0.04), context_for(models.tiny("bert"), tmp_path), other, TEXTS, options)
    assert other.step == 5
