"""A matrix that is computed when its values are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from compresskit.nn.base import exporting

_FACTS = {getattr(Tensor, name).__get__ for name in ("dtype", "device", "shape", "ndim")}


class LazyMatrix(Tensor):
    """Stands for ``build()``: its dtype, device and shape are known at once, anything else computes it, anew each time.

    T5 asks a layer for ``weight.dtype`` in every forward pass. Multiplying low-rank factors, or dequantizing codes, to
    answer that would take many times as long as the layer itself. Gradients reach whatever ``build`` reads.
    """

    build: Any

    @staticmethod
    def __new__(
        cls, build: Callable[[], Tensor], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> LazyMatrix:
        made = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        made.build = build
        return made

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        if function in _FACTS:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*arguments)
        arguments, options = tree_map(_built, (arguments, options or {}))
        return function(*arguments, **options)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        arguments, options = tree_map(_built, (arguments, options or {}))
        return function(*arguments, **options)


def _built(value: Any) -> Any:
    return value.__dict__["build"]() if isinstance(value, LazyMatrix) else value


def lazy(build: Callable[[], Tensor], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """``build()``, put off until it is needed; while a graph is traced, at once."""
    if torch.compiler.is_compiling() or exporting():
        return build()
    return LazyMatrix(build, shape, dtype, device)
