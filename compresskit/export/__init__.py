"""ONNX files of compressed models, each proved against the model in ONNX Runtime before it is published.

``compresskit.export(model, "model.onnx")`` is this package called: it does what ``export_onnx`` does.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from compresskit.export.report import ExportReport
from compresskit.export.run import export_onnx

__all__ = ["ExportReport", "export_onnx"]


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> ExportReport:
        """``export_onnx``."""
        return export_onnx(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
