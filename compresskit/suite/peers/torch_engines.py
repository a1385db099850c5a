"""Engines for peers that quantize a torch model in memory: loaded as fp32, quantized, then run like any other."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compresskit.bench.engines.base import Settings
from compresskit.bench.engines.torch_engine import TorchEngine
from compresskit.checkpoint.quiet import quiet_transformers


class _Quantized(TorchEngine):
    def load(self, path: Path, settings: Settings) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they announce removals and missing kernels for other machines
            self._load(path, settings)
            stored = io.BytesIO()
            torch.save(self.model.state_dict(), stored)
        self._stored = stored.tell()

    def _load(self, path: Path, settings: Settings) -> None:
        super().load(path, settings)
        self.model = self.quantized(self.model)

    def quantized(self, model: Any) -> Any:
        """``model`` with its linear layers quantized."""
        raise NotImplementedError

    def details(self) -> dict[str, Any]:
        return {**super().details(), "stored_bytes": self._stored}


class TorchAoDynamic(_Quantized):
    """``torch.ao.quantization.quantize_dynamic``, which torch is about to remove."""

    name = "torch.ao"

    def quantized(self, model: Any) -> Any:
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


class TorchAo(_Quantized):
    """torchao: int8 weights, int8 activations with a scale a token, without torch.compile."""

    name = "torchao"

    def quantized(self, model: Any) -> Any:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(model, Int8DynamicActivationInt8WeightConfig())
        return model


class _BitsAndBytes(_Quantized):
    options: dict[str, Any]

    def _load(self, path: Path, settings: Settings) -> None:
        import inspect

        import transformers

        torch.set_num_threads(settings.threads)
        name = (json.loads((path / "config.json").read_text(encoding="utf-8")).get("architectures") or ["AutoModel"])[0]
        config = transformers.BitsAndBytesConfig(**self.options)
        with quiet_transformers():
            self.model = getattr(transformers, name).from_pretrained(
                path, quantization_config=config, device_map="cpu", dtype=torch.float32, local_files_only=True
            )
        self.model.eval()
        self.device = torch.device("cpu")
        self._accepted = frozenset(inspect.signature(self.model.forward).parameters)


class BitsAndBytes8(_BitsAndBytes):
    """bitsandbytes LLM.int8()."""

    name = "bitsandbytes-int8"
    options = {"load_in_8bit": True}  # noqa: RUF012


class BitsAndBytes4(_BitsAndBytes):
    """bitsandbytes NF4, computing in float32."""

    name = "bitsandbytes-nf4"
    options = {  # noqa: RUF012
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": torch.float32,
    }
