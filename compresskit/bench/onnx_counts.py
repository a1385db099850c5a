"""What an ONNX file stores: elements and bytes of its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compresskit.bench.engines.base import require


def tensors(path: Path) -> dict[str, float]:
    """``stored``: elements of all weights, scales included; ``nonzero``; ``bytes``; bits for each stored element.

    How many numbers the model logically has can't be told from a file alone.
    """
    onnx = require("onnx", "onnx")
    from onnx import numpy_helper

    model = onnx.load(str(path))
    stored = nonzero = held = 0
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor, base_dir=str(path.parent))
        stored += array.size
        nonzero += int(np.count_nonzero(array))
        held += array.nbytes
    return {"stored": stored, "nonzero": nonzero, "bytes": held, "effective_bits": 8 * held / max(stored, 1)}
