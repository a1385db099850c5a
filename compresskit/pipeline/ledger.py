"""What each step did, counted on the live model: parameters, bytes, time, fidelity."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from compresskit.nn.base import CompressedLayer


@dataclass(frozen=True)
class Size:
    """Parameters (numbers that the model knows, shared ones once) and the bytes that hold them."""

    parameters: int
    bytes: int


def size_of(model: nn.Module) -> Size:
    """Count a live model. A packed 4-bit table counts as V x D parameters, whatever bytes hold it."""
    seen: set[int] = set()
    count = held = 0
    for module in model.modules():
        own = [*module.parameters(recurse=False), *_persistent_buffers(module)]
        fresh = [tensor for tensor in own if id(tensor) not in seen]
        seen.update(id(tensor) for tensor in own)
        held += sum(tensor.numel() * tensor.element_size() for tensor in fresh)
        known = [tensor for tensor in own if all(tensor is not other for other in fresh)]
        if isinstance(module, CompressedLayer) and fresh and all(each.is_floating_point() for each in known):
            count += module.parameter_count() - sum(tensor.numel() for tensor in known)
        else:
            # Also a head with the codes of a table that was counted, and a bias of its own.
            count += sum(tensor.numel() for tensor in fresh if isinstance(tensor, nn.Parameter))
    return Size(count, held)


def _persistent_buffers(module: nn.Module) -> list[torch.Tensor]:
    skipped = module._non_persistent_buffers_set
    return [tensor for name, tensor in module.named_buffers(recurse=False) if name not in skipped]


def fingerprint(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """A cheap summary of every parameter and attention setting: equal summaries mean that a step changed nothing."""
    summary: dict[str, tuple[Any, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        values = parameter.detach()
        total = values.double().sum().item() if values.is_floating_point() else int(values.long().sum().item())
        spread = values.double().square().sum().item() if values.is_floating_point() else 0
        summary[name] = (tuple(values.shape), str(values.dtype), total, spread, id(parameter))
    owners: dict[int, str] = {}
    for name, entry in summary.items():
        summary[name] = (*entry[:-1], owners.setdefault(entry[-1], name))
    for name, module in model.named_modules():
        for what in ("compresskit_attention", "compresskit_kv_cache"):
            settings = getattr(module, what, None)
            if settings:
                summary[f"{name}#{what}"] = (json.dumps(settings, sort_keys=True),)
    return summary


@dataclass
class StepRecord:
    """One row of the ledger.

    ``parameters`` and ``bytes`` are those of the whole model after the step; ``fidelity`` compares the model after
    the step with the source model.
    """

    method: str
    options: dict[str, Any]
    sites: list[str]
    skipped: dict[str, str]
    parameters: int
    bytes: int
    seconds: float
    fidelity: dict[str, Any]
    recover: dict[str, Any] | None = None
    details: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As in report.json."""
        return asdict(self)
