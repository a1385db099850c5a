"""Sentence classifiers for relation extraction: PCNN, BiLSTM with word attention, and entity starts of an encoder.

Shapes: B sentences, T tokens, W word size, P position size, F filters, D hidden size, C relations, G bags.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from compresskit.models.bags import SelectiveAttention
from compresskit.models.initial import initialise
from compresskit.models.settings import BiLSTMConfig, EntityStartConfig, PCNNConfig
from compresskit.nn.recurrent_padded import run_padded


class _Relation(PreTrainedModel):
    """The head that all have: a linear layer on the vector of a sentence, or selective attention over a bag.

    ``forward`` takes ``input_ids`` (B, T), ``attention_mask`` (B, T), ``head`` and ``tail`` (B, 2) (first token and the
    one after the last of each entity), and ``bags`` (B,), numbers 0 to G - 1, where the config says ``attention``.
    """

    main_input_name = "input_ids"
    _no_split_modules: list[str] = []  # noqa: RUF012  (as in the base class)

    def _make_head(self, width: int) -> None:
        classes = int(self.config.num_labels or 2)
        self.dropout = nn.Dropout(self.config.classifier_dropout)
        self.classifier: nn.Module = (
            SelectiveAttention(width, classes) if self.config.attention else nn.Linear(width, classes)
        )

    def vectors(self, input_ids: Tensor, attention_mask: Tensor, head: Tensor, tail: Tensor) -> Tensor:
        """Vectors of the sentences, (B, D)."""
        raise NotImplementedError

    def get_input_embeddings(self) -> nn.Module:
        """The table of words."""
        return next(module for module in self.modules() if isinstance(module, nn.Embedding))

    def get_output_embeddings(self) -> None:
        """None: there is no head over words."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        head: Tensor | None = None,
        tail: Tensor | None = None,
        bags: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Logits (B, C), or (G, C) with ``bags``; a loss where labels are given, of sentences or of bags."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        nowhere = input_ids.new_zeros(input_ids.shape[0], 2)
        vectors = self.vectors(input_ids, mask, nowhere if head is None else head, nowhere if tail is None else tail)
        if isinstance(self.classifier, SelectiveAttention):
            numbers = torch.arange(len(input_ids), device=input_ids.device) if bags is None else bags
            logits = self.classifier(self.dropout(vectors), numbers, labels if self.training else None)
        else:
            logits = self.classifier(self.dropout(vectors))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _init_weights(self, module: nn.Module) -> None:
        initialise(module)
        if isinstance(module, SelectiveAttention):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


class _Words(nn.Module):
    """Word vectors beside the vectors of the distances to head and tail: (B, T, W + 2P)."""

    def __init__(self, config: PCNNConfig | BiLSTMConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.word_size, padding_idx=0)
        self.to_head = nn.Embedding(2 * config.max_distance + 1, config.position_size)
        self.to_tail = nn.Embedding(2 * config.max_distance + 1, config.position_size)
        self.most = config.max_distance
        self.width = config.word_size + 2 * config.position_size

    def forward(self, input_ids: Tensor, head: Tensor, tail: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        distances = [(places - entity[:, :1]).clamp(-self.most, self.most) + self.most for entity in (head, tail)]
        parts = [self.words(input_ids), self.to_head(distances[0]), self.to_tail(distances[1])]
        return torch.cat(parts, -1)


def pieces(mask: Tensor, head: Tensor, tail: Tensor) -> Tensor:
    """Which of the three pieces holds each token, (B, 3, T) bool: up to the first entity, between, after the second.

    Each entity ends its piece. Padding is in none.
    """
    places = torch.arange(mask.shape[1], device=mask.device)
    ends = torch.stack([head[:, 1], tail[:, 1]], 1).sort(1).values - 1
    first, second = places <= ends[:, :1], places <= ends[:, 1:]
    return torch.stack([first, ~first & second, ~second], 1) & mask.bool().unsqueeze(1)


class PCNNForRelationExtraction(_Relation):
    """Piecewise convolutional network: the largest value of each filter in each of three pieces, 3F numbers."""

    config_class = PCNNConfig
    base_model_prefix = "encoder"

    def __init__(self, config: PCNNConfig) -> None:
        super().__init__(config)
        self.words = _Words(config)
        self.convolution = nn.Conv1d(self.words.width, config.filters, config.kernel, padding=config.kernel // 2)
        self._make_head(3 * config.filters)
        self.post_init()

    def vectors(self, input_ids: Tensor, attention_mask: Tensor, head: Tensor, tail: Tensor) -> Tensor:
        # Padding is zeroed, so that a convolution at the last word sees what it sees without padding.
        words = self.words(input_ids, head, tail) * attention_mask.unsqueeze(-1)
        found = self.convolution(words.transpose(1, 2))
        inside = pieces(attention_mask, head, tail)
        # Added, not filled in: this is the time of a step, and -inf plus a finite number is -inf as well.
        outside = torch.zeros_like(inside, dtype=found.dtype).masked_fill(~inside, -torch.inf)
        largest = torch.stack([(found + outside[:, part : part + 1]).amax(-1) for part in range(3)], 1)
        largest = torch.where(inside.any(-1, keepdim=True), largest, torch.zeros_like(largest))
        activated = largest.relu() if self.config.activation == "relu" else largest.tanh()
        return activated.flatten(1)


class BiLSTMForRelationExtraction(_Relation):
    """Both directions of an LSTM added, and an attention over words: tanh of the weighted sum of states, D numbers."""

    config_class = BiLSTMConfig
    base_model_prefix = "encoder"

    def __init__(self, config: BiLSTMConfig) -> None:
        super().__init__(config)
        self.words = _Words(config)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.lstm: nn.Module = nn.LSTM(self.words.width, config.hidden, batch_first=True, bidirectional=True)
        self.state_dropout = nn.Dropout(config.state_dropout)
        self.query = nn.Linear(config.hidden, 1, bias=False)
        self._make_head(config.hidden)
        self.post_init()

    def vectors(self, input_ids: Tensor, attention_mask: Tensor, head: Tensor, tail: Tensor) -> Tensor:
        words = self.embedding_dropout(self.words(input_ids, head, tail))
        states, _ = run_padded(self.lstm, words, attention_mask)
        both = self.state_dropout(sum(states.chunk(2, -1)))
        scores = self.query(both.tanh()).squeeze(-1).masked_fill(~attention_mask.bool(), -torch.inf)
        vectors: Tensor = (scores.softmax(-1).unsqueeze(-1) * both).sum(1).tanh()
        return vectors


class EntityStartForRelationExtraction(_Relation):
    """The states of an encoder at the markers before head and tail, side by side: 2D numbers.

    Lower layers stay frozen, also after loading, where the config names ``trainable_layers``.
    """

    config_class = EntityStartConfig
    base_model_prefix = "encoder"

    def __init__(self, config: EntityStartConfig) -> None:
        super().__init__(config)
        settings = dict(config.encoder)
        inner: PreTrainedConfig = AutoConfig.for_model(settings.pop("model_type"), **settings)
        self.encoder = AutoModel.from_config(inner)
        self._make_head(2 * inner.hidden_size)
        self.post_init()

    def vectors(self, input_ids: Tensor, attention_mask: Tensor, head: Tensor, tail: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        places = torch.stack([head[:, 0], tail[:, 0]], 1).unsqueeze(-1)
        return states.gather(1, places.expand(-1, -1, states.shape[-1])).flatten(1)

    def train(self, mode: bool = True) -> EntityStartForRelationExtraction:
        """As of any module; which layers are frozen is seen to here, as loading makes all parameters anew."""
        self.freeze_lower_layers()
        return super().train(mode)

    def freeze_lower_layers(self) -> None:
        """Leave all but the last ``trainable_layers`` blocks as they are (the choice of the released MiDTD)."""
        kept = self.config.trainable_layers
        if kept is None:
            return
        stack = next(module for module in self.encoder.modules() if isinstance(module, nn.ModuleList))
        blocks = stack[max(0, len(stack) - kept) :]
        trained = {id(parameter) for block in blocks for parameter in block.parameters()}
        for parameter in self.encoder.parameters():
            if id(parameter) not in trained:
                parameter.requires_grad_(False)


MODELS: tuple[type[_Relation], ...] = (
    PCNNForRelationExtraction,
    BiLSTMForRelationExtraction,
    EntityStartForRelationExtraction,
)

_CONFIGS: tuple[type[PreTrainedConfig], ...] = (PCNNConfig, BiLSTMConfig, EntityStartConfig)
for _config, _model in zip(_CONFIGS, MODELS, strict=True):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForSequenceClassification.register(_config, _model, exist_ok=True)
