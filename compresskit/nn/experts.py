"""A bank of experts whose matrices are layers of their own, which compressed layers may replace.

Shapes: N tokens, K experts a token, E experts, H hidden size, F neurons of an expert.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from compresskit.nn.base import CompressedLayer, exporting
from compresskit.registry import register_layer

FUSED: frozenset[type[nn.Module]] = frozenset({MixtralExperts})
"""Stock classes with the parameters ``gate_up_proj`` (E, 2F, H), the gate's rows first, and ``down_proj`` (E, H, F)."""

STACKS = {"gate_up": "gate_up_proj", "down": "down_proj"}
"""Names of the matrices below ``Experts`` -> names of the stock parameters.

They differ, because transformers renames what bears a stock name when it writes and reads a file.
"""


@register_layer
class Experts(CompressedLayer):
    """Gated experts with the arguments and results of ``MixtralExperts``, a linear layer for each expert's matrix.

    They lie at ``gate_up.0`` … and ``down.0`` …. An expert is called with the tokens that are routed to it,
    and not at all without any.

    Args:
        experts, hidden, width: E, H and F.
        activation: name of the gate's function, as transformers spells it.
    """

    kind: ClassVar[str] = "experts"

    def __init__(self, experts: int, hidden: int, width: int, activation: str = "silu") -> None:
        super().__init__()
        self.num_experts, self.hidden_dim, self.intermediate_dim = experts, hidden, width
        self.activation = activation
        self.act_fn = ACT2FN[activation]
        self.gate_up = nn.ModuleList(nn.Linear(hidden, 2 * width, bias=False) for _ in range(experts))
        self.down = nn.ModuleList(nn.Linear(width, hidden, bias=False) for _ in range(experts))

    @classmethod
    def from_module(cls, module: nn.Module) -> Experts:
        """Of the values of ``module``, one of ``FUSED``; each matrix is copied, so that they can go one by one."""
        stacks = {name: cast(nn.Parameter, getattr(module, stock)) for name, stock in STACKS.items()}
        experts, hidden, width = stacks["down"].shape
        with torch.device("meta"):
            layer = cls(experts, hidden, width, cast(Any, module).config.hidden_act)
        for name, stack in stacks.items():
            for expert, linear in enumerate(cast(nn.ModuleList, layer.get_submodule(name))):
                values = stack.data[expert].clone()
                linear.weight = nn.Parameter(values, requires_grad=stack.requires_grad)
        return layer.train(module.training)

    def arguments(self) -> dict[str, Any]:
        return {
            "experts": self.num_experts,
            "hidden": self.hidden_dim,
            "width": self.intermediate_dim,
            "activation": self.activation,
        }

    @property
    def weight(self) -> Tensor:
        """The matrix (2F, H) of the first expert's gate and inputs."""
        return cast(Tensor, self.gate_up[0].weight)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """(N, H) tokens, (N, K) numbers of their experts and (N, K) their weights -> (N, H)."""
        if exporting():
            return self.all_experts(hidden_states, top_k_index, top_k_weights)
        result = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            if expert >= self.num_experts:
                continue  # transformers marks so what another device computes
            tokens, places = torch.where(top_k_index == expert)
            found = self.run(expert, hidden_states[tokens]) * top_k_weights[tokens, places, None]
            result.index_add_(0, tokens, found.to(result.dtype))
        return result

    def run(self, expert: int, tokens: Tensor) -> Tensor:
        """One expert on the tokens (n, H)."""
        gate, up = self.gate_up[expert](tokens).chunk(2, dim=-1)
        return cast(Tensor, self.down[expert](self.act_fn(gate) * up))

    def all_experts(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The same without a choice that depends on the data: each expert on every token, weighed by 0 where unasked.

        For ONNX. It computes E/K times as much.
        """
        result = torch.zeros_like(hidden_states)
        for expert in range(self.num_experts):
            share = (top_k_weights * (top_k_index == expert)).sum(-1, keepdim=True)
            result = result + (self.run(expert, hidden_states) * share).to(result.dtype)
        return result

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.arguments().items())


def fused_onnx(bank: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What ``Experts.all_experts`` computes, by a stock module: for ONNX."""
    module = cast(Any, bank)
    result = torch.zeros_like(hidden_states)
    for expert in range(module.num_experts):
        gate, up = nn.functional.linear(hidden_states, module.gate_up_proj[expert]).chunk(2, dim=-1)
        share = (top_k_weights * (top_k_index == expert)).sum(-1, keepdim=True)
        result = result + nn.functional.linear(module.act_fn(gate) * up, module.down_proj[expert]) * share
    return result
