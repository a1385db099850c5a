"""Training that repairs a compressed model: a student follows its teacher on unlabelled text, by ``Trainer``.

Nothing is left behind: parameters keep their ``requires_grad``, hold no gradient, the model is in evaluation mode, and
the global random states are as before.
"""

from __future__ import annotations

import hashlib
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from transformers import PreTrainedModel

from compresskit.calibrate.batches import Row, collate, encode, padding
from compresskit.core import anatomy, processes
from compresskit.core.context import Context
from compresskit.errors import DataError, ModelError, RecipeError
from compresskit.train.loop import Loop, RecoveryOptions
from compresskit.train.objective import Objective
from compresskit.train.teacher_cache import TeacherOutputs, cache_key, teacher_outputs
from compresskit.train.trainer import in_bfloat16, in_float32, kept_config, kept_randomness


@dataclass(frozen=True)
class Recovery:
    """What training did: steps, texts, losses at both ends (means over a tenth of the steps), rewinds, parameters.

    With texts held out, the loss on them by step, and the step whose weights were kept.
    """

    steps: int
    texts: int
    first_loss: float
    last_loss: float
    rewinds: int
    trained_parameters: int
    dev_losses: dict[int, float] | None = None
    kept_step: int | None = None


def recover(
    student: PreTrainedModel,
    context: Context,
    objective: Objective,
    texts: Sequence[str],
    options: RecoveryOptions,
    *,
    teacher: PreTrainedModel | None = None,
) -> Recovery:
    """Train ``student`` in place towards ``teacher`` (by default ``context.teacher()``) on ``texts``.

    The same arguments give the same weights on one machine. A loss that is no number rewinds to the last weights that
    gave one, once, with a quarter of the learning rate. Long training is saved in ``context.work``, and goes on from
    there when the same is asked for again.

    Raises:
        DataError: CK-D003 or CK-D008 for texts that can't be used, CK-D022 if the loss stops being a number twice.
        ModelError: CK-D023, if no parameter can be trained.
        RecipeError: CK-R034 for a ``freeze`` pattern that matches nothing.
    """
    rows = encode(texts, context.tokenizer, student, options.max_length, warn=context.warn)
    rows, held_out = _split(rows, options.dev, context.seed)
    steps = options.steps if options.steps is not None else math.ceil(options.epochs * len(rows) / options.texts_a_step)
    rows = _chosen(rows, steps * options.texts_a_step, context.seed)
    options = replace(options, steps=steps)
    with kept_randomness(), kept_config(student), _scratch(context) as folder:
        every = [*rows, *held_out]
        source = _teach(student, context, objective, every, folder, teacher, bf16=options.bf16)
        processes.synchronise(student)
        settings = f"{context.seed} {options!r} {processes.count()}"
        place = folder / f"recovery-{_digest(student, objective, rows, settings)}"
        with _trainable(student, options) as trained:
            fill = padding(context.tokenizer)
            loop = Loop(student, context, objective, source, every, fill, place, options, len(held_out))
            losses, rewinds = loop.train()
    watched = loop.development
    tenth = max(1, len(losses) // 10)
    return Recovery(
        steps=loop.step,
        texts=len(rows),
        first_loss=sum(losses[:tenth]) / tenth,
        last_loss=sum(losses[-tenth:]) / tenth,
        rewinds=rewinds,
        trained_parameters=trained,
        dev_losses=None if watched is None else watched.losses,
        kept_step=None if watched is None else watched.best,
    )


def _teach(
    student: PreTrainedModel,
    context: Context,
    objective: Objective,
    rows: Sequence[Row],
    folder: Path,
    teacher: PreTrainedModel | None,
    *,
    bf16: bool = False,
) -> TeacherOutputs:
    """The teacher's outputs; the teacher itself is let go where they are stored."""
    if teacher is None:
        if context.teacher is None:
            raise DataError("CK-D025", "there is no teacher to learn from", fix="name one under `teacher:`")
        teacher = context.teacher().eval()
    fill = padding(context.tokenizer)
    objective.prepare(teacher, student, collate(rows[:1], fill))
    # A cache of other precision is another cache.
    place = folder / "bfloat16" if bf16 else folder
    with in_bfloat16(teacher.device, bf16):
        return teacher_outputs(teacher, objective, rows, place, fill=fill, progress=_share_of(context, 0.0, 0.2))


def _digest(student: PreTrainedModel, objective: Objective, rows: Sequence[Row], settings: str) -> str:
    """What an interrupted training must agree in to be gone on with."""
    key = f"{cache_key(student, objective, rows)} {settings}"
    return hashlib.blake2b(key.encode(), digest_size=8).hexdigest()


def _share_of(context: Context, start: float, width: float) -> Callable[[float, str], None]:
    """Progress of a part, as progress of the whole."""
    return lambda share, what: context.progress(start + width * share, what)


@contextmanager
def _scratch(context: Context) -> Iterator[Path]:
    """The run's scratch folder, or one that is removed afterwards."""
    if context.work != Path():
        yield context.work
        return
    with tempfile.TemporaryDirectory(prefix="compresskit-") as folder:
        yield Path(processes.agree(folder))
        processes.wait()


def _split(rows: list[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Rows for training, and ``share`` of them, at least one, that are held out."""
    if not share:
        return rows, []
    if len(rows) < 2:
        raise DataError("CK-D003", "no text can be held out: there is one", fix="give more texts, or set dev to 0")
    held_out = set(
        random.Random(f"{seed} dev").sample(range(len(rows)), min(len(rows) - 1, max(1, round(share * len(rows)))))
    )
    return [row for number, row in enumerate(rows) if number not in held_out], [
        rows[number] for number in sorted(held_out)
    ]


def _chosen(rows: list[Row], count: int, seed: int) -> list[Row]:
    """``count`` rows, drawn evenly, in their order."""
    if count >= len(rows):
        return rows
    return [rows[index] for index in sorted(random.Random(seed).sample(range(len(rows)), count))]


@contextmanager
def _trainable(model: PreTrainedModel, options: RecoveryOptions) -> Iterator[int]:
    """Inside, the right parameters are trainable, in float32; afterwards flags and types are as before."""
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    frozen = _frozen(model, options)
    try:
        chosen = []
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name] and parameter.is_floating_point() and name not in frozen)
            chosen += [parameter] if parameter.requires_grad else []
        if not chosen:
            raise ModelError(
                "CK-D023",
                "no parameter of the model can be trained",
                why="all are stored as integers or frozen",
                fix="train before quantizing, or freeze less",
            )
        with in_float32(model, {parameter.dtype for parameter in chosen}):
            yield sum(parameter.numel() for parameter in chosen)
    finally:
        for name, parameter in model.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(flags[name])
        model.eval()


def _frozen(model: PreTrainedModel, options: RecoveryOptions) -> set[str]:
    """Names of parameters that stay as they are."""
    names = [name for name, _ in model.named_parameters()]
    found: set[str] = set()
    for pattern in options.freeze:
        matched = {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")}
        if not matched:
            raise RecipeError("CK-R034", f"the pattern {pattern!r} under `freeze` matches no parameter")
        found |= matched
    if options.freeze_embeddings:
        tables = [table.path for table in anatomy.of(model).embeddings]
        found |= {name for name in names if name.startswith(tuple(f"{path}." for path in tables))}
    return found
