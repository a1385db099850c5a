"""ONNX Runtime's own dynamic quantization, of our fp32 export and of the fused graph its guides recommend."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compresskit.calibrate.outputs import pool
from compresskit.suite.peers.base import Made, Material, Peer, put_beside

_OPSET = 17
_FILE = "model.onnx"


class OrtDynamic(Peer):
    """``quantize_dynamic`` of our fp32 export, int8 weights with a scale a channel."""

    name = "ort-dynamic"
    title = "ONNX Runtime dynamic int8"
    packages = ("onnxruntime",)

    def make(self, material: Material, folder: Path) -> Made:
        put_beside(material.source.path, folder)
        _quantize(material.onnx, folder / _FILE)
        return Made(f"onnxruntime={folder / _FILE}", note="our fp32 export, opset 21, per channel")


class OrtFused(Peer):
    """Eager attention, exported by tracing, fused by ONNX Runtime's optimizer for transformers, then quantized."""

    name = "ort-dynamic-fused"
    title = "ONNX Runtime dynamic int8, fused"
    packages = ("onnxruntime",)
    skip_layer_norm = True

    def make(self, material: Material, folder: Path) -> Made:
        put_beside(material.source.path, folder)
        traced, fused = folder / "traced.onnx", folder / "fused.onnx"
        _trace(material, traced)
        _fuse(traced, fused, material.source.config, skip_layer_norm=self.skip_layer_norm)
        _quantize(fused, folder / _FILE)
        for left in (traced, fused):
            left.unlink()
        return Made(f"onnxruntime={folder / _FILE}", note="eager attention, onnxruntime.transformers, per channel")


class OrtFusedPlainNorm(OrtFused):
    """The same with SkipLayerNormalization undone: additions and norms stay apart."""

    name = "ort-dynamic-fused-plain-norm"
    title = "ONNX Runtime dynamic int8, fused but for SkipLayerNormalization"
    skip_layer_norm = False


class _Embedder(nn.Module):
    """The model with its pooling, as its sentence-transformers files say."""

    def __init__(self, model: nn.Module, files: Any) -> None:
        super().__init__()
        self.model, self.files = model, files

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> Any:
        hidden = self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        vector = pool(hidden, attention_mask.bool(), self.files)
        if self.files is not None and self.files.normalize:
            vector = torch.nn.functional.normalize(vector, dim=-1)
        return hidden, vector


def _trace(material: Material, path: Path) -> None:
    model = material.source.load_model(dtype="float32")
    model.set_attn_implementation("eager")
    module = _Embedder(model, material.source.sentence_transformer).eval()
    ids = torch.ones(2, 9, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    names = ["input_ids", "attention_mask", "token_type_ids"]
    axes = {name: {0: "batch", 1: "sequence"} for name in (*names, "last_hidden_state")}
    with _silence(), torch.no_grad():
        torch.onnx.export(
            module,
            (ids, mask, torch.zeros_like(ids)),
            str(path),
            input_names=names,
            output_names=["last_hidden_state", "sentence_embedding"],
            dynamic_axes={**axes, "sentence_embedding": {0: "batch"}},
            opset_version=_OPSET,
            dynamo=False,
        )


def _fuse(source: Path, target: Path, config: dict[str, Any], *, skip_layer_norm: bool) -> None:
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    options = FusionOptions("bert")
    options.enable_skip_layer_norm = skip_layer_norm
    options.enable_bias_skip_layer_norm = skip_layer_norm
    with _silence():
        fused = optimizer.optimize_model(
            str(source),
            model_type="bert",
            num_heads=int(config["num_attention_heads"]),
            hidden_size=int(config["hidden_size"]),
            optimization_options=options,
            opt_level=0,
        )
        fused.save_model_to_file(str(target))


def _quantize(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _silence():
        quantize_dynamic(
            str(source),
            str(target),
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": 1},
        )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """These tools print and log at length about themselves."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
