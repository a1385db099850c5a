"""Training on labels, and on a teacher's logits beside them, by ``Trainer``.

The teacher isn't there while the student trains: its logits come as one matrix. The weights of the epoch that scores
best on development data are kept. Long training is saved on its way.

Shapes: N instances, C classes.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from compresskit.calibrate.outputs import outputs_of
from compresskit.checkpoint.plainstate import read_state, write_state
from compresskit.core import processes
from compresskit.errors import DataError
from compresskit.numerics.dynamic_distillation import dynamic_loss
from compresskit.numerics.fusion import wide
from compresskit.train.order import BatchOrder
from compresskit.train.policies import Fixed, Policy
from compresskit.train.positions import Positions
from compresskit.train.teacher_cache import model_digest
from compresskit.train.trainer import (
    StudentTrainer,
    in_bfloat16,
    in_float32,
    kept_config,
    kept_randomness,
    training_arguments,
)

Collate = Callable[[Sequence[Any]], dict[str, Tensor]]
_CHUNK = 16
_NOTES = "notes"


@dataclass(frozen=True)
class FitOptions:
    """How to train.

    Args:
        epochs: passes; the best one by development score is kept.
        lr: of Adam, constant.
        batch: instances that a process takes at once.
        accumulation: how often it does so in a step.
        clip: largest norm of the gradient.
        smoothing: label smoothing of the hard term.
        alpha: the paper's alpha, weight of the SOFT term; counts only with targets.
        squared: scale the soft term by T_teacher · T_student.
        seed: of the order and of dropout.
        patience: epochs without a better score after which training stops; None: never.
        bf16: the model computes under autocast in bfloat16; weights and optimizer stay as they are.
        save_every: steps between savings of the training itself.
    """

    epochs: int = 10
    lr: float = 2e-3
    batch: int = 64
    clip: float = 1.0
    smoothing: float = 0.0
    alpha: float = 0.8
    squared: bool = False
    seed: int = 0
    accumulation: int = 1
    patience: int | None = None
    bf16: bool = False
    save_every: int = 250


@dataclass(frozen=True)
class Fitted:
    """What training did: the mean loss and the development score of each epoch, and which epoch was kept (from 0).

    ``scores`` is empty where there was no development data; then the last epoch is kept.
    """

    losses: tuple[float, ...]
    scores: tuple[float, ...]
    best: int


@dataclass(frozen=True)
class Labelled:
    """Encoded instances and their labels, (N,) int64; ``length`` of an instance brings equal ones together.

    With ``positions`` a row holds several instances, and labels and targets are of positions.
    """

    rows: Sequence[Any]
    labels: Tensor
    collate: Collate
    length: Callable[[Any], int] = len
    positions: Positions | None = None


def fit(
    model: PreTrainedModel,
    data: Labelled,
    options: FitOptions,
    *,
    targets: Tensor | None = None,
    policy: Policy | None = None,
    score: Callable[[PreTrainedModel], float] | None = None,
    progress: Callable[[float, str], None] | None = None,
    warn: Callable[[str], None] | None = None,
    folder: Path | None = None,
) -> Fitted:
    """Train ``model`` in place; evaluation mode and no gradient afterwards.

    The same arguments give the same weights on one machine, and the global random states stay as they are.

    Args:
        targets: the teacher's fused logits, (N, C); None: labels alone.
        policy: its temperatures; T = 1 if None.
        score: of the model on development data, higher is better; None keeps the last epoch.
        folder: where training is saved on its way, to go on from there when the same is asked for again; None: nowhere.

    Raises:
        DataError: CK-D022, a loss that is no number; CK-D065, targets that don't fit the labels.
    """
    _check_targets(data, targets)
    rule = (policy or Fixed()).prepare(targets) if targets is not None else None
    with tempfile.TemporaryDirectory(prefix="compresskit-") as own, kept_randomness(), kept_config(model):
        processes.synchronise(model)
        place = Path(own) if folder is None else folder / f"labelled-{_digest(model, data, options, targets, rule)}"
        with in_float32(model, {item.dtype for item in model.parameters() if item.requires_grad}):
            run = _Run(model, data, options, targets, rule, score, progress, place, saved=folder is not None)
            run.train(warn or _silent)
    if folder is not None:
        processes.lead(lambda: shutil.rmtree(place, ignore_errors=True))
    for parameter in model.parameters():
        parameter.grad = None
    model.eval()
    return Fitted(tuple(run.losses), tuple(run.scores), run.best)


def _silent(_: str) -> None:
    """Nobody is told."""


def _check_targets(data: Labelled, targets: Tensor | None) -> None:
    if targets is None:
        return
    whole = data.positions is None or data.positions.words is None
    too_few = whole and int(data.labels.max()) >= targets.shape[-1]
    if targets.dim() != 2 or len(targets) != len(data.labels) or too_few:
        raise DataError(
            "CK-D065",
            f"teacher logits of shape {tuple(targets.shape)} don't fit {len(data.labels)} labels up to"
            f" {int(data.labels.max())}",
            fix="run the teacher over the same data, with the same classes",
        )


def _digest(
    model: PreTrainedModel, data: Labelled, options: FitOptions, targets: Tensor | None, rule: Policy | None
) -> str:
    """What an interrupted training must agree in to be gone on with."""
    digest = hashlib.blake2b(f"{options!r} {rule!r} {processes.count()}".encode(), digest_size=8)
    digest.update(model_digest(model))
    for tensor in (data.labels, *([] if targets is None else [targets])):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    for row in data.rows:
        digest.update(repr(row).encode())
    return digest.hexdigest()


class _Run:
    """One training: what is noted on its way, and the weights of the best epoch so far."""

    def __init__(
        self,
        model: PreTrainedModel,
        data: Labelled,
        options: FitOptions,
        targets: Tensor | None,
        rule: Policy | None,
        score: Callable[[PreTrainedModel], float] | None,
        progress: Callable[[float, str], None] | None,
        folder: Path,
        *,
        saved: bool,
    ) -> None:
        self.model, self.data, self.options, self.targets, self.rule = model, data, options, targets, rule
        self.score, self.progress, self.folder, self.saved = score, progress, folder, saved
        self.losses: list[float] = []
        self.scores: list[float] = []
        self.best = 0
        self.kept: dict[str, Tensor] = {}
        self.total, self.seen, self.step = 0.0, 0.0, 0
        self.part: list[float] = [0.0, 0]  # of the step that is under way

    def train(self, warn: Callable[[str], None]) -> None:
        """Train to the end, and take the best weights."""
        trainer = _LabelledTrainer(self)

        def notice(step: int) -> None:
            warn(f"training goes on from step {step}, where it was interrupted")

        trainer.go(self.folder, notice)
        if self.kept:
            self.model.load_state_dict(self.kept)

    def loss(self, numbers: Tensor, inputs: dict[str, Tensor], share: float) -> Tensor:
        """The mean loss of the rows ``numbers``, (B,), that ``inputs`` holds."""
        options = self.options
        with in_bfloat16(self.model.device, options.bf16):
            logits = self.model(**inputs).logits
        positions, ours = self.data.positions, logits
        if positions is not None:
            logits, numbers = positions.pick(logits, numbers), positions.numbers(numbers)
            ours = positions.kept(logits, numbers)
        labels = self.data.labels[numbers].to(logits.device)
        if self.targets is None or self.rule is None:
            loss = F.cross_entropy(wide(logits), labels, label_smoothing=options.smoothing)
        else:
            theirs = self.targets[numbers].to(logits.device)
            temperatures = self.rule(theirs, ours, share)
            loss = dynamic_loss(
                ours, theirs, labels, *temperatures, options.alpha, squared=options.squared, whole=logits
            )
        self.part[0] += float(loss.detach()) * len(numbers)
        self.part[1] += len(numbers)
        return loss

    def observe(self, loss: float) -> None:
        """Note a step."""
        if not math.isfinite(loss):
            where = f"step {self.step}"
            raise DataError(
                "CK-D022", "the training loss stopped being a number", where=where, fix="lower the learning rate"
            )
        self.step += 1
        processes.average(self.learned())
        if self.rule is not None:
            self.rule.advance()
        total, seen = processes.mean(torch.tensor(self.part, dtype=torch.float64)).tolist()
        self.total, self.seen, self.part = self.total + total, self.seen + seen, [0.0, 0]

    def finish_epoch(self) -> bool:
        """Note an epoch, and keep its weights if they are the best; whether it was the last one."""
        self.losses.append(self.total / self.seen)
        self.total, self.seen = 0.0, 0.0
        epoch, last = len(self.losses) - 1, self.options.epochs - 1
        if self.score is not None:
            self.model.eval()
            self.scores.append(processes.agree(self.score(self.model) if processes.is_first() else 0.0))
        if not self.scores or self.scores[-1] >= max(self.scores):
            self.best, self.kept = epoch, {}
            if self.scores and epoch < last:
                self.kept = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        patience = self.options.patience
        done = epoch == last or (patience is not None and bool(self.scores) and epoch - self.best >= patience)
        if self.progress is not None:
            share = 1.0 if done else (epoch + 1) / self.options.epochs
            self.progress(share, f"epoch {epoch + 1}, loss {self.losses[-1]:.4f}")
        return done

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides the trainer's own state."""
        return {
            "losses": self.losses,
            "scores": self.scores,
            "best": self.best,
            "kept": self.kept,
            "sums": [self.total, self.seen, self.step],
            "learned": [item.detach() for item in self.learned()],
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go back to a ``state``."""
        self.losses, self.scores, self.best, self.kept = (state[name] for name in ("losses", "scores", "best", "kept"))
        self.total, self.seen, self.step = state["sums"]
        with torch.no_grad():
            for item, value in zip(self.learned(), state["learned"], strict=True):
                item.copy_(value)

    def learned(self) -> list[nn.Parameter]:
        """What the rule of the temperatures learns."""
        return [] if self.rule is None else self.rule.learned()


class _LabelledTrainer(StudentTrainer):
    """Adam at a constant rate on the loss of ``run``; saved between epochs as well as within."""

    def __init__(self, run: _Run) -> None:
        self.run, options, model = run, run.options, run.model
        arguments = training_arguments(
            run.folder,
            device=model.device,
            batch=options.batch,
            seed=options.seed,
            save_every=None,
            num_train_epochs=options.epochs,
            gradient_accumulation_steps=options.accumulation,
            learning_rate=options.lr,
            lr_scheduler_type="constant",
            max_grad_norm=options.clip,
        )
        order = BatchOrder(
            lambda generator: [numbers.tolist() for numbers in orders(run.data, options.batch, generator)],
            math.ceil(len(run.data.rows) / options.batch),
            options.seed,
            options.accumulation,
        )
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=options.lr, fused=True)
        super().__init__(model, arguments, order, len(run.data.rows), self._collate, optimizer)
        self.add_callback(_Epochs(run))

    def _collate(self, numbers: list[int]) -> dict[str, Any]:
        rows = self.run.data.collate([self.run.data.rows[number] for number in numbers])
        return {"inputs": rows, "numbers": torch.tensor(numbers)}

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        share = self.state.global_step / max(1, self.state.max_steps)
        return self.run.loss(inputs["numbers"].cpu(), inputs["inputs"], share)

    def observe(self, loss: float) -> None:
        self.run.observe(loss)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        write_state(self.run.state(), Path(output_dir, _NOTES))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.run.resume(read_state(Path(checkpoint, _NOTES)))


class _Epochs(TrainerCallback):
    """Ends epochs, and says when to save."""

    def __init__(self, run: _Run) -> None:
        self.run = run
        self.saved = 0

    def _due(self, state: TrainerState) -> bool:
        return self.run.saved and state.global_step - self.saved >= self.run.options.save_every

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.saved = state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # After the last step of an epoch its notes come first.
        control.should_save = self._due(state) and state.epoch != round(state.epoch or 0)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.run.finish_epoch():
            control.should_training_stop = True
        else:
            control.should_save = self._due(state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.saved = state.global_step


def orders(data: Labelled, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of numbers in random order; within some batches instances of similar length are brought together."""
    shuffled = torch.randperm(len(data.rows), generator=generator)
    batches: list[Tensor] = []
    for chunk in shuffled.split(_CHUNK * batch):
        lengths = torch.tensor([data.length(data.rows[number]) for number in chunk.tolist()])
        batches += chunk[lengths.argsort(stable=True)].split(batch)
    for index in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[index]


def _tokens(row: Any) -> int:
    """Tokens of an encoded sentence, or of a text."""
    return len(row["input_ids"] if isinstance(row, Mapping) else row.ids)


def logits_of(model: PreTrainedModel, rows: Sequence[Any], collate: Collate, batch: int = 256) -> Tensor:
    """Logits of all rows in their order, (N, C) float32 on the CPU, in evaluation mode."""
    model.eval()
    order = sorted(range(len(rows)), key=lambda number: _tokens(rows[number]))
    found: Tensor | None = None
    for start in range(0, len(order), batch):
        numbers = order[start : start + batch]
        logits = outputs_of(model, collate([rows[number] for number in numbers])).float().cpu()
        found = logits.new_empty(len(rows), logits.shape[1]) if found is None else found
        found[torch.tensor(numbers)] = logits
    if found is None:
        raise DataError("CK-D003", "there is no row", fix="give a file with examples")
    return found
