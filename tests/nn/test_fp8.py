from __future__ import annotations

from pathlib import Path
from typing import cast

import onnx
import pytest
import torch
from torch import Tensor, nn

from compresskit.nn.fp8 import Float8Linear
from compresskit.numerics import fp8
from tests.export.conftest import export_module, run


def layer(*, whole: bool = False, bias: bool = True) -> Float8Linear:
    return Float8Linear.from_weight(torch.randn(12, 40), torch.randn(12) if bias else None, whole=whole)


@pytest.mark.parametrize("whole", [False, True])
def test_computes_what_its_codes_stand_for(whole: bool) -> None:
    made, x = layer(whole=whole), torch.randn(2, 3, 40)
    dense = made.codes.float() * made.scale
    torch.testing.assert_close(made(x), nn.functional.linear(x, dense, made.bias))
    assert torch.equal(made.weight + 0, dense)
    assert made.half()(x.half()).dtype == torch.float16
    assert made.codes.dtype == fp8.TYPE


def test_gradients_reach_input_and_bias() -> None:
    made, x = layer(), torch.randn(4, 40, requires_grad=True)
    made(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, made.weight.sum(0).expand(4, 40))
    assert [name for name, parameter in made.named_parameters() if parameter.grad is not None] == ["bias"]


def test_in_onnx_the_file_holds_the_8_bit_floats(tmp_path: Path) -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # The exporter casts float inputs to the type of the first parameter.
            self.first = nn.Parameter(torch.empty(0))
            self.layers = nn.ModuleList([layer(), layer(whole=True, bias=False)])

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {f"y{number}": made(x) for number, made in enumerate(self.layers)}

    module, path = Layers().eval(), tmp_path / "layers.onnx"
    export_module(module, {"x": torch.randn(2, 3, 40)}, path)
    kinds = [each.data_type for each in onnx.load(path).graph.initializer if list(each.dims) == [12, 40]]
    assert kinds == [onnx.TensorProto.FLOAT8E4M3FN] * 2
    x = torch.randn(3, 5, 40)
    with torch.no_grad():
        expected = module(x)
    for name, found in run(path, {"x": x}).items():
        torch.testing.assert_close(torch.from_numpy(found), expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_on_a_cuda_device(dtype: torch.dtype) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("the device has no products of 8-bit floats")
    for whole in (False, True):
        made = Float8Linear.from_weight(torch.randn(64, 128), torch.randn(64), whole=whole)
        x = torch.randn(2, 7, 128)
        expected = fp8.linear(x.to(dtype).reshape(-1, 128), made.codes, made.scale) + cast(Tensor, made.bias)
        there = made.cuda().to(dtype)
        assert there._by_kernel(x.cuda())
        with torch.no_grad():
            found = there(x.cuda().to(dtype)).float().cpu()
        torch.testing.assert_close(found.reshape(-1, 64), expected.detach(), rtol=2e-2, atol=2e-1)
