"""From texts to padded batches that a given model can take.

Padding is on the right for every model: with a mask, that is exact for encoders and for causal decoders alike.

Shapes: B batch, T tokens, U decoder tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compresskit.calibrate.forward import accepted
from compresskit.calibrate.sources import load_texts
from compresskit.core import anatomy
from compresskit.core.context import Batch
from compresskit.errors import DataError, ModelError

__all__ = [
    "check_batches",
    "collate",
    "encode",
    "load_texts",
    "longest_input",
    "random_batches",
    "tokenize",
]

Row = dict[str, list[int]]

_BATCH_TOKENS = 4096
"""The most tokens of a batch, padding counted: what a pass needs on the way grows with them."""


def tokenize(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None,
    model: PreTrainedModel,
    max_length: int = 128,
    batch_size: int = 16,
    *,
    sort_by_length: bool = True,
    warn: Callable[[str], None] | None = None,
) -> list[dict[str, Tensor]]:
    """Padded batches of the arguments that ``model.forward`` takes, (B, T) int64 each with ``attention_mask``.

    For an encoder-decoder model the first half of a text goes to the encoder and the rest, shifted right, to the
    decoder, with its ``decoder_attention_mask``.

    Args:
        max_length: tokens a text is cut to; less where model or tokenizer allow less.
        batch_size: texts in a batch, fewer where texts are long.
        sort_by_length: put texts of similar length together (less padding); otherwise their order is kept.
        warn: told about a ``max_length`` that had to be lowered, and about texts without any token.

    Raises:
        DataError: CK-D003 no text, CK-D006 a token id outside the vocabulary, CK-D007 nothing but padding,
            CK-D008 no tokenizer.
    """
    rows = encode(texts, tokenizer, model, max_length, warn=warn)
    if sort_by_length:
        rows = sorted(rows, key=_length, reverse=True)
    fill = padding(tokenizer)
    size = max(1, min(batch_size, _BATCH_TOKENS // max(map(_length, rows))))
    return [collate(rows[start : start + size], fill) for start in range(0, len(rows), size)]


def encode(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None,
    model: PreTrainedModel,
    max_length: int = 128,
    *,
    warn: Callable[[str], None] | None = None,
) -> list[Row]:
    """Model inputs of each text, unpadded: the rows of ``tokenize`` before they are put together."""
    if tokenizer is None:
        raise DataError(
            "CK-D008",
            "there is no tokenizer to turn text into tokens",
            why="the model's folder holds none",
            fix="put the tokenizer's files beside the model, or give ready batches from Python",
        )
    if len(texts) == 0:
        raise DataError("CK-D003", "there is no text", fix="give calibration data with at least one text")
    limit = longest_input(model, tokenizer)
    if limit < max_length:
        if warn is not None:
            warn(f"texts are cut to {limit} tokens, the most this model takes, not {max_length}")
        max_length = limit
    known = accepted(model)
    double = "decoder_input_ids" in known and bool(getattr(model.config, "is_encoder_decoder", False))
    if double:
        rows = _halves(texts, tokenizer, model, max_length)
    else:
        encoded = tokenizer(list(texts), truncation=True, max_length=max_length, return_attention_mask=True)
        names = [name for name in encoded if name in known]
        rows = [
            {name: encoded[name][index] for name in names} | {"attention_mask": encoded["attention_mask"][index]}
            for index in range(len(texts))
        ]
    kept = [row for row in rows if sum(row["attention_mask"]) > 0 and row.get("decoder_input_ids", [0])]
    _refuse_empty(len(rows), len(kept), warn)
    _refuse_foreign_ids(rows, model)
    return kept


def _halves(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, max_length: int
) -> list[Row]:
    """The first half of each text for the encoder, the second for the decoder, each at most ``max_length``."""
    plain = tokenizer(list(texts), truncation=True, max_length=2 * max_length, add_special_tokens=False)["input_ids"]
    before, after = _frame(tokenizer)
    start = decoder_start(model)
    rows = []
    for ids in plain:
        middle = (len(ids) + 1) // 2
        source = [*before, *ids[: min(middle, max_length - len(before) - len(after))], *after]
        target = [start, *ids[middle : middle + max_length - 1]]
        rows.append(
            {
                "input_ids": source if ids else [],
                "attention_mask": [1] * (len(source) if ids else 0),
                "decoder_input_ids": target if ids else [],
                "decoder_attention_mask": [1] * (len(target) if ids else 0),
            }
        )
    return rows


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    whole: list[int] = tokenizer("a")["input_ids"]
    plain: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    at = next(at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
    return whole[:at], whole[at + len(plain) :]


def decoder_start(model: PreTrainedModel) -> int:
    """The token that a decoder begins with."""
    for config in (model.config, getattr(model, "generation_config", None)):
        start = getattr(config, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    pad = getattr(model.config, "pad_token_id", None)
    if pad is None:
        raise DataError(
            "CK-D015",
            "the model doesn't say which token its decoder begins with",
            where="config.json",
            fix="set decoder_start_token_id",
        )
    return int(pad)


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> int:
    """The most tokens that the model has positions for, and that the tokenizer gives."""
    limits = [10**6]
    if tokenizer is not None and tokenizer.model_max_length:
        limits.append(int(tokenizer.model_max_length))
    limits.extend(_position_limits(model))
    return min(limits)


def _position_limits(model: PreTrainedModel) -> list[int]:
    config = model.config
    if config.model_type in ("t5", "switch_transformers", "xlnet"):
        return []  # positions are relative: no length is too long
    stated = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    limits = [int(stated)] if stated else []
    try:
        tables = [table for table in anatomy.of(model).embeddings if table.role == "position"]
    except ModelError:
        tables = []
    for table in tables:
        module = model.get_submodule(table.path)
        padding_idx = getattr(module, "padding_idx", None)
        # RoBERTa counts positions from padding_idx + 1 on; the rows before are never read.
        skipped = 0 if padding_idx is None else int(padding_idx) + 1
        limits = [limit - skipped for limit in limits]
    return limits


def padding(tokenizer: PreTrainedTokenizerBase | None) -> int:
    """The id that fills up rows; any will do under the mask, so models without a padding token get 0."""
    pad = getattr(tokenizer, "pad_token_id", None)
    return 0 if pad is None else int(pad)


def _length(row: Row) -> int:
    return len(row["input_ids"])


def collate(rows: Sequence[Row], fill: int = 0) -> dict[str, Tensor]:
    """Rows put together: (B, longest) int64, filled on the right with ``fill`` for tokens and 0 for the rest."""
    batch = {}
    for name in rows[0]:
        longest = max(len(row[name]) for row in rows)
        value = fill if name.endswith("input_ids") else 0
        batch[name] = torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])
    return batch


def random_batches(
    model: PreTrainedModel,
    *,
    samples: int = 8,
    max_length: int = 16,
    batch_size: int = 4,
    seed: int = 0,
    ragged: bool = True,
) -> list[dict[str, Tensor]]:
    """Batches of random tokens, for models without a tokenizer; only where someone asks for them.

    Each row ends with the end token, and has it nowhere else, where the config names one.

    Fidelity on such text says little: real text excites other directions of the model.
    """
    generator = torch.Generator().manual_seed(seed)
    size = vocabulary_size(model)
    double = "decoder_input_ids" in accepted(model) and bool(getattr(model.config, "is_encoder_decoder", False))
    length = min(max_length, longest_input(model))

    end = getattr(model.config, "eos_token_id", None)
    ends = [end] if isinstance(end, int) else list(end or ())

    def ids() -> list[int]:
        low = max(2, length // 2) if ragged else length
        tokens = int(torch.randint(low, length + 1, (), generator=generator))
        drawn = torch.randint(0, size, (tokens,), generator=generator).tolist()
        plain = [token if token not in ends else (max(ends) + 1) % size for token in drawn]
        return [*plain[:-1], *ends[:1]] if ends else plain

    rows: list[Row] = []
    for _ in range(samples):
        source = ids()
        row = {"input_ids": source, "attention_mask": [1] * len(source)}
        if double:
            target = ids()
            row |= {"decoder_input_ids": target, "decoder_attention_mask": [1] * len(target)}
        rows.append(row)
    return [collate(rows[start : start + batch_size]) for start in range(0, samples, batch_size)]


def vocabulary_size(model: PreTrainedModel) -> int:
    """Rows of the input embedding."""
    table = model.get_input_embeddings()
    size = getattr(table, "num_embeddings", None)
    return int(size if size is not None else model.config.vocab_size)


def _refuse_empty(given: int, kept: int, warn: Callable[[str], None] | None) -> None:
    if kept == 0:
        raise DataError(
            "CK-D007",
            f"none of the {given} texts gives a single attended token",
            why="they are empty, or the tokenizer drops all that they hold",
            fix="check the file and the column",
        )
    if kept < given and warn is not None:
        warn(f"{given - kept} of {given} texts give no token and were left out")


def _refuse_foreign_ids(rows: Sequence[Row], model: PreTrainedModel) -> None:
    size = vocabulary_size(model)
    for index, row in enumerate(rows):
        for name in ("input_ids", "decoder_input_ids"):
            ids = row.get(name)
            if ids and not 0 <= min(ids) <= max(ids) < size:
                raise _foreign(f"text {index} (from 0)", max(ids) if max(ids) >= size else min(ids), size)


def _foreign(where: str, token: int, size: int) -> DataError:
    return DataError(
        "CK-D006",
        f"token {token} lies outside the model's vocabulary of {size}",
        where=where,
        why="the tokenizer belongs to another model, or tokens were added to it",
        fix="use the tokenizer that the model was trained with",
    )


def check_batches(model: PreTrainedModel, batches: Sequence[Batch]) -> None:
    """Refuse ready-made batches that the model would stumble over, each with its number.

    Raises:
        DataError: CK-D003 none, CK-D006 a token outside the vocabulary, CK-D007 a batch of padding only,
            CK-D009 a wrong type or shape, or a value that isn't finite.
    """
    if len(batches) == 0:
        raise DataError("CK-D003", "there are no batches", fix="give calibration data")
    size = vocabulary_size(model)
    for index, batch in enumerate(batches):
        where = f"batch {index} (from 0)"
        for name, tensor in batch.items():
            problem = _problem(name, tensor)
            if problem:
                raise DataError("CK-D009", f"{name} {problem}", where=where)
        ids = batch.get("input_ids")
        mask = batch.get("attention_mask")
        if mask is not None and ids is not None and mask.shape[:2] != ids.shape:
            raise DataError(
                "CK-D009", f"attention_mask is {tuple(mask.shape)}, input_ids {tuple(ids.shape)}", where=where
            )
        if mask is not None and not bool(mask.any()):
            raise DataError("CK-D007", "the batch holds nothing but padding", where=where)
        if ids is not None and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < size:
            rows = ((ids < 0) | (ids >= size)).any(1).nonzero()
            bad = ids[int(rows[0])]
            worst = int(bad.max() if bad.max() >= size else bad.min())
            raise _foreign(f"{where}, row {int(rows[0])}", worst, size)


def _problem(name: str, tensor: Any) -> str | None:
    if not isinstance(tensor, Tensor):
        return f"is {type(tensor).__name__}, not a tensor"
    if name.endswith(("input_ids", "token_type_ids")) and tensor.dtype not in (torch.int64, torch.int32):
        return f"is {tensor.dtype}, not int64"
    if tensor.numel() == 0:
        return f"is empty: {tuple(tensor.shape)}"
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        return "holds NaN or infinite values"
    return None
