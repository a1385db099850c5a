"""Training of a quantized model towards what it gave before: the model in floats teaches itself in few bits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from pydantic import Field
from transformers import PreTrainedModel

from compresskit.calibrate.outputs import output_kind
from compresskit.core import processes, surgery
from compresskit.core.compressor import Compressor, Need
from compresskit.core.context import Context
from compresskit.methods.quantization._shared import quantization_detail
from compresskit.train.loop import RecoveryOptions
from compresskit.train.objective import towards_output
from compresskit.train.options import training_texts
from compresskit.train.recovery import recover


class SelfTaught(Compressor):
    """Options of a method that may train what it has rounded."""

    train: int = Field(0, ge=0, le=10_000_000, description="steps of training towards the model before; 0: none")
    lr: float = Field(5e-4, gt=0, le=1, description="of training: peak learning rate of AdamW")
    batch: int = Field(32, ge=1, le=65_536, description="of training: texts that a process takes at once")
    max_length: int = Field(64, ge=2, le=131_072, description="of training: tokens a text is cut to")
    texts: int = Field(4096, ge=1, le=100_000, description="of training: built-in texts, where the run has none")

    def requirements(self) -> frozenset[Need]:
        """Nothing without training."""
        return frozenset({"training"} if self.train else ())

    def refuse_training(self, model: PreTrainedModel) -> str | None:
        """Why ``model`` can't teach itself, or None."""
        return refuse_headless(model) if self.train else None

    def teach(
        self,
        model: PreTrainedModel,
        context: Context,
        begin: Callable[[], None],
        *,
        freeze_embeddings: bool = True,
    ) -> None:
        """Let ``begin`` change ``model``, and train what is float in it towards what it was.

        Args:
            freeze_embeddings: whether all tables stay as they are.
        """
        options = RecoveryOptions(
            steps=self.train,
            lr=self.lr,
            batch=self.batch,
            max_length=self.max_length,
            freeze_embeddings=freeze_embeddings,
        )
        texts = training_texts(self, context)
        teacher = copy.deepcopy(model).eval()
        begin()
        outcome = recover(model, context, towards_output(model, 1.0), texts, options, teacher=teacher)
        processes.synchronise(model)  # what layers have felt, each process by its own texts
        context.details["training"] = asdict(outcome)


def install_deployed(model: PreTrainedModel, path: str, context: Context, **more: Any) -> None:
    """Put the layer that is stored in place of the one at ``path`` that was trained, and its row into the ledger."""
    trained: Any = model.get_submodule(path)
    layer = trained.deployed()
    if layer.bias is not None:
        layer.bias = trained.bias
    stored = layer.stored_bytes() - (0 if layer.bias is None else layer.bias.numel() * layer.bias.element_size())
    context.details[path] = {**more, **quantization_detail(trained.values.detach(), layer.weight, stored)}
    surgery.replace(model, path, layer)


def refuse_headless(model: PreTrainedModel) -> str | None:
    """Why ``model`` has no output to train towards, or None."""
    if output_kind(model) == "embedding" and getattr(model.config, "is_encoder_decoder", False):
        return f"{type(model).__name__} has no head to train towards; load it with its language head"
    return None
