"""The one training loop: ``Trainer`` with an order of batches of its own, in one process or several.

What differs between trainings is the loss and what is noted of it: see ``train.loop`` for recovery towards a teacher,
``train.labelled`` for training on labels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from compresskit.checkpoint.resume import ResumableTrainer, newest_checkpoint
from compresskit.core import processes
from compresskit.errors import ModelError, UsageError
from compresskit.nn.quantized import QuantizedLayer
from compresskit.train.order import BatchOrder

Collate = Callable[[list[int]], dict[str, Any]]


def in_bfloat16(device: torch.device, enabled: bool) -> torch.autocast:
    """Inside, products are computed in bfloat16 if ``enabled``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


@contextmanager
def in_float32(model: PreTrainedModel, types: set[torch.dtype]) -> Iterator[None]:
    """Half-precision weights would swallow small updates: where ``types`` has one, all computes in float32 inside.

    What isn't trained has the same bits afterwards.
    """
    if not types & {torch.float16, torch.bfloat16}:
        yield
        return
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: tensor.dtype for name, tensor in tensors.items()}
    kept = {name: tensor.data for name, tensor in tensors.items() if not tensor.requires_grad}
    computing = {layer: layer.dtype for layer in model.modules() if isinstance(layer, QuantizedLayer)}
    nn.Module.float(model)  # PreTrainedModel's own refuses quantized models
    for parameter in model.parameters():
        if parameter.requires_grad:  # also codebooks, which layers keep in the type that is stored
            parameter.data = parameter.data.float()
    try:
        yield
    finally:
        trained = {name: tensor.data for name, tensor in model.named_parameters() if name not in kept}
        for layer, dtype in computing.items():
            layer.to(dtype)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            tensor.data = kept[name] if name in kept else trained[name].to(before[name])


def training_arguments(
    folder: Path, *, device: torch.device, batch: int, seed: int, save_every: int | None, **more: Any
) -> TrainingArguments:
    """What all trainings have in common: silent, and saved only every ``save_every`` steps, never if None."""
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        seed=seed,
        remove_unused_columns=False,
        save_strategy="no" if save_every is None else "steps",
        save_steps=save_every or 1,
        save_total_limit=1,
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        **more,
    )


class _Numbers(Dataset[int]):
    """The numbers of the rows: what they stand for is looked up when a batch is put together."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, number: int) -> int:
        return number


class _Replica(nn.Module):
    """One of several equal models; keeps ``Trainer`` from wrapping it, as gradients are averaged here."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self.module(*arguments, **named)


class StudentTrainer(ResumableTrainer):
    """Calls ``observe`` with the loss of each step, over all its batches and processes, before the weights change.

    Gradients are averaged over the processes after the last batch of a step.

    Raises:
        UsageError: CK-D092, in a process that was launched with others and hasn't joined them.
    """

    several_processes: ClassVar[bool] = True

    def __init__(
        self,
        model: PreTrainedModel,
        arguments: TrainingArguments,
        order: BatchOrder,
        rows: int,
        collate: Collate,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self._numbers = _Numbers(rows)
        if arguments.world_size > processes.count():
            raise UsageError(
                "CK-D092",
                f"this process was launched as one of {arguments.world_size}, and hasn't joined the others",
                fix="call compresskit.core.processes.start() first, or start the program without torchrun",
            )
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=self._numbers,
            data_collator=collate,
            optimizers=(optimizer, None),
        )
        self.order = order
        self._losses: list[Tensor] = []
        # It would print a summary to stdout, which belongs to the caller.
        self.remove_callback(PrinterCallback)

    def observe(self, loss: float) -> None:
        """Note the loss of a step."""

    def stepped(self) -> None:
        """All gradients of a step are there, before the optimizer takes it."""

    def more_parameters(self) -> Sequence[Tensor]:
        """What is learned beside the model."""
        return ()

    def get_train_dataloader(self) -> DataLoader[int]:
        # With a generator of its own: the global one is the student's, for dropout.
        return DataLoader(
            self._numbers,
            batch_sampler=self.order,
            collate_fn=self.data_collator,
            generator=torch.Generator(),
        )

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: it would take longer than a step of a small model."""
        return 0

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        if not self._losses:
            for parameter in self.more_parameters():
                parameter.grad = None  # Trainer clears the gradients of its model alone
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._losses.append(loss)
        if self.accelerator.sync_gradients:
            whole = processes.mean(torch.stack(self._losses).sum())
            self._losses = []
            self.observe(float(whole))
            if processes.count() > 1:
                trained = [item for item in self._plain_model().parameters() if item.requires_grad]
                processes.average([*trained, *self.more_parameters()])
            self.stepped()
        return loss

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        if processes.count() == 1 or isinstance(model, _Replica):
            return model
        return _Replica(model)

    def go(self, folder: Path, notice: Callable[[int], None]) -> None:
        """Train to the end, from the newest whole checkpoint in ``folder`` if there is one, telling its step.

        Each process draws its own random numbers (dropout, replaced blocks).
        """
        place = processes.agree(_whole(folder) if processes.is_first() else None)
        if place is not None:
            notice(int(place.rpartition("-")[2]))
        torch.manual_seed(self.args.seed + processes.index())
        self.train(resume_from_checkpoint=place)


def _whole(folder: Path) -> str | None:
    """The newest whole checkpoint in ``folder``, or None."""
    if not any(folder.glob("checkpoint-*")):
        return None
    try:
        return str(newest_checkpoint(folder))
    except ModelError:
        return None


@contextmanager
def kept_randomness() -> Iterator[None]:
    """Inside, the global generators may be seeded; afterwards they are as before."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def kept_config(model: PreTrainedModel) -> Iterator[None]:
    """``Trainer`` writes ``use_cache`` into the config, which is saved with the model."""
    value = vars(model.config).get("use_cache")
    try:
        yield
    finally:
        if value is not None:
            model.config.use_cache = value
        else:
            vars(model.config).pop("use_cache", None)
