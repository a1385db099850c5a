"""Texts that a language model writes itself: the beginning of a given text, gone on with.

Rows with prompts of one length go through the model together, so nothing is padded on the left and each row gets what
it would get alone.

Shapes: B texts, T tokens of the longest, N predicted tokens, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedModel

from compresskit.calibrate.batches import Row, collate, longest_input
from compresskit.core.context import Batch


@dataclass(frozen=True)
class Decoding:
    """How a text is gone on with.

    Args:
        prompt: tokens of the given text that are kept, at most all but its last. An encoder-decoder reads the whole
            text in its encoder, and its decoder begins anew.
        new_tokens: at most so many follow.
        temperature: of sampling; 0 takes the likeliest token each time, or the likeliest of ``beams`` texts.
    """

    prompt: int = 8
    new_tokens: int = 32
    temperature: float = 1.0
    beams: int = 1


@dataclass(frozen=True)
class Written:
    """Model inputs of whole texts, and which of their tokens were written: those from ``start`` on."""

    rows: tuple[Row, ...]
    starts: tuple[int, ...]

    def batch(self) -> dict[str, Tensor]:
        """The rows put together."""
        return collate(self.rows)

    def answers(self) -> list[list[int]]:
        """The written tokens of each text."""
        return [_ids(row)[start:] for row, start in zip(self.rows, self.starts, strict=True)]

    def predicted(self) -> Tensor:
        """(B, T) bool: the positions whose next token was written."""
        lengths = torch.tensor([len(_ids(row)) for row in self.rows]).unsqueeze(1)
        following = torch.arange(1, int(lengths.max()) + 1)
        return (following >= torch.tensor(self.starts).unsqueeze(1)) & (following < lengths)


def _ids(row: Row) -> list[int]:
    return row.get("decoder_input_ids", row["input_ids"])


def whole_texts(batch: Batch, answers: Sequence[Sequence[int]], decoding: Decoding, start_token: int) -> Written:
    """The beginnings of the texts of ``batch``, followed by ``answers``."""
    rows, starts = [], []
    for given, answer in zip(unpadded(batch), answers, strict=True):
        if "decoder_input_ids" in batch:
            ids = [start_token, *answer]
            rows.append(
                {"input_ids": given, "attention_mask": [1] * len(given)}
                | {"decoder_input_ids": ids, "decoder_attention_mask": [1] * len(ids)}
            )
            starts.append(1)
        else:
            ids = [*prompt_of(given, decoding.prompt), *answer]
            rows.append({"input_ids": ids, "attention_mask": [1] * len(ids)})
            starts.append(len(ids) - len(answer))
    return Written(tuple(rows), tuple(starts))


def unpadded(batch: Batch) -> list[list[int]]:
    """The attended tokens of each text (of the encoder's side, where there are two)."""
    mask = batch["attention_mask"].bool()
    return [ids[kept].tolist() for ids, kept in zip(batch["input_ids"], mask, strict=True)]


def prompt_of(ids: Sequence[int], length: int) -> list[int]:
    """The first ``length`` tokens, without the last of the text."""
    return list(ids[: max(1, min(length, len(ids) - 1))])


@torch.no_grad()
def write(model: PreTrainedModel, batch: Batch, decoding: Decoding, *, limit: int | None = None) -> list[list[int]]:
    """What ``model`` writes behind the beginning of each text of ``batch``, up to its end token and with it.

    Sampling draws from torch's global generator.

    Args:
        limit: tokens that a text may have in all; the model's own limit by default.
    """
    limit = min(longest_input(model), limit or 10**6)
    if "decoder_input_ids" in batch:
        count = min(decoding.new_tokens, limit - 1)
        arguments = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        found: Tensor = cast(Any, model).generate(**arguments, generation_config=_settings(model, decoding, count))
        return [_until_end(ids[1:], model) for ids in found.tolist()]
    prompts = [prompt_of(ids, min(decoding.prompt, limit - 1)) for ids in unpadded(batch)]
    answers: list[list[int]] = [[] for _ in prompts]
    for length in sorted({len(prompt) for prompt in prompts}):
        numbers = [number for number, prompt in enumerate(prompts) if len(prompt) == length]
        ids = torch.tensor([prompts[number] for number in numbers], device=model.device)
        settings = _settings(model, decoding, min(decoding.new_tokens, limit - length))
        found = cast(Any, model).generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
        )
        for number, row in zip(numbers, found[:, length:].tolist(), strict=True):
            answers[number] = _until_end(row, model)
    return answers


def end_tokens(model: PreTrainedModel) -> list[int]:
    """The tokens that end a text."""
    for config in (getattr(model, "generation_config", None), model.config):
        found = getattr(config, "eos_token_id", None)
        if found is not None:
            return [int(found)] if isinstance(found, int) else [int(token) for token in found]
    return []


def _until_end(ids: list[int], model: PreTrainedModel) -> list[int]:
    ends = end_tokens(model)
    first = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[: first + 1]


def _settings(model: PreTrainedModel, decoding: Decoding, count: int) -> GenerationConfig:
    """Plain decoding, whatever habits the model's own generation config has."""
    sampled = decoding.temperature > 0
    ends = end_tokens(model)
    special: dict[str, Any] = {"temperature": decoding.temperature, "top_k": 0, "top_p": 1.0} if sampled else {}
    return GenerationConfig(
        max_new_tokens=count,
        do_sample=sampled,
        num_beams=decoding.beams,
        repetition_penalty=1.0,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
        **special,
    )


def next_token_loss(logits: Tensor, ids: Tensor, predicted: Tensor) -> Tensor:
    """Mean cross-entropy of the next token, nats, over the positions (B, T) of ``predicted``, for logits (B, T, V).

    The last position has no next token and must not be among them.
    """
    chosen = predicted[:, :-1].to(logits.device)
    return F.cross_entropy(logits[:, :-1][chosen].float(), ids[:, 1:].to(logits.device)[chosen])
