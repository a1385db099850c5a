"""The training loop of recovery: ``Trainer`` against stored teacher outputs, rewound when the loss is no number.

Long training is saved on its way, and goes on from there when it is started again with the same arguments.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments

from compresskit.calibrate.batches import Row, collate
from compresskit.checkpoint.plainstate import read_state, write_state
from compresskit.core import processes
from compresskit.core.context import Context
from compresskit.errors import DataError
from compresskit.train.development import Development
from compresskit.train.objective import Objective, Scheduled, Stepping
from compresskit.train.order import BatchOrder, by_length
from compresskit.train.teacher_cache import TeacherOutputs
from compresskit.train.trainer import StudentTrainer, in_bfloat16, training_arguments

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
        batch: texts that a process takes at once.
        accumulation: how often it does so in a step.
        max_length: tokens a text is cut to.
        weight_decay, clip: as in AdamW; the largest norm of the gradient.
        freeze_embeddings: leave embedding tables alone: faster, and most of the quality is elsewhere.
        save_every: steps between savings of the training itself; shorter training is not saved.
        freeze: globs of modules or parameters that are left alone too.
        bf16: teacher and student compute under autocast in bfloat16; weights and optimizer stay as they are.
        dev: share of the texts that is held out; the weights with the least loss on it are kept.
        patience: looks at it without a smaller loss after which training stops; None: never.
        evaluate_every: steps between two looks.
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
    save_every: int = 250
    freeze: tuple[str, ...] = ()
    bf16: bool = False
    accumulation: int = 1
    dev: float = 0.0
    patience: int | None = None
    evaluate_every: int = 50

    @property
    def texts_a_step(self) -> int:
        """Of all processes."""
        return self.batch * self.accumulation * processes.count()


LEARNED_FASTER = 10.0
"""What the learning rate of an objective's own parameters is multiplied by: they start at random."""

_LEARNED = "learned"
_DEVELOPMENT = "development"


class _NotANumber(Exception):
    """The loss or a weight is NaN or infinite; never leaves this module."""


class Loop:
    """One training.

    Args:
        student: its trainable parameters are those with ``requires_grad``.
        source: the teacher's outputs on ``rows``, by number.
        held_out: how many of ``rows``, the last ones, are not trained on.
        fill: the padding token.
        folder: where training is saved on its way; removed at the end.
        options: with ``steps`` set.
    """

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
        held_out: int = 0,
    ) -> None:
        self.student, self.context, self.objective, self.source = student, context, objective, source
        self.rows, self.fill, self.folder, self.options = rows, fill, folder, options
        self.losses: dict[int, float] = {}
        self.good: dict[str, Tensor] = {}
        self.step = self.good_step = 0
        self.held_out = held_out
        self.development: Development | None = None
        if held_out:
            self.development = Development(
                self._dev_loss, lambda: self.step, self._trained, options.evaluate_every, options.patience
            )

    def train(self) -> tuple[list[float], int]:
        """The losses of the steps that this process took, and how often training was rewound.

        Raises:
            DataError: CK-D022, if the loss stops being a number twice; the weights are then the last good ones.
        """
        steps = self.options.steps or 0
        rewinds = 0
        try:
            self._attempt("first", 0, self.options.lr)
        except _NotANumber:
            self._rewind()
            rewinds, rate = 1, self.options.lr * SLOWER
            where = f"step {self.good_step} of {steps}"
            self.context.warn(f"the training loss stopped being a number after {where}: rewound, lr now {rate:g}")
            try:
                self._attempt("second", self.good_step, rate)
            except _NotANumber:
                self._rewind()
                raise DataError(
                    "CK-D022",
                    "the training loss stopped being a number, also after a rewind with a lower learning rate",
                    where=f"step {self.good_step} of {steps}",
                    fix="lower lr, or look for texts that make the teacher overflow",
                ) from None
        processes.lead(lambda: shutil.rmtree(self.folder, ignore_errors=True))
        if self.development is not None:
            self.development.take_best()
        return list(self.losses.values()), rewinds

    def _attempt(self, name: str, start: int, rate: float) -> None:
        """Train from step ``start`` to the end, or from where an earlier process was stopped."""
        folder = self.folder / name
        trainer = _RecoveryTrainer(self, self._arguments(folder, (self.options.steps or 0) - start, rate))
        self.step = start

        def notice(done: int) -> None:
            self.step += done
            self.context.warn(f"training goes on from step {self.step}, where it was interrupted")

        trainer.go(folder, notice)
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self._trained().values()):
            raise _NotANumber

    def _arguments(self, folder: Path, steps: int, rate: float) -> TrainingArguments:
        options = self.options
        return training_arguments(
            folder,
            device=self.context.device,
            batch=options.batch,
            seed=self.context.seed,
            save_every=options.save_every if steps > options.save_every else None,
            max_steps=steps,
            gradient_accumulation_steps=options.accumulation,
            learning_rate=rate,
            lr_scheduler_type="linear",
            warmup_steps=min(steps - 1, max(1, round(options.warmup * steps))),  # the first of them has lr 0
            weight_decay=options.weight_decay,
            max_grad_norm=options.clip,
        )

    def order(self) -> BatchOrder:
        """The batches, of texts of similar length."""
        lengths = [len(row["input_ids"]) for row in self.rows[: len(self.rows) - self.held_out]]
        draw = by_length(lengths, self.options.batch, self.options.texts_a_step)
        batches = math.ceil(len(lengths) / self.options.batch)
        return BatchOrder(draw, batches, self.context.seed, self.options.accumulation)

    def autocast(self) -> torch.autocast:
        """Products in bfloat16 inside, where the options ask for it."""
        return in_bfloat16(self.student.device, self.options.bf16)

    def observe(self, value: float) -> None:
        """Note the loss of a step; weights that gave a number are good ones."""
        if not math.isfinite(value):
            raise _NotANumber
        if self.step % SNAPSHOT_EVERY == 0 or not self.good:
            self.good = {name: parameter.detach().clone() for name, parameter in self._trained().items()}
            self.good_step = self.step
        self.losses[self.step] = value
        self.step += 1
        share = self.step / max(1, self.options.steps or 1)
        self.context.progress(0.2 + 0.8 * min(1.0, share), f"recovery, loss {value:.4f}")

    @torch.no_grad()
    def _dev_loss(self) -> float:
        """The mean loss on the held-out texts, as at the end of training where the objective changes with time."""
        if isinstance(self.objective, Scheduled):
            self.objective.come_to(1.0)
        total = 0.0
        for start in range(len(self.rows) - self.held_out, len(self.rows), self.options.batch):
            numbers = list(range(start, min(start + self.options.batch, len(self.rows))))
            batch = collate([self.rows[number] for number in numbers], self.fill)
            on_device = {name: tensor.to(self.student.device) for name, tensor in batch.items()}
            total += float(self.loss(numbers, on_device)) * len(numbers)
        return total / self.held_out

    def loss(self, numbers: list[int], batch: dict[str, Any]) -> Tensor:
        """The loss of the texts ``numbers``, which ``batch`` holds."""
        student = self.student.eval()
        with self.autocast():
            targets = self.source.of(numbers, batch)
        on_device = {name: tensor.to(student.device) for name, tensor in targets.items()}
        # Not Trainer's own: it would leave the student's forward wrapped.
        with self.autocast():
            return self.objective.loss(student, batch, on_device)

    def _trained(self) -> dict[str, nn.Parameter]:
        own = {name: parameter for name, parameter in self.student.named_parameters() if parameter.requires_grad}
        learned = self.learned
        return own if learned is None else own | dict(learned.named_parameters(prefix=_LEARNED))

    @property
    def learned(self) -> nn.Module | None:
        """Parameters of the objective that are trained with the student and thrown away, or None."""
        found = getattr(self.objective, "learned", None)
        return found if isinstance(found, nn.Module) and any(True for _ in found.parameters()) else None

    def _rewind(self) -> None:
        with torch.no_grad():
            for name, parameter in self._trained().items():
                if name in self.good:
                    parameter.copy_(self.good[name])
                parameter.grad = None
        self.losses = {step: loss for step, loss in self.losses.items() if step < self.good_step}


class _RecoveryTrainer(StudentTrainer):
    """The student in evaluation mode (dropout would only blur what it is compared with) against stored outputs."""

    def __init__(self, loop: Loop, arguments: TrainingArguments) -> None:
        self.loop = loop
        super().__init__(loop.student, arguments, loop.order(), len(loop.rows) - loop.held_out, self._collate)
        if loop.development is not None:
            self.add_callback(loop.development)

    def _collate(self, numbers: list[int]) -> dict[str, Any]:
        rows = [self.loop.rows[number] for number in numbers]
        return {**collate(rows, self.loop.fill), "numbers": torch.tensor(numbers)}

    def observe(self, loss: float) -> None:
        self.loop.observe(loss)

    def stepped(self) -> None:
        if isinstance(self.loop.objective, Stepping):
            self.loop.objective.advance()

    def more_parameters(self) -> Sequence[Tensor]:
        return [] if self.loop.learned is None else list(self.loop.learned.parameters())

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        fresh = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if fresh and self.loop.learned is not None and not isinstance(self.loop.objective, Stepping):
            rate = self.args.learning_rate * LEARNED_FASTER
            optimizer.add_param_group({"params": list(self.loop.learned.parameters()), "lr": rate, "weight_decay": 0.0})
        return optimizer

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.loop.learned is not None:
            write_state(self.loop.learned.state_dict(), Path(output_dir, _LEARNED))
        if self.loop.development is not None:
            write_state(self.loop.development.state(), Path(output_dir, _DEVELOPMENT))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.loop.learned is not None:
            self.loop.learned.load_state_dict(read_state(Path(checkpoint, _LEARNED)))
        if checkpoint is not None and self.loop.development is not None:
            self.loop.development.resume(read_state(Path(checkpoint, _DEVELOPMENT)))

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        if isinstance(self.loop.objective, Scheduled):
            self.loop.objective.come_to(self.loop.step / max(1, self.loop.options.steps or 1))
        batch = {name: tensor for name, tensor in inputs.items() if name != "numbers"}
        return self.loop.loss(inputs["numbers"].tolist(), batch)
