"""What writes to the residual stream of a model with RMSNorms, and what reads from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.core import anatomy, surgery
from compresskit.core.weights import view_of

_HEADS = ("lm_head", "score", "classifier", "qa_outputs", "classification_head.dense")


@dataclass(frozen=True)
class Reading:
    """A norm, and the matrices that read what it gives; nothing else does.

    Args:
        norm: path of an RMSNorm.
        readers: paths of matrices.
    """

    norm: str
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Stream:
    """The residual stream of a model; an encoder and its decoder share one basis, since they share the table.

    Args:
        tables: paths of the embedding tables whose rows begin it; several may be one parameter.
        writers: paths of the matrices whose outputs are added to it.
        readings: the norms that read it.
        final: the last of ``readings``, whose readers make the model's output.
    """

    tables: tuple[str, ...]
    writers: tuple[str, ...]
    readings: tuple[Reading, ...]
    final: Reading

    @property
    def matrices(self) -> tuple[str, ...]:
        """Paths of all matrices and tables."""
        readers = (path for reading in self.readings for path in reading.readers)
        return tuple(dict.fromkeys((*self.tables, *self.writers, *readers)))


def stream_of(model: PreTrainedModel) -> Stream | str:
    """The residual stream of ``model``, or a sentence that says why it can't be rotated."""
    kind = model.config.model_type
    if kind not in _READERS:
        return f"{kind} is none of the models that are known to read through RMSNorms alone: {', '.join(_READERS)}"
    body = anatomy.of(model)
    heads = tuple(path for path in _HEADS if _present(model, path))
    if not heads:
        return "the model has no head: its outputs are the residual stream itself, and would come out rotated"
    readings = tuple(_READERS[kind](body, heads))
    writers = (*(part.output for part in body.attentions), *(part.output for part in body.ffns))
    tables = tuple(path for table in body.embeddings for path in (table.path, *table.tied) if path not in heads)
    found = Stream(tables, writers, readings, readings[-1])
    return _obstacle(model, found) or found


def _llama(body: anatomy.Anatomy, heads: tuple[str, ...]) -> Iterator[Reading]:
    for block in body.blocks:
        (attention,), (ffn,) = block.attentions, block.ffns
        yield Reading(f"{block.path}.input_layernorm", _inputs(attention))
        yield Reading(f"{block.path}.post_attention_layernorm", ffn.inputs)
    yield Reading(f"{body.prefix}norm", heads)


def _t5(body: anatomy.Anatomy, heads: tuple[str, ...]) -> Iterator[Reading]:
    crossing = [part for part in body.attentions if part.cross]
    for stack in body.stacks:
        for block in stack.blocks:
            for number, attention in enumerate(block.attentions):
                queries = (attention.query.path,) if attention.cross else _inputs(attention)
                yield Reading(f"{block.path}.layer.{number}.layer_norm", queries)
            (ffn,) = block.ffns
            yield Reading(f"{block.path}.layer.{len(block.attentions)}.layer_norm", ffn.inputs)
        top = f"{stack.path.removesuffix('block')}final_layer_norm"
        if stack.name == "encoder" and body.encoder_decoder:
            yield Reading(top, tuple(rows.path for part in crossing for rows in (part.key, part.value)))
        else:
            yield Reading(top, heads)


_READERS: dict[str, Callable[[anatomy.Anatomy, tuple[str, ...]], Iterable[Reading]]] = {
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
    "t5": _t5,
}


def _inputs(attention: anatomy.Attention) -> tuple[str, ...]:
    return tuple(dict.fromkeys(rows.path for rows in (attention.query, attention.key, attention.value)))


def _present(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def _obstacle(model: PreTrainedModel, stream: Stream) -> str | None:
    """Why the parts of ``stream`` can't be changed one by one, or None."""
    for path in stream.matrices:
        if view_of(path, model.get_submodule(path)) is None:
            return f"{path} is compressed already: rotate before the step that does it"
    together = (*stream.tables, *stream.final.readers)
    for path in stream.matrices:
        others = surgery.aliases(model, path) + surgery.tied_elsewhere(model, path)
        foreign = [other for other in others if other not in together]
        if path not in together and others:
            return f"{path} shares its weights with {others[0]}: each needs a rotation of its own"
        if foreign:
            return f"{path} is tied to {foreign[0]}, which is no part of the residual stream"
    return None


def gain(model: PreTrainedModel, norm: str) -> Tensor:
    """The parameter (D,) by which the norm at ``norm`` multiplies."""
    return model.get_parameter(f"{norm}.weight")


def uniform(values: Tensor) -> bool:
    """Whether all are one number: such a gain can stay where it is, since a rotation commutes with it."""
    return bool(torch.all(values == values.reshape(-1)[0]))
