"""Packed layers, and those with levels, in ONNX Runtime: exact, small, and by the nodes that they should have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from compresskit.export.trace import Profile, lowering
from compresskit.nn.lookup import LookupLinear
from compresskit.nn.packed import PackedLinear
from compresskit.nn.product import ProductEmbedding
from compresskit.numerics import lookup
from compresskit.numerics.rtn import Codes, quantize
from tests.export.conftest import export_module, run

IN, OUT = 384, 48
OPTIONS: dict[str, dict[str, Any]] = {
    "b2": {"bits": 2, "group": 32},
    "b3": {"bits": 3, "group": 32},
    "b4": {"bits": 4, "group": 32},
    "b4s": {"bits": 4, "group": 64, "symmetric": True},
    "b4rows": {"bits": 4, "symmetric": True},
    "b4row_zeros": {"bits": 4},
    "b2row_zeros": {"bits": 2},
    "b4whole": {"bits": 4, "whole": True},
    "b4long": {"bits": 4, "group": 192},
    "b5": {"bits": 5, "group": 16},
    "b6": {"bits": 6},
    "b8": {"bits": 8, "group": 128},
    "b8rows": {"bits": 8},
    "b8whole": {"bits": 8, "whole": True, "symmetric": True},
}
CONTRIB = {
    "b2", "b2row_zeros", "b4", "b4s", "b4rows", "b4row_zeros", "b4whole", "b4long", "b8", "b8rows", "b8whole", "between"
}  # fmt: skip


class Layers(nn.Module):
    """A packed layer of every kind on one input (B, T, I)."""

    def __init__(self) -> None:
        super().__init__()
        # The exporter casts float inputs to the type of the first parameter.
        self.first = nn.Parameter(torch.empty(0))
        self.layers = nn.ModuleDict()
        for name, options in OPTIONS.items():
            codes = quantize(torch.randn(OUT, IN), scale_dtype=torch.float16, **options)
            scale = torch.rand(IN) + 0.5 if name == "b2" else None
            self.layers[name] = PackedLinear.from_codes(codes, torch.randn(OUT), torch.float32, scale)
        made = quantize(torch.randn(OUT, IN), 4, 32, scale_dtype=torch.float16)
        codes = Codes(made.codes, made.scale, (made.zero.float() + 0.3).half(), 4)  # type: ignore[union-attr]
        self.layers["between"] = PackedLinear.from_codes(codes, None, torch.float32)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: layer(x) for name, layer in self.layers.items()}


@pytest.mark.parametrize("profile", ["fast", "portable"])
def test_every_kind(profile: Profile, tmp_path: Path) -> None:
    module, path = Layers().eval(), tmp_path / "layers.onnx"
    with lowering(profile):
        export_module(module, {"x": torch.randn(2, 5, IN)}, path)
    x = torch.randn(3, 7, IN)
    found = run(path, {"x": x})
    with torch.no_grad():
        for name, expected in module(x).items():
            torch.testing.assert_close(torch.from_numpy(found[name]), expected, rtol=1e-4, atol=1e-4)
    graph = onnx.load(str(path)).graph
    blocks = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert len(blocks) == (len(CONTRIB) if profile == "fast" else 0)
    assert profile == "fast" or all(node.domain in ("", "ai.onnx") for node in graph.node)
    stored = {weight.name: onnx.numpy_helper.to_array(weight) for weight in graph.initializer}
    for layer in module.layers.values():
        codes = layer.codes.numpy()  # type: ignore[union-attr, operator]
        assert any(array.dtype == codes.dtype and array.tobytes() == codes.tobytes() for array in stored.values())
    expected_bytes = sum(layer.stored_bytes() for layer in module.layers.values())  # type: ignore[operator, misc]
    assert sum(array.nbytes for array in stored.values()) <= expected_bytes * 1.02 + 2000


class Levels(nn.Module):
    """Layers with tables of levels on x (B, T, I), and a table in product codes on ids (B, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(0))
        weight, bias, kind = torch.randn(OUT, IN), torch.randn(OUT), torch.float32
        self.layers = nn.ModuleDict(
            {
                "codebook": LookupLinear.from_lookup(lookup.codebook(weight, 3, 4), 3, bias, kind),
                "normal": LookupLinear.from_lookup(
                    lookup.by_absmax(weight, lookup.normal_float(), 64), 4, None, kind, small_scales=True
                ),
                "signs": LookupLinear.from_lookup(lookup.binary(weight), 1, bias, kind),
                "three": LookupLinear.from_lookup(lookup.ternary(weight, 32), 2, bias, kind),
            }
        )
        codes, books = lookup.product_codes(torch.randn(300, 48), 12, 8, torch.Generator().manual_seed(0))
        self.table = ProductEmbedding.from_codes(codes, books, None, kind)

    def forward(self, x: Tensor, ids: Tensor) -> dict[str, Tensor]:
        return {**{name: layer(x) for name, layer in self.layers.items()}, "table": self.table(ids)}


def test_levels(tmp_path: Path) -> None:
    module, path = Levels().eval(), tmp_path / "levels.onnx"
    sample = {"x": torch.randn(2, 5, IN), "ids": torch.randint(0, 300, (2, 5))}
    with lowering("portable"):
        export_module(module, sample, path)
    batch = {"x": torch.randn(3, 7, IN), "ids": torch.randint(0, 300, (3, 7))}
    found = run(path, batch)
    with torch.no_grad():
        for name, expected in module(**batch).items():
            torch.testing.assert_close(torch.from_numpy(found[name]), expected, rtol=1e-4, atol=1e-4)
    graph = onnx.load(str(path)).graph
    size = sum(onnx.numpy_helper.to_array(weight).nbytes for weight in graph.initializer)
    expected_bytes = sum(layer.stored_bytes() for layer in (*module.layers.values(), module.table))  # type: ignore[operator, misc]
    assert size <= expected_bytes * 1.02 + 2000
