from __future__ import annotations

import pytest
import torch
from torch import nn

from compresskit.errors import ModelError
from compresskit.nn.embedding import Bits, QuantizedEmbedding, QuantizedHead
from compresskit.numerics.grids import asymmetric, symmetric

KINDS: list[tuple[Bits, int | None]] = [(8, None), (8, 16), (4, None), (4, 16)]
EVERY = pytest.mark.parametrize(("bits", "group"), KINDS)


def table(rows: int = 30, columns: int = 48) -> nn.Embedding:
    made = nn.Embedding(rows, columns, padding_idx=0)
    with torch.no_grad():
        made.weight.mul_(torch.rand(rows, 1) * 2).add_(0.05)
        made.weight[0] = 0
    return made


@EVERY
def test_a_lookup_gives_the_values_of_the_grid(bits: Bits, group: int | None) -> None:
    plain = table()
    made = QuantizedEmbedding.from_table(plain, bits, group)
    weight = plain.weight.detach()
    grid = symmetric(weight, 8, group) if bits == 8 else asymmetric(weight, bits, group, scale_dtype=torch.float16)
    values = grid.values()
    assert torch.equal(made.weight, values.half().float() if bits == 4 else values)
    ids = torch.randint(0, 30, (3, 7))
    assert torch.equal(made(ids), made.weight[ids])
    assert made(ids[:0]).shape == (0, 7, 48)
    assert made(ids[0, 0]).shape == (48,)


@pytest.mark.parametrize(("bits", "group", "limit"), [(8, None, 0.01), (4, None, 0.13), (4, 16, 0.1)])
def test_the_error_is_small(bits: Bits, group: int | None, limit: float) -> None:
    plain = table()
    made, weight = QuantizedEmbedding.from_table(plain, bits, group), plain.weight.detach()
    assert float((made.weight - weight).norm() / weight.norm()) < limit


@EVERY
def test_bytes_are_what_the_formula_says(bits: Bits, group: int | None) -> None:
    made = QuantizedEmbedding.from_table(table(), bits, group)
    groups = 1 if group is None else 48 // group
    row = 48 + 4 * groups if bits == 8 else 24 + 2 * groups + (groups + 1) // 2
    assert made.stored_bytes() == 30 * row
    assert made.parameter_count() == 30 * 48


def test_an_odd_number_of_columns() -> None:
    plain = table(columns=5)
    made = QuantizedEmbedding.from_table(plain, 4)
    assert made(torch.tensor([3, 1])).shape == (2, 5)
    assert float((made.weight - plain.weight.detach()).abs().max()) < 0.3


def test_padding_stays_zero_and_known() -> None:
    for bits, group in KINDS:
        made = QuantizedEmbedding.from_table(table(), bits, group)
        assert made.padding_idx == 0
        assert not bool(made(torch.tensor([0])).any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@EVERY
def test_the_result_has_the_models_dtype(bits: Bits, group: int | None, dtype: torch.dtype) -> None:
    made = QuantizedEmbedding.from_table(table(), bits, group)
    scale = made.scale.clone()
    exact = made(torch.arange(5))
    half = made.to(dtype)
    assert torch.equal(half.scale, scale)
    assert half.scale.dtype == scale.dtype
    assert torch.equal(half(torch.arange(5)), exact.to(dtype))
    assert QuantizedEmbedding.from_table(table().to(dtype), bits, group)(torch.arange(5)).dtype == dtype


def test_built_while_another_dtype_is_the_default() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        made = QuantizedEmbedding(30, 48, 8)
    finally:
        torch.set_default_dtype(before)
    made.fill(table().weight.detach())
    assert made.scale.dtype == torch.float32
    assert made(torch.arange(5)).dtype == torch.bfloat16


def test_an_id_beyond_the_table_is_an_error() -> None:
    with pytest.raises(IndexError):
        QuantizedEmbedding.from_table(table(), 4, 16)(torch.tensor([30]))


def test_max_norm_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        QuantizedEmbedding.from_table(nn.Embedding(4, 8, max_norm=1.0), 8)
    assert caught.value.code == "CK-M050"


@pytest.mark.parametrize(("bits", "group"), [(1, None), (9, None), (4, 7)])
def test_impossible_grids_are_refused(bits: Bits, group: int | None) -> None:
    with pytest.raises(ValueError, match="no table"):
        QuantizedEmbedding(30, 48, bits, group)


@EVERY
@pytest.mark.parametrize("bias", [True, False])
def test_a_head_on_the_tables_own_codes(bits: Bits, group: int | None, bias: bool) -> None:
    made = QuantizedEmbedding.from_table(table(), bits, group)
    head = QuantizedHead(30, 48, bits, group, bias)
    for name in ("codes", "scale", "zero"):
        head._parameters[name] = made._parameters[name]
    if head.bias is not None:
        nn.init.normal_(head.bias)
    x = torch.randn(2, 3, 48, requires_grad=True)
    logits = head(x)
    torch.testing.assert_close(logits, nn.functional.linear(x, made.weight, head.bias))
    logits.sum().backward()
    torch.testing.assert_close(x.grad, made.weight.sum(0).expand(2, 3, 48))
    assert head.in_features == made.embedding_dim == 48
    assert head.out_features == made.num_embeddings == 30


def test_a_large_head_never_holds_its_table_as_float() -> None:
    head = QuantizedHead(3000, 48, 8)
    head.fill(torch.randn(3000, 48))
    x = torch.randn(4, 48, requires_grad=True)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.is_floating_point():
                sizes.append(result.numel())
            return result

    with Watch():
        head(x).sum().backward()
    assert max(sizes) < 3000 * 48 / 2
    torch.testing.assert_close(x.grad, head.weight.sum(0).expand(4, 48), rtol=1e-4, atol=1e-4)
