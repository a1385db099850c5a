"""Entity starts of an encoder whose last layer alone is trained, from states that are computed once.

All layers below are frozen, as in the released MiDTD, and have no dropout here, so what they give is the same in each
epoch, arm and seed: it is kept on disk in float16. Of the last layer only the two entity markers are followed; it is
the same function as the whole model, at a fraction of its time.

Shapes: B sentences, T tokens, D hidden size.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from compresskit.calibrate.forward import hooked, run, stop_here
from compresskit.models.relation import EntityStartForRelationExtraction
from compresskit.tasks.relation_extraction import Encoded, Instance, collate_relations, mark
from compresskit.tasks.relation_extraction.build import new_model

MARKERS_SEED = 0
_AT_ONCE = 64


@dataclass(frozen=True)
class Kept(Encoded):
    """A sentence whose states begin at row ``start`` of ``states`` (tokens of all sentences, D)."""

    start: int
    states: np.ndarray


class LastLayer(EntityStartForRelationExtraction):
    """``EntityStartForRelationExtraction`` from the input of its last layer, a BERT layer, on."""

    def forward(  # type: ignore[override]
        self, states: Tensor, attention_mask: Tensor, places: Tensor, **_: Any
    ) -> SequenceClassifierOutput:
        """Logits (B, C) from states (B, T, D) and the places of the two markers (B, 2)."""
        layer = last_layer(self)
        inner = layer.attention.self
        rows = states.gather(1, places.unsqueeze(-1).expand(-1, -1, states.shape[-1]))

        def heads(values: Tensor) -> Tensor:
            return values.unflatten(-1, (inner.num_attention_heads, -1)).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            heads(inner.query(rows)),
            heads(inner.key(states)),
            heads(inner.value(states)),
            attn_mask=attention_mask[:, None, None].bool(),
            dropout_p=inner.dropout.p if self.training else 0.0,
        )
        seen = layer.attention.output(mixed.transpose(1, 2).flatten(2), rows)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(layer.feed_forward_chunk(seen).flatten(1))))


def last_layer(model: EntityStartForRelationExtraction) -> Any:
    """The last block of the encoder."""
    return _stack(model.encoder)[1][-1]


def _stack(encoder: nn.Module) -> tuple[str, Any]:
    return next((name, module) for name, module in encoder.named_modules() if isinstance(module, nn.ModuleList))


class Starts:
    """The model of all arms, and the states of all sentences.

    Args:
        encoder: folder of a BERT encoder and its tokenizer.
        work: where the model and the states are kept.
    """

    def __init__(self, encoder: Path, relations: dict[str, int], instances: Sequence[Instance], work: Path) -> None:
        from transformers import AutoTokenizer

        folder = work / "start"
        if not (folder / "model.safetensors").exists():
            new_model("bert", instances, relations, folder, encoder=encoder, seed=MARKERS_SEED, trainable_layers=1)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = LastLayer.from_pretrained(folder, local_files_only=True)
        self.work = work

    def new(self, seed: int) -> PreTrainedModel:
        """The encoder as it came, and a new classifier."""
        torch.manual_seed(seed)
        made = LastLayer(self.model.config)
        made.encoder.load_state_dict(self.model.encoder.state_dict())
        return made.eval()

    def rows(self, part: str, instances: Sequence[Instance], longest: int = 128) -> list[Encoded]:
        """Sentences with their states, which are computed where ``work`` doesn't hold them."""
        encoded = mark(instances, self.tokenizer, longest)
        starts = np.cumsum([0, *(len(row.ids) for row in encoded)])
        path = self.work / f"{part}-states.npy"
        if not path.exists():
            self._write(path, encoded, starts)
        states = np.load(path, mmap_mode="r", allow_pickle=False)
        if len(states) != starts[-1]:
            raise SystemExit(f"{path} is of other sentences: remove it")
        return [
            Kept(row.ids, row.head, row.tail, int(start), states) for row, start in zip(encoded, starts, strict=False)
        ]

    def _write(self, path: Path, encoded: Sequence[Encoded], starts: np.ndarray) -> None:
        encoder = self.model.encoder.eval()
        name, stack = _stack(encoder)
        draft = path.with_suffix(".part.npy")
        size = encoder.config.hidden_size
        states = np.lib.format.open_memmap(draft, mode="w+", dtype=np.float16, shape=(int(starts[-1]), size))
        found: list[Tensor] = []
        order = sorted(range(len(encoded)), key=lambda number: len(encoded[number].ids))
        with torch.no_grad(), hooked(encoder, {f"{name}.{len(stack) - 1}": lambda _, args, kwargs: _take(found, args)}):
            for first in range(0, len(order), _AT_ONCE):
                numbers = order[first : first + _AT_ONCE]
                batch = collate_relations([encoded[number] for number in numbers])
                run(encoder, {key: batch[key] for key in ("input_ids", "attention_mask")})
                for number, row in zip(numbers, found.pop().numpy(), strict=True):
                    length = len(encoded[number].ids)
                    states[starts[number] : starts[number] + length] = row[:length]
        states.flush()
        os.replace(draft, path)


def _take(found: list[Tensor], args: tuple[Any, ...]) -> None:
    found.append(args[0])
    stop_here()


def collate_states(rows: Sequence[Kept]) -> dict[str, Tensor]:
    """A padded batch: ``states`` (B, T, D), ``attention_mask`` (B, T), ``places`` (B, 2)."""
    longest = max(len(row.ids) for row in rows)
    states = torch.zeros(len(rows), longest, rows[0].states.shape[1])
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    for number, row in enumerate(rows):
        length = len(row.ids)
        states[number, :length] = torch.from_numpy(row.states[row.start : row.start + length].astype(np.float32))
        mask[number, :length] = 1
    return {"states": states, "attention_mask": mask, "places": torch.tensor([[r.head[0], r.tail[0]] for r in rows])}
