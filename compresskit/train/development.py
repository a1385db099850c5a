"""Early stopping: the loss on texts that are held out, the weights where it was least, and when to give up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from compresskit.core import processes


class Development(TrainerCallback):
    """Asks for the loss every so many steps and at the end, and stops a training that has stopped getting better.

    Args:
        loss: the loss on held-out texts.
        trained: the parameters that are trained, by name.
        every: steps between two looks.
        patience: looks without a smaller loss after which training stops; None: never.
    """

    def __init__(
        self,
        loss: Callable[[], float],
        trained: Callable[[], dict[str, nn.Parameter]],
        every: int,
        patience: int | None,
    ) -> None:
        self.loss, self.trained, self.every, self.patience = loss, trained, every, patience
        self.losses: dict[int, float] = {}
        self.best = 0
        self.kept: dict[str, Tensor] = {}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        step = state.global_step
        if step % self.every and step < state.max_steps:
            return control
        self.losses[step] = processes.agree(self.loss())
        if self.losses[step] <= min(self.losses.values()):
            self.best = step
            self.kept = {name: parameter.detach().clone() for name, parameter in self.trained().items()}
        looks = sum(other > self.best for other in self.losses)
        if self.patience is not None and looks >= self.patience:
            control.should_training_stop = True
        return control

    @torch.no_grad()
    def take_best(self) -> None:
        """Give the parameters the values with the least loss."""
        for name, parameter in self.trained().items():
            if name in self.kept:
                parameter.copy_(self.kept[name])

    def state(self) -> dict[str, Any]:
        """What a checkpoint of the training holds."""
        return {"losses": self.losses, "best": self.best, "kept": self.kept}

    def resume(self, state: dict[str, Any]) -> None:
        """Go back to a ``state``."""
        self.losses, self.best, self.kept = state["losses"], state["best"], state["kept"]
