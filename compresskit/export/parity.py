"""Does the file compute what the model computes? Checked in ONNX Runtime as it is deployed, at full optimization.

Float models: largest difference relative to the largest output. Integer models: rounding is chaotic (a noise of 2e-7
moves a code, and the next layer's range with it), so tokens are compared by their cosine. On real text the mean over
texts (of embeddings and means of hidden states; for logits over positions) is held to ``COSINE``; single hidden states,
random tokens and single ones, which no model was trained on, carry the noise further and are held to
``FLOOR``, which tells a wrong node (an ONNX Runtime fusion that misread scales gave .70) from noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.outputs import pool
from compresskit.errors import ExportError
from compresskit.export.graph import Task
from compresskit.nn.embedding import QuantizedHead
from compresskit.nn.int8 import Int8Linear
from compresskit.nn.packed import PackedLinear
from compresskit.nn.static_int8 import StaticInt8Linear

FLOAT_TOLERANCE = 1e-4
COSINE = {"token": 0.9995, "tensor": 0.998}
FLOOR = {"token": 0.98, "tensor": 0.95}
HIDDEN = "last_hidden_state"
TEXT = "text"
"""Name of the batch of real text."""
_TINY = 1e-12


@dataclass(frozen=True)
class Case:
    """What one batch showed for one output.

    Args:
        name: of the batch. output: of the graph. shape: of the output.
        difference: largest absolute difference, divided by max(1, largest absolute output).
        cosine_mean, cosine_min: over attended tokens, or rows where there are no tokens.
    """

    graph: str
    name: str
    output: str
    shape: tuple[int, ...]
    difference: float
    cosine_mean: float
    cosine_min: float


def session(path: Path | bytes, threads: int | None = None) -> Any:
    """ONNX Runtime on the CPU with every optimization on, in one thread unless told otherwise.

    Raises:
        ExportError: CK-X005, ONNX Runtime doesn't take the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    content = path if isinstance(path, bytes) else str(path)
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base of their own
        raise ExportError(
            "CK-X005",
            "ONNX Runtime can't open the exported file",
            where=path.name if isinstance(path, Path) else "",
            why=str(error).splitlines()[0][:300],
            fix="another --opset may do; please report it",
        ) from error


def rule(model: PreTrainedModel, profile: str) -> str:
    """``float``, ``token`` or ``tensor``: what the outputs are held to."""
    kinds = {"tensor" for module in model.modules() if isinstance(module, StaticInt8Linear)}
    if profile != "portable":
        kinds |= {module.activations for module in model.modules() if isinstance(module, Int8Linear)}
    return "float" if not kinds else "tensor" if "tensor" in kinds else "token"


def step_rule(model: PreTrainedModel, held_to: str) -> str:
    """What one token's step in the ``fast`` profile is held to: its products with packed weights are integer ones."""
    packed = any(isinstance(module, (PackedLinear, QuantizedHead)) for module in model.modules())
    return "token" if packed and held_to == "float" else held_to


def measure(task: Task, batches: Mapping[str, Mapping[str, Tensor]], run: Any) -> list[Case]:
    """Run ``batches`` by name through torch and ``run``, an ONNX Runtime session; one case per output.

    Raises:
        ExportError: CK-X006, the file fails on a batch, or gives other shapes or what isn't finite.
    """
    cases = []
    for name, batch in batches.items():
        expected = task.run(batch)
        feed = {key: value.numpy() for key, value in task.feed(batch).items()}
        try:
            found = run.run(list(task.outputs), feed)
        except Exception as error:  # see session()
            sizes = ", ".join(f"{key} {list(value.shape)}" for key, value in feed.items())
            raise _broken(task.name, name, f"ONNX Runtime: {str(error).splitlines()[0][:300]}", sizes) from error
        for output, array in zip(task.outputs, found, strict=True):
            mask = task.mask_of(output, batch)
            cases.append(compare(task.name, name, output, expected[output], array, mask))
            if output == HIDDEN and mask is not None:
                left, right = (pool(x, mask) for x in (expected[output], torch.from_numpy(array)))
                cases.append(compare(task.name, name, f"mean of {HIDDEN}", left, right.numpy(), None))
    return cases


def compare(
    graph: str, name: str, output: str, expected: Tensor, found: np.ndarray[Any, Any], mask: Tensor | None
) -> Case:
    """One case: what the file ``found`` for an output beside what was ``expected``; tokens outside ``mask`` left out.

    Raises:
        ExportError: CK-X006, another shape, or what isn't finite.
    """
    got = torch.from_numpy(np.asarray(found))
    if got.shape != expected.shape:
        raise _broken(graph, name, f"shape {list(got.shape)} instead of {list(expected.shape)}", output)
    left, right = attended(expected, mask), attended(got, mask)
    if not bool(right.isfinite().all()):
        raise _broken(graph, name, "values that aren't finite", output)
    largest = float(left.abs().max()) if left.numel() else 0.0
    difference = float((left - right).abs().max()) if left.numel() else 0.0
    agreement = cosine(left, right)
    shape = tuple(expected.shape)
    return Case(
        graph, name, output, shape, difference / max(1.0, largest), float(agreement.mean()), float(agreement.min())
    )


def attended(values: Tensor, mask: Tensor | None) -> Tensor:
    """(N, D) float64: real tokens of (B, T, D) and of (B, H, T, D) caches; other shapes as rows."""
    values = values.double()
    if mask is None:
        return values.reshape(-1, values.shape[-1])
    if values.dim() == 4 and values.shape[0] == mask.shape[0] and values.shape[2] == mask.shape[1]:
        return values.transpose(1, 2)[mask].flatten(1)
    if values.dim() == 3 and values.shape[:2] == mask.shape:
        return values[mask]
    return values.reshape(-1, values.shape[-1])


def cosine(left: Tensor, right: Tensor) -> Tensor:
    """Per row; two rows of zeros agree."""
    lengths = (left.norm(dim=-1) * right.norm(dim=-1)).clamp(min=_TINY)
    found = (left * right).sum(-1) / lengths
    return torch.where((left == right).all(-1), torch.ones_like(found), found)


def require(cases: Iterable[Case], held_to: str) -> None:
    """Refuse what differs too much.

    Raises:
        ExportError: CK-X007.
    """
    for case in cases:
        if held_to == "float" and not case.difference <= FLOAT_TOLERANCE:
            raise _differs(case, f"by {case.difference:.1e} of the largest value, above {FLOAT_TOLERANCE:.0e}")
        least = (
            0.0 if held_to == "float" else (COSINE if case.name == TEXT and case.output != HIDDEN else FLOOR)[held_to]
        )
        if held_to != "float" and not case.cosine_mean >= least:
            raise _differs(case, f"mean cosine {case.cosine_mean:.5f}, below {least}")


def _differs(case: Case, how: str) -> ExportError:
    return ExportError(
        "CK-X007",
        f"the file's {case.output!r} is not the model's: {how}",
        where=f"graph {case.graph}, batch {case.name}, shape {list(case.shape)}",
        why="ONNX Runtime computes something else from these nodes",
        fix="try --profile portable or another --opset; please report it. Nothing was written.",
    )


def _broken(graph: str, batch: str, why: str, where: str) -> ExportError:
    return ExportError(
        "CK-X006",
        "the exported file doesn't run as the model does",
        where=f"graph {graph}, batch {batch}: {where}",
        why=why,
        fix="please report it with the model's name. Nothing was written.",
    )
