"""The layers in bitsandbytes' formats: plain torch against its kernels where it is installed, and ONNX without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compresskit.nn import bitsandbytes_layers
from compresskit.nn.bitsandbytes_layers import LEVELS, BitsandbytesNf4Linear, MixedInt8Linear, kernels
from compresskit.numerics.grids import symmetric
from compresskit.numerics.lookup import normal_float
from tests.export.conftest import export_module, run


def nf4(double: bool = True, shape: tuple[int, int] = (12, 40), block: int = 32) -> BitsandbytesNf4Linear:
    """Random codes: what is stored needs no bitsandbytes."""
    generator = torch.Generator().manual_seed(0)
    layer = BitsandbytesNf4Linear(shape[1], shape[0], block, double, bias=True)
    with torch.no_grad():
        layer.codes.copy_(torch.randint(0, 256, layer.codes.shape, generator=generator))
        if double:
            layer.absmax.copy_(torch.randint(0, 256, layer.absmax.shape, generator=generator))
            layer.nested_absmax.fill_(0.3)  # type: ignore[union-attr]
            layer.nested_levels.copy_(torch.linspace(-1, 1, 256))  # type: ignore[union-attr]
            layer.offset.fill_(1.0)  # type: ignore[union-attr]
        else:
            layer.absmax.copy_(torch.rand(layer.absmax.shape, generator=generator) + 0.5)
        layer.bias.copy_(torch.randn(shape[0], generator=generator))  # type: ignore[union-attr]
    return layer


def int8(threshold: float = 6.0) -> MixedInt8Linear:
    torch.manual_seed(0)
    grid = symmetric(torch.randn(12, 40), 8)
    layer = MixedInt8Linear(40, 12, True, threshold)
    layer.weight_codes.data, layer.weight_scale.data = grid.codes, grid.scale.reshape(-1)
    layer.bias.data = torch.randn(12)  # type: ignore[union-attr]
    return layer


class Named(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.layer(x)}


@pytest.mark.parametrize("double", [True, False])
def test_nf4_in_onnx_runtime_computes_the_same(double: bool, tmp_path: Path) -> None:
    layer = nf4(double)
    export_module(Named(layer), {"x": torch.randn(2, 3, 40)}, tmp_path / "file.onnx")
    x = torch.randn(3, 5, 40)
    found = torch.from_numpy(run(tmp_path / "file.onnx", {"x": x})["y"])
    torch.testing.assert_close(found, layer(x), rtol=1e-4, atol=1e-4)
    assert (tmp_path / "file.onnx").stat().st_size < 12 * 40 * 4 + 8000


def test_int8_in_onnx_runtime_holds_no_outlier_back(tmp_path: Path) -> None:
    layer = int8()
    export_module(Named(layer), {"x": torch.randn(2, 3, 40)}, tmp_path / "file.onnx")
    x = torch.randn(3, 5, 40)
    found = torch.from_numpy(run(tmp_path / "file.onnx", {"x": x})["y"])
    assert torch.cosine_similarity(found.flatten(), layer(x).flatten(), 0) > 0.9999
    x[0, 0, 0] = 300.0
    found = torch.from_numpy(run(tmp_path / "file.onnx", {"x": x})["y"])
    exact = torch.nn.functional.linear(x, layer.weight + 0, layer.bias)
    errors = [float((each - exact)[0, 0].detach().abs().max()) for each in (layer(x), found)]
    assert errors[0] < errors[1] / 5


@pytest.mark.parametrize("layer", [nf4(), int8()], ids=["nf4", "int8"])
def test_gradients_are_those_of_the_float_product(layer: Any) -> None:
    x = torch.randn(4, 40, requires_grad=True)
    (layer(x) * torch.arange(12.0)).sum().backward()
    expected = (torch.arange(12.0) @ (layer.weight + 0)).expand(4, -1)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-4)
    assert layer.bias.grad.tolist() == pytest.approx([4.0 * number for number in range(12)])


def test_outliers_are_held_back_only_from_the_threshold() -> None:
    x = torch.randn(4, 40)
    x[1, 3] = 50.0
    with torch.no_grad():
        exact = torch.nn.functional.linear(x, int8().weight + 0, int8().bias)
        with_it, without = (float((int8(level)(x) - exact)[1].abs().max()) for level in (6.0, 0.0))
    assert with_it < without / 3


def test_without_the_package_everything_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(bitsandbytes_layers.importlib, "import_module", absent)
    assert kernels() is None
    assert nf4()(torch.randn(2, 40)).shape == int8()(torch.randn(2, 40)).shape


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("shape", [(12, 40), (7, 9)])
def test_nf4_is_what_bitsandbytes_reads(double: bool, shape: tuple[int, int]) -> None:
    library = pytest.importorskip("bitsandbytes", reason="bitsandbytes isn't installed")
    torch.manual_seed(0)
    weight, bias = torch.randn(shape), torch.randn(shape[0])
    codes, state = library.functional.quantize_4bit(weight, blocksize=64, compress_statistics=double, quant_type="nf4")
    layer = BitsandbytesNf4Linear.from_state(codes, state, bias, torch.float32)
    expected = library.functional.dequantize_4bit(codes, state)
    assert torch.equal(layer.weight + 0, expected)
    x = torch.randn(3, shape[1])
    with torch.no_grad():
        torch.testing.assert_close(layer.by_kernels(x, library), layer(x), rtol=1e-4, atol=1e-4)


def test_int8_is_what_bitsandbytes_multiplies() -> None:
    library = pytest.importorskip("bitsandbytes", reason="bitsandbytes isn't installed")
    layer, x = int8(), torch.randn(5, 40)
    x[1, 3] = 50.0
    with torch.no_grad():
        # It rounds in float16: here and there a code is the next one.
        torch.testing.assert_close(layer.by_kernels(x, library), layer(x), rtol=1e-2, atol=0.1)
        ours, theirs = layer(x).flatten(), layer.by_kernels(x, library).flatten()
    assert torch.cosine_similarity(ours, theirs, 0) > 0.99999


def test_levels_are_the_derived_ones() -> None:
    torch.testing.assert_close(torch.tensor(LEVELS), normal_float(), rtol=0, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_cuda_device() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes isn't installed")
    for layer in (nf4(shape=(64, 64), block=64), int8()):
        x = torch.randn(32, layer.in_features)
        with torch.no_grad():
            found = layer.cuda()(x.cuda().half()).float().cpu()
            torch.testing.assert_close(found, layer.cpu()(x), rtol=2e-2, atol=5e-2)
