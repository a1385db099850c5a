"""How much each expert of a mixture matters: what is routed to it, and how large its results are.

Shapes: N tokens, A attended tokens, K experts a token, E experts, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.calibrate.forward import PreHook, attention_mask, evaluating, hooked, run
from compresskit.core.context import Batch
from compresskit.errors import DataError


@dataclass
class ExpertUse:
    """Sums over the attended tokens that are routed to each expert of one bank, (E,) float64 each.

    Args:
        count: tokens.
        mass: router weights g.
        output: g · ‖f(x)‖, f the expert.
    """

    count: Tensor
    mass: Tensor
    output: Tensor

    @property
    def saliency(self) -> Tensor:
        """Mean of g · ‖f(x)‖ over an expert's tokens, 0 without any: REAP (Lasby et al. 2025), eq. 9."""
        return self.output / self.count.clamp(min=1)


def expert_use(model: PreTrainedModel, paths: Sequence[str], batches: Sequence[Batch]) -> dict[str, ExpertUse]:
    """What the fused banks of experts at ``paths`` are used for, in one pass.

    Raises:
        DataError: CK-D003, if there are no batches.
    """
    if len(batches) == 0:
        raise DataError("CK-D003", "there are no calibration batches", fix="give calibration data")
    current: list[Batch] = [{}]
    found: dict[str, ExpertUse] = {}

    def hook(path: str) -> PreHook:
        def record(module: nn.Module, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
            hidden, chosen, weights = args
            attended = attention_mask(current[0]).reshape(-1).to(hidden.device)
            _add(found[path], module, hidden[attended], chosen[attended], weights[attended])

        return record

    for path in paths:
        count = int(cast(Any, model.get_submodule(path)).num_experts)
        found[path] = ExpertUse(*torch.zeros(3, count, dtype=torch.float64))
    with evaluating(model), torch.no_grad(), hooked(model, {path: hook(path) for path in paths}):
        for batch in batches:
            current[0] = batch
            run(model, batch)
    return found


def _add(use: ExpertUse, module: nn.Module, hidden: Tensor, chosen: Tensor, weights: Tensor) -> None:
    """Count the tokens (A, H) in, whose experts and their weights are (A, K)."""
    bank = cast(Any, module)
    for expert in chosen.unique().tolist():
        tokens, places = torch.where(chosen == expert)
        gate, up = nn.functional.linear(hidden[tokens], bank.gate_up_proj[expert]).chunk(2, dim=-1)
        result = nn.functional.linear(bank.act_fn(gate) * up, bank.down_proj[expert])
        share = weights[tokens, places].double()
        use.count[expert] += len(tokens)
        use.mass[expert] += float(share.sum())
        use.output[expert] += float((share * torch.linalg.vector_norm(result.double(), dim=-1)).sum())
