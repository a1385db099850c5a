"""The rules of ``compresskit.nn.base``, on every registered layer."""

from __future__ import annotations

import copy
import inspect
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compresskit import registry
from compresskit.checkpoint.readback import same_bits
from compresskit.nn.base import CompressedLayer, exporting
from compresskit.nn.embedding import QuantizedEmbedding, QuantizedHead
from compresskit.nn.experts import Experts
from compresskit.nn.fake_lookup import FakeLookupLinear
from compresskit.nn.fake_quantized import FakeQuantizedLinear
from compresskit.nn.int8 import Int8Linear
from compresskit.nn.lookup import LookupLinear
from compresskit.nn.low_rank import LowRankLinear
from compresskit.nn.packed import PackedLinear
from compresskit.nn.product import ProductEmbedding
from compresskit.nn.recurrent import Recurrent
from compresskit.nn.xlnet import XLNetAttention
from compresskit.numerics import lookup
from compresskit.numerics.rtn import quantize
from tests.nn.test_bitsandbytes_layers import int8 as mixed_int8
from tests.nn.test_bitsandbytes_layers import nf4 as bitsandbytes_nf4
from tests.nn.test_fp8 import layer as float8
from tests.nn.test_residual import layer as residual
from tests.nn.test_static_int8 import layer as static_int8


def head() -> QuantizedHead:
    made = QuantizedHead(30, 48, 4, 16, bias=True)
    made.fill(torch.randn(30, 48))
    nn.init.normal_(made.bias)  # type: ignore[arg-type]
    return made


def drawn(layer: CompressedLayer) -> CompressedLayer:
    """Random values in every parameter; no dropout."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer.eval()


def packed(bits: int, group: int | None, **options: Any) -> PackedLinear:
    codes = quantize(torch.randn(12, 40), bits, group, scale_dtype=torch.float16, **options)
    return PackedLinear.from_codes(codes, torch.randn(12), torch.float32, torch.rand(40) + 0.5 if bits == 3 else None)


LAYERS: dict[str, tuple[CompressedLayer, tuple[int, int]]] = {
    "int8": (Int8Linear.from_weight(torch.randn(12, 40), torch.randn(12)), (12, 40)),
    "int8 by tensor, no bias": (Int8Linear.from_weight(torch.randn(12, 40), None, "tensor"), (12, 40)),
    "int8, fixed scales": (static_int8(smooth=True), (12, 40)),
    "int8, fixed scales, not smoothed": (static_int8(smooth=False), (12, 40)),
    "table of 8 bits": (QuantizedEmbedding.from_table(nn.Embedding(30, 48), 8), (30, 48)),
    "table of 4 bits": (QuantizedEmbedding.from_table(nn.Embedding(30, 48, padding_idx=1), 4, 16), (30, 48)),
    "table of 5 bits": (QuantizedEmbedding.from_table(nn.Embedding(30, 48), 5, 16), (30, 48)),
    "head": (head(), (30, 48)),
    "packed": (packed(4, 8), (12, 40)),
    "packed, scaled input": (packed(3, 8), (12, 40)),
    "codebook": (
        LookupLinear.from_lookup(lookup.codebook(torch.randn(12, 40), 3, 4), 3, None, torch.float32),
        (12, 40),
    ),
    "normal float": (
        LookupLinear.from_lookup(
            lookup.by_absmax(torch.randn(12, 40), lookup.normal_float(), 20),
            4,
            torch.randn(12),
            torch.float32,
            small_scales=True,
        ),
        (12, 40),
    ),
    "signs": (LookupLinear.from_lookup(lookup.binary(torch.randn(12, 40)), 1, None, torch.float32), (12, 40)),
    "product codes": (
        ProductEmbedding.from_codes(torch.randint(0, 9, (30, 12)).byte(), torch.randn(12, 9, 4), 0, torch.float32),
        (30, 48),
    ),
    "in training": (
        FakeQuantizedLinear.from_codes(quantize(torch.randn(12, 40), 4, 8), torch.randn(12, 40), torch.randn(12)),
        (12, 40),
    ),
    "signs in training": (FakeLookupLinear.from_weight(torch.randn(12, 40), None, 2, scales="learned"), (12, 40)),
    "three levels in training": (FakeLookupLinear.from_weight(torch.randn(12, 40), None, 3, 8, "loss"), (12, 40)),
    "nf4 of bitsandbytes": (bitsandbytes_nf4(), (12, 40)),
    "nf4 of bitsandbytes, float scales": (bitsandbytes_nf4(double=False), (12, 40)),
    "int8, outliers apart": (mixed_int8(), (12, 40)),
    "packed, one scale": (packed(6, None, whole=True), (12, 40)),
    "packed, symmetric rows": (packed(5, None, symmetric=True), (12, 40)),
    "lstm": (Recurrent.from_module(nn.LSTM(40, 3, 2, bidirectional=True)), (12, 40)),
    "gru": (Recurrent.from_module(nn.GRU(40, 4, bias=False)), (12, 40)),
    "packed, corrected": (residual(), (12, 40)),
    "experts": (drawn(Experts(2, 40, 6)), (12, 40)),
    "attention of xlnet": (drawn(XLNetAttention(40, 3, 4, dropout=0.0)), (12, 40)),
    "8-bit floats": (float8(), (12, 40)),
    "low rank": (LowRankLinear.from_factors(torch.randn(12, 5), torch.randn(5, 40), torch.randn(12)), (12, 40)),
}
EVERY = pytest.mark.parametrize("name", LAYERS)


def call(layer: CompressedLayer) -> Tensor:
    if isinstance(layer, (QuantizedEmbedding, ProductEmbedding)):
        return layer(torch.arange(6).reshape(2, 3))
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, layer.weight.shape[1], generator=generator)
    if isinstance(layer, Experts):
        return layer(x[0], torch.tensor([[0, 1], [1, 0], [0, 1]]), torch.rand(3, 2, generator=generator)).detach()
    if isinstance(layer, XLNetAttention):
        return layer(x, None, None, None, torch.randn(4, 3, 40, generator=generator), None)[0].detach()
    output = layer(x)
    return (output[0] if isinstance(layer, Recurrent) else output).detach()


def tensors(layer: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype, bool]]:
    return {
        name: (tensor.shape, tensor.dtype, tensor.requires_grad)
        for name, tensor in (*layer.named_parameters(), *layer.named_buffers())
    }


def test_every_registered_layer_is_tested() -> None:
    registry.layer("int8_linear")
    here = {kind for kind, cls in registry._LAYERS.items() if cls.__module__.startswith("compresskit.nn.")}
    assert here == {layer.kind for layer, _ in LAYERS.values()}


@EVERY
def test_rebuilt_from_json_and_filled(name: str) -> None:
    layer, _ = LAYERS[name]
    arguments = json.loads(json.dumps(layer.arguments()))
    with torch.device("meta"):
        empty = type(layer)(**arguments)
    assert tensors(empty) == tensors(layer)
    assert all(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    assert set(empty.state_dict()) == set(tensors(layer))
    empty.load_state_dict(layer.state_dict(), assign=True)
    assert empty.arguments() == layer.arguments()
    assert torch.equal(call(empty), call(layer))


@EVERY
def test_the_weight_is_the_matrix(name: str) -> None:
    layer, shape = LAYERS[name]
    assert layer.weight.shape == shape
    assert layer.weight.dtype == torch.float32


@EVERY
def test_integers_take_no_gradient_and_hide_from_the_stock_class(name: str) -> None:
    layer, shape = LAYERS[name]
    for key, tensor in layer.named_parameters():
        assert tensor.is_floating_point() or not tensor.requires_grad
        assert key != "weight" or tensor.shape != shape


@EVERY
def test_kept_dtypes_survive_every_conversion(name: str) -> None:
    layer, _ = LAYERS[name]
    present = [key for key in layer.keeps_dtype if getattr(layer, key) is not None]
    kept = {key: layer.get_parameter(key).clone() for key in present}
    converted = copy.deepcopy(layer).half().bfloat16().to(torch.float64).float()
    for key, value in kept.items():
        assert same_bits(converted.get_parameter(key), value)
        assert converted.get_parameter(key).dtype == value.dtype


@EVERY
def test_copies_and_bytes(name: str) -> None:
    layer, _ = LAYERS[name]
    assert torch.equal(call(copy.deepcopy(layer)), call(layer))
    assert layer.stored_bytes() == sum(each.numel() * each.element_size() for each in layer.state_dict().values())
    assert repr(layer)


@EVERY
def test_it_says_what_it_is(name: str) -> None:
    assert inspect.getdoc(type(LAYERS[name][0]))


def test_not_exporting_by_default() -> None:
    assert not exporting()
