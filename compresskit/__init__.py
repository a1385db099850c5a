"""Compress Hugging Face models by recipe.

Importing this package imports neither torch nor transformers. It makes plain ``AutoModel….from_pretrained`` able to
load compressed checkpoints: a finder on ``sys.meta_path`` registers our loader with transformers as soon as
transformers' own registry of loaders exists.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compresskit.core.compressor import Compressor
    from compresskit.export import export_onnx as export
    from compresskit.pipeline import Result, inspect, verify
    from compresskit.pipeline.run import apply, plan
    from compresskit.recipe import Recipe
    from compresskit.registry import register

__version__ = "0.1.0"

_LAZY = {
    "apply": "compresskit.pipeline",
    "plan": "compresskit.pipeline",
    "verify": "compresskit.pipeline",
    "inspect": "compresskit.pipeline",
    "Result": "compresskit.pipeline",
    "Recipe": "compresskit.recipe",
    "Compressor": "compresskit.core.compressor",
    "register": "compresskit.registry",
    "export": "compresskit.export",
}

__all__ = ["apply", "plan", "verify", "inspect", "export", "Result", "Recipe", "Compressor", "register", "__version__"]

_REGISTRY = "transformers.quantizers.auto"


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_LAZY[name])
    # Importing the subpackage `export` makes it this attribute: it can be called as its main function.
    value = module if module.__name__ == f"{__name__}.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register_loader(registry: ModuleType) -> None:
    """Tell transformers how to load our checkpoints. ``registry`` is its freshly executed module."""
    load = import_module("compresskit.checkpoint.load")
    if hasattr(load, "register_with"):  # else it is being imported right now, and registers at its end
        load.register_with(registry)


class _LoaderFinder:
    """Finds ``transformers.quantizers.auto`` as everybody else does, and registers our loader once it has run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _REGISTRY:
            return None
        for finder in sys.meta_path:
            found = None if finder is self else finder.find_spec(name, path, target)
            if found is not None and found.loader is not None:
                found.loader.exec_module = _registering(found.loader.exec_module)  # type: ignore[method-assign]
                return found
        return None


def _registering(execute: Any) -> Any:
    def exec_module(module: ModuleType) -> None:
        execute(module)
        _register_loader(module)

    return exec_module


def _install() -> None:
    sys.meta_path[:] = [
        finder
        for finder in sys.meta_path
        if (type(finder).__module__, type(finder).__name__) != (__name__, _LoaderFinder.__name__)
    ]
    sys.meta_path.insert(0, _LoaderFinder())
    registry = sys.modules.get(_REGISTRY)
    if registry is not None and hasattr(registry, "register_quantizer"):
        _register_loader(registry)


_install()
