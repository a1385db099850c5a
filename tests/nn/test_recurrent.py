"""``Recurrent`` computes what torch's LSTM and GRU compute, fused and step by step, in torch and in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from compresskit.nn.int8 import Int8Linear
from compresskit.nn.recurrent import Recurrent, matrix_names
from compresskit.nn.recurrent_padded import run_padded
from tests.export.conftest import export_module, run

CELLS = pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
SHAPES = pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "batch_first": True},
        {"bidirectional": True, "bias": False},
        {"num_layers": 2, "bidirectional": True, "batch_first": True},
    ],
    ids=str,
)
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])


def pair(cell: type[nn.RNNBase], **options: Any) -> tuple[nn.RNNBase, Recurrent]:
    torch.manual_seed(0)
    module = cell(6, 4, **options).eval()
    return module, Recurrent.from_module(module)


def flat(result: Any) -> list[Tensor]:
    """All tensors of a result, in order."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, PackedSequence):
        return [result.data]
    return [tensor for part in result for tensor in flat(part)]


def same(left: Any, right: Any) -> None:
    for one, other in zip(flat(left), flat(right), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def packed(x: Tensor) -> PackedSequence:
    return pack_padded_sequence(x, MASK.sum(1), batch_first=True, enforce_sorted=False)


@CELLS
@SHAPES
def test_every_kind_of_input(cell: type[nn.RNNBase], options: dict[str, Any]) -> None:
    module, layer = pair(cell, **options)
    x = torch.randn(3, 5, 6)
    rows = 3 if options.get("batch_first") else 5
    state = torch.randn(options.get("num_layers", 1) * (1 + options.get("bidirectional", False)), rows, 4)
    begin = (state, state / 2) if cell is nn.LSTM else state
    for given in (x, x[0], packed(x)):
        same(layer(given), module(given))
    same(layer(x, begin), module(x, begin))
    few = state[:, :3] if rows == 5 else state
    begin = (few, few / 2) if cell is nn.LSTM else few
    same(layer(packed(x), begin), module(packed(x), begin))


@CELLS
@SHAPES
def test_step_by_step_for_hooks(cell: type[nn.RNNBase], options: dict[str, Any]) -> None:
    """The hooks see what the matrices multiply: their gradients are those of the fused kernel."""
    module, layer = pair(cell, **options)
    x = torch.randn(3, 5, 6)
    seen: dict[str, list[Tensor]] = {name: [] for name in layer.names}
    handles = [
        layer.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0]))
        for name in layer.names
    ]
    same(layer(packed(x)), module(packed(x)))
    for handle in handles:
        handle.remove()
    assert {name: sum(len(part) for part in parts) for name, parts in seen.items()} == dict.fromkeys(seen, 10)
    calls = {name: len(parts) for name, parts in seen.items()}
    assert calls == {name: 1 if "_ih_" in name else 5 for name in seen}


def test_the_parameters_are_the_very_ones_and_take_gradients() -> None:
    module, layer = pair(nn.LSTM, bidirectional=True)
    assert {id(parameter) for parameter in layer.parameters()} == {id(parameter) for parameter in module.parameters()}
    layer(torch.randn(3, 5, 6))[0].square().sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in module.parameters())


def test_no_names_where_states_are_projected() -> None:
    assert matrix_names(nn.LSTM(6, 4, proj_size=2)) == []
    assert matrix_names(nn.GRU(6, 4, bidirectional=True))[:3] == [
        "weight_ih_l0",
        "weight_hh_l0",
        "weight_ih_l0_reverse",
    ]


def test_dropout_acts_between_layers_in_training_only() -> None:
    module, layer = pair(nn.GRU, num_layers=2, dropout=0.5)
    x = torch.randn(3, 5, 6)
    same(layer(x), module(x))
    layer.train()
    torch.manual_seed(1)
    fused = layer(x)[0]
    module.train()
    torch.manual_seed(1)
    same(fused, module(x)[0])
    assert not torch.allclose(fused, layer.eval()(x)[0])


def test_a_wrong_cell() -> None:
    with pytest.raises(ValueError, match="lstm or gru"):
        Recurrent("rnn", 3, 4)  # type: ignore[arg-type]


class Padded(nn.Module):
    """Takes and gives tensors by name, as the exporter wants it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        states, last = run_padded(self.module, x, attention_mask)
        return {"states": states, "last": last}


def quantize(layer: Recurrent) -> None:
    for name in layer.names:
        linear = layer.get_submodule(name)
        setattr(layer, name, Int8Linear.from_weight(linear.weight, linear.bias))  # type: ignore[arg-type]


@CELLS
@pytest.mark.parametrize("kind", ["torch's", "ours", "int8"])
def test_in_onnx_runtime(cell: type[nn.RNNBase], kind: str, tmp_path: Path) -> None:
    """The backward direction begins at the end of each sequence, and the states behind it are zero."""
    module, layer = pair(cell, num_layers=2, bidirectional=True, batch_first=True)
    if kind == "int8":
        quantize(layer)
    traced = Padded(module if kind == "torch's" else layer).eval()
    sample = {"x": torch.randn(3, 5, 6), "attention_mask": MASK}
    export_module(traced, sample, tmp_path / "file.onnx")
    x = torch.randn(2, 7, 6)
    batch = {"x": x, "attention_mask": torch.tensor([[1] * 7, [1, 1, 1, 0, 0, 0, 0]])}
    expected, found = traced(**batch), run(tmp_path / "file.onnx", batch)
    # DynamicQuantizeLSTM rounds inputs and states.
    tolerance = 2e-2 if kind == "int8" and cell is nn.LSTM else 1e-5
    for name, tensor in expected.items():
        torch.testing.assert_close(torch.from_numpy(found[name]), tensor, rtol=0, atol=tolerance)
    assert not found["states"][1, 3:].any()


@CELLS
@SHAPES
@pytest.mark.parametrize("ours", [False, True])
def test_training_on_rectangles(cell: type[nn.RNNBase], options: dict[str, Any], ours: bool) -> None:
    """States, last states and all gradients are those of packed sequences."""
    module, layer = pair(cell, **{**options, "batch_first": True})
    x = torch.randn(3, 5, 6, requires_grad=True)
    output, state = module(pack_padded_sequence(x, MASK.sum(1), batch_first=True, enforce_sorted=False))
    states, _ = pad_packed_sequence(output, batch_first=True, total_length=5)
    hidden = state[0] if isinstance(state, tuple) else state
    last = hidden[-(1 + module.bidirectional) :].transpose(0, 1).flatten(1)
    found = run_padded(layer if ours else module, x, MASK)
    same(found, (states, last))
    wanted = [x, *module.parameters()]
    drawn = torch.randn_like(states), torch.randn_like(last)

    def gradients(of: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad((of[0] * drawn[0]).sum() + (of[1] * drawn[1]).sum(), wanted)

    same(gradients(found), gradients((states, last)))


def test_dropout_between_layers() -> None:
    module, _ = pair(nn.LSTM, num_layers=2, batch_first=True, dropout=0.5)
    x = torch.randn(3, 5, 6)
    still, _ = run_padded(module, x, MASK)
    module.train()
    one, other = (run_padded(module, x, MASK)[0] for _ in range(2))
    assert not torch.equal(one, other)
    assert not torch.equal(one, still)
    module.dropout = 0.0
    same(run_padded(module, x, MASK)[0], still)


def test_training_in_bfloat16() -> None:
    module, _ = pair(nn.LSTM, bidirectional=True, batch_first=True)
    x = torch.randn(3, 5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        states, _ = run_padded(module, x, MASK)
        states.float().sum().backward()
    expected, _ = run_padded(module, x, MASK)
    torch.testing.assert_close(states.float(), expected, rtol=0, atol=2e-2)
    assert all(parameter.grad is not None for parameter in module.parameters())
