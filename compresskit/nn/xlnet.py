"""XLNet's relative attention with projections that are layers of their own, which compressed layers may replace.

Shapes: T tokens, B sequences, J positions, H hidden size, N heads, D head size.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention

from compresskit.nn.base import CompressedLayer
from compresskit.registry import register_layer

PROJECTIONS = ("q", "k", "v", "r", "o")
"""Names of the stock parameters, each (H, N, D), and of the layers in their place, in the order they run."""

_OTHERS = ("r_r_bias", "r_s_bias", "r_w_bias", "seg_embed")


@register_layer
class XLNetAttention(CompressedLayer):
    """``XLNetRelativeAttention`` with a linear layer for each projection; arguments and results are the same.

    Args:
        hidden, heads, head_dim: H, N and D.
        epsilon: of the norm.
        dropout: share of probabilities and outputs that are dropped in training.
    """

    kind: ClassVar[str] = "xlnet_attention"
    rel_attn_core: ClassVar[Any] = XLNetRelativeAttention.rel_attn_core
    rel_shift_bnij = staticmethod(XLNetRelativeAttention.rel_shift_bnij)

    def __init__(self, hidden: int, heads: int, head_dim: int, epsilon: float = 1e-12, dropout: float = 0.1) -> None:
        super().__init__()
        self.hidden, self.heads, self.head_dim, self.epsilon = hidden, heads, head_dim, epsilon
        self.scale = 1 / head_dim**0.5
        for name in PROJECTIONS[:-1]:
            self.add_module(name, nn.Linear(hidden, heads * head_dim, bias=False))
        self.o = nn.Linear(heads * head_dim, hidden, bias=False)
        for name in _OTHERS[:-1]:
            self.register_parameter(name, nn.Parameter(torch.empty(heads, head_dim)))
        self.seg_embed = nn.Parameter(torch.empty(2, heads, head_dim))
        self.layer_norm = nn.LayerNorm(hidden, eps=epsilon)
        self.dropout = nn.Dropout(dropout)

    @classmethod
    def from_module(cls, module: nn.Module) -> XLNetAttention:
        """Of the values of ``module``; the projections are copied, all else is shared."""
        stock = cast(Any, module)
        with torch.device("meta"):
            layer = cls(stock.d_model, stock.n_head, stock.d_head, stock.layer_norm.eps, stock.dropout.p)
        for name in PROJECTIONS:
            values = matrix(getattr(stock, name).data, name).clone(memory_format=torch.contiguous_format)
            linear = cast(nn.Linear, layer.get_submodule(name))
            linear.weight = nn.Parameter(values, requires_grad=getattr(stock, name).requires_grad)
        for name in _OTHERS:
            setattr(layer, name, getattr(stock, name))
        layer.layer_norm = stock.layer_norm
        return layer.train(module.training)

    def arguments(self) -> dict[str, Any]:
        return {
            "hidden": self.hidden,
            "heads": self.heads,
            "head_dim": self.head_dim,
            "epsilon": self.epsilon,
            "dropout": self.dropout.p,
        }

    @property
    def weight(self) -> Tensor:
        """The matrix (N·D, H) of the queries."""
        return cast(Tensor, self.get_submodule("q").weight)

    def forward(
        self,
        h: Tensor,
        g: Tensor | None,
        attn_mask_h: Tensor | None,
        attn_mask_g: Tensor | None,
        r: Tensor,
        seg_mat: Tensor | None,
        mems: Tensor | None = None,
        target_mapping: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Any, ...]:
        """(T, B, H) of the content stream, and of the query stream or None -> the same, and what was attended."""
        whole = torch.cat([mems, h], dim=0) if mems is not None and mems.dim() > 1 else h
        query = self._heads("q", h)
        keys, values = self._heads("k", whole), self._heads("v", whole)
        positions = self._heads("r", r.to(h.dtype))
        settings: dict[str, Any] = {"seg_mat": seg_mat, "output_attentions": output_attentions}
        found = self.rel_attn_core(query, keys, values, positions, attn_mask=attn_mask_h, **settings)
        vector, seen = found if output_attentions else (found, None)
        content = self._after(h, vector)
        if g is None:
            return (content, None, seen) if output_attentions else (content, None)
        query = self._heads("q", g)
        if target_mapping is not None:
            query = torch.einsum("mbnd,mlb->lbnd", query, target_mapping)
        found = self.rel_attn_core(query, keys, values, positions, attn_mask=attn_mask_g, **settings)
        vector, asked = found if output_attentions else (found, None)
        if target_mapping is not None:
            vector = torch.einsum("lbnd,mlb->mbnd", vector, target_mapping)
        stream = self._after(g, vector)
        return (content, stream, (seen, asked)) if output_attentions else (content, stream)

    def _heads(self, name: str, x: Tensor) -> Tensor:
        return cast(Tensor, self.get_submodule(name)(x)).unflatten(-1, (self.heads, self.head_dim))

    def _after(self, residual: Tensor, vector: Tensor) -> Tensor:
        return cast(Tensor, self.layer_norm(self.dropout(self.o(vector.flatten(-2))) + residual))

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.arguments().items())


def matrix(values: Tensor, name: str) -> Tensor:
    """A stock parameter (H, N, D) as (O, I), sharing its storage: (N·D, H), or (H, N·D) of the outputs."""
    flat = values.flatten(1)
    return flat if name == "o" else flat.T
