"""What runs a model: each engine is imported only when it is used, so that one of them needs none of the others."""

from __future__ import annotations

from importlib import import_module

from compresskit.bench.engines.base import Engine
from compresskit.errors import UsageError

_CLASSES = {
    "torch": ("compresskit.bench.engines.torch_engine", "TorchEngine"),
    "onnxruntime": ("compresskit.bench.engines.onnxruntime_engine", "OnnxRuntimeEngine"),
    "openvino": ("compresskit.bench.engines.openvino_engine", "OpenVinoEngine"),
}

NAMES = tuple(_CLASSES)


def is_engine(name: str) -> bool:
    """Whether ``name`` is one of ``NAMES``, or ``compresskit.MODULE:CLASS`` of another part of the package."""
    return name in _CLASSES or (name.startswith("compresskit.") and ":" in name)


def engine(name: str) -> Engine:
    """A new engine, nothing loaded.

    Raises:
        UsageError: CK-B004, unknown, or not installed.
    """
    if not is_engine(name):
        raise UsageError("CK-B004", f"there is no engine {name!r}", fix=f"engines: {', '.join(NAMES)}")
    module, cls = _CLASSES[name] if name in _CLASSES else name.split(":", 1)
    found: Engine = getattr(import_module(module), cls)()
    return found
