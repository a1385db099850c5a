"""The mask function of the attention named ``compresskit``, and what an attention module may see, read off any mask.

transformers makes one mask per kind of layer and hands it to all of them. Ours is the cheapest that still tells the
truth:

* None: nothing is padded, and the layer's own causality holds;
* (B, K) bool: causal, the queries being the last of the K positions; False marks padding;
* (B, 1, 1, K) bool: not causal; False marks padding;
* (B, 1, Q, K) bool, for whatever else (packed sequences, static caches, masks given by the user): what is seen.

A stock sliding window doesn't show in the (B, K) form: layers pass it as ``sliding_window``, as for flash attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    prepare_padding_mask,
    sdpa_mask,
)

from compresskit.errors import ModelError
from compresskit.nn.base import exporting


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    device: torch.device | str = "cpu",
    config: Any = None,
    **more: Any,
) -> Tensor | None:
    """The mask in one of the forms above; called by transformers, as ``transformers.masking_utils.sdpa_mask`` is.

    Args:
        q_offset: position of the first query; a tensor where the cache is static.
        mask_function: the pattern; the plain ones are told by their identity.
        attention_mask: (B, tokens so far) bool, False marks padding.
        local_size, allow_is_causal_skip, allow_is_bidirectional_skip, config: say what the pattern is.
    """
    bidirectional = mask_function is bidirectional_mask_function
    if not bidirectional and not (
        _is_causal(mask_function, local_size, allow_is_causal_skip, config)
        and not isinstance(q_offset, Tensor)
        and q_offset - kv_offset + q_length == kv_length
    ):
        return sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            local_size=local_size,
            allow_is_causal_skip=allow_is_causal_skip,
            allow_is_bidirectional_skip=allow_is_bidirectional_skip,
            device=device,
            config=config,
            **more,
        )
    padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is not None and (kv_offset or padding.shape[-1] != kv_length):
        padding = padding[:, kv_offset : kv_offset + kv_length]
    traced = exporting() or torch.compiler.is_compiling() or torch.jit.is_tracing()
    if (
        not traced
        and (padding is None or bool(padding.all()))
        and _needless(bidirectional, q_length, kv_length, config)
    ):
        return None
    if padding is None:
        padding = torch.ones(batch_size, kv_length, dtype=torch.bool, device=device)
    return padding[:, None, None, :] if bidirectional else padding


def _is_causal(mask_function: Callable[..., Any], local_size: int | None, plain: bool, config: Any) -> bool:
    """Whether the mask is the plain causal one, or with it a sliding window that the layers pass on themselves."""
    if mask_function is causal_mask_function:
        return True
    # The sliding pattern is a closure made anew each time; its arguments tell it from chunks and from overlays.
    chunked = getattr(config, "attention_chunk_size", None) is not None
    return local_size is not None and plain and not chunked and getattr(config, "sliding_window", None) == local_size


def _nothing_padded(padding: Tensor | None) -> bool:
    """Known only where values may be looked at: a traced graph must serve any padding."""
    traced = exporting() or torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not traced and (padding is None or bool(padding.all()))


def _needless(bidirectional: bool, q_length: int, kv_length: int, config: Any) -> bool:
    """Whether, without padding, None says the same. A decoder made bidirectional still has causal modules."""
    if bidirectional:
        return bool(getattr(config, "is_causal", True))
    return q_length in (1, kv_length)


@dataclass(frozen=True)
class Seen:
    """Which keys the queries of one call may see.

    Args:
        causal: no key after the query, queries being the last positions; False where ``dense`` says it all.
        padding: (B, K) bool, True for real tokens, or None where all are.
        dense: (B or 1, H or 1, Q, K) bool that says it all, or None.
        bias: (B or 1, H or 1, Q, K) added to the scores, or None.
    """

    causal: bool
    padding: Tensor | None = None
    dense: Tensor | None = None
    bias: Tensor | None = None


def read_mask(mask: Any, query: Tensor, key: Tensor, *, causal: bool, bias: Tensor | None = None) -> Seen:
    """What a mask of any form says: one of ours, of ``sdpa``, ``eager`` or ``flash_attention``, or the user's.

    Args:
        mask: see above; a float mask is additive, its very negative values mean unseen.
        query: (B, H, Q, D). key: (B, H', K, D).
        causal: whether the module is causal; a mask with a row per query overrules it.
        bias: T5's position bias, (B or 1, H, Q, K).

    Raises:
        ModelError: CK-M052 for a mask of another form.
    """
    if mask is None:
        return Seen(causal, bias=bias)
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        what = f"of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"of type {type(mask).__name__}"
        raise ModelError(
            "CK-M052",
            f"a replaced attention can't read a mask {what}",
            why="it reads no mask, (B, K) and (B, 1, Q, K)",
            fix='call model.set_attn_implementation("compresskit"), or "sdpa" or "eager"',
        )
    if mask.dim() == 2:
        return Seen(causal, padding=_all_keys(mask.bool(), key), bias=bias)
    allowed = mask
    if mask.dtype != torch.bool:
        allowed = mask > torch.finfo(mask.dtype).min / 2
        bias = mask if bias is None else bias + mask
    if mask.shape[-2] == 1 and mask.shape[1] == 1 and mask.dtype == torch.bool and not causal:
        return Seen(False, padding=allowed[:, 0, 0], bias=bias)
    if bias is not None and bias.shape[-2:] != (query.shape[2], key.shape[2]):
        bias = bias.expand(-1, -1, query.shape[2], key.shape[2])
    return Seen(False, dense=allowed.expand(-1, -1, query.shape[2], -1), bias=bias)


def _all_keys(padding: Tensor, key: Tensor) -> Tensor:
    """Padding for all keys of a static cache, whose last places are still empty."""
    if exporting():
        return padding
    missing = key.shape[2] - padding.shape[1]
    return torch.nn.functional.pad(padding, (0, missing)) if missing > 0 else padding


def stock_mask(mask: Tensor, query_length: int, key_length: int, *, causal: bool, sliding: int | None) -> Tensor:
    """The (B, 1, Q or 1, K) bool mask of an ordinary layer, from the (B, K) form."""
    seen = mask[:, None, None, :]
    if not causal:
        return seen
    at = torch.arange(query_length, device=mask.device)[:, None] + (key_length - query_length)
    key = torch.arange(key_length, device=mask.device)[None, :]
    structure = key <= at
    if sliding is not None:
        structure = structure & (at - key < sliding)
    return seen & structure
