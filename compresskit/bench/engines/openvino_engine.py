"""OpenVINO: reads ONNX files and its own, and is often the fastest in int8 on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from compresskit.bench.engines.base import Arrays, Engine, Settings, cannot_run, require


class OpenVinoEngine(Engine):
    """One infer request of one stream; float32 stays float32 also where the processor has bfloat16."""

    name = "openvino"
    package = "openvino"

    request: Any

    def load(self, path: Path, settings: Settings) -> None:
        openvino = require("openvino", "'compresskit[openvino]'")
        if settings.device != "cpu":
            raise cannot_run("openvino", "only the CPU is used here", "run with --device cpu")
        self._version, self._threads = openvino.__version__, settings.threads
        options = {
            "INFERENCE_NUM_THREADS": settings.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,
        }
        try:
            self._model = openvino.Core().compile_model(str(path), "CPU", options)
        except RuntimeError as error:
            raise cannot_run("openvino", str(error).strip().splitlines()[-1][:300], "try onnxruntime") from error
        self.request = self._model.create_infer_request()
        self._inputs = frozenset(name for port in self._model.inputs for name in port.names)

    @property
    def inputs(self) -> frozenset[str]:
        return self._inputs

    def prepare(self, batch: Arrays) -> dict[str, np.ndarray]:
        found = {name: array for name, array in batch.items() if name in self._inputs}
        missing = sorted(self._inputs - set(found))
        if missing:
            raise cannot_run("openvino", f"the file has other inputs: {', '.join(missing)[:200]}", "export it anew")
        return found

    def call(self, prepared: dict[str, np.ndarray]) -> Any:
        return self.request.infer(prepared)

    def arrays(self, outputs: Any) -> dict[str, np.ndarray]:
        return {port.any_name: np.array(array) for port, array in outputs.items()}

    def details(self) -> dict[str, Any]:
        return {"version": self._version, "threads": self._threads, "device": "CPU", "precision": "f32"}
