"""Caches whose older keys and values are a few bits, put into any stock cache that a model begins with.

The settings lie on the attention modules; a hook of the model puts layers of this kind into the empty ``DynamicCache``
that ``generate`` or a call brings, or into the one that a call without any makes. Nothing is computed otherwise: other
caches (static ones, or those filled by another model), training and calls without a cache are left alone.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from compresskit.errors import ModelError
from compresskit.numerics import key_values
from compresskit.numerics.key_values import Stored

ATTRIBUTE = "compresskit_kv_cache"
BITS = (2, 4, 8)
_LARGEST = 2**20
_DEFAULTS = {"group": 32, "residual": 128, "prefill": "exact"}


def settings_of(module: nn.Module) -> dict[str, Any] | None:
    """How the attention module's keys and values are kept, or None."""
    return getattr(module, ATTRIBUTE, None)


def checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``settings``, complete and valid: bits, group, residual, prefill.

    Raises:
        ModelError: CK-T065 for unknown or impossible settings.
    """
    whole = {**_DEFAULTS, **settings}
    fits = (
        set(whole) == {"bits", *_DEFAULTS}
        and whole["bits"] in BITS
        and _is_count(whole["group"], 1)
        and _is_count(whole["residual"], 0)
        and whole["prefill"] in ("exact", "quantized")
    )
    if not fits:
        raise ModelError(
            "CK-T065",
            f"these are no settings of a cache: {dict(settings)!r}",
            fix="upgrade compresskit if the checkpoint was written by a newer version",
        )
    return whole


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _LARGEST


def value_group(dim: int, group: int) -> int:
    """Channels of a value that share a scale: ``group`` if it divides the head dimension, else all."""
    return group if dim % group == 0 else dim


def why_not(model: PreTrainedModel, module: nn.Module, settings: Mapping[str, Any], dim: int) -> str | None:
    """Why the keys and values of ``module`` can't be kept so, in a sentence, or None."""
    if model.config.is_encoder_decoder or not bool(getattr(module, "is_causal", True)):
        return "it keeps no cache of its own that grows: only decoders without an encoder do"
    if getattr(module, "layer_idx", None) is None:
        return f"{type(module).__name__} doesn't say which layer of a cache is its own"
    if getattr(module, "sliding_window", None) is not None:
        return "it is a sliding window, whose cache drops old tokens anyway"
    if dim * settings["bits"] % 8:
        return f"{dim} channels of a head don't fill whole bytes with {settings['bits']} bits"
    return None


def install(model: PreTrainedModel, module: nn.Module, settings: Mapping[str, Any] | None) -> None:
    """Let the cache of the attention ``module`` be kept as ``settings`` say; None gives the stock one back.

    The one way in, for methods and for the replay of a layout.

    Raises:
        ModelError: CK-T065 for bad settings.
    """
    if settings is None:
        if settings_of(module) is not None:
            delattr(module, ATTRIBUTE)
        return
    setattr(module, ATTRIBUTE, checked(settings))
    if not any(hook is put_into for hook in model._forward_pre_hooks.values()):
        model.register_forward_pre_hook(put_into, with_kwargs=True)


@contextlib.contextmanager
def without(model: nn.Module) -> Iterator[bool]:
    """While open, ``model`` uses stock caches; gives whether it had others."""
    kept = {module: settings for module in model.modules() if (settings := settings_of(module)) is not None}
    for module in kept:
        delattr(module, ATTRIBUTE)
    try:
        yield bool(kept)
    finally:
        for module, settings in kept.items():
            setattr(module, ATTRIBUTE, settings)


def put_into(model: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Hook before a forward pass: an empty stock cache gets the layers that the settings ask for."""
    cache = named.get("past_key_values")
    if model.training or (cache is not None and not _is_fresh(cache)):
        return None
    settings = {module.layer_idx: found for module in model.modules() if (found := settings_of(module)) is not None}
    if not settings:
        return None
    if cache is None:
        given = inspect.signature(type(model).forward).bind_partial(model, *positional, **named).arguments
        wanted = given.get("use_cache")
        if given.get("past_key_values") is not None or not (model.config.use_cache if wanted is None else wanted):
            return None
        cache = named["past_key_values"] = DynamicCache(config=model.config)
    fill(cache, settings)
    return positional, named


def _is_fresh(cache: Any) -> bool:
    return type(cache) is DynamicCache and not any(getattr(layer, "is_initialized", False) for layer in cache.layers)


def fill(cache: DynamicCache, settings: Mapping[int, Mapping[str, Any]]) -> None:
    """Put layers of few bits into the empty ``cache``, by their numbers; others stay."""
    if cache.layer_class_to_replicate is not None:
        while len(cache.layers) <= max(settings):
            cache.layers.append(cache.layer_class_to_replicate())
    for index, wanted in settings.items():
        cache.layers[index] = QuantizedCacheLayer(**wanted)


class QuantizedCacheLayer(DynamicLayer):
    """Keys and values of one attention: the newest tokens as they are, those before in ``bits`` bits.

    ``keys`` and ``values`` (B, H, R, D) are the newest; at least ``residual`` of them stay, and ``group`` at a time go
    over. A call sees its own tokens and that window exactly; with ``prefill="quantized"`` it sees what is kept.

    Args:
        bits: 2, 4 or 8. group: tokens of a key channel, and channels of a value, that share a scale.
        residual: tokens kept as they are.
    """

    is_croppable = False

    def __init__(self, bits: int, group: int = 32, residual: int = 128, prefill: str = "exact") -> None:
        super().__init__()
        self.bits, self.group, self.residual, self.prefill = bits, group, residual, prefill
        self.old_keys: Stored | None = None
        self.old_values: Stored | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys, self.values, self.is_initialized = key_states[:, :, :0], value_states[:, :, :0], True
        self.keys = torch.cat([self._recent(self.keys), key_states], dim=-2)
        self.values = torch.cat([self._recent(self.values), value_states], dim=-2)
        if self.prefill == "quantized":
            self._move()
            return self.whole()
        seen = self.whole()
        self._move()
        return seen

    def whole(self) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, T, D) of all tokens, as they are kept."""
        keys, values = self._recent(self.keys), self._recent(self.values)
        if self.old_keys is None or self.old_values is None:
            return keys, values
        old_keys = key_values.load_keys(self.old_keys, self.bits, self.dtype)
        old_values = key_values.load_values(self.old_values, self.bits, self.dtype)
        return torch.cat([old_keys, keys], dim=-2), torch.cat([old_values, values], dim=-2)

    def _move(self) -> None:
        """Quantize whole groups of what is older than the window."""
        recent_keys, recent_values = self._recent(self.keys), self._recent(self.values)
        count = (recent_keys.shape[-2] - self.residual) // self.group * self.group
        if count <= 0:
            return
        keys = key_values.store_keys(recent_keys[:, :, :count], self.bits, self.group)
        size = value_group(recent_values.shape[-1], self.group)
        values = key_values.store_values(recent_values[:, :, :count], self.bits, size)
        for stored in (keys, values):
            if not bool((stored.scale + stored.low).isfinite().all()):
                raise ModelError(
                    "CK-T066",
                    "keys or values can't be quantized",
                    why="some aren't finite, or larger than float16 holds, in which the scales are kept",
                    fix="leave this layer out of quantization.kv_cache, with `ignore`",
                )
        self.old_keys = keys if self.old_keys is None else self.old_keys.followed_by(keys)
        self.old_values = values if self.old_values is None else self.old_values.followed_by(values)
        # Copies: a slice would keep the whole tensor alive.
        self.keys, self.values = recent_keys[:, :, count:].clone(), recent_values[:, :, count:].clone()

    @staticmethod
    def _recent(tensor: Tensor | None) -> Tensor:
        if tensor is None:
            raise ModelError("CK-T067", "a cache was read before it was filled", fix="call the model with it first")
        return tensor

    def get_seq_length(self) -> int:
        if not self.is_initialized:
            return 0
        return self._recent(self.keys).shape[-2] + (0 if self.old_keys is None else self.old_keys.codes.shape[2])

    @property
    def bytes(self) -> int:
        """That the layer holds."""
        if not self.is_initialized:
            return 0
        recent = (self._recent(self.keys), self._recent(self.values))
        old = [stored.bytes for stored in (self.old_keys, self.old_values) if stored is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in recent) + sum(old)

    def _take(self, index: Tensor) -> None:
        self.keys = self._recent(self.keys).index_select(0, index.to(self.device))
        self.values = self._recent(self.values).index_select(0, index.to(self.device))
        self.old_keys = None if self.old_keys is None else self.old_keys.rows(index)
        self.old_values = None if self.old_values is None else self.old_values.rows(index)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.is_initialized:
            self._take(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            rows = torch.arange(self._recent(self.keys).shape[0], device=self.device)
            self._take(rows.repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        raise ModelError(
            "CK-T067",
            "tokens can't be taken back out of a quantized cache",
            why="a scale is shared by a group of tokens",
            fix="generate without an assistant model or prompt lookup, or without quantization.kv_cache",
        )

    def reset(self) -> None:
        self.old_keys = self.old_values = None
        super().reset()
