"""A text classifier of word vectors and an LSTM or GRU: a small student for large teachers.

Shapes: B texts, T tokens, D numbers of a text's vector, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from compresskit.models.initial import initialise
from compresskit.models.settings import RecurrentConfig
from compresskit.nn.recurrent_padded import run_padded

_POOLINGS = ("last", "mean", "max")


class RecurrentForSequenceClassification(PreTrainedModel):
    """Word vectors, an LSTM or GRU, its states pooled, a linear layer.

    Texts are padded on the right. ``forward`` takes ``input_ids`` (B, T) and ``attention_mask`` (B, T).
    """

    config_class = RecurrentConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _no_split_modules: list[str] = []  # noqa: RUF012  (as in the base class)

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        if config.cell not in ("lstm", "gru") or config.pooling not in _POOLINGS:
            raise ValueError(f"no model with cell {config.cell!r} and pooling {config.pooling!r}")
        self.words = nn.Embedding(config.vocab_size, config.word_size, padding_idx=config.pad_token_id)
        self.rnn: nn.Module = (nn.LSTM if config.cell == "lstm" else nn.GRU)(
            config.word_size,
            config.hidden,
            config.layers,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
            bidirectional=config.bidirectional,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden * (1 + config.bidirectional), int(config.num_labels or 2))
        self.post_init()

    @classmethod
    def of_teacher(cls, teacher: PreTrainedModel, seed: int = 0, **settings: Any) -> RecurrentForSequenceClassification:
        """A student for ``teacher``, any classifier: its classes, its tokens and its table of words; the rest is new.

        Save it with the teacher's tokenizer, and a recipe names the folder as its ``model``.

        Args:
            settings: of ``RecurrentConfig``, such as ``hidden`` or ``layers``; the word size is the teacher's.
        """
        table: Any = teacher.get_input_embeddings().weight
        config = RecurrentConfig(
            vocab_size=table.shape[0],
            word_size=table.shape[1],
            pad_token_id=teacher.config.pad_token_id or 0,
            id2label=dict(teacher.config.id2label or {}),
            label2id=dict(teacher.config.label2id or {}),
            **settings,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = cls(config)
        with torch.no_grad():
            made.words.weight.copy_(table)
        return made.eval()

    def get_input_embeddings(self) -> nn.Module:
        """The table of words."""
        return self.words

    def get_output_embeddings(self) -> None:
        """None: there is no head over words."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        """Logits (B, C), and a loss where labels are given."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states, last = run_padded(self.rnn, self.words(input_ids), mask)
        logits = self.classifier(self.dropout(self._pooled(states, last, mask)))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _pooled(self, states: Tensor, last: Tensor, mask: Tensor) -> Tensor:
        if self.config.pooling == "last":
            return last
        inside = mask.unsqueeze(-1).to(states.dtype)
        if self.config.pooling == "mean":
            return (states * inside).sum(1) / inside.sum(1).clamp(min=1)
        # States lie between -1 and 1.
        return (states * inside - 2 * (1 - inside)).amax(1)

    def _init_weights(self, module: nn.Module) -> None:
        initialise(module)


AutoConfig.register(RecurrentConfig.model_type, RecurrentConfig, exist_ok=True)
AutoModelForSequenceClassification.register(RecurrentConfig, RecurrentForSequenceClassification, exist_ok=True)
