"""uld, multi_teacher and assistant as methods: teachers of another tokenizer, several of them, and a chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from compresskit.calibrate.batches import tokenize
from compresskit.checkpoint.layout import read_layout
from compresskit.core import anatomy, surgery
from compresskit.core.targets import resolve
from compresskit.errors import DataError, RecipeError
from compresskit.methods.distillation.assistant import Assistant, depth, shortened
from compresskit.methods.distillation.logits import Logits
from compresskit.methods.distillation.multi_teacher import MultiTeacher
from compresskit.methods.distillation.uld import ULD
from compresskit.pipeline import Options, apply
from compresskit.registry import method
from compresskit.tasks.fidelity import Reference
from tests import models
from tests.methods.distillation.training import TEXTS, TRAINING, damaged, train
from tests.train.test_alignment import byte_tokenizer
from tests.train.test_cross_tokenizer import other_teacher


def distance(student: Any, teacher: Any) -> float:
    reference = Reference.of(teacher, {"text": tokenize(TEXTS[:4], models.tokenizer(), teacher)})
    return float(reference.compare(student)["kl_mean"])


def test_they_are_found_by_their_names() -> None:
    for cls in (ULD, MultiTeacher, Assistant):
        assert method(f"distillation.{cls.name}") is cls


def test_uld_learns_from_a_teacher_with_another_tokenizer(tmp_path: Path) -> None:
    student = models.tiny("llama", 1, task="lm")
    row = train(
        ULD(**TRAINING), other_teacher(), student, tmp_path, teacher_tokenizer=lambda: byte_tokenizer(begin=False)
    )
    assert row["last_loss"] < row["first_loss"]
    assert 0.3 < row["aligned_share"] < 1
    assert read_layout(student) == []


def test_uld_with_the_same_tokenizer_comes_nearer_in_sorted_probabilities(tmp_path: Path) -> None:
    student = damaged("gpt2")
    row = train(ULD(**TRAINING, hard=0), models.tiny("gpt2", task="lm"), student, tmp_path)
    assert row["last_loss"] < 0.8 * row["first_loss"]


def test_uld_takes_the_tokenizer_of_the_recipes_teacher(tmp_path: Path) -> None:
    source = models.write_checkpoint(models.tiny("gpt2", task="lm"), tmp_path / "student")
    teacher = models.write_checkpoint(other_teacher(), tmp_path / "teacher", with_tokenizer=False)
    byte_tokenizer(begin=False).save_pretrained(teacher)
    (tmp_path / "texts.txt").write_text("\n".join(sorted(set(TEXTS))) + "\n")
    recipe = {
        "version": 1,
        "teacher": str(teacher),
        "calibration": {"data": str(tmp_path / "texts.txt")},
        "steps": [{"distillation.uld": {"steps": 2, "batch": 4}}],
    }
    result = apply(str(source), recipe, options=Options(threads=1))
    (note,) = result.steps[0]["details"].values()
    assert 0.3 < note["aligned_share"] < 1


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_several_teachers_are_followed_together(mean: Any, tmp_path: Path) -> None:
    first, second = models.tiny("gpt2", task="lm"), damaged("gpt2")
    folder = models.write_checkpoint(second, tmp_path / "second")
    student = models.tiny("gpt2", 3, task="lm")
    before = distance(student, first), distance(student, second)
    step = MultiTeacher(**TRAINING, teachers=(str(folder),), weights=(3, 1), mean=mean)
    assert step.shares() == (0.75, 0.25)
    row = train(step, first, student, tmp_path / "work")
    assert row["last_loss"] < row["first_loss"]
    assert distance(student, first) < before[0]
    assert distance(student, second) < before[1]
    assert read_layout(student) == []


def test_one_teacher_is_logits_bit_by_bit(tmp_path: Path) -> None:
    teacher, students = models.tiny("gpt2", task="lm"), [damaged("gpt2") for _ in range(2)]
    train(MultiTeacher(**TRAINING, mean="logits"), teacher, students[0], tmp_path / "several")
    train(Logits(**TRAINING), teacher, students[1], tmp_path / "one")
    pairs = zip(students[0].parameters(), students[1].parameters(), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)


def test_as_many_weights_as_teachers(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        train(MultiTeacher(weights=(1, 2)), models.tiny("gpt2", task="lm"), damaged("gpt2"), tmp_path)
    assert caught.value.code == "CK-D076"


@pytest.mark.parametrize(("name", "task"), [("gpt2", "lm"), ("t5", "lm"), ("bert", "classifier")])
def test_a_shortened_model_is_the_teacher_without_some_layers(name: str, task: models.Task) -> None:
    model = models.tiny(name, task=task)
    before = [block.path for block in anatomy.of(model).blocks]
    found = shortened(model, 2)
    assert (depth(found), depth(model)) == (2, models.LAYERS)
    assert [block.path for block in anatomy.of(model).blocks] == before
    kept = anatomy.of(model).stacks[0].blocks[2].path
    last = anatomy.of(found).stacks[0].blocks[1].path
    pairs = zip(model.get_submodule(kept).parameters(), found.get_submodule(last).parameters(), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)
    assert torch.isfinite(models.output(found, models.inputs(name))).all()
    assert depth(shortened(model, 1)) == 1


def test_assistants_between_teacher_and_student() -> None:
    assert Assistant().chain(6, 2) == (4,)
    assert Assistant().chain(3, 2) == ()
    assert Assistant(layers=(5, 3)).chain(6, 2) == (5, 3)
    for layers in ((6,), (3, 2)):
        with pytest.raises(DataError) as caught:
            Assistant(layers=layers).chain(6, 2)
        assert caught.value.code == "CK-D074"


def one_block(name: str) -> Any:
    student = models.tiny(name, task="lm")
    surgery.keep_blocks(student, anatomy.of(student).stacks[0], [0])
    return student


def test_the_teacher_teaches_an_assistant_and_that_one_the_student(tmp_path: Path) -> None:
    teacher, student = models.tiny("llama", task="lm"), one_block("llama")
    before = distance(student, teacher)
    row = train(Assistant(**TRAINING), teacher, student, tmp_path)
    assert [note["layers"] for note in row["assistants"]] == [2]
    assert row["assistants"][0]["last_loss"] < row["assistants"][0]["first_loss"]
    assert row["last_loss"] < row["first_loss"]
    assert distance(student, teacher) < before
    assert depth(teacher) == models.LAYERS
    assert depth(student) == 1
    assert read_layout(student) == []


def test_without_room_for_an_assistant_it_is_logits_with_a_warning(tmp_path: Path) -> None:
    teacher, students = models.tiny("gpt2", task="lm"), [damaged("gpt2") for _ in range(2)]
    notes: list[str] = []
    row = train(Assistant(**TRAINING), teacher, students[0], tmp_path / "chain", warn=notes.append)
    train(Logits(**TRAINING), teacher, students[1], tmp_path / "plain")
    assert row["assistants"] == []
    assert any("no assistant fits" in note for note in notes)
    pairs = zip(students[0].parameters(), students[1].parameters(), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)


@pytest.mark.parametrize(
    ("step", "name", "task", "words"),
    [
        (ULD(), "t5", "lm", "two halves"),
        (ULD(), "bert", "lm", "fills gaps"),
        (MultiTeacher(), "bert", "base", "distillation.embeddings"),
        (Assistant(), "gpt2", "base", "distillation.embeddings"),
    ],
)
def test_what_is_refused(step: Any, name: str, task: models.Task, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve(models.tiny(name, task=task), step)
    assert words in caught.value.why


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (ULD, {"weight": 0}),
        (ULD, {"hard": -1}),
        (MultiTeacher, {"weights": (1, 0)}),
        (MultiTeacher, {"mean": "median"}),
        (Assistant, {"layers": (3, 4)}),
        (Assistant, {"layers": (2, 2)}),
        (Assistant, {"layers": (0,)}),
    ],
)
def test_bad_options_are_refused(cls: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        cls.model_validate(options)
