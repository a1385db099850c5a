"""OpenVINO as it is, and with NNCF's int8: weights only, and weights with calibrated activations."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from compresskit.suite.peers.base import Made, Material, Peer, put_beside

_FILE = "model.xml"


class OpenVino(Peer):
    """Our fp32 export in OpenVINO."""

    name = "openvino-fp32"
    title = "OpenVINO fp32"
    packages = ("openvino",)

    def make(self, material: Material, folder: Path) -> Made:
        put_beside(material.source.path, folder)
        _save(_read(material.onnx), folder)
        return Made(str(folder / _FILE), note="our fp32 export")


class NncfWeights(Peer):
    """NNCF's weight compression, int8 symmetric; needs no data."""

    name = "nncf-weights-int8"
    title = "NNCF int8 weights, OpenVINO"
    packages = ("nncf", "openvino")

    def make(self, material: Material, folder: Path) -> Made:
        import nncf

        put_beside(material.source.path, folder)
        with _silence():
            model = nncf.compress_weights(_read(material.onnx), mode=nncf.CompressWeightsMode.INT8_SYM)
        _save(model, folder)
        return Made(str(folder / _FILE), note="INT8_SYM")


class NncfPtq(Peer):
    """NNCF's post-training quantization, transformer preset."""

    name = "nncf-ptq-int8"
    title = "NNCF int8 PTQ, OpenVINO"
    packages = ("nncf", "openvino")

    def make(self, material: Material, folder: Path) -> Made:
        import nncf

        put_beside(material.source.path, folder)
        batches = _batches(material)
        with _silence():
            model = nncf.quantize(
                _read(material.onnx),
                nncf.Dataset(batches),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(batches),
            )
        _save(model, folder)
        return Made(str(folder / _FILE), note=f"TRANSFORMER preset, {len(batches)} sentences")


def _read(path: Path) -> Any:
    import openvino

    return openvino.Core().read_model(str(path))


def _save(model: Any, folder: Path) -> None:
    import openvino

    # Half precision in the file would change the figures, and is not what is compared.
    openvino.save_model(model, str(folder / _FILE), compress_to_fp16=False)


def _batches(material: Material) -> list[dict[str, np.ndarray]]:
    tokenizer: Any = material.source.load_tokenizer()
    rows = [tokenizer([text], truncation=True, max_length=material.max_length) for text in material.texts]
    names = ("input_ids", "attention_mask", "token_type_ids")
    return [{name: np.array(row[name], dtype=np.int64) for name in names if name in row} for row in rows]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)
