"""Where a model's bytes, operations and milliseconds are: by table, block and what is in it, head."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from compresskit.bench.operations import attention_paths, operations
from compresskit.core import anatomy
from compresskit.core.anatomy import Anatomy
from compresskit.nn.base import CompressedLayer

REPETITIONS = 5
INNER = ("attention", "ffn", "experts")
_WHOLE = ""


@dataclass(frozen=True)
class Part:
    """One line of the profile.

    Args:
        path: dotted module path, or what the rest is called.
        kind: embedding, block, attention, ffn, experts, head, other.
        parameters: numbers it holds; shared ones are counted where they come first.
        bytes: what holds them.
        layers: layer kind -> how many.
        milliseconds: CPU time of one forward spent in it, of one thread; None where it wasn't timed.
        flops: of one forward, two a multiply-add; None without a forward.
    """

    path: str
    kind: str
    parameters: int
    bytes: int
    layers: dict[str, int]
    milliseconds: float | None = None
    flops: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def profile(model: PreTrainedModel, inputs: dict[str, torch.Tensor] | None = None, *, timed: bool = True) -> list[Part]:
    """The parts of ``model`` in its order. Parts overlap: a block holds its attention and its feed-forward network.

    Args:
        inputs: of the forward that operations are counted in; without, none are.
        timed: also time that forward, repeated.
    """
    body = anatomy.of(model)
    members = {part.path: (part.path, *part.members) for part in body.attentions}
    members |= {part.path: (part.path, *part.members) for part in body.ffns}
    times = _times(model, body, members, inputs) if inputs is not None and timed else {}
    counts = operations(model, inputs) if inputs is not None else None
    counted: set[int] = set()
    outer: set[int] = set()
    parts = []
    for path, kind in _places(model, body):
        inside = kind in INNER
        held = members.get(path, (path,))
        parameters, size, layers = _count(model, held, set(outer) if inside else counted)
        if not inside:
            outer = counted - {id(tensor) for tensor in model.get_submodule(path).parameters()}
        flops = None if counts is None else _flops_in(counts, held)
        parts.append(Part(path, kind, parameters, size, layers, times.get(path), flops))
    return [*parts, _rest(model, parts, counted, times, counts)]


def _places(model: PreTrainedModel, body: Anatomy) -> list[tuple[str, str]]:
    """(path, kind) of every part, in the model's order; attention that no method replaces (XLNet's) too."""
    fixed = sorted(attention_paths(model) - {part.path for part in body.attentions})
    found: list[tuple[str, str]] = [(table.path, "embedding") for table in body.embeddings]
    for block in body.blocks:
        found.append((block.path, "block"))
        found += [(attention.path, "attention") for attention in block.attentions]
        found += [(path, "attention") for path in fixed if path.startswith(f"{block.path}.")]
        found += [(ffn.path, "ffn") for ffn in block.ffns]
        found += [(bank.block, "experts") for bank in block.experts]
    return found if body.output_embedding is None else [*found, (body.output_embedding, "head")]


def _rest(
    model: PreTrainedModel,
    parts: list[Part],
    counted: set[int],
    times: dict[str, float],
    counts: dict[str, int] | None,
) -> Part:
    """What is in no part."""
    left = [tensor for tensor in model.parameters() if id(tensor) not in counted]
    known = [part for part in parts if part.kind not in INNER]
    spent = sum(part.milliseconds or 0.0 for part in known)
    return Part(
        "everything else",
        "other",
        sum(tensor.numel() for tensor in left),
        sum(tensor.numel() * tensor.element_size() for tensor in left),
        {},
        max(0.0, times[_WHOLE] - spent) if times else None,
        None if counts is None else 2 * sum(counts.values()) - sum(part.flops or 0 for part in known),
    )


def _times(
    model: PreTrainedModel, body: Anatomy, members: dict[str, tuple[str, ...]], inputs: dict[str, torch.Tensor]
) -> dict[str, float]:
    """Milliseconds by path. The matrix that ends a part may lie outside of its module, as BERT's do: it is added."""
    paths = [path for path, _ in _places(model, body)]
    outside = {path: [name for name in held if not f"{name}.".startswith(f"{path}.")] for path, held in members.items()}
    watched = dict.fromkeys([_WHOLE, *paths, *(name for names in outside.values() for name in names)])
    spent = _time(model, list(watched), inputs)
    return {path: found + sum(spent.get(name, 0.0) for name in outside.get(path, ())) for path, found in spent.items()}


def _flops_in(counts: dict[str, int], paths: tuple[str, ...]) -> int:
    inside = (path for path in counts if any(path == top or path.startswith(f"{top}.") for top in paths))
    return 2 * sum(counts[path] for path in inside)


def _count(model: nn.Module, paths: tuple[str, ...], counted: set[int]) -> tuple[int, int, dict[str, int]]:
    parameters = held = 0
    layers: dict[str, int] = {}
    visited: set[int] = set()
    for path in paths:
        for module in model.get_submodule(path).modules():
            if id(module) in visited:
                continue
            visited.add(id(module))
            own = list(module.parameters(recurse=False))
            fresh = [tensor for tensor in own if id(tensor) not in counted]
            counted.update(id(tensor) for tensor in own)
            if own or isinstance(module, CompressedLayer):
                name = module.kind if isinstance(module, CompressedLayer) else type(module).__name__
                layers[name] = layers.get(name, 0) + 1
            held += sum(tensor.numel() * tensor.element_size() for tensor in fresh)
            compressed = isinstance(module, CompressedLayer) and bool(fresh)
            parameters += module.parameter_count() if compressed else sum(tensor.numel() for tensor in fresh)  # type: ignore[operator]
    return parameters, held, layers


def _time(model: PreTrainedModel, paths: list[str], inputs: dict[str, torch.Tensor]) -> dict[str, float]:
    """Median over repetitions of the CPU time that one forward spends in each module, one thread, milliseconds."""
    totals: list[dict[str, float]] = []
    with _one_thread(), torch.no_grad():
        model(**inputs)
        for _ in range(REPETITIONS):
            spent: dict[str, float] = {}
            with _watched(model, paths, spent):
                model(**inputs)
            totals.append(spent)
    seen = {path for spent in totals for path in spent}
    return {path: 1e3 * sorted(spent.get(path, 0.0) for spent in totals)[len(totals) // 2] for path in seen}


@contextmanager
def _watched(model: nn.Module, paths: list[str], spent: dict[str, float]) -> Iterator[None]:
    handles = []
    started: dict[str, float] = {}
    for path in paths:
        module = model.get_submodule(path)

        def enter(_module: nn.Module, _args: Any, path: str = path) -> None:
            started[path] = time.thread_time()

        def leave(_module: nn.Module, _args: Any, _output: Any, path: str = path) -> None:
            spent[path] = spent.get(path, 0.0) + time.thread_time() - started[path]

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
