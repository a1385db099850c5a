"""The vocabulary of anatomy: where a Transformer's parts lie in one concrete, possibly already pruned, model.

All paths are dotted module paths from the model's root. An anatomy is read off the live tree, never stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rows:
    """Rows ``start:stop`` of the (O, I) matrix at ``path``; GPT-2 keeps queries, keys and values in one matrix."""

    path: str
    start: int
    stop: int


@dataclass(frozen=True)
class Attention:
    """One attention module.

    Args:
        path: the module that calls the attention function.
        query, key, value: rows of the input projections.
        output: the projection whose columns are the heads' outputs.
        heads, kv_heads, head_dim: H, its key-value counterpart, D.
        causal: a position sees only itself and those before it.
        cross: keys come from another sequence.
        attributes: attribute of ``path`` -> ``heads``, ``inner`` (heads x head_dim) or ``groups`` (query heads per
            key-value head), to be kept true when heads are removed.
        head_tables: embedding tables whose columns are heads (T5's relative positions).
        group: attentions with the same group must keep the same heads.
    """

    path: str
    query: Rows
    key: Rows
    value: Rows
    output: str
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool = False
    cross: bool = False
    attributes: Mapping[str, str] = field(default_factory=dict, hash=False)
    head_tables: tuple[str, ...] = ()
    group: str | None = None

    @property
    def members(self) -> tuple[str, ...]:
        """Paths of the matrices, each once."""
        return tuple(dict.fromkeys((self.query.path, self.key.path, self.value.path, self.output)))


@dataclass(frozen=True)
class FeedForward:
    """One feed-forward network.

    Args:
        path: the module that stands for it.
        inputs: matrices whose rows are neurons; of a gated one the gate first.
        output: the matrix whose columns are neurons.
        width: number of neurons.
        width_attribute: attribute of ``path`` that repeats the width, or None.
    """

    path: str
    inputs: tuple[str, ...]
    output: str
    width: int
    width_attribute: str | None = None

    @property
    def members(self) -> tuple[str, ...]:
        """Paths of the matrices."""
        return (*self.inputs, self.output)


@dataclass(frozen=True)
class Experts:
    """Feed-forward networks of which a router chooses a few for each token.

    Args:
        path: the module that holds the experts and calls them; its second argument says which tokens go where.
        router: the module that chooses; never quantized or pruned but by its rows.
        count: E.
        chosen: experts a token, K.
        block: the module that holds router and experts.
    """

    path: str
    router: str
    count: int
    chosen: int
    block: str


@dataclass(frozen=True)
class Block:
    """One layer of a stack; ``pinned`` says why it can't be removed, or is None."""

    path: str
    index: int
    attentions: tuple[Attention, ...]
    ffns: tuple[FeedForward, ...]
    pinned: str | None = None
    experts: tuple[Experts, ...] = ()


@dataclass(frozen=True)
class Stack:
    """A ``ModuleList`` of blocks. ``repeats`` says how often it is run (ALBERT runs one block many times)."""

    name: str
    path: str
    blocks: tuple[Block, ...]
    repeats: int = 1


@dataclass(frozen=True)
class Recurrence:
    """An LSTM or GRU at ``path``; its matrices lie below it."""

    path: str


@dataclass(frozen=True)
class EmbeddingTable:
    """A lookup table. ``role`` is word, position or token_type; ``tied`` are other paths with the same parameter."""

    path: str
    role: str
    tied: tuple[str, ...] = ()


@dataclass(frozen=True)
class Anatomy:
    """Where the parts of one model lie.

    ``lacks`` says of a kind of site why this architecture has none that can be changed; ``time_first`` that hidden
    states in the blocks are (T, B, H).
    """

    model_type: str
    prefix: str
    stacks: tuple[Stack, ...]
    embeddings: tuple[EmbeddingTable, ...]
    output_embedding: str | None
    encoder_decoder: bool = False
    lacks: Mapping[str, str] = field(default_factory=dict, hash=False)
    time_first: bool = False

    @property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks, stack by stack."""
        return tuple(block for stack in self.stacks for block in stack.blocks)

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """All attentions in the order of the model."""
        return tuple(attention for block in self.blocks for attention in block.attentions)

    @property
    def ffns(self) -> tuple[FeedForward, ...]:
        """All feed-forward networks in the order of the model."""
        return tuple(ffn for block in self.blocks for ffn in block.ffns)

    @property
    def experts(self) -> tuple[Experts, ...]:
        """All banks of experts in the order of the model."""
        return tuple(bank for block in self.blocks for bank in block.experts)

    @property
    def causal(self) -> bool:
        """Whether the model is a decoder without encoder."""
        return not self.encoder_decoder and any(attention.causal for attention in self.attentions)
