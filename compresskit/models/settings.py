"""Settings of our own models, as ``config.json`` keeps them."""

from __future__ import annotations

from typing import Any, Literal

from transformers import PreTrainedConfig


class _RelationConfig(PreTrainedConfig):
    """What the models have in common.

    Args:
        attention: join the sentences of a bag by selective attention (Lin et al. 2016); else each stands alone.
        classifier_dropout: on the vector of the sentence.
    """

    def __init__(self, attention: bool = False, classifier_dropout: float = 0.5, **kwargs: Any) -> None:
        self.attention, self.classifier_dropout = attention, classifier_dropout
        super().__init__(**kwargs)


class PCNNConfig(_RelationConfig):
    """Piecewise convolution (Zeng et al. 2015).

    Args:
        vocab_size: words, with 0 the padding and 1 the unknown.
        word_size, position_size: of the vectors; two positions a token, to the head and to the tail.
        max_distance: relative positions are clipped to it.
        filters, kernel: of the convolution.
        activation: ``relu`` or ``tanh`` (the paper).
    """

    model_type = "compresskit_pcnn"

    def __init__(
        self,
        vocab_size: int = 100,
        word_size: int = 50,
        position_size: int = 5,
        max_distance: int = 60,
        filters: int = 230,
        kernel: int = 3,
        activation: str = "relu",
        max_position_embeddings: int = 128,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.word_size, self.position_size = vocab_size, word_size, position_size
        self.max_distance, self.filters, self.kernel, self.activation = max_distance, filters, kernel, activation
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**{"pad_token_id": 0, **kwargs})


class BiLSTMConfig(_RelationConfig):
    """Bidirectional LSTM with word attention (Zhou et al. 2016).

    Args:
        hidden: of each direction; the two are added.
        embedding_dropout, state_dropout: on the words, and on the states.
    """

    model_type = "compresskit_bilstm"

    def __init__(
        self,
        vocab_size: int = 100,
        word_size: int = 100,
        position_size: int = 5,
        max_distance: int = 60,
        hidden: int = 100,
        embedding_dropout: float = 0.3,
        state_dropout: float = 0.3,
        max_position_embeddings: int = 128,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.word_size, self.position_size = vocab_size, word_size, position_size
        self.max_distance, self.hidden = max_distance, hidden
        self.embedding_dropout, self.state_dropout = embedding_dropout, state_dropout
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**{"pad_token_id": 0, **kwargs})


class EntityStartConfig(_RelationConfig):
    """The states at the markers before head and tail, of any encoder (Baldini Soares et al. 2019).

    Args:
        encoder: config of the encoder, as a mapping with its ``model_type``.
        trainable_layers: last layers that training changes; None: all. The released MiDTD trains 1.
    """

    model_type = "compresskit_entity_start"

    def __init__(
        self, encoder: dict[str, Any] | None = None, trainable_layers: int | None = None, **kwargs: Any
    ) -> None:
        self.encoder, self.trainable_layers = encoder or {"model_type": "bert"}, trainable_layers
        self.vocab_size = int(self.encoder.get("vocab_size", 30522))
        self.max_position_embeddings = int(self.encoder.get("max_position_embeddings", 512))
        super().__init__(**{"pad_token_id": self.encoder.get("pad_token_id", 0), **kwargs})


class RecurrentConfig(PreTrainedConfig):
    """Word vectors and an LSTM or GRU over them (Tang et al. 2019: what BERT can be distilled into).

    Args:
        vocab_size, word_size: of the table of words; 0 is the padding.
        cell: ``lstm`` or ``gru``.
        layers, hidden: how many, and the size of each direction's states.
        bidirectional: whether there is a backward direction.
        pooling: how states become a vector: ``last`` of each direction, ``mean`` or ``max`` over the words.
        dropout: between layers, and on the vector.
    """

    model_type = "compresskit_recurrent"

    def __init__(
        self,
        vocab_size: int = 30_000,
        word_size: int = 256,
        cell: Literal["lstm", "gru"] = "lstm",
        layers: int = 2,
        hidden: int = 256,
        bidirectional: bool = True,
        pooling: Literal["last", "mean", "max"] = "last",
        dropout: float = 0.1,
        max_position_embeddings: int = 512,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.word_size, self.cell, self.layers, self.hidden = (
            vocab_size,
            word_size,
            cell,
            layers,
            hidden,
        )
        self.bidirectional, self.pooling, self.dropout = bidirectional, pooling, dropout
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**{"pad_token_id": 0, **kwargs})
