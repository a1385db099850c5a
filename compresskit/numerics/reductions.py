"""From what a model gives to what a task scores, in numpy: the same for torch, ONNX Runtime and OpenVINO.

They run in the process that holds the model, outside what is timed: hidden states and logits over a vocabulary are too
large to hand on.

Shapes: B texts, T tokens, D hidden size, C classes, V vocabulary, N kept positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]

NO_TARGET = -100
_POOLED = ("sentence_embedding", "embedding", "embeddings")
_HIDDEN = ("last_hidden_state", "token_embeddings")
_LOGITS = ("logits", "prediction_logits")
_AT_ONCE = 2**22
"""Logits that are worked on in float64 at once: 32 MB."""


def _one(outputs: Arrays, names: tuple[str, ...]) -> np.ndarray | None:
    return next((outputs[name] for name in names if name in outputs), None)


def _pool(
    batch: Arrays, outputs: Arrays, pooling: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    pooled = _one(outputs, _POOLED)
    if pooled is None:
        hidden = _one(outputs, _HIDDEN)
        if hidden is None:
            raise KeyError(f"no embeddings among the outputs {sorted(outputs)}")
        pooled = pooling(np.asarray(hidden, dtype=np.float32), batch["attention_mask"].astype(bool))
    return {"embedding": np.asarray(pooled, dtype=np.float32)}


def pool_mean(batch: Arrays, outputs: Arrays) -> dict[str, np.ndarray]:
    """``embedding`` (B, D): the mean over attended tokens of hidden states (B, T, D), unless the graph pooled them."""

    def mean(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
        total: np.ndarray = (hidden * mask[..., None]).sum(1) / np.maximum(mask.sum(1), 1)[:, None]
        return total

    return _pool(batch, outputs, mean)


def pool_cls(batch: Arrays, outputs: Arrays) -> dict[str, np.ndarray]:
    """``embedding``: the first token."""
    return _pool(batch, outputs, lambda hidden, mask: hidden[:, 0])


def pool_max(batch: Arrays, outputs: Arrays) -> dict[str, np.ndarray]:
    """``embedding``: the largest value of each feature over attended tokens."""
    return _pool(batch, outputs, lambda hidden, mask: np.where(mask[..., None], hidden, -np.inf).max(1))


def pool_lasttoken(batch: Arrays, outputs: Arrays) -> dict[str, np.ndarray]:
    """``embedding``: the last attended token."""

    def last(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return hidden[np.arange(len(mask)), mask.shape[1] - 1 - mask[:, ::-1].argmax(1)]

    return _pool(batch, outputs, last)


POOLINGS = {"mean": pool_mean, "cls": pool_cls, "max": pool_max, "lasttoken": pool_lasttoken}


def class_logits(batch: Arrays, outputs: Arrays) -> dict[str, np.ndarray]:
    """``logits``: (B, C) of a classifier or (B, T, C) of a tagger, in float32."""
    found = _one(outputs, _LOGITS)
    if found is None:
        raise KeyError(f"no logits among the outputs {sorted(outputs)}")
    return {"logits": np.asarray(found, dtype=np.float32)}


def language(batch: Arrays, outputs: Arrays) -> dict[str, np.ndarray]:
    """``nll`` (B, T) float64: -log p of ``batch["targets"]`` in nats, 0 where there is none; ``kept`` (N, V) float32.

    Position t of ``targets`` is the token after t, or ``NO_TARGET``. ``batch["kept"]`` marks positions whose logits are
    handed on, for divergences.
    """
    logits = class_logits(batch, outputs)["logits"]
    targets = batch["targets"]
    nll = np.zeros(targets.shape, dtype=np.float64)
    rows, places = np.nonzero(targets != NO_TARGET)
    step = max(1, _AT_ONCE // logits.shape[-1])
    for start in range(0, len(rows), step):
        row, place = rows[start : start + step], places[start : start + step]
        chosen = logits[row, place].astype(np.float64)
        right = np.take_along_axis(chosen, targets[row, place][:, None], axis=1)[:, 0]
        nll[row, place] = log_sum_exp(chosen) - right
    return {"nll": nll, "kept": logits[batch["kept"].astype(bool)]}


def log_sum_exp(values: np.ndarray) -> np.ndarray:
    """log Σ exp over the last axis."""
    top = values.max(-1, keepdims=True)
    found: np.ndarray = np.log(np.exp(values - top).sum(-1)) + top[..., 0]
    return found


def divergence(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """KL(reference ‖ candidate) of each row of two sets of logits (N, C), in nats, (N,)."""
    step = max(1, _AT_ONCE // max(1, reference.shape[-1]))
    parts = [np.zeros(0)]
    for start in range(0, len(reference), step):
        left = reference[start : start + step].astype(np.float64)
        right = candidate[start : start + step].astype(np.float64)
        log_p, log_q = left - log_sum_exp(left)[:, None], right - log_sum_exp(right)[:, None]
        parts.append((np.exp(log_p) * (log_p - log_q)).sum(-1))
    return np.concatenate(parts)
