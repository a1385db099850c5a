"""Forward passes for measuring: hooks that always come off, modes that are restored, padding that is left out.

Shapes: B batch, T tokens of the encoder (or of the only sequence), U tokens of the decoder, N attended tokens,
I features.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.core import anatomy
from compresskit.core.context import Batch
from compresskit.errors import InternalError, ModelError

PreHook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]
PostHook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]


class _Stop(Exception):
    """Ends a forward pass early; never leaves this package."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, each module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def hooked(
    model: nn.Module, before: Mapping[str, PreHook] | None = None, after: Mapping[str, PostHook] | None = None
) -> Iterator[None]:
    """Hooks by module path inside; none of them afterwards, whatever happens."""
    handles = []
    try:
        for path, hook in (before or {}).items():
            handles.append(model.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True))
        for path, post_hook in (after or {}).items():
            handles.append(model.get_submodule(path).register_forward_hook(post_hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def stop_here(*_: Any) -> None:
    """A hook that ends the forward pass at its module."""
    raise _Stop


def accepted(model: nn.Module) -> frozenset[str]:
    """Names of the arguments that the model's ``forward`` takes."""
    return frozenset(inspect.signature(model.forward).parameters)


def on_device(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """The batch on ``device``."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def device_of(model: PreTrainedModel) -> torch.device:
    """Where the values of ``model`` lie, of which some parts may be without values."""
    devices = (parameter.device for parameter in model.parameters())
    return next((device for device in devices if device.type != "meta"), model.device)


def run(model: PreTrainedModel, batch: Batch) -> Any:
    """One forward pass without key-value cache; None if a hook stopped it early."""
    inputs: dict[str, Any] = dict(on_device(batch, device_of(model)))
    if "use_cache" in accepted(model):
        inputs["use_cache"] = False
    try:
        return model(**inputs)
    except _Stop:
        return None


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any], where: str) -> Tensor:
    """The input of a module: its first positional argument, else its first tensor by name."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise InternalError("CK-D013", "the module was called without a tensor", where=where)


def hidden_of(output: Any) -> Tensor:
    """The hidden states in the output of a block, which is a tensor or a tuple that begins with one."""
    return output if isinstance(output, Tensor) else output[0]


def attention_mask(batch: Batch, *, decoder: bool = False) -> Tensor:
    """Which tokens are attended, (B, T) or (B, U) bool; all, where the batch has no mask."""
    names = ("decoder_input_ids",) if decoder else ("input_ids", "inputs_embeds")
    ids = next((batch[name] for name in names if name in batch), None)
    mask = batch.get("decoder_attention_mask" if decoder else "attention_mask")
    if mask is not None:
        return mask.bool()
    if ids is None:
        raise InternalError("CK-D013", "the batch has neither tokens nor a mask")
    return torch.ones(ids.shape[:2], dtype=torch.bool, device=ids.device)


class Attended:
    """Which rows of a module's input are attended tokens.

    In an encoder-decoder model the decoder's modules see the decoder's tokens, but for the keys and values of
    cross-attention, which see the encoder's. An expert sees the tokens that are routed to it: while hooks of
    ``routing`` are in place, those of the last call are known.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._decoder: tuple[str, ...] = ()
        self._encoder: tuple[str, ...] = ()
        self._routed: dict[str, Tensor] = {}
        self._banks: tuple[str, ...] = ()
        self._time_first: tuple[str, ...] = ()
        try:
            body = anatomy.of(model)
        except ModelError:
            return
        self._banks = tuple(bank.path for bank in body.experts)
        self._time_first = tuple(stack.path for stack in body.stacks if body.time_first)
        if not body.encoder_decoder:
            return
        stacks = tuple(stack.path.rpartition(".")[0] for stack in body.stacks if stack.name == "decoder")
        head = (body.output_embedding,) if body.output_embedding else ()
        self._decoder = stacks + head
        crossed = [part for part in body.attentions if part.cross]
        self._encoder = tuple(rows.path for part in crossed for rows in (part.key, part.value))

    def reads_decoder(self, path: str) -> bool:
        """Whether the input of the module at ``path`` has one row a decoder token."""
        return _below(path, self._decoder) and not _below(path, self._encoder)

    def rows(self, path: str, tensor: Tensor, batch: Batch) -> Tensor:
        """The attended rows of the input (…, I) of the module at ``path``, as (N, I).

        An input without one row a token (a pooled one) is taken whole.
        """
        mask = attention_mask(batch, decoder=self.reads_decoder(path) and "decoder_input_ids" in batch)
        flat = tensor.reshape(-1, tensor.shape[-1])
        if _below(path, self._time_first):
            mask = mask.T
        tokens = self._tokens(path)
        if tokens is not None:
            return flat[mask.reshape(-1).to(flat.device)[tokens]]
        per_token = tensor.shape[:-1] == mask.shape or (tensor.dim() == 2 and flat.shape[0] == mask.numel())
        if not per_token or bool(mask.all()):
            return flat
        return flat[mask.reshape(-1).to(flat.device)]

    def by_text(self, path: str, tensor: Tensor) -> Tensor:
        """The input of the module at ``path`` with the texts first: (B, T, I), where its stack has (T, B, I) too."""
        return tensor.transpose(0, 1) if _below(path, self._time_first) else tensor

    def routing(self) -> dict[str, PreHook]:
        """Hooks by path that note, at each call of a bank of experts, which tokens go to which of them."""
        return {path: self._note(path) for path in self._banks}

    def _note(self, path: str) -> PreHook:
        def note(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            chosen = args[1] if len(args) > 1 else kwargs["top_k_index"]
            # Numbers of experts (N, K), or which of them are chosen (N, 1, E).
            self._routed[path] = chosen

        return note

    def expert(self, path: str) -> bool:
        """Whether the module at ``path`` is of an expert, which may see no token at all."""
        return _below(path, self._banks)

    def _tokens(self, path: str) -> Tensor | None:
        """Numbers of the tokens that the expert with the module at ``path`` was last called with, in its order."""
        bank = next((bank for bank in self._banks if path.startswith(f"{bank}.")), None)
        number = re.search(r"[._](\d+)(?:\.|$)", path[len(bank) :]) if bank is not None else None
        if bank is None or number is None or bank not in self._routed:
            return None
        routed, expert = self._routed[bank], int(number[1])
        chosen = routed == expert if routed.dim() == 2 else routed[..., expert] != 0
        return chosen.any(1).nonzero()[:, 0]


def _below(path: str, prefixes: tuple[str, ...]) -> bool:
    return any(path == prefix or path.startswith(f"{prefix}.") for prefix in prefixes)
