"""The fused softmax attention that dense and blocked attention share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.sdpa_attention import repeat_kv

from compresskit.nn.base import exporting


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None,
    bias: Tensor | None,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """softmax(scaling · Q Kᵀ + bias) V over the allowed keys, (B, H, Q, D); a query that sees nothing gives zeros.

    Args:
        query: (B, H, Q, D). key, value: (B, H', K, D).
        allowed: broadcasts to (B, H, Q, K) bool. bias: likewise, added to the scores.
        scaling: D^-0.5 by default. dropout: probability.
    """
    mask = allowed
    if bias is not None:
        lowest = torch.finfo(query.dtype).min
        mask = bias.to(query.dtype) if allowed is None else torch.where(allowed, bias.to(query.dtype), lowest)
    grouped = query.shape[1] != key.shape[1]
    # torch's CPU kernel takes grouped heads together with a mask; the other kernels and the exporter don't.
    native = grouped and query.device.type == "cpu" and not exporting()
    if grouped and not native:
        group = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, group), repeat_kv(value, group)
    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling, enable_gqa=native
    )
    if bias is not None and allowed is not None:
        output = output * allowed.any(-1, keepdim=True)
    return output
