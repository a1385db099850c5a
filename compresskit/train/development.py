"""Early stopping: the loss on texts that are held out, the weights where it was least, and when to give up."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from compresskit.core import processes

_STATE = ("losses", "least", "best", "worse", "kept")


class Development(TrainerCallback):
    """Asks for the loss every so many steps and at the end, and stops a training that has stopped getting better.

    Args:
        loss: the loss on held-out texts.
        step: how many steps have been taken, also before a rewind.
        trained: the parameters that are trained, by name.
        every: steps between two looks.
        patience: looks without a smaller loss after which training stops; None: never.
    """

    def __init__(
        self,
        loss: Callable[[], float],
        step: Callable[[], int],
        trained: Callable[[], dict[str, nn.Parameter]],
        every: int,
        patience: int | None,
    ) -> None:
        self.loss, self.step, self.trained, self.every, self.patience = loss, step, trained, every, patience
        self.losses: dict[int, float] = {}
        self.least = math.inf
        self.best = self.worse = 0
        self.kept: dict[str, Tensor] = {}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        step = self.step()
        if step % self.every and state.global_step < state.max_steps:
            return control
        found = self.losses[step] = processes.agree(self.loss())
        self.worse += 1
        if found < self.least:
            self.least, self.best, self.worse = found, step, 0
            self.kept = {name: parameter.detach().clone() for name, parameter in self.trained().items()}
        if self.patience is not None and self.worse >= self.patience:
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
        return {name: getattr(self, name) for name in _STATE}

    def resume(self, state: dict[str, Any]) -> None:
        """Go back to a ``state``."""
        for name in _STATE:
            setattr(self, name, state[name])
