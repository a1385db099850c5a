"""ONNX Runtime: one file, the two of a decoder, or an encoder with its decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from compresskit.bench.engines.base import Arrays, Decoding, Engine, Settings, cannot_run, no_decoding, require

_PROVIDERS = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"]}
_CACHE, _PRESENT = "past_key_values.", "present."
_ENCODER = "encoder_model.onnx"
_READ, _WRITTEN = ("input_ids", "attention_mask"), "decoder_input_ids"


def step_file(path: Path) -> Path:
    """Where `compresskit export` puts the file for further tokens."""
    return path.with_name("decoder_with_past.onnx" if path.stem == "model" else f"{path.stem}_decoder_with_past.onnx")


def decoder_files(path: Path) -> list[Path]:
    """Where `compresskit export` puts the decoder's files of the encoder ``path``: the first pass, and the step."""
    if not path.name.endswith(_ENCODER):
        return []
    prefix = path.name.removesuffix(_ENCODER)
    return [path.with_name(f"{prefix}{name}.onnx") for name in ("decoder_model", "decoder_with_past_model")]


class OnnxRuntimeEngine(Engine):
    """A session at full optimization; a second one for further tokens is opened when it is first needed.

    An encoder whose decoder lies beside it runs together with the decoder's first pass.
    """

    name = "onnxruntime"
    package = "onnxruntime"

    session: Any

    def load(self, path: Path, settings: Settings) -> None:
        self._ort = require("onnxruntime", "onnxruntime")
        self._path, self._settings = path, settings
        self._steps: Any = None
        wanted = _PROVIDERS[settings.device]
        if settings.device == "cuda" and wanted[0] not in self._ort.get_available_providers():
            raise cannot_run("onnxruntime", "this build has no CUDA provider", "install onnxruntime-gpu")
        self.session = self._open(path)
        decoders = [file for file in decoder_files(path)[:1] if file.is_file()]
        self._decoder = self._open(decoders[0]) if decoders else None

    def _open(self, path: Path) -> Any:
        options = self._ort.SessionOptions()
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads, options.inter_op_num_threads = self._settings.threads, 1
        options.log_severity_level = 3
        try:
            return self._ort.InferenceSession(str(path), options, providers=_PROVIDERS[self._settings.device])
        except Exception as error:  # its exceptions have no common base of their own
            raise cannot_run("onnxruntime", str(error).splitlines()[0][:300], "export the model again") from error

    @property
    def inputs(self) -> frozenset[str]:
        found = frozenset(item.name for item in self.session.get_inputs())
        return found if self._decoder is None else found | {_WRITTEN}

    def prepare(self, batch: Arrays) -> dict[str, np.ndarray]:
        found = {name: array for name, array in batch.items() if name in self.inputs}
        missing = sorted(self.inputs - set(found))
        if missing:
            raise cannot_run(
                "onnxruntime", f"the file has other inputs: {', '.join(missing)[:200]}", "export it with compresskit"
            )
        return found

    def call(self, prepared: dict[str, np.ndarray]) -> list[Any]:
        if self._decoder is None:
            found: list[Any] = self.session.run(None, prepared)
            return found
        (states,) = self.session.run(None, {name: prepared[name] for name in _READ})
        feed = {"input_ids": prepared[_WRITTEN], "encoder_attention_mask": prepared[_READ[1]]}
        found = self._decoder.run(None, {**feed, "encoder_hidden_states": states})
        return found

    def arrays(self, outputs: list[Any]) -> dict[str, np.ndarray]:
        names = (item.name for item in (self._decoder or self.session).get_outputs())
        return {name: array for name, array in zip(names, outputs, strict=True) if not name.startswith(_PRESENT)}

    def begin(self, prepared: dict[str, np.ndarray], new_tokens: int) -> Decoding:
        if self._steps is None:
            file = step_file(self._path)
            if not file.is_file() or not any(item.name.startswith(_PRESENT) for item in self.session.get_outputs()):
                raise no_decoding(self.name)
            self._steps = self._open(file)
        value = self._ort.OrtValue.ortvalue_from_numpy
        feed = {name: value(np.ascontiguousarray(array)) for name, array in prepared.items()}
        mask = np.ones((prepared["input_ids"].shape[0], prepared["input_ids"].shape[1] + new_tokens), dtype=np.int64)
        return self._next(self.session, feed, mask, prepared["input_ids"].shape[1])

    def step(self, decoding: Decoding) -> Decoding:
        cache, mask, length = decoding.state
        value = self._ort.OrtValue.ortvalue_from_numpy
        feed = {
            **cache,
            "input_ids": value(decoding.token),
            "attention_mask": value(np.ascontiguousarray(mask[:, : length + 1])),
        }
        return self._next(self._steps, feed, mask, length + 1)

    def _next(self, session: Any, feed: dict[str, Any], mask: np.ndarray, length: int) -> Decoding:
        """Run, choose the likeliest token; caches stay where ONNX Runtime made them."""
        names = [item.name for item in session.get_outputs()]
        outputs = dict(zip(names, session.run_with_ort_values(names, feed), strict=True))
        token = outputs["logits"].numpy()[:, -1:].argmax(-1)
        cache = {
            name.replace(_PRESENT, _CACHE, 1): found for name, found in outputs.items() if name.startswith(_PRESENT)
        }
        return Decoding(np.ascontiguousarray(token, dtype=np.int64), (cache, mask, length))

    def token_array(self, decoding: Decoding) -> np.ndarray:
        return np.asarray(decoding.token)

    def details(self) -> dict[str, Any]:
        return {
            "version": self._ort.__version__,
            "providers": self.session.get_providers(),
            "optimization": "all",
            "threads": self._settings.threads,
            "device": self._settings.device,
        }
