"""What a method may use besides the model: device, seed, data, teacher, tokenizer, a scratch folder, and a voice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Batch = Mapping[str, torch.Tensor]


def _silent(*_: Any) -> None:
    """Report to nobody."""


@dataclass
class Context:
    """Handed to ``Compressor.apply`` by the pipeline.

    Args:
        device: where the model lies.
        seed: every random choice derives from it.
        calibration: padded batches of model inputs, (B, T) each, with their ``attention_mask``.
        texts: unlabelled texts for recovery training.
        tokenizer: the source's tokenizer, or None.
        teacher: gives the model as it came in, in evaluation mode; loaded when first called.
        teacher_tokenizer: gives the tokenizer of ``teacher``, or None where it has none; absent where it is
            ``tokenizer``.
        data: the recipe's section ``data``: labelled files and the names of their columns; or None.
        work: a scratch folder on the output's file system, removed after the run.
        progress: called with (fraction done, what is done now).
        warn: called with a sentence for the report.
        nothing: called with a sentence where the options turn out to ask for nothing of this very model (a rank at
            which every matrix stays dense): an unchanged model is then a warning, and no error.
        details: filled by the method, path -> what was done there, for the ledger; JSON-able.
    """

    device: torch.device = torch.device("cpu")
    seed: int = 0
    calibration: Sequence[Batch] = ()
    texts: Sequence[str] = ()
    tokenizer: Any = None
    teacher: Callable[[], PreTrainedModel] | None = None
    teacher_tokenizer: Callable[[], Any] | None = None
    data: Any = None
    work: Path = Path()
    progress: Callable[[float, str], None] = _silent
    warn: Callable[[str], None] = _silent
    nothing: Callable[[str], None] = _silent
    details: dict[str, Any] = field(default_factory=dict)

    def generator(self) -> torch.Generator:
        """A CPU generator at the seed."""
        return torch.Generator().manual_seed(self.seed)
