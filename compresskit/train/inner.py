"""Objectives that look inside: hidden states of mapped layers, attention scores, relations of queries, keys, values.

What is compared is caught by hooks at the blocks and at the projection matrices, so that it works for models whose
blocks, heads or matrices were changed. The teacher's vectors are cached token by token; T x T maps are made of them.

Shapes: B texts, T tokens, D hidden size, W width of queries (or keys, values), L layers as they are run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.calibrate.forward import PostHook, PreHook, first_tensor, hidden_of, hooked
from compresskit.calibrate.outputs import forward, result_mask
from compresskit.core import anatomy
from compresskit.core.context import Batch
from compresskit.errors import DataError
from compresskit.train.inner_losses import Pair, StateLoss, relation_loss, score_loss, state_loss
from compresskit.train.objective import Targets

Role = Literal["query", "key", "value"]
LayerMap = Literal["skip", "last"] | tuple[int | None, ...]
MOST_RELATION_HEADS = 12


def layer_pairs(layers: LayerMap, student: int, teacher: int) -> list[tuple[int, int]]:
    """(student's layer, teacher's layer) from 0, for models of so many layers.

    ``skip`` spreads the student's layers evenly and ends at the teacher's last, ``last`` takes the teacher's last
    ones, a tuple names the teacher's layer for each of the student's, with None for those left alone.

    Raises:
        DataError: CK-D071 for a list of another length or with layers that don't exist.
    """
    if layers == "skip":
        return [(m, max(1, (m + 1) * teacher // student) - 1) for m in range(student)]
    if layers == "last":
        return [(m, max(0, teacher - student + m)) for m in range(student)]
    if len(layers) != student or any(g is not None and not 0 <= g < teacher for g in layers):
        raise DataError(
            "CK-D071",
            f"the layer map {list(layers)} doesn't fit",
            why=f"the student has {student} layers, the teacher {teacher}",
            fix=f"give {student} numbers from 0 to {teacher - 1}, or null for a layer that is left alone",
        )
    return [(m, int(g)) for m, g in enumerate(layers) if g is not None]


@dataclass
class Inside:
    """What one forward pass showed: the blocks' first input, and of each layer its output and projections."""

    output: Tensor
    embedding: list[Tensor] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)
    query: list[Tensor] = field(default_factory=list)
    key: list[Tensor] = field(default_factory=list)
    value: list[Tensor] = field(default_factory=list)

    def named(self, name: str) -> Tensor:
        """The tensor ``kind-layer``, (B, T, …)."""
        kind, _, layer = name.partition("-")
        found: list[Tensor] = getattr(self, kind)
        return found[int(layer)]


def look(model: PreTrainedModel, batch: Batch) -> Inside:
    """One forward pass, with whatever gradients are on. The first attention of a block is its self-attention."""
    inside = Inside(torch.empty(0))
    before: dict[str, PreHook] = {}
    after: dict[str, PostHook] = {}
    blocks = anatomy.of(model).blocks

    def first(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not inside.embedding:
            inside.embedding.append(first_tensor(args, kwargs, blocks[0].path))

    def block(_module: object, _args: object, _kwargs: object, output: Any) -> None:
        inside.hidden.append(hidden_of(output))

    before[blocks[0].path] = first
    for part in blocks:
        after[part.path] = block
        attention = part.attentions[0]
        rows = (attention.query, attention.key, attention.value)
        for path in {row.path for row in rows}:
            found = zip((inside.query, inside.key, inside.value), rows, strict=True)
            after[path] = _slices([(kept, row) for kept, row in found if row.path == path])
    with hooked(model, before, after):
        inside.output = forward(model, batch)
    return inside


def _slices(parts: Sequence[tuple[list[Tensor], anatomy.Rows]]) -> PostHook:
    def keep(_module: object, _args: object, _kwargs: object, output: Any) -> None:
        for found, rows in parts:
            found.append(output[..., rows.start : rows.stop])

    return keep


@dataclass
class InnerObjective:
    """A weighted sum of terms, each a mean over the layer pairs; a term of weight 0 is off.

    Args:
        layers: which of the teacher's layers each of the student's follows; see ``layer_pairs``.
        hidden, embedding: weights of the blocks' outputs, and of the first block's input.
        scores, maps: weights of the attention scores' mean square, and of the KL of their softmax.
        relations: pairs of roles whose relations are compared, each with weight 1.
        heads: pieces that relations are cut into; None: the most up to 12 that divide all widths.
        state: how states are compared.
        first_token: states of the first token only.
        seed: starts the projections that are learned where hidden sizes differ, and are then thrown away.
        last_only: instead of ``layers``, the student's last layer follows this one of the teacher, from 0 or, if
            negative, from the end.
    """

    layers: LayerMap = "skip"
    hidden: float = 0.0
    embedding: float = 0.0
    scores: float = 0.0
    maps: float = 0.0
    relations: tuple[tuple[Role, Role], ...] = ()
    heads: int | None = None
    state: StateLoss = "mse"
    first_token: bool = False
    seed: int = 0
    last_only: int | None = None
    per_token: frozenset[str] = frozenset()
    learned: nn.ModuleDict = field(default_factory=nn.ModuleDict, repr=False)
    _pairs: list[tuple[int, int]] = field(default_factory=list, repr=False)
    _sizes: dict[str, int] = field(default_factory=dict, repr=False)
    _causal: bool = False

    def key(self) -> str:
        options = (self.layers, self.hidden, self.embedding, self.scores, self.maps, self.relations, self.heads)
        return f"inner {options} {self.state} {self.first_token} {self.seed} {self.last_only} {sorted(self.per_token)}"

    def prepare(self, teacher: PreTrainedModel, student: PreTrainedModel, batch: Batch) -> None:
        """Map the layers, check what must fit, and make projections.

        Raises:
            DataError: CK-D071 for a layer map, CK-D072 for heads that can't be compared.
        """
        with torch.no_grad():
            ours, theirs = look(student, batch), look(teacher, batch)
        self._causal = anatomy.of(student).causal
        self._pairs = layer_pairs(self.layers, len(ours.hidden), len(theirs.hidden))
        if self.last_only is not None:
            chosen = self.last_only if self.last_only >= 0 else max(-1, len(theirs.hidden) + self.last_only)
            self._pairs = layer_pairs((*[None] * (len(ours.hidden) - 1), chosen), len(ours.hidden), len(theirs.hidden))
        self.per_token = frozenset(self._names())
        self._project(ours, theirs)
        self._match_heads(student, teacher, ours, theirs)

    def _roles(self) -> list[str]:
        roles = {role for pair in self.relations for role in pair}
        return sorted(roles | ({"query", "key"} if self.scores or self.maps else set()))

    def _names(self) -> list[str]:
        """Names of the teacher's tensors that the loss takes."""
        kinds = self._roles() + (["hidden"] if self.hidden else [])
        layers = sorted({theirs for _, theirs in self._pairs})
        return [f"{kind}-{layer}" for kind in kinds for layer in layers] + (["embedding-0"] if self.embedding else [])

    def _project(self, ours: Inside, theirs: Inside) -> None:
        """A linear map from the student's size to the teacher's at each pair, where they differ."""
        self.learned = nn.ModuleDict()
        pairs = [(f"hidden-{m}", f"hidden-{g}") for m, g in self._pairs] if self.hidden else []
        pairs += [("embedding-0", "embedding-0")] if self.embedding else []
        generator = torch.Generator().manual_seed(self.seed)
        for name, other in pairs:
            narrow, wide = ours.named(name).shape[-1], theirs.named(other).shape[-1]
            if narrow == wide:
                continue
            layer = nn.Linear(narrow, wide, bias=False)
            with torch.no_grad():
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / math.sqrt(narrow))
            self.learned[name] = layer.to(ours.output.device)

    def _match_heads(self, student: PreTrainedModel, teacher: PreTrainedModel, ours: Inside, theirs: Inside) -> None:
        attentions = [anatomy.of(model).attentions for model in (student, teacher)]
        self._sizes = {"student": attentions[0][0].head_dim, "teacher": attentions[1][0].head_dim}
        runs = [len(inside.hidden) // len(parts) for inside, parts in zip((ours, theirs), attentions, strict=True)]
        for m, g in self._pairs:
            counts = attentions[0][m // runs[0]].heads, attentions[1][g // runs[1]].heads
            if (self.scores or self.maps) and counts[0] != counts[1]:
                raise DataError(
                    "CK-D072",
                    "attention maps are compared head by head, and the numbers of heads differ",
                    where=f"layer {m} of the student has {counts[0]}, layer {g} of the teacher {counts[1]}",
                    fix="use distillation.minilm, which needs no equal heads",
                )
        widths = {
            self._sides(inside, role, other, layer, side)[part].shape[-1]
            for inside, side, place in ((ours, "student", 0), (theirs, "teacher", 1))
            for layer in {pair[place] for pair in self._pairs}
            for role, other in self.relations
            for part in (0, 1)
        }
        if not widths:
            return
        common = math.gcd(*widths)
        if self.heads is None:
            self._sizes["relations"] = max(n for n in range(1, MOST_RELATION_HEADS + 1) if common % n == 0)
        elif common % self.heads:
            raise DataError(
                "CK-D072",
                f"{self.heads} relation heads don't divide the widths {sorted(widths)}",
                fix=f"take a divisor of {common}",
            )
        else:
            self._sizes["relations"] = self.heads

    def targets(self, teacher: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            inside = look(teacher, batch)
        return {name: inside.named(name) for name in self._names()}

    def loss(self, student: PreTrainedModel, batch: Batch, targets: Targets) -> Tensor:
        ours, mask = look(student, batch), result_mask(student, batch)
        total = torch.zeros((), device=ours.output.device)
        if self.embedding:
            total = total + self.embedding * self._state(ours, "embedding-0", targets["embedding-0"], mask)
        for m, g in self._pairs:
            if self.hidden:
                found = self._state(ours, f"hidden-{m}", targets[f"hidden-{g}"], mask)
                total = total + self.hidden / len(self._pairs) * found
            total = total + self._maps_loss(ours, targets, m, g, mask) / len(self._pairs)
        return total

    def _state(self, ours: Inside, name: str, theirs: Tensor, mask: Tensor) -> Tensor:
        states = ours.named(name)
        if name in self.learned:
            states = self.learned[name](states)
        if self.first_token:
            # The first attended one: texts are padded on the right.
            return state_loss(states[:, 0], theirs[:, 0], self.state)
        return state_loss(states[mask], theirs[mask], self.state)

    def _maps_loss(self, ours: Inside, targets: Targets, m: int, g: int, mask: Tensor) -> Tensor:
        total = torch.zeros((), device=ours.output.device)
        for role, other in self.relations:
            pairs = self._sides(ours, role, other, m, "student"), self._sides(targets, role, other, g, "teacher")
            total = total + relation_loss(*pairs, self._sizes["relations"], mask, causal=self._causal)
        if self.scores or self.maps:
            mine = self._sides(ours, "query", "key", m, "student")
            theirs = self._sides(targets, "query", "key", g, "teacher")
            heads = mine[0].shape[-1] // self._sizes["student"]
            if self.scores:
                total = total + self.scores * score_loss(mine, theirs, heads, mask, causal=self._causal)
            if self.maps:
                total = total + self.maps * relation_loss(mine, theirs, heads, mask, causal=self._causal)
        return total

    def _sides(self, source: Inside | Targets, role: str, other: str, layer: int, side: str) -> Pair:
        """Two vectors of a layer; key-value heads that several queries share are repeated for a pair with queries."""
        names = f"{role}-{layer}", f"{other}-{layer}"
        left, right = (source.named(name) if isinstance(source, Inside) else source[name] for name in names)
        if left.shape[-1] > right.shape[-1]:
            size = self._sizes[side]
            repeats = left.shape[-1] // right.shape[-1]
            right = right.unflatten(-1, (-1, size)).repeat_interleave(repeats, dim=-2).flatten(-2)
        return left, right
