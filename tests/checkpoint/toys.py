"""Small compressed layers and edits for the tests of checkpoints; the real layers have tests of their own."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compresskit.nn.base import CompressedLayer
from compresskit.registry import register_layer


@register_layer
class ToyInt8(CompressedLayer):
    """Weights (O, I) as int8 with one float32 scale a row."""

    kind: ClassVar[str] = "toy_int8"
    keeps_dtype: ClassVar[frozenset[str]] = frozenset({"scale"})

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.codes = nn.Parameter(torch.empty(out_features, in_features, dtype=torch.int8), requires_grad=False)
        self.scale = nn.Parameter(torch.empty(out_features, 1, dtype=torch.float32), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    @classmethod
    def of(cls, module: nn.Module) -> ToyInt8:
        weight, bias = _matrix(module)
        layer = cls(weight.shape[1], weight.shape[0], bias is not None)
        layer.scale.data = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
        layer.codes.data = torch.round(weight / layer.scale.data).to(torch.int8)
        if bias is not None:
            layer.bias = nn.Parameter(bias.clone())
        return layer

    def arguments(self) -> dict[str, Any]:
        return {"in_features": self.in_features, "out_features": self.out_features, "bias": self.bias is not None}

    @property
    def weight(self) -> Tensor:
        return self.codes.to(self.scale.dtype) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias)


@register_layer
class ToyLowRank(CompressedLayer):
    """up(down(x)) of rank R."""

    kind: ClassVar[str] = "toy_low_rank"

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=bias)

    @classmethod
    def of(cls, module: nn.Module, rank: int) -> ToyLowRank:
        weight, bias = _matrix(module)
        left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
        layer = cls(weight.shape[1], weight.shape[0], rank, bias is not None)
        layer.down.weight.data = (values[:rank, None] * right[:rank]).to(weight.dtype).contiguous()
        layer.up.weight.data = left[:, :rank].to(weight.dtype).contiguous()
        if bias is not None:
            layer.up.bias.data = bias.clone()
        return layer

    def arguments(self) -> dict[str, Any]:
        sizes = {"in_features": self.in_features, "out_features": self.out_features, "rank": self.rank}
        return {**sizes, "bias": self.up.bias is not None}

    @property
    def weight(self) -> Tensor:
        return self.up.weight @ self.down.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


@register_layer
class ToyTable(CompressedLayer):
    """An embedding (V, D) as int8 rows; the scales have the model's type, which is the type of what it gives."""

    kind: ClassVar[str] = "toy_table"

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.rows, self.width = rows, width
        self.codes = nn.Parameter(torch.empty(rows, width, dtype=torch.int8), requires_grad=False)
        self.scale = nn.Parameter(torch.empty(rows, 1), requires_grad=False)

    @classmethod
    def of(cls, module: nn.Embedding) -> ToyTable:
        layer = cls(*module.weight.shape)
        weight = module.weight.data
        layer.scale.data = weight.abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
        layer.codes.data = torch.round(weight / layer.scale.data).to(torch.int8)
        return layer

    def arguments(self) -> dict[str, Any]:
        return {"rows": self.rows, "width": self.width}

    @property
    def weight(self) -> Tensor:
        return self.codes.to(self.scale.dtype) * self.scale

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.codes).to(self.scale.dtype) * F.embedding(ids, self.scale)


@register_layer
class ToyExactTable(ToyTable):
    """The same with float32 scales in a model of any type; it gives bfloat16."""

    kind: ClassVar[str] = "toy_exact_table"
    keeps_dtype: ClassVar[frozenset[str]] = frozenset({"scale"})

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width)
        self.scale = nn.Parameter(self.scale.detach().to(torch.float32), requires_grad=False)

    @classmethod
    def of(cls, module: nn.Embedding) -> ToyTable:
        layer = super().of(module)
        layer.scale.data = layer.scale.data.float()
        return layer

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).to(torch.bfloat16)


def _matrix(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    weight = module.weight.data.T if isinstance(module, Conv1D) else module.weight.data
    return weight, None if module.bias is None else module.bias.data


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Set the module at ``path``."""
    owner, _, name = path.rpartition(".")
    model.get_submodule(owner)._modules[name] = module


def matrices(model: nn.Module, part: str = "") -> list[str]:
    """Paths of the linear maps of the blocks that contain ``part``."""
    return [
        path
        for path, module in model.named_modules()
        if type(module) in (nn.Linear, Conv1D) and part in path and any(piece.isdigit() for piece in path.split("."))
    ]


def replace_all(model: PreTrainedModel, make: Any, part: str = "", every: int = 1) -> int:
    """Replace every n-th matrix of the blocks by ``make(matrix)``; how many."""
    paths = matrices(model, part)[::every]
    for path in paths:
        put(model, path, make(model.get_submodule(path)))
    return len(paths)
