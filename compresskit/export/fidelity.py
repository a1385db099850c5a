"""How much of a checkpoint a file keeps: its outputs beside those of the same weights with float products."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compresskit.calibrate.forward import evaluating
from compresskit.calibrate.outputs import pool
from compresskit.export.batches import forward_batches
from compresskit.export.graph import forward_task, is_seq2seq
from compresskit.export.parity import HIDDEN, TEXT, attended, cosine, session
from compresskit.export.report import ExportReport
from compresskit.export.seq2seq import start_token
from compresskit.export.trace import swapped
from compresskit.export.writing import expected, write
from compresskit.nn.bitsandbytes_layers import MixedInt8Linear
from compresskit.nn.int8 import Int8Linear
from compresskit.nn.static_int8 import StaticInt8Linear

_WRITTEN = 16


@contextlib.contextmanager
def float_products() -> Iterator[None]:
    """While open, layers whose activations are integers compute in floats, with the weights that their codes stand for.

    What every profile rounds in its own way is rounded in none, so that files of several profiles can be compared.
    """
    with contextlib.ExitStack() as stack:
        for kind in (Int8Linear, MixedInt8Linear, StaticInt8Linear):
            stack.enter_context(swapped(kind, "forward", _plain))
        yield


def _plain(layer: Any, x: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, layer.weight.to(x.dtype), layer.bias)


def fidelity(
    model: PreTrainedModel,
    report: ExportReport,
    tokenizer: PreTrainedTokenizerBase | None,
    sentence_transformer: Any = None,
) -> float:
    """Mean cosine of what the files of ``report`` give and what ``model`` gives with float products.

    Of embeddings, or means of hidden states, of texts; of logits where there is a head: of every position of a decoder
    and of every class. On built-in texts outside calibration, or on random tokens where no tokenizer fits.
    """
    with evaluating(model), float_products():
        if len(report.graphs) == 3 and is_seq2seq(model):
            batch = _batch(forward_batches(model, tokenizer, ["input_ids", "attention_mask"]))
            given = batch["input_ids"][:, :_WRITTEN]
            sessions = {name: session(graph.file) for name, graph in report.graphs.items()}
            _, found = write(sessions, batch, start_token(model), given.shape[1], given)
            return float(cosine(*(x.double().flatten(0, 1) for x in (expected(model, batch, given), found))).mean())
        pooled = "sentence_embedding" in report.graphs["model"].outputs
        task = forward_task(model, tokenizer, pooling=pooled, sentence_transformer=sentence_transformer)
        batch = _batch(forward_batches(model, tokenizer))
        batch = {name: tensor for name, tensor in batch.items() if name in task.inputs}
        output = list(task.outputs)[-1]
        wanted, found, mask = task.run(batch)[output], _output(report.path, batch, output), task.mask_of(output, batch)
        if output == HIDDEN and mask is not None:
            wanted, found, mask = pool(wanted, mask), pool(found, mask), None
        return float(cosine(attended(wanted, mask), attended(found, mask)).mean())


def _batch(batches: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return dict(batches.get(TEXT) or batches["padded"])


def _output(path: Path, batch: Mapping[str, Tensor], name: str) -> Tensor:
    (found,) = session(path).run([name], {key: value.numpy() for key, value in batch.items()})
    return torch.from_numpy(found)
