"""How a model's tensors lie in memory, which decides the last bits of what it computes; and memory that is free."""

from __future__ import annotations

import ctypes

from torch import Tensor, nn

ALIGNMENT = 64


def order_memory(model: nn.Module) -> None:
    """Lay every parameter and buffer out as a fresh tensor would be: contiguous, at a multiple of 64 bytes.

    Matrix products on the CPU sum in another order when a matrix is transposed or begins elsewhere, and transformers
    leaves loaded weights where they lie in the mapped file. Values and ties stay as they are.
    """
    for parameter in model.parameters():
        if not _in_order(parameter):
            parameter.data = _moved(parameter.data)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not _in_order(buffer):
                module._buffers[name] = _moved(buffer)


def _in_order(tensor: Tensor) -> bool:
    aligned = tensor.device.type != "cpu" or tensor.data_ptr() % ALIGNMENT == 0
    return tensor.is_contiguous() and aligned


def _moved(tensor: Tensor) -> Tensor:
    ordered = tensor.contiguous()
    return ordered if ordered is not tensor and _in_order(ordered) else ordered.clone()


def give_back_freed() -> None:
    """Have the C library return freed memory to the system, where it can: by itself it keeps more with every part."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
