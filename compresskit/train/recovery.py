"""Training that repairs a compressed model: a student follows its teacher on unlabelled text, by ``Trainer``.

Nothing is left behind: parameters keep their ``requires_grad``, hold no gradient, the model is in evaluation mode, and
the global random states are as before.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from compresskit.calibrate.batches import Row, collate, encode, padding
from compresskit.checkpoint.resume import ResumableTrainer
from compresskit.core import anatomy
from compresskit.core.context import Context
from compresskit.errors import DataError, ModelError, RecipeError
from compresskit.train.objective import Objective
from compresskit.train.teacher_cache import TeacherOutputs, teacher_outputs

SNAPSHOT_EVERY = 25
"""Steps between the weights that training goes back to when the loss stops being a number."""

SLOWER = 0.25
"""What the learning rate is multiplied by after that."""


@dataclass(frozen=True)
class RecoveryOptions:
    """How to train.

    Args:
        steps: optimizer steps; None takes ``epochs``.
        epochs: passes over the texts, where ``steps`` is None.
        lr: peak learning rate of AdamW, reached after ``warmup`` (share of the steps), then falling linearly to 0.
        batch: texts a step.
        max_length: tokens a text is cut to.
        weight_decay, clip: as in AdamW; the largest norm of the gradient.
        freeze_embeddings: leave embedding tables alone: faster, and most of the quality is elsewhere.
        freeze: globs of modules or parameters that are left alone too.
    """

    steps: int | None = None
    epochs: float = 1.0
    lr: float = 1e-4
    batch: int = 32
    max_length: int = 64
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    freeze_embeddings: bool = True
    freeze: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recovery:
    """What training did: steps, texts, losses at both ends (means over a tenth of the steps), rewinds, parameters."""

    steps: int
    texts: int
    first_loss: float
    last_loss: float
    rewinds: int
    trained_parameters: int


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
    gave one, once, with a quarter of the learning rate.

    Raises:
        DataError: CK-D003 or CK-D008 for texts that can't be used, CK-D022 if the loss stops being a number twice.
        ModelError: CK-D023, if no parameter can be trained.
        RecipeError: CK-R034 for a ``freeze`` pattern that matches nothing.
    """
    rows = encode(texts, context.tokenizer, student, options.max_length, warn=context.warn)
    steps = options.steps if options.steps is not None else math.ceil(options.epochs * len(rows) / options.batch)
    needed = min(len(rows), steps * options.batch)
    rows = _chosen(rows, needed, context.seed)
    teacher = teacher if teacher is not None else _teacher(context)
    fill = padding(context.tokenizer)
    objective.prepare(teacher, student, collate(rows[:1], fill))
    with _kept_randomness(), _scratch(context) as folder:
        source = teacher_outputs(teacher, objective, rows, folder, fill=fill, progress=_share_of(context, 0.0, 0.2))
        with _trainable(student, options) as trained:
            run = _Run(student, context, objective, source, rows, fill, folder, replace(options, steps=steps))
            losses, rewinds = run.train()
    tenth = max(1, len(losses) // 10)
    return Recovery(
        steps=steps,
        texts=len(rows),
        first_loss=sum(losses[:tenth]) / tenth,
        last_loss=sum(losses[-tenth:]) / tenth,
        rewinds=rewinds,
        trained_parameters=trained,
    )


def _teacher(context: Context) -> PreTrainedModel:
    if context.teacher is None:
        raise DataError("CK-D025", "there is no teacher to learn from", fix="name one under `teacher:`")
    return context.teacher().eval()


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
        yield Path(folder)


def _chosen(rows: list[Row], count: int, seed: int) -> list[Row]:
    """``count`` rows, drawn evenly, in their order."""
    if count >= len(rows):
        return rows
    return [rows[index] for index in sorted(random.Random(seed).sample(range(len(rows)), count))]


@contextmanager
def _kept_randomness() -> Iterator[None]:
    """``Trainer`` seeds everything: give the states back afterwards."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def _trainable(model: PreTrainedModel, options: RecoveryOptions) -> Iterator[int]:
    """Inside, the right parameters are trainable, in float32; afterwards flags and types are as before."""
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    types = {name: parameter.dtype for name, parameter in model.named_parameters()}
    cached = vars(model.config).get("use_cache")
    frozen = _frozen(model, options)
    try:
        count = 0
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name] and parameter.is_floating_point() and name not in frozen)
            if parameter.requires_grad:
                count += parameter.numel()
        if count == 0:
            raise ModelError(
                "CK-D023",
                "no parameter of the model can be trained",
                why="all are stored as integers or frozen",
                fix="train before quantizing, or freeze less",
            )
        _to_float32(model, types)
        yield count
    finally:
        for name, parameter in model.named_parameters():
            parameter.grad = None
            if parameter.dtype != types[name]:
                parameter.data = parameter.data.to(types[name])
            parameter.requires_grad_(flags[name])
        _restore_use_cache(model, cached)
        model.eval()


def _restore_use_cache(model: PreTrainedModel, value: bool | None) -> None:
    """``Trainer`` writes ``use_cache`` into the config, which is saved with the model."""
    if value is not None:
        model.config.use_cache = value
    else:
        vars(model.config).pop("use_cache", None)


def _to_float32(model: PreTrainedModel, types: dict[str, torch.dtype]) -> None:
    """Half-precision weights would swallow small updates; the whole model computes in one type."""
    if any(dtype in (torch.float16, torch.bfloat16) for dtype in types.values()):
        for parameter in model.parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()


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


class _NotANumber(Exception):
    """The loss or a weight is NaN or infinite; never leaves this module."""


class _Run:
    """One training, with its rewind."""

    def __init__(
        self,
        student: PreTrainedModel,
        context: Context,
        objective: Objective,
        source: TeacherOutputs,
        rows: Sequence[Row],
        fill: int,
        folder: Path,
        options: RecoveryOptions,
    ) -> None:
        self.folder = folder
        self.student, self.context, self.objective, self.source = student, context, objective, source
        self.rows, self.fill, self.options = rows, fill, options
        self.losses: list[float] = []
        self.good: dict[str, Tensor] = {}
        self.good_step = 0

    def train(self) -> tuple[list[float], int]:
        """The losses of all steps, and how often training was rewound."""
        steps = self.options.steps or 0
        try:
            self._attempt(steps, self.options.lr)
            return self.losses, 0
        except _NotANumber:
            self._rewind()
        rate = self.options.lr * SLOWER
        self.context.warn(
            f"the training loss stopped being a number at step {self.good_step}: rewound, and went on at lr {rate:g}"
        )
        try:
            self._attempt(steps - self.good_step, rate)
        except _NotANumber:
            self._rewind()
            raise DataError(
                "CK-D022",
                "the training loss stopped being a number, also after a rewind with a lower learning rate",
                where=f"step {self.good_step} of {steps}",
                fix="lower lr, or look for texts that make the teacher overflow",
            ) from None
        return self.losses, 1

    def _attempt(self, steps: int, rate: float) -> None:
        trainer = _RecoveryTrainer(self, self._arguments(steps, rate))
        # It would print a summary to stdout, which belongs to the caller.
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self._trained().values()):
            raise _NotANumber

    def _arguments(self, steps: int, rate: float) -> TrainingArguments:
        options = self.options
        return TrainingArguments(
            output_dir=str(self.folder / "recovery"),
            max_steps=steps,
            per_device_train_batch_size=options.batch,
            learning_rate=rate,
            lr_scheduler_type="linear",
            warmup_steps=max(1, round(options.warmup * steps)),
            weight_decay=options.weight_decay,
            max_grad_norm=options.clip,
            seed=self.context.seed,
            train_sampling_strategy="group_by_length",
            remove_unused_columns=False,
            save_strategy="no",
            eval_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu=self.context.device.type == "cpu",
        )

    def observe(self, loss: Tensor) -> None:
        """Note the loss of a step; weights that gave a number are good ones."""
        value = float(loss.detach())
        if not math.isfinite(value):
            raise _NotANumber
        if len(self.losses) % SNAPSHOT_EVERY == 0:
            self.good = {name: parameter.detach().clone() for name, parameter in self._trained().items()}
            self.good_step = len(self.losses)
        self.losses.append(value)
        share = len(self.losses) / max(1, self.options.steps or 1)
        self.context.progress(0.2 + 0.8 * min(1.0, share), f"recovery, loss {value:.4f}")

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.student.named_parameters() if parameter.requires_grad}

    def _rewind(self) -> None:
        with torch.no_grad():
            for name, parameter in self._trained().items():
                if name in self.good:
                    parameter.copy_(self.good[name])
                parameter.grad = None
        del self.losses[self.good_step :]


class _Texts(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows with their numbers, by which the teacher's outputs are found."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {**self.rows[number], "number": number}


class _RecoveryTrainer(ResumableTrainer):
    """The student in evaluation mode (dropout would only blur what it is compared with) against stored outputs."""

    def __init__(self, run: _Run, arguments: TrainingArguments) -> None:
        self.run_ = run
        super().__init__(model=run.student, args=arguments, train_dataset=_Texts(run.rows), data_collator=self._collate)

    def _collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        numbers = [item["number"] for item in items]
        rows = [{name: value for name, value in item.items() if name != "number"} for item in items]
        return {**collate(rows, self.run_.fill), "numbers": torch.tensor(numbers)}

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        batch = {name: tensor for name, tensor in inputs.items() if name != "numbers"}
        student = self.run_.student.eval()
        targets = self.run_.source.of(inputs["numbers"].tolist(), batch)
        loss = self.run_.objective.loss(student, batch, {name: t.to(student.device) for name, t in targets.items()})
        self.run_.observe(loss)
        return loss
