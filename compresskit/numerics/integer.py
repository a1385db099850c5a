"""A linear map in integers: uint8 activations quantized as they come, int8 weights, exact int32 sums.

Shapes: N rows, I inputs, O outputs. With codes a of an activation (scale s, zero point z) and codes w of a row of
weights (scale t): y = s t Σ (a - z) w. ONNX Runtime computes the same from the exported nodes, operation by operation.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

# Below it 1 / scale overflows; such activations count as 0.
TINY = float(torch.finfo(torch.float32).tiny)
# Rows that are multiplied at once on a CPU: their temporaries then stay in the cache.
_ROWS = 256
# float32 sums of int8 products are exact up to 2^24: 2^24 / (128 · 127) = 1032 terms.
_EXACT_TERMS = 1024


def activation_range(x: Tensor, *, per_token: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero point (…, 1) for each row of ``x`` (…, I), or (1,) for all: ONNX's DynamicQuantizeLinear.

    The range runs from min(x, 0) to max(x, 0): s = (high - low) / 255, z = round(-low / s); both float32.
    """
    if per_token:
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    else:
        low, high = x.amin().reshape(1), x.amax().reshape(1)
    scale = ((high.clamp(min=0) - low.clamp(max=0)) / 255).clamp(min=TINY)
    return scale, torch.round(-low.clamp(max=0) / scale)


def activation_codes(x: Tensor, scale: Tensor, zero: Tensor, *, per_token: bool) -> Tensor:
    """Codes 0 … 255 of ``x``, in float32: round(x / s) + z as ONNX defines it, round(x / s + z) for single tokens.

    The two differ only where x / s ends in exactly one half; each is what the exported node does.
    """
    if per_token:
        return torch.addcdiv(zero, x, scale).round_().clamp_(0, 255)
    return torch.div(x, scale).round_().add_(zero).clamp_(0, 255)


def linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None = None, *, per_token: bool) -> Tensor:
    """y = x Wᵀ + b, (N, O) float32, from float32 ``x`` (N, I), int8 ``codes`` (O, I), their scales (O,), b (O,)."""
    count = x.shape[0]
    result = x.new_empty(count, codes.shape[0])
    if count == 0:
        return result
    step, zero = activation_range(x, per_token=per_token)
    rows = _ROWS if x.device.type == "cpu" else count
    for start in range(0, count, rows):
        part = slice(start, start + rows)
        own = part if per_token else slice(None)
        _block(x[part], codes, scale, step[own], zero[own], per_token, result[part])
    return result if bias is None else result.add_(bias)


def _block(
    x: Tensor, codes: Tensor, scale: Tensor, step: Tensor, zero: Tensor, per_token: bool, result: Tensor
) -> None:
    """Some rows of ``linear``, into ``result``."""
    count = x.shape[0]
    left = torch.empty(count + 1, x.shape[1], dtype=torch.uint8, device=x.device)
    # Kernels want signed codes: shifting codes and zero point by 128, here by the highest bit, changes no difference.
    left[:count].copy_(activation_codes(x, step, zero, per_token=per_token)).bitwise_xor_(128)
    # A last row of ones gives the sums of the weights, by which the zero points are corrected.
    left[count] = 1
    products = integer_matmul(left.view(torch.int8), codes)
    if per_token:
        torch.mul(products[:count], scale, out=result)
        result.mul_(step).addcmul_((128 - zero) * step, products[count] * scale)
    else:
        exact = products[:count] - (zero - 128).to(torch.int32) * products[count]
        torch.mul(exact, step * scale, out=result)


def integer_matmul(left: Tensor, right: Tensor) -> Tensor:
    """Exact ``left @ right.T`` of int8 matrices (N, I) and (O, I), int32 (N, O)."""
    if left.device.type == "cpu":
        # torch 2.13 returns uninitialised memory for sums of one term.
        if left.shape[1] > 1 and _kernel_is_exact():
            return torch._int_mm(left, right.T)
    elif left.is_cuda and left.shape[0] > 16 and left.shape[1] % 8 == 0 and right.shape[0] % 8 == 0:
        return torch._int_mm(left, right.T)
    total = torch.zeros(left.shape[0], right.shape[0], dtype=torch.int32, device=left.device)
    with torch.autocast(left.device.type, enabled=False):
        for start in range(0, left.shape[1], _EXACT_TERMS):
            part = slice(start, start + _EXACT_TERMS)
            total += (left[:, part].float() @ right[:, part].float().T).to(torch.int32)
    return total


@cache
def _kernel_is_exact() -> bool:
    """Whether this CPU's int8 kernels keep every bit at the extremes: without VNNI some saturate at 16 bits."""
    for rows in (1, 2, 17, 64):
        left = torch.full((rows, 256), 127, dtype=torch.int8)
        left[::2] = -128
        right = torch.full((48, 256), 127, dtype=torch.int8)
        right[::3] = -127
        if not torch.equal(torch._int_mm(left, right.T).double(), left.double() @ right.double().T):
            return False
    return True


def linear_oracle(x: Tensor, codes: Tensor, scale: Tensor, *, per_token: bool) -> Tensor:
    """``linear`` in float64, row by row: (N, O)."""
    result = torch.zeros(x.shape[0], codes.shape[0], dtype=torch.float64)
    for number, row in enumerate(x.double()):
        seen = row if per_token else x.double()
        low, high = min(float(seen.min()), 0.0), max(float(seen.max()), 0.0)
        step = (high - low) / 255 or 1.0
        zero = round(-low / step)
        for output, weights in enumerate(codes.double()):
            activations = (torch.round(row / step) + zero).clamp(0, 255) - zero
            result[number, output] = step * float(scale[output]) * float(activations @ weights)
    return result
