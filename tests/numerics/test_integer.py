from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compresskit.numerics import grids, integer

PER_TOKEN = pytest.mark.parametrize("per_token", [True, False])


def problem(rows: int = 9, inputs: int = 40, outputs: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(rows, inputs) * torch.rand(rows, 1) * 4 + 0.3
    grid = grids.symmetric(torch.randn(outputs, inputs), 8)
    return x, grid.codes, grid.scale.reshape(-1)


@PER_TOKEN
@pytest.mark.parametrize("kind", ["mixed", "positive", "negative", "large"])
def test_equals_the_oracle(per_token: bool, kind: str) -> None:
    x, codes, scale = problem()
    x = {"mixed": x, "positive": x.abs(), "negative": -x.abs(), "large": x * 1e6}[kind]
    expected = integer.linear_oracle(x, codes, scale, per_token=per_token)
    found = integer.linear(x, codes, scale, per_token=per_token)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@PER_TOKEN
def test_activation_codes_are_within_half_a_step(per_token: bool) -> None:
    x, _, _ = problem()
    step, zero = integer.activation_range(x, per_token=per_token)
    codes = integer.activation_codes(x, step, zero, per_token=per_token)
    assert float(codes.min()) >= 0
    assert float(codes.max()) <= 255
    assert torch.equal(codes, codes.round())
    assert torch.equal(zero, zero.round())
    assert bool((((codes - zero) * step - x).abs() <= step * 0.5001).all())


def test_tensor_codes_are_those_of_the_onnx_operator() -> None:
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    node = onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "g", [value("x", 1, [None, None])], [value("q", 2, None), value("s", 1, None), value("z", 2, None)]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    x, _, _ = problem()
    codes, scale, zero = ReferenceEvaluator(model).run(None, {"x": x.numpy()})
    step, point = integer.activation_range(x, per_token=False)
    assert float(step) == float(scale)
    assert float(point) == float(zero)
    assert torch.equal(integer.activation_codes(x, step, point, per_token=False), torch.from_numpy(codes).float())


@PER_TOKEN
def test_zero_rows_and_empty_batches(per_token: bool) -> None:
    x, codes, scale = problem()
    x[2] = 0
    x[3] = 1e-42
    found = integer.linear(x, codes, scale, per_token=per_token)
    assert bool(torch.isfinite(found).all())
    if per_token:
        assert float(found[2:4].abs().max()) < 1e-30
    assert integer.linear(x[:0], codes, scale, per_token=per_token).shape == (0, 12)


def test_a_token_does_not_depend_on_its_neighbours() -> None:
    x, codes, scale = problem(600)
    alone = torch.cat([integer.linear(row[None], codes, scale, per_token=True) for row in x[250:262]])
    assert torch.equal(integer.linear(x, codes, scale, per_token=True)[250:262], alone)


def test_not_a_number_is_not_hidden() -> None:
    x, codes, scale = problem()
    x[1, 3] = torch.nan
    found = integer.linear(x, codes, scale, per_token=True)
    assert bool(found[1].isnan().all())
    assert not bool(found[0].isnan().any())


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("inputs", [1, 7, 1024, 3000])
def test_sums_of_the_largest_products_are_exact(inputs: int, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    left = torch.randint(-128, 128, (5, inputs), dtype=torch.int8)
    left[0], left[1] = -128, 127
    right = torch.randint(-127, 128, (6, inputs), dtype=torch.int8)
    right[0] = 127
    if not kernel:
        monkeypatch.setattr(integer, "_kernel_is_exact", lambda: False)
    assert torch.equal(integer.integer_matmul(left, right).long(), left.long() @ right.long().T)


def test_the_slow_path_is_exact_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer, "_kernel_is_exact", lambda: False)
    left, right = (torch.randint(-127, 128, (8, 300), dtype=torch.int8) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = integer.integer_matmul(left, right)
    assert torch.equal(found.long(), left.long() @ right.long().T)
